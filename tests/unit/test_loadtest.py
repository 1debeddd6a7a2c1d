"""The benchmark's pure parts: arithmetic, response parsing, accounting, the table."""

import asyncio
import contextlib
import json
import math
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import __main__ as command
from loadtest import clients, cpu, generator, guard, plan, report, versus
from loadtest.generator import Load, LoadSpec, generate
from loadtest.ledger import Ledger
from loadtest.measure import Sample, accounting_problems
from loadtest.responses import BadResponse, Head, job_ids, parse_head, request
from loadtest.servers import BenchError
from loadtest.stats import median, paired_ratio, percentile, spread

NAN = math.nan
RESPONSE = b"HTTP/1.1 201 Created\r\nserver: granian\r\ncontent-length: 5\r\ndate: x\r\n\r\nhello"


# -- arithmetic ----------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.integers(1, 100))
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(values: list[float], percent: int) -> None:
    """At least `percent` % lie at or below it, and that holds for no smaller value of the sample."""
    ordered = sorted(values)
    found = percentile(ordered, percent)
    assert found in ordered
    assert 100 * sum(value <= found for value in ordered) >= percent * len(ordered)
    assert 100 * sum(value < found for value in ordered) < percent * len(ordered)


@pytest.mark.parametrize(("percent", "expected"), [(0, 1.0), (50, 50.0), (99, 99.0), (99.5, 100.0), (100, 100.0)])
def test_percentiles_of_one_to_a_hundred(percent: float, expected: float) -> None:
    """The textbook case."""
    assert percentile([float(n) for n in range(1, 101)], percent) == expected


def test_a_percentile_of_nothing_is_nan_and_of_nonsense_an_error() -> None:
    """No latency was recorded, or the percent is out of range."""
    assert math.isnan(percentile([], 50))
    with pytest.raises(ValueError, match="101"):
        percentile([1.0], 101)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1))
def test_the_median_ignores_nan(values: list[float]) -> None:
    """Rounds without a figure do not spoil the others."""
    assert median([NAN, *values, NAN]) == statistics.median(values)


def test_medians_and_spreads_of_nothing_are_nan() -> None:
    """Nothing measured, nothing claimed."""
    assert math.isnan(median([]))
    assert math.isnan(spread([NAN]))
    assert spread([90.0, 100.0, 120.0]) == pytest.approx(0.3)


def test_ratios_are_paired_by_round() -> None:
    """A machine that halves its speed in one round changes no ratio."""
    assert paired_ratio({1: 50.0, 2: 25.0, 3: 60.0}, {1: 100.0, 2: 50.0, 3: 100.0}) == 0.5
    assert paired_ratio({1: 50.0, 2: 80.0}, {2: 100.0}) == 0.8
    assert math.isnan(paired_ratio({1: 50.0}, {1: 0.0}))
    assert math.isnan(paired_ratio({1: 50.0}, {}))


# -- responses -----------------------------------------------------------------------------------


def test_a_response_is_read_once_its_head_is_complete() -> None:
    """Every shorter piece is incomplete; the body's place is known before it has come."""
    end_of_head = len(RESPONSE) - 5
    for cut in range(end_of_head):
        assert parse_head(RESPONSE[:cut]) is None
    for cut in range(end_of_head, len(RESPONSE) + 1):
        assert parse_head(RESPONSE[:cut]) == Head(201, end_of_head, len(RESPONSE))


@pytest.mark.parametrize("name", ["content-length: ", "Content-Length: ", "CONTENT-LENGTH:", "Content-length:\t"])
@pytest.mark.parametrize("after", ["", " "])
def test_the_length_is_found_however_it_is_written(name: str, after: str) -> None:
    """Header names know no case, and white space around the value is allowed."""
    head = f"HTTP/1.1 200 OK\r\n{name}12{after}\r\nx: y\r\n\r\n".encode()
    assert parse_head(head) == Head(200, len(head), len(head) + 12)


def test_a_length_in_the_body_is_not_the_length() -> None:
    """Only the head counts."""
    with pytest.raises(BadResponse, match="Content-Length"):
        parse_head(b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n\r\ncontent-length: 3\r\n")


def test_a_status_without_body_needs_no_length() -> None:
    """204 and 304."""
    assert parse_head(b"HTTP/1.1 204 No Content\r\n\r\n") == Head(204, 27, 27)


@pytest.mark.parametrize(
    "bad",
    [
        b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"x" * 70_000,
    ],
)
def test_what_is_not_understood_is_an_error(bad: bytes) -> None:
    """Rather than a figure that means nothing."""
    with pytest.raises(BadResponse):
        parse_head(bad)


def test_the_ids_of_all_fetched_jobs_are_found_in_order() -> None:
    """With and without white space, as servers differ."""
    assert job_ids(b'{"jobs":[]}') == []
    assert job_ids(b'{"jobs":[{"specversion":"1.0","id":"a-1","worker_id":"w"},{"id": "b-2"}]}') == [b"a-1", b"b-2"]


def test_the_measured_job_cannot_be_mistaken_for_an_id() -> None:
    """The bundled generator takes every member `id` of a fetch response for a job's."""
    assert job_ids(plan.job("bench")) == []
    assert json.loads(plan.batch("bench", 3)) == {"jobs": [json.loads(plan.job("bench"))] * 3}


def test_a_request_says_how_long_it_is() -> None:
    """In bytes."""
    made = request("POST", "127.0.0.1:1", "/x", "é".encode())
    head, _, body = made.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /x HTTP/1.1\r\nHost: 127.0.0.1:1\r\n")
    assert b"\r\nContent-Length: 2" in head
    assert body == "é".encode()


# -- clients and CPU -----------------------------------------------------------------------------


def test_the_figures_of_wrk_are_read_behind_its_own_text() -> None:
    """Answers that were not 2xx are no successes."""
    text = 'Running 3s test\n{"requests":100,"seconds":2.0,"p50_us":1500,"p99_us":9000,"status":3,"socket":1}\n'
    load = clients.read_wrk(text, 0.25)
    assert (load.requests, load.failures, load.seconds, load.cpu_s) == (97, 4, 2.0, 0.25)
    assert (load.p50_ms, load.p99_ms) == (1.5, 9.0)
    assert "3 answers not 2xx" in load.first_failure
    with pytest.raises(BenchError, match="unable to connect"):
        clients.read_wrk("unable to connect to 127.0.0.1:1 Connection refused\n", 0.0)


def test_a_process_name_with_parentheses_does_not_shift_the_fields() -> None:
    """The name in /proc/PID/stat is whatever the process wants."""
    fields = "S 42 " + " ".join(str(n) for n in range(9)) + " 150 50 0 0"
    assert cpu.parse_stat(f"7 (a) b (c) {fields}") == ("a) b (c", 42, 200 / cpu._TICKS_PER_S)


def test_idle_time_is_not_busy_and_stolen_time_is() -> None:
    """Of /proc/stat's first line; guest time is part of user."""
    text = "cpu  1 2 4 1000 1000 8 16 32 5 5\ncpu0 9 9 9 9 9 9 9 9 9 9\n"
    assert cpu.parse_machine(text) == 63 / cpu._TICKS_PER_S


# -- accounting ----------------------------------------------------------------------------------


def work(fetched: int, acked: int, duplicates: int = 0, *, is_drained: bool = False) -> Load:
    """Return the outcome of a fetch + ack run."""
    return Load(9, 0, "", 1.0, 0.1, 1.0, 2.0, fetched, acked, duplicates, is_drained)


def test_sums_that_agree_are_no_problem() -> None:
    """Whether or not time ran out before the jobs did."""
    assert accounting_problems(work(50, 50), enqueued=100) == []
    assert accounting_problems(work(100, 100, is_drained=True), enqueued=100) == []


@pytest.mark.parametrize(
    ("load", "word"),
    [
        (work(50, 49), "49 acknowledged"),
        (work(50, 50, 1), "more than once"),
        (work(99, 99, is_drained=True), "99 of 100"),
    ],
)
def test_sums_that_disagree_are_named(load: Load, word: str) -> None:
    """A job lost, handed out twice, or never acknowledged."""
    (problem,) = accounting_problems(load, enqueued=100)
    assert word in problem


# -- the bundled generator -----------------------------------------------------------------------


class Answers:
    """A stand-in server: hands out jobs until none is left, keeps what was acknowledged, cuts every answer in two."""

    def __init__(self, jobs: int, *, refused: bytes = b"") -> None:
        self._left = jobs
        self._refused = refused
        self.acked: list[str] = []
        self.connections: list[asyncio.Task[None]] = []

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one more connection."""
        self.connections.append(asyncio.create_task(self.serve(reader, writer)))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = json.loads(await reader.readexactly(int(head.rpartition(b"Content-Length: ")[2])))
                await self._answer(writer, head.split()[1], body)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    def _jobs(self, count: int) -> list[str]:
        count = min(self._left, count)
        self._left -= count
        return [f"job-{self._left + count - n}" for n in range(count)]

    async def _answer(self, writer: asyncio.StreamWriter, path: bytes, body: dict[str, str | int]) -> None:
        status, answer = 200, b"{}"
        if path.endswith(b"/fetch"):
            answer = json.dumps({"jobs": [{"id": one} for one in self._jobs(int(body["count"]))]}).encode()
        elif path.endswith(b"/jobs"):
            status = 201
        elif str(body["job_id"]).encode() == self._refused:
            status = 409
        else:
            self.acked.append(str(body["job_id"]))
        whole = b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%s" % (status, len(answer), answer)
        for part in (whole[:30], whole[30:]):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)


async def run_workers(answers: Answers, ackers: int, seconds: float = 20) -> Load:
    """Run three workers that fetch 7 at a time until the stand-in has nothing left."""
    server = await asyncio.start_server(answers.accept, "127.0.0.1", 0)
    async with server:
        port: int = server.sockets[0].getsockname()[1]
        load = await generate(LoadSpec("work", port, 3, seconds, queue="q", fetch=7, ackers=ackers))
        await asyncio.gather(*answers.connections)
    return load


@pytest.mark.parametrize("ackers", [0, 1, 10])
async def test_workers_fetch_and_acknowledge_every_job_once(ackers: int) -> None:
    """Over one connection each or over several."""
    answers = Answers(100)
    load = await run_workers(answers, ackers)
    assert sorted(answers.acked) == sorted(f"job-{n}" for n in range(1, 101))
    assert (load.fetched, load.acked, load.duplicates, load.failures) == (100, 100, 0, 0)
    assert load.is_drained
    assert load.ack_call is not None
    assert load.ack_call.calls == 100


@pytest.mark.parametrize("ackers", [0, 10])
async def test_a_refused_acknowledgement_is_counted(ackers: int) -> None:
    """And the worker goes on."""
    load = await run_workers(Answers(100, refused=b"job-42"), ackers)
    assert (load.fetched, load.acked, load.failures) == (100, 99, 1)
    assert "status 409" in load.first_failure


@pytest.mark.parametrize("ackers", [0, 10])
async def test_what_is_held_when_the_time_is_up_is_acknowledged(ackers: int) -> None:
    """So that fetched and acknowledged agree in a run that was cut short."""
    load = await run_workers(Answers(10**9), ackers, seconds=0.1)
    assert load.fetched == load.acked > 0
    assert not load.is_drained


class Queue(Answers):
    """A stand-in that hands out what was enqueued, and tells how much waited at most."""

    def __init__(self) -> None:
        super().__init__(0)
        self._waiting: list[str] = []
        self.enqueued = self.deepest = 0

    async def _answer(self, writer: asyncio.StreamWriter, path: bytes, body: dict[str, str | int]) -> None:
        if path.endswith(b"/jobs"):
            self.enqueued += 1
            self._waiting.append(f"job-{self.enqueued}")
            self.deepest = max(self.deepest, self.enqueued - len(self.acked))
        await super()._answer(writer, path, body)

    def _jobs(self, count: int) -> list[str]:
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken


async def test_producers_and_workers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is enqueued is completed, also when the time is up, and producers do not run ahead."""
    monkeypatch.setattr(generator, "BACKLOG", 5)
    queue = Queue()
    server = await asyncio.start_server(queue.accept, "127.0.0.1", 0)
    async with server:
        port: int = server.sockets[0].getsockname()[1]
        load = await generate(LoadSpec("flow", port, 3, 0.3, path="/ojs/v1/jobs", body="{}", queue="q"))
        await asyncio.gather(*queue.connections)
    assert load.enqueued == queue.enqueued == len(set(queue.acked)) == load.acked > 10
    assert (load.fetched, load.duplicates, load.failures) == (load.acked, 0, 0)
    assert queue.deepest <= 5 + 3  # each of three producers may have looked before the others were answered


# -- report --------------------------------------------------------------------------------------


def samples() -> list[Sample]:
    """Return two rounds of a few rows."""
    return [
        Sample("echo-64", 1, 20_000.0, 2.0, 4.0, 30.0, 0.0, 0.4, 0.0),
        Sample("enqueue-64", 1, 10_000.0, 5.0, 9.0, 60.0, 40.0, 0.2, 0.5),
        Sample("echo-64", 2, 10_000.0, 4.0, 8.0, 30.0, 0.0, 0.4, 0.0),
        Sample("enqueue-64", 2, 4_000.0, 9.0, 19.0, 60.0, 40.0, 0.2, 0.0),
        Sample("echo-workers", 1, 20_000.0),
        Sample("ceiling-own-64", 1, 30_000.0),
        Sample("ceiling-own-256", 1, 40_000.0),
        Sample("batch-100", 1, 20_000.0, 7.0, 8.0),
        Sample("fetch-10", 1, 12_000.0, 1.0, 2.0),
        Sample("fetch-10-call", 1, 800.0, 3.5, 4.5),
    ]


def test_lines_stand_in_the_order_of_the_plan_with_medians_and_ratios() -> None:
    """Ratios are the median over the rounds; batches are compared with the best ceiling row."""
    found = {line.row.key: line for line in report.lines(samples())}
    order = [row.key for row in plan.ROWS if row.key in found]
    assert list(found) == order
    assert found["enqueue-64"].rate == 7_000
    assert found["enqueue-64"].ratio == pytest.approx(0.45)
    assert found["enqueue-64"].foreign_cores == 0.5
    assert found["batch-100"].ratio == 0.5
    assert found["fetch-10"].ratio == 0.6
    assert math.isnan(found["echo-64"].ratio)


def test_the_table_is_aligned_and_shows_no_nan() -> None:
    """What has no value is blank."""
    text = report.table(report.lines(samples()))
    assert "nan" not in text
    rows = {line.split("  ")[0].strip(): line for line in text.splitlines()}
    assert rows["enqueue, 64 connections"].split()[3:9] == ["7,000", "req/s", "7.00", "14.00", "0.450", "echo-64"]
    assert "0.500  raw" in rows["batch of 100, 4 connections"]
    part = next(line for line in text.splitlines() if line.startswith("  its fetch calls"))
    assert part.split() == ["its", "fetch", "calls", "3.50", "4.50"]


def test_targets_say_met_missed_or_not_measured() -> None:
    """A figure that was not taken is neither met nor missed."""
    results = {one["target"]: one for one in report.targets(report.lines(samples()))}
    assert [one["met"] for one in results.values()] == [False, False, None, True, *[None] * 9]
    text = report.target_text(list(results.values()))
    assert text.count(" met") == 1
    assert text.count("NOT MET") == 2
    assert text.count("not measured") == 10


def test_an_upper_bound_is_met_from_below() -> None:
    """Latencies are to be small."""
    target = plan.Target("x", "p99_ms", 10.0, "", at_least=False)
    assert target.is_met(10.0)
    assert not target.is_met(10.1)
    assert not target.is_met(NAN)


def test_disturbed_samples_are_named() -> None:
    """With the round and how much of the machine was gone."""
    assert report.busy_rows(samples()) == ["enqueue-64 (round 1: 0.50 cores)"]


def test_the_json_has_every_sample_and_no_nan() -> None:
    """Strict JSON, so that any reader takes it."""
    whole = json.loads(json.dumps(report.as_json(report.lines(samples()), samples()), allow_nan=False))
    row = next(row for row in whole["rows"] if row["key"] == "enqueue-64")
    assert [sample["rate"] for sample in row["samples"]] == [10_000, 4_000]
    assert next(row for row in whole["rows"] if row["key"] == "echo-64")["ratio"] is None
    assert len(whole["targets"]) == len(plan.TARGETS)


# -- plan and command line -----------------------------------------------------------------------


def test_every_baseline_and_target_names_a_row() -> None:
    """And every row's group is one that can be run."""
    keys = {row.key for row in plan.ROWS}
    assert len(keys) == len(plan.ROWS)
    assert {row.baseline for row in plan.ROWS} <= keys | {"", plan.CEILING}
    assert {target.row for target in plan.TARGETS} <= keys
    assert {row.group for row in plan.ROWS} == set(plan.GROUPS)


def test_a_group_brings_its_baseline_along() -> None:
    """A ratio needs both sides; baselines alone stay alone."""
    assert plan.with_baselines(["batch"]) == ["ceiling", "batch"]
    assert plan.with_baselines(["enqueue"]) == ["enqueue", "echo"]
    assert plan.with_baselines(["echo"]) == ["echo"]
    assert plan.with_baselines(list(plan.GROUPS)) == list(plan.GROUPS)


@pytest.mark.parametrize(
    "arguments",
    [["--only", "nothing"], ["--only", ","], ["--rounds", "0"], ["--seconds", "-1"], ["--seconds", "nan"], ["extra"]],
)
def test_wrong_arguments_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """And the message names the argument."""
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_the_help_names_every_group(capsys: pytest.CaptureFixture[str]) -> None:
    """A reader of the help can choose what to run."""
    with pytest.raises(SystemExit) as stopped:
        command.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(f"\n  {group}" in text for group in plan.GROUPS)


# -- the ledger of Locust's scenarios ------------------------------------------------------------


def test_a_ledger_that_agrees_has_no_complaints() -> None:
    """Also when an enqueue without an answer was carried out after all."""
    ledger = Ledger()
    ledger.went_in(["a", "b"], 2)
    ledger.went_in([], 3)
    open_before = ledger.is_open
    for job_id in ("a", "b", "c"):
        ledger.came_out(job_id)
    assert (open_before, ledger.is_open) == (True, False)
    assert ledger.complaints() == []
    assert ledger.summary() == "2 jobs accepted, 3 unsure, 0 fetched, 3 acknowledged"


def test_a_ledger_tells_what_is_lost_doubled_or_stuck() -> None:
    """Each with an id to look for."""
    ledger = Ledger()
    ledger.went_in(["a", "b"], 2)
    ledger.came_out("b")
    ledger.came_out("b")
    ledger.workflows.add("w")
    assert ledger.is_open
    lost, doubled, stuck = ledger.complaints()
    assert ("1 jobs" in lost, lost.endswith(" a")) == (True, True)
    assert ("1 jobs" in doubled, doubled.endswith(" b")) == (True, True)
    assert ("1 workflows" in stuck, stuck.endswith(" w")) == (True, True)


# -- against what was, and against others --------------------------------------------------------


def _lines(rates: dict[str, float], p50_ms: float = 1.0) -> list[report.Line]:
    return report.lines([Sample(row, 1, rate, p50_ms, 2 * p50_ms) for row, rate in rates.items()])


def test_a_ratio_that_fell_by_more_than_a_fifth_is_told(tmp_path: Path) -> None:
    """Ratios are compared, not rates: a machine of half the speed is no drop."""
    guard.write(
        tmp_path / "ratios.json", _lines({"echo-64": 20_000, "enqueue-64": 12_000, "echo-1": 4000, "enqueue-1": 2000})
    )
    committed = guard.read(tmp_path / "ratios.json")
    assert committed == {"enqueue-64": 0.6, "enqueue-1": 0.5}
    assert (
        guard.drops(committed, _lines({"echo-64": 10_000, "enqueue-64": 6_000, "echo-1": 4000, "enqueue-1": 1640}))
        == []
    )
    [drop] = guard.drops(committed, _lines({"echo-64": 20_000, "enqueue-64": 9_000}))
    assert "enqueue-64" in drop
    assert "-25%" in drop


def test_ratios_that_are_none_are_refused(tmp_path: Path) -> None:
    """The file is edited by people, too."""
    (tmp_path / "ratios.json").write_text('{"enqueue-64": "fast"}', encoding="utf-8")
    with pytest.raises(ValueError, match="ratios"):
        guard.read(tmp_path / "ratios.json")


def test_ours_by_theirs() -> None:
    """Rows that both have, without the parts of a row."""
    ours = _lines({"enqueue-64": 12_000, "fetch-1": 3000, "fetch-1-ack": 5000, "ceiling-own-64": 9}, 2.0)
    text = versus.table(ours, _lines({"enqueue-64": 4000, "fetch-1": 6000, "fetch-1-ack": 1}, 4.0))
    figures = [line.split()[-5:] for line in text.splitlines()[1:]]
    assert figures == [["12,000", "4,000", "3.00", "0.50", "0.50"], ["3,000", "6,000", "0.50", "0.50", "0.50"]]


@pytest.mark.parametrize(
    "url", ["http://example.com:80", "https://127.0.0.1:1", "127.0.0.1:8080", "http://localhost:1/x"]
)
def test_only_servers_on_this_machine_are_measured(url: str) -> None:
    """Load goes to loopback only."""
    with pytest.raises(ValueError, match="expected http://"):
        versus.port_of(url)
    assert versus.port_of("http://127.0.0.1:8081/") == 8081
