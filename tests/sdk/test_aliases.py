"""The paths beside the specification's own that clients and suites use (EXTENSIONS section 1)."""

from __future__ import annotations

from tests.api.test_workers import held, new_worker
from tests.support.api import Api, unique_queue


def test_fetch_ack_nack_and_cancel_have_a_path_of_the_job(api: Api) -> None:
    """/jobs/fetch, /jobs/{id}/ack, nack and cancel; the ack tells `job.state` and `state`."""
    queue = unique_queue()
    ids = [api.enqueue(queue)["id"] for _ in range(3)]
    jobs = api.call("POST", "/jobs/fetch", {"queues": [queue], "count": 2})["jobs"]
    assert [job["id"] for job in jobs] == ids[:2]
    acked = api.call("POST", f"/jobs/{ids[0]}/ack", {"result": 1})
    assert (acked["state"], acked["job"]["state"], acked["acknowledged"]) == ("completed", "completed", True)
    nacked = api.call("POST", f"/jobs/{ids[1]}/nack", {"error": {"code": "c", "message": "m"}})
    assert (nacked["state"], nacked["job"]["state"]) == ("retryable", "retryable")
    assert api.call("POST", f"/jobs/{ids[2]}/cancel")["job"]["state"] == "cancelled"


def test_meta_is_always_there(api: Api) -> None:
    """Also when nobody sent any."""
    queue, job_id = held(api)
    assert api.get(job_id)["meta"] == {}
    assert queue


def test_a_draining_worker_is_acknowledged_and_its_health_tells_so(api: Api) -> None:
    """/workers/beat with `state: "drain"` and a number of jobs; /workers/{id}/health."""
    worker = new_worker()
    body = {"worker_id": worker, "state": "drain", "active_jobs": 0, "shutdown": True}
    assert api.call("POST", "/workers/beat", body)["acknowledged"] is True
    health = api.call("GET", f"/workers/{worker}/health")
    assert (health["worker_id"], health["state"]) == (worker, "drain")
    assert api.request("GET", "/workers/nobody/health").status_code == 404


def test_queues_health_and_dead_letters_have_two_paths(api: Api) -> None:
    """GET /queues/{name}, /health and /ready without prefix, /admin/dead-letter."""
    queue, job_id = held(api, retry={"max_attempts": 1, "on_exhaustion": "dead_letter"})
    api.nack(job_id)
    assert api.call("GET", f"/queues/{queue}")["queue"]["name"] == queue
    for path in ("/health", "/ready", "/ojs/v1/health", "/ojs/v1/ready"):
        assert api.http.get(path).status_code == 200
    assert [job["id"] for job in api.dead_letters(queue)] == [job_id]
    assert [job["id"] for job in api.call("GET", "/admin/dead-letter", params={"queue": queue})["items"]] == [job_id]
    assert api.request("DELETE", f"/admin/dead-letter/{job_id}").status_code == 204
