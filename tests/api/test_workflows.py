"""Workflows through the API: chains, groups, batches, graphs, nested ones; results, cancellation, retry, listing.

OJS_CHAIN_STEPS=1000 and OJS_GROUP_MEMBERS=10000 bring the two large ones to full size.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.api.checks import refusal
from tests.support.api import Api, ApiError, Body, unique_queue
from tests.support.processes import poll
from tests.support.server import Server

END = ("completed", "failed", "cancelled")
STEPS = int(os.environ.get("OJS_CHAIN_STEPS", "140"))
MEMBERS = int(os.environ.get("OJS_GROUP_MEMBERS", "1200"))


def job(queue: str, place: str = "", **options: Any) -> Body:
    """A step or member; `place` is its argument."""
    return {"type": "wf.job", "args": [place], "options": {"queue": queue, **options}}


def jobs(queue: str, count: int) -> list[Body]:
    """Members that differ by their argument."""
    return [job(queue, str(number)) for number in range(count)]


def create(api: Api, **request: Any) -> Body:
    """Create a workflow and return it."""
    workflow: Body = api.call("POST", "/workflows", request)["workflow"]
    return workflow


def get(api: Api, workflow_id: str) -> Body:
    """Return a workflow as it is now."""
    workflow: Body = api.call("GET", f"/workflows/{workflow_id}")["workflow"]
    return workflow


def next_job(api: Api, queue: str) -> Body:
    """Wait for the next job of a queue."""
    [found] = poll(lambda: api.fetch(queue), deadline_s=5, pause_s=0.005, what="a job comes")
    return found


def fail(api: Api, job_id: str, **error: Any) -> None:
    """Fail a job for good."""
    assert api.nack(job_id, "as planned", retryable=False, **error)["state"] == "discarded"


def run(api: Api, queue: str, workflow_id: str, *, failing: tuple[str, ...] = (), result: Any = None) -> list[str]:
    """Work until the workflow ends; the arguments of the jobs in the order they came."""
    met: list[str] = []

    def ended() -> bool:
        for found in api.fetch(queue, count=10):
            place = found["args"][0]
            met.append(place)
            if place in failing:
                fail(api, found["id"])
            else:
                api.ack(found["id"], result=result or {"of": place})
        return get(api, workflow_id)["state"] in END

    poll(ended, deadline_s=20, pause_s=0.005, what="the workflow ends")
    return met


def states(workflow: Body) -> list[str]:
    """The states of all steps."""
    return [step["state"] for step in workflow["steps"]]


# -- chain -------------------------------------------------------------------------------------------


def test_a_chain_runs_one_step_after_the_other(api: Api) -> None:
    """Only the first step exists at first; each later one appears when the one before it completed."""
    queue = unique_queue()
    made = create(api, type="chain", name="three", steps=jobs(queue, 3))
    assert (made["type"], made["name"], made["state"]) == ("chain", "three", "running")
    assert (made["steps_total"], made["steps_completed"], made["metadata"]["job_count"]) == (3, 0, 3)
    assert states(made) == ["pending", "waiting", "waiting"]
    assert [step["job_id"] is None for step in made["steps"]] == [False, True, True]
    for number in range(3):
        found = next_job(api, queue)
        assert (found["args"], found["workflow_id"]) == ([str(number)], made["id"])
        assert api.fetch(queue) == []
        assert get(api, made["id"])["steps"][number]["state"] == "active"
        api.ack(found["id"], result={"n": number})
        assert get(api, made["id"])["steps_completed"] == number + 1, "one reads what one wrote"
    ended = get(api, made["id"])
    assert ended["state"] == "completed"
    assert ended["completed_at"] >= ended["started_at"] >= ended["created_at"]
    assert [step["result"] for step in ended["steps"]] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert [step["result_ref"] for step in ended["steps"]] == [f"/ojs/v1/jobs/{s['job_id']}" for s in ended["steps"]]


def test_a_step_is_told_the_results_of_all_before_it(api: Api) -> None:
    """`parent_results` is an array by step index, byte for byte what the workers sent."""
    queue = unique_queue()
    create(api, type="chain", steps=jobs(queue, 4))
    told = []
    results = ['{"big":12345678901234567890,"e":1e400}', "null", '"text"']
    for result in results:
        found = next_job(api, queue)
        told.append(found["parent_results"])
        body = b'{"job_id":"%s","result":%s}' % (found["id"].encode(), result.encode())
        assert api.http.post("/ojs/v1/workers/ack", content=body).status_code == 200
    last = poll(lambda: api.request("POST", "/workers/fetch", {"queues": [queue]}), deadline_s=1, what="an answer")
    while '"jobs":[]' in last.text:
        last = api.request("POST", "/workers/fetch", {"queues": [queue]})
    assert '"parent_results":[' + ",".join(results) + "]" in last.text
    assert told[0] == []
    assert len(told[2]) == 2


def test_a_chain_stops_at_a_failure(api: Api) -> None:
    """What is behind it is cancelled and never enqueued; the error is told."""
    queue = unique_queue()
    made = create(api, type="chain", steps=jobs(queue, 4))
    api.ack(next_job(api, queue)["id"])
    failing = next_job(api, queue)
    fail(api, failing["id"], code="broken")
    ended = get(api, made["id"])
    assert (ended["state"], ended["steps_completed"], ended["steps_total"]) == ("failed", 1, 4)
    assert states(ended) == ["completed", "failed", "cancelled", "cancelled"]
    assert (ended["failed_step_index"], ended["failed_job_ids"]) == (1, [failing["id"]])
    [error] = ended["errors"]
    assert (error["job_id"], error["code"], error["message"], error["attempt"]) == (
        failing["id"], "broken", "as planned", 1,
    )  # fmt: skip
    assert ended["metadata"]["failed_count"] == 1
    assert api.fetch(queue) == []


def test_a_retryable_failure_is_no_failure_of_the_workflow(api: Api) -> None:
    """While a step has runs left the chain runs; `error.retryable` and backoff are the step's own."""
    queue = unique_queue()
    retry = {"max_attempts": 2, "initial_interval": "PT0.05S", "jitter": False}
    made = create(api, type="chain", steps=[job(queue, "a", retry=retry), job(queue, "b")])
    api.nack(next_job(api, queue)["id"])
    assert get(api, made["id"])["state"] == "running"
    assert run(api, queue, made["id"]) == ["a", "b"]
    assert get(api, made["id"])["state"] == "completed"


def test_a_cancelled_job_fails_its_workflow(api: Api) -> None:
    """A member that somebody cancels did not complete."""
    queue = unique_queue()
    made = create(api, type="chain", steps=jobs(queue, 2))
    api.cancel(made["steps"][0]["job_id"])
    ended = get(api, made["id"])
    assert (ended["state"], states(ended)) == ("failed", ["cancelled", "cancelled"])


def test_a_long_chain_runs_and_its_results_stay_within_bounds(api: Api) -> None:
    """Each step is told of the one before it in full, of older ones as far as 64 KiB go."""
    queue = unique_queue()
    made = create(api, type="chain", steps=jobs(queue, STEPS))
    for number in range(STEPS):
        found = next_job(api, queue)
        assert found["args"] == [str(number)]
        assert len(found["parent_results"]) == number
        assert sum(len(str(one)) for one in found["parent_results"] if one) < 66 * 1024
        if number:
            assert found["parent_results"][-1]["n"] == number - 1
        api.ack(found["id"], result={"n": number, "pad": "x" * 500})
    ended = get(api, made["id"])
    assert (ended["state"], ended["steps_completed"], len(ended["steps"])) == ("completed", STEPS, STEPS)


def test_a_result_that_does_not_fit_is_told_by_reference(api: Api) -> None:
    """The step before it had a result of 400 KB; smaller, older ones are told in full."""
    queue = unique_queue()
    create(api, type="chain", steps=jobs(queue, 3))
    api.ack(next_job(api, queue)["id"], result="small")
    large = next_job(api, queue)["id"]
    api.ack(large, result="x" * 400_000)
    small, reference = next_job(api, queue)["parent_results"]
    assert small == "small"
    assert reference == {"result_ref": f"/ojs/v1/jobs/{large}", "result_size_bytes": 400_002}


# -- group and batch ---------------------------------------------------------------------------------


def test_a_group_runs_all_at_once_and_fails_when_all_ended(api: Api) -> None:
    """Jobs come in listed order; a failure changes nothing for the others."""
    queue = unique_queue()
    made = create(api, type="group", jobs=jobs(queue, 3))
    assert (made["jobs_total"], made["jobs_completed"], states(made)) == (3, 0, ["pending"] * 3)
    found = api.fetch(queue, count=3)
    assert [one["args"][0] for one in found] == ["0", "1", "2"]
    fail(api, found[0]["id"])
    api.ack(found[1]["id"])
    assert get(api, made["id"])["state"] == "running"
    api.ack(found[2]["id"])
    ended = get(api, made["id"])
    assert (ended["state"], ended["jobs_completed"], ended["jobs_failed"]) == ("failed", 2, 1)
    assert ended["failed_job_ids"] == [found[0]["id"]]
    assert ended["jobs"] == ended["steps"]


def test_a_large_group_is_created_whole_and_shown_in_pages(api: Api) -> None:
    """Its jobs come in the order listed; cancelling it leaves none to fetch."""
    queue = unique_queue()
    made = create(api, type="group", jobs=jobs(queue, MEMBERS))
    assert (made["jobs_total"], len(made["steps"])) == (MEMBERS, 1000)
    assert made["steps_pagination"] == {"offset": 0, "limit": 1000, "total": MEMBERS, "next_offset": 1000}
    found = api.fetch(queue, count=50)
    assert [one["args"][0] for one in found] == [str(number) for number in range(50)]
    for one in found:
        api.ack(one["id"])
    path = f"/workflows/{made['id']}?steps_offset=45&steps_limit=10"
    page = api.call("GET", path)["workflow"]
    assert page["jobs_completed"] == 50
    assert [step["index"] for step in page["steps"]] == list(range(45, 55))
    assert states(page) == ["completed"] * 5 + ["pending"] * 5
    cancelled = api.call("DELETE", f"/workflows/{made['id']}")["workflow"]
    assert (cancelled["jobs_cancelled"], cancelled["jobs_completed"]) == (MEMBERS - 50, 50)
    assert api.fetch(queue) == []


@pytest.mark.parametrize(
    ("failing", "fired", "skipped"),
    [((), "on_success", "on_failure"), (("1",), "on_failure", "on_success")],
)
def test_a_batch_fires_its_callbacks_once(api: Api, failing: tuple[str, ...], fired: str, skipped: str) -> None:
    """They are told the results of all jobs, null for failed ones; the batch runs until they have ended."""
    queue = unique_queue()
    callbacks = {name: job(queue, name) for name in ("on_complete", "on_success", "on_failure")}
    made = create(api, type="batch", jobs=jobs(queue, 3), callbacks=callbacks)
    assert {name: one["state"] for name, one in made["callbacks"].items()} == dict.fromkeys(callbacks, "waiting")
    for found in api.fetch(queue, count=3):
        place = found["args"][0]
        fail(api, found["id"]) if place in failing else api.ack(found["id"], result=place)
    called = [next_job(api, queue), next_job(api, queue)]
    assert get(api, made["id"])["state"] == "running"
    assert {one["args"][0] for one in called} == {"on_complete", fired}
    for one in called:
        assert one["parent_results"] == [None if str(n) in failing else str(n) for n in range(3)]
        api.ack(one["id"])
    ended = get(api, made["id"])
    assert ended["state"] == "completed", "the callbacks dealt with it (ojs-workflows 12.3)"
    assert {name: one["state"] for name, one in ended["callbacks"].items()} == {
        "on_complete": "completed", fired: "completed", skipped: "skipped",
    }  # fmt: skip
    assert api.fetch(queue) == []


def test_a_batch_fails_with_its_callback_or_for_want_of_one(api: Api) -> None:
    """ojs-workflows 9.5; a failure that no callback is told of does not look like success."""
    queue = unique_queue()
    failing = create(api, type="batch", jobs=jobs(queue, 1), callbacks={"on_complete": job(queue, "cb")})
    assert run(api, queue, failing["id"], failing=("cb",)) == ["0", "cb"]
    ended = get(api, failing["id"])
    assert (ended["state"], ended["errors"][0]["callback"]) == ("failed", "on_complete")
    untold = create(api, type="batch", jobs=jobs(queue, 1), callbacks={"on_success": job(queue, "cb")})
    assert run(api, queue, untold["id"], failing=("0",)) == ["0"]
    assert get(api, untold["id"])["state"] == "failed"


# -- graph -------------------------------------------------------------------------------------------


def graph(queue: str, **depends_on: list[str]) -> list[Body]:
    """Named steps as the HTTP binding and the Python SDK write them."""
    return [
        {"id": name, "type": "wf.job", "args": [name], "depends_on": list(needed)}
        for name, needed in depends_on.items()
    ]


def test_a_graph_starts_steps_when_all_they_depend_on_completed(api: Api) -> None:
    """ojs-http-binding section 14: default options, states of jobs, results in the order of depends_on."""
    queue = unique_queue()
    steps = graph(queue, d=["c", "b"], b=["a"], c=["a"], a=[])
    made = create(api, name="diamond", steps=steps, options={"queue": queue})
    assert [(step["id"], step["state"], step["depends_on"]) for step in made["steps"]] == [
        ("d", "pending", ["c", "b"]), ("b", "pending", ["a"]), ("c", "pending", ["a"]), ("a", "available", []),
    ]  # fmt: skip
    first = next_job(api, queue)
    assert first["args"] == ["a"]
    api.ack(first["id"], result="A")
    both = [next_job(api, queue), next_job(api, queue)]
    assert [one["args"][0] for one in both] == ["b", "c"]
    assert [one["parent_results"] for one in both] == [["A"], ["A"]]
    api.ack(both[0]["id"], result="B")
    assert get(api, made["id"])["steps"][0]["state"] == "pending"
    assert api.fetch(queue) == []
    api.ack(both[1]["id"], result="C")
    last = next_job(api, queue)
    assert (last["args"], last["parent_results"]) == (["d"], ["C", "B"])
    api.ack(last["id"])
    assert (get(api, made["id"])["state"], get(api, made["id"])["type"]) == ("completed", "dag")


def test_a_failure_in_a_graph_gives_up_what_depends_on_it_only(api: Api) -> None:
    """Independent branches run to their end, then the workflow fails."""
    queue = unique_queue()
    made = create(
        api, steps=graph(queue, a=[], b=["a"], c=["b"], x=[], y=["x"], z=["c", "y"]), options={"queue": queue}
    )
    assert sorted(run(api, queue, made["id"], failing=("a",))) == ["a", "x", "y"]
    ended = get(api, made["id"])
    assert ended["state"] == "failed"
    assert states(ended) == ["failed", "cancelled", "cancelled", "completed", "completed", "cancelled"]


def test_a_step_may_depend_on_more_than_a_segment_holds(api: Api) -> None:
    """600 steps in two segments, settled in any order: the one behind them all starts once."""
    queue = unique_queue()
    names = [f"n{number}" for number in range(600)]
    steps = graph(queue, last=names, **{name: [] for name in names})
    made = create(api, steps=steps, options={"queue": queue})
    open_ = [one for _ in range(3) for one in api.fetch(queue, count=200)]
    assert len(open_) == 600
    for one in sorted(open_, key=lambda job: job["id"]):  # ids are hashed, so segments mix
        api.ack(one["id"], result=one["args"][0])
    last = next_job(api, queue)
    assert (last["args"], last["parent_results"]) == (["last"], names)
    assert api.fetch(queue) == []
    api.ack(last["id"])
    assert get(api, made["id"])["state"] == "completed"


def test_steps_with_a_callback_type_are_callbacks(api: Api) -> None:
    """So the Python SDK writes a batch."""
    queue = unique_queue()
    steps = graph(queue, a=[], b=[], done=["a", "b"], bad=["a", "b"])
    steps[2]["options"] = {"callback_type": "on_success"}
    steps[3]["options"] = {"callback_type": "on_failure", "queue": queue}
    made = create(api, name="sdk", steps=steps, options={"queue": queue})
    assert (made["type"], made["jobs_total"], list(made["callbacks"])) == ("batch", 2, ["on_success", "on_failure"])
    assert sorted(run(api, queue, made["id"])[:2]) == ["a", "b"]
    ended = get(api, made["id"])
    assert (ended["callbacks"]["on_success"]["state"], ended["callbacks"]["on_success"]["id"]) == ("completed", "done")


# -- nested ------------------------------------------------------------------------------------------


def test_a_nested_group_is_a_step_of_its_chain(api: Api) -> None:
    """Its jobs are told what came before, the step behind it gets their results by index (section 7.3)."""
    queue = unique_queue()
    inner = {"type": "group", "id": "fan-out", "jobs": [job(queue, "g0"), job(queue, "g1")]}
    made = create(api, type="chain", steps=[job(queue, "first"), inner, job(queue, "last")])
    assert made["metadata"]["job_count"] == 4
    assert [step["id"] for step in made["steps"]] == ["0", "fan-out", "2"]
    api.ack(next_job(api, queue)["id"], result="r0")
    both = [next_job(api, queue), next_job(api, queue)]
    assert [one["parent_results"] for one in both] == [["r0"], ["r0"]]
    nested = get(api, both[0]["workflow_id"])
    assert (nested["type"], nested["parent_id"], nested["state"]) == ("group", made["id"], "running")
    assert get(api, made["id"])["steps"][1]["workflow_id"] == nested["id"]
    for number, one in enumerate(both):
        api.ack(one["id"], result=number)
    last = next_job(api, queue)
    assert last["parent_results"] == ["r0", {"0": 0, "1": 1}]
    api.ack(last["id"])
    ended = get(api, made["id"])
    assert (ended["state"], ended["metadata"]["completed_count"], ended["steps_completed"]) == ("completed", 4, 3)


def test_a_workflow_goes_on_when_a_queue_takes_its_type_no_more(api: Api) -> None:
    """What was accepted runs: later steps, nested workflows and callbacks, also by a retry."""
    queue = unique_queue()
    batch = {
        "type": "batch",
        "jobs": [job(queue, "b0"), job(queue, "bad")],
        "callbacks": {"on_complete": job(queue, "cb")},
    }
    group = {"type": "group", "jobs": [job(queue, "g0"), job(queue, "bad")]}
    made = create(api, type="chain", steps=[job(queue, "first"), batch, group, job(queue, "last")])
    api.call("PUT", f"/queues/{queue}/config", {"allowed_job_types": ["mail.*"]})
    refusal(api.request("POST", "/workflows", {"type": "chain", "steps": [job(queue)]}), 422)
    met = run(api, queue, made["id"], failing=("bad",))
    assert (met[0], sorted(met[1:3]), met[3], sorted(met[4:])) == ("first", ["b0", "bad"], "cb", ["bad", "g0"])
    api.call("POST", f"/workflows/{made['id']}/retry")
    assert run(api, queue, made["id"]) == ["bad", "last"]
    assert get(api, made["id"])["state"] == "completed"


def test_defaults_of_a_queue_apply_to_steps(api: Api) -> None:
    """As to any new job: unless the step, or the options of its workflow, say otherwise."""
    queue, other = unique_queue(), unique_queue()
    api.call("PUT", f"/queues/{queue}/config", {"default_retry": {"max_attempts": 8}})
    steps = [job(queue), job(queue, retry={"max_attempts": 2}), job(other)]
    create(api, type="group", jobs=steps)
    create(api, type="chain", steps=[job(queue)], options={"retry": {"max_attempts": 4}})
    given = [found["max_attempts"] for name in (queue, other) for found in api.fetch(name, count=10)]
    assert (sorted(given[:3]), given[3:]) == ([2, 4, 8], [3])


def test_every_composition_of_the_specification_works(api: Api) -> None:
    """Section 10.1, three levels deep and more."""
    queue = unique_queue()
    chain = {"type": "chain", "steps": [job(queue, "c0"), job(queue, "c1")]}
    batch = {"type": "batch", "jobs": [job(queue, "b0"), chain], "callbacks": {"on_success": job(queue, "cb")}}
    group = {"type": "group", "jobs": [chain, batch, job(queue, "g0")]}
    made = create(
        api, type="chain", steps=[group, batch, {"steps": graph(queue, p=["q"], q=[]), "options": {"queue": queue}}]
    )
    met = run(api, queue, made["id"])
    assert sorted(met) == sorted(["c0", "c1"] * 3 + ["b0"] * 2 + ["cb"] * 2 + ["g0", "q", "p"])
    assert met.index("q") < met.index("p") == len(met) - 1
    ended = get(api, made["id"])
    assert (ended["state"], ended["metadata"]["job_count"], ended["metadata"]["completed_count"]) == (
        "completed",
        11,
        11,
    )


def test_a_nested_failure_fails_the_outer_workflow(api: Api) -> None:
    """Section 10.4."""
    queue = unique_queue()
    group = {"type": "group", "jobs": [job(queue, "ok"), job(queue, "bad")]}
    made = create(api, type="chain", steps=[group, job(queue, "never")])
    assert sorted(run(api, queue, made["id"], failing=("bad",))) == ["bad", "ok"]
    ended = get(api, made["id"])
    assert (ended["state"], states(ended)) == ("failed", ["failed", "cancelled"])
    assert ended["failed_workflow_ids"] == [ended["steps"][0]["workflow_id"]]


# -- cancel ------------------------------------------------------------------------------------------


def test_cancelling_lets_active_jobs_finish_and_starts_no_more(api: Api) -> None:
    """What waits is cancelled; the answer tells; a second time is a conflict."""
    queue = unique_queue()
    made = create(api, type="group", jobs=[*jobs(queue, 3), job(queue, "later", delay_until="PT1H")])
    active = next_job(api, queue)
    gone = api.call("DELETE", f"/workflows/{made['id']}")
    assert gone["workflow"]["state"] == gone["state"] == "cancelled"
    assert gone["workflow"]["cancelled_at"] == gone["workflow"]["metadata"]["cancelled_at"]
    assert states(gone["workflow"]) == ["active", "cancelled", "cancelled", "cancelled"]
    assert api.fetch(queue) == []
    assert api.ack(active["id"])["state"] == "completed"
    assert states(get(api, made["id"])) == ["completed", "cancelled", "cancelled", "cancelled"]
    refusal(api.request("DELETE", f"/workflows/{made['id']}"), 409, code="conflict")


def test_no_step_follows_in_a_cancelled_chain(api: Api) -> None:
    """Also when its active step completes, or fails with runs left."""
    queue = unique_queue()
    for settle in (api.ack, api.nack):
        made = create(
            api, type="chain", steps=[job(queue, "a", retry={"initial_interval": "PT0.01S"}), job(queue, "b")]
        )
        active = next_job(api, queue)
        api.call("POST", f"/workflows/{made['id']}/cancel")
        settle(active["id"])
        first = "completed" if settle == api.ack else "cancelled"
        poll(lambda: states(get(api, made["id"])) == [first, "cancelled"], what="both have ended")  # noqa: B023
        assert api.fetch(queue) == []


def test_cancelling_reaches_nested_workflows(api: Api) -> None:
    """What waits in them is cancelled as well."""
    queue = unique_queue()
    made = create(api, type="group", jobs=[{"type": "chain", "steps": jobs(queue, 2)}, job(queue, "x")])
    inner = get(api, made["steps"][0]["workflow_id"])
    api.call("DELETE", f"/workflows/{made['id']}")
    assert get(api, inner["id"])["state"] == "cancelled"
    assert api.fetch(queue) == []


# -- retry -------------------------------------------------------------------------------------------


def test_a_failed_chain_is_retried_from_its_failed_step(api: Api) -> None:
    """Completed steps stay, their results are still told; what did not complete runs as new jobs."""
    queue = unique_queue()
    made = create(api, type="chain", steps=jobs(queue, 4))
    run(api, queue, made["id"], failing=("2",))
    failed = get(api, made["id"])
    again = api.call("POST", f"/workflows/{made['id']}/retry")["workflow"]
    assert (again["state"], again["retries"], again["steps_completed"]) == ("running", 1, 2)
    assert states(again) == ["completed", "completed", "pending", "waiting"]
    assert "errors" not in again
    found = next_job(api, queue)
    assert found["parent_results"] == [{"of": "0"}, {"of": "1"}]
    assert found["id"] != failed["steps"][2]["job_id"]
    api.ack(found["id"], result="new")
    assert run(api, queue, made["id"]) == ["3"]
    ended = get(api, made["id"])
    assert (ended["state"], ended["steps_completed"]) == ("completed", 4)
    refusal(api.request("POST", f"/workflows/{made['id']}/retry"), 409, code="conflict")


def test_retries_go_into_nested_workflows_and_callbacks(api: Api) -> None:
    """A nested workflow goes on from its own failed job; a failed callback runs again, completed ones do not."""
    queue = unique_queue()
    batch = {
        "type": "batch",
        "jobs": jobs(queue, 2),
        "callbacks": {"on_complete": job(queue, "all"), "on_success": job(queue, "good")},
    }
    made = create(api, type="chain", steps=[{"type": "group", "jobs": [job(queue, "x"), batch]}, job(queue, "end")])
    assert sorted(run(api, queue, made["id"], failing=("good",))) == ["0", "1", "all", "good", "x"]
    api.call("POST", f"/workflows/{made['id']}/retry")
    assert run(api, queue, made["id"], failing=("good",)) == ["good"]
    api.call("POST", f"/workflows/{made['id']}/retry")
    assert run(api, queue, made["id"]) == ["good", "end"]
    ended = get(api, made["id"])
    assert (ended["state"], ended["retries"]) == ("completed", 2)
    inner = get(api, ended["steps"][0]["workflow_id"])
    refusal(api.request("POST", f"/workflows/{inner['id']}/retry"), 409, code="conflict")


# -- the rest ----------------------------------------------------------------------------------------


def test_the_answer_suits_both_client_families(api: Api) -> None:
    """Wrapped, and with copies at the top; Location names it; camel-case retry keys are understood."""
    queue = unique_queue()
    steps = [{**job(queue), "options": {"queue": queue, "retry": {"maxAttempts": 7, "onExhaustion": "dead_letter"}}}]
    reply = api.request("POST", "/workflows", {"type": "chain", "steps": steps})
    assert reply.status_code == 201
    body = reply.json()
    for name in ("id", "type", "state", "metadata", "name"):
        assert body[name] == body["workflow"][name]
    assert reply.headers["location"] == f"/ojs/v1/workflows/{body['id']}"
    assert api.get(body["workflow"]["steps"][0]["job_id"])["max_attempts"] == 7
    assert api.call("GET", "/ojs/manifest")["capabilities"]["workflows"] is True


def test_workflows_are_listed_with_filters_and_pages(fresh_server: Callable[..., Server]) -> None:
    """By state and type; cursor and offset."""
    with Api(fresh_server().url) as api:
        queue = unique_queue()
        ids = [create(api, type="chain", name=f"n{number}", steps=jobs(queue, 1))["id"] for number in range(5)]
        group = create(api, type="group", jobs=jobs(queue, 1))["id"]
        api.call("DELETE", f"/workflows/{ids[0]}")

        def listed(**query: Any) -> tuple[list[str], Body]:
            body = api.call("GET", "/workflows", params=query)
            return [one["id"] for one in body["workflows"]], body["pagination"]

        assert sorted(listed()[0]) == sorted([*ids, group])
        assert listed()[1]["total"] == 6
        assert listed(state="cancelled")[0] == [ids[0]]
        assert listed(type="group")[0] == [group]
        assert listed(type="group", state="completed")[0] == []
        first, page = listed(state="running", limit=2)
        assert (first, page["has_more"]) == (ids[1:3], True)
        rest, page = listed(state="running", limit=10, cursor=page["next_cursor"])
        assert (rest, page["has_more"]) == ([ids[3], ids[4], group], False)
        assert listed(state="running", limit=2, offset=3)[0] == [ids[4], group]
        refusal(api.request("GET", "/workflows?state=odd"), 400, field="state")
        refusal(api.request("GET", "/workflows?cursor=%21"), 400, field="cursor")
        refusal(api.request("GET", "/workflows?limit=x"), 400, field="limit")


def test_events_tell_the_story_of_a_workflow(api: Api) -> None:
    """ojs-workflows appendix B: started, each step, the end."""
    queue = unique_queue()
    api.enqueue(unique_queue(), kind="story.begins")
    [before] = poll(lambda: api.events(job_types="story.begins", types="job.enqueued"), what="an event can be read")
    made = create(api, type="chain", name="told", steps=jobs(queue, 2))
    run(api, queue, made["id"])
    kinds = "workflow.created,workflow.started,workflow.step_completed,workflow.completed"

    def told() -> list[Body]:
        found = [one for one in api.events(types=kinds, after=before["id"]) if one["subject"] == made["id"]]
        return found if len(found) == 5 else []

    events = poll(told, what="all events can be read")
    assert [one["type"] for one in events] == [
        "workflow.created",
        "workflow.started", "workflow.step_completed", "workflow.step_completed", "workflow.completed",
    ]  # fmt: skip
    for one in events:
        assert (one["data"]["workflow_id"], one["data"]["workflow_type"]) == (made["id"], "chain")
    assert [one["data"]["step_index"] for one in events[2:4]] == [0, 1]
    assert [one["data"]["job_id"] for one in events[2:4]] == [s["job_id"] for s in get(api, made["id"])["steps"]]


def test_a_finished_workflow_leaves_the_store_with_its_jobs(fresh_server: Callable[..., Server]) -> None:
    """Its jobs stay as long as it runs, whatever their own retention; then all goes in OJS_RETENTION_WORKFLOWS."""
    env = {"OJS_RETENTION_COMPLETED": "PT1S", "OJS_RETENTION_WORKFLOWS": "PT2S"}
    with Api(fresh_server(env=env).url) as api:
        queue, plain = unique_queue(), unique_queue()
        made = create(api, type="chain", steps=jobs(queue, 2))
        first = next_job(api, queue)["id"]
        api.ack(first, result="kept")
        alone = api.enqueue(plain)["id"]
        api.ack(next_job(api, plain)["id"])
        poll(lambda: api.request("GET", f"/jobs/{alone}").status_code == 404, deadline_s=10, what="a plain job goes")
        assert api.get(first)["result"] == "kept"
        api.ack(next_job(api, queue)["id"])
        assert get(api, made["id"])["state"] == "completed"

        def gone() -> bool:
            answers = [api.request("GET", path).status_code for path in (f"/workflows/{made['id']}", f"/jobs/{first}")]
            return answers == [404, 404]

        poll(gone, deadline_s=15, pause_s=0.1, what="the workflow goes")
        assert api.call("GET", "/workflows")["pagination"]["total"] == 0


def test_an_unknown_workflow_is_not_found(api: Api) -> None:
    """404 with a hint, whatever is asked of it."""
    for one in ("nonsense", "01a210d2-37f1-729c-8ced-d4162c97726d", "x" * 300):
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/retry"), ("POST", "/cancel")):
            error = refusal(api.request(method, f"/workflows/{one}{path}"), 404, code="not_found")
            assert error["hint"]


def test_a_large_workflow_fits_an_external_nats(api: Api) -> None:
    """Its definition lies in chunks: ten megabytes of it are no single message."""
    queue = unique_queue()
    member = {**job(queue), "meta": {"pad": "x" * 60_000}}
    made = create(api, type="group", jobs=[member] * 100)
    found = api.fetch(queue, count=1)[0]
    assert found["meta"]["pad"] == "x" * 60_000
    api.call("DELETE", f"/workflows/{made['id']}")


def test_an_error_of_the_api_client_is_told(api: Api) -> None:
    """The code of a refused shape is invalid_workflow with all that section 11.1 asks for."""
    with pytest.raises(ApiError) as refused:
        create(api, type="chain", steps=[])
    [problem] = refused.value.error["details"]["validation_errors"]
    assert (refused.value.code, problem["path"]) == ("invalid_workflow", "$.steps")
