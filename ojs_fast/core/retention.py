"""How long jobs that have ended are kept."""

from ojs_fast import _core
from ojs_fast.config import Settings
from ojs_fast.core.queues import Queues


class Retention:
    """How long finished jobs stay in the store, in seconds by state (0 = for ever)."""

    def __init__(self, settings: Settings, queues: Queues) -> None:
        self._settings = settings
        self._rules = queues.rules

    def ttl_s(self, record: _core.Record) -> int:
        """The TTL to write a record with; a workflow's job stays until its workflow has ended."""
        if record.extra is not None and "wf" in record.extra:
            return 0
        return self.own_ttl_s(record)

    def own_ttl_s(self, record: _core.Record) -> int:
        """The TTL that the record calls for: its own `result_ttl`, else its queue's or its state's setting.

        A dead letter stays for as long as dead letters do, so that it can be retried.
        """
        if record.extra is not None and "ttl" in record.extra and not record.dead_letter:
            ttl_s: int = record.extra["ttl"]
            if ttl_s and _core.is_terminal(record.state):
                return max(0, ttl_s)
        if self._rules and record.state in _core.TERMINAL_STATES and not record.dead_letter:
            rules = self._rules.get(record.queue)
            if rules is not None and record.state in rules.retention_s:
                return rules.retention_s[record.state]
        if record.state == "completed":
            return self._settings.retention_completed_s
        if record.state == "cancelled":
            return self._settings.retention_cancelled_s
        if record.state == "discarded":
            return (
                self._settings.retention_dead_letter_s if record.dead_letter else self._settings.retention_discarded_s
            )
        return 0
