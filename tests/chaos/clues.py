"""What lies in NATS about a broken promise: where to start to look for its cause."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ojs_fast import _core
from ojs_fast.core.tallies import parse_marks
from ojs_fast.storage import consumers, names
from ojs_fast.storage.buckets import Bucket
from ojs_fast.storage.connection import Connection

SHOWN = 5


async def of_stuck(connection: Connection, jobs: dict[str, tuple[_core.Record, int]]) -> list[str]:
    """About jobs that do not end: `{job id: (record, revision)}`."""
    shown = dict(sorted(jobs.items())[:SHOWN])
    clues = [
        f"{id_} {job.state} at {revision} of {job.node_id}, queue {job.queue}, attempt {job.attempt}"
        for id_, (job, revision) in shown.items()
    ]
    for stream in (names.bucket_stream(names.JOBS), names.WORK_STREAM):
        info = await connection.stream_info(stream)
        clues.append(f"{stream}: last {info['state']['last_seq']}, {info['cluster']}")
    for id_ in shown:
        # What is above may come from a replica that lags behind.
        told = await connection.stored(
            names.bucket_stream(names.JOBS), last_by_subj=names.bucket_subject(names.JOBS, id_)
        )
        record = _core.Record.parse(base64.b64decode(told["data"]))
        clues.append(f"the leader says: {id_} {record.state} at {told['seq']} of {record.node_id}, {told['time']}")
    messages: dict[str, list[str]] = {id_: [] for id_ in shown}
    after, total = 0, 0
    query: dict[str, Any] = {"next_by_subj": "ojs.queue.>", "batch": 500}
    while page := await connection.get_batch(names.WORK_STREAM, {**query, "seq": after + 1}):
        after, total = page[-1].sequence, total + len(page)
        for message in page:
            revision, stored = _core.split_work_message(message.data)
            id_ = _core.Record.parse(stored).id
            if id_ in messages:
                messages[id_].append(f"{message.sequence} ({message.stored_subject}) of {revision}")
    clues += [f"messages of {id_}: {', '.join(found) or 'none'}" for id_, found in messages.items()]
    clues.append(f"{total} messages in all")
    for info in await consumers.listed(connection, names.WORK_STREAM):
        told = {key: info.get(key) for key in ("num_pending", "num_ack_pending", "num_redelivered", "num_waiting")}
        clues.append(f"consumer {info['name']}: {info['delivered']} {info['ack_floor']} {told}")
    nodes = await Bucket(connection, names.NODES).page(0, 1 << 20)
    return clues + [f"{key}: {value}" for key, value, _ in nodes]


async def of_counts(connection: Connection, jobs: Iterable[tuple[_core.Record, int]]) -> list[str]:
    """About statistics that do not add up: what the records say of who counted them, and what was counted."""
    bucket = Bucket(connection, names.TALLIES)
    owners = {key[2:]: value for key, value, _ in await bucket.page(0, 1 << 30, "n.*")}
    clues = [f"owner {owner}: {value}" for owner, value in owners.items()]
    for key, value, _ in await bucket.page(0, 1 << 30, names.tally_keys()):
        clues.append(f"{key}: { {state: value.get(state) for state in _core.TERMINAL_STATES} }")
    marked: Counter[tuple[str, str, str]] = Counter()
    for record, revision in jobs:
        for owner, number, state in parse_marks(record):
            marked[record.queue, owner, state] += 1
            entry = owners.get(owner)
            if entry is None or number > entry.get("through", 0):
                clues.append(f"{record.id} at {revision} of {record.node_id}: {owner} {number} {state}")
        if record.state in _core.TERMINAL_STATES and not parse_marks(record):
            clues.append(f"{record.id} at {revision} of {record.node_id}: {record.state}, and no mark")
    return clues + [f"records say {key}: {count}" for key, count in sorted(marked.items())]
