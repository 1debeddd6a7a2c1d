"""Whoever copies a block of README or docs into a terminal gets what the text says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.docs.snippets import DOCUMENTS, ROOT, Block, Reader, blocks
from tests.support.server import Server

pytestmark = pytest.mark.timeout(300)

RUN = [one for one in DOCUMENTS if any(not block.not_run for block in blocks(one))]


@pytest.mark.parametrize("document", RUN, ids=lambda one: str(one.relative_to(ROOT)))
def test_the_blocks_of_a_document_work_in_order(
    document: Path, fresh_server: Callable[..., Server], tmp_path: Path
) -> None:
    """On a fresh server, as a reader would go through it."""
    reader = Reader(fresh_server().url.removeprefix("http://"), tmp_path)
    for block in blocks(document):
        if not block.not_run:
            reader.run(block)
    if reader.skipped:
        pytest.skip("; ".join(reader.skipped))


def test_readme_is_among_them() -> None:
    """Most of its blocks are run."""
    found = blocks(ROOT / "README.md")
    assert len([one for one in found if not one.not_run]) > len([one for one in found if one.not_run])


@pytest.mark.parametrize(
    "text",
    ["curl -s http://127.0.0.1:8080/ojs/v1/nothing", "exit 3", "echo yes\n# → no"],
)
def test_a_broken_block_fails(text: str, fresh_server: Callable[..., Server], tmp_path: Path) -> None:
    """An HTTP error, an exit code, another output than the text says."""
    reader = Reader(fresh_server().url.removeprefix("http://"), tmp_path)
    with pytest.raises(AssertionError, match="here:1"):
        reader.run(Block("here", 1, "sh", text, ""))


def test_blocks_are_found_with_their_reasons(tmp_path: Path, monkeypatch: Any) -> None:
    """A reason holds for the block right behind it only."""
    document = tmp_path / "a.md"
    document.write_text(
        "<!-- not run: it is old -->\n```sh\nfalse\n```\n\ntext\n  ```sh\n  true\n  ```\n```json\n{}\n```\n",
        encoding="utf-8",
    )
    monkeypatch.setattr("tests.docs.snippets.ROOT", tmp_path)
    assert [(one.text, one.not_run) for one in blocks(document)] == [("false", "it is old"), ("true", "")]
