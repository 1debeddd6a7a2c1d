"""Paths, templates, matchers and assertions mean what they mean to the official runner."""

from typing import Any

import pytest

from . import dsl, paths
from .cases import _plain_matchers
from .dsl import Response, check, check_across, matches, matches_status
from .paths import PathError, answer_of, deep_equal, resolve, substitute, substitute_in

ID4 = "0b7f4a52-5f1c-4e6a-9d8b-3c2a1b0f9e8d"
ID7 = "019461a8-1a2b-7c3d-8e4f-5a6b7c8d9e0f"

ANSWER: dict[str, Any] = {
    "job": {
        "id": ID7,
        "error": None,
        "args": [1, {"deep": ["x", "y"]}],
        "ratio": 0.5,
        "whole": 3.0,
        "on": True,
    },
    "jobs": [
        {"id": "a", "n": 1, "state": "active", "meta": {"k": "v"}},
        {"id": "b", "n": 2},
        {"id": "c", "n": 2, "state": None},
    ],
    "matrix": [[1, 2], [3, 4]],
    "flat.key": 1,
}


# --- paths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("$", ANSWER),
        ("$.job.id", ID7),
        ("job.id", ID7),
        ("$.job.args[0]", 1),
        ("$.job.args[1].deep[1]", "y"),
        ("$.matrix[1][0]", 3),
        ("$.jobs[*].id", ["a", "b", "c"]),
        ("$.jobs[*].state", ["active"]),
        ("$.jobs[*].meta.k", ["v"]),
        ("$.jobs[*]", ANSWER["jobs"]),
        ("$.matrix[*][1]", [2, 4]),
        ("$.jobs[?(@.id=='b')].n", 2),
        ('$.jobs[?(@.id=="b")].n', 2),
        ("$.jobs[?(@.n==2)].id", "b"),
        ("$.jobs[?(@.n=='2')].id", "b"),
        ("$.jobs[?(@.meta.k == 'v')].id", "a"),
        ("$.jobs[?(@.id=='z')]", None),
        ("$.jobs[?(@.id=='z')].state", None),
        ("$.jobs[?(@.state=='null')].id", None),
        ("$.job.error", None),
        ("$.job.nothing", None),
        ("$.nothing.at[3].all", None),
        ("$.nothing[0]", None),
        ("$.flat.key", None),
        ("$empty", None),
    ],
)
def test_a_path_finds_its_value(path: str, expected: Any) -> None:
    """Keys, indexes, wildcards and filters; a missing key ends the search with null."""
    assert resolve(ANSWER, path) == expected


@pytest.mark.parametrize(
    "path",
    [
        "$.job.error.code",  # a present null is no parent
        "$.job.id.x",
        "$.jobs.id",
        "$.jobs[3]",
        "$.jobs[3].id",
        "$.jobs[-1]",
        "$.job[0]",
        "$.job[*]",
        "$.job[?(@.id=='x')]",
        "$.jobs[?(@.n>1)]",
        '$["job"]',
        "$.jobs[0",
    ],
)
def test_a_path_that_makes_no_sense_is_an_error(path: str) -> None:
    """Only what is not there is null; what cannot be there is an error."""
    with pytest.raises(PathError):
        resolve(ANSWER, path)


def test_a_filter_may_contain_what_splits_paths() -> None:
    """Dots and brackets inside quotes belong to the value."""
    assert resolve([{"q": "a.b[0]", "n": 1}], "$[?(@.q=='a.b[0]')].n") == 1


# --- templates --------------------------------------------------------------------------------------------

BODIES: paths.Bodies = {"one": ANSWER, "two": {"jobs": [], "same": {"a": 1}}, "gone": None}


def template(path: str, step: str = "one") -> str:
    """Write a template."""
    return f"{{{{steps.{step}.response.body.{path}}}}}"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("job.id", ID7),
        ("job.whole", "3"),
        ("jobs[1].n", "2"),
        ("job.ratio", "0.5"),
        ("job.on", "true"),
        ("matrix", "[[1,2],[3,4]]"),
        ("jobs[0].meta", '{"k":"v"}'),
    ],
)
def test_a_template_becomes_text(path: str, expected: str) -> None:
    """Strings stand raw, whole numbers without decimals, everything else as JSON."""
    assert substitute(f"<{template(path)}>", BODIES) == f"<{expected}>"


@pytest.mark.parametrize(
    "text",
    [
        template("job.nothing"),
        template("job.error"),
        template("job.id.x"),
        template("job.id", "later"),
        template("job.id", "gone"),
        "{{job_id}}",
        "${job_id}",
        "{{steps.one.response.status}}",
    ],
)
def test_what_does_not_resolve_stays(text: str) -> None:
    """No error: the text is sent as it is."""
    assert substitute(text, BODIES) == text


def test_templates_are_filled_in_anywhere_in_a_matcher() -> None:
    """Lists, objects and keys are searched; other values are left alone."""
    matcher = {
        f"$.jobs[?(@.id=='{template('job.id')}')]": [template("jobs[0].id"), 1, None],
        "x": {"$in": ["z"]},
    }
    filled = {f"$.jobs[?(@.id=='{ID7}')]": ["a", 1, None], "x": {"$in": ["z"]}}
    assert substitute_in(matcher, BODIES) == filled


def test_a_template_can_stand_for_the_value_itself() -> None:
    """Across steps, arrays stay arrays; a template inside other text does not."""
    assert answer_of(template("jobs", "two"), BODIES) == []
    assert answer_of("{{steps.two.response.body}}", BODIES) == BODIES["two"]
    assert answer_of(f"x{template('job.id')}", BODIES) == f"x{ID7}"
    assert answer_of(7, BODIES) == 7
    with pytest.raises(PathError):
        answer_of("{{steps.gone.response.body}}", BODIES)
    with pytest.raises(PathError):
        answer_of(template("job.nothing"), BODIES)


# --- matchers ---------------------------------------------------------------------------------------------

# Each row: a matcher, what it accepts, what it refuses.
MATCHERS: list[tuple[Any, list[Any], list[Any]]] = [
    (None, [None], [0, "", False, [], "null"]),
    ("any", [None, 0, "", {}], []),
    ("absent", [None], [0, "", False, []]),
    ("exists", [0, "", False, []], [None]),
    ("string:nonempty", ["x"], ["", None, 1, ["x"]]),
    ("string:non_empty", ["x"], ["", None, 1, ["x"]]),
    ("string:uuid", [ID4, ID7], [ID7.upper(), ID7 + "0", "x", None, 1]),
    ("string:uuidv7", [ID7], [ID4, ID7.upper(), ID7.replace("-8e4f", "-ce4f"), ID7 + "\n", None]),
    (
        "string:datetime",
        ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05.123Z", "2026-01-02T03:04:05+02:00"],
        ["2026-01-02T03:04:05", "2026-01-02 03:04:05Z", "2026-01-02", "", None, 1],
    ),
    ("string:contains:max_a", ["the max_attempts"], ["MAX_A", "", None, ["max_a"]]),
    ("string:contains:", ["", "x"], [None]),
    (r"string:pattern(^a(b|c)\.)", ["ab.x"], ["xab.", "ab", None, 1]),
    ("string:pattern(b)", ["abc"], ["acd"]),
    ("string:pattern(()", [], ["("]),
    ("number:positive", [1, 0.1], [0, -1, True, "1", None]),
    ("number:non_negative", [0, 0.0, 3], [-0.1, False, "0", None]),
    ("number:range(1,3)", [1, 2.5, 3], [0.9, 3.1, True, "2", None]),
    ("number:range(-2.5, -1)", [-2.5, -1], [0, -3]),
    ("array:nonempty", [[0]], [[], None, "x", {"a": 1}]),
    ("array:empty", [[]], [[0], None, "", {}]),
    ("array:length:2", [[1, 2]], [[1], [1, 2, 3], None, "ab"]),
    ("array:length(2)", [[1, 2]], [[1], [1, 2, 3], None, "ab"]),
    ("array:min:2", [[1, 2], [1, 2, 3]], [[1], None]),
    ("array:min_length:2", [[1, 2], [1, 2, 3]], [[1], None]),
    ("contains:42", [["42"], [42], [42.0, 1]], [["421"], [], "42", None]),
    ("contains:true", [[True]], [[1]]),
    ("not_contains:x", [["y"], []], [["x"], None, "y"]),
    ("~2000", [1000, 2000, 3000], [999, 3001, "2000", True, None]),
    ("~1", [0.5, 1.5], [100, 0.4]),  # no floor of 100
    ("~-10", [-5, -15], [-4, 10]),
    ("~soon", ["~soon"], [1, "soon"]),
    ("available", ["available"], ["Available", "available ", "", None, 1]),
    ("1", ["1"], [1]),
    ("string:unheard-of", ["string:unheard-of"], ["x"]),
    (1, [1, 1.0], [2, 1.0000000001, True, "1", None]),
    (0, [0], [False, None, ""]),
    (0.5, [0.5, 0.5 + 1e-10], [0.5 + 1e-8, "0.5", None]),
    (2.0, [2], [2.0000000001]),
    (True, [True], [1, "true", False, None]),
    (False, [False], [0, None, ""]),
    ([], [[]], [[1], None, "", {}]),
    (["a", 1, None, {"k": "any"}], [["a", 1, None, {"k": 2}]], [["a", 1, None], ["b", 1, None, {}], None]),
    ({"$exists": True}, [0, "", []], [None]),
    ({"$exists": False}, [None], [0, ""]),
    ({"$exists": True, "$type": "string"}, ["x", ""], [1, None]),
    ({"$exists": True, "$type": "number"}, [1, 0.5], [True, "1"]),
    ({"$exists": True, "$type": "boolean"}, [True], [1]),
    ({"$exists": True, "$type": "array"}, [[]], [{}]),
    ({"$exists": True, "$type": "object"}, [{}], [[]]),
    ({"$type": "string"}, [], ["x", None]),
    ({"$gte": 1}, [], [1, 2]),
    ({"$match": "^a"}, ["ab"], ["ba", None, 1]),
    ({"$match": "("}, [], ["("]),
    ({"$in": ["a", 1, {"$size": 2}]}, ["a", 1, [0, 0]], ["b", 2, [], True, None]),
    ({"$in": []}, [], ["a", None]),
    ({"$or": ["string:nonempty", {"$exists": False}]}, ["x", None], ["", 1]),
    ({"$size": 2}, [[1, 2]], [[1], "ab", None]),
    ({"$size": {"$gte": 2}}, [[1, 2], [1, 2, 3]], [[1], "ab", None]),
    ({"$size": {"$lte": 2}}, [], [[1]]),
    ({"$empty": True}, [None, {}, {"a": 1}], []),
    ({"range": {"min": 1, "max": 3}}, [1, 3], [0, 4, "2", True, None]),
    ({"range": {"min": 1}}, [1, 99], [0]),
    ({"range": {"max": 3}}, [-9, 3], [4]),
    ({}, [{}, {"a": 1}], [None, [], "x"]),
    (
        {"a": 1, "b": "absent"},
        [{"a": 1}, {"a": 1, "c": 2}, {"a": 1, "b": None}],
        [{"a": 2}, {}, {"a": 1, "b": 1}, None],
    ),
]


@pytest.mark.parametrize(("matcher", "accepted", "refused"), MATCHERS, ids=[repr(row[0]) for row in MATCHERS])
def test_a_matcher_accepts_and_refuses(matcher: Any, accepted: list[Any], refused: list[Any]) -> None:
    """Each matcher takes what it describes and nothing else."""
    assert [value for value in accepted if not matches(matcher, value)] == []
    assert [value for value in refused if matches(matcher, value)] == []


@pytest.mark.parametrize(
    ("matcher", "accepted", "refused"),
    [
        (201, [201], [200]),
        ("one_of:400, 422", [400, 422], [401, 40]),
        ("number:range(400,422)", [400, 410, 422], [399, 423]),
        ({"$in": [200, 409]}, [200, 409], [201]),
        ({"$gte": 200}, [], [200]),
        ([200, 201], [], [200, 201]),
        ("200", [], [200]),
    ],
)
def test_a_status_has_its_own_matchers(matcher: Any, accepted: list[int], refused: list[int]) -> None:
    """An integer, one_of, a range, $in; all else, bare lists included, never matches."""
    assert [status for status in accepted if not matches_status(matcher, status)] == []
    assert [status for status in refused if matches_status(matcher, status)] == []


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ({"a": [1, None]}, {"a": [1.0, None]}, True),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        (1, True, False),
        ([1, 2], [2, 1], False),
        ([1], [1, 2], False),
        ({"a": None}, {}, False),
        ("1", 1, False),
    ],
)
def test_deep_equality_is_that_of_json(one: Any, other: Any, *, equal: bool) -> None:
    """Order matters in arrays only, and true is not 1."""
    assert deep_equal(one, other) is equal


@pytest.mark.parametrize("text", ["", "null", "[]", '"x"', "1", "{", "not json", '{"a":NaN}'])
def test_only_objects_count_as_a_body(text: str) -> None:
    """Anything else has no body to look at."""
    assert paths.parse_object(text) is None


# --- assertions -------------------------------------------------------------------------------------------


def response(**changes: Any) -> Response:
    """Make a reply to hold assertions against."""
    body = changes.pop("body", ANSWER)
    reply: dict[str, Any] = {
        "status": 200,
        "headers": {"x-name": "value; a=1"},
        "text": "raw text",
        "elapsed_ms": 200.0,
    }
    return Response(**{**reply, **changes, "body": body})


def failed(assertions: dict[str, Any], reply: Response | None = None) -> list[str]:
    """Name the assertions that fail."""
    return [failure.assertion for failure in check(assertions, reply or response(), BODIES).failures]


HOLDS: list[dict[str, Any]] = [
    {},
    {"status": 200},
    {"status": None},
    {"status_in": [200, 201]},
    {"body": {"$.job.id": ID7, "$.job.error": None, "$.jobs": "array:length:3"}},
    {"body": {"$.job.id": template("job.id")}},
    {"body": {f"$.jobs[?(@.id=='{template('jobs[0].id')}')].n": 1}},
    {"body": {"$.jobs[99].id": "absent", "$.job.error.code": "absent"}},
    {"body": {"$or": [{"$.job.id": "x"}, {"$.job.id": ID7, "$.job.on": True}]}},
    {"body_absent": ["$.job.nothing", "$.job.error", "$.jobs[9].id"]},
    {"body_contains": ["raw", "text"]},
    {"headers": {"X-Name": "value; a=1"}},
    {"headers": {"x-name": {"$match": "a=[0-9]"}}},
    {"headers": {"X-NAME": {"$eq": "value; a=1"}}},
    {"headers": {"X-Name": {"$exists": False}}},
    {"timing_ms": {"less_than": 201, "greater_than": 199, "approximate": 150}},
    {"timing_ms": {"approximate": 100}},
    {"timing_ms": {"approximate": 400}},
]


@pytest.mark.parametrize("assertions", HOLDS, ids=repr)
def test_an_assertion_holds(assertions: dict[str, Any]) -> None:
    """Every kind of assertion can pass."""
    assert failed(assertions) == []


FAILS: list[tuple[dict[str, Any], list[str]]] = [
    ({"status": 201}, ["status"]),
    ({"status_in": [201, 204]}, ["status_in"]),
    ({"body": {"$.job.id": "x", "$.job.on": True}}, ["body $.job.id"]),
    ({"body": {"$.job.id": template("job.nothing")}}, ["body $.job.id"]),
    ({"body": {"$.jobs[99].id": "any"}}, ["body $.jobs[99].id"]),
    ({"body": {"$.jobs[99].id": None}}, ["body $.jobs[99].id"]),
    ({"body": {"$.job.error.code": {"$exists": False}}}, ["body $.job.error.code"]),
    ({"body": {"$or": [{"$.job.id": "x"}, {"$.job.id": ID7, "$.job.on": False}]}}, ["body $or"]),
    ({"body_absent": ["$.job.id", "$.job.nothing"]}, ["body_absent $.job.id"]),
    ({"body_contains": ["raw", "other"]}, ["body_contains"]),
    ({"headers": {"X-Name": "value"}}, ["header X-Name"]),
    ({"headers": {"X-Other": "value"}}, ["header X-Other"]),
    ({"headers": {"X-Name": {"$match": "^a="}}}, ["header X-Name"]),
    ({"headers": {"X-Other": {"$match": "."}}}, ["header X-Other"]),
    ({"headers": {"X-Name": {"$eq": "value"}}}, ["header X-Name"]),
    ({"timing_ms": {"less_than": 200}}, ["timing_ms less_than"]),
    ({"timing_ms": {"greater_than": 200}}, ["timing_ms greater_than"]),
    ({"timing_ms": {"approximate": 99}}, ["timing_ms approximate"]),
    ({"timing_ms": {"approximate": 401}}, ["timing_ms approximate"]),
    ({"status": 500, "body": {"$.job.on": 1}}, ["status", "body $.job.on"]),
]


@pytest.mark.parametrize(("assertions", "expected"), FAILS, ids=[repr(row[0]) for row in FAILS])
def test_an_assertion_fails(assertions: dict[str, Any], expected: list[str]) -> None:
    """Every kind of assertion can fail, and says which it was."""
    assert failed(assertions) == expected


def test_a_failure_tells_what_was_expected_and_found() -> None:
    """The report can show both."""
    findings = check({"body": {"$.job.id": "x", "$.jobs[9]": "any"}}, response(), BODIES)
    assert findings.failures == [
        dsl.Failure("body $.job.id", "x", ID7),
        dsl.Failure("body $.jobs[9]", "any", "(no element 9 among 3)"),
    ]


def test_without_an_object_only_alternatives_are_looked_at() -> None:
    """Body assertions are passed over, and that is told; $or is evaluated, and no branch fits nothing."""
    nothing = response(body=None, text="")
    findings = check({"body": {"$.job.id": "x"}, "body_absent": ["$.job"]}, nothing, BODIES)
    assert findings.failures == []
    assert findings.skipped == ["body $.job.id: the body is no JSON object"]
    alternatives = [{"$.jobs": {"$size": 0}}, {"$empty": True}]
    assert failed({"body": {"$or": alternatives}}, nothing) == ["body $or"]
    assert failed({"body": {"$or": alternatives}}, response(body={"jobs": []})) == []


def test_what_nobody_looks_at_is_told() -> None:
    """Unknown kinds and header matchers fail nothing, as in the official runner, but do not vanish."""
    assertions = {"status_one_of": [1], "body_raw": "x", "headers": {"X": {"$exists": True}}}
    findings = check(assertions, response(), BODIES)
    assert findings.failures == []
    assert [text.split(":")[0] for text in findings.skipped] == ["status_one_of", "body_raw", "header X"]


# --- assertions across steps ------------------------------------------------------------------------------


def claim(*fetches: Any) -> list[str]:
    """Hold an exclusive claim of job `j` against what fetches answered; name what fails."""
    bodies = {f"f{number}": {"jobs": jobs} for number, jobs in enumerate(fetches)}
    wanted = {
        "job_id": template("job.id", "enqueue"),
        "fetches": [template("jobs", step) for step in bodies],
        "exactly_one_has_job": True,
    }
    findings = check_across({"exclusive_claim": wanted}, {"enqueue": {"job": {"id": "j"}}, **bodies})
    return [failure.assertion for failure in findings.failures]


@pytest.mark.parametrize("fetches", [([{"id": "j"}], []), ([], [{"id": "j"}]), ([], [{"id": "j"}], [])])
def test_an_exclusive_claim_holds(fetches: tuple[Any, ...]) -> None:
    """One fetch has the job, the others have nothing."""
    assert claim(*fetches) == []


@pytest.mark.parametrize(
    "fetches",
    [
        ([{"id": "j"}], [{"id": "j"}]),
        ([], []),
        ([{"id": "j"}], [{"id": "k"}]),
        ([{"id": "k"}], []),
        ([{"id": "j"}, {"id": "j"}], []),
        ([{"id": "j"}], None),
        ([{"id": "j"}], {}),
    ],
)
def test_an_exclusive_claim_fails(fetches: tuple[Any, ...]) -> None:
    """Two holders, none, another job, or a fetch that answered no array."""
    assert claim(*fetches) == ["exclusive_claim"]


def test_equality_compares_whole_answers() -> None:
    """Paths into earlier steps are compared deeply with what templates stand for."""
    bodies: paths.Bodies = {
        "a": {"x": [1, {"y": 2}]},
        "b": {"x": [1.0, {"y": 2}]},
        "c": {"x": [2]},
        "d": None,
    }

    def failures(path: str, other: Any) -> list[str]:
        return [failure.assertion for failure in check_across({"equality": {path: other}}, bodies).failures]

    assert failures("$.steps.a.response.body", "{{steps.b.response.body}}") == []
    assert failures("$.steps.a.response.body.x[1].y", 2) == []
    for path, other in (("a", "c"), ("d", "d"), ("z", "z")):
        told = failures(f"$.steps.{path}.response.body", f"{{{{steps.{other}.response.body}}}}")
        assert told == [f"equality $.steps.{path}.response.body"]


def test_other_assertions_across_steps_are_told() -> None:
    """An ASSERT step has no reply of its own."""
    findings = check_across({"status": 200}, {})
    assert findings.skipped == ["status: an ASSERT step has no reply to hold against it"]


def test_extension_suites_are_said_in_the_official_runners_words() -> None:
    """`$gte` becomes a range, but within `$size`, where the runner knows it."""
    asked = {"body": {"$.total": {"$gte": 1}, "$.jobs": {"$size": {"$gte": 1}}, "$.id": {"$type": "string"}}}
    assert _plain_matchers(asked) == {
        "body": {
            "$.total": {"range": {"min": 1}},
            "$.jobs": {"$size": {"$gte": 1}},
            "$.id": {"$exists": True, "$type": "string"},
        }
    }
