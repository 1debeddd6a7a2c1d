"""Everything in storage that the services share, in one place."""

from dataclasses import dataclass

from ojs_fast.storage.batches import BatchWriter
from ojs_fast.storage.buckets import Outbox
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.event_log import EventLog
from ojs_fast.storage.intents import IntentLog
from ojs_fast.storage.records import Records
from ojs_fast.storage.work import WorkQueue


@dataclass(slots=True, frozen=True)
class Stores:
    """One node's access to JetStream."""

    connection: Connection
    records: Records
    batches: BatchWriter
    intents: IntentLog
    work: WorkQueue
    outbox: Outbox
    event_log: EventLog
