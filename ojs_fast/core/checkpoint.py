"""The checkpoint in a job's record: what a worker keeps of a job that it has half done (ojs-durable-execution).

It is a member of what clients see, so it is as durable as the job, reaches whoever fetches it next, and leaves with it.
"""

from typing import NamedTuple

import orjson

from ojs_fast import _core

FEATURE = "checkpoint"  # Record.extra: [sequence, when it was saved]; the member of the same name holds the rest
DEPTH = 1000


class Checkpoint(NamedTuple):
    """The latest checkpoint; `members` are those that the worker sent, as bytes: `,"state":…`."""

    job_id: str
    sequence: int
    saved_ms: int
    members: bytes

    def head(self) -> bytes:
        """What the server knows of it, as the inside of an object."""
        time = _core.format_rfc3339_ms(self.saved_ms).encode()
        return b'"job_id":"%s","sequence":%d,"created_at":"%s"' % (self.job_id.encode(), self.sequence, time)


def checkpoint_of(record: _core.Record) -> Checkpoint | None:
    """The checkpoint in a record."""
    if record.extra is None or FEATURE not in record.extra:
        return None
    sequence, saved_ms = record.extra[FEATURE]
    whole = b"{" + record.body[1:] + b"}"
    start, end = _core.scan_json_object(whole, DEPTH)[FEATURE]
    head = Checkpoint(record.id, sequence, saved_ms, b"").head()
    return Checkpoint(record.id, sequence, saved_ms, whole[start + 1 + len(head) : end - 1])


def put_checkpoint(record: _core.Record, saved_ms: int, members: bytes) -> Checkpoint:
    """Put one in the place of the one before; `members` as in `Checkpoint`."""
    sequence = record.extra[FEATURE][0] if record.extra and FEATURE in record.extra else 0
    saved = Checkpoint(record.id, sequence + 1, saved_ms, members)
    _remove_member(record)  # also one that the producer sent
    record.extra = {**(record.extra or {}), FEATURE: [saved.sequence, saved_ms]}
    record.body += b',"%s":{%s%s}' % (FEATURE.encode(), saved.head(), members)
    return saved


def drop_checkpoint(record: _core.Record) -> None:
    """Take the checkpoint out of a record: nobody resumes the job any more."""
    if record.extra is None or FEATURE not in record.extra:
        return
    record.extra = {name: value for name, value in record.extra.items() if name != FEATURE} or None
    _remove_member(record)


def _remove_member(record: _core.Record) -> None:
    whole = b"{" + record.body[1:] + b"}"
    members = _core.scan_json_object(whole, DEPTH)
    if FEATURE in members:
        record.body = b"".join(
            b",%s:%s" % (orjson.dumps(name), whole[start:end])
            for name, (start, end) in members.items()
            if name != FEATURE
        )
