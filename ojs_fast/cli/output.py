"""What commands print: tables, or with `--json` one JSON object per line; progress goes to standard error."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from ojs_fast.cli.exact import ExactNumber, dump_exactly

COLOURS = {
    "completed": "green",
    "active": "cyan",
    "running": "cyan",
    "retryable": "yellow",
    "paused": "yellow",
    "discarded": "red",
    "failed": "red",
    "cancelled": "bright_black",
}


class Output:
    """Prints the answers of one command."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def rows(self, items: Iterable[dict[str, Any]], columns: Sequence[tuple[str, str]]) -> None:
        """Print a list; `columns`: header and the path of its member, such as `counts.active`."""
        if self.as_json:
            for item in items:
                click.echo(dump_exactly(item))
            return
        cells = [[header for header, _ in columns]]
        cells += [[cell(find(item, path)) for _, path in columns] for item in items]
        if len(cells) == 1:
            click.echo("Nothing found.", err=True)
            return
        print_aligned(cells)

    def one(self, item: dict[str, Any], fields: Sequence[tuple[str, str]]) -> None:
        """Print one thing, a member per line; those that it lacks are left out."""
        if self.as_json:
            click.echo(dump_exactly(item))
            return
        shown = [(header, cell(value)) for header, path in fields if (value := find(item, path)) is not None]
        width = max(len(header) for header, _ in shown)
        for header, text in shown:
            click.echo(f"{header.ljust(width)}  {coloured(text, text)}")

    def done(self, item: dict[str, Any], sentence: str) -> None:
        """Say that something was done."""
        click.echo(dump_exactly(item) if self.as_json else printable(sentence))


def find(item: Any, path: str) -> Any:
    """The member at a dotted path, None when it is missing."""
    for name in path.split("."):
        if not isinstance(item, dict) or name not in item:
            return None
        item = item[name]
    return item


def cell(value: Any) -> str:
    """A value as people read it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, ExactNumber):
        return value.text
    if isinstance(value, str | int | float):
        return printable(str(value))
    return printable(dump_exactly(value).decode())


def printable(text: str) -> str:
    """Escape what would steer a terminal: names and messages come from strangers."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def coloured(word: str, padded: str) -> str:
    """A state in its colour; click leaves colours away where standard output is no terminal."""
    return click.style(padded, fg=COLOURS[word]) if word in COLOURS else padded


def print_aligned(cells: list[list[str]]) -> None:
    """Print a table; on a terminal no line is wider than it."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - sum(widths[:-1]) - 2 * (len(widths) - 1)
        widths[-1] = min(widths[-1], max(room, len(cells[0][-1]), 8))
    for number, row in enumerate(cells):
        row[-1] = row[-1] if len(row[-1]) <= widths[-1] else row[-1][: widths[-1] - 1] + "…"
        padded = [text.ljust(width) for text, width in zip(row[:-1], widths, strict=False)] + [row[-1]]
        line = "  ".join(coloured(text, shown) for text, shown in zip(row, padded, strict=True)).rstrip()
        click.echo(click.style(line, bold=True) if number == 0 else line)


def progress(length: int, label: str, *, unit: str = "") -> Any:
    """A progress bar on standard error; where that is no terminal only the label is printed."""
    return click.progressbar(
        length=length,
        label=label,
        file=sys.stderr,
        item_show_func=(lambda text: text or "") if unit else None,
        show_pos=not unit,
    )
