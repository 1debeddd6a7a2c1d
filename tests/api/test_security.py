"""Keys with scopes and TLS, at a real server."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx

from ojs_fast.api.keys import Scope, create_key, revoke_key
from tests.support.certificates import self_signed
from tests.support.docker import health_check
from tests.support.openapi import check
from tests.support.plain import PLAIN
from tests.support.processes import free_port, poll
from tests.support.server import Server

JOB = {"type": "t", "args": []}


def _ask(server: Server, key: str, method: str, path: str, body: object = None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    reply = httpx.request(method, f"{server.url}/ojs/v1{path}", headers=headers, json=body, timeout=20, **PLAIN)
    check(reply)
    return reply


def _has_ended(server: Server) -> bool:
    return not server.is_running


def test_keys_do_what_their_scopes_say_and_are_revoked_without_a_restart(
    tmp_path: Path, fresh_server: Callable[..., Server]
) -> None:
    """401 without a valid key, 403 naming the scope that is missing, on both lanes; a revoked key stops working."""
    path = tmp_path / "keys.json"
    producer = create_key(path, "producer", Scope.PRODUCE)
    worker = create_key(path, "worker", Scope.WORK | Scope.READ)
    server = fresh_server(env={"OJS_API_KEYS_FILE": str(path)})
    fetch = {"queues": ["default"], "worker_id": "w"}

    made = _ask(server, producer, "POST", "/jobs", JOB)
    assert made.status_code == 201
    job = f"/jobs/{made.json()['job']['id']}"
    for key in ("", "wrong", producer + "x"):
        assert _ask(server, key, "POST", "/jobs", JOB).status_code == 401
    for key, method, target, body, scope in (
        (worker, "POST", "/jobs", JOB, "produce"),
        (producer, "POST", "/workers/fetch", fetch, "work"),
        (producer, "GET", job, None, "read"),
        (worker, "POST", "/queues/default/pause", None, "admin"),
    ):
        refused = _ask(server, key, method, target, body)
        assert refused.status_code == 403, refused.text
        assert refused.json()["error"]["code"] == "forbidden"
        assert refused.json()["error"]["details"]["required_scope"] == scope
        assert key not in refused.text
    assert _ask(server, worker, "GET", job).json()["job"]["state"] == "available"
    assert _ask(server, worker, "POST", "/workers/fetch", fetch).status_code == 200
    assert _ask(server, "", "GET", "/health").status_code == 200

    revoke_key(path, "worker")
    poll(lambda: _ask(server, worker, "GET", job).status_code == 401, deadline_s=20)
    assert producer not in server.tail()


def test_with_a_certificate_the_server_speaks_https_only(tmp_path: Path, fresh_server: Callable[..., Server]) -> None:
    """A client that trusts the certificate is served; plain HTTP is not."""
    cert, key = self_signed(tmp_path)
    server = Server(env={"OJS_TLS_CERT": str(cert), "OJS_TLS_KEY": str(key)})
    try:
        server.launch()
        trust = ssl.create_default_context(cafile=str(cert))

        def serves() -> bool:
            try:
                url = f"https://127.0.0.1:{server.port}/ojs/v1/health"
                return httpx.get(url, verify=trust, timeout=5).status_code == 200
            except httpx.TransportError:
                return False

        poll(serves, deadline_s=30)
        env = {"OJS_PORT": str(server.port), "OJS_TLS_CERT": str(cert)}
        subprocess.run(health_check(), env=env, check=True, timeout=30)
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as plain:
            plain.sendall(b"GET /ojs/v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert not plain.recv(100).startswith(b"HTTP/")
        server.stop()
    finally:
        server.close()


def test_a_bad_keys_file_or_certificate_stops_the_start(tmp_path: Path) -> None:
    """The reason names the setting; nothing is served."""
    (tmp_path / "bad").write_text("x")
    bad = str(tmp_path / "bad")
    for env in ({"OJS_API_KEYS_FILE": bad}, {"OJS_TLS_CERT": bad, "OJS_TLS_KEY": bad}):
        server = Server(env={**env, "OJS_PORT": str(free_port())})
        try:
            server.launch()
            poll(partial(_has_ended, server), deadline_s=30)
            assert next(iter(env)) in server.tail()
        finally:
            server.close()
