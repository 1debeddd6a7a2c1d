"""The settings: read once from the environment, frozen, checked all together.

Owns every environment variable of the server, as one table (`TABLE`) that the parser, `ojs-fast check` and
the README share. Must not know what a setting is used for; imports nothing from the project.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

#: The address of the embedded NATS, token included, on its way from the main process to the workers.
INTERNAL_NATS_URL = "OJS_INTERNAL_NATS_URL"

#: Names the main process that owns the embedded NATS: every node of another one is dead for certain.
INTERNAL_BOOT_ID = "OJS_INTERNAL_BOOT_ID"

#: `OJS_*` variables that are no settings but no mistakes either (tests, the build, the official SDKs).
_FOREIGN = frozenset({INTERNAL_NATS_URL, INTERNAL_BOOT_ID, "OJS_URL", "OJS_CA", "OJS_DEBUG"})

#: JetStream's file store refuses records over 32 MiB (measured, 2.15.1); a record holds the arguments and
#: the result, each as large as one body, and what the server adds.
MAX_BODY_BYTES_CEILING = 15 * 1024 * 1024


class SettingsError(ValueError):
    """One or more settings are unusable; `problems` has a sentence for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Described(NamedTuple):
    """One row of `ojs-fast check`."""

    name: str
    value: str
    is_default: bool
    description: str


@dataclass(frozen=True)
class Setting:
    """One environment variable: how it is read, what it may be, what it means."""

    name: str
    field: str
    parse: Callable[[str], Any]
    default: str
    allowed: str
    description: str
    mask: Callable[[str], str] = str


def _text(raw: str) -> str:
    return raw


def _path(raw: str) -> Path:
    if "\0" in raw:
        raise ValueError(raw)
    return Path(raw)


def _int(low: int, high: int) -> Callable[[str], int]:
    def parse(raw: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", raw):
            raise ValueError(raw)
        value = int(raw)
        if not low <= value <= high:
            raise ValueError(raw)
        return value

    return parse


def _choice(*names: str) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        value = raw.lower()
        if value not in names:
            raise ValueError(raw)
        return value

    return parse


def _replicas(raw: str) -> int:
    return int(_choice("1", "3", "5")(raw))


_BOOLS = {"true": True, "1": True, "yes": True, "on": True} | dict.fromkeys(("false", "0", "no", "off"), False)


def _bool(raw: str) -> bool:
    try:
        return _BOOLS[raw.lower()]
    except KeyError:
        raise ValueError(raw) from None


_DURATION = re.compile(
    r"P(?!$)(?:(\d+)W)?(?:(\d+)D)?(?:T(?=\d)(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?", re.ASCII | re.IGNORECASE
)
_DURATION_S = (604_800, 86_400, 3_600, 60, 1)
_MAX_DURATION_S = 100 * 365 * 86_400  # JetStream counts nanoseconds in 63 bits: 292 years


def _duration_s(raw: str) -> int:
    """Read an ISO 8601 duration as whole seconds, `0` as 0 (= for ever)."""
    if raw == "0":
        return 0
    match = _DURATION.fullmatch(raw)
    if match is None:
        raise ValueError(raw)
    seconds = sum(int(part or 0) * unit for part, unit in zip(match.groups(), _DURATION_S, strict=True))
    if not 1 <= seconds <= _MAX_DURATION_S:
        raise ValueError(raw)
    return seconds


def _host(raw: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.:_-]+", raw):
        raise ValueError(raw)
    return raw


def _delays_s(raw: str) -> tuple[int, ...]:
    parts = [part.strip() for part in raw.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,6}", part) and int(part) <= 86_400 for part in parts) or len(parts) > 20:
        raise ValueError(raw)
    return tuple(map(int, parts))


def _api_key(raw: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]{1,1024}", raw):
        raise ValueError(raw)
    return raw


_NATS_URL = re.compile(
    r"(?:(?:nats|tls)://)?(?:[^@/\s,]*@)?(?:\[[0-9a-f:]+\]|[a-z0-9._-]+)(?::\d{1,5})?/?",
    re.ASCII | re.IGNORECASE,
)


def _nats_url(raw: str) -> str:
    if not all(_NATS_URL.fullmatch(one.strip()) for one in raw.split(",")):
        raise ValueError(raw)
    return raw


_HTTP_URL = re.compile(
    r"https?://(?:[^@/\s]*@)?(?:\[[0-9a-f:]+\]|[a-z0-9._-]+)(?::\d{1,5})?(?:/\S*)?", re.ASCII | re.IGNORECASE
)


def _http_url(raw: str) -> str:
    if not _HTTP_URL.fullmatch(raw):
        raise ValueError(raw)
    return raw


def _mask_secret(raw: str) -> str:
    return "********" if raw else ""


def mask_nats_url(raw: str) -> str:
    """Hide the user, password or token of every address in a comma-separated list."""
    parts = raw.split(",")
    if not all(_NATS_URL.fullmatch(one.strip()) for one in parts):
        parts = [raw]  # a comma inside a password must not reveal half of it
    return ",".join(re.sub(r"^(\s*(?:\w+://)?).*@", r"\1********@", one) for one in parts)


def mask_http_url(raw: str) -> str:
    """Hide the user and password of an address."""
    return re.sub(r"^(\w+://).*@", r"\1********@", raw)


_DURATION_ALLOWED = "ISO 8601 duration of whole seconds such as P1D or PT12H, or 0 for ever"
_MILLISECONDS = "1 to 604800000 (milliseconds)"
_ms = _int(1, 604_800_000)

# fmt: off
# (a table reads best with few lines per row)
TABLE: tuple[Setting, ...] = (
    Setting(
        "NATS_URL", "nats_url", _nats_url, "", "nats:// or tls:// addresses, separated by commas",
        "NATS servers to use (2.12 or newer, JetStream on); unset starts an embedded one", mask_nats_url,
    ),
    Setting("OJS_HOST", "host", _host, "127.0.0.1", "an address or host name of this machine", "address to listen on"),
    Setting("OJS_PORT", "port", _int(1, 65_535), "8080", "1 to 65535", "TCP port to listen on"),
    Setting(
        "OJS_API_KEY", "api_key", _api_key, "", "printable ASCII without spaces",
        "key that clients send as `Authorization: Bearer`; unset turns authentication off", _mask_secret,
    ),
    Setting(
        "OJS_API_KEYS_FILE", "api_keys_file", _text, "", "a file made by `ojs-fast keys create`",
        "named keys with scopes, read again when it changes",
    ),
    Setting(
        "OJS_TLS_CERT", "tls_cert", _text, "", "a PEM file, together with OJS_TLS_KEY",
        "certificate chain; set, the server speaks HTTPS only",
    ),
    Setting("OJS_TLS_KEY", "tls_key", _text, "", "a PEM file (PKCS#8)", "private key of OJS_TLS_CERT"),
    Setting(
        "OJS_ALLOW_INSECURE_NO_AUTH", "allow_insecure_no_auth", _bool, "false", "true or false",
        "listen on more than loopback without API keys",
    ),
    Setting("OJS_DATA_DIR", "data_dir", _path, "./data", "a directory", "where the embedded NATS keeps everything"),
    Setting(
        "OJS_DURABILITY", "durability", _choice("always", "interval"), "always", "always or interval",
        "embedded NATS: fsync before each acknowledgement (always) or every second (interval)",
    ),
    Setting("OJS_NATS_REPLICAS", "nats_replicas", _replicas, "1", "1, 3 or 5", "replicas of every stream and bucket"),
    Setting(
        "OJS_NATS_TLS_CA", "nats_tls_ca", _text, "", "a PEM file of CA certificates",
        "who must have signed the certificates of the servers in NATS_URL; set, they are spoken to by TLS only",
    ),
    Setting(
        "OJS_NATS_TLS_CERT", "nats_tls_cert", _text, "", "a PEM file, together with OJS_NATS_TLS_KEY",
        "certificate chain that is shown to the servers in NATS_URL",
    ),
    Setting("OJS_NATS_TLS_KEY", "nats_tls_key", _text, "", "a PEM file", "private key of OJS_NATS_TLS_CERT"),
    Setting("OJS_NATS_CREDS", "nats_creds", _text, "", "a .creds file", "JWT and seed for the servers in NATS_URL"),
    Setting("OJS_NATS_USER", "nats_user", _text, "", "together with OJS_NATS_PASSWORD", "user for NATS_URL"),
    Setting("OJS_NATS_PASSWORD", "nats_password", _text, "", "any text", "password of OJS_NATS_USER", _mask_secret),
    Setting("OJS_NATS_TOKEN", "nats_token", _text, "", "any text", "token for the servers in NATS_URL", _mask_secret),
    Setting("OJS_WORKERS", "workers", _int(1, 64), "1", "1 to 64", "server processes"),
    Setting(
        "OJS_VISIBILITY_TIMEOUT_MS", "visibility_timeout_ms", _ms, "1800000", _MILLISECONDS,
        "how long a fetched job stays with its worker without a heartbeat",
    ),
    Setting(
        "OJS_EXECUTION_TIMEOUT_MS", "execution_timeout_ms", _ms, "1800000", _MILLISECONDS,
        "how long one attempt of a job may run",
    ),
    Setting(
        "OJS_MAX_BODY_BYTES", "max_body_bytes", _int(1_024, MAX_BODY_BYTES_CEILING), "10485760",
        f"1024 to {MAX_BODY_BYTES_CEILING} (bytes)", "largest request body; larger ones get 413",
    ),
    Setting("OJS_MAX_DEPTH", "max_depth", _int(2, 1_000), "100", "2 to 1000", "deepest nesting of a request's JSON"),
    Setting(
        "OJS_RETENTION_COMPLETED", "retention_completed_s", _duration_s, "P1D", _DURATION_ALLOWED,
        "how long completed jobs are kept",
    ),
    Setting(
        "OJS_RETENTION_CANCELLED", "retention_cancelled_s", _duration_s, "P1D", _DURATION_ALLOWED,
        "how long cancelled jobs are kept",
    ),
    Setting(
        "OJS_RETENTION_DISCARDED", "retention_discarded_s", _duration_s, "P7D", _DURATION_ALLOWED,
        "how long discarded jobs are kept",
    ),
    Setting(
        "OJS_RETENTION_DEAD_LETTER", "retention_dead_letter_s", _duration_s, "P180D", _DURATION_ALLOWED,
        "how long dead letters are kept",
    ),
    Setting(
        "OJS_DEAD_LETTER_MAX_COUNT", "dead_letter_max_count", _int(0, 2**31), "0", "0 to 2147483648",
        "how many dead letters are kept, the oldest go first; 0 keeps all until their time is over",
    ),
    Setting(
        "OJS_RETENTION_WORKFLOWS", "retention_workflows_s", _duration_s, "P7D", _DURATION_ALLOWED,
        "how long finished workflows and their jobs are kept",
    ),
    Setting(
        "OJS_EVENTS_MAX_AGE", "events_max_age_s", _duration_s, "P1D", _DURATION_ALLOWED,
        "how long events can be read back",
    ),
    Setting(
        "OJS_EVENTS_MAX_BYTES", "events_max_bytes", _int(1_048_576, 2**50), "1073741824",
        "1048576 to 1125899906842624 (bytes)", "how much the events may take; the oldest go first",
    ),
    Setting(
        "OJS_WEBHOOKS_ALLOW_PRIVATE", "webhooks_allow_private", _bool, "false", "true or false",
        "webhooks may call loopback, private and other internal addresses, and http; for closed networks and tests",
    ),
    Setting(
        "OJS_WEBHOOKS_TIMEOUT_MS", "webhooks_timeout_ms", _int(1, 60_000), "30000", "1 to 60000 (milliseconds)",
        "how long a webhook's endpoint may take to answer",
    ),
    Setting(
        "OJS_WEBHOOKS_RETRY_DELAYS", "webhooks_retry_delays_s", _delays_s, "30,120,600,3600,14400,43200,86400",
        "1 to 20 numbers from 0 to 86400 (seconds), separated by commas",
        "how long a failed webhook delivery waits before each retry; then it is dead",
    ),
    Setting(
        "OJS_WEBHOOKS_PAUSE_AFTER", "webhooks_pause_after", _int(0, 1_000_000), "50", "0 to 1000000",
        "attempts in a row that fail before a webhook subscription is paused; 0 never pauses",
    ),
    Setting(
        "OJS_WEBHOOKS_MAX_PER_SECOND", "webhooks_max_per_second", _int(1, 100_000), "250", "1 to 100000",
        "attempts to deliver to webhooks that one process makes in a second; what is more waits",
    ),
    Setting(
        "OJS_SHUTDOWN_TIMEOUT_MS", "shutdown_timeout_ms", _ms, "30000", _MILLISECONDS,
        "how long requests under way may take to finish at shutdown",
    ),
    Setting(
        "OJS_BACKEND_WAIT_MS", "backend_wait_ms", _int(0, 600_000), "2000", "0 to 600000 (milliseconds)",
        "how long a request waits for a lost NATS connection before it gets 503",
    ),
    Setting(
        "OJS_LOG_LEVEL", "log_level", _choice("debug", "info", "warning", "error"), "info",
        "debug, info, warning or error", "least severity that is logged",
    ),
    Setting(
        "OJS_LOG_FORMAT", "log_format", _choice("json", "text", "auto"), "auto", "json, text or auto",
        "JSON lines or text on standard error; auto is text on a terminal",
    ),
    Setting(
        "OJS_ACCESS_LOG", "access_log", _bool, "false", "true or false",
        "log a line for each request, whatever OJS_LOG_LEVEL is",
    ),
    Setting(
        "OJS_OTEL_ENABLED", "otel_enabled", _choice("true", "false", "auto"), "auto", "true, false or auto",
        "send OpenTelemetry traces; auto sends them when one of the next two is set",
    ),
    Setting(
        "OJS_OTEL_ENDPOINT", "otel_endpoint", _http_url, "", "an http:// or https:// address",
        "OTLP/HTTP receiver of traces, without /v1/traces; goes before OTEL_EXPORTER_OTLP_ENDPOINT", mask_http_url,
    ),
    Setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT", "otlp_endpoint", _http_url, "", "an http:// or https:// address",
        "the same by its OpenTelemetry name; unset: http://localhost:4318", mask_http_url,
    ),
    Setting(
        "OJS_ENABLE_RESET", "enable_reset", _bool, "false", "true or false",
        "serve `POST /ojs/v1/admin/reset`, which wipes everything; for tests only",
    ),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every effective setting; suffixes give the unit (`_ms`, `_s`, `_bytes`), 0 in `*_s` means for ever."""

    nats_url: str = field(repr=False)
    host: str
    port: int
    api_key: str = field(repr=False)
    api_keys_file: str
    tls_cert: str
    tls_key: str
    allow_insecure_no_auth: bool
    data_dir: Path
    durability: str
    nats_replicas: int
    nats_tls_ca: str
    nats_tls_cert: str
    nats_tls_key: str
    nats_creds: str
    nats_user: str
    nats_password: str
    nats_token: str
    workers: int
    visibility_timeout_ms: int
    execution_timeout_ms: int
    max_body_bytes: int
    max_depth: int
    retention_completed_s: int
    retention_cancelled_s: int
    retention_discarded_s: int
    retention_dead_letter_s: int
    dead_letter_max_count: int
    retention_workflows_s: int
    events_max_age_s: int
    events_max_bytes: int
    webhooks_allow_private: bool
    webhooks_timeout_ms: int
    webhooks_retry_delays_s: tuple[int, ...]
    webhooks_pause_after: int
    webhooks_max_per_second: int
    shutdown_timeout_ms: int
    backend_wait_ms: int
    log_level: str
    log_format: str
    access_log: bool
    otel_enabled: str
    otel_endpoint: str = field(repr=False)
    otlp_endpoint: str = field(repr=False)
    enable_reset: bool
    #: address of the running embedded NATS, set by the main process for its workers; no user's setting
    internal_nats_url: str = field(default="", repr=False)
    #: sentences about variables that look like mistakes; the main process logs them once
    warnings: tuple[str, ...] = ()
    _raw: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read and check every setting; an empty variable counts as unset.

        Raises SettingsError with one problem for each bad variable.
        """
        raw = {one.name: env.get(one.name, "").strip() or one.default for one in TABLE}
        values: dict[str, Any] = {}
        problems: list[str] = []
        for one in TABLE:
            text = raw[one.name]
            try:
                values[one.field] = one.parse(text) if text else ""
            except ValueError:
                problems.append(f"{one.name}: {one.mask(text)!r} is not allowed; allowed: {one.allowed}")
        problems += _conflicts(values)
        if problems:
            raise SettingsError(problems)
        return cls(
            **values, internal_nats_url=env.get(INTERNAL_NATS_URL, ""), warnings=tuple(_suspicious(env)), _raw=raw
        )

    @property
    def is_embedded(self) -> bool:
        """Whether this server runs its own NATS."""
        return not self.nats_url

    @property
    def is_only_node(self) -> bool:
        """Whether no other node can use the same NATS."""
        return self.is_embedded and self.workers == 1

    @property
    def is_traced(self) -> bool:
        """Whether OpenTelemetry traces are asked for."""
        if self.otel_enabled == "auto":
            return bool(self.otel_endpoint or self.otlp_endpoint)
        return self.otel_enabled == "true"

    @property
    def nats_servers(self) -> list[str]:
        """Addresses to connect to; empty while the embedded NATS has not been started."""
        return [one.strip() for one in (self.nats_url or self.internal_nats_url).split(",") if one.strip()]

    def describe(self) -> list[Described]:
        """List every setting as it is in force, secrets masked, in the table's order."""
        return [
            Described(one.name, one.mask(self._raw[one.name]), self._raw[one.name] == one.default, one.description)
            for one in TABLE
        ]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`; names other than localhost count as reachable."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _conflicts(values: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each combination that cannot work; values that did not parse are absent."""
    problems = []
    host = values.get("host")
    has_guard = values.get("api_key", True) or values.get("api_keys_file") or values.get("allow_insecure_no_auth", True)
    if host is not None and not has_guard and not is_loopback(host):
        problems.append(
            f"OJS_HOST: {host!r} is not allowed without OJS_API_KEY, since anybody who reaches it could run jobs; "
            "allowed: set OJS_API_KEY or OJS_API_KEYS_FILE, or a loopback address such as 127.0.0.1, "
            "or OJS_ALLOW_INSECURE_NO_AUTH=true where the network itself keeps strangers out"
        )
    if bool(values.get("tls_cert")) != bool(values.get("tls_key")):
        given, missing = ("OJS_TLS_CERT", "OJS_TLS_KEY") if values.get("tls_cert") else ("OJS_TLS_KEY", "OJS_TLS_CERT")
        problems.append(f"{given}: it is not allowed without {missing}; allowed: both, or neither for plain HTTP")
    problems += _nats_conflicts(values)
    if values.get("nats_replicas", 1) != 1 and values.get("nats_url") == "":
        problems.append(
            f"OJS_NATS_REPLICAS: '{values['nats_replicas']}' is not allowed with the embedded NATS, which is one "
            "server; allowed: 1, or NATS_URL naming a cluster"
        )
    return problems


_NATS_ACCESS = ("tls_ca", "tls_cert", "tls_key", "creds", "user", "password", "token")


def _nats_conflicts(values: Mapping[str, Any]) -> list[str]:
    given = [f"OJS_NATS_{name.upper()}" for name in _NATS_ACCESS if values.get(f"nats_{name}")]
    problems = []
    if given and values.get("nats_url") == "":
        problems.append(f"{given[0]}: it is not allowed without NATS_URL; allowed: both, or neither")
    for one, other in (("OJS_NATS_TLS_CERT", "OJS_NATS_TLS_KEY"), ("OJS_NATS_USER", "OJS_NATS_PASSWORD")):
        if (one in given) != (other in given):
            there, missing = (one, other) if one in given else (other, one)
            problems.append(f"{there}: it is not allowed without {missing}; allowed: both, or neither")
    ways = [one for one in given if one in ("OJS_NATS_CREDS", "OJS_NATS_USER", "OJS_NATS_TOKEN")]
    if ways and "@" in (values.get("nats_url") or ""):
        ways.append("credentials in NATS_URL")
    if len(ways) > 1:
        problems.append(f"{ways[0]}: it is not allowed together with {' and '.join(ways[1:])}; allowed: one of them")
    return problems


def _suspicious(env: Mapping[str, str]) -> list[str]:
    """Return a sentence for each `OJS_*` variable that no setting reads."""
    known = [one.name for one in TABLE]
    found = []
    for name in sorted(env):
        if not name.startswith("OJS_") or name in known or name in _FOREIGN:
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
        found.append(f"{name} is not a setting and has no effect; the closest one is {close}")
    return found


def markdown_table() -> str:
    """Render the table of all settings as the README shows it."""
    rows = [
        f"| `{one.name}` | {f'`{one.default}`' if one.default else 'unset'} | {one.allowed} | {one.description} |"
        for one in TABLE
    ]
    return "\n".join(["| Variable | Default | Allowed | Meaning |", "|---|---|---|---|", *rows])
