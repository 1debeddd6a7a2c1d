"""`work`: a worker whose handler is a shell command: the job on standard input, the outcome by exit code."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import click

from ojs_fast.cli.client import FIRST_PAUSE_S, LONGEST_PAUSE_S, Body, Client, NoServer, ServerSaid, passes_by
from ojs_fast.cli.exact import dump_exactly, parse_exactly
from ojs_fast.cli.options import asks_server
from ojs_fast.cli.output import Output

BEAT_S = 5.0
TRIES = 8  # of an acknowledgement: about a minute
MESSAGE_CHARACTERS = 1000


@click.command()
@click.argument("queues", metavar="QUEUE...", nargs=-1, required=True)
@click.option("--exec", "command", required=True, metavar="COMMAND", help="What to run for each job, by /bin/sh -c.")
@click.option("--concurrency", type=click.IntRange(1, 256), default=1, show_default=True, help="How many at a time.")
@click.option("--fatal", type=click.IntRange(1, 255), multiple=True, metavar="CODE", help="Exit codes without a retry.")
@click.option("--worker-id", help="Who works.  [default: a random one]")
@click.option("--poll", type=click.FloatRange(0.05), default=1.0, show_default=True, help="Seconds between looks.")
@click.option("--drain", is_flag=True, help="End when the queues are empty.")
@asks_server
def work(
    *,
    client: Client,
    output: Output,
    queues: tuple[str, ...],
    command: str,
    concurrency: int,
    fatal: tuple[int, ...],
    worker_id: str | None,
    poll: float,
    drain: bool,
) -> None:
    """Run a shell command for each job of these queues, the first queue first.

    The command gets the job as JSON on standard input, and OJS_JOB_ID, OJS_JOB_TYPE, OJS_JOB_QUEUE and OJS_JOB_ATTEMPT.
    Exit code 0 completes the job, with what it printed as the result (JSON, or a text); any other fails it, with its
    last line on standard error as the message. A job that is cancelled, or taken away, has its command killed.
    SIGTERM and Ctrl-C end the worker when its commands have ended; a second one kills them and gives their jobs back.

    \b
    Examples:
      ojs-fast work email --exec './send-email'
      ojs-fast work thumbnails --concurrency 4 --fatal 65 --exec 'jq -r ".args[0]" | xargs ./thumbnail'
      ojs-fast work imports --drain --exec 'cat > "/tmp/$OJS_JOB_ID.json"'
    """
    worker = Worker(client, output, queues, command, concurrency, fatal, worker_id or f"cli-{secrets.token_hex(4)}")
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, worker.stop)
    worker.run(poll, drain=drain)


@dataclass
class Run:
    """One command under way. `is_over`: its job is no longer ours, so its outcome is told to nobody."""

    job: Body
    process: subprocess.Popen[bytes]
    is_over: bool = False
    is_killed: bool = False
    last_line: str = ""

    def kill(self) -> None:
        """End the command and what it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


@dataclass
class Worker:
    """Fetches, runs, tells what became of it, and sends heartbeats meanwhile."""

    client: Client
    output: Output
    queues: tuple[str, ...]
    command: str
    concurrency: int
    fatal: tuple[int, ...]
    worker_id: str
    runs: dict[str, Run] = field(default_factory=dict)
    threads: set[threading.Thread] = field(default_factory=set)
    woken: threading.Event = field(default_factory=threading.Event)
    is_stopping: bool = False
    is_quiet: bool = False

    def stop(self, _signum: int, _frame: FrameType | None) -> None:
        """First: fetch no more. Again: kill what runs."""
        if self.is_stopping:
            for run in list(self.runs.values()):
                run.is_killed = True
                run.kill()
        self.is_stopping = True
        self.woken.set()

    def run(self, poll_s: float, *, drain: bool) -> None:
        """Work until told to stop. Raises ServerSaid for what does not go away by itself."""
        beating = threading.Thread(target=self._beat, daemon=True)
        beating.start()
        pause_s = FIRST_PAUSE_S
        try:
            while not self.is_stopping:
                self.woken.clear()
                room = 0 if self.is_quiet else self.concurrency - len(self.runs)
                try:
                    jobs = self._fetch(room) if room else []
                    pause_s = FIRST_PAUSE_S
                except (NoServer, ServerSaid) as error:
                    self._tolerate(error)
                    self.woken.wait(pause_s)
                    pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                    continue
                for job in jobs:
                    self._start(job)
                if drain and room and not jobs and not self.runs:
                    break
                if len(jobs) < room or not room:
                    self.woken.wait(poll_s)
        finally:
            self.is_stopping = True
            for thread in list(self.threads):
                thread.join()

    def _fetch(self, count: int) -> list[Body]:
        body = {"queues": list(self.queues), "count": count, "worker_id": self.worker_id}
        jobs: list[Body] = self.client.call("POST", "/workers/fetch", body)["jobs"]
        return jobs

    def _tolerate(self, error: click.ClickException) -> None:
        """Say it and go on, unless no time heals it."""
        if not passes_by(error):
            raise error
        click.echo(f"{error.message}; it is tried again", err=True)

    # -- one job ---------------------------------------------------------------------------------

    def _start(self, job: Body) -> None:
        process = subprocess.Popen(
            ["/bin/sh", "-c", self.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                "OJS_JOB_ID": job["id"],
                "OJS_JOB_TYPE": job["type"],
                "OJS_JOB_QUEUE": job["queue"],
                "OJS_JOB_ATTEMPT": str(job.get("attempt", 0)),
            },
            start_new_session=True,  # Ctrl-C is for the worker
        )
        run = self.runs[job["id"]] = Run(job, process)
        thread = threading.Thread(target=self._see_through, args=(run,))
        self.threads.add(thread)
        thread.start()

    def _see_through(self, run: Run) -> None:
        try:
            reading = threading.Thread(target=_pass_on_errors, args=(run,))
            writing = threading.Thread(target=_write_job, args=(run,))
            reading.start()
            writing.start()
            assert run.process.stdout
            printed = run.process.stdout.read()
            code = run.process.wait()
            reading.join()
            writing.join()
            run.process.stdout.close()
            if not run.is_over:
                self._tell(run, code, printed)
        finally:
            del self.runs[run.job["id"]]
            self.threads.discard(threading.current_thread())
            self.woken.set()

    def _tell(self, run: Run, code: int, printed: bytes) -> None:
        about: Body = {"job_id": run.job["id"], "worker_id": self.worker_id}
        path = "/workers/ack" if code == 0 else "/workers/nack"
        if code == 0:
            body: Body = {**about, **_result(printed)}
        elif run.is_killed:
            body = {**about, "requeue": True}
        else:
            reason = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
            message = (run.last_line or reason)[:MESSAGE_CHARACTERS]
            name = f"exit_{code}" if code > 0 else f"signal_{-code}"
            body = {**about, "error": {"code": name, "message": message, "retryable": code not in self.fatal}}
        try:
            job = self.client.call_again(path, dump_exactly(body), TRIES)["job"]
        except (NoServer, ServerSaid) as error:
            click.echo(f"{run.job['id']}: {error.message}", err=True)
        else:
            self.output.done(job, f"{job['id']} {job['type']} is {job['state']}")

    # -- heartbeats ------------------------------------------------------------------------------

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_S)
            runs = dict(self.runs)
            body = {"worker_id": self.worker_id, "active_jobs": list(runs), "queues": list(self.queues)}
            try:
                answer: dict[str, Any] = self.client.call("POST", "/workers/heartbeat", body)
            except click.ClickException as error:
                click.echo(f"no heartbeat: {error.message}", err=True)
                continue
            self.is_quiet = answer["state"] == "quiet"
            if answer["state"] == "terminate":
                self.is_stopping = True
                self.woken.set()
            for job_id in set(runs) - set(answer["jobs_extended"]):
                self._give_up(runs[job_id])

    def _give_up(self, run: Run) -> None:
        """A job that was not extended is not ours any more, unless it has just been settled."""
        try:
            job = self.client.get(f"/jobs/{run.job['id']}")["job"]
        except click.ClickException as error:
            click.echo(f"{run.job['id']}: {error.message}", err=True)
            return
        if run.process.poll() is None and (job["state"], job.get("attempt")) != ("active", run.job.get("attempt")):
            click.echo(f"{run.job['id']} is {job['state']}; its command is killed", err=True)
            run.is_over = True
            run.kill()


def _write_job(run: Run) -> None:
    assert run.process.stdin
    try:
        run.process.stdin.write(dump_exactly(run.job) + b"\n")
        run.process.stdin.close()
    except BrokenPipeError:
        return  # a command need not read it


def _pass_on_errors(run: Run) -> None:
    assert run.process.stderr
    with run.process.stderr as lines:
        for line in lines:
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                run.last_line = text
            sys.stderr.write(f"{text}\n")


def _result(printed: bytes) -> Body:
    text = printed.decode("utf-8", "replace").strip()
    if not text:
        return {}
    try:
        return {"result": parse_exactly(text.encode())}
    except ValueError:
        return {"result": text}
