"""Every command that asks a server: what it does, its table, its JSON, its errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ojs_fast.cli import checkout
from tests.cli.command import COMMAND, Cli
from tests.support.api import Api, unique_queue
from tests.support.certificates import self_signed
from tests.support.processes import free_port, poll
from tests.support.relay import Relay
from tests.support.server import Server

BIG = "123456789012345678901234567890"


def table(text: str) -> list[dict[str, str]]:
    """Read a table back, by the places of its headers."""
    header, *lines = text.splitlines()
    words = header.split("  ")
    names = [word.strip() for word in words if word.strip()]
    starts = [header.index(name) for name in names]
    ends: list[int | None] = [*starts[1:], None]
    return [
        {name: line[start:end].strip() for name, start, end in zip(names, starts, ends, strict=True)} for line in lines
    ]


# -- enqueue -------------------------------------------------------------------------------------


def test_enqueue_sends_what_was_given_to_the_digit(cli: Cli, api: Api) -> None:
    """Arguments are JSON, options land where they belong, and numbers keep their digits both ways."""
    queue = unique_queue()
    job = cli.one(
        "enqueue", "a.b", '"x"', '{"n": 1.50}', BIG, "--queue", queue, "--priority", "7", "--delay", "10m",
        "--max-attempts", "5", "--meta", "k=v", "--meta", "n=1", "--tag", "t", "--option", "timeout_ms=5000",
    )  # fmt: skip
    stored = api.get(job["id"])
    assert (stored["queue"], stored["priority"], stored["state"]) == (queue, 7, "scheduled")
    assert (stored["max_attempts"], stored["tags"]) == (5, ["t"])
    assert stored["meta"] == {"k": "v", "n": 1}
    assert f'["x",{{"n":1.50}},{BIG}]' in cli.text("job", "show", job["id"], "--json")
    assert BIG in cli.text("job", "show", job["id"])
    assert "is available in queue" in cli.text("enqueue", "a.b", "--queue", queue)


def test_enqueue_once_and_unique(cli: Cli) -> None:
    """The same Idempotency-Key makes one job; --unique refuses or finds the other."""
    queue = unique_queue()
    words = ("enqueue", "a.b", "--queue", queue, "--idempotency-key", queue)
    assert cli.one(*words)["id"] == cli.one(*words)["id"]
    unique = ("enqueue", queue.replace("-", "") + ".u", "--queue", queue, "--unique", "type", "--unique-period", "PT1H")
    first = cli.one(*unique)
    assert "duplicate" in cli.fails(*unique)
    assert "was there already" in cli.text(*unique, "--on-conflict", "ignore")
    assert cli.one(*unique, "--on-conflict", "ignore")["id"] == first["id"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("enqueue",), "Missing argument 'TYPE'"),
        (("enqueue", "a.b", "text"), "a text needs double quotes"),
        (("enqueue", "a.b", "NaN"), "not JSON"),
        (("enqueue", "a.b", "--delay", "1h", "--at", "2030-01-01T00:00:00Z"), "exclude each other"),
        (("enqueue", "a.b", "--on-conflict", "ignore"), "need --unique"),
        (("enqueue", "a.b", "--priority", "101"), "-100<=x<=100"),
        (("enqueue", "a.b", "--meta", "k"), "not NAME=VALUE"),
        (("enqueue", "a.b", "--file", "-"), "goes with neither"),
        (("enqueue", "--file", "nowhere.ndjson"), "cannot be read"),
        (("fetch", "q", "--ack", "--requeue"), "exclude each other"),
        (("fetch", "q", "--result", "1"), "needs --ack"),
        (("dead-letter", "retry"), "--all"),
        (("events", "--job", "x"), "needs --follow"),
        (("queues", "purge", "q"), "say --yes"),
        (("queues", "list", "--url", "ftp://x"), "expected http://"),
        (("queues", "list", "--ca", "nowhere.pem"), "expected a PEM file"),
        (("nothing",), "No such command"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_asked(words: tuple[str, ...], said: str) -> None:
    """Exit code 2, and a sentence."""
    assert said in Cli(OJS_URL="http://127.0.0.1:9").fails(*words, code=2)


def lines_of(queue: str, count: int) -> str:
    """Make a file of jobs."""
    return "".join(f'{{"type":"a.b","args":[{n}],"options":{{"queue":"{queue}"}}}}\n' for n in range(count))


def test_a_file_of_jobs_is_enqueued_in_batches(cli: Cli, api: Api, tmp_path: Path) -> None:
    """From a file and from standard input; empty lines do not count."""
    queue = unique_queue()
    file = tmp_path / "jobs.ndjson"
    file.write_text("\n" + lines_of(queue, 250) + "\n")
    done = cli.run("enqueue", "--file", str(file), "--batch-size", "100")
    assert "250 jobs are enqueued" in done.stdout
    assert "Enqueueing" in done.stderr
    assert len(cli.json("enqueue", "--file", "-", stdin=lines_of(queue, 3))) == 3
    assert api.call("GET", f"/queues/{queue}/stats")["stats"]["available"] == 253
    assert [job["args"] for job in api.fetch(queue, count=3)] == [[0], [1], [2]]


@pytest.mark.parametrize("bad", ['{"type":"No Type","args":[]}', "{", "[]"])
def test_a_bad_line_is_named_and_the_rest_can_go_on(cli: Cli, api: Api, tmp_path: Path, bad: str) -> None:
    """Whole batches before the bad line are there; --skip goes on behind them."""
    queue = unique_queue()
    file = tmp_path / "jobs.ndjson"
    file.write_text(lines_of(queue, 15) + bad + "\n" + lines_of(queue, 2))
    said = cli.fails("enqueue", "--file", str(file), "--batch-size", "10")
    assert "line 16" in said
    there = 10 if "type" in bad else 15
    assert f"{there} jobs were enqueued before; go on behind them with --skip {there}" in said
    assert api.call("GET", f"/queues/{queue}/stats")["stats"]["available"] == there


class LosesFirstAnswer(Relay):
    """Breaks the connection instead of handing over the server's first answer."""

    has_lost = False

    def _see(self, data: bytes, *, is_sent: bool) -> bytes:
        if not is_sent and not self.has_lost:
            self.has_lost = True
            self.cut()
        return b""


async def test_a_batch_whose_answer_was_lost_is_sent_again_and_made_once(server: Server, api: Api) -> None:
    """The connection breaks under the first batch; the command repeats it with the same key."""
    queue = unique_queue()
    async with LosesFirstAnswer(server.port) as relay:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "enqueue", "--file", "-",
            env=Cli(OJS_URL=f"http://127.0.0.1:{relay.port}").env, stdin=subprocess.PIPE,
        )  # fmt: skip
        await process.communicate(lines_of(queue, 5).encode())
        assert process.returncode == 0
        assert relay.has_lost
    assert api.call("GET", f"/queues/{queue}/stats")["stats"]["available"] == 5


# -- fetch, job ----------------------------------------------------------------------------------


def test_fetch_settles_as_told(cli: Cli, api: Api) -> None:
    """Left active, given back, failed, discarded, completed."""
    queue = unique_queue()
    job_id = api.enqueue(queue)["id"]
    assert table(cli.text("fetch", queue, "--requeue"))[0]["STATE"] == "available"
    assert cli.one("fetch", queue, "--nack", "broken", "--no-retry")["state"] == "discarded"
    assert "broken" in cli.text("job", "show", job_id)
    api.enqueue(queue, retry={"initial_interval": "PT1H", "max_interval": "PT1H"})
    assert cli.one("fetch", queue, "--nack", "broken")["state"] == "retryable"
    ids = [api.enqueue(queue)["id"] for _ in range(2)]
    done = cli.json("fetch", queue, "--count", "2", "--ack", "--result", '{"by": "hand"}')
    assert [job["id"] for job in done] == ids
    assert api.get(ids[0])["result"] == {"by": "hand"}
    api.enqueue(queue)
    left = cli.run("fetch", queue, "--worker-id", "me", "--visibility", "60000")
    assert table(left.stdout)[0]["STATE"] == "active"
    assert "active at worker me" in left.stderr
    assert "Nothing found" in cli.run("fetch", queue).stderr


def test_job_commands(cli: Cli, api: Api) -> None:
    """show, list, priority, cancel, activate, retry; several ids at once."""
    queue = unique_queue()
    first, second = (api.enqueue(queue, kind="list.me")["id"] for _ in range(2))
    assert [row["ID"] for row in table(cli.text("job", "list", "--queue", queue))] == [second, first]
    oldest = cli.json("job", "list", "--queue", queue, "--type", "list.*", "--state", "available", "--order", "asc")
    assert [job["id"] for job in oldest] == [first, second]
    assert len(cli.json("job", "list", "--queue", queue, "--limit", "1")) == 1
    assert cli.json("job", "list", "--queue", queue, "--until", "1h") == []
    assert "has priority 9" in cli.text("job", "priority", first, "--to", "9")
    assert cli.one("job", "priority", second, "--to", "-9")["priority"] == -9
    assert [job["priority"] for job in cli.json("job", "show", first, second)] == [9, -9]
    both = cli.run("job", "cancel", first, "nobody", second, code=1)
    assert both.stdout.count("cancelled") == 2
    assert "not found" in both.stderr
    assert "Hint:" in both.stderr
    pending = api.enqueue(queue, pending=True)["id"]
    assert cli.one("job", "activate", pending)["state"] == "available"
    api.nack(api.fetch(queue)[0]["id"], retryable=False)
    assert cli.one("job", "retry", pending)["state"] == "available"


def test_lists_go_over_pages(cli: Cli, api: Api) -> None:
    """--limit 0 is everything, beyond a page of the server."""
    queue = unique_queue()
    api.enqueue_batch([{"type": "a.b", "args": [], "options": {"queue": queue}}] * 230)
    listed = cli.json("job", "list", "--queue", queue, "--limit", "0")
    assert len({job["id"] for job in listed}) == 230
    assert len(cli.json("job", "list", "--queue", queue, "--limit", "120")) == 120


# -- queues, cron, workflows, dead letters -------------------------------------------------------


def test_queue_commands(cli: Cli, api: Api) -> None:
    """create, config, list, show, stats, pause, resume, purge, delete."""
    queue = unique_queue()
    assert "is created" in cli.text("queues", "create", queue, "max_size=10")
    assert cli.one("queues", "config", queue)["max_size"] == 10
    assert 'retention  {"completed":"P7D"}' in cli.text("queues", "config", queue, 'retention={"completed": "P7D"}')
    api.enqueue(queue)
    [row] = [row for row in table(cli.text("queues", "list")) if row["NAME"] == queue]
    assert (row["AVAILABLE"], row["PAUSED"]) == ("1", "no")
    assert queue in [one["name"] for one in cli.json("queues", "list")]
    assert "is paused" in cli.text("queues", "pause", queue)
    assert cli.one("queues", "show", queue)["paused"] is True
    assert "Paused         yes" in cli.text("queues", "show", queue)
    assert "is resumed" in cli.text("queues", "resume", queue)
    assert cli.one("queues", "stats", queue)["available"] == 1
    assert "Available" in cli.text("queues", "stats", queue)
    assert cli.one("queues", "stats")["queues"] >= 1
    assert "1 jobs" in cli.text("queues", "purge", queue, "--state", "available", "--older-than", "0s", "--yes")
    assert "Unsupported" not in cli.text("queues", "purge", queue, "--state", "cancelled", "--yes")
    assert "is deleted" in cli.text("queues", "delete", queue, "--yes")
    assert "not_found" in cli.fails("queues", "show", queue)
    assert "'max_size'" in cli.fails("queues", "config", queue, "max_size=-1")


def test_cron_commands(cli: Cli) -> None:
    """add, list, show, pause, resume, delete."""
    name = unique_queue("cron")
    added = cli.one(
        "cron", "add", name, "0 9 * * MON-FRI", "a.b", "1", "--queue", "q", "--timezone", "Europe/Berlin",
        "--overlap", "allow", "--description", "Every morning", "--option", "priority=3",
    )  # fmt: skip
    assert added["job_template"]["options"] == {"queue": "q", "priority": 3}
    [row] = [row for row in table(cli.text("cron", "list", "--limit", "0")) if row["NAME"] == name]
    assert (row["EXPRESSION"], row["STATUS"], row["TYPE"]) == ("0 9 * * MON-FRI", "active", "a.b")
    assert cli.one("cron", "pause", name)["enabled"] is False
    assert "disabled" in cli.text("cron", "show", name)
    assert "runs next at" in cli.text("cron", "resume", name)
    assert "is deleted" in cli.text("cron", "delete", name, "--yes")
    assert "not_found" in cli.fails("cron", "show", name)
    assert "'expression'" in cli.fails("cron", "add", name, "soon", "a.b")
    assert "registered, paused" in cli.text("cron", "add", name, "@daily", "a.b", "--paused")
    cli.run("cron", "delete", name, "-y")


def test_workflow_commands(cli: Cli, api: Api, tmp_path: Path) -> None:
    """Create from a file and standard input, list, show, cancel, retry."""
    queue = unique_queue()
    step = {"type": "a.b", "args": [], "options": {"queue": queue, "retry": {"max_attempts": 1}}}
    text = json.dumps({"type": "chain", "name": queue, "steps": [step, step]})
    file = tmp_path / "w.json"
    file.write_text(text)
    first = cli.one("workflows", "create", str(file))["id"]
    second = cli.one("workflows", "create", "-", stdin=text)["id"]
    assert {first, second} <= {row["ID"] for row in table(cli.text("workflows", "list", "--limit", "0"))}
    assert "cancelled" in cli.text("workflows", "cancel", second)
    shown = cli.text("workflows", "show", first)
    assert "STEP" in shown
    assert queue in shown
    api.nack(api.fetch(queue)[0]["id"])
    poll(lambda: cli.one("workflows", "show", first)["state"] == "failed", what="the workflow fails")
    assert first in [one["id"] for one in cli.json("workflows", "list", "--state", "failed", "--type", "chain")]
    assert "is running" in cli.text("workflows", "retry", first)
    file.write_text("[]")
    assert "no JSON object" in cli.fails("workflows", "create", str(file), code=2)


def test_dead_letter_commands(cli: Cli, api: Api) -> None:
    """list, show, stats, retry, delete, purge."""
    queue = unique_queue()
    ids = [
        api.enqueue(queue, retry={"max_attempts": 1, "on_exhaustion": "dead_letter"}, args=(n,))["id"] for n in range(5)
    ]
    for job in api.fetch(queue, count=5):
        api.nack(job["id"], "it broke")
    rows = table(cli.text("dead-letter", "list", "--queue", queue))
    assert {row["ID"] for row in rows} == set(ids)
    assert {row["ERROR"] for row in rows} == {"it broke"}
    for option, other in (("--type", "other.*"), ("--error-type", "Other"), ("--older-than", "1d")):
        assert cli.json("dead-letter", "list", "--queue", queue, option, other) == []
    assert len(cli.json("dead-letter", "list", "--queue", queue, "--type", "test.*", "--limit", "3")) == 3
    assert cli.one("dead-letter", "show", ids[0])["errors"][0]["message"] == "it broke"
    assert cli.one("dead-letter", "stats")["by_queue"][queue] == 5
    assert "is available" in cli.text("dead-letter", "retry", ids[0])
    assert "is removed" in cli.text("dead-letter", "delete", ids[1], "--yes")
    assert "3 of 3" in cli.text("dead-letter", "retry", "--all", "--queue", queue, "--yes")
    for job in api.fetch(queue, count=5):
        api.nack(job["id"], "again")
    assert "4 of 4" in cli.text("dead-letter", "purge", "--queue", queue, "--yes")
    assert cli.json("dead-letter", "list", "--queue", queue) == []


# -- events --------------------------------------------------------------------------------------


def test_events_are_listed_and_go_on_behind_a_cursor(cli: Cli, api: Api) -> None:
    """By queue and type, in pages."""
    queue = unique_queue()
    ids = [api.enqueue(queue)["id"] for _ in range(3)]
    shown = cli.run("events", "--queue", queue, "--type", "job.enqueued", "--limit", "2")
    assert [ids[0] in line or ids[1] in line for line in shown.stdout.splitlines()] == [True, True]
    cursor = shown.stderr.split("--after ")[1].strip()
    assert len(cli.json("events", "--queue", queue, "--after", cursor)) == 1


@contextlib.contextmanager
def follow(cli: Cli, tmp_path: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run `events --follow`; its output lands in a file."""
    file = tmp_path / "events"
    command = [*COMMAND, "events", "--follow", "--json", *words]
    env = {**cli.env, "PYTHONUNBUFFERED": "1"}
    with (
        file.open("wb") as output,
        subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.DEVNULL) as process,
    ):
        try:
            yield process, file
        finally:
            process.kill()


def followed(file: Path) -> list[Any]:
    """Give the events that were printed so far."""
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]


def test_following_survives_a_restart_of_the_server(fresh_server: Any, tmp_path: Path) -> None:
    """Events of before and behind the restart come, each once; Ctrl-C ends it."""
    server = fresh_server()
    assert "not_found" in Cli(OJS_URL=server.url).fails("events", "--follow", "--queue", "q")
    with Api(server.url) as api:
        api.call("POST", "/queues", {"name": "q"})
        wanted = ("--queue", "q", "--type", "job.state_changed")
        with follow(Cli(OJS_URL=server.url), tmp_path, *wanted) as (process, file):
            made: list[str] = []

            def heard() -> bool:
                if not (seen := {event["data"]["job_id"] for event in followed(file)}):
                    made.append(api.enqueue("q")["id"])
                return bool(seen)

            poll(heard, what="the command listens")
            server.restart()
            made += [api.enqueue("q")["id"] for _ in range(3)]
            poll(lambda: set(made[-3:]) <= {event["data"]["job_id"] for event in followed(file)}, what="events go on")
            process.send_signal(signal.SIGINT)
            process.wait(30)
    ids = [event["id"] for event in followed(file)]
    assert len(ids) == len(set(ids))


def test_following_a_job_ends_with_it(cli: Cli, api: Api, tmp_path: Path) -> None:
    """Until it has ended."""
    queue = unique_queue()
    job_id = api.enqueue(queue)["id"]
    with follow(cli, tmp_path, "--job", job_id) as (process, file):
        api.ack(api.fetch(queue)[0]["id"])
        assert process.wait(30) == 0
    assert followed(file)[-1]["data"]["to"] == "completed"


# -- the server that is not there, or says no ----------------------------------------------------


def test_no_server_says_what_to_do_next() -> None:
    """Exit code 1 and the address."""
    url = f"http://127.0.0.1:{free_port()}"
    said = Cli(OJS_URL=url).fails("queues", "list")
    assert url in said
    assert "ojs-fast serve" in said


def test_keys_are_shown_and_missed(fresh_server: Any) -> None:
    """--api-key and OJS_API_KEY; without one the hint says where it comes from."""
    server = fresh_server(env={"OJS_API_KEY": "secret"})
    assert "OJS_API_KEY" in Cli(OJS_URL=server.url).fails("queues", "list")
    Cli(OJS_URL=server.url + "/ojs/v1", OJS_API_KEY="secret").run("queues", "list")
    Cli(OJS_URL=server.url).run("queues", "list", "--api-key", "secret")


def test_a_ca_of_ones_own_is_trusted_when_it_is_named(fresh_server: Any, tmp_path: Path) -> None:
    """--ca; without it the certificate is refused, and the message says what to do."""
    cert, key = self_signed(tmp_path)
    server = Server(env={"OJS_TLS_CERT": str(cert), "OJS_TLS_KEY": str(key)})
    try:
        server.launch()
        url = server.url.replace("http://", "https://")
        poll(lambda: "ojs-fast" in server.log() and "serves" in server.log(), what="the server serves")
        assert "--ca names the CA" in Cli(OJS_URL=url).fails("queues", "list")
        Cli(OJS_URL=url).run("queues", "list", "--ca", str(cert))
        server.stop()
    finally:
        server.close()


def test_what_strangers_wrote_does_not_steer_the_terminal(cli: Cli, api: Api) -> None:
    """Control characters of messages are escaped in tables and kept in JSON."""
    queue = unique_queue()
    api.enqueue(queue, args=("\x1b[2J\u202e",))
    assert "\x1b" not in cli.text("job", "list", "--queue", queue)
    job_id = api.fetch(queue)[0]["id"]
    api.nack(job_id, "\x1b]0;owned\x07", retryable=False)
    shown = cli.text("job", "show", job_id)
    assert "\\x1b]0;owned\\x07" in shown
    assert cli.one("job", "show", job_id)["error"]["message"] == "\x1b]0;owned\x07"


# -- completion, tools of the checkout -----------------------------------------------------------


@pytest.mark.parametrize(("shell", "word"), [("bash", "complete -o nosort"), ("zsh", "#compdef"), ("fish", "function")])
def test_completion_scripts(shell: str, word: str) -> None:
    """Each shell gets click's script for this name."""
    script = Cli().text("completion", shell)
    assert word in script
    assert "_OJS_FAST_COMPLETE" in script


def test_completion_knows_commands_and_options() -> None:
    """What the script asks."""
    found = Cli(_OJS_FAST_COMPLETE="bash_complete", COMP_WORDS="ojs-fast queues pu", COMP_CWORD="2").text()
    assert found.split() == ["plain,purge"]
    found = Cli(_OJS_FAST_COMPLETE="bash_complete", COMP_WORDS="ojs-fast job list --st", COMP_CWORD="3").text()
    assert found.split() == ["plain,--state"]


def test_without_a_checkout_its_tools_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an installed wheel."""
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    done = CliRunner().invoke(checkout.bench, ["--quick"])
    assert done.exit_code == 1
    assert "source repository" in done.output


def test_the_tools_of_the_checkout_run_from_it() -> None:
    """Their own help and errors come through."""
    assert "python -m tests.conformance" in Cli().text("conformance", "--help")
    assert "python -m loadtest" in Cli().text("bench", "--help")
    assert "no such file" in Cli().fails("conformance", "/nonexistent", code=2)
