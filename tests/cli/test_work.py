"""`ojs-fast work`: a shell command as a worker."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import COMMAND, Cli
from tests.support.api import Api, unique_queue
from tests.support.processes import poll

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(cli: Cli) -> Iterator[Start]:
    """Give what starts a worker; those that still run at the end are killed."""
    started: list[subprocess.Popen[str]] = []

    def launch(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([*COMMAND, "work", *words, "--poll", "0.05"], env=cli.env, text=True)
        started.append(process)
        return process

    yield launch
    for process in started:
        process.kill()
        process.wait()


def test_exit_codes_and_output_settle_jobs(cli: Cli, api: Api) -> None:
    """0 completes with a result; another code fails with the last line of standard error; --fatal discards."""
    queue = unique_queue()
    made = {name: api.enqueue(queue, args=(name,))["id"] for name in ("json", "text", "none", "fail", "fatal")}
    script = """
        name=$(sed 's/.*"args":\\["\\([a-z]*\\)"\\].*/\\1/')
        case $name in
            json) echo '{"queue": "'"$OJS_JOB_QUEUE"'", "attempt": '"$OJS_JOB_ATTEMPT"'}';;
            text) echo some words;;
            fail) echo first >&2; echo it broke >&2; exit 3;;
            fatal) exit 65;;
        esac
    """
    done = cli.run("work", queue, "--exec", script, "--fatal", "65", "--concurrency", "2", "--drain", "--poll", "0.05")
    assert done.stdout.count(" is completed") == 3
    assert "it broke" in done.stderr
    jobs = {name: api.get(job_id) for name, job_id in made.items()}
    assert jobs["json"]["result"] == {"queue": queue, "attempt": 1}
    assert jobs["text"]["result"] == "some words"
    assert "result" not in jobs["none"]
    assert (jobs["fail"]["state"], jobs["fail"]["error"]["code"]) == ("retryable", "exit_3")
    assert jobs["fail"]["error"]["message"] == "it broke"
    assert (jobs["fatal"]["state"], jobs["fatal"]["error"]["message"]) == ("discarded", "exit code 65")


def test_large_jobs_and_output_get_through(cli: Cli, api: Api) -> None:
    """More than a pipe holds, in both directions at once; a command that does not read is no error."""
    queue = unique_queue()
    echoed = api.enqueue(queue, args=("x" * 300_000,))["id"]
    cli.run("work", queue, "--exec", "cat", "--drain")
    assert api.get(echoed)["result"]["id"] == echoed
    unread = api.enqueue(queue, args=("x" * 300_000,))["id"]
    cli.run("work", queue, "--exec", "true", "--drain")
    assert api.get(unread)["state"] == "completed"


def is_there(*files: Path) -> Callable[[], bool]:
    """Tell whether all these files exist."""
    return lambda: all(file.exists() for file in files)


def test_the_first_signal_waits_and_the_second_gives_back(start: Start, api: Api, tmp_path: Path) -> None:
    """Jobs under way are completed; or, when told twice, their commands are killed and nothing is lost."""
    queue = unique_queue()
    script = f'touch "{tmp_path}/$OJS_JOB_ID"; while [ ! -e "{tmp_path}/go" ]; do sleep 0.05; done'
    job_id = api.enqueue(queue)["id"]
    worker = start(queue, "--exec", script)
    poll(is_there(tmp_path / job_id), what="the command runs")
    later = api.enqueue(queue)["id"]
    worker.send_signal(signal.SIGTERM)
    (tmp_path / "go").touch()
    assert worker.wait(30) == 0
    assert (api.get(job_id)["state"], api.get(later)["state"]) == ("completed", "available")

    (tmp_path / "go").unlink()
    worker = start(queue, "--exec", script)
    poll(is_there(tmp_path / later), what="the command runs")

    # Two of the same kind could arrive as one.
    worker.send_signal(signal.SIGTERM)
    worker.send_signal(signal.SIGINT)
    assert worker.wait(30) == 0
    assert api.get(later)["state"] == "available"


def test_a_cancelled_job_has_its_command_killed(start: Start, api: Api, tmp_path: Path) -> None:
    """Heartbeats tell; the worker goes on with others."""
    queue = unique_queue()
    script = f'touch "{tmp_path}/$OJS_JOB_ID"; [ "$OJS_JOB_TYPE" = quick.one ] || sleep 300'
    job_id = api.enqueue(queue, kind="slow.one")["id"]
    start(queue, "--exec", script)
    poll(is_there(tmp_path / job_id), what="the command runs")
    api.cancel(job_id)
    other = api.enqueue(queue, kind="quick.one")["id"]
    poll(lambda: api.get(other)["state"] == "completed", deadline_s=30, what="the worker goes on")
    assert api.get(job_id)["state"] == "cancelled"


def test_work_goes_on_over_a_restart_of_the_server(fresh_server: Any, tmp_path: Path) -> None:
    """An acknowledgement that finds no server is repeated, and so are fetches."""
    server = fresh_server()
    script = f'touch "{tmp_path}/$OJS_JOB_ID"; while [ ! -e "{tmp_path}/go" ]; do sleep 0.05; done'
    worker = subprocess.Popen(
        [*COMMAND, "work", "q", "--exec", script, "--poll", "0.05"], env=Cli(OJS_URL=server.url).env
    )
    with Api(server.url) as api:
        first = api.enqueue("q")["id"]
        poll(is_there(tmp_path / first), what="the command runs")
        server.stop()
        (tmp_path / "go").touch()
        server.start()
        second = api.enqueue("q")["id"]
        for job_id in (first, second):
            poll(lambda one=job_id: api.get(one)["state"] == "completed", deadline_s=30, what="it completes")  # type: ignore[misc]
    worker.terminate()
    assert worker.wait(30) == 0


def test_a_worker_that_may_not_work_ends(fresh_server: Any) -> None:
    """No time heals a wrong key."""
    server = fresh_server(env={"OJS_API_KEY": "secret"})
    assert "unauthorized" in Cli(OJS_URL=server.url, OJS_API_KEY="wrong").fails("work", "q", "--exec", "true")
