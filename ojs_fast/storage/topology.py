"""Create or adopt every stream and bucket; incompatible ones are a start-up error and left as they are."""

from typing import Any

from ojs_fast.storage import names
from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import TopologyError, Unavailable

STREAM_NOT_FOUND = 10059
NS_PER_S = 1_000_000_000
WORKER_TTL_S = 120
MAX_CONSUMERS = 1_000_000  # one per queue and priority level; the server's default is 1000

# Settings that an adopted stream must share with ours; others (limits, placement) are the operator's.
_MUST_MATCH = ("subjects", "retention", "storage", "max_msgs_per_subject", "allow_direct")


def _stream(name: str, subjects: list[str], replicas: int, **settings: Any) -> dict[str, Any]:
    return {
        "name": name,
        "subjects": subjects,
        "storage": "file",
        "retention": "limits",
        "num_replicas": replicas,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msg_size": -1,
        "max_msgs_per_subject": -1,
        "discard": "old",
        "allow_direct": True,
        **settings,
    }


MARKER = _stream(names.RESTORE_STREAM, ["ojs.restore"], 1)


def streams(replicas: int, events_max_age_s: int, events_max_bytes: int) -> list[dict[str, Any]]:
    """The configuration of every stream, in order of creation (DESIGN, storage map)."""
    wanted = [
        _stream(
            names.WORK_STREAM,
            names.WORK_SUBJECTS,
            replicas,
            retention="workqueue",
            max_consumers=MAX_CONSUMERS,
            allow_atomic=True,
        ),
        _stream(
            names.EVENT_STREAM,
            names.EVENT_SUBJECTS,
            replicas,
            max_age=events_max_age_s * NS_PER_S,
            max_bytes=events_max_bytes,
        ),
        _stream(names.STATS_STREAM, names.STATS_SUBJECTS, replicas, allow_msg_counter=True, max_msgs_per_subject=1),
    ]
    wanted.extend(
        _stream(
            names.bucket_stream(bucket),
            [names.bucket_subject(bucket, ">")],
            replicas,
            max_msgs_per_subject=1,
            discard="new",
            allow_rollup_hdrs=True,
            allow_msg_ttl=True,
            allow_atomic=True,
            max_age=WORKER_TTL_S * NS_PER_S if bucket == names.WORKERS else 0,
        )
        for bucket in names.BUCKETS
    )
    return wanted


async def ensure(connection: Connection, wanted: list[dict[str, Any]]) -> list[str]:
    """Create what is missing and adopt what fits; a subject of each stream that takes atomic batches.

    Tells the connection whether the streams have replicas. Raises TopologyError, also when a restore
    into this NATS has not finished, or Unavailable.
    """
    atomic: list[str] = []
    for config in wanted:
        there = await find(connection, config["name"])
        if there is None:
            found = await _create(connection, config)
        else:
            found = await _adopt(connection, config, there["config"])
        connection.is_replicated |= found.get("num_replicas", 1) > 1
        if config.get("allow_atomic"):
            atomic.append(config["subjects"][0])
    # Behind all: a restore that begins at this moment sees the streams, or its marker is seen here.
    if await unfinished_restore(connection):
        raise TopologyError(
            "A restore into this NATS did not finish, so most jobs are missing. "
            "Run `ojs-fast restore` with the same backup again: it starts over."
        )
    return atomic


async def unfinished_restore(connection: Connection) -> bool:
    """Whether a restore began and has not ended. Raises Unavailable."""
    return await find(connection, names.RESTORE_STREAM) is not None


async def find(connection: Connection, stream: str) -> dict[str, Any] | None:
    """What NATS tells of a stream (`config`, `state`), None when there is none. Raises Unavailable."""
    answer = await connection.api(f"STREAM.INFO.{stream}")
    error = answer.get("error")
    if error and error.get("err_code") == STREAM_NOT_FOUND:
        return None
    if error:
        raise Unavailable(f"JetStream, stream {stream}: {error.get('description')} (error {error.get('err_code')})")
    return answer


async def _adopt(connection: Connection, wanted: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    if wanted.get("allow_atomic") and not found.get("allow_atomic"):
        # Made by an earlier version. It takes nothing away from what is stored or from other clients.
        answer = await connection.api(f"STREAM.UPDATE.{wanted['name']}", {**found, "allow_atomic": True})
        found = answer.get("config", found)
    _check(wanted, found)
    return found


async def _create(connection: Connection, config: dict[str, Any]) -> dict[str, Any]:
    answer = await connection.api(f"STREAM.CREATE.{config['name']}", config)
    error = answer.get("error")
    if not error:
        return config
    # Another node may have created it in the meantime: then it is there and only has to fit.
    again = await connection.api(f"STREAM.INFO.{config['name']}")
    if "error" in again:
        raise TopologyError(
            f"NATS refuses to create the stream {config['name']}: {error.get('description')}. "
            "Check the account's JetStream limits and OJS_NATS_REPLICAS."
        )
    return await _adopt(connection, config, again["config"])


def _check(wanted: dict[str, Any], found: dict[str, Any]) -> None:
    if found.get("num_replicas", 1) < wanted["num_replicas"]:
        raise TopologyError(
            f"The stream {wanted['name']} exists with {found.get('num_replicas', 1)} replica, but OJS_NATS_REPLICAS "
            f"asks for {wanted['num_replicas']}. Raise it (nats stream edit {wanted['name']} "
            f"--replicas={wanted['num_replicas']}, the same for all streams of ojs-fast), or lower OJS_NATS_REPLICAS."
        )
    for key in (*_MUST_MATCH, "allow_msg_ttl", "allow_atomic", "allow_msg_counter"):
        if wanted.get(key, False) and found.get(key) != wanted[key]:
            raise TopologyError(
                f"The stream {wanted['name']} exists with {key}={found.get(key)!r}, but ojs-fast needs "
                f"{wanted[key]!r}. It is left untouched: rename or delete it, or use another NATS account."
            )
