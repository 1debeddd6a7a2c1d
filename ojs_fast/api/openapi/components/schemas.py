"""The registry of JSON Schemas (ojs-http-binding section 15); it keeps them and enforces none."""

import re

from ojs_fast.api.openapi.schema import (
    Schema,
    answer,
    array,
    boolean,
    either,
    integer,
    long,
    open_object,
    ref,
    request,
    string,
    time,
)
from ojs_fast.api.schemas import DRAFT, MAX_TYPE
from ojs_fast.core.schemas import MAX_URI

URI = string("The URI", minLength=1, maxLength=MAX_URI, pattern="^[ -~]+$", examples=["urn:example:email.send:v1"])
JOB_TYPE = string("The type of job that it is for", maxLength=MAX_TYPE, pattern="^[ -~]+$", examples=["email.send"])
VERSION = integer("The version", 0, 999_999_999, examples=[1])
_ANY_VERSION = either(long(), string())
_BODY: Schema = {
    "type": "object",
    "properties": {"$schema": string(pattern=f"^{re.escape(DRAFT)}#*$")},
    "additionalProperties": True,
    "description": "A JSON Schema (2020-12)",
}
_ABOUT: dict[str, Schema] = {"type": string(maxLength=MAX_URI), "version": _ANY_VERSION}
_SHOWN: dict[str, Schema] = {"uri": string(), "created_at": time()}

SCHEMAS: dict[str, Schema] = {
    "SchemaRequest": request(
        {"uri": URI, "schema": _BODY},
        _ABOUT,
        "A schema to keep",
        examples=[
            {"uri": "urn:example:email.send:v1", "type": "email.send", "version": "1", "schema": {"type": "array"}}
        ],
    ),
    "SchemaVersionRequest": request(
        {"schema": _BODY}, text="A schema to keep", examples=[{"schema": {"type": "array"}}]
    ),
    "RegisteredSchema": answer({**_SHOWN, "schema": open_object()}, _ABOUT, "A schema that is kept"),
    "SchemaSummary": answer(_SHOWN, _ABOUT, "A schema without its body"),
    "SchemaResponse": answer({"schema": ref("RegisteredSchema")}),
    "SchemaList": answer({"schemas": array(ref("SchemaSummary")), "pagination": ref("Pagination")}),
    "SchemaDeleted": answer({"deleted": boolean(const=True), "uri": string()}),
    "SchemaVersionDeleted": answer(
        {"deleted": boolean(const=True), "uri": string(), "type": string(), "version": VERSION}
    ),
    "SchemaVersions": answer({"type": string(), "versions": array(ref("SchemaSummary"), "Oldest first")}),
}
