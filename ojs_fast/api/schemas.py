"""Handlers of `/schemas` (ojs-http-binding section 15) and, for numbered versions, `/admin/schemas` (its suite)."""

from typing import Any

from ojs_fast.api.http import Reply, Request, json_reply
from ojs_fast.core.schemas import MAX_URI, Schemas, numbered_uri
from ojs_fast.errors import Duplicate, invalid_field

MAX_TYPE = 200
DRAFT = "https://json-schema.org/draft/2020-12/schema"


class SchemaHandlers:
    """Register, list, get, delete."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas

    async def register(self, request: Request) -> Reply:
        """POST /schemas: 201 for a new one, 200 for the same again."""
        body = request.json()
        uri = body.get("uri")
        if not (isinstance(uri, str) and 1 <= len(uri) <= MAX_URI and uri.isascii() and uri.isprintable()):
            raise invalid_field("uri", uri, f"a URI of 1 to {MAX_URI} ASCII characters (required)")
        registered, is_new = await self._schemas.register(uri, _about(body), _schema(request, body))
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

    async def put_version(self, request: Request) -> Reply:
        """PUT /admin/schemas/{type}/{version}: 201, and 409 for a version that is there."""
        uri, about = _numbered(request)
        registered, is_new = await self._schemas.register(uri, about, _schema(request, request.json()))
        if not is_new:
            raise Duplicate(
                f"Version {about['version']} of the schema of '{about['type']}' exists already.",
                details={"resource_type": "schema", "resource_id": uri},
                hint="Register a changed schema under the next version.",
            )
        return json_reply(registered, 201)

    async def get_version(self, request: Request) -> Reply:
        """GET /admin/schemas/{type}/{version}."""
        return json_reply(await self._schemas.get(_numbered(request)[0]))

    async def delete_version(self, request: Request) -> Reply:
        """DELETE /admin/schemas/{type}/{version}."""
        uri, about = _numbered(request)
        await self._schemas.delete(uri)
        return json_reply({"deleted": True, "uri": uri, **about})

    async def latest(self, request: Request) -> Reply:
        """GET /admin/schemas/{type}: the highest version."""
        return json_reply((await self._schemas.versions(request.params["type"]))[-1])

    async def versions(self, request: Request) -> Reply:
        """GET /admin/schemas/{type}/versions, without the schemas themselves."""
        found = await self._schemas.versions(request.params["type"])
        versions = [{name: value for name, value in one.items() if name != "schema"} for one in found]
        return json_reply({"type": request.params["type"], "versions": versions})


def _schema(request: Request, body: dict[str, Any]) -> bytes:
    schema = body.get("schema")
    if not isinstance(schema, dict):
        raise invalid_field("schema", schema, "a JSON Schema, an object (required)")
    if str(schema.get("$schema", DRAFT)).rstrip("#") != DRAFT:
        raise invalid_field("schema.$schema", schema["$schema"], DRAFT)
    start, end = request.members()["schema"]
    return request.body[start:end]


def _numbered(request: Request) -> tuple[str, dict[str, Any]]:
    job_type, version = request.params["type"], request.params["version"]
    if not (job_type.isascii() and job_type.isprintable() and len(job_type) <= MAX_TYPE):
        raise invalid_field("type", job_type, f"a job type of at most {MAX_TYPE} ASCII characters")
    if not (version.isascii() and version.isdigit() and len(version) < 10):
        raise invalid_field("version", version, "a whole number")
    return numbered_uri(job_type, int(version)), {"type": job_type, "version": int(version)}


def _about(body: dict[str, Any]) -> dict[str, Any]:
    job_type, version = body.get("type"), body.get("version")
    if job_type is not None and not (isinstance(job_type, str) and len(job_type) <= MAX_URI):
        raise invalid_field("type", job_type, f"a job type of at most {MAX_URI} characters")
    if version is not None and type(version) not in (int, str):
        raise invalid_field("version", version, "an integer or a string")
    about = {"type": job_type, "version": version}
    return {name: value for name, value in about.items() if value is not None}
