"""Handlers of `/schemas` (ojs-http-binding section 15)."""

from typing import Any

from ojs_fast import _core
from ojs_fast.api.http import Reply, Request, json_reply
from ojs_fast.core.schemas import Schemas
from ojs_fast.errors import invalid_field

MAX_URI = 255
DRAFT = "https://json-schema.org/draft/2020-12/schema"


class SchemaHandlers:
    """Register, list, get, delete."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas

    async def register(self, request: Request) -> Reply:
        """POST /schemas: 201 for a new one, 200 for the same again."""
        body = request.json()
        uri, schema = body.get("uri"), body.get("schema")
        if not (isinstance(uri, str) and 1 <= len(uri) <= MAX_URI and uri.isascii() and uri.isprintable()):
            raise invalid_field("uri", uri, f"a URI of 1 to {MAX_URI} ASCII characters (required)")
        if not isinstance(schema, dict):
            raise invalid_field("schema", schema, "a JSON Schema, an object (required)")
        if str(schema.get("$schema", DRAFT)).rstrip("#") != DRAFT:
            raise invalid_field("schema.$schema", schema["$schema"], DRAFT)
        start, end = _core.scan_json_object(request.body)["schema"]
        registered, is_new = await self._schemas.register(uri, _about(body), request.body[start:end])
        return json_reply({"schema": registered}, 201 if is_new else 200)

    async def list(self, request: Request) -> Reply:
        """GET /schemas, without the schemas themselves."""
        limit = request.query_int("limit", 50, 1, 200)
        offset = request.query_int("offset", 0, 0, 10_000)
        shown, total = await self._schemas.page(offset, limit)
        has_more = offset + limit < total
        pagination = {"total": total, "limit": limit, "offset": offset, "has_more": has_more}
        return json_reply({"schemas": shown, "pagination": pagination})

    async def get(self, request: Request) -> Reply:
        """GET /schemas/{uri}."""
        return json_reply({"schema": await self._schemas.get(request.params["uri"])})

    async def delete(self, request: Request) -> Reply:
        """DELETE /schemas/{uri}."""
        await self._schemas.delete(request.params["uri"])
        return json_reply({"deleted": True, "uri": request.params["uri"]})


def _about(body: dict[str, Any]) -> dict[str, Any]:
    job_type, version = body.get("type"), body.get("version")
    if job_type is not None and not (isinstance(job_type, str) and len(job_type) <= MAX_URI):
        raise invalid_field("type", job_type, f"a job type of at most {MAX_URI} characters")
    if version is not None and type(version) not in (int, str):
        raise invalid_field("version", version, "an integer or a string")
    about = {"type": job_type, "version": version}
    return {name: value for name, value in about.items() if value is not None}
