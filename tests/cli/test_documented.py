"""What README, docs/cli.md and the help texts show can be typed."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ojs_fast.cli.main import COMMANDS, main
from tests.cli.command import ROOT, environment

LINE = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*ojs-fast .*|(?<=`)ojs-fast [^`]*(?=`)", re.MULTILINE)
FILES = (".json", ".ndjson", ".tar")


def parts(line: str) -> Iterator[list[str]]:
    """The words of each call of the command in a line, without pipes, redirections and comments."""
    words = shlex.split(line, comments=True)
    calls: list[list[str]] = []
    for number, word in enumerate(words):
        if word == "ojs-fast":
            calls.append([])
        elif word in ("|", "<", ">"):
            calls.append([]) if number + 1 < len(words) and words[number + 1] == "ojs-fast" else calls.append(["|"])
        elif calls:
            calls[-1].append(word)
    return (call for call in calls if call and call[0] != "|")


def walk(words: list[str]) -> click.Command:
    """Parse as the command would, without running it. Raises click.UsageError."""
    command: click.Command = main
    context = command.make_context("ojs-fast", list(words))
    while isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        name, found, left = command.resolve_command(context, rest)
        assert found is not None
        context = found.make_context(name, left, parent=context)
        command = found
    return command


def everything() -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with its name in full."""
    top = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(top, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from ((f"{name} {sub}", one) for sub, one in command.commands.items())
        else:
            yield name, command


def documented(path: str) -> list[str]:
    """The lines of a document that call the command."""
    return LINE.findall((ROOT / path).read_text(encoding="utf-8"))


def examples() -> list[str]:
    """The lines of all help texts that call it."""
    commands = [main.get_command(click.Context(main), name) for name in COMMANDS]
    texts = [one.help or "" for one in [*commands, *(command for _, command in everything())] if one is not None]
    return [line for text in dict.fromkeys(texts) for line in map(str.strip, text.splitlines()) if LINE.match(line)]


@pytest.mark.parametrize("line", [*documented("README.md"), *documented("docs/cli.md"), *examples()])
def test_every_line_can_be_typed(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands, arguments and options are those that there are."""
    monkeypatch.chdir(tmp_path)
    if "…" in line or line.endswith("COMMAND --help"):
        return  # a shape, no example
    for words in parts(line):
        for word in words:
            if word.endswith(FILES) and "/" not in word:
                Path(word).write_text("{}", encoding="utf-8")
        if words[-1] in ("-h", "--help") and words[0] not in ("conformance", "bench"):
            words.pop()
        # Mentioned without its arguments, or given them by xargs.
        with contextlib.suppress(click.MissingParameter):
            walk(words)


def test_every_command_is_documented() -> None:
    """docs/cli.md shows each command once at least."""
    shown = "\n".join(documented("docs/cli.md"))
    assert [name for name, _ in everything() if f"ojs-fast {name}" not in shown] == []


def test_every_command_and_option_has_help() -> None:
    """No silent parameter."""
    for name, command in everything():
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (name, parameter.name)


def test_serve_loads_nothing_of_the_other_commands() -> None:
    """The memory and the start of the server are its own."""
    script = """
import sys
from ojs_fast.cli.main import main
assert main.get_command(None, "serve").name == "serve"
import ojs_fast.serve
print(*sorted(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "httpx" not in loaded
    assert [name for name in loaded if name.startswith("ojs_fast.cli.")] == ["ojs_fast.cli.main", "ojs_fast.cli.server"]
