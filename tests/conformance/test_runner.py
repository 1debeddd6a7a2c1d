"""Cases are found, run and reported as they are meant to be; the server here is a stand-in on loopback."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from .__main__ import main
from .cases import KNOWN_DEFECTS, Case, LoadError, load
from .runner import CaseResult, Runner, Verdict, connect, group_parallel

POST, GET = "POST", "GET"


class StandIn(ThreadingHTTPServer):
    """Remembers what it was asked, and answers just enough to run cases against."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.lock = threading.Lock()
        self.jobs = [{"id": "j"}]
        self.generous = False
        self.reset_status = 200
        self.both_here = threading.Barrier(2)

    def asked(self) -> list[str]:
        """List methods and paths in the order they came."""
        return [f"{method} {path}" for method, path, *_ in self.requests]


class Handler(BaseHTTPRequestHandler):
    """Answers for the stand-in."""

    server: StandIn

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Stay quiet."""

    def do(self) -> None:
        """Answer any request."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.server.lock:
            self.server.requests.append((self.command, self.path, headers, body))
        status, answer = self.answer(body)
        self.send_response(status)
        self.send_header("Content-Type", "application/openjobspec+json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_DELETE = do_ASSERT = do  # noqa: N815 - the names are the base class's

    def answer(self, body: bytes) -> tuple[int, bytes]:
        """Choose status and body."""
        if self.path == "/reset":
            return self.server.reset_status, b""
        if self.path == "/fetch":
            return 200, self.fetch()
        if self.path == "/meet":
            self.server.both_here.wait(5)
        if self.path == "/slow":
            time.sleep(0.05)
        if self.path == "/array":
            return 200, b"[1]"
        if self.path == "/echo":
            return 200, json.dumps({"text": body.decode(), "job": {"id": "j"}, "n": 2}).encode()
        return 200, b'{"ok":true}'

    def fetch(self) -> bytes:
        """Hand out each job once, unless generous."""
        with self.server.lock:
            jobs = list(self.server.jobs)
            if not self.server.generous:
                self.server.jobs.clear()
        return json.dumps({"jobs": jobs}).encode()


@pytest.fixture
def server() -> Iterator[StandIn]:
    """A stand-in that listens."""
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def step(action: str, path: str = "/", **more: Any) -> dict[str, Any]:
    """Write a step."""
    return {"action": action, "path": path, **more}


def write(directory: Path, *steps: dict[str, Any], name: str = "one", **more: Any) -> Path:
    """Write a case as a file; steps without an id are numbered."""
    numbered = [{"id": f"s{number}", **one} for number, one in enumerate(steps, 1)]
    case = {"test_id": f"T-{name}", "level": 0, "category": "cat", "name": name, "steps": numbered, **more}
    path = directory / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(case))
    return path


def read(path: Path) -> Case:
    """Load one case."""
    (case,) = load([path])
    return case


async def run(server: StandIn, path: Path, reset_url: str | None = None) -> CaseResult:
    """Run one case against the stand-in."""
    async with connect(server.url) as client:
        return await Runner(client, reset_url).run_case(read(path))


def failed(result: CaseResult) -> list[str]:
    """Name the steps and assertions that failed."""
    return [f"{one.step.id} {failure.assertion}" for one, failure in result.failures]


# --- loading ----------------------------------------------------------------------------------------------


def test_cases_are_keyed_by_path_and_sorted_by_id(tmp_path: Path) -> None:
    """Ids may repeat; files reached twice count once."""
    for name in ("suite/b/one", "suite/a/two", "suite/a/three"):
        write(tmp_path, name=name, test_id="T-2" if name.endswith("two") else "T-1")
    cases = load([tmp_path / "suite", tmp_path / "suite" / "a"])
    assert [case.key for case in cases] == ["suite/a/three.json", "suite/b/one.json", "suite/a/two.json"]


@pytest.mark.parametrize(("level", "number"), [(3, 3), ("ext", 99)])
def test_a_level_without_number_is_ext(tmp_path: Path, level: Any, number: int) -> None:
    """Extension cases say "ext"."""
    assert read(write(tmp_path, level=level)).level == number


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"test_id":"x","level":0,"category":"c","steps":[1]}'])
def test_a_file_that_is_no_case_is_named(tmp_path: Path, text: str) -> None:
    """The message says where it is."""
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(LoadError, match=r"broken\.json"):
        load([tmp_path])
    with pytest.raises(LoadError, match="no such"):
        load([tmp_path / "elsewhere"])


# --- requests ---------------------------------------------------------------------------------------------


async def test_templates_carry_answers_into_later_steps(server: StandIn, tmp_path: Path) -> None:
    """Path, body and assertions may refer to earlier steps."""
    answer = "{{steps.s1.response.body.job.id}}"
    path = write(
        tmp_path,
        step(POST, "/echo", body={"a": "é"}),
        step(GET, f"/jobs/{answer}/{{{{steps.s1.response.body.n}}}}"),
        step(
            POST,
            "/echo",
            body={"id": answer},
            assertions={"status": 200, "body": {"$.text": '{"id": "j"}', "$.job.id": answer}},
        ),
    )
    result = await run(server, path)
    assert failed(result) == []
    assert result.verdict is Verdict.PASSED
    assert server.asked() == ["POST /echo", "GET /jobs/j/2", "POST /echo"]
    assert server.requests[0][3] == '{"a": "é"}'.encode()


async def test_a_content_type_is_added_only_where_there_is_a_body(server: StandIn, tmp_path: Path) -> None:
    """And only when the step names none, in whatever case."""
    await run(
        server,
        write(
            tmp_path,
            step(POST, "/echo", body={}),
            step(POST, "/echo", body={}, headers={"content-TYPE": "text/plain"}),
            step(POST, "/echo"),
            step(GET, "/echo", headers={"Content-Type": "x/y"}),
            step(POST, "/echo", body=None),
        ),
    )
    types = [headers.get("content-type") for _, _, headers, _ in server.requests]
    assert types == ["application/openjobspec+json", "text/plain", None, "x/y", None]


async def test_a_raw_body_is_sent_as_it_stands(server: StandIn, tmp_path: Path) -> None:
    """Broken JSON reaches the server, templates and all."""
    raw = '{"broken": {{steps.s1.response.body.n}}'
    await run(server, write(tmp_path, step(POST, "/echo", raw_body=raw), step(POST, "/echo", raw_body=["x"])))
    assert [body for *_, body in server.requests] == [raw.encode(), b'["x"]']


async def test_a_failed_step_does_not_stop_later_ones(server: StandIn, tmp_path: Path) -> None:
    """Every failure is told."""
    path = write(
        tmp_path,
        step(GET, "/a", assertions={"status": 404, "body": {"$.ok": True, "$.id": "exists"}}),
        step(GET, "/b", assertions={"status": 500}),
        step(GET, "/array", assertions={"body": {"$.x": "y"}}),
    )
    result = await run(server, path)
    assert failed(result) == ["s1 status", "s1 body $.id", "s2 status"]
    assert result.verdict is Verdict.FAILED
    assert result.steps[2].findings.skipped == ["body $.x: the body is no JSON object"]


async def test_no_answer_is_a_failure_of_the_step(tmp_path: Path) -> None:
    """It does not stop the run."""
    server = StandIn()
    server.server_close()
    assert failed(await run(server, write(tmp_path, step(GET), step(GET)))) == ["s1 request", "s2 request"]


async def test_senseless_assertions_are_failures(server: StandIn, tmp_path: Path) -> None:
    """A case nobody can judge does not pass, nor does it stop the run."""
    result = await run(
        server, write(tmp_path, step(GET, assertions={"body": 7}), step("ASSERT", assertions={"equality": 1}))
    )
    assert failed(result) == ["s1 assertions", "s2 assertions"]


async def test_waiting_takes_its_time_and_sends_nothing(server: StandIn, tmp_path: Path) -> None:
    """`delay_ms` counts for every step, `duration_ms` for WAIT only."""
    started = time.monotonic()
    await run(server, write(tmp_path, step("WAIT", duration_ms=60), step("WAIT", delay_ms=60)))
    await run(server, write(tmp_path, step(GET, delay_ms=60, duration_ms=9000)))
    assert 0.18 <= time.monotonic() - started < 5
    assert server.asked() == ["GET /"]


async def test_a_setup_that_fails_leaves_the_steps_out(server: StandIn, tmp_path: Path) -> None:
    """Teardown runs all the same, and decides nothing."""
    good, bad = step(GET, "/good"), step(GET, "/bad", assertions={"status": 500})
    fine = write(tmp_path, step(GET, "/x"), setup={"steps": [good]}, teardown={"steps": [bad]})
    assert (await run(server, fine)).verdict is Verdict.PASSED
    broken = write(tmp_path, step(GET, "/x"), setup={"steps": [bad]}, teardown={"steps": [good]})
    assert (await run(server, broken)).verdict is Verdict.FAILED
    assert server.asked() == ["GET /good", "GET /x", "GET /bad", "GET /bad", "GET /good"]


# --- steps side by side -----------------------------------------------------------------------------------


def test_neighbours_form_a_group(tmp_path: Path) -> None:
    """Steps that carry or are named by parallel_with run with their neighbours of the same kind."""
    path = write(
        tmp_path,
        step(GET),
        step(GET, parallel_with="s3"),
        step(GET),
        step(GET),
        step(GET, parallel_with=["s6"]),
        step(GET),
    )
    groups = [[one.id for one in group] for group in group_parallel(read(path).steps)]
    assert groups == [["s1"], ["s2", "s3"], ["s4"], ["s5", "s6"]]


async def test_parallel_steps_are_under_way_at_once(server: StandIn, tmp_path: Path) -> None:
    """Each is answered only when the other has come, too."""
    here = {"status": 200, "body": {"$.ok": True}}
    path = write(
        tmp_path,
        step(GET, "/meet", parallel_with="s2", assertions=here),
        step(GET, "/meet", assertions=here),
    )
    assert failed(await run(server, path)) == []


def race(directory: Path) -> Path:
    """Write a case of two workers that want one job."""
    fetches = ["{{steps.s1.response.body.jobs}}", "{{steps.s2.response.body.jobs}}"]
    return write(
        directory,
        step(POST, "/fetch", parallel_with="s2"),
        step(POST, "/fetch", parallel_with="s1"),
        step("ASSERT", assertions={"exclusive_claim": {"job_id": "j", "fetches": fetches}}),
    )


async def test_an_exclusive_claim_is_checked(server: StandIn, tmp_path: Path) -> None:
    """A server that hands a job to two workers fails, and is never asked ASSERT."""
    assert failed(await run(server, race(tmp_path))) == []
    server.jobs, server.generous = [{"id": "j"}], True
    assert failed(await run(server, race(tmp_path))) == ["s3 exclusive_claim"]
    assert set(server.asked()) == {"POST /fetch"}


async def test_equal_answers_are_checked(server: StandIn, tmp_path: Path) -> None:
    """What two steps answered is compared as a whole."""
    equality = {"$.steps.s1.response.body": "{{steps.s2.response.body}}"}
    compare = step("ASSERT", assertions={"equality": equality})
    assert failed(await run(server, write(tmp_path, step(GET, "/a"), step(GET, "/b"), compare))) == []
    different = write(tmp_path, step(POST, "/fetch"), step(POST, "/fetch"), compare)
    assert failed(await run(server, different)) == ["s3 equality $.steps.s1.response.body"]


# --- whole runs -------------------------------------------------------------------------------------------


async def test_every_case_is_preceded_by_a_reset(server: StandIn, tmp_path: Path) -> None:
    """Bodyless; a refusal is one warning however many cases run."""
    write(tmp_path, step(GET, "/a"), name="a")
    write(tmp_path, step(GET, "/b"), name="b")
    async with connect(server.url) as client:
        runner = Runner(client, "/reset")
        await runner.run_all(load([tmp_path]))
        assert server.asked() == ["POST /reset", "GET /a", "POST /reset", "GET /b"]
        assert server.requests[0][3] == b""
        assert runner.warnings == []
        server.reset_status = 404
        await runner.run_all(load([tmp_path]))
        assert ["OJS_ENABLE_RESET=true" in warning for warning in runner.warnings] == [True]
        with pytest.raises(ValueError, match="side by side"):
            await runner.run_all([], jobs=2)


async def test_cases_can_run_side_by_side_without_resets(server: StandIn, tmp_path: Path) -> None:
    """Two cases that wait for each other both pass, and results keep the order of the cases."""
    for name in ("a", "b"):
        write(tmp_path, step(GET, "/meet", assertions={"body": {"$.ok": True}}), name=name)
    async with connect(server.url) as client:
        results = await asyncio.wait_for(Runner(client, None).run_all(load([tmp_path]), jobs=2), 10)
    assert [(result.case.name, result.verdict) for result in results] == [("a", "passed"), ("b", "passed")]


@pytest.mark.parametrize(
    ("assertions", "verdict"),
    [
        ({"$.job.errors[0].type": "x"}, Verdict.KNOWN_DEFECT),
        ({"$.job.errors[0].type": "x", "$.job.id": "x"}, Verdict.FAILED),
        ({"$.job.id": "j"}, Verdict.PASSED),
    ],
)
async def test_a_known_defect_excuses_only_itself(
    server: StandIn, tmp_path: Path, assertions: dict[str, Any], verdict: Verdict
) -> None:
    """Whatever else fails in that case is a failure."""
    (defect,) = KNOWN_DEFECTS
    path = write(
        tmp_path / defect.directory,
        step(POST, "/echo", assertions={"body": assertions}),
        test_id=defect.test_id,
    )
    assert (await run(server, path)).verdict is verdict
    elsewhere = write(tmp_path, step(POST, "/echo", assertions={"body": assertions}), test_id=defect.test_id)
    assert (await run(server, elsewhere)).verdict is not Verdict.KNOWN_DEFECT


# --- the command line -------------------------------------------------------------------------------------


def test_the_command_line_reports_and_exits(
    server: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failure is told with step, expected and actual, counted, and makes the exit status 1."""
    suite, out = tmp_path / "suite", tmp_path / "report.json"
    write(suite, step(GET, "/a", assertions={"status": 200}), name="good")
    write(suite, step(GET, "/b", assertions={"body": {"$.ok": "no"}}), name="bad", category="other")
    call = ["--url", server.url, "--reset-url", "/reset", "--json", str(out), str(suite)]
    assert main(call) == 1
    told = capsys.readouterr().out
    assert "FAILED T-bad suite/bad.json\n  s1 GET /b: body $.ok\n" in told
    assert '\n      expected "no"\n      actual   true\n' in told
    rows = [line.split() for line in told.splitlines()]
    assert ["0", "cat", "1", "0", "0", "1"] in rows
    assert ["0", "other", "0", "1", "0", "1"] in rows
    assert ["all", "1", "1", "0", "2"] in rows
    written = json.loads(out.read_text())
    assert written["summary"] == {"passed": 1, "failed": 1, "known defect": 0, "total": 2}
    assert written["cases"][0]["failures"] == [
        {"phase": "steps", "step": "s1", "assertion": "body $.ok", "expected": "no", "actual": True}
    ]
    assert main([*call, "--filter", "GOOD", "--verbose"]) == 0
    assert "s1 GET /a -> 200 in" in capsys.readouterr().out


def test_a_run_of_nothing_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No cases, no such place, no server, jobs beside resets: exit status 2."""
    gone = StandIn()
    gone.server_close()
    path = str(write(tmp_path, step(GET)))
    assert main(["--url", gone.url, path]) == 2
    nowhere = str(tmp_path / "nowhere")
    for call in (["--filter", "zzz", path], [nowhere], ["--jobs", "2", path], ["--jobs", "0", path]):
        with pytest.raises(SystemExit) as exit_info:
            main(call)
        assert exit_info.value.code == 2
    assert "no cases there that match 'zzz'" in capsys.readouterr().err
