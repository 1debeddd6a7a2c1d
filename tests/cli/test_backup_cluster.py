"""Backups of a NATS cluster: under load out of three replicas, and back into three."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.backups import back_up_under_load, cli_of, compare_and_drain, delete_streams
from tests.cli.command import Cli
from tests.support.nats_cluster import NatsCluster
from tests.support.server import Server

REPLICAS = {"OJS_NATS_REPLICAS": "3"}

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@pytest.fixture
def cluster() -> Iterator[NatsCluster]:
    """Give a cluster of the test's own."""
    with NatsCluster() as running:
        yield running


async def test_from_a_cluster_to_one_server_and_back(
    cluster: NatsCluster, fresh_server: Callable[..., Server], tmp_path: Path
) -> None:
    """What replicas that lag do not know yet is read from the leader; replicas are those of where it is restored."""
    cli = Cli(NATS_URL=cluster.url, **REPLICAS)
    server = fresh_server(nats_url=cluster.url, env=REPLICAS)
    before = await back_up_under_load(server, cli, tmp_path / "cluster.tar")
    server.kill()
    await delete_streams(cluster.urls)

    cli.run("restore", str(tmp_path / "cluster.tar"))
    again = fresh_server(nats_url=cluster.url, env=REPLICAS)
    await compare_and_drain(again, before)
    again.stop()

    single = cli_of(tmp_path / "single")
    single.run("restore", str(tmp_path / "cluster.tar"))
    await compare_and_drain(fresh_server(tmp_path / "single"), before)
