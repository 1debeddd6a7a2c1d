"""How a NATS server lets us in: TLS and credentials, for both of a node's connections.

Knows files, keys and the CONNECT message; nothing of who connects.
"""

import base64
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote

import nkeys  # type: ignore[import-untyped]

from ojs_fast.config import Settings
from ojs_fast.storage.probe import NatsStartError

# The two blocks of a credentials file, as `nsc` writes it.
_BLOCK = r"-----BEGIN {}-----\s*(\S+)\s*------?END {}------?"
_JWT = re.compile(_BLOCK.format("NATS USER JWT", "NATS USER JWT"))
_SEED = re.compile(_BLOCK.format("USER NKEY SEED", "USER NKEY SEED"))


@dataclass(slots=True, frozen=True)
class NatsAccess:
    """What to show a NATS server; what stands in its URL goes before user, password and token."""

    tls: ssl.SSLContext | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    creds_file: str = ""

    @classmethod
    def from_settings(cls, settings: Settings) -> "NatsAccess":
        """What the settings say; nothing for the embedded server, whose address holds its token.

        Raises NatsStartError.
        """
        if settings.nats_creds:
            read_credentials(settings.nats_creds)
        return cls(
            tls_context(settings.nats_tls_ca, settings.nats_tls_cert, settings.nats_tls_key),
            settings.nats_user,
            settings.nats_password,
            settings.nats_token,
            settings.nats_creds,
        )

    def for_client(self, servers: list[str]) -> dict[str, Any]:
        """The options of nats-py."""
        options: dict[str, Any] = {}
        if self.tls is not None or any(server.startswith("tls://") for server in servers):
            options["tls"] = self.tls or ssl.create_default_context()
        if self.creds_file:
            options["user_credentials"] = self.creds_file
        if self.user:
            options |= {"user": self.user, "password": self.password}
        if self.token:
            options["token"] = self.token
        return options

    def context(self, scheme: str, *, is_required: bool) -> ssl.SSLContext | None:
        """What to secure a connection with, None for a plain one; `is_required`: the server says so."""
        if self.tls is None and (is_required or scheme == "tls"):
            return ssl.create_default_context()
        return self.tls

    def for_connect(self, url: SplitResult, nonce: str) -> dict[str, str]:
        """The members of CONNECT that let us in. Raises NatsStartError."""
        user, password = unquote(url.username or ""), unquote(url.password or "")
        if user and password:
            return {"user": user, "pass": password}
        if user:
            return {"auth_token": user}
        if self.creds_file:
            jwt, seed = read_credentials(self.creds_file)
            signature = nkeys.from_seed(seed).sign(nonce.encode())
            return {"jwt": jwt, "sig": base64.b64encode(signature).decode()}
        if self.user:
            return {"user": self.user, "pass": self.password}
        return {"auth_token": self.token} if self.token else {}


def read_credentials(path: str) -> tuple[str, bytes]:
    """The JWT and the seed in a credentials file. Raises NatsStartError."""
    try:
        text = Path(path).read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise NatsStartError(f"OJS_NATS_CREDS: '{path}' cannot be read ({reason}); allowed: a .creds file") from error
    jwt, seed = _JWT.search(text), _SEED.search(text)
    if jwt is None or seed is None:
        missing = "a NATS USER JWT" if jwt is None else "a USER NKEY SEED"
        raise NatsStartError(f"OJS_NATS_CREDS: '{path}' holds no block with {missing}; allowed: a .creds file")
    return jwt.group(1), seed.group(1).encode()


def tls_context(ca: str, certificate: str, key: str) -> ssl.SSLContext | None:
    """What the files say, None without any: the CA that signed the servers, our own certificate and its key.

    Raises NatsStartError.
    """
    if not (ca or certificate):
        return None
    try:
        context = ssl.create_default_context(cafile=ca or None)
    except OSError as error:  # ssl.SSLError is one
        raise NatsStartError(
            f"OJS_NATS_TLS_CA: '{ca}' cannot be used ({error.strerror or error}); allowed: a PEM file"
        ) from error
    if certificate:
        try:
            context.load_cert_chain(certificate, key)
        except OSError as error:
            raise NatsStartError(
                f"OJS_NATS_TLS_CERT: '{certificate}' and OJS_NATS_TLS_KEY '{key}' cannot be used together "
                f"({error.strerror or error}); allowed: a certificate chain and its unencrypted key, both PEM"
            ) from error
    return context
