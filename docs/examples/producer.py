"""Enqueue jobs: python producer.py QUEUE COUNT. Prints their ids. Settings: OJS_URL, OJS_API_KEY."""

from __future__ import annotations

import sys
import uuid
from typing import Any

import ojs


def enqueue(kind: str, args: list[Any], **options: Any) -> str:
    """Enqueue one job and return its id; however often it is tried, there is one job."""
    body = {"type": kind, "args": args, "options": options}
    job = ojs.post("/jobs", body, headers={"Idempotency-Key": str(uuid.uuid4())})["job"]
    return str(job["id"])


def main() -> None:
    """Ten e-mails, unless told otherwise."""
    queue = sys.argv[1] if len(sys.argv) > 1 else "email"
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    for number in range(count):
        address = f"user{number}@example.com"
        print(enqueue("email.send", [address, "welcome"], queue=queue, retry={"max_attempts": 5}), flush=True)


if __name__ == "__main__":
    main()
