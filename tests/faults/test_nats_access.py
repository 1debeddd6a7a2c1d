"""NATS servers that want TLS, a user, a token or credentials; and what is said when they do not get it."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nkeys  # type: ignore[import-untyped]
import pytest

from ojs_fast.storage.probe import read_info
from ojs_fast.storage.server import find_binary
from tests.support.api import Api, unique_queue
from tests.support.processes import free_port, poll
from tests.support.server import Server

ROOT = Path(__file__).resolve().parents[2]
SECRET = "s3cret-Passw0rd"

pytestmark = pytest.mark.timeout(90)


@contextmanager
def nats_server(directory: Path, more: str) -> Iterator[int]:
    """Run a nats-server with JetStream and more configuration; gives its port."""
    port = free_port()
    config = directory / "nats.conf"
    text = f'host: "127.0.0.1"\nport: {port}\njetstream {{ store_dir: "{directory}/store" }}\n{more}\n'
    config.write_text(text, encoding="utf-8")
    process = subprocess.Popen([str(find_binary()), "-c", str(config), "-l", str(directory / "nats.log")])

    def answers() -> bool:
        assert process.poll() is None, (directory / "nats.log").read_text(encoding="utf-8")
        try:
            return read_info("127.0.0.1", port, timeout_s=1).has_jetstream
        except (OSError, ValueError):
            return False

    try:
        poll(answers, what="nats-server answers")
        yield port
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def certificates(directory: Path) -> dict[str, str]:
    """A CA, and certificates for server and client that it has signed: the paths of the files."""
    paths = {name: str(directory / name) for name in ("ca.pem", "ca.key", "server.pem", "server.key")}
    paths |= {name: str(directory / name) for name in ("client.pem", "client.key", "request", "extensions")}
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)

    openssl(
        "req",
        "-x509",
        *new_key,
        "-days",
        "2",
        "-subj",
        "/CN=test CA",
        "-keyout",
        paths["ca.key"],
        "-out",
        paths["ca.pem"],
    )
    Path(paths["extensions"]).write_text("subjectAltName=IP:127.0.0.1\n", encoding="ascii")
    for name in ("server", "client"):
        openssl("req", *new_key, "-subj", f"/CN={name}", "-keyout", paths[f"{name}.key"], "-out", paths["request"])
        openssl(
            "x509", "-req", "-in", paths["request"], "-CA", paths["ca.pem"], "-CAkey", paths["ca.key"],
            "-CAcreateserial", "-days", "2", "-extfile", paths["extensions"], "-out", paths[f"{name}.pem"],
        )  # fmt: skip
    return paths


def jwt_of(claims: dict[str, object], signer: nkeys.KeyPair) -> str:
    """A NATS JWT (ADR-14)."""

    def part(value: object) -> str:
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    body = f"{part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{part(claims)}"
    return f"{body}.{part(signer.sign(body.encode()))}"


def key_pair(kind: int) -> nkeys.KeyPair:
    """A fresh pair; its seed is in `.seed`."""
    return nkeys.from_seed(nkeys.encode_seed(os.urandom(32), kind))


def claims(subject: str, issuer: str, kind: str, **more: object) -> dict[str, object]:
    """The members that every NATS JWT has."""
    now = int(time.time())
    return {
        "jti": base64.b32encode(os.urandom(20)).decode(), "iat": now, "iss": issuer, "sub": subject, "name": kind,
        "nats": {"type": kind, "version": 2, **more},
    }  # fmt: skip


def credentials(directory: Path) -> tuple[str, str]:
    """An operator with one account and one user: the server's configuration, and the path of the user's file."""
    operator, account, system, user = (
        key_pair(kind)
        for kind in (
            nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_USER,
        )
    )  # fmt: skip
    root, shop, sys_, worker = (one.public_key.decode() for one in (operator, account, system, user))
    limits = dict.fromkeys(
        ("mem_storage", "disk_storage", "streams", "consumer", "subs", "conn", "imports", "exports", "data", "payload",
         "leaf"), -1,
    )  # fmt: skip
    account_jwt = jwt_of(claims(shop, root, "account", limits={**limits, "wildcards": True}), operator)
    system_jwt = jwt_of(claims(sys_, root, "account"), operator)
    user_jwt = jwt_of(claims(worker, shop, "user", subs=-1, data=-1, payload=-1, pub={}, sub={}), account)
    operator_jwt = jwt_of(claims(root, root, "operator"), operator)
    path = directory / "user.creds"
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n",
        encoding="ascii",
    )
    config = (
        f"operator: {operator_jwt}\nsystem_account: {sys_}\nresolver: MEMORY\n"
        f"resolver_preload: {{ {shop}: {account_jwt}, {sys_}: {system_jwt} }}\n"
    )
    return config, str(path)


def works(server: Server) -> None:
    """A job goes through, and no secret is in the log."""
    queue = unique_queue()
    with Api(server.url) as api:
        job_id = api.enqueue(queue)["id"]
        assert [job["id"] for job in api.fetch(queue)] == [job_id]
        assert api.ack(job_id)["state"] == "completed"
    assert SECRET not in server.log()


def refused(port: int, **env: str) -> str:
    """What a server says that is not let in; it ends with an error, without the secret."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("OJS_")}
    settings |= {"NATS_URL": f"nats://127.0.0.1:{port}", "OJS_PORT": str(free_port()), "PYTHONPATH": str(ROOT), **env}
    done = subprocess.run(
        [sys.executable, "-m", "ojs_fast", "serve"],
        env=settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    assert SECRET not in said
    return said


USER = f'authorization {{ user: "shop", password: "{SECRET}" }}'
TOKEN = f'authorization {{ token: "{SECRET}" }}'


@pytest.mark.parametrize(
    ("config", "env"),
    [
        (USER, {"OJS_NATS_USER": "shop", "OJS_NATS_PASSWORD": SECRET}),
        (USER, {"NATS_URL": f"nats://shop:{SECRET}@127.0.0.1:PORT"}),
        (TOKEN, {"OJS_NATS_TOKEN": SECRET}),
        (TOKEN, {"NATS_URL": f"nats://{SECRET}@127.0.0.1:PORT"}),
    ],
    ids=["user", "user-in-url", "token", "token-in-url"],
)
def test_a_user_or_a_token_lets_in(
    tmp_path: Path, fresh_server: Callable[..., Server], config: str, env: dict[str, str]
) -> None:
    """By settings of their own or in the URL; without or with a wrong one the start ends and says why."""
    with nats_server(tmp_path, config) as port:
        env = {name: value.replace("PORT", str(port)) for name, value in env.items()}
        works(fresh_server(nats_url=f"nats://127.0.0.1:{port}", env=env))
        for wrong in ({}, {name: value.replace(SECRET, "wrong") for name, value in env.items()}):
            said = refused(port, **wrong)
            assert "Authorization Violation" in said
            assert "OJS_NATS_TOKEN" in said


def test_a_credentials_file_lets_in(tmp_path: Path, fresh_server: Callable[..., Server]) -> None:
    """JWT and signature; a file without them is named at the start."""
    config, path = credentials(tmp_path)
    with nats_server(tmp_path, config) as port:
        works(fresh_server(nats_url=f"nats://127.0.0.1:{port}", env={"OJS_NATS_CREDS": path}))
        assert "Authorization Violation" in refused(port)
        assert "OJS_NATS_CREDS: '/none.creds' cannot be read" in refused(port, OJS_NATS_CREDS="/none.creds")
        (tmp_path / "half.creds").write_text(Path(path).read_text(encoding="ascii").partition("\n\n")[0], "ascii")
        assert "no block with a USER NKEY SEED" in refused(port, OJS_NATS_CREDS=str(tmp_path / "half.creds"))


def test_tls_with_certificates_of_both_sides(tmp_path: Path, fresh_server: Callable[..., Server]) -> None:
    """The server's is checked against our CA, ours by the server; anything else is an error that names the settings."""
    files = certificates(tmp_path)
    tls = f'cert_file: "{files["server.pem"]}", key_file: "{files["server.key"]}", ca_file: "{files["ca.pem"]}"'
    ours = {
        "OJS_NATS_TLS_CA": files["ca.pem"],
        "OJS_NATS_TLS_CERT": files["client.pem"],
        "OJS_NATS_TLS_KEY": files["client.key"],
    }
    with nats_server(tmp_path, f"tls {{ {tls}, verify: true }}") as port:
        works(fresh_server(nats_url=f"nats://127.0.0.1:{port}", env=ours))
        works(fresh_server(nats_url=f"tls://127.0.0.1:{port}", env=ours))
        assert "OJS_NATS_TLS_CA" in refused(port)  # its CA is none that this machine knows
        assert "cannot start" in refused(port, OJS_NATS_TLS_CA=files["ca.pem"])  # no certificate of ours
        mixed = ours | {"OJS_NATS_TLS_KEY": files["server.key"]}
        assert "OJS_NATS_TLS_CERT" in refused(port, **mixed)
        said = refused(port, **ours | {"OJS_NATS_TLS_CA": str(tmp_path / "extensions")})
        assert "OJS_NATS_TLS_CA" in said


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"OJS_NATS_TOKEN": SECRET}, ["OJS_NATS_TOKEN", "NATS_URL"]),
        ({"NATS_URL": "nats://a", "OJS_NATS_USER": "u"}, ["OJS_NATS_USER", "OJS_NATS_PASSWORD"]),
        ({"NATS_URL": "nats://a", "OJS_NATS_PASSWORD": SECRET}, ["OJS_NATS_PASSWORD", "OJS_NATS_USER"]),
        ({"NATS_URL": "nats://a", "OJS_NATS_TLS_KEY": "k"}, ["OJS_NATS_TLS_KEY", "OJS_NATS_TLS_CERT"]),
        (
            {"NATS_URL": "nats://a", "OJS_NATS_TOKEN": SECRET, "OJS_NATS_CREDS": "c"},
            ["OJS_NATS_CREDS", "OJS_NATS_TOKEN"],
        ),
        ({"NATS_URL": f"nats://{SECRET}@a", "OJS_NATS_CREDS": "c"}, ["OJS_NATS_CREDS", "credentials in NATS_URL"]),
        ({"NATS_URL": "http://a"}, ["NATS_URL", "tls://"]),
    ],
)
def test_settings_that_contradict_each_other_stop_the_start(env: dict[str, str], named: list[str]) -> None:
    """Both are named, no secret is."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("OJS_") and name != "NATS_URL"}
    done = subprocess.run(
        [sys.executable, "-m", "ojs_fast", "check"], env={**settings, "PYTHONPATH": str(ROOT), **env},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert [name for name in named if name not in said] == []
    assert SECRET not in said
