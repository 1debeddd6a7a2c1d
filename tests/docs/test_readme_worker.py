"""README's worker, cut out of its text: a thousand jobs, half of which fail once, over a SIGTERM."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.docs.examples import running
from tests.docs.snippets import ROOT, blocks
from tests.support.api import Api, Body, job_request
from tests.support.processes import poll
from tests.support.server import Server

pytestmark = pytest.mark.timeout(180)

JOBS = 1000
QUEUE = "email"
RETRY = {"max_attempts": 5, "initial_interval": "PT0.1S", "jitter": False}
#: Runs the worker with another handler, which tells in a file what failed and what ran to its end.
PROGRAM = """
import sys, time
from pathlib import Path
import worker

log = Path(sys.argv[1])

def send(address, template):
    number = int(address.split("@")[0])
    fails = number % 2 and f"failed {number}\\n" not in log.read_text()
    with log.open("a") as lines:
        lines.write(f"failed {number}\\n" if fails else f"sent {number}\\n")
    if fails:
        raise OSError("no connection")
    time.sleep(0.005)

worker.HANDLERS["email.send"] = send
worker.main()
"""


def worker_of_the_readme() -> str:
    """Its text."""
    [text] = [one.text for one in blocks(ROOT / "README.md") if one.language == "python" and "ThreadPool" in one.text]
    return text


def test_it_is_short_and_needs_nothing_but_python() -> None:
    """Forty lines of code or so, and no import that must be installed."""
    lines = [line for line in worker_of_the_readme().splitlines() if line.strip()]
    assert len(lines) <= 44
    imported = {name.split(".")[0] for name in lines[0].removeprefix("import ").split(", ")}
    assert imported <= sys.stdlib_module_names


def test_a_thousand_jobs_with_retries_over_a_sigterm(server: Server, api: Api, tmp_path: Path) -> None:
    """Nothing is lost, nothing runs to its end twice, and nothing is left behind by the worker that was stopped."""
    jobs = [job_request(QUEUE, kind="email.send", args=[f"{n}@x.org", "hello"], retry=RETRY) for n in range(JOBS)]
    ids = [job["id"] for job in api.enqueue_batch(jobs)]
    (tmp_path / "worker.py").write_text(worker_of_the_readme(), encoding="utf-8")
    program, done = tmp_path / "program.py", tmp_path / "done.txt"
    program.write_text(PROGRAM, encoding="utf-8")
    done.touch()
    command = [sys.executable, str(program), str(done)]
    env = {"OJS_URL": server.url}

    def counts() -> Body:
        stats: Body = api.call("GET", f"/queues/{QUEUE}/stats")["stats"]
        return stats

    with running(command, env, tmp_path / "first.log") as first:
        poll(lambda: first.is_alive and counts()["completed"] >= JOBS // 4, deadline_s=60, what="a quarter is done")
        first.terminate()
        assert "Traceback" not in first.log()
    stopped = counts()
    assert stopped["active"] == 0
    assert JOBS // 4 <= stopped["completed"] < JOBS
    with running(command, env, tmp_path / "second.log") as second:
        poll(lambda: second.is_alive and counts()["completed"] == JOBS, deadline_s=90, what="all is done")
        second.terminate()
        assert "Traceback" not in second.log()
    told = Counter(done.read_text(encoding="utf-8").splitlines())
    assert told == Counter({f"sent {n}": 1 for n in range(JOBS)} | {f"failed {n}": 1 for n in range(1, JOBS, 2)})
    assert {api.get(one)["attempt"] for one in ids[:20]} == {1, 2}
    assert api.get(ids[1])["errors"][0]["message"] == "OSError('no connection')"
