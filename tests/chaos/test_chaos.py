"""The short form of `make chaos`: one seed, 20 seconds.

OJS_CHAOS_SECONDS makes it longer, OJS_KILL_SEED repeats it.
"""

from __future__ import annotations

import os
import random
import sys

import pytest

from tests.chaos.run import AGREED_S, SETTLED_S, run

SECONDS = float(os.environ.get("OJS_CHAOS_SECONDS", "20"))
SEED = int(os.environ.get("OJS_KILL_SEED") or random.SystemRandom().randrange(10**6))
LONGEST_S = 6.0

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(SECONDS + SETTLED_S + AGREED_S + 180)]


async def test_every_promise_is_kept() -> None:
    """Nothing acknowledged is lost, nothing runs twice, nothing is stuck, and the numbers are right."""
    sys.stdout.write(f"OJS_KILL_SEED={SEED}\n")

    def say(text: str) -> None:
        sys.stdout.write(f"{text}\n")

    result = await run(SEED, SECONDS, LONGEST_S, say)
    assert not result.violations, "\n".join([*result.violations, *result.faults, *result.clues, result.logs])
    assert result.faults
    assert result.jobs > SECONDS
