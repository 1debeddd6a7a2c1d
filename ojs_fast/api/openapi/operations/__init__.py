"""Every endpoint, by resource, in the order of the document."""

from ojs_fast.api.openapi.operation import Operation
from ojs_fast.api.openapi.operations import (
    admin,
    bulk,
    cron,
    dead_letters,
    events,
    jobs,
    queues,
    rate_limits,
    running,
    schemas,
    system,
    webhooks,
    workers,
    workflows,
)

OPERATIONS: tuple[Operation, ...] = (
    *jobs.OPERATIONS,
    *bulk.OPERATIONS,
    *workers.OPERATIONS,
    *running.OPERATIONS,
    *workflows.OPERATIONS,
    *cron.OPERATIONS,
    *queues.OPERATIONS,
    *rate_limits.OPERATIONS,
    *dead_letters.OPERATIONS,
    *events.OPERATIONS,
    *webhooks.OPERATIONS,
    *schemas.OPERATIONS,
    *admin.OPERATIONS,
    *system.OPERATIONS,
)
