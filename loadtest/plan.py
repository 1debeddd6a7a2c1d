"""What is measured, against what, and what is expected: rows, groups, targets. Data; must not know how."""

from dataclasses import dataclass

CONNECTIONS = (1, 8, 64)
IN_FLIGHT = (64, 256)
BATCHES = ((100, 4), (1000, 2))  # (jobs in a request, connections)
WORKERS, MANY_WORKERS = 16, 32


@dataclass(frozen=True)
class Fetch:
    """How workers fetch and acknowledge: jobs asked for in a call, further connections for acknowledgements.

    With several `levels` each of the upper ones holds as many jobs as an even drain of all takes in the time.
    """

    key: str
    count: int
    ackers: int
    title: str
    baseline: str
    levels: int = 1
    workers: int = WORKERS


#: The echo over as many connections as the workers have, by the load generator that plays the workers.
ECHO_OF_WORKERS, ECHO_OF_MANY = "echo-workers", "echo-many-workers"

FETCHES = (
    Fetch("fetch-1", 1, 0, f"fetch 1 + ack, {WORKERS} workers", ECHO_OF_WORKERS),
    Fetch("fetch-1-levels", 1, 0, "the same with 10 priorities in use", "fetch-1", levels=10),
    Fetch("fetch-1-many", 1, 0, f"fetch 1 + ack, {MANY_WORKERS} workers", ECHO_OF_MANY, workers=MANY_WORKERS),
    Fetch("fetch-10", 10, 0, f"fetch 10 + acks, {WORKERS} workers", ECHO_OF_WORKERS),
    Fetch("fetch-10-at-once", 10, 10, f"fetch 10 + acks at once, {WORKERS} workers", "echo-64"),
)

JOB = (
    '{"type":"email.send","args":["user@example.com","welcome",{"locale":"en","n":42,"name":"Ada Lovelace",'
    '"plan":"team","trial_ends_at":"2030-01-31T00:00:00Z","links":["https://example.com/a","https://example.com/b"]}],'
    '"options":{"queue":"%s"}}'
)
#: About what the server stores for `JOB`, so that the raw ceiling moves as many bytes as the batches do.
RECORD_BYTES = 600

#: The same job with and without a policy, each time with another argument, by the bundled generator.
NUMBERED, UNIQUE = "enqueue-numbered", "enqueue-unique"

WORKFLOWS = (10, 1000, 10_000)  # members of a group
NEXT_STEP = "workflow-next"
DUE_PER_S = 1000
STORM_JOBS = 100_000
STEADY, STORM = "scheduled-steady", "scheduled-storm"

#: The pseudo row that batches are compared with: the best ceiling figure of the round.
CEILING = "ceiling"


def job(queue: str, priority: int = 0) -> bytes:
    """The body of a single enqueue; the echo answers the same one."""
    body = JOB % queue
    if priority:
        body = body.replace('"options":{', f'"options":{{"priority":{priority},')
    return body.encode()


def numbered(queue: str, *, unique: bool) -> bytes:
    """The body of an enqueue that is never the same twice."""
    body = (JOB % queue).replace('"locale":"en"', '"locale":"NUMBER000000"')
    if unique:
        body = body.replace('"options":{', '"options":{"unique":{"keys":["type","args"]},')
    return body.encode()


def batch(queue: str, count: int, priority: int = 0) -> bytes:
    """The body of a batch enqueue."""
    return b'{"jobs":[%s]}' % b",".join([job(queue, priority)] * count)


@dataclass(frozen=True)
class Row:
    """One line of the table. `baseline` is the row (or `CEILING`) whose rate in the same round divides its own."""

    key: str
    group: str
    title: str
    unit: str
    baseline: str = ""
    #: a part of the row above (one of its calls): latencies only
    is_part: bool = False


@dataclass(frozen=True)
class Target:
    """One figure that is asked for: `measure` is `ratio`, `rate`, `p50_ms` or `p99_ms`; `at_least` or else at most."""

    row: str
    measure: str
    bound: float
    text: str
    at_least: bool = True

    def is_met(self, figure: float) -> bool:
        """Whether the figure is within the bound; nan is not."""
        return figure >= self.bound if self.at_least else figure <= self.bound


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _rows() -> list[Row]:
    rows = [Row(f"echo-{c}", "echo", f"echo, {_plural(c, 'connection')}", "req/s") for c in CONNECTIONS]
    rows += [
        Row(key, "echo", f"echo, {workers} connections, bundled load", "req/s")
        for key, workers in ((ECHO_OF_WORKERS, WORKERS), (ECHO_OF_MANY, MANY_WORKERS))
    ]
    rows += [
        Row(f"enqueue-{c}", "enqueue", f"enqueue, {_plural(c, 'connection')}", "req/s", f"echo-{c}")
        for c in CONNECTIONS
    ]
    rows += [
        Row(NUMBERED, "enqueue", "enqueue, 64 connections, bundled load", "req/s"),
        Row(UNIQUE, "enqueue", "  the same, unique by its arguments", "req/s", NUMBERED),
    ]
    for fetch in FETCHES:
        rows += [
            Row(fetch.key, "fetch", fetch.title, "jobs/s", fetch.baseline),
            Row(f"{fetch.key}-call", "fetch", "  its fetch calls", "", is_part=True),
            Row(f"{fetch.key}-ack", "fetch", "  its ack calls", "", is_part=True),
        ]
    for client, name in (("own", "own connection"), ("nats-py", "nats-py")):
        rows += [
            Row(f"ceiling-{client}-{n}", "ceiling", f"raw JetStream, {name}, {n} in flight", "jobs/s")
            for n in IN_FLIGHT
        ]
    rows += [
        Row(f"batch-{count}", "batch", f"batch of {count}, {_plural(c, 'connection')}", "jobs/s", CEILING)
        for count, c in BATCHES
    ]
    rows += [
        Row(STEADY, "scheduled", f"scheduled, {DUE_PER_S:,} due per s: lateness", "jobs/s"),
        Row(STORM, "scheduled", f"scheduled, {STORM_JOBS:,} due at once: enqueue", "jobs/s"),
    ]
    rows += [
        Row(
            f"workflow-{size}",
            "workflow",
            f"workflow of {size:,}: fetch + ack of a member",
            "jobs/s",
            "" if size == WORKFLOWS[0] else f"workflow-{WORKFLOWS[0]}",
        )
        for size in WORKFLOWS
    ]
    rows.append(Row(NEXT_STEP, "workflow", "chain: from ack to next step fetched", "steps/s"))
    return rows


ROWS = _rows()

#: The order of a round; every second round runs backwards, so that a drift of the machine favours nobody.
#: Each subject stands beside its baseline.
GROUPS = ("enqueue", "echo", "fetch", "ceiling", "batch", "scheduled", "workflow")

#: What a group's ratios need.
BASELINE_GROUPS = {"enqueue": "echo", "fetch": "echo", "batch": "ceiling"}

TARGETS = (
    Target("enqueue-64", "ratio", 0.6, "single enqueue at 64 connections, of the echo"),
    Target("batch-100", "ratio", 0.8, "batches of 100, of the raw JetStream ceiling"),
    Target("fetch-1-many", "ratio", 0.25, "fetch 1 + ack with 32 workers, jobs per echo request"),
    Target("fetch-10", "ratio", 0.5, "fetch 10 + acks, jobs per echo request"),
    Target("fetch-1-levels", "ratio", 0.8, "fetch 1 + ack with 10 priorities in use, of one"),
    Target(UNIQUE, "ratio", 0.6, "unique enqueue, of a plain one"),
    Target("enqueue-8", "p99_ms", 10.0, "p99 of enqueue at 8 connections, ms", at_least=False),
    Target(STEADY, "p50_ms", 10.0, "scheduled jobs late, 1,000 due per s, p50, ms", at_least=False),
    Target(STEADY, "p99_ms", 50.0, "scheduled jobs late, 1,000 due per s, p99, ms", at_least=False),
    Target(STORM, "rate", 10_000.0, "100,000 scheduled jobs due at once, promoted per s"),
    Target("workflow-10000", "ratio", 0.8, "a member of 10,000 completed, of one of 10"),
    Target(NEXT_STEP, "p50_ms", 20.0, "next step fetchable after the ack, p50, ms", at_least=False),
    Target(STORM, "p99_ms", 100.0, "p99 of enqueue meanwhile, ms", at_least=False),
)


def with_baselines(groups: list[str]) -> list[str]:
    """The groups that were asked for and those that their ratios need, in the order of a round."""
    wanted = set(groups) | {BASELINE_GROUPS[group] for group in groups if group in BASELINE_GROUPS}
    return [group for group in GROUPS if group in wanted]
