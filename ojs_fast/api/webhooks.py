"""Handlers of `/webhooks` (ojs-webhooks section 10)."""

from typing import Any

from ojs_fast.api.http import Reply, Request, json_reply
from ojs_fast.core.webhooks.deliveries import STATUS, Delivery
from ojs_fast.core.webhooks.model import Subscription
from ojs_fast.core.webhooks.service import Webhooks
from ojs_fast.errors import invalid_parameter

MAX_PER_PAGE = 100


class WebhookHandlers:
    """Subscriptions and their deliveries."""

    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks

    async def create(self, request: Request) -> Reply:
        """POST /webhooks/subscriptions; the only answer but that of a rotation that shows the secret."""
        created = await self._webhooks.create(request.json())
        reply = _reply(created, 201, with_secret=True)
        reply.headers.append((b"location", f"/ojs/v1/webhooks/subscriptions/{created.id}".encode()))
        return reply

    async def list(self, request: Request) -> Reply:
        """GET /webhooks/subscriptions."""
        page = request.query_int("page", 1, 1, 10**9)
        per_page = request.query_int("per_page", MAX_PER_PAGE, 1, MAX_PER_PAGE)
        every = await self._webhooks.all()
        shown = [one.shown() for one in every[(page - 1) * per_page : page * per_page]]
        has_more = page * per_page < len(every)
        pagination = {"total": len(every), "page": page, "per_page": per_page, "has_more": has_more}
        return json_reply({"subscriptions": shown, "pagination": pagination})

    async def get(self, request: Request) -> Reply:
        """GET /webhooks/subscriptions/{id}."""
        return _reply(await self._webhooks.get(request.params["id"]))

    async def update(self, request: Request) -> Reply:
        """PATCH /webhooks/subscriptions/{id}."""
        return _reply(await self._webhooks.update(request.params["id"], request.json()))

    async def delete(self, request: Request) -> Reply:
        """DELETE /webhooks/subscriptions/{id}."""
        removed = await self._webhooks.delete(request.params["id"])
        return json_reply({"deleted": True, "id": removed.id})

    async def test(self, request: Request) -> Reply:
        """POST /webhooks/subscriptions/{id}/test."""
        return json_reply(await self._webhooks.test(request.params["id"]))

    async def rotate(self, request: Request) -> Reply:
        """POST /webhooks/subscriptions/{id}/rotate-secret."""
        return _reply(await self._webhooks.rotate(request.params["id"]), with_secret=True)

    async def deliveries(self, request: Request) -> Reply:
        """GET /webhooks/deliveries?subscription_id&status&after&limit, the latest event first."""
        limit = request.query_int("limit", 50, 1, MAX_PER_PAGE)
        found = await self._webhooks.deliveries(
            request.query("subscription_id"), _kind(request.query("status")), request.query("after"), limit + 1
        )
        shown = [one.shown() for one in found[:limit]]
        has_more = len(found) > limit
        return json_reply({"deliveries": shown, "cursor": shown[-1]["id"] if shown else "", "has_more": has_more})

    async def delivery(self, request: Request) -> Reply:
        """GET /webhooks/deliveries/{id}."""
        return _delivery_reply((await self._webhooks.delivery(request.params["id"]))[0])

    async def retry(self, request: Request) -> Reply:
        """POST /webhooks/deliveries/{id}/retry."""
        return _delivery_reply(await self._webhooks.retry(request.params["id"]))


def _reply(subscription: Subscription, status: int = 200, *, with_secret: bool = False) -> Reply:
    # The specification shows it flat, the suites ask for `subscription`: both (EXTENSIONS section 1).
    shown = subscription.shown(with_secret=with_secret)
    return json_reply({**shown, "subscription": shown}, status)


def _delivery_reply(delivery: Delivery) -> Reply:
    shown: dict[str, Any] = delivery.shown()
    return json_reply({**shown, "delivery": shown})


def _kind(status: str) -> str:
    kinds = {text: kind for kind, text in STATUS.items()}
    if status and status not in kinds:
        raise invalid_parameter("status", status, ", ".join(kinds))
    return kinds.get(status, "")
