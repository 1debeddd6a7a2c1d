"""API keys: the file, the ring, and the table of scopes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from ojs_fast.api.keys import EVERY_SCOPE, LOOK_S, KeyRing, KeysFileError, Scope, create_key, read_keys, revoke_key
from ojs_fast.api.routes import routes
from ojs_fast.api.scopes import SCOPE_OF, scope_of

GOOD = {"name": "a", "sha256": "0" * 64, "scopes": ["read"]}


def test_every_route_has_exactly_one_scope_and_no_scope_lacks_its_route() -> None:
    """The table and the routes name the same endpoints; open ones have no scope."""
    table = routes(*(MagicMock() for _ in range(17)), with_reset=True)
    needed = {f"{r.method} {r.path.rpartition('/ojs/v1')[2]}" for r in table if not r.is_open}
    assert needed == set(SCOPE_OF), "put each endpoint into ojs_fast/api/scopes.py"


def test_an_endpoint_that_the_table_does_not_know_needs_admin() -> None:
    """What was forgotten is closed."""
    assert scope_of("POST", "/ojs/v1/new") is Scope.ADMIN


def test_a_key_is_stored_hashed_and_only_for_its_owner(tmp_path: Path) -> None:
    """The file never holds the text, and others cannot read it."""
    path = tmp_path / "keys.json"
    text = create_key(path, "app", Scope.PRODUCE | Scope.READ)
    assert text.encode() not in path.read_bytes()
    assert path.stat().st_mode & 0o077 == 0
    assert KeyRing("", path).scopes_of(text.encode()) == Scope.PRODUCE | Scope.READ
    assert KeyRing("", path).scopes_of(b"") is None


def test_the_single_key_has_every_scope_beside_the_file(tmp_path: Path) -> None:
    """OJS_API_KEY goes on working."""
    create_key(tmp_path / "keys.json", "app", Scope.WORK)
    assert KeyRing("single", tmp_path / "keys.json").scopes_of(b"single") == EVERY_SCOPE


def test_a_changed_file_counts_from_the_next_look_and_a_bad_one_never(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Created and revoked keys count within LOOK_S; a damaged file changes nothing and is logged."""
    path, now = tmp_path / "keys.json", 0.0
    first = create_key(path, "first", Scope.WORK).encode()
    ring = KeyRing("", path, clock=lambda: now)
    second = create_key(path, "second", Scope.READ).encode()
    revoke_key(path, "first")
    assert ring.scopes_of(first) == Scope.WORK
    now += LOOK_S
    assert ring.scopes_of(first) is None
    assert ring.scopes_of(second) == Scope.READ
    path.write_text("{")
    now += LOOK_S
    with caplog.at_level(logging.ERROR):
        assert ring.scopes_of(second) == Scope.READ
    assert "stay as they were" in caplog.text


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "not JSON"),
        ("[]", 'list "keys"'),
        (json.dumps({"keys": [1]}), "keys[0]"),
        (json.dumps({"keys": [GOOD, {**GOOD, "name": "A b"}]}), "keys[1].name"),
        (json.dumps({"keys": [{**GOOD, "sha256": "12"}]}), "keys[0].sha256"),
        (json.dumps({"keys": [{**GOOD, "scopes": ["root"]}]}), "keys[0].scopes"),
        (json.dumps({"keys": [{**GOOD, "scopes": []}]}), "keys[0].scopes"),
        (json.dumps({"keys": [GOOD, GOOD]}), "two keys"),
    ],
)
def test_a_bad_file_is_refused_and_named(tmp_path: Path, content: str, named: str) -> None:
    """The message says which entry and field is wrong."""
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(KeysFileError) as refused:
        read_keys(path)
    assert named in str(refused.value)


def test_names_are_unique_and_unknown_ones_cannot_be_revoked(tmp_path: Path) -> None:
    """Neither changes the file."""
    path = tmp_path / "keys.json"
    create_key(path, "app", Scope.READ)
    before = path.read_bytes()
    with pytest.raises(KeysFileError, match="already"):
        create_key(path, "app", Scope.READ)
    with pytest.raises(KeysFileError, match="no key"):
        revoke_key(path, "other")
    assert path.read_bytes() == before
