"""The packages: an sdist that builds, a wheel that has what it must and runs without the sources."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from ojs_fast import __version__
from tests.support.processes import free_port, poll

ROOT = Path(__file__).resolve().parents[1]
BUILD_S = 300

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * BUILD_S)]


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """Run a command without our own sources on its path; returns what it printed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=BUILD_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist from a copy of what git knows, so that nothing else gets in."""
    copy, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in run("git", "ls-files", "-z", cwd=ROOT).split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(dist)!r})"
    run(sys.executable, "-c", build, cwd=copy)
    (found,) = dist.iterdir()
    return found


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """Build the wheel from the sdist, with the tools that are installed."""
    arguments = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(sdist.parent), str(sdist))
    run(sys.executable, "-m", "pip", "wheel", "--quiet", *arguments, cwd=sdist.parent)
    (found,) = sdist.parent.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an environment of its own, which only borrows the dependencies; gives its programs."""
    home = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", "--without-pip", str(home), cwd=home)
    packages = next(home.glob("lib/python*/site-packages"))
    pip = (sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "--quiet")
    run(*pip, "--no-deps", "--no-index", str(wheel), cwd=home)
    # A path file brings the packages themselves, not the editable install of this project beside them.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return home / "bin"


def test_the_sdist_has_the_sources_of_the_core(sdist: Path) -> None:
    """All of Cython's files, and the licence."""
    assert sdist.name == f"ojs_fast-{__version__}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "ojs_fast").rglob("*.p[yx]*") if path.suffix != ".pyc"
    }
    assert {*sources, "pyproject.toml", "setup.py", "LICENSE", "README.md", "ojs_fast/py.typed"} <= names


def test_the_wheel_has_types_and_no_generated_code(wheel: Path) -> None:
    """One extension, its stub, the marker of PEP 561; no tests."""
    assert wheel.name.startswith(f"ojs_fast-{__version__}-cp{sys.version_info[0]}{sys.version_info[1]}-")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"ojs_fast/py.typed", "ojs_fast/_core.pyi"} <= set(names)
    assert sum(name.endswith(".so") for name in names) == 1
    assert not [name for name in names if name.endswith(".c") or not name.startswith("ojs_fast")]


def test_the_wheel_runs_from_anywhere(installed: Path) -> None:
    """`ojs-fast check`, `ojs-fast serve` on its embedded NATS, and nothing comes from the sources."""
    away = installed.parent
    where = run(installed / "python", "-c", "from ojs_fast import _core; print(_core.__file__)", cwd=away)
    assert Path(where.strip()).is_relative_to(away)
    assert run(installed / "ojs-fast", "check", cwd=away).startswith("NATS_URL ")
    assert run(installed / "ojs-fast", "--version", cwd=away).split()[-1] == __version__
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("OJS_")}
    env |= {"OJS_PORT": str(free_port()), "OJS_DATA_DIR": str(away / "data")}
    with (away / "log").open("wb") as log:
        server = subprocess.Popen([installed / "ojs-fast", "serve"], cwd=away, env=env, stdout=log, stderr=log)
    try:
        text = away / "log"
        poll(lambda: b" serves" in text.read_bytes() or server.poll() is not None, deadline_s=30, what="it serves")
        assert server.poll() is None, text.read_text(encoding="utf-8")
    finally:
        server.terminate()
        assert server.wait(30) == 0
