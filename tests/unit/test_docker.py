"""The files under docker/ name what exists: paths, settings, volumes, services. No Docker engine is needed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from ojs_fast.config import TABLE, Settings

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
SETTINGS = {one.name for one in TABLE}


def compose(name: str) -> dict[str, Any]:
    """A compose file, merged keys resolved."""
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / name).read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize(("name", "nodes", "servers"), [("compose.yaml", 1, 0), ("compose.cluster.yaml", 3, 3)])
def test_compose_files_start_what_they_promise(name: str, nodes: int, servers: int) -> None:
    """Every volume is declared, every dependency is a service, every setting is one that the server takes."""
    file = compose(name)
    services = file["services"]
    ours = [service for service in services.values() if "build" in service]
    theirs = [service for service in services.values() if "image" in service]
    assert (len(ours), len(theirs)) == (nodes, servers)
    for service in services.values():
        assert {volume.partition(":")[0] for volume in service.get("volumes", [])} <= set(file["volumes"])
        assert set(service.get("depends_on", [])) <= set(services)
    for service in ours:
        assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        env = {name: re.sub(r"\$\{(\w+):\?[^}]*\}", r"\1", value) for name, value in service["environment"].items()}
        assert set(env) <= SETTINGS
        Settings.from_env({**env, "OJS_HOST": "0.0.0.0"})


def test_the_nats_servers_of_the_cluster_know_one_another() -> None:
    """Each has a name of its own and routes to the two others; nodes know all three."""
    services = compose("compose.cluster.yaml")["services"]
    names = [name for name in services if name.startswith("nats-")]
    for name in names:
        command = shlex.split(services[name]["command"])
        assert command[command.index("--name") + 1] == name
        routes = command[command.index("--routes") + 1].split(",")
        assert routes == [f"nats://{other}:6222" for other in names if other != name]
    urls = {services[f"ojs-fast-{number}"]["environment"]["NATS_URL"] for number in (1, 2, 3)}
    assert urls == {",".join(f"nats://{name}:4222" for name in names)}


def test_the_image_copies_what_exists_and_sets_what_is_a_setting() -> None:
    """Also through .dockerignore; it does not run as root and has a health check on an endpoint that is open."""
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    sources = [word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    let_through = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in let_through
    assert set(re.findall(r"\b(OJS_\w+|NATS_URL)\b", text)) <= SETTINGS
    assert re.search(r"^USER ojs$", text, re.MULTILINE)
    assert "/ojs/v1/health" in text.partition("HEALTHCHECK")[2]
