"""Logging of the server: JSON lines for machines, text for a terminal, both from the standard library.

Owns the format of a log line. Must not know what is logged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import logging.config
import sys
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import orjson

COMPONENT = "server"
GATHER_S = 0.1

#: the X-Request-Id of the request that goes on here, b"" outside of requests
REQUEST_ID: ContextVar[bytes] = ContextVar("request_id", default=b"")

#: Level -> severity text and number of OpenTelemetry's log data model.
_SEVERITIES = {
    logging.DEBUG: ("DEBUG", 5),
    logging.INFO: ("INFO", 9),
    logging.WARNING: ("WARN", 13),
    logging.ERROR: ("ERROR", 17),
    logging.CRITICAL: ("FATAL", 21),
}

#: What every LogRecord has; anything else came in through `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127) if code not in (9, 10)}


def _severity(levelno: int) -> tuple[str, int]:
    """Return the severity of a level, custom levels rounded down."""
    return _SEVERITIES[max((level for level in _SEVERITIES if level <= levelno), default=logging.DEBUG)]


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _json_head(created_s: float, levelno: int, logger: str, message: str) -> dict[str, Any]:
    severity, number = _severity(levelno)
    when = datetime.fromtimestamp(created_s, UTC)
    return {
        "timestamp": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "severity": severity,
        "severity_number": number,
        "message": message,
        "component": COMPONENT,
        "logger": logger,
    }


def _text_line(created_s: float, levelno: int, message: str, extras: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(created_s).astimezone()
    told = "".join(f"  {key}={value!r}" for key, value in extras.items())
    return f"{when:%H:%M:%S}.{when.microsecond // 1000:03d} {_severity(levelno)[0]:5} {message}{told}"


def _printable(text: str) -> str:
    return text.translate(_CONTROL).encode("utf-8", "backslashreplace").decode()


class JsonFormatter(logging.Formatter):
    """One JSON object a line; a record never fails to be written, whatever its extras hold."""

    def format(self, record: logging.LogRecord) -> str:
        """Render the record."""
        line = _json_head(record.created, record.levelno, record.name, record.getMessage())
        if record.exc_info and record.exc_info[0] is not None:
            line["exception.type"] = record.exc_info[0].__name__
            line["exception.message"] = str(record.exc_info[1])
            line["exception.stacktrace"] = self.formatException(record.exc_info)
        return _dump(line | {key: value for key, value in _extras(record).items() if key not in line})


def _dump(line: dict[str, Any]) -> str:
    try:
        return orjson.dumps(line, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # lone surrogates, integers over 64 bits, cycles: slower, but nothing is lost
        return json.dumps({key: value if isinstance(value, str | int) else repr(value) for key, value in line.items()})


class RequestFilter(logging.Filter):
    """Adds the request that a line was written in, or that set off what wrote it (ojs-logging section 7.3)."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through."""
        request_id = REQUEST_ID.get()
        if request_id:
            record.request_id = request_id.decode("ascii", "replace")
        return True


class TextFormatter(logging.Formatter):
    """A line for human eyes: local time, severity, message, extras; control characters are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Render the record."""
        text = _text_line(record.created, record.levelno, record.getMessage(), _extras(record))
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return _printable(text)


class Lines:
    """Lines beside the standard library's logging, for what happens thousands of times a second.

    A record of `logging`, its filters, its lock and a write of its own cost more than what the line tells of. These
    are gathered for GATHER_S and leave in one write; a killed process loses the last ones.
    """

    def __init__(self, logger: str, log_format: str) -> None:
        """`log_format` is a value of OJS_LOG_FORMAT."""
        #: whether lines are for human eyes (`text`) or for machines (`json`)
        self.is_text = _is_text(log_format)
        self._logger = logger
        self._lines: list[str] = []
        # The head of JSON lines around the milliseconds: it stays the same for a second.
        self._second = 0
        self._before_ms = self._behind_ms = ""

    def text(self, message: str, extras: dict[str, Any]) -> None:
        """Log a line with these fields within GATHER_S; called in the event loop."""
        self._add(_printable(_text_line(time.time(), logging.INFO, message, extras)))

    def json(self, members: str) -> None:
        """The same as JSON: `members` is the JSON text of its message and fields."""
        now_s = time.time()
        if not 0 <= now_s - self._second < 1:
            self._second = int(now_s)
            head = _json_head(self._second, logging.INFO, self._logger, "")
            when = head.pop("timestamp")
            del head["message"]
            self._before_ms = f'{{"timestamp":"{when[:-4]}'
            self._behind_ms = f'Z",{_dump(head)[1:-1]},'
        self._add(f"{self._before_ms}{int((now_s - self._second) * 1000):03d}{self._behind_ms}{members}}}")

    def _add(self, line: str) -> None:
        if not self._lines:
            asyncio.get_running_loop().call_later(GATHER_S, self.flush)
        self._lines.append(line)

    def flush(self) -> None:
        """Write what was gathered."""
        lines, self._lines = self._lines, []
        if lines:
            sys.stderr.write("\n".join([*lines, ""]))
            sys.stderr.flush()


def _is_text(log_format: str) -> bool:
    return log_format == "text" or (log_format == "auto" and sys.stderr.isatty())


def dict_config(level: str, log_format: str) -> dict[str, Any]:
    """Build the configuration for `logging.config.dictConfig`: everything goes to standard error.

    `level` and `log_format` are values of OJS_LOG_LEVEL and OJS_LOG_FORMAT. It is picklable, so Granian can apply it
    in each worker.
    """
    formatter = TextFormatter if _is_text(log_format) else JsonFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"server": {"()": f"{__name__}.{formatter.__name__}"}},
        "filters": {"request": {"()": f"{__name__}.{RequestFilter.__name__}"}},
        "handlers": {
            "server": {
                "class": "logging.StreamHandler",
                "formatter": "server",
                "filters": ["request"],
                "stream": "ext://sys.stderr",
            }
        },
        "root": {"level": level.upper(), "handlers": ["server"]},
        # Granian's own lines: only what went wrong; requests are logged by `api.access_log`
        "loggers": {
            "_granian": {"level": "WARNING", "handlers": [], "propagate": True},
            "granian.access": {"level": "ERROR", "handlers": [], "propagate": True},
        },
    }


def configure(level: str, log_format: str) -> None:
    """Send the log of this process to standard error."""
    logging.config.dictConfig(dict_config(level, log_format))
    logging.captureWarnings(True)  # noqa: FBT003 - the standard library takes it by position
