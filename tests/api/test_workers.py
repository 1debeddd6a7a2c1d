"""Workers: fetch, ack, nack, retries, reservations, heartbeats, directives, ownership."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest

from tests.api.checks import job_untouched, refusal, worker_ids
from tests.api.test_jobs import FAST, TIME, fetch_one
from tests.support.api import Api, job_request, unique_queue
from tests.support.processes import poll
from tests.support.server import Server

Body = dict[str, Any]


def ms(text: str) -> float:
    """Return an RFC 3339 time as milliseconds."""
    return datetime.fromisoformat(text).timestamp() * 1000


def held(api: Api, *, worker: str = "", **fields: Any) -> tuple[str, str]:
    """Enqueue a job and fetch it: `(queue, job id)`."""
    queue = unique_queue()
    job_id = api.enqueue(queue, **fields)["id"]
    asked: Body = {"worker_id": worker} if worker else {}
    [found] = api.fetch(queue, **asked)
    assert found["id"] == job_id
    return queue, job_id


def new_worker() -> str:
    """Return a worker id that nobody else uses."""
    return f"w-{uuid.uuid4()}"


# -- fetch -----------------------------------------------------------------------------------------


def test_a_fetched_job_is_active(api: Api) -> None:
    """State, start, attempt and worker are told by the fetch and by a read alike."""
    queue = unique_queue()
    made = api.enqueue(queue, args=[{"k": None}], meta={"m": 1}, tags=["t"], priority=3)
    [found] = api.fetch(queue, worker_id="w-7")
    assert (found["state"], found["attempt"], found["worker_id"]) == ("active", 1, "w-7")
    assert TIME.fullmatch(found["started_at"])
    for name in ("id", "args", "meta", "tags", "priority", "created_at", "enqueued_at", "type", "max_attempts"):
        assert found[name] == made[name]
    assert api.get(made["id"]) == found


def test_an_empty_fetch_is_an_empty_list_at_once(api: Api) -> None:
    """200 with `jobs: []`, without waiting for jobs."""
    started = time.perf_counter()
    for queue in (unique_queue(), unique_queue()):
        reply = api.request("POST", "/workers/fetch", {"queues": [queue]})
        assert (reply.status_code, reply.json()) == (200, {"jobs": []})
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize(("waiting", "count"), [(3, 10), (10, 3), (5, 5), (250, 1000)])
def test_a_fetch_gives_up_to_count_jobs(api: Api, waiting: int, count: int) -> None:
    """No more than asked for, no fewer than there are."""
    queue = unique_queue()
    api.enqueue_batch([job_request(queue) for _ in range(waiting)])
    assert len(api.fetch(queue, count=count)) == min(waiting, count)


def test_a_job_goes_to_one_of_many_workers(server: Server, api: Api) -> None:
    """Sixteen workers at once: every job is fetched exactly once."""
    queue = unique_queue()
    wanted = {stored["id"] for stored in api.enqueue_batch([job_request(queue) for _ in range(400)])}
    barrier = threading.Barrier(16)

    def work(number: int) -> list[str]:
        with Api(server.url) as mine:
            barrier.wait()
            got: list[str] = []
            while page := mine.fetch(queue, count=number % 4 + 1, worker_id=f"w{number}"):
                got += [found["id"] for found in page]
            return got

    with ThreadPoolExecutor(16) as pool:
        got = [job_id for part in pool.map(work, range(16)) for job_id in part]
    assert len(got) == len(set(got))
    got += [found["id"] for found in api.fetch(queue, count=400)]
    assert sorted(got) == sorted(wanted)


# -- ack -------------------------------------------------------------------------------------------


def test_an_ack_completes_the_job(api: Api) -> None:
    """The flat answer tells both ids, state and time; the job too."""
    _, job_id = held(api)
    body = api.ack(job_id, result={"sent": 3})
    assert body["acknowledged"] is True
    assert (body["id"], body["job_id"], body["state"]) == (job_id, job_id, "completed")
    assert TIME.fullmatch(body["completed_at"])
    assert body["job"]["state"] == "completed"
    stored = api.get(job_id)
    assert stored == body["job"]
    assert (stored["result"], stored["completed_at"], stored["attempt"]) == ({"sent": 3}, body["completed_at"], 1)
    assert "error" not in stored


def test_a_second_ack_is_a_conflict(api: Api) -> None:
    """The first result stays."""
    _, job_id = held(api)
    api.ack(job_id, result=1)
    with job_untouched(api, job_id):
        error = refusal(api.request("POST", "/workers/ack", {"job_id": job_id, "result": 2}), 409, code="conflict")
    assert error["details"] == {"job_id": job_id, "current_state": "completed", "expected_state": "active"}


def test_acks_that_race_have_one_winner(server: Server, api: Api) -> None:
    """Of many acks and nacks at once exactly one settles the job."""
    for _ in range(5):
        _, job_id = held(api)
        barrier = threading.Barrier(8)

        def settle(number: int, job: str = job_id, start: threading.Barrier = barrier) -> int:
            with Api(server.url) as mine:
                start.wait()
                path, more = ("ack", {}) if number % 2 else ("nack", {"error": {"message": "m"}})
                return mine.request("POST", f"/workers/{path}", {"job_id": job, **more}).status_code

        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(settle, range(8))) == [200] + [409] * 7
        assert api.get(job_id)["state"] in ("completed", "retryable")


def test_an_ack_after_failures_forgets_the_error_but_not_the_history(api: Api) -> None:
    """`error` goes with success, `errors` tells what happened before."""
    queue, job_id = held(api, retry=FAST)
    api.nack(job_id, "once")
    fetch_one(api, queue)
    api.ack(job_id)
    stored = api.get(job_id)
    assert "error" not in stored
    assert [one["message"] for one in stored["errors"]] == ["once"]
    assert stored["attempt"] == 2


@pytest.mark.parametrize("body", [None, {}, {"result": {"a": 1}}, {"job_id": "other"}])
def test_ack_by_path(api: Api, body: Body | None) -> None:
    """POST /jobs/{id}/ack takes the id from the path, also without a body."""
    _, job_id = held(api)
    told = api.call("POST", f"/jobs/{job_id}/ack", body)
    assert (told["job_id"], told["job"]["state"]) == (job_id, "completed")


# -- nack and retry --------------------------------------------------------------------------------


def test_a_nack_schedules_the_next_attempt(api: Api) -> None:
    """The flat answer, the job and the fetched job tell of the retry."""
    queue, job_id = held(api, retry={"initial_interval": "PT0.2S", "jitter": False})
    body = api.nack(job_id, "boom", type="SmtpError", details={"n": 1.0})
    assert (body["id"], body["job_id"], body["state"]) == (job_id, job_id, "retryable")
    assert (body["attempt"], body["max_attempts"], body["retry_delay_ms"]) == (1, 3, 200)
    stored = api.get(job_id)
    assert body["job"] == stored
    assert stored["next_attempt_at"] == body["next_attempt_at"]
    error = stored["error"]
    assert stored["errors"] == [error]
    assert (error["code"], error["type"], error["message"], error["attempt"]) == (
        "handler_error",
        "SmtpError",
        "boom",
        1,
    )
    assert error["details"] == {"n": 1.0}
    assert TIME.fullmatch(error["occurred_at"])
    assert api.fetch(queue) == []
    due = ms(body["next_attempt_at"])
    found = fetch_one(api, queue)
    assert -5 < ms(found["started_at"]) - due < 200
    assert (found["attempt"], found["retry_delay_ms"]) == (2, 200)
    assert "next_attempt_at" not in found
    assert found["errors"] == [error]


BACKOFF = [
    ("none", 2.0, [100, 100, 100, 100]),
    ("constant", 2.0, [100, 100, 100, 100]),
    ("linear", 2.0, [100, 200, 300, 400]),
    ("exponential", 2.0, [100, 200, 400, 450]),
    ("exponential", 1.0, [100, 100, 100, 100]),
    ("exponential", 1.5, [100, 150, 225, 337]),
    ("polynomial", 2.0, [100, 400, 450, 450]),
    ("polynomial", 1.0, [100, 200, 300, 400]),
]


@pytest.mark.parametrize("key", ["backoff_strategy", "backoff_type"])
@pytest.mark.parametrize(("strategy", "coefficient", "delays"), BACKOFF)
def test_the_backoff_of_every_strategy(
    api: Api, strategy: str, coefficient: float, delays: list[int], key: str
) -> None:
    """Four failures in a row wait as the strategy says, capped by max_interval; a cancel ends the rest."""
    policy = {
        "max_attempts": 10,
        "initial_interval": "PT0.1S",
        "max_interval": "PT0.45S",
        "backoff_coefficient": coefficient,
        "jitter": False,
        key: strategy,
    }
    queue, job_id = held(api, retry=policy)
    for number, delay in enumerate(delays, 1):
        if number > 1:
            fetch_one(api, queue)
        body = api.nack(job_id)
        assert body["attempt"] == number
        assert abs(body["retry_delay_ms"] - delay) <= 1


def test_exponential_is_the_default(api: Api) -> None:
    """Defaults: 3 attempts, 1 s, factor 2, 5 min, jitter from half to one and a half."""
    delays = {api.nack(held(api)[1])["retry_delay_ms"] for _ in range(30)}
    assert min(delays) >= 500
    assert max(delays) < 1500
    assert len(delays) > 10


def test_intervals_may_be_given_in_milliseconds(api: Api) -> None:
    """The binding's examples use `initial_interval_ms` and `max_interval_ms`."""
    _, job_id = held(api, retry={"initial_interval_ms": 70_000, "max_interval_ms": 80_000, "jitter": False})
    assert api.nack(job_id)["retry_delay_ms"] == 70_000


def test_jitter_never_passes_the_maximum(api: Api) -> None:
    """The cap holds after the jitter."""
    policy = {"initial_interval": "PT10S", "max_interval": "PT10S", "jitter": True}
    for _ in range(20):
        assert 5000 <= api.nack(held(api, retry=policy)[1])["retry_delay_ms"] <= 10_000


@pytest.mark.parametrize("attempts", [0, 1])
def test_one_attempt_means_no_retry(api: Api, attempts: int) -> None:
    """`max_attempts` 0 behaves as 1: the first failure is the last."""
    queue, job_id = held(api, retry={"max_attempts": attempts})
    body = api.nack(job_id)
    assert (body["state"], body["attempt"], body["max_attempts"]) == ("discarded", 1, 1)
    assert body["discarded_at"] == body["completed_at"]
    stored = api.get(job_id)
    assert (stored["state"], stored["discarded_at"], stored["completed_at"]) == (
        "discarded",
        body["discarded_at"],
        body["discarded_at"],
    )
    assert api.fetch(queue) == []


def test_the_last_attempt_discards(api: Api) -> None:
    """Three runs, three errors in order, then discarded with the last one as `error`."""
    queue, job_id = held(api, retry={**FAST, "max_attempts": 3})
    for number in (1, 2, 3):
        if number > 1:
            assert fetch_one(api, queue)["attempt"] == number
        body = api.nack(job_id, f"failure {number}")
        assert body["state"] == ("discarded" if number == 3 else "retryable")
    stored = api.get(job_id)
    assert [(one["attempt"], one["message"]) for one in stored["errors"]] == [
        (number, f"failure {number}") for number in (1, 2, 3)
    ]
    assert stored["error"] == stored["errors"][-1]
    assert "next_attempt_at" not in stored


@pytest.mark.slow
def test_the_history_of_errors_is_bounded(api: Api) -> None:
    """At least the last ten are kept, in order; the oldest go."""
    policy = {**FAST, "max_attempts": 100, "initial_interval": "PT0.005S"}
    queue, job_id = held(api, retry=policy)
    for number in range(1, 41):
        if number > 1:
            fetch_one(api, queue)
        api.nack(job_id, f"failure {number}")
    kept = [one["attempt"] for one in api.get(job_id)["errors"]]
    assert 10 <= len(kept) <= 50
    assert kept == list(range(41 - len(kept), 41))


CODES = [
    ("DISCARD", {}, "discarded", False),
    ("FAIL", {}, "discarded", False),
    ("DEAD_LETTER", {}, "discarded", True),
    ("RETRY", {}, "retryable", False),
    ("RETRY", {"retryable": False}, "retryable", False),
    ("DISCARD", {"retryable": True}, "discarded", False),
    ("anything", {"retryable": True}, "retryable", False),
    ("anything", {"retryable": False}, "discarded", False),
    ("discard", {}, "retryable", False),
]


@pytest.mark.parametrize(("code", "more", "state", "is_dead"), CODES)
def test_handler_codes_decide(api: Api, code: str, more: Body, state: str, is_dead: bool) -> None:
    """DISCARD, FAIL, DEAD_LETTER and RETRY in `error.code` win over the flag and the policy."""
    queue, job_id = held(api)
    assert api.nack(job_id, code=code, **more)["state"] == state
    time.sleep(0.05)
    assert [one["id"] for one in api.dead_letters(queue)] == ([job_id] if is_dead else [])


def test_retry_by_code_still_ends_with_the_attempts(api: Api) -> None:
    """No code gives a job more runs than its policy."""
    _, job_id = held(api, retry={"max_attempts": 1})
    assert api.nack(job_id, code="RETRY")["state"] == "discarded"


PATTERNS = [
    (["Auth.Expired"], {"type": "Auth.Expired"}, True),
    (["Auth.Expired"], {"type": "Auth.ExpiredX"}, False),
    (["Auth.*"], {"type": "Auth.Expired"}, True),
    (["Auth.*"], {"type": "Auth.Token.Expired"}, True),
    (["Auth.*"], {"type": "Authentication"}, False),
    (["Auth.*"], {"type": "Auth"}, False),
    (["Auth.*"], {"type": "auth.Expired"}, False),
    (["*"], {"type": "Anything"}, False),
    (["X"], {"details": {"error_class": "X"}}, True),
    (["my_code"], {"code": "my_code"}, True),
    (["a", "b", "C.*"], {"code": "C.d"}, True),
    ([], {"type": "X"}, False),
    (["X"], {"details": {"error_class": ["X"]}}, False),
]


@pytest.mark.parametrize(("patterns", "error", "is_final"), PATTERNS)
def test_non_retryable_errors(api: Api, patterns: list[str], error: Body, is_final: bool) -> None:
    """Type, error class and code are matched exactly, or by `X.*` below `X.`; case counts."""
    _, job_id = held(api, retry={"non_retryable_errors": patterns})
    assert api.nack(job_id, **error)["state"] == ("discarded" if is_final else "retryable")


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        ({"message": "m"}, "handler_error"),
        ({"message": "m", "code": "c"}, "c"),
        ({"message": "m", "code": "c", "details": {"error_class": "K"}}, "K"),
        ({"message": "m", "code": "c", "type": "T", "details": {"error_class": "K"}}, "T"),
    ],
)
def test_the_type_of_an_error_is_derived(api: Api, error: Body, wanted: str) -> None:
    """`error.type`, else `details.error_class`, else the code."""
    _, job_id = held(api)
    api.call("POST", "/workers/nack", {"job_id": job_id, "error": error})
    stored = api.get(job_id)["error"]
    assert (stored["type"], stored["message"]) == (wanted, "m")


def test_unknown_members_of_an_error_are_kept(api: Api) -> None:
    """A stack trace or whatever a worker adds comes back; what the server manages cannot be forged."""
    _, job_id = held(api)
    api.nack(job_id, trace=["a", {"b": 1.0}], attempt=99, occurred_at="x")
    stored = api.get(job_id)["error"]
    assert stored["trace"] == ["a", {"b": 1.0}]
    assert stored["attempt"] == 1
    assert TIME.fullmatch(stored["occurred_at"])


@pytest.mark.parametrize("more", [{}, {"error": {"message": "m", "retryable": False}}, {"error": {"message": "m"}}])
def test_a_requeue_gives_the_job_back_at_once(api: Api, more: Body) -> None:
    """Available without delay, even if the error is not retryable; the run counts, no error is recorded."""
    queue, job_id = held(api, worker="w1", retry={"max_attempts": 2})
    body = api.call("POST", "/workers/nack", {"job_id": job_id, "requeue": True, **more})
    assert body["state"] == "available"
    stored = api.get(job_id)
    assert stored["state"] == "available"
    assert "worker_id" not in stored
    [found] = api.fetch(queue, worker_id="w2")
    assert (found["id"], found["attempt"]) == (job_id, 2)


def test_nack_by_path_takes_a_bare_message(api: Api) -> None:
    """The JavaScript SDK's serverless adapter sends the error as a string."""
    _, job_id = held(api)
    assert api.call("POST", f"/jobs/{job_id}/nack", {"error": "went wrong"})["state"] == "retryable"
    assert api.get(job_id)["error"]["message"] == "went wrong"


# -- ownership -------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["ack", "nack"])
def test_only_the_holder_settles(api: Api, verb: str) -> None:
    """Another worker gets 409 conflict and the job stays with its holder, who can go on."""
    _, job_id = held(api, worker="holder")
    body: Body = {"job_id": job_id, "error": {"message": "m"}} if verb == "nack" else {"job_id": job_id}
    with job_untouched(api, job_id):
        error = refusal(api.request("POST", f"/workers/{verb}", {**body, "worker_id": "thief"}), 409, code="conflict")
    assert error["details"]["current_state"] == "active"
    assert api.call("POST", f"/workers/{verb}", {**body, "worker_id": "holder"})["job_id"] == job_id


@pytest.mark.parametrize(("fetched_by", "acked_by"), [("w", ""), ("", "w"), ("", "")])
def test_ownership_needs_both_names(api: Api, fetched_by: str, acked_by: str) -> None:
    """SDKs that leave out the worker id are not refused."""
    _, job_id = held(api, worker=fetched_by)
    assert api.ack(job_id, **({"worker_id": acked_by} if acked_by else {}))["state"] == "completed"


def test_a_late_ack_of_a_lost_reservation_is_refused(api: Api) -> None:
    """After the job went to another worker, the first one's ack is 409 and harms nothing."""
    queue, job_id = held(api, worker="slow", visibility_timeout_ms=100)
    found = fetch_one(api, queue, worker_id="quick")
    assert (found["id"], found["attempt"]) == (job_id, 2)
    refusal(api.request("POST", "/workers/ack", {"job_id": job_id, "worker_id": "slow"}), 409, code="conflict")
    assert api.ack(job_id, worker_id="quick")["state"] == "completed"


# -- deadlines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["job", "fetch", "both"])
def test_a_reservation_that_runs_out_frees_the_job(api: Api, where: str) -> None:
    """Available at once, with the error recorded; the job's own length wins over the fetch's."""
    queue = unique_queue()
    own: Body = {} if where == "fetch" else {"visibility_timeout_ms": 300}
    asked = {"fetch": {"visibility_timeout_ms": 300}, "job": {}, "both": {"visibility_timeout_ms": 60_000}}[where]
    job_id = api.enqueue(queue, **own)["id"]
    [found] = api.fetch(queue, worker_id="w1", **asked)
    started = ms(found["started_at"])
    poll(lambda: api.get(job_id)["state"] != "active", deadline_s=5, what="the reservation ends")
    stored = api.get(job_id)
    assert stored["state"] == "available"
    assert -5 < ms(stored["enqueued_at"]) - started - 300 < 250
    assert (stored["error"]["code"], stored["error"]["attempt"]) == ("visibility_timeout", 1)
    [again] = api.fetch(queue, worker_id="w2")
    assert again["attempt"] == 2


def test_reservations_end_in_exhaustion(api: Api) -> None:
    """The last run that times out discards the job like any other failure."""
    queue, job_id = held(api, visibility_timeout_ms=100, retry={"max_attempts": 1, "on_exhaustion": "dead_letter"})
    poll(lambda: api.get(job_id)["state"] == "discarded", deadline_s=5, what="the job is discarded")
    poll(lambda: [one["id"] for one in api.dead_letters(queue)] == [job_id], what="it is a dead letter")


@pytest.mark.parametrize("attempts", [1, 3])
def test_an_execution_that_takes_too_long_is_ended(api: Api, attempts: int) -> None:
    """Without any grace: error `timeout`, then the retry policy."""
    policy = {"max_attempts": attempts, "initial_interval": "PT1H", "max_interval": "PT1H", "jitter": False}
    _, job_id = held(api, timeout_ms=300, retry=policy)
    started = ms(api.get(job_id)["started_at"])
    poll(lambda: api.get(job_id)["state"] != "active", deadline_s=5, what="the execution ends")
    stored = api.get(job_id)
    assert stored["state"] == ("discarded" if attempts == 1 else "retryable")
    error = stored["error"]
    assert (error["code"], error["type"], error["timeout_kind"]) == ("timeout", "timeout", "execution")
    assert error["limit_seconds"] <= error["elapsed_seconds"] < error["limit_seconds"] + 60
    assert -5 < ms(stored["error"]["occurred_at"]) - started - 300 < 250
    refusal(api.request("POST", "/workers/ack", {"job_id": job_id}), 409, code="conflict")


def test_heartbeats_do_not_extend_the_execution_time(api: Api) -> None:
    """A worker that beats for ever still loses the job at its execution timeout."""
    worker = new_worker()
    _, job_id = held(api, worker=worker, timeout_ms=500, visibility_timeout_ms=300)

    def ended() -> bool:
        api.heartbeat(worker, [job_id])
        return bool(api.get(job_id)["state"] != "active")

    poll(ended, deadline_s=5, pause_s=0.05, what="the execution ends")
    assert api.get(job_id)["error"]["code"] == "timeout"


# -- heartbeats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["active_jobs", "active_job_ids", "both", "job_id", "all"])
def test_heartbeats_keep_a_job(api: Api, form: str) -> None:
    """A job of 400 ms stays active for 1.2 s while its worker beats, then it is freed."""
    worker = new_worker()
    queue, job_id = held(api, worker=worker, visibility_timeout_ms=400)
    beat: Body = {"worker_id": worker}
    if form in ("active_job_ids", "both", "all"):
        beat |= {"active_jobs": 1, "active_job_ids": [job_id]}
    if form in ("active_jobs", "both", "all"):
        beat["active_jobs"] = [job_id]
    if form in ("job_id", "all"):
        beat["job_id"] = job_id
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        body = api.call("POST", "/workers/heartbeat", beat)
        assert body["jobs_extended"] == [job_id]
        assert body["state"] == body["directive"] == "running"
        assert body["acknowledged"] is True
        assert abs(ms(body["server_time"]) - time.time() * 1000) < 2000
        time.sleep(0.1)
    assert api.get(job_id)["state"] == "active"
    assert fetch_one(api, queue)["attempt"] == 2


def test_a_heartbeat_may_name_the_length(api: Api) -> None:
    """`visibility_timeout_ms` of the heartbeat replaces the job's own length."""
    worker = new_worker()
    _, job_id = held(api, worker=worker, visibility_timeout_ms=300)
    api.heartbeat(worker, [job_id], visibility_timeout_ms=60_000)
    time.sleep(0.6)
    assert api.get(job_id)["state"] == "active"
    api.heartbeat(worker, [job_id], visibility_timeout_ms=50)
    poll(lambda: api.get(job_id)["state"] == "available", deadline_s=5, what="the shorter time holds")


def test_a_heartbeat_extends_only_what_the_worker_holds(api: Api) -> None:
    """Unknown ids, finished jobs, other workers' jobs and nonsense are left out of `jobs_extended`."""
    worker = new_worker()
    _, mine = held(api, worker=worker)
    _, theirs = held(api, worker=new_worker())
    _, done = held(api, worker=worker)
    api.ack(done)
    waiting = api.enqueue(unique_queue())["id"]
    body = api.heartbeat(worker, [mine, theirs, done, waiting, "x", "", str(uuid.uuid4()), mine])
    assert body["jobs_extended"] == [mine]


def test_a_heartbeat_without_jobs_makes_the_worker_known(api: Api) -> None:
    """GET /admin/workers lists who beat, with what it told of itself."""
    worker = new_worker()
    about = {"hostname": "h", "pid": 12, "queues": ["a"], "concurrency": 5, "labels": ["x"], "state": "running"}
    body = api.call("POST", "/workers/heartbeat", {"worker_id": worker, "active_jobs": 0, **about})
    assert body["jobs_extended"] == []
    [item] = [one for one in api.call("GET", "/admin/workers")["items"] if one["worker_id"] == worker]
    assert {name: item[name] for name in about} == about
    assert item["directive"] == "running"


def test_a_heartbeat_may_name_one_job_beside_others(api: Api) -> None:
    """`job_id` counts with the jobs of the list, and only if the worker holds it."""
    worker = new_worker()
    first, second = held(api, worker=worker)[1], held(api, worker=worker)[1]
    body = api.heartbeat(worker, [first], job_id=second)
    assert body["jobs_extended"] == [first, second]
    assert api.call("GET", f"/admin/workers/{worker}")["active_job_ids"] == [first, second]
    assert api.heartbeat(worker, job_id=held(api, worker=new_worker())[1])["jobs_extended"] == []
    assert api.heartbeat(worker, job_id=None)["jobs_extended"] == []


@pytest.mark.parametrize("directive", ["quiet", "terminate"])
def test_directives_reach_the_worker(api: Api, directive: str) -> None:
    """The next heartbeat tells it, the worker gets no more jobs, its active ones go on; resume undoes it."""
    worker, queue = new_worker(), unique_queue()
    api.heartbeat(worker)
    held_id = api.enqueue(queue)["id"]
    assert len(api.fetch(queue, worker_id=worker)) == 1
    told = api.call("POST", f"/admin/workers/{worker}/{directive}")
    assert (told["worker_id"], told["state"]) == (worker, directive)
    body = api.heartbeat(worker, [held_id])
    assert (body["state"], body["jobs_extended"]) == (directive, [held_id])
    waiting = api.enqueue(queue)["id"]
    assert api.fetch(queue, worker_id=worker) == []
    assert api.ack(held_id, worker_id=worker)["state"] == "completed"
    assert [found["id"] for found in api.fetch(queue, worker_id=new_worker())] == [waiting]
    api.call("POST", f"/admin/workers/{worker}/resume")
    assert api.heartbeat(worker)["state"] == "running"
    later = api.enqueue(queue)["id"]
    assert [found["id"] for found in api.fetch(queue, worker_id=worker)] == [later]


@pytest.mark.parametrize("state", ["quiet", "terminate", "drain", "draining", "shutting_down"])
def test_a_worker_that_shuts_down_gets_no_jobs(api: Api, state: str) -> None:
    """As long as its last heartbeat says so (ojs-graceful-shutdown section 5.1); what it has goes on."""
    worker = new_worker()
    queue, held_id = held(api, worker=worker)
    body = api.call("POST", "/workers/beat", {"worker_id": worker, "state": state, "active_job_ids": [held_id]})
    assert (body["state"], body["jobs_extended"]) == ("running", [held_id])
    waiting = api.enqueue(queue)["id"]
    assert api.fetch(queue, worker_id=worker) == []
    assert api.call("POST", "/jobs/fetch", {"queues": [queue], "worker_id": worker}) == {"jobs": []}
    api.call("PUT", f"/jobs/{held_id}/progress", {"progress": 0.5})
    assert api.fetch(queue, worker_id=worker) == [], "progress counts as a heartbeat and says nothing else"
    assert api.ack(held_id, worker_id=worker)["state"] == "completed"
    api.heartbeat(worker, state="running")
    assert [found["id"] for found in api.fetch(queue, worker_id=worker)] == [waiting]


@pytest.mark.parametrize("about", [{}, {"state": "running"}, {"state": "busy"}, {"state": None}])
def test_a_worker_that_does_not_shut_down_gets_jobs(api: Api, about: Body) -> None:
    """Whatever else it tells of itself, or if it no longer tells anything."""
    worker, queue = new_worker(), unique_queue()
    api.heartbeat(worker, state="quiet")
    api.heartbeat(worker, **about)
    waiting = api.enqueue(queue)["id"]
    assert [found["id"] for found in api.fetch(queue, worker_id=worker)] == [waiting]


@pytest.mark.parametrize("directive", ["quiet", "terminate", "resume"])
def test_an_unknown_worker_cannot_be_directed(api: Api, directive: str) -> None:
    """404 until it beats."""
    worker = new_worker()
    error = refusal(api.request("POST", f"/admin/workers/{worker}/{directive}"), 404, code="not_found")
    assert error["details"] == {"resource_type": "worker", "resource_id": worker}
    assert worker not in worker_ids(api)


@pytest.mark.parametrize("directive", ["quiet", "terminate", "running", "nonsense"])
@pytest.mark.parametrize("where", ["meta", "metadata"])
def test_a_job_may_carry_a_test_directive(api: Api, where: str, directive: str) -> None:
    """`test_directive` of a listed job answers the heartbeat; the operator's word wins over it."""
    worker = new_worker()
    _, job_id = held(api, worker=worker, **{where: {"test_directive": directive}})
    wanted = directive if directive in ("quiet", "terminate") else "running"
    assert api.heartbeat(worker, [job_id])["state"] == wanted
    api.call("POST", f"/admin/workers/{worker}/terminate")
    assert api.heartbeat(worker, [job_id])["state"] == "terminate"


def test_beat_is_an_alias(api: Api) -> None:
    """POST /workers/beat is the heartbeat of the graceful-shutdown extension."""
    body = {"worker_id": new_worker(), "state": "drain", "active_jobs": 2, "shutdown": {"deadline": 5}}
    assert api.call("POST", "/workers/beat", body)["acknowledged"] is True


@pytest.mark.slow
def test_the_jobs_of_a_worker_that_falls_silent_come_back(api: Api) -> None:
    """30 s after its last beat its jobs are requeued, long before their reservation ends; a silent one keeps them."""
    worker, never = new_worker(), new_worker()
    queue, job_id = held(api, worker=worker)
    _, other = held(api, worker=never)
    api.heartbeat(worker, [job_id])
    beat = time.monotonic()
    poll(lambda: api.get(job_id)["state"] == "available", deadline_s=40, pause_s=0.2, what="the job comes back")
    assert 29 < time.monotonic() - beat < 33
    assert api.get(job_id)["error"]["code"] == "worker_death"
    assert worker not in worker_ids(api)
    assert api.get(other)["state"] == "active"
    assert api.fetch(queue)[0]["attempt"] == 2
