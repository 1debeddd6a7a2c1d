"""Records as they lie in NATS, where others may write as well."""

from ojs_fast import _core


def own_record(stored: bytes) -> _core.Record | None:
    """The record, or None when there is none or it is not one of ours; reconcile reports those."""
    try:
        return _core.Record.parse(stored)
    except ValueError:
        return None
