"""Log lines: the fields machines rely on, and that no record is ever lost."""

from __future__ import annotations

import json
import logging
import logging.config
import pickle
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ojs_fast import logs


def record(message: str = "hello %s", *args: object, level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    """Make a record as a logger would."""
    return logging.getLogger("ojs_fast.test").makeRecord(
        "ojs_fast.test", level, __file__, 1, message, args or ("you",), None, extra=extra
    )


def as_json(one: logging.LogRecord) -> dict[str, Any]:
    """Format a record and parse it back."""
    text = logs.JsonFormatter().format(one)
    assert "\n" not in text
    parsed: dict[str, Any] = json.loads(text)
    return parsed


@pytest.mark.parametrize(
    ("level", "severity", "number"),
    [
        (logging.DEBUG, "DEBUG", 5),
        (logging.INFO, "INFO", 9),
        (logging.WARNING, "WARN", 13),
        (logging.ERROR, "ERROR", 17),
        (logging.CRITICAL, "FATAL", 21),
        (35, "WARN", 13),
        (1, "DEBUG", 5),
    ],
)
def test_severities_follow_opentelemetry(level: int, severity: str, number: int) -> None:
    """Each level has its text and number; odd levels are rounded down."""
    line = as_json(record(level=level))
    assert (line["severity"], line["severity_number"]) == (severity, number)


def test_a_json_line_has_the_agreed_fields() -> None:
    """Time is RFC 3339 in UTC with milliseconds; extras stand beside the fixed fields and cannot replace them."""
    line = as_json(record(job_id="j1", count=3, component="client"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["timestamp"])
    assert (line["message"], line["component"], line["logger"]) == ("hello you", "server", "ojs_fast.test")
    assert (line["job_id"], line["count"]) == ("j1", 3)


@pytest.mark.parametrize("value", ["\ud800", 2**80, {"a": {1, 2}}, object(), {("k",): 1}, float("nan"), b"\xff"])
def test_any_extra_can_be_logged(value: object) -> None:
    """Lone surrogates, huge integers, sets and objects end up in the line somehow; the line stays JSON."""
    assert "odd" in as_json(record(odd=value))


def test_a_cycle_can_be_logged() -> None:
    """A value that holds itself does not break logging."""
    cycle: list[object] = []
    cycle.append(cycle)
    assert as_json(record("\udfff %s", "x", cycle=cycle))["message"] == "\udfff x"


def test_an_exception_is_part_of_the_line() -> None:
    """Type, message and trace are fields of their own."""
    one = record()
    try:
        raise KeyError("lost")  # noqa: TRY301 - the trace is what is tested
    except KeyError:
        one.exc_info = sys.exc_info()
    line = as_json(one)
    assert (line["exception.type"], line["exception.message"]) == ("KeyError", "'lost'")
    assert "test_logs.py" in line["exception.stacktrace"]


def test_text_is_one_readable_line() -> None:
    """A terminal shows time, severity, message and extras, and no control character of a stranger reaches it."""
    text = logs.TextFormatter().format(
        record("red \x1b[31m %s", "you", level=logging.WARNING, port=1, bad="\x1b\ud800")
    )
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} WARN  red \\x1b\[31m you  port=1  bad='\\x1b\\ud800'", text), text


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """Give the root logger back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)  # noqa: FBT003 - the standard library takes it by position


def test_configure_writes_to_standard_error(root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """Not being a terminal, `auto` gives JSON; lines below the level are left out."""
    logs.configure("warning", "auto")
    logging.getLogger("ojs_fast.test").info("quiet")
    logging.getLogger("ojs_fast.test").warning("loud")
    out, err = capsys.readouterr()
    assert out == ""
    assert [json.loads(line)["message"] for line in err.splitlines()] == ["loud"]


def test_the_configuration_reaches_the_workers() -> None:
    """Granian hands it to spawned processes, so it must survive pickling."""
    config = logs.dict_config("info", "text")
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_line_carries_the_request_that_it_belongs_to() -> None:
    """Outside of requests there is no such field."""
    inside, outside = record(), record()
    logs.RequestFilter().filter(outside)
    token = logs.REQUEST_ID.set(b"req_1")
    logs.RequestFilter().filter(inside)
    logs.REQUEST_ID.reset(token)
    assert as_json(inside)["request_id"] == "req_1"
    assert "request_id" not in as_json(outside)
