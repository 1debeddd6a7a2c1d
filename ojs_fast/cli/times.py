"""Times as people type them: spans such as `10m`, and moments that may be given as the span since then."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

_SPAN = re.compile(r"(\d+)(ms|s|m|h|d|w)")
_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def span(text: str) -> timedelta | None:
    """A span such as 500ms, 30s, 10m, 2h, 1d or 1w; None for anything else."""
    match = _SPAN.fullmatch(text)
    return timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else None


class Moment(click.ParamType[str]):
    """RFC 3339, which the server checks, or how long ago."""

    name = "time"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The moment in RFC 3339."""
        try:
            ago = span(value)
            return (datetime.now(UTC) - ago).isoformat() if ago is not None else value
        except OverflowError:
            self.fail(f"{value!r} is too long ago.", param, ctx)


MOMENT = Moment()
