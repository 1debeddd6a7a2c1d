"""Which scope each endpoint needs: the one table, in the order of `routes.py`.

An endpoint that is missing here needs `admin`, and a test fails.
"""

from ojs_fast.api.keys import Scope

_TABLE: dict[Scope, tuple[str, ...]] = {
    Scope.PRODUCE: (
        "POST /jobs",
        "POST /jobs/batch",
        "DELETE /jobs/{id}",
        "POST /jobs/{id}/cancel",
        "POST /jobs/{id}/activate",
        "POST /cron",
        "PATCH /cron/{name}",
        "DELETE /cron/{name}",
        "POST /workflows",
        "DELETE /workflows/{id}",
        "POST /workflows/{id}/cancel",
        "POST /workflows/{id}/retry",
    ),
    Scope.WORK: (
        "POST /jobs/fetch",
        "POST /jobs/{id}/ack",
        "POST /jobs/{id}/nack",
        "POST /workers/fetch",
        "POST /workers/ack",
        "POST /workers/nack",
        "POST /workers/heartbeat",
        "POST /workers/beat",
    ),
    Scope.READ: (
        "GET /jobs/{id}",
        "GET /dead-letter",
        "GET /dead-letter/{id}",
        "GET /queues",
        "GET /queues/{name}",
        "GET /queues/{name}/stats",
        "GET /queues/{name}/config",
        "GET /cron",
        "GET /cron/{name}",
        "GET /rate-limits",
        "GET /rate-limits/{key}",
        "GET /admin/queues",
        "GET /admin/queues/{name}",
        "GET /admin/queues/{name}/config",
        "GET /workflows",
        "GET /workflows/{id}",
        "GET /events",
        "GET /admin/workers",
    ),
    Scope.ADMIN: (
        "POST /dead-letter/{id}/retry",
        "DELETE /dead-letter/{id}",
        "POST /queues",
        "DELETE /queues/{name}",
        "PUT /queues/{name}/config",
        "PATCH /queues/{name}/config",
        "POST /queues/{name}/purge",
        "POST /queues/{name}/pause",
        "POST /queues/{name}/resume",
        "PUT /rate-limits/{key}",
        "DELETE /rate-limits/{key}",
        "PUT /admin/queues/{name}/config",
        "PATCH /admin/queues/{name}/config",
        "DELETE /admin/queues/{name}/jobs",
        "POST /admin/queues/{name}/pause",
        "POST /admin/queues/{name}/resume",
        "PUT /admin/queues/{name}/rate-limit",
        "DELETE /admin/queues/{name}/rate-limit",
        "POST /admin/workers/{id}/quiet",
        "POST /admin/workers/{id}/terminate",
        "POST /admin/workers/{id}/resume",
        "POST /admin/reset",
    ),
}

SCOPE_OF = {endpoint: scope for scope, endpoints in _TABLE.items() for endpoint in endpoints}


def scope_of(method: str, path: str) -> Scope:
    """The scope that an endpoint needs; `path` as in the route table."""
    return SCOPE_OF.get(f"{method} {path.removeprefix('/ojs/v1')}", Scope.ADMIN)
