"""The settings: what is accepted, what is refused in which words, and that secrets stay secret."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from ojs_fast import __version__
from ojs_fast.cli.main import main
from ojs_fast.config import TABLE, Settings, SettingsError, markdown_table, mask_nats_url

README = Path(__file__).parents[2] / "README.md"


def problems(**env: str) -> list[str]:
    """Return what is wrong with these variables."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(env)
    return caught.value.problems


def test_defaults_need_no_environment() -> None:
    """An empty environment gives an embedded NATS on loopback, and describes itself as all defaults."""
    settings = Settings.from_env({})
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8080, 1)
    assert settings.is_embedded
    assert settings.nats_servers == []
    assert settings.retention_dead_letter_s == 180 * 86_400
    assert settings.warnings == ()
    assert all(one.is_default for one in settings.describe())


def test_the_table_and_the_object_have_the_same_fields() -> None:
    """Every setting of the table is a field of Settings and the other way round."""
    own = {"internal_nats_url", "warnings", "_raw"}
    assert {one.field for one in TABLE} == {one.name for one in dataclasses.fields(Settings)} - own


def test_an_empty_variable_counts_as_unset() -> None:
    """Compose files set variables to nothing; that must not be a value."""
    assert Settings.from_env({one.name: "  " for one in TABLE}) == Settings.from_env({})


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("OJS_PORT", "1", "port", 1),
        ("OJS_PORT", "65535", "port", 65_535),
        ("OJS_ALLOW_INSECURE_NO_AUTH", "TRUE", "allow_insecure_no_auth", True),
        ("OJS_ENABLE_RESET", "0", "enable_reset", False),
        ("OJS_DURABILITY", "Always", "durability", "always"),
        ("OJS_RETENTION_COMPLETED", "0", "retention_completed_s", 0),
        ("OJS_RETENTION_CANCELLED", "PT1S", "retention_cancelled_s", 1),
        ("OJS_RETENTION_DISCARDED", "P2W", "retention_discarded_s", 1_209_600),
        ("OJS_EVENTS_MAX_AGE", "P1DT2H3M4S", "events_max_age_s", 93_784),
        ("OJS_DATA_DIR", "/var/lib/ojs fast", "data_dir", Path("/var/lib/ojs fast")),
        ("OJS_BACKEND_WAIT_MS", "0", "backend_wait_ms", 0),
        ("OJS_HOST", "::1", "host", "::1"),
        ("OJS_HOST", "localhost", "host", "localhost"),
    ],
)
def test_good_values_are_taken(name: str, text: str, field: str, value: object) -> None:
    """Each kind of setting accepts its limits and its spellings."""
    assert getattr(Settings.from_env({name: text}), field) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("OJS_PORT", "0"),
        ("OJS_PORT", "65536"),
        ("OJS_PORT", "80 80"),
        ("OJS_PORT", "8080.0"),
        ("OJS_PORT", "\u0661"),
        ("OJS_PORT", "9" * 5_000),
        ("OJS_WORKERS", "65"),
        ("OJS_NATS_REPLICAS", "2"),
        ("OJS_DURABILITY", "sometimes"),
        ("OJS_ENABLE_RESET", "maybe"),
        ("OJS_MAX_BODY_BYTES", "16777216"),
        ("OJS_MAX_DEPTH", "1"),
        ("OJS_RETENTION_COMPLETED", "P"),
        ("OJS_RETENTION_COMPLETED", "PT"),
        ("OJS_RETENTION_COMPLETED", "P1M"),
        ("OJS_RETENTION_COMPLETED", "PT0S"),
        ("OJS_RETENTION_COMPLETED", "-P1D"),
        ("OJS_RETENTION_COMPLETED", "P99999999999D"),
        ("OJS_HOST", "a b"),
        ("OJS_OTEL_ENABLED", "perhaps"),
        ("OJS_OTEL_ENDPOINT", "collector:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://collector:4317"),
        ("NATS_URL", "http://127.0.0.1:4222"),
        ("NATS_URL", "nats://one:4222,,nats://two:4222"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(name: str, text: str) -> None:
    """The error has the variable, the value and what would be accepted."""
    (problem,) = problems(**{name: text})
    allowed = next(one.allowed for one in TABLE if one.name == name)
    assert problem == f"{name}: {text!r} is not allowed; allowed: {allowed}"


def test_all_bad_values_are_reported_at_once() -> None:
    """Nobody should have to start the server once per mistake."""
    found = problems(OJS_PORT="x", OJS_WORKERS="y", OJS_LOG_LEVEL="z")
    assert [problem.partition(":")[0] for problem in found] == ["OJS_PORT", "OJS_WORKERS", "OJS_LOG_LEVEL"]


def test_without_a_key_only_loopback_is_served() -> None:
    """An open port without authentication needs an explicit word."""
    (problem,) = problems(OJS_HOST="0.0.0.0")
    assert problem.startswith("OJS_HOST: '0.0.0.0' is not allowed")
    assert "OJS_API_KEY" in problem
    assert "OJS_ALLOW_INSECURE_NO_AUTH=true" in problem
    assert Settings.from_env({"OJS_HOST": "0.0.0.0", "OJS_API_KEY": "k"}).api_key == "k"
    assert Settings.from_env({"OJS_HOST": "0.0.0.0", "OJS_ALLOW_INSECURE_NO_AUTH": "true"}).host == "0.0.0.0"


def test_replicas_need_a_cluster() -> None:
    """The embedded NATS is one server and cannot hold three copies."""
    (problem,) = problems(OJS_NATS_REPLICAS="3")
    assert "NATS_URL" in problem
    assert Settings.from_env({"OJS_NATS_REPLICAS": "3", "NATS_URL": "nats://n1,nats://n2"}).nats_replicas == 3


@pytest.mark.parametrize(
    ("env", "is_traced"),
    [
        ({}, False),
        ({"OJS_OTEL_ENABLED": "true"}, True),
        ({"OJS_OTEL_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://u:p@[::1]:4318/otlp"}, True),
        ({"OJS_OTEL_ENABLED": "false", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
    ],
)
def test_traces_are_sent_when_asked_for(env: dict[str, str], *, is_traced: bool) -> None:
    """By OJS_OTEL_ENABLED, or by naming a receiver; a clear no wins."""
    assert Settings.from_env(env).is_traced is is_traced


def test_an_unknown_variable_warns_with_the_closest_name() -> None:
    """A misspelt setting is not silently without effect; foreign variables are none of our business."""
    env = {
        "OJS_API_KEYS": "x",
        "OJS_INTERNAL_NATS_URL": "nats://t@h",
        "OJS_INTERNAL_BOOT_ID": "b",
        "OJS_URL": "u",
        "PATH": "p",
    }
    (warning,) = Settings.from_env(env).warnings
    assert warning == "OJS_API_KEYS is not a setting and has no effect; the closest one is OJS_API_KEY"


def test_a_worker_finds_the_embedded_nats() -> None:
    """The main process hands the address over in the environment; NATS_URL goes before it."""
    assert Settings.from_env({"OJS_INTERNAL_NATS_URL": "nats://t@127.0.0.1:1"}).nats_servers == ["nats://t@127.0.0.1:1"]
    both = {"OJS_INTERNAL_NATS_URL": "nats://t@127.0.0.1:1", "NATS_URL": "nats://a:1, b:2"}
    assert Settings.from_env(both).nats_servers == ["nats://a:1", "b:2"]


def test_secrets_are_shown_nowhere() -> None:
    """Neither the description, nor the object's repr, nor an error has a key, password or token."""
    env = {"OJS_API_KEY": "hush-key", "NATS_URL": "nats://user:hush-pw@h1:4222,nats://hush-token@h2"}
    env["OJS_OTEL_ENDPOINT"] = "https://user:hush-otel@h3"
    settings = Settings.from_env(env)
    bad = problems(OJS_API_KEY="hush key", NATS_URL="nats://user:hush,pw@h1")
    assert "hush" not in f"{settings.describe()} {settings!r} {bad}"
    assert mask_nats_url(env["NATS_URL"]) == "nats://********@h1:4222,nats://********@h2"


def test_check_prints_the_effective_settings() -> None:
    """`ojs-fast check` lists every setting once and exits with 0."""
    result = CliRunner().invoke(main, ["check"], env={"OJS_PORT": "9999", "OJS_API_KEY": "hush"})
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == [one.name for one in TABLE]
    assert re.search(r"^OJS_PORT +9999 +set ", result.stdout, re.MULTILINE)
    assert "hush" not in result.output


@pytest.mark.parametrize("command", ["check", "serve"])
def test_bad_settings_end_the_command_with_2(command: str) -> None:
    """Each problem is one line on standard error."""
    result = CliRunner().invoke(main, [command], env={"OJS_PORT": "x", "OJS_WORKERS": "y"})
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 2


def test_version_is_the_packages() -> None:
    """`ojs-fast --version` says the one version there is."""
    assert CliRunner().invoke(main, ["--version"]).output.strip().endswith(__version__)


@pytest.mark.skipif(not README.exists(), reason="README.md is not written yet")
def test_the_readme_lists_exactly_these_settings() -> None:
    """README and table name the same variables in the same order; `markdown_table` renders what belongs there."""
    rows = re.findall(r"^\| `((?:OJS_|NATS_|OTEL_)[A-Z_]+)` \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [one.name for one in TABLE], f"put this into README.md:\n{markdown_table()}"
