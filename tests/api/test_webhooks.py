"""Webhooks: a real server sends events to a real endpoint; what it refuses, repeats, gives up and shows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ojs_fast.api.keys import Scope, create_key
from tests.api.checks import refusal
from tests.api.test_metrics import scrape
from tests.support.api import Api, ApiError, Body, job_request, unique_queue
from tests.support.processes import poll
from tests.support.receiver import Received, Receiver, Says
from tests.support.server import Server

SUBSCRIPTIONS = "/webhooks/subscriptions"
QUICK = {
    "OJS_WEBHOOKS_ALLOW_PRIVATE": "true",
    "OJS_WEBHOOKS_TIMEOUT_MS": "500",
    "OJS_WEBHOOKS_RETRY_DELAYS": "0,0",
    "OJS_WEBHOOKS_PAUSE_AFTER": "4",
    "OJS_ENABLE_RESET": "true",
}


@pytest.fixture(scope="module")
def hooked() -> Iterator[Server]:
    """Give a server that may call loopback, tries three times without delay and pauses after four failures."""
    with Server(env=QUICK) as running:
        yield running


@pytest.fixture
def hooks(hooked: Server) -> Iterator[Api]:
    """Give its client; the subscriptions of a test go with it."""
    with Api(hooked.url) as api:
        yield api
        for one in api.call("GET", SUBSCRIPTIONS)["subscriptions"]:
            api.call("DELETE", f"{SUBSCRIPTIONS}/{one['id']}")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Give an endpoint that answers 200."""
    with Receiver() as running:
        yield running


def subscribe(api: Api, url: str, *events: str, **fields: Any) -> Body:
    """Subscribe and return the answer."""
    return api.call("POST", SUBSCRIPTIONS, {"url": url, "events": list(events or ("job.enqueued",)), **fields})


def delivery(api: Api, delivery_id: str, status: str) -> Body:
    """Wait until a delivery has that status, and return it."""

    def there() -> Body | None:
        try:
            found = api.call("GET", f"/webhooks/deliveries/{delivery_id}")
        except ApiError as error:
            if error.status != 404:
                raise
            return None
        return found if found["status"] == status else None

    found = poll(there, what=f"{delivery_id} is {status}")
    assert found
    return found


# -- what arrives --------------------------------------------------------------------------------


def test_an_event_arrives_signed_and_as_it_is_read_back(hooks: Api, receiver: Receiver) -> None:
    """All headers of section 5.3; the signature over timestamp and raw body; the same envelope as GET /events."""
    queue = unique_queue()
    made = subscribe(hooks, f"{receiver.url}/in?x=1", filter={"queues": [queue]})
    job = hooks.enqueue(queue)
    [got] = receiver.await_count(1)
    assert got.path == "/in?x=1"
    assert got.is_signed_by(made["secret"])
    assert abs(time.time() - int(got.headers["x-ojs-timestamp"])) < 60
    expected = {
        "content-type": "application/json",
        "user-agent": "OJS-Webhook/1.0",
        "x-ojs-event-type": "job.enqueued",
        "x-ojs-subscription-id": made["id"],
        "host": f"127.0.0.1:{receiver.port}",
    }
    assert expected.items() <= got.headers.items()
    assert got.delivery_id.startswith("del_")
    assert got.event == hooks.events(queues=queue)[0]
    assert got.job_id == job["id"]
    shown = delivery(hooks, got.delivery_id, "delivered")
    assert (shown["attempts"], shown["tries"][0]["status_code"]) == (1, 200)
    assert shown["event_id"] == got.event["id"]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (["job.completed"], ["job.completed"]),
        (["job.*"], ["job.completed", "job.enqueued", "job.started"]),
        (["*"], ["job.completed", "job.enqueued", "job.started", "queue.paused"]),
        (["queue.*", "job.started", "job.started"], ["job.started", "queue.paused"]),
    ],
)
def test_only_the_types_asked_for_arrive(
    hooks: Api, receiver: Receiver, events: list[str], expected: list[str]
) -> None:
    """Exact types, wildcards and everything (section 5.2); an event that two of them name arrives once."""
    queue = unique_queue()
    subscribe(hooks, receiver.url, *events, filter={"queues": [queue]})
    job = hooks.enqueue(queue)
    hooks.fetch(queue)
    hooks.ack(job["id"])
    hooks.call("POST", f"/queues/{queue}/pause")
    assert sorted(one.event["type"] for one in receiver.await_count(len(expected))) == expected
    # Another event behind them: had there been more for us, it would have come before.
    with Receiver() as behind:
        subscribe(hooks, behind.url, "queue.resumed", filter={"queues": [queue]})
        hooks.call("POST", f"/queues/{queue}/resume")
        behind.await_count(1)
    seen = [one.event["type"] for one in receiver.received]
    assert sorted(one for one in seen if one != "queue.resumed") == expected


def test_queues_and_job_types_filter_together(hooks: Api, receiver: Receiver) -> None:
    """Both must fit (section 5.2); without a filter everything does."""
    queue, other = unique_queue(), unique_queue()
    subscribe(hooks, f"{receiver.url}/both", filter={"queues": [queue], "job_types": ["a.b", "c"]})
    subscribe(hooks, f"{receiver.url}/type", filter={"job_types": ["a.b"]})
    for where, kind in ((queue, "x"), (other, "c"), (queue, "a.b"), (other, "a.b"), (queue, "c")):
        hooks.enqueue(where, kind=kind)
    got = receiver.await_count(4)
    seen = sorted((one.path, one.event["data"]["queue"], one.event["data"]["job_type"]) for one in got)
    expected = [("/both", queue, "a.b"), ("/both", queue, "c"), ("/type", queue, "a.b"), ("/type", other, "a.b")]
    assert seen == sorted(expected)


def test_a_changed_subscription_goes_on_where_it_was(hooks: Api, receiver: Receiver) -> None:
    """Other types, another URL, while inactive nothing, then what happened meanwhile."""
    queue = unique_queue()
    made = subscribe(hooks, f"{receiver.url}/one", filter={"queues": [queue]}, metadata={"owner": "me"})
    path = f"{SUBSCRIPTIONS}/{made['id']}"
    first = hooks.enqueue(queue)
    receiver.await_count(1)
    hooks.call("PATCH", path, {"active": False})
    second = hooks.enqueue(queue)
    changed = hooks.call("PATCH", path, {"url": f"{receiver.url}/two", "events": ["job.*"], "active": True})
    assert (changed["active"], changed["events"], changed["metadata"]) == (True, ["job.*"], {"owner": "me"})
    hooks.fetch(queue)
    got = receiver.await_count(3)
    assert [(one.path, one.job_id) for one in got] == [
        ("/one", first["id"]),
        ("/two", second["id"]),
        ("/two", first["id"]),
    ]
    assert got[2].event["type"] == "job.started"


def test_the_test_event_tells_how_it_went(hooks: Api, receiver: Receiver) -> None:
    """`webhook.test`, signed; the answer's status and the beginning of its body (section 6.6)."""
    made = subscribe(hooks, receiver.url)
    told = hooks.call("POST", f"{SUBSCRIPTIONS}/{made['id']}/test")
    assert (told["success"], told["status_code"], told["response_body"]) == (True, 200, "OK")
    [got] = receiver.received
    assert got.is_signed_by(made["secret"])
    assert got.event["type"] == got.headers["x-ojs-event-type"] == "webhook.test"
    receiver.says = lambda _: Says(503, body=b"x" * 5000)
    told = hooks.call("POST", f"{SUBSCRIPTIONS}/{made['id']}/test")
    assert (told["success"], told["status_code"], told["response_body"]) == (False, 503, "x" * 1024)


def test_after_a_rotation_both_secrets_sign_and_after_two_the_first_is_gone(hooks: Api, receiver: Receiver) -> None:
    """Section 8.3; the new secret is shown once."""
    queue = unique_queue()
    made = subscribe(
        hooks, receiver.url, filter={"queues": [queue]}, secret="a secret of the client's".replace(" ", "_")
    )
    assert made["secret"] == "a_secret_of_the_client's"
    rotate = f"{SUBSCRIPTIONS}/{made['id']}/rotate-secret"
    second = hooks.call("POST", rotate)["secret"]
    assert second.startswith("whsec_")
    hooks.enqueue(queue)
    assert receiver.await_count(1)[0].is_signed_by(second, made["secret"])
    third = hooks.call("POST", rotate)["secret"]
    hooks.enqueue(queue)
    assert receiver.await_count(2)[1].is_signed_by(third, second)


def test_redirects_are_followed_three_times(hooks: Api, receiver: Receiver) -> None:
    """With method, headers and body (section 7.1); a fourth one is a failure."""

    def says(got: Received) -> Says:
        left = int(got.path.strip("/") or 0)
        return Says(307, {"Location": f"/{left - 1}"}) if left else Says()

    receiver.says = says
    three = subscribe(hooks, f"{receiver.url}/3")
    assert hooks.call("POST", f"{SUBSCRIPTIONS}/{three['id']}/test")["success"]
    assert [one.path for one in receiver.received] == ["/3", "/2", "/1", "/0"]
    assert all(one.is_signed_by(three["secret"]) for one in receiver.received)
    four = subscribe(hooks, f"{receiver.url}/4")
    told = hooks.call("POST", f"{SUBSCRIPTIONS}/{four['id']}/test")
    assert (told["success"], told["status_code"]) == (False, 307)
    receiver.says = lambda _: Says(302, {"Location": "ftp://127.0.0.1/x"})
    told = hooks.call("POST", f"{SUBSCRIPTIONS}/{four['id']}/test")
    assert (told["success"], told["status_code"]) == (False, None)
    assert "refused" in told["error"]


# -- failures ------------------------------------------------------------------------------------


def test_what_fails_is_tried_again_under_the_same_id(hooks: Api, receiver: Receiver) -> None:
    """500 with Retry-After, then 429, then 200: three requests, one delivery, a signature for each moment."""
    queue = unique_queue()
    replies = iter([Says(500, {"Retry-After": "1"}), Says(429), Says()])
    receiver.says = lambda _: next(replies)
    made = subscribe(hooks, receiver.url, filter={"queues": [queue]})
    hooks.enqueue(queue)
    got = receiver.await_count(3)
    assert len({one.delivery_id for one in got}) == 1
    assert len({one.body for one in got}) == 1
    assert all(one.is_signed_by(made["secret"]) for one in got)
    assert got[1].at - got[0].at > 0.9
    shown = delivery(hooks, got[0].delivery_id, "delivered")
    assert [one["status_code"] for one in shown["tries"]] == [500, 429, 200]
    poll(
        lambda: Counter(
            one["type"] for one in hooks.events(types="webhook.failed,webhook.delivered", limit=1000)
            if one["data"]["delivery_id"] == got[0].delivery_id
        ) == {"webhook.failed": 2, "webhook.delivered": 1},
        what="the attempts are told as events",
    )  # fmt: skip


def test_a_delivery_is_dead_after_its_last_retry_and_can_be_sent_again(hooks: Api, receiver: Receiver) -> None:
    """As many attempts as the setting says; then only by POST …/retry, with all attempts again."""
    queue = unique_queue()
    receiver.says = lambda _: Says(500)
    made = subscribe(hooks, receiver.url, filter={"queues": [queue]})
    hooks.enqueue(queue)
    [first, *_] = receiver.await_count(3)
    dead = delivery(hooks, first.delivery_id, "dead")
    assert dead["attempts"] == 3
    assert dead["event"] == first.event
    listed = hooks.call("GET", "/webhooks/deliveries", params={"subscription_id": made["id"], "status": "dead"})
    assert [one["id"] for one in listed["deliveries"]] == [first.delivery_id]
    receiver.says = lambda _: Says()
    again = hooks.call("POST", f"/webhooks/deliveries/{first.delivery_id}/retry")
    assert again["status"] == "pending"
    fourth = receiver.await_count(4)[3]
    assert (fourth.delivery_id, fourth.body) == (first.delivery_id, first.body)
    delivery(hooks, first.delivery_id, "delivered")
    refusal(hooks.request("POST", f"/webhooks/deliveries/{first.delivery_id}/retry"), 409, code="conflict")


def test_attempts_are_counted(hooks: Api, hooked: Server, receiver: Receiver) -> None:
    """By what came of them, for Prometheus (section 11.2); and how many subscriptions there are."""

    def counted() -> list[float]:
        samples = scrape(hooked)
        attempts = [
            samples["ojs_webhook_delivery_count_total", (("status", one),)] for one in ("success", "failed", "dead")
        ]
        return [*attempts, samples["ojs_webhook_subscription_count", ()]]

    queue = unique_queue()
    replies = iter([Says(500), Says(), Says(404)])
    receiver.says = lambda _: next(replies)
    before = counted()
    subscribe(hooks, receiver.url, filter={"queues": [queue]})
    for count in (2, 3):
        hooks.enqueue(queue)
        receiver.await_count(count)
    delivery(hooks, receiver.received[-1].delivery_id, "dead")
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1, 1, 1]


def test_a_client_error_is_final(hooks: Api, receiver: Receiver) -> None:
    """4xx but 429 is not tried again (section 7.1)."""
    queue = unique_queue()
    receiver.says = lambda _: Says(410)
    subscribe(hooks, receiver.url, filter={"queues": [queue]})
    hooks.enqueue(queue)
    [got] = receiver.await_count(1)
    assert delivery(hooks, got.delivery_id, "dead")["attempts"] == 1


def test_an_endpoint_that_does_not_answer_or_never_ends(hooks: Api, receiver: Receiver) -> None:
    """A time-out is a failure; of an endless answer only the beginning is read."""
    queue = unique_queue()
    receiver.says = lambda _: Says(hangs=True)
    subscribe(hooks, receiver.url, filter={"queues": [queue]})
    hooks.enqueue(queue)
    shown = delivery(hooks, receiver.await_count(1)[0].delivery_id, "dead")
    assert [one["error"] for one in shown["tries"]] == ["no answer within 0.5 s"] * 3
    receiver.says = lambda _: Says(endless=True)
    before = len(receiver.received)
    hooks.enqueue(queue)
    got = receiver.await_count(before + 1)[-1]
    assert delivery(hooks, got.delivery_id, "delivered")["attempts"] == 1


def test_after_failures_in_a_row_a_subscription_is_paused_until_it_is_resumed(hooks: Api, receiver: Receiver) -> None:
    """It says why; nothing more is sent; after PATCH everything that waited arrives."""
    queue = unique_queue()
    receiver.says = lambda _: Says(500)
    made = subscribe(hooks, receiver.url, filter={"queues": [queue]})
    path = f"{SUBSCRIPTIONS}/{made['id']}"
    jobs = [hooks.enqueue(queue)["id"] for _ in range(3)]
    paused = poll(lambda: not (one := hooks.call("GET", path))["active"] and one, what="it is paused")
    assert isinstance(paused, dict)
    assert "in a row failed" in paused["paused_reason"]
    [told] = [
        one for one in hooks.events(types="webhook.subscription.paused") if one["data"]["subscription_id"] == made["id"]
    ]
    assert told["data"]["reason"] == paused["paused_reason"]
    jobs.append(hooks.enqueue(queue)["id"])
    receiver.says = lambda _: Says()
    before = len(receiver.received)
    resumed = hooks.call("PATCH", path, {"active": True})
    assert "paused_reason" not in resumed
    poll(
        lambda: (
            {one.job_id for one in receiver.received[before:]} >= {jobs[-1]}
            and all(
                one["status"] != "pending"
                for one in hooks.call("GET", "/webhooks/deliveries", params={"subscription_id": made["id"]})[
                    "deliveries"
                ]
            )
        ),
        deadline_s=40,
        what="what waited has been sent",
    )
    dead = hooks.call("GET", "/webhooks/deliveries", params={"subscription_id": made["id"], "status": "dead"})
    ended = {one["event"]["data"]["job_id"] for one in dead["deliveries"]}
    assert ended | {one.job_id for one in receiver.received[before:]} == set(jobs)


def test_a_dead_endpoint_does_not_hold_back_others(hooks: Api, receiver: Receiver) -> None:
    """While one hangs with all requests that it may have, another one gets every event at once."""
    queue = unique_queue()
    with Receiver(lambda _: Says(hangs=True)) as hanging:
        subscribe(hooks, hanging.url, filter={"queues": [queue]})
        subscribe(hooks, receiver.url, filter={"queues": [queue]})
        jobs = {hooks.enqueue(queue)["id"] for _ in range(100)}
        assert {one.job_id for one in receiver.await_count(100)} == jobs


def test_attempts_are_spread_over_time(fresh_server: Callable[..., Server], receiver: Receiver) -> None:
    """After a burst of a second's worth no more than the setting says, so that jobs come first."""
    server = fresh_server(env={**QUICK, "OJS_WEBHOOKS_MAX_PER_SECOND": "10"})
    with Api(server.url) as api:
        subscribe(api, receiver.url)
        # Not from when the first one came: the burst waits for the HTTP client, the others are spaced meanwhile.
        before_s = time.monotonic()
        api.enqueue_batch([job_request("q")] * 30)
        got = receiver.await_count(30)
        assert got[-1].at - before_s > 1.9


def test_an_endpoint_that_is_not_there(hooks: Api) -> None:
    """Connection refused, a name that does not exist, and a server that speaks no HTTP: failures like others."""
    made = subscribe(hooks, "http://127.0.0.1:1/x")
    told = hooks.call("POST", f"{SUBSCRIPTIONS}/{made['id']}/test")
    assert (told["success"], told["status_code"]) == (False, None)
    assert told["error"].startswith("ConnectError")
    made = subscribe(hooks, "https://no-such-host.invalid/x")
    assert hooks.call("POST", f"{SUBSCRIPTIONS}/{made['id']}/test")["error"]


# -- the API -------------------------------------------------------------------------------------


def test_the_secret_is_shown_once_and_is_nowhere_else(hooks: Api, hooked: Server, receiver: Receiver) -> None:
    """Not in any later answer, not in events, errors or the log (section 6.1)."""
    made = subscribe(hooks, receiver.url)
    assert made["subscription"]["secret"] == made["secret"]
    path = f"{SUBSCRIPTIONS}/{made['id']}"
    receiver.says = lambda _: Says(400)
    hooks.enqueue(unique_queue())
    delivery(hooks, receiver.await_count(1)[0].delivery_id, "dead")
    answers = [
        hooks.request("GET", path).text,
        hooks.request("GET", SUBSCRIPTIONS).text,
        hooks.request("PATCH", path, {"events": ["*"]}).text,
        hooks.request("POST", f"{path}/test").text,
        hooks.request("GET", "/webhooks/deliveries").text,
        hooks.request("GET", "/events?limit=1000").text,
        hooks.request("POST", SUBSCRIPTIONS, {"url": receiver.url, "events": ["*"], "secret": "too short"}).text,
        hooked.log(),
    ]
    assert not [one for one in answers if made["secret"] in one or "too short" in one or "whsec_" in one]


def test_subscriptions_are_listed_got_and_deleted(hooks: Api, receiver: Receiver) -> None:
    """With pages; what is deleted is gone with its deliveries, and nothing is sent any more."""
    made = [subscribe(hooks, f"{receiver.url}/{number}") for number in range(3)]
    hooks.enqueue(unique_queue())
    receiver.await_count(3)
    page = hooks.call("GET", SUBSCRIPTIONS, params={"per_page": 2, "page": 2})
    assert [one["id"] for one in page["subscriptions"]] == [made[2]["id"]]
    assert page["pagination"] == {"total": 3, "page": 2, "per_page": 2, "has_more": False}
    path = f"{SUBSCRIPTIONS}/{made[0]['id']}"
    assert hooks.call("GET", path)["subscription"]["url"] == f"{receiver.url}/0"
    assert hooks.call("DELETE", path) == {"deleted": True, "id": made[0]["id"]}
    for method in ("GET", "DELETE", "PATCH"):
        refusal(hooks.request(method, path, {}), 404, code="not_found")
    params = {"subscription_id": made[0]["id"]}
    refusal(hooks.request("GET", "/webhooks/deliveries", params=params), 404, code="not_found")
    hooks.enqueue(unique_queue())
    assert Counter(one.path for one in receiver.await_count(5)) == {"/0": 1, "/1": 2, "/2": 2}


def test_deliveries_are_listed_latest_first(hooks: Api, receiver: Receiver) -> None:
    """In pages, of one subscription or of all."""
    queue = unique_queue()
    made = subscribe(hooks, receiver.url, filter={"queues": [queue]})
    jobs = [hooks.enqueue(queue)["id"] for _ in range(7)]
    got = receiver.await_count(7)
    of_job = {one.job_id: one.delivery_id for one in got}
    expected = [of_job[one] for one in reversed(jobs)]
    for one in expected:
        delivery(hooks, one, "delivered")
    seen: list[str] = []
    params: dict[str, Any] = {"subscription_id": made["id"], "limit": 3}
    while True:
        page = hooks.call("GET", "/webhooks/deliveries", params=params)
        seen += [one["id"] for one in page["deliveries"]]
        if not page["has_more"]:
            break
        params["after"] = page["cursor"]
    assert sorted(seen) == sorted(expected)
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"events": ["*"]}, "url"),
        ({"url": "https://example.com"}, "events"),
        ({"url": "https://example.com", "events": []}, "events"),
        ({"url": "https://example.com", "events": "job.*"}, "events"),
        ({"url": "https://example.com", "events": ["job.>"]}, "events"),
        ({"url": "https://example.com", "events": ["job.* "]}, "events"),
        ({"url": "https://example.com", "events": ["*.completed"]}, "events"),
        ({"url": "https://example.com", "events": [1]}, "events"),
        ({"url": "https://example.com", "events": ["*"], "filter": []}, "filter"),
        ({"url": "https://example.com", "events": ["*"], "filter": False}, "filter"),
        ({"url": "https://example.com", "events": ["*"], "filter": {"queues": ["a" * 129]}}, "filter.queues"),
        ({"url": "https://example.com", "events": ["*"], "metadata": False}, "metadata"),
        ({"url": "https://example.com", "events": ["*"], "filter": "x"}, "filter"),
        ({"url": "https://example.com", "events": ["*"], "filter": {"queue": ["a"]}}, "filter.queue"),
        ({"url": "https://example.com", "events": ["*"], "filter": {"queues": []}}, "filter.queues"),
        ({"url": "https://example.com", "events": ["*"], "filter": {"queues": ["A B"]}}, "filter.queues"),
        ({"url": "https://example.com", "events": ["*"], "filter": {"job_types": ['a"']}}, "filter.job_types"),
        ({"url": "https://example.com", "events": ["*"], "active": "yes"}, "active"),
        ({"url": "https://example.com", "events": ["*"], "metadata": "x"}, "metadata"),
        ({"url": "https://example.com", "events": ["*"], "metadata": {"x": "y" * 20_000}}, "metadata"),
        ({"url": "https://example.com", "events": ["*"], "secret": "short"}, "secret"),
        ({"url": "https://example.com", "events": ["*"], "secret": 5}, "secret"),
        ({"url": 5, "events": ["*"]}, "url"),
        ({"url": "", "events": ["*"]}, "url"),
        ({"url": "ftp://example.com", "events": ["*"]}, "url"),
        ({"url": "https://user:pass@example.com", "events": ["*"]}, "url"),
        ({"url": "https://example.com/#x", "events": ["*"]}, "url"),
        ({"url": "https://example.com:0/", "events": ["*"]}, "url"),
        ({"url": "https://example.com:99999/", "events": ["*"]}, "url"),
        ({"url": "https://bücher.example/", "events": ["*"]}, "url"),
        ({"url": "https://example.com/a b", "events": ["*"]}, "url"),
        ({"url": "https://example.com/" + "a" * 3000, "events": ["*"]}, "url"),
    ],
)
def test_bad_subscriptions_are_refused(hooks: Api, body: Body, field: str) -> None:
    """A 400 that names the field, and nothing is stored, by POST or by PATCH."""
    error = refusal(hooks.request("POST", SUBSCRIPTIONS, body), 400, field=field)
    assert "pass@" not in str(error)
    assert hooks.call("GET", SUBSCRIPTIONS)["subscriptions"] == []
    good = subscribe(hooks, "https://example.com/x")
    if field in body or "." in field:
        path = f"{SUBSCRIPTIONS}/{good['id']}"
        if field != "secret":
            refusal(hooks.request("PATCH", path, body), 400, field=field)
        assert hooks.call("GET", path)["url"] == "https://example.com/x"


def test_unknown_ids_and_parameters(hooks: Api) -> None:
    """404 and 400; an id is never a pattern."""
    subscribe(hooks, "https://example.com/x")
    for wild in ("*", "%3E", "sub_*", "a.b", "sub_" + "0" * 36):
        refusal(hooks.request("GET", f"{SUBSCRIPTIONS}/{wild}"), 404, code="not_found")
        refusal(hooks.request("DELETE", f"{SUBSCRIPTIONS}/{wild}"), 404, code="not_found")
        refusal(hooks.request("GET", f"/webhooks/deliveries/{wild}"), 404, code="not_found")
        refusal(hooks.request("POST", f"/webhooks/deliveries/{wild}/retry"), 404, code="not_found")
    refusal(hooks.request("GET", "/webhooks/deliveries?status=lost"), 400, field="status")
    assert len(hooks.call("GET", SUBSCRIPTIONS)["subscriptions"]) == 1


def test_a_reset_leaves_no_subscription_behind(fresh_server: Callable[..., Server], receiver: Receiver) -> None:
    """Neither entries nor places in the event stream; a new subscription works."""
    server = fresh_server(env=QUICK)
    with Api(server.url) as api:
        subscribe(api, f"{receiver.url}/old")
        api.enqueue("q")
        receiver.await_count(1)
        api.reset()
        assert api.call("GET", SUBSCRIPTIONS)["subscriptions"] == []
        assert api.call("GET", "/webhooks/deliveries")["deliveries"] == []
        subscribe(api, f"{receiver.url}/new")
        api.enqueue("q")
        assert [one.path for one in receiver.await_count(2)] == ["/old", "/new"]


def test_scopes(tmp_path: Path, fresh_server: Callable[..., Server]) -> None:
    """`read` may look, only `admin` may change: a webhook takes data out."""
    path = tmp_path / "keys.json"
    reader, producer = create_key(path, "r", Scope.READ), create_key(path, "p", Scope.PRODUCE | Scope.WORK)
    admin = create_key(path, "a", Scope.ADMIN)
    server = fresh_server(env={"OJS_API_KEYS_FILE": str(path)})
    body = {"url": "https://example.com/x", "events": ["*"]}
    with (
        Api(server.url, api_key=reader) as looks,
        Api(server.url, api_key=producer) as works,
        Api(server.url, api_key=admin) as rules,
    ):
        refusal(looks.request("POST", SUBSCRIPTIONS, body), 403)
        refusal(works.request("POST", SUBSCRIPTIONS, body), 403)
        refusal(works.request("GET", SUBSCRIPTIONS), 403)
        made = rules.call("POST", SUBSCRIPTIONS, body)
        assert looks.call("GET", f"{SUBSCRIPTIONS}/{made['id']}")["url"] == body["url"]
        for more in ("/test", "/rotate-secret"):
            refusal(looks.request("POST", f"{SUBSCRIPTIONS}/{made['id']}{more}"), 403)


# -- where it does not go (SSRF) -----------------------------------------------------------------

INTERNAL = [
    "https://127.0.0.1/",
    "https://127.8.9.10:8443/x",
    "https://localhost/",
    "https://LOCALHOST./",
    "https://api.localhost/",
    "https://[::1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[::127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[2002:7f00:1::]/",
    "https://[fe80::1]/",
    "https://[fe80::1%25lo]/",
    "https://[fc00::1]/",
    "https://[ff02::1]/",
    "https://[::]/",
    "https://0.0.0.0/",
    "https://10.1.2.3/",
    "https://172.16.0.1/",
    "https://192.168.1.1/",
    "https://100.64.0.1/",
    "https://169.254.169.254/latest/meta-data/",
    "https://[fd00:ec2::254]/",
    "https://100.100.100.200/",
    "https://168.63.129.16/",
    "https://192.0.0.192/",
    "https://198.18.0.1/",
    "https://224.0.0.1/",
    "https://240.0.0.1/",
    "https://255.255.255.255/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.0.0.1/",
    "https://0177.0.0.1/",
    "https://127.1/",
    "https://127.0.0.1./",
    "https://example.com@127.0.0.1/",
    "https://127.0.0.1\\@example.com/",
    "http://example.com/",
]


@pytest.mark.parametrize("url", INTERNAL)
def test_internal_addresses_are_refused_in_any_spelling(api: Api, url: str) -> None:
    """At registration: names that resolve there, mapped and translated addresses, numbers of other bases."""
    before = len(api.call("GET", SUBSCRIPTIONS)["subscriptions"])
    refusal(api.request("POST", SUBSCRIPTIONS, {"url": url, "events": ["*"]}), 400, field="url")
    assert len(api.call("GET", SUBSCRIPTIONS)["subscriptions"]) == before


def test_an_internal_address_is_refused_at_each_request(
    fresh_server: Callable[..., Server], tmp_path: Path, receiver: Receiver
) -> None:
    """A subscription that was allowed once, or whose name points elsewhere now, gets nothing: it is looked at again."""
    server = fresh_server(tmp_path / "data", env=QUICK)
    with Api(server.url) as api:
        made = [subscribe(api, f"http://{host}:{receiver.port}/") for host in ("127.0.0.1", "localhost")]
    server.stop()
    strict = fresh_server(tmp_path / "data", env={"OJS_WEBHOOKS_RETRY_DELAYS": "0"})
    with Api(strict.url) as api:
        api.enqueue("q")
        for one in made:
            told = api.call("POST", f"{SUBSCRIPTIONS}/{one['id']}/test")
            assert told["error"].startswith("refused"), told
        poll(
            lambda: len(api.call("GET", "/webhooks/deliveries", params={"status": "dead"})["deliveries"]) == 2,
            what="both deliveries are given up",
        )
    assert receiver.received == []
