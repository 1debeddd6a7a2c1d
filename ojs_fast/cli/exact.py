"""JSON whose numbers come out as they went in: no precision is lost between a server and a pipe."""

from __future__ import annotations

import json
from typing import Any, Self

import orjson

INTEGERS_AS_THEY_ARE = 18  # digits that fit into 64 bits


class ExactNumber(float):
    """A number that remembers how it was written."""

    def __new__(cls, text: str) -> Self:
        """Make it of its text."""
        self = super().__new__(cls, text)
        self.text = text
        return self

    text: str


def parse_exactly(raw: bytes) -> Any:
    """Parse JSON. Raises ValueError, for NaN and Infinity too."""
    return json.loads(raw, parse_float=ExactNumber, parse_int=_integer, parse_constant=_refused)


def dump_exactly(value: Any) -> bytes:
    """Undo `parse_exactly`, in one line."""
    return orjson.dumps(value, default=_as_written)


def _integer(text: str) -> int | ExactNumber:
    return int(text) if len(text) <= INTEGERS_AS_THEY_ARE else ExactNumber(text)


def _refused(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _as_written(value: Any) -> orjson.Fragment:
    if isinstance(value, ExactNumber):
        return orjson.Fragment(value.text.encode())
    raise TypeError(f"not for JSON: {value!r}")
