"""Calls to an Open Job Spec server with the standard library: patient when it is away, plain when it refuses."""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

URL = os.environ.get("OJS_URL", "http://127.0.0.1:8080") + "/ojs/v1"
HEADERS = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('OJS_API_KEY', '')}"}
TRY_AGAIN = (429, 502, 503, 504)


class Refused(Exception):
    """The server has understood and says no (4xx): trying again would not help."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"{status} {body['error']['message']}")
        self.status = status
        self.code = body["error"]["code"]


class Away(Exception):
    """The server is away or busy, and there is no more time to wait for it."""


def post(
    path: str, body: dict[str, Any], *, waits: Callable[[], bool] = lambda: True, headers: dict[str, str] | None = None
) -> dict[str, Any]:
    """POST, again and again with growing pauses as long as `waits()` says so. Raises Refused, Away."""
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), {**HEADERS, **(headers or {})})
    pause_s = 0.1
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                parsed: dict[str, Any] = json.load(answer)
                return parsed
        except urllib.error.HTTPError as error:
            if error.code not in TRY_AGAIN:
                raise Refused(error.code, json.load(error)) from None
            wait_s = float(error.headers.get("Retry-After") or pause_s)
            reason: object = error
        except (OSError, http.client.HTTPException) as error:
            wait_s, reason = pause_s, error
        # Not all clients at once, when it comes back.
        end = time.monotonic() + wait_s * random.uniform(1, 1.5)
        while time.monotonic() < end:
            if not waits():
                raise Away(str(reason))
            time.sleep(0.05)
        pause_s = min(pause_s * 2, 10)
