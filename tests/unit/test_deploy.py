"""docs/deploy: manifests and unit name what exists, and leave the server the time that it wants."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ojs_fast import __version__
from ojs_fast.config import INTERNAL_BOOT_ID, INTERNAL_NATS_URL, TABLE, Settings
from ojs_fast.storage.server import find_binary

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "docs" / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
UNIT = DEPLOY / "systemd" / "ojs-fast.service"
SETTINGS = {one.name for one in TABLE}
FILES = sorted(
    path
    for folder in (DEPLOY, ROOT / "docker")
    for path in folder.rglob("*")
    if path.is_file() and path.suffix != ".pyc"
)
PROBES = {"startupProbe": "/ojs/v1/health", "readinessProbe": "/ready", "livenessProbe": "/ojs/manifest"}
# What the server may need behind OJS_SHUTDOWN_TIMEOUT_MS: handover, the stop of NATS.
AFTERWARDS_S = 10


def objects(folder: str) -> list[dict[str, Any]]:
    """All objects in the files of a folder."""
    files = [path for path in sorted((KUBERNETES / folder).glob("*.yaml")) if path.name != "kustomization.yaml"]
    return [one for path in files for one in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def runs(folder: str) -> list[dict[str, Any]]:
    """What runs something."""
    return [one for one in objects(folder) if one["kind"] in ("Deployment", "StatefulSet")]


def pods(folder: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, pod and container of everything that runs."""
    for one in runs(folder):
        pod = one["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        yield one["metadata"]["name"], pod, container


def env_of(container: dict[str, Any]) -> dict[str, str]:
    """The variables of a container, secrets as `secret`."""
    return {one["name"]: one.get("value", "secret") for one in container["env"]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_variable_is_a_setting(path: Path) -> None:
    """A misspelt one would be without effect."""
    named = set(re.findall(r"\b(?:OJS_[A-Z_]*[A-Z]|NATS_URL|OTEL_\w+)\b", path.read_text(encoding="utf-8")))
    assert named <= SETTINGS, path


def test_a_misspelt_variable_would_be_found() -> None:
    """None of the server's own variables is among the settings, so the test above can fail."""
    assert not {INTERNAL_BOOT_ID, INTERNAL_NATS_URL, "OJS_WORKER"} & SETTINGS
    assert len(FILES) > 10


@pytest.mark.parametrize("folder", ["single", "cluster"])
def test_the_server_takes_its_settings_and_has_its_time(folder: str) -> None:
    """Values parse; probes ask what exists; nobody kills the server before its own limit."""
    (found,) = [(pod, container) for name, pod, container in pods(folder) if name == "ojs-fast"]
    pod, container = found
    settings = Settings.from_env({**env_of(container), "OJS_HOST": "0.0.0.0"})
    assert not settings.warnings
    for probe, path in PROBES.items():
        assert container[probe]["httpGet"] == {"path": path, "port": "http"}
    assert container["ports"] == [{"name": "http", "containerPort": settings.port}]
    before_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= before_s + settings.shutdown_timeout_ms / 1000 + AFTERWARDS_S
    assert settings.is_embedded is (folder == "single")


@pytest.mark.parametrize("folder", ["single", "cluster"])
def test_pods_are_closed(folder: str) -> None:
    """No root, no privileges, nothing writable but volumes, and every volume is there."""
    for one, (_, pod, container) in zip(runs(folder), pods(folder), strict=True):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        claims = [claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])]
        there = {volume["name"] for volume in pod.get("volumes", [])} | set(claims)
        assert {mount["name"] for mount in container["volumeMounts"]} == there


def test_the_cluster_survives_the_loss_of_one() -> None:
    """Three of each, on different machines, and no drain takes two at once."""
    budgets = [one for one in objects("cluster") if one["kind"] == "PodDisruptionBudget"]
    assert {one["metadata"]["name"]: one["spec"]["maxUnavailable"] for one in budgets} == {"ojs-fast": 1, "ojs-nats": 1}
    for one in runs("cluster"):
        assert one["spec"]["replicas"] == 3
        (spread,) = one["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert spread["topologyKey"] == "kubernetes.io/hostname"
    (container,) = [container for name, _, container in pods("cluster") if name == "ojs-fast"]
    hosts = [f"nats://ojs-nats-{number}.ojs-nats:4222" for number in range(3)]
    assert env_of(container)["NATS_URL"] == ",".join(hosts)


def test_nats_takes_its_configuration(tmp_path: Path) -> None:
    """As the real program reads it, and with a route to every server."""
    (config,) = [one["data"]["nats.conf"] for one in objects("cluster") if one["kind"] == "ConfigMap"]
    assert re.findall(r"nats://(\S+):6222", config) == [f"ojs-nats-{number}.ojs-nats" for number in range(3)]
    file = tmp_path / "nats.conf"
    file.write_text(config, encoding="utf-8")
    command = [str(find_binary()), "--config", str(file), "--auth", "1e5", "-t"]
    checked = subprocess.run(
        command, env={**os.environ, "POD_NAME": "ojs-nats-0"}, capture_output=True, text=True, check=False, timeout=30
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("folder", ["single", "cluster", "monitoring"])
def test_kustomizations_name_their_files(folder: str) -> None:
    """All of them, and the image of this version."""
    file = yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text(encoding="utf-8"))
    assert sorted([*file["resources"], "kustomization.yaml"]) == sorted(
        path.name for path in (KUBERNETES / folder).iterdir()
    )
    images = {image["name"]: image["newTag"] for image in file.get("images", [])}
    assert images.get("ojs-fast", __version__) == __version__


def unit_lines() -> dict[str, list[str]]:
    """The unit's assignments by name."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_starts_the_server_and_leaves_it_time() -> None:
    """Its variables and those of the example file, commented ones too, make settings."""
    lines = unit_lines()
    example = re.sub(
        r"^#(?=[A-Z_]+=)", "", (UNIT.parent / "ojs-fast.env").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    pairs = [*lines["Environment"], *(line for line in example.splitlines() if re.match(r"[A-Z_]+=", line))]
    env = {pair.partition("=")[0]: pair.partition("=")[2] for pair in pairs if not pair.startswith("PYTHON")}
    settings = Settings.from_env(env)
    assert not settings.warnings
    assert lines["ExecStart"] == ["/opt/ojs-fast/bin/ojs-fast serve"]
    assert int(lines["TimeoutStopSec"][0]) >= settings.shutdown_timeout_ms / 1000 + AFTERWARDS_S
    assert f"OJS_DATA_DIR=/var/lib/{lines['StateDirectory'][0]}" in lines["Environment"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze")
def test_systemd_takes_the_unit_and_calls_it_hardened(tmp_path: Path) -> None:
    """No warning about any line; the exposure level stays low."""
    file = tmp_path / "ojs-fast.service"
    file.write_text(
        UNIT.read_text(encoding="utf-8").replace("/opt/ojs-fast/bin/ojs-fast", "/bin/true"), encoding="utf-8"
    )
    for command in (["verify"], ["security", "--offline=true", "--threshold=20", "--no-pager"]):
        checked = subprocess.run(
            ["systemd-analyze", *command, str(file)], capture_output=True, text=True, check=False, timeout=30
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
        if command == ["verify"]:
            assert checked.stderr == ""
