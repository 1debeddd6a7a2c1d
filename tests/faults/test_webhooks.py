"""Webhooks when servers and NATS are killed: no event is lost; what comes twice has the same delivery id."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.api import Api, unique_queue
from tests.support.doomed import Doomed
from tests.support.nats import Nats
from tests.support.processes import poll
from tests.support.receiver import Received, Receiver, Says
from tests.support.server import Server

pytestmark = pytest.mark.faults

ENV = {"OJS_WEBHOOKS_ALLOW_PRIVATE": "true", "OJS_WEBHOOKS_RETRY_DELAYS": "1,1,1,1,1,1,1,1,1,1"}
# NATS gives what a dead node had in hand to another one after 15 s.
GIVEN_BACK_S = 40.0
EVENTS = 400


@pytest.fixture
def nats() -> Iterator[Nats]:
    """Give a NATS that outlives the servers."""
    with Nats() as running:
        yield running


def subscribe(api: Api, receiver: Receiver, queue: str) -> str:
    """Subscribe to the enqueues of a queue; the subscription's id."""
    body = {"url": receiver.url, "events": ["job.enqueued"], "filter": {"queues": [queue]}}
    return str(api.call("POST", "/webhooks/subscriptions", body)["id"])


def test_a_server_killed_between_event_and_delivery(nats: Nats) -> None:
    """It had taken the event and got no answer yet: the next server delivers it, under the same id."""
    queue = unique_queue()
    with Receiver(lambda _: Says(hangs=True)) as receiver:
        with Server(nats_url=nats.url, env=ENV) as first, Api(first.url) as api:
            subscribe(api, receiver, queue)
            job = api.enqueue(queue)
            [taken] = receiver.await_count(1)
            first.kill()
        receiver.says = lambda _: Says()
        with Server(nats_url=nats.url, env=ENV) as second, Api(second.url) as api:
            again = receiver.await_count(2, deadline_s=GIVEN_BACK_S)[1]
            assert (again.delivery_id, again.body, again.job_id) == (taken.delivery_id, taken.body, job["id"])
            poll(
                lambda: (
                    api.request("GET", f"/webhooks/deliveries/{taken.delivery_id}").json().get("status") == "delivered"
                ),
                what="it is written down",
            )


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_server_killed_behind_the_delivery(nats: Nats, writes: int) -> None:
    """Before it writes down what it sent, before it acknowledges the event, and after: never lost, one id."""
    queue = unique_queue()
    with (
        Receiver() as receiver,
        Doomed(nats_url=nats.url, env=ENV) as first,
        Api(first.url) as api,
    ):
        subscribe(api, receiver, queue)

        def says(got: Received) -> Says:
            if got.job_id == job["id"] and first.is_running:
                first.arm(writes)
            return Says()

        job = {"id": ""}
        receiver.says = says
        job = api.enqueue(queue)
        first.await_death(10)
        with Server(nats_url=nats.url, env=ENV) as second, Api(second.url) as later:
            # Behind it in the stream: once this one is there and acknowledged, nothing can be missing.
            last = later.enqueue(queue)

            def all_there() -> bool:
                deliveries = later.call("GET", "/webhooks/deliveries")["deliveries"]
                delivered = {one["id"] for one in deliveries if one["status"] == "delivered"}
                sent = {one.job_id: one.delivery_id for one in receiver.received}
                return sent.keys() == {job["id"], last["id"]} and set(sent.values()) == delivered

            poll(all_there, deadline_s=GIVEN_BACK_S, what="both events are delivered and written down")
        assert len({one.delivery_id for one in receiver.received if one.job_id == job["id"]}) == 1


def test_a_retry_survives_its_server(nats: Nats) -> None:
    """What failed waits in NATS, not in the node."""
    queue = unique_queue()
    with Receiver(lambda _: Says(500, {"Retry-After": "2"})) as receiver:
        with Server(nats_url=nats.url, env=ENV) as first, Api(first.url) as api:
            subscribe(api, receiver, queue)
            api.enqueue(queue)
            [taken] = receiver.await_count(1)
            poll(
                lambda: (
                    api.request("GET", f"/webhooks/deliveries/{taken.delivery_id}").json().get("status") == "pending"
                ),
                what="the failure is written down",
            )
            first.kill()
        receiver.says = lambda _: Says()
        with Server(nats_url=nats.url, env=ENV):
            again = receiver.await_count(2, deadline_s=GIVEN_BACK_S)[1]
            assert (again.delivery_id, again.body) == (taken.delivery_id, taken.body)


def test_a_killed_server_with_its_nats_goes_on_where_it_was(tmp_path: Path) -> None:
    """Everything embedded: what was delivered does not come again, what was not does."""
    queue = unique_queue()
    with Receiver() as receiver, Server(tmp_path / "data", env=ENV) as server, Api(server.url) as api:
        subscribe(api, receiver, queue)
        first = api.enqueue(queue)
        [delivered] = receiver.await_count(1)
        poll(
            lambda: (
                api.request("GET", f"/webhooks/deliveries/{delivered.delivery_id}").json().get("status") == "delivered"
            ),
            what="it is written down",
        )
        receiver.says = lambda _: Says(hangs=True)
        second = api.enqueue(queue)
        receiver.await_count(2)
        server.kill()
        receiver.says = lambda _: Says()
        server.start()
        third = api.enqueue(queue)
        poll(
            lambda: {one.job_id for one in receiver.received[2:]} == {second["id"], third["id"]},
            deadline_s=GIVEN_BACK_S,
            what="what was not delivered comes",
        )
        assert [one.job_id for one in receiver.received].count(first["id"]) == 1
        server.kill_nats()
        poll(lambda: api.request("GET", "/health").status_code == 200, what="NATS is back")
        last = api.enqueue(queue)
        poll(lambda: last["id"] in {one.job_id for one in receiver.received}, what="it goes on at once")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_nodes_one_killed_again_and_again(nats: Nats) -> None:
    """Every event in the stream arrives, whatever fails meanwhile; duplicates only under one delivery id."""
    queue, chance = unique_queue(), random.Random(7)

    def says(_: Received) -> Says:
        return Says(chance.choice([200, 200, 200, 500]))

    with ExitStack() as stack:
        receiver = stack.enter_context(Receiver(says))
        steady = stack.enter_context(Server(nats_url=nats.url, env={**ENV, "OJS_WEBHOOKS_PAUSE_AFTER": "0"}))
        victim = stack.enter_context(Server(nats_url=nats.url, env={**ENV, "OJS_WEBHOOKS_PAUSE_AFTER": "0"}))
        api = stack.enter_context(Api(steady.url))
        subscribe(api, receiver, queue)
        over = threading.Event()

        def enqueue() -> None:
            for _ in range(EVENTS):
                api.enqueue(queue)
                over.wait(0.02)

        producer = threading.Thread(target=enqueue)
        producer.start()
        for _ in range(3):
            seen = len(receiver.received)
            receiver.await_count(seen + 20, deadline_s=GIVEN_BACK_S)
            victim.kill()
            victim.start()
        producer.join(60)
        assert not producer.is_alive()
        expected: set[str] = set()
        after = ""
        while True:  # whatever lies in the stream
            page = api.call("GET", "/events", params={"queues": queue, "types": "job.enqueued", "after": after})
            expected |= {one["id"] for one in page["events"]}
            after = page["cursor"]
            if not page["has_more"]:
                break
        assert len(expected) == EVENTS

        def arrived() -> bool:
            deliveries = api.call("GET", "/webhooks/deliveries", params={"status": "pending"})["deliveries"]
            return not deliveries and {one.event["id"] for one in receiver.received} >= expected

        poll(arrived, deadline_s=90, pause_s=0.2, what="every event has been delivered")
        ids: dict[str, set[str]] = {}
        for one in receiver.received:
            ids.setdefault(one.event["id"], set()).add(one.delivery_id)
        assert ids.keys() == expected
        assert {len(one) for one in ids.values()} == {1}
