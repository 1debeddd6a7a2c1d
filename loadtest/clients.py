"""How load is made: wrk where it is installed and can do it, the bundled generator for all else.

Owns the child processes that make load and their time limits; must not know servers or rows.
"""

import json
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtest import plan
from loadtest.generator import GRACE_S, Load, LoadSpec, Timing
from loadtest.servers import BenchError, child_env

START_S = 30.0
FILL_BATCH, FILL_S = 1000, 600.0

# The body comes from a file, so that nothing in it needs quoting; `done` prints the figures as JSON.
_SCRIPT = """\
local file = assert(io.open(%s, "rb"))
wrk.body = file:read("*a")
file:close()
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/openjobspec+json"

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\n{"requests":%%d,"seconds":%%.6f,"p50_us":%%.1f,"p99_us":%%.1f,"status":%%d,"socket":%%d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    e.status, e.connect + e.read + e.write + e.timeout))
end
"""


def wrk_path() -> str | None:
    """Where wrk is, or None."""
    return shutil.which("wrk")


def wrk_script(body_file: Path) -> str:
    """The Lua script that makes wrk post a file's content and report as JSON."""
    return _SCRIPT % json.dumps(str(body_file))


def read_wrk(output: str, cpu_s: float) -> Load:
    """The figures in wrk's output. Raises BenchError when there are none."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise BenchError(f"wrk printed no figures:\n{output[-2000:]}")
    found: dict[str, Any] = json.loads(lines[-1])
    failures = found["status"] + found["socket"]
    return Load(
        requests=found["requests"] - found["status"],
        failures=failures,
        first_failure=f"wrk: {found['status']} answers not 2xx, {found['socket']} socket errors" if failures else "",
        seconds=found["seconds"],
        cpu_s=cpu_s,
        p50_ms=found["p50_us"] / 1000,
        p99_ms=found["p99_us"] / 1000,
    )


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_child(command: list[str], stdin: str, limit_s: float) -> str:
    """Run a child to its end and return its output. Raises BenchError when it fails or takes too long."""
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=limit_s, env=child_env(), check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{' '.join(command[:4])} did not end within {limit_s:.0f} s") from error
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command[:4])} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    return done.stdout


def bundled(spec: LoadSpec) -> Load:
    """Run the bundled generator. Raises BenchError."""
    command = [sys.executable, "-m", "loadtest.generator"]
    found: dict[str, Any] = json.loads(run_child(command, json.dumps(asdict(spec)), spec.seconds + GRACE_S + START_S))
    for name in ("fetch_call", "ack_call"):
        if found[name] is not None:
            found[name] = Timing(**found[name])
    return Load(**found)


def fill(port: int, queue: str, batches: int) -> None:
    """Enqueue so many batches of FILL_BATCH jobs. Raises BenchError."""
    load = bundled(
        LoadSpec(
            "repeat", port, 2, FILL_S, path="/ojs/v1/jobs/batch", body=plan.batch(queue, FILL_BATCH).decode(),
            max_requests=batches,
        )
    )  # fmt: skip
    if load.requests < batches:
        raise BenchError(
            f"{load.requests} of {batches} batches went in within {FILL_S:.0f} s: {load.first_failure or 'no failure'}"
        )


def wrk(spec: LoadSpec) -> Load:
    """Run wrk for a `repeat`. Raises BenchError."""
    path = wrk_path()
    if path is None:
        raise BenchError("wrk is not installed; use --generator bundled")
    with tempfile.TemporaryDirectory(prefix="ojs-bench-wrk-") as scratch:
        body = Path(scratch) / "body"
        body.write_text(spec.body, encoding="utf-8")
        script = Path(scratch) / "post.lua"
        script.write_text(wrk_script(body), encoding="utf-8")
        seconds = max(1, round(spec.seconds))  # wrk takes whole seconds only
        before = _children_cpu_s()
        output = run_child(
            [
                path,
                "--threads=1",
                f"--connections={spec.connections}",
                f"--duration={seconds}s",
                "--timeout=10s",
                f"--script={script}",
                f"http://{spec.host}:{spec.port}{spec.path}",
            ],
            "",
            seconds + GRACE_S,
        )
        return read_wrk(output, _children_cpu_s() - before)


def repeat(spec: LoadSpec, generator: str) -> Load:
    """Run a `repeat` with the chosen generator: `wrk` or `bundled`."""
    return wrk(spec) if generator == "wrk" else bundled(spec)
