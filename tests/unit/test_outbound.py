"""The guard of requests to addresses that clients name: no rebinding, no way in by redirects, TLS to the name."""

from __future__ import annotations

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from ojs_fast import outbound
from ojs_fast.outbound import BadTarget, Poster, is_public, split_url
from tests.support.certificates import self_signed
from tests.support.receiver import Receiver, Says

HOST = "hook.example"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a file with key and certificate of HOST."""
    directory = tmp_path_factory.mktemp("tls")
    cert, key = self_signed(directory, f"DNS:{HOST}")
    both = directory / "both.pem"
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    return both


@pytest.fixture
def receiver(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Receiver:
    """Give an endpoint at HOST that is taken for public, though it is at 127.0.0.1; nothing else on loopback is."""
    there = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    there.load_cert_chain(certificate)
    here = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(ssl, "create_default_context", lambda: here)
    monkeypatch.setattr(outbound, "is_public", lambda one: one == ipaddress.ip_address("127.0.0.1"))
    return Receiver(tls=there)


class Names:
    """A resolver that answers in turn, the last answer for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        """The next answer."""
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def poster(names: Names) -> Poster:
    """A strict one."""
    return Poster(timeout_s=5, allow_private=False, resolve=names)


async def test_the_connection_goes_to_the_address_that_was_checked(receiver: Receiver) -> None:
    """The name is resolved by us only, and TLS is with the name."""
    names = Names(["127.0.0.1"])
    with receiver:
        one = poster(names)
        answer = await one.post(f"https://{HOST}:{receiver.port}/x", {"X-A": "b"}, b"{}")
        await one.close()
    assert (answer.status, answer.body, answer.error) == (200, b"OK", "")
    assert receiver.received[0].headers["host"] == f"{HOST}:{receiver.port}"
    assert names.asked == 1


async def test_a_name_that_points_elsewhere_later_gets_nothing(receiver: Receiver) -> None:
    """DNS rebinding: public when it is checked, internal when it is called; also one internal among public ones."""
    names = Names(["127.0.0.1"], ["10.0.0.1"], ["127.0.0.1", "127.0.0.2"])
    with receiver:
        one = poster(names)
        url = f"https://{HOST}:{receiver.port}/"
        await one.check(url)
        for _ in range(2):
            answer = await one.post(url, {}, b"{}")
            assert (answer.status, answer.error.split(":")[0]) == (0, "refused")
        with pytest.raises(BadTarget):
            await one.check(url)
        await one.close()
    assert receiver.received == []


@pytest.mark.parametrize(
    "to", ["https://127.0.0.2:{port}/", "https://other.example:{port}/", "http://hook.example:{port}/", "//[::1]/"]
)
async def test_no_redirect_leads_inside(receiver: Receiver, to: str) -> None:
    """Each hop is checked as the first one was: address, name, scheme."""
    receiver.says = lambda _: Says(307, {"Location": to.format(port=receiver.port)})

    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"] if host == HOST else ["192.168.0.1"]

    with receiver:
        one = Poster(timeout_s=5, allow_private=False, resolve=resolve)
        answer = await one.post(f"https://{HOST}:{receiver.port}/", {}, b"{}")
        await one.close()
    assert (answer.status, answer.error.split(":")[0]) == (0, "refused")
    assert len(receiver.received) == 1


async def test_a_certificate_of_another_name_is_refused(receiver: Receiver) -> None:
    """Whoever answers at the address must be who the URL names."""
    with receiver:
        one = poster(Names(["127.0.0.1"]))
        answer = await one.post(f"https://other.example:{receiver.port}/", {}, b"{}")
        await one.close()
    assert answer.status == 0
    assert answer.error.startswith("ConnectError")
    assert receiver.received == []


async def test_a_name_that_nobody_knows_may_be_registered() -> None:
    """DNS may be away; it is looked at again for each request."""

    async def resolve(host: str, port: int) -> list[str]:
        raise OSError("no such host")

    one = Poster(timeout_s=5, allow_private=False, resolve=resolve)
    await one.check("https://example.com/")
    assert "no such host" in (await one.post("https://example.com/", {}, b"{}")).error
    await one.close()


@pytest.mark.parametrize("text", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_pass(text: str) -> None:
    """Also one that stands for a public one."""
    assert is_public(ipaddress.ip_address(text))
    host = f"[{text}]" if ":" in text else text
    split_url(f"https://{host}:8443/x?y=z", allow_private=False)


def test_retry_after_is_a_number_or_a_date() -> None:
    """Anything else asks for nothing; a day at most."""
    read = outbound._retry_after_s
    assert (read("7"), read("9" * 30), read(""), read("-1"), read("soon")) == (7, 86_400, None, None, None)
    in_a_minute = read(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True))
    assert in_a_minute is not None
    assert 50 < in_a_minute <= 60
    assert read(format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)) == 0
