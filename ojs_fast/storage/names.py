"""Every stream, bucket, subject and key that ojs-fast uses in NATS, and how outside names become tokens.

The names are fixed (docs/design.md): other tools of the OJS ecosystem look for them.
"""

import string
from functools import lru_cache

WORK_STREAM = "OJS"
EVENT_STREAM = "OJS_EVENTS"
STATS_STREAM = "OJS_STATS"
# There while a restore has not finished; no server starts then.
RESTORE_STREAM = "OJS_RESTORE"

# Plain NATS: nodes tell one another which limit key they changed.
LIMITS_SUBJECT = "ojs.limits"

# Plain NATS: JetStream tells that the work stream or one of its consumers has another leader.
LEADER_ADVISORIES = (
    f"$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.{WORK_STREAM}",
    f"$JS.EVENT.ADVISORY.CONSUMER.LEADER_ELECTED.{WORK_STREAM}.*",
)

WORK_SUBJECTS = ["ojs.queue.>"]
EVENT_SUBJECTS = ["ojs.events.>"]
STATS_SUBJECTS = ["ojs-stats.>"]

JOBS = "ojs-jobs"
UNIQUE = "ojs-unique"
CRON = "ojs-cron"
WORKERS = "ojs-workers"
WORKFLOWS = "ojs-workflows"
QUEUES = "ojs-queues"
SCHEDULED = "ojs-scheduled"
RETRY = "ojs-retry"
EXPIRY = "ojs-expiry"
DEAD = "ojs-dead"
ACTIVE = "ojs-active"
NODES = "ojs-nodes"
LIMITS = "ojs-limits"
WEBHOOKS = "ojs-webhooks"
DELIVERIES = "ojs-deliveries"
TALLIES = "ojs-stats"
SCHEMAS = "ojs-schemas"

BUCKETS = (
    JOBS, UNIQUE, CRON, WORKERS, WORKFLOWS, QUEUES, SCHEDULED, RETRY, EXPIRY, DEAD, ACTIVE, NODES, LIMITS, TALLIES,
    SCHEMAS,
    WEBHOOKS, DELIVERIES,
)  # fmt: skip

# Streams whose batches may be staged in memory: of those in other streams nobody mends what a power cut leaves.
STAGED_IN_MEMORY = (WORK_STREAM, *(f"KV_{bucket}" for bucket in BUCKETS if bucket != TALLIES))

# Consumers: of the events, one for each subscription; of `ojs-deliveries`, for those that are tried again.
WEBHOOK_CONSUMERS = "webhook="
RETRIES_CONSUMER = "webhook-retries"

_PLAIN = frozenset(string.ascii_letters + string.digits + "-")


def encode_token(name: str) -> str:
    """Make one NATS subject token or KV key part of an outside name, reversibly.

    `.` becomes `_` (so that a queue name never grows); everything else NATS forbids, and `_` itself,
    becomes `=HH` per UTF-8 byte. `a.b` → `a_b`, `a_b` → `a=5Fb`: the two never meet.
    """
    if name.isalnum() and name.isascii():
        return name
    return "".join(c if c in _PLAIN else "_" if c == "." else "".join(f"={b:02X}" for b in c.encode()) for c in name)


def decode_token(token: str) -> str:
    """Undo encode_token. Raises ValueError when the token was not made by it."""
    raw = bytearray()
    at = 0
    while at < len(token):
        c = token[at]
        if c == "=":
            raw.append(int(token[at + 1 : at + 3], 16))
            at += 3
            continue
        raw += b"." if c == "_" else c.encode()
        at += 1
    return raw.decode()


def bucket_stream(bucket: str) -> str:
    """The stream behind a KV bucket."""
    return f"KV_{bucket}"


def bucket_subject(bucket: str, key: str) -> str:
    """The subject of a key of a KV bucket; `key` may end in a wildcard."""
    return f"$KV.{bucket}.{key}"


@lru_cache(maxsize=4096)
def work_subject(queue: str, priority: int) -> str:
    """The subject of a queue's work messages of one priority level."""
    if priority == 0:
        return f"ojs.queue.{encode_token(queue)}.jobs"
    return f"ojs.queue.{encode_token(queue)}.pri.{priority}"


def parse_work_subject(subject: str) -> tuple[str, int]:
    """`(queue, priority)` of a work subject. Raises ValueError for a foreign one."""
    tokens = subject.split(".")
    if tokens[:2] == ["ojs", "queue"] and len(tokens) == 4 and tokens[3] == "jobs":
        return decode_token(tokens[2]), 0
    if tokens[:2] == ["ojs", "queue"] and len(tokens) == 5 and tokens[3] == "pri":
        return decode_token(tokens[2]), int(tokens[4])
    raise ValueError(f"not a work subject: {subject}")


@lru_cache(maxsize=4096)
def consumer_name(queue: str, priority: int) -> str:
    """The durable pull consumer of one priority level of a queue."""
    return encode_token(queue) if priority == 0 else f"{encode_token(queue)}=L{priority}"


def attempt_key(job_id: str, attempt: int) -> str:
    """Key of what belongs to one attempt of a job: a late delete of an old one never hits a newer one."""
    return f"{job_id}.{attempt}"


def scheduled_key(queue: str, job_id: str, again: int) -> str:
    """Key of a job in `ojs-scheduled`: by queue, so that one queue's can be counted, and of one scheduling."""
    return f"{encode_token(queue)}.{job_id}.{again}" if again else f"{encode_token(queue)}.{job_id}"


def expiry_key(queue: str, job_id: str) -> str:
    """Key of a job in `ojs-expiry`, built like the other indexes'."""
    return f"{encode_token(queue)}.{job_id}"


def retry_key(queue: str, job_id: str, attempt: int) -> str:
    """Key of a job in `ojs-retry`: by queue, and of one attempt."""
    return f"{encode_token(queue)}.{attempt_key(job_id, attempt)}"


def indexed_job(key: str) -> str:
    """The job id in a key of `ojs-scheduled`, `ojs-retry` or `ojs-expiry`."""
    first, _, rest = key.partition(".")
    return rest.partition(".")[0] or first


def counting_consumer(queue: str) -> str:
    """The consumer that counts a queue's entries in an index; nobody ever pulls from it."""
    return f"count={encode_token(queue)}"


def tally_key(queue: str, owner: str) -> str:
    """Key in `ojs-stats` of what one owner (a node, or `base`) counted for a queue."""
    return f"q.{encode_token(queue)}.{owner}"


def tally_keys() -> str:
    """Every `tally_key`, as a wildcard."""
    return "q.*.*"


def tally_owner_key(owner: str) -> str:
    """Key in `ojs-stats` of how far an owner has counted."""
    return f"n.{owner}"


def tally_list_key(owner: str, number: int | str) -> str:
    """Key in `ojs-stats` of a part of what was counted when an owner was closed."""
    return f"l.{owner}.{number}"


def webhook_consumer(subscription_id: str) -> str:
    """The consumer of `OJS_EVENTS` that holds a webhook subscription's place."""
    return f"{WEBHOOK_CONSUMERS}{subscription_id}"


#: Plain NATS subject on which every node hears about jobs that one adopted from a dead one, and nobody knows which.
ALL_NODES = "ojs.nodes"


def node_subject(node_id: str) -> str:
    """Plain NATS subject on which nodes tell one another about jobs that a node holds."""
    return f"ojs.node.{node_id}"
