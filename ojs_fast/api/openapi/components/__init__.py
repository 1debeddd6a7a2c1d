"""Every shared shape, by name."""

from ojs_fast.api.openapi.components import (
    admin,
    bulk,
    common,
    cron,
    jobs,
    limits,
    queues,
    running,
    schemas,
    webhooks,
    workers,
    workflows,
)
from ojs_fast.api.openapi.schema import Schema

SCHEMAS: dict[str, Schema] = {
    name: schema
    for module in (common, jobs, bulk, workers, running, queues, limits, cron, workflows, schemas, webhooks, admin)
    for name, schema in module.SCHEMAS.items()
}
