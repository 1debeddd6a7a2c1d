"""`/schemas` and `/admin/schemas`: a registry of JSON Schemas."""

from ojs_fast.api.http import V1
from ojs_fast.api.openapi.components.schemas import JOB_TYPE, URI, VERSION
from ojs_fast.api.openapi.operation import Answer, Operation, count, ok, path
from ojs_fast.api.openapi.schema import ref

TAG = "Schemas"
_URI = path("uri", URI, "The URI, percent-encoded")
_VERSIONED = (path("type", JOB_TYPE), path("version", VERSION))
_ADMIN = V1 + "/admin/schemas/{type}"
_NONE = "There is no such schema"

OPERATIONS = (
    Operation(
        "listSchemas", "GET", V1 + "/schemas", TAG, "List schemas", ok("SchemaList", "A page of them, by URI"),
        parameters=(count("limit", 50, 1, 200), count("offset", 0, 0, 10_000)),
    ),
    Operation(
        "registerSchema", "POST", V1 + "/schemas", TAG, "Register a schema",
        {201: Answer("A new one", ref("SchemaResponse")), 200: Answer("The same as before", ref("SchemaResponse"))},
        body=ref("SchemaRequest"),
        errors={409: "Another schema has this URI"},
    ),
    Operation(
        "getSchema", "GET", V1 + "/schemas/{uri}", TAG, "Get a schema", ok("SchemaResponse", "The schema"),
        parameters=(_URI,),
        errors={404: _NONE},
    ),
    Operation(
        "deleteSchema", "DELETE", V1 + "/schemas/{uri}", TAG, "Delete a schema", ok("SchemaDeleted", "It is gone"),
        parameters=(_URI,),
        errors={404: _NONE},
    ),
    Operation(
        "getLatestSchema", "GET", _ADMIN, TAG, "Get the highest version of a schema",
        ok("RegisteredSchema", "The schema"),
        parameters=_VERSIONED[:1],
        errors={404: _NONE},
    ),
    Operation(
        "listSchemaVersions", "GET", _ADMIN + "/versions", TAG, "List the versions of a schema",
        ok("SchemaVersions", "All of them"),
        parameters=_VERSIONED[:1],
        errors={404: _NONE},
    ),
    Operation(
        "getSchemaVersion", "GET", _ADMIN + "/{version}", TAG, "Get a version of a schema",
        ok("RegisteredSchema", "The schema"),
        parameters=_VERSIONED,
        errors={404: _NONE},
    ),
    Operation(
        "putSchemaVersion", "PUT", _ADMIN + "/{version}", TAG, "Register a version of a schema",
        {201: Answer("The schema", ref("RegisteredSchema"))},
        parameters=_VERSIONED,
        body=ref("SchemaVersionRequest"),
        errors={409: "The version exists already"},
    ),
    Operation(
        "deleteSchemaVersion", "DELETE", _ADMIN + "/{version}", TAG, "Delete a version of a schema",
        ok("SchemaVersionDeleted", "It is gone"),
        parameters=_VERSIONED,
        errors={404: _NONE},
    ),
)  # fmt: skip
