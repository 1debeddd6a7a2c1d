"""The JSON that README shows in running text is taken, and does what the sentence around it says."""

from __future__ import annotations

import json
import re
import time

from tests.api.checks import refusal
from tests.docs.snippets import ROOT
from tests.support.api import Api, Body, job_request, unique_queue
from tests.support.processes import poll


def inline_json(*members: str) -> Body:
    """The one object in running text that has these members."""
    text = re.sub(r"\s+", " ", (ROOT / "README.md").read_text(encoding="utf-8"))
    found: list[Body] = []
    for code in re.findall(r"`(\{[^`]+\})`", text):
        try:
            value = json.loads(code)
        except json.JSONDecodeError:  # with an ellipsis
            continue
        if set(members) <= value.keys():
            found.append(value)
    assert len(found) == 1, f"{members}: {found}"
    return found[0]


def test_unique_jobs(api: Api) -> None:
    """409 with `existing_job_id`; `ignore`: 200 with that job and `deduplicated`; `replace` cancels it."""
    policy = inline_json("keys", "on_conflict")
    policy["args_keys"] = [name for name in policy["args_keys"] if name == "user_id"]
    queue = unique_queue()

    def request(on_conflict: str) -> Body:
        unique = {**policy, "on_conflict": on_conflict}
        return job_request(queue, kind=queue, args=[{"user_id": 1}], unique=unique)

    first = api.call("POST", "/jobs", request("reject"))["job"]["id"]
    error = refusal(api.request("POST", "/jobs", request("reject")), 409, code="duplicate")
    assert error["details"]["existing_job_id"] == first
    ignored = api.request("POST", "/jobs", request("ignore"))
    assert (ignored.status_code, ignored.json()["deduplicated"], ignored.json()["job"]["id"]) == (200, True, first)
    second = api.call("POST", "/jobs", request("replace"))["job"]["id"]
    assert (api.get(first)["state"], api.get(second)["state"]) == ("cancelled", "available")


def test_limits_on_the_start_of_jobs(api: Api) -> None:
    """Both forms are taken; a concurrency of five lets five start, one after the other because of the throttle."""
    queue = unique_queue()
    limit = {**inline_json("concurrency", "rate", "throttle"), "key": queue}
    for _ in range(7):
        api.enqueue(queue, rate_limit=limit)
    started: list[Body] = []

    def five() -> bool:
        started.extend(api.fetch(queue, count=7))
        return len(started) >= 5

    poll(five, what="as many as may run have started")
    time.sleep(0.3)  # thrice what the throttle asks for
    assert api.fetch(queue, count=7) == []
    assert len(started) == 5
    slow = unique_queue()
    for _ in range(2):
        api.enqueue(slow, rate_limit={**inline_json("max_per_second"), "max_per_second": 1})
    assert len(api.fetch(slow, count=2)) == 1


def test_bounded_queues(api: Api) -> None:
    """429 `QUEUE_FULL` with `Retry-After`, `X-OJS-Queue-Depth` and `X-OJS-Queue-Bound`."""
    queue = unique_queue()
    config = inline_json("backpressure")
    api.call("PUT", f"/queues/{queue}/config", config)
    api.enqueue_batch([job_request(queue) for _ in range(config["backpressure"]["max_depth"])])
    answer = api.request("POST", "/jobs", job_request(queue))
    refusal(answer, 429, code="QUEUE_FULL")
    assert {"retry-after", "x-ojs-queue-depth", "x-ojs-queue-bound"} <= answer.headers.keys()


def test_another_priority(api: Api) -> None:
    """PATCH of a job that waits."""
    job_id = api.enqueue(unique_queue())["id"]
    assert api.call("PATCH", f"/jobs/{job_id}", inline_json("priority"))["job"]["priority"] == 50


def test_a_repeated_enqueue_with_a_key(api: Api) -> None:
    """Creates nothing twice, and its answer says `Idempotency-Replayed: true`."""
    queue = unique_queue()
    first, again = (
        api.request("POST", "/jobs", job_request(queue), headers={"Idempotency-Key": queue}) for _ in range(2)
    )
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert len(api.fetch(queue, count=2)) == 1
