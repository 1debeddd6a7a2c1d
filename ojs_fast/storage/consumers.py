"""Durable consumers of a stream: made, listed, removed."""

from typing import Any

from ojs_fast.storage.connection import Connection
from ojs_fast.storage.errors import Unavailable

CONSUMER_NOT_FOUND = 10014


async def create(connection: Connection, stream: str, config: dict[str, Any]) -> None:
    """Make the consumer `config["durable_name"]`, or bring it up to date. Raises Unavailable."""
    name = config["durable_name"]
    request = {"stream_name": stream, "config": config}
    answer = await connection.api(f"CONSUMER.DURABLE.CREATE.{stream}.{name}", request)
    if "error" in answer:
        raise Unavailable(f"JetStream refuses the consumer {name}: {answer['error'].get('description')}")


async def delete(connection: Connection, stream: str, name: str) -> None:
    """Remove a consumer for all nodes; one that is gone is fine. Raises Unavailable."""
    answer = await connection.api(f"CONSUMER.DELETE.{stream}.{name}")
    error = answer.get("error")
    if error and error.get("err_code") != CONSUMER_NOT_FOUND:
        raise Unavailable(f"the consumer {name} was not deleted: {error.get('description')}")


async def listed(connection: Connection, stream: str) -> list[dict[str, Any]]:
    """What NATS tells of each consumer of a stream. Raises Unavailable."""
    found: list[dict[str, Any]] = []
    while True:
        answer = await connection.api(f"CONSUMER.LIST.{stream}", {"offset": len(found)})
        if "error" in answer:
            raise Unavailable(f"listing consumers failed: {answer['error'].get('description')}")
        page = answer.get("consumers") or []
        found.extend(page)
        if not page or len(found) >= answer.get("total", 0):
            return found
