"""`/events`: what happened, read back or live."""

from ojs_fast.api.http import V1
from ojs_fast.api.openapi.operation import Alias, Answer, Operation, count, header, ok, query, words
from ojs_fast.api.openapi.operations.jobs import JOB_ID, NO_JOB
from ojs_fast.api.openapi.operations.queues import NAME, NO_QUEUE
from ojs_fast.api.openapi.schema import answer, array, boolean, ref, string

TAG = "Events"
_STREAM = {
    200: Answer(
        "Server-sent events, each with `id`, `event` and `data` (JSON); a comment at least every 15 s. Ends when the "
        "server stops.",
        {}, ("Cache-Control",), ("text/event-stream",),
    )
}  # fmt: skip
_LIVE = (
    words("event_types", "Only events of these types"),
    words("types", "Another name of `event_types`, which goes first"),
    header("Last-Event-ID", string(), "The last event that was seen: what came since is sent first"),
    query("last_event_id", string(), "The same, for clients that cannot set headers"),
)
_BUSY = {503: "The server takes no further listeners, NATS is away, or the server is overloaded"}

OPERATIONS = (
    Operation(
        "readEvents", "GET", V1 + "/events", TAG, "Read what happened lately",
        ok(
            answer(
                {
                    "events": array(ref("Event")),
                    "cursor": string("The `after` of the next request"),
                    "has_more": boolean("Whether there is more already"),
                }
            ),
            "Events, oldest first",
        ),
        parameters=(
            query("after", string(), "The `cursor` of an earlier answer, or the id of an event; unset: from the start"),
            words("types", "Only events of these types"),
            words("queues", "Only events of jobs in these queues"),
            words("job_types", "Only events of jobs of these types"),
            count("limit", 100, 1, 1000),
        ),
    ),
    Operation(
        "streamEvents", "GET", V1 + "/events/stream", TAG, "Follow events as they happen", _STREAM,
        parameters=(
            query(
                "channel",
                string(pattern=r"^(all|job:.+|queue:.+)$", examples=["queue:email"]),
                "`job:<id>`, `queue:<name>` or `all` (unset: all)",
            ),
            *_LIVE,
        ),
        errors={404: "There is no such job or queue", **_BUSY},
    ),
    Operation(
        "streamJobEvents", "GET", V1 + "/jobs/{id}/events", TAG, "Follow a job until it ends", _STREAM,
        "A job that has ended tells its state once.",
        (JOB_ID, *_LIVE),
        errors={404: NO_JOB, **_BUSY},
    ),
    Operation(
        "streamQueueEvents", "GET", V1 + "/queues/{name}/events", TAG, "Follow the jobs of a queue", _STREAM,
        parameters=(NAME, *_LIVE),
        errors={404: NO_QUEUE, **_BUSY},
    ),
    Operation(
        "openWebSocket", "GET", V1 + "/ws", TAG, "Follow events over WebSocket",
        {101: Answer("The connection speaks WebSocket from here on", types=())},
        "Without `Upgrade: websocket` it is refused.",
        aliases=(Alias("openWebSocketUnversioned", "GET", "/ws"),),
    ),
)  # fmt: skip
