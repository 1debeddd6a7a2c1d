"""`/workflows`: create, look, list, cancel, retry."""

from ojs_fast.api.http import V1
from ojs_fast.api.openapi.components.common import UUID
from ojs_fast.api.openapi.operation import Alias, Answer, Operation, choice, count, ok, path, query
from ojs_fast.api.openapi.schema import ref, string
from ojs_fast.api.workflows import MOST_STEPS_SHOWN, STEPS_SHOWN
from ojs_fast.core.workflows.model import TYPES
from ojs_fast.core.workflows.service import STATES

TAG = "Workflows"
_ID = path("id", UUID, "The id of the workflow")
_NONE = "There is no such workflow"

OPERATIONS = (
    Operation(
        "createWorkflow", "POST", V1 + "/workflows", TAG, "Create and start a workflow",
        {201: Answer("The workflow, running", ref("WorkflowResponse"), ("Location",))},
        "A `chain`, `group` or `batch`, or steps with `depends_on`; they nest.",
        body=ref("WorkflowRequest"),
        errors={
            422: "A retry policy breaks a rule, a queue does not take a step's type, or the OJS-Version is unknown"
        },
    ),
    Operation(
        "listWorkflows", "GET", V1 + "/workflows", TAG, "List workflows",
        ok("WorkflowList", "A page of them, by the time of their last change, oldest first"),
        parameters=(
            choice("state", STATES),
            choice("type", TYPES),
            count("limit", 50, 1, 200),
            count("offset", 0, 0, 10_000),
            query("cursor", string(), "`next_cursor` of the page before"),
        ),
    ),
    Operation(
        "getWorkflow", "GET", V1 + "/workflows/{id}", TAG, "Look at a workflow",
        ok("WorkflowResponse", "The workflow with a page of its steps"),
        parameters=(
            _ID,
            count("steps_offset", 0, 0, MOST_STEPS_SHOWN),
            count("steps_limit", STEPS_SHOWN, 0, MOST_STEPS_SHOWN),
        ),
        errors={404: _NONE},
    ),
    Operation(
        "cancelWorkflow", "DELETE", V1 + "/workflows/{id}", TAG, "Cancel a workflow",
        ok("WorkflowResponse", "The workflow, cancelled"),
        "What waits is cancelled, what is active may finish.",
        (_ID,),
        errors={404: _NONE, 409: "It has ended"},
        aliases=(Alias("cancelWorkflowByPost", "POST", V1 + "/workflows/{id}/cancel"),),
    ),
    Operation(
        "retryWorkflow", "POST", V1 + "/workflows/{id}/retry", TAG, "Run again what failed",
        ok("WorkflowResponse", "The workflow, running again"),
        "What did not complete runs again, as new jobs; completed steps stay.",
        (_ID,),
        errors={404: _NONE, 409: "It has not failed, or is nested in another one"},
    ),
)  # fmt: skip
