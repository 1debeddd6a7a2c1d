"""The examples of docs/events.md do what they say."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from ojs_fast.core.webhooks import model

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "events.md").read_text(encoding="utf-8")
BODY = '{"data":"ä"}'.encode()


def example(language: str, word: str) -> str:
    """The code block of a language that contains a word."""
    [found] = [one for one in re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL) if word in one]
    return str(found)


def cases() -> list[tuple[list[str], bool]]:
    """`([secret, timestamp, body, signature], is genuine)`."""
    one = model.create({"url": "https://example.com", "events": ["*"]}, "sub_1", 1, 0)
    now_s = int(time.time())
    two = one.rotated(now_s * 1000)
    good, both, old = one.signature(now_s, BODY), two.signature(now_s, BODY), one.signature(now_s - 400, BODY)
    body = BODY.decode()
    return [
        ([one.secret, str(now_s), body, good], True),
        ([one.secret, str(now_s), body, both], True),
        ([two.secret, str(now_s), body, both], True),
        ([two.secret, str(now_s), body, good], False),
        ([one.secret, str(now_s + 1), body, good], False),
        ([one.secret, str(now_s - 400), body, old], False),
        ([one.secret, str(now_s), body + " ", good], False),
        ([one.secret, str(now_s), body, "sha256=00"], False),
    ]


def test_the_python_example_verifies() -> None:
    """What the server signs passes, anything else does not."""
    scope: dict[str, Any] = {}
    exec(example("python", "is_genuine"), scope)
    for (secret, timestamp, body, signature), expected in cases():
        assert scope["is_genuine"](secret, timestamp, body.encode(), signature) is expected


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_the_javascript_example_verifies() -> None:
    """As the other one."""
    given = cases()
    script = example("js", "isGenuine") + (
        "console.log(JSON.stringify(JSON.parse(process.argv[1]).map("
        "([secret, at, body, signature]) => isGenuine(secret, at, Buffer.from(body), signature))))"
    )
    arguments = orjson.dumps([one for one, _ in given]).decode()
    done = subprocess.run(["node", "-e", script, arguments], check=True, capture_output=True, timeout=30)
    assert orjson.loads(done.stdout) == [expected for _, expected in given]
