"""A server whose worker takes a second between its two runs of the event loop, for tests that send signals then."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

from granian.server import mp

from ojs_fast import serve
from ojs_fast.config import Settings
from tests.support import strict

#: the line that tells when it begins
BETWEEN = "between two runs of the loop"
WINDOW_S = 1.0

log = logging.getLogger(__name__)
granians: Any = mp  # its worker part has no types


def create_app() -> Any:
    """Make the application that Granian loads, and slow Granian down where it goes on from the start."""
    scheduler = granians._new_cbscheduler

    def slow(*arguments: Any, **named: Any) -> Any:
        log.info(BETWEEN)
        end_s = time.monotonic() + WINDOW_S
        while time.monotonic() < end_s:  # in steps, so that signals are handled meanwhile
            time.sleep(0.01)
        return scheduler(*arguments, **named)

    granians._new_cbscheduler = slow
    return strict.create_app()


if __name__ == "__main__":
    sys.exit(serve.run(Settings.from_env(os.environ), target="tests.support.slow_start:create_app"))
