"""API keys: named, scoped, stored as SHA-256 only, read again when their file changes.

Owns the format of the keys file and the meaning of scopes. Must not know which endpoint needs which scope.
A key has 256 random bits, so a plain SHA-256 cannot be searched, and finding a key by its digest tells nothing by
its timing: whoever measures it controls the key, not the digest.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntFlag
from pathlib import Path
from typing import NamedTuple

import orjson

log = logging.getLogger(__name__)

LOOK_S = 1.0
PREFIX = "ojs_"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Scope(IntFlag):
    """What a key may do; none includes another."""

    PRODUCE = 1
    WORK = 2
    READ = 4
    ADMIN = 8


EVERY_SCOPE = Scope.PRODUCE | Scope.WORK | Scope.READ | Scope.ADMIN
SCOPES = {str(one.name).lower(): one for one in Scope}


class KeysFileError(ValueError):
    """The keys file cannot be used; the message says what is wrong, without any secret."""


class Key(NamedTuple):
    """One key as it is stored: its name, the SHA-256 of its text, what it may do."""

    name: str
    sha256: str
    scopes: Scope


def scope_names(scopes: Scope) -> list[str]:
    """Names of all scopes in the set."""
    return [name for name, one in SCOPES.items() if one & scopes]


def read_keys(path: Path) -> list[Key]:
    """Read every key of the file. Raises KeysFileError."""
    try:
        stored = orjson.loads(path.read_bytes())
    except OSError as error:
        raise KeysFileError(f"the keys file {path} cannot be read: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise KeysFileError(f"the keys file {path} is not JSON: {error.msg} at byte {error.pos}") from None
    entries = stored.get("keys") if isinstance(stored, dict) else None
    if not isinstance(entries, list):
        raise KeysFileError(f'the keys file {path} has no list "keys"; make it with: ojs-fast keys create')
    keys = [_read_key(entry, f"the keys file {path}: keys[{index}]") for index, entry in enumerate(entries)]
    if len({key.name for key in keys}) != len(keys):
        raise KeysFileError(f"the keys file {path} has two keys of one name; expected a different name for each")
    return keys


def _read_key(entry: object, where: str) -> Key:
    if not isinstance(entry, dict):
        raise KeysFileError(f"{where} is no object; expected name, sha256 and scopes")
    name, digest, scopes = entry.get("name"), entry.get("sha256"), entry.get("scopes")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise KeysFileError(f"{where}.name is not allowed; expected {_NAME.pattern}")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise KeysFileError(f"{where}.sha256 is not allowed; expected 64 lower-case hexadecimal digits")
    if not isinstance(scopes, list) or not scopes or not all(isinstance(s, str) and s in SCOPES for s in scopes):
        raise KeysFileError(f"{where}.scopes is not allowed; expected a list of {', '.join(SCOPES)}")
    granted = Scope(0)
    for scope in scopes:
        granted |= SCOPES[scope]
    return Key(name, digest, granted)


def create_key(path: Path, name: str, scopes: Scope) -> str:
    """Add a key to the file, which is made if missing; returns its text, which nobody can read again.

    Raises KeysFileError when the name is taken or not allowed.
    """
    if not _NAME.fullmatch(name):
        raise KeysFileError(f"the name {name[:80]!r} is not allowed; expected {_NAME.pattern}")
    with _locked(path):
        keys = read_keys(path) if path.exists() else []
        if any(key.name == name for key in keys):
            raise KeysFileError(f"there is a key {name!r} already; revoke it first or choose another name")
        text = PREFIX + secrets.token_urlsafe(32)
        _write(path, [*keys, Key(name, hashlib.sha256(text.encode()).hexdigest(), scopes)])
    return text


def revoke_key(path: Path, name: str) -> None:
    """Remove a key from the file. Raises KeysFileError when there is none of that name."""
    with _locked(path):
        keys = read_keys(path)
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            raise KeysFileError(f"there is no key {name[:80]!r} in {path}")
        _write(path, left)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise KeysFileError(f"the keys file {path} cannot be changed: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, keys: list[Key]) -> None:
    # Renamed into place: a server that reads at this moment sees the old or the new file, never half of one.
    entries = [{"name": key.name, "sha256": key.sha256, "scopes": scope_names(key.scopes)} for key in keys]
    descriptor, made = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(orjson.dumps({"keys": entries}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
            file.flush()
            os.fsync(file.fileno())
        Path(made).replace(path)
    except BaseException:
        Path(made).unlink()
        raise


class KeyRing:
    """The keys in force: those of the file, and OJS_API_KEY with every scope."""

    def __init__(self, api_key: str, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file. Raises KeysFileError."""
        self._fixed = {hashlib.sha256(api_key.encode()).digest(): EVERY_SCOPE} if api_key else {}
        self._path = path
        self._clock = clock
        self._next_look_s = clock() + LOOK_S
        self._seen = _stamp(path)
        self._granted: dict[bytes, Scope] = self._load()

    def scopes_of(self, key: bytes) -> Scope | None:
        """What the key with this text may do, None for an unknown one."""
        if self._path is not None and self._clock() >= self._next_look_s:
            self._look()
        return self._granted.get(hashlib.sha256(key).digest())

    def _look(self) -> None:
        self._next_look_s = self._clock() + LOOK_S
        stamp = _stamp(self._path)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._granted = self._load()
        except KeysFileError as error:
            # One slip of an editor must not lock every client out; the operator sees this line.
            log.error("the API keys stay as they were: %s", error)
        else:
            log.info("the API keys were read again")

    def _load(self) -> dict[bytes, Scope]:
        keys = read_keys(self._path) if self._path is not None else []
        return {bytes.fromhex(key.sha256): key.scopes for key in keys} | self._fixed


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None  # reading it says why
    return (found.st_mtime_ns, found.st_size, found.st_ino) if found is not None else None
