"""Loops that a node depends on."""

from __future__ import annotations

import asyncio

import pytest

from ojs_fast import forever


async def test_a_defect_is_told_and_the_loop_begins_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The second run goes on where nothing is wrong; only its task's cancellation ends it."""
    monkeypatch.setattr(forever, "AGAIN_S", 0)
    runs = 0
    again = asyncio.Event()

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise LookupError("a defect")
        again.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(forever.forever(loop))
    await asyncio.wait_for(again.wait(), 5)
    assert "a defect" in caplog.text
    assert "loop failed and begins anew" in caplog.text
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
