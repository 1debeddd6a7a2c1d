"""What a subscription is, which events it wants, and how its requests are signed (ojs-webhooks 5, 8). Pure."""

import hashlib
import hmac
import re
import secrets
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import orjson

from ojs_fast import _core
from ojs_fast.core.refusals import refused
from ojs_fast.errors import invalid_field

#: Subscriptions in all; each one reads the whole event stream.
SUBSCRIPTIONS_MAX = 200
EVENT_TYPES_MAX = 50
FILTER_NAMES_MAX = 100
METADATA_BYTES = 16 * 1024
TYPE_LENGTH = 255
#: How long a replaced secret signs as well (section 8.3).
ROTATION_MS = 24 * 3_600_000
#: What webhooks tell of themselves is not sent to webhooks: it would never end.
OWN_EVENTS = "webhook."

EVENT_TYPE = re.compile(r"\*|[a-z][a-z0-9_-]*(\.[a-z][a-z0-9_-]*)*(\.\*)?", re.ASCII)
JOB_TYPE = re.compile(r"[a-z][a-z0-9_\-]*(\.[a-z][a-z0-9_\-]*)*", re.ASCII)
SECRET = re.compile(r"[\x21-\x7e]{16,256}")
_FILTERS = ("queues", "job_types")
_IN_FILTER = {"queues": "queue", "job_types": "job_type"}


@dataclass(slots=True, frozen=True)
class Subscription:
    """One entry of `ojs-webhooks`. Times in epoch ms, 0 = none."""

    id: str
    url: str
    events: list[str]
    secret: str
    created_ms: int
    updated_ms: int
    #: the last message of the event stream that it does not get
    from_sequence: int
    active: bool = True
    filter: dict[str, list[str]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    #: why the server made it inactive; "" when it did not
    paused_reason: str = ""
    old_secret: str = ""
    old_secret_until_ms: int = 0

    @classmethod
    def read(cls, value: dict[str, Any]) -> "Subscription":
        """Read an entry. Raises TypeError for one that is none of ours; members that are new to us are left out."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: one for name, one in value.items() if name in known})

    def entry(self) -> dict[str, Any]:
        """What is stored."""
        return asdict(self)

    def shown(self, *, with_secret: bool = False) -> dict[str, Any]:
        """What clients see; the secret only when it is new (section 6.1)."""
        shown: dict[str, Any] = {"id": self.id, "url": self.url, "events": self.events, "active": self.active}
        if self.filter:
            shown["filter"] = self.filter
        if self.metadata:
            shown["metadata"] = self.metadata
        if self.paused_reason:
            shown["paused_reason"] = self.paused_reason
        shown["created_at"] = _core.format_rfc3339_ms(self.created_ms)
        shown["updated_at"] = _core.format_rfc3339_ms(self.updated_ms)
        if with_secret:
            shown["secret"] = self.secret
        return shown

    # -- what it wants ---------------------------------------------------------------------------

    def subjects(self) -> list[str]:
        """The subjects of the events it wants, none within another."""
        wanted = sorted({f"ojs.events.{one[:-1]}>" if one[-1] == "*" else f"ojs.events.{one}" for one in self.events})
        wide = [one[:-1] for one in wanted if one[-1] == ">"]
        return [one for one in wanted if not any(one.startswith(prefix) and one != f"{prefix}>" for prefix in wide)]

    def may_match(self, payload: bytes) -> bool:
        """False when no event of this message can match; quicker than decoding it."""
        return all(
            any(b'"%s":"%s"' % (_IN_FILTER[kind].encode(), name.encode()) in payload for name in names)
            for kind, names in self.filter.items()
        )

    def matches(self, event: dict[str, Any]) -> bool:
        """Whether an event is for it (section 5.2)."""
        data = event["data"]
        return not event["type"].startswith(OWN_EVENTS) and all(
            data.get(_IN_FILTER[kind]) in names for kind, names in self.filter.items()
        )

    # -- signatures ------------------------------------------------------------------------------

    def signature(self, timestamp_s: int, body: bytes) -> str:
        """The header X-OJS-Signature: by the secret, and for a day by the one before it too."""
        valid = [self.secret]
        if self.old_secret and timestamp_s * 1000 < self.old_secret_until_ms:
            valid.append(self.old_secret)
        signed = b"%d.%b" % (timestamp_s, body)
        return ",".join(f"sha256={hmac.new(one.encode(), signed, hashlib.sha256).hexdigest()}" for one in valid)

    def rotated(self, now_ms: int) -> "Subscription":
        """With a new secret; only the latest one before it stays valid, so rotating twice ends a stolen one."""
        return replace(
            self,
            secret=new_secret(),
            old_secret=self.secret,
            old_secret_until_ms=now_ms + ROTATION_MS,
            updated_ms=now_ms,
        )

    def changed(self, body: dict[str, Any], now_ms: int) -> "Subscription":
        """With the members of a PATCH. Raises InvalidRequest."""
        changes = _checked(body)
        if changes.get("active"):
            changes["paused_reason"] = ""
        return replace(self, **changes, updated_ms=now_ms)


def create(body: dict[str, Any], subscription_id: str, now_ms: int, from_sequence: int) -> Subscription:
    """A new subscription from the body of a request; the URL's address is not looked at. Raises InvalidRequest."""
    for name, expected in (("url", "an https URL"), ("events", "a list of event types")):
        if body.get(name) is None:
            raise invalid_field(name, None, expected)
    checked = _checked(body)
    secret = body.get("secret")
    if secret is None:
        secret = new_secret()
    elif not (isinstance(secret, str) and SECRET.fullmatch(secret)):
        shown = "a string" if isinstance(secret, str) else type(secret).__name__  # never the secret itself
        raise invalid_field("secret", f"<{shown}>", "16 to 256 printable ASCII characters without spaces")
    return Subscription(
        id=subscription_id,
        secret=secret,
        created_ms=now_ms,
        updated_ms=now_ms,
        from_sequence=from_sequence,
        **checked,
    )


def new_secret() -> str:
    """256 random bits."""
    return f"whsec_{secrets.token_hex(32)}"


def _checked(body: dict[str, Any]) -> dict[str, Any]:
    """The members of a body that clients may set, as a subscription holds them. Raises InvalidRequest."""
    found: dict[str, Any] = {}
    if (url := body.get("url")) is not None:
        if not isinstance(url, str):
            raise invalid_field("url", url, "an https URL")
        found["url"] = url
    if (events := body.get("events")) is not None:
        found["events"] = _events(events)
    if (active := body.get("active")) is not None:
        if not isinstance(active, bool):
            raise invalid_field("active", active, "true or false")
        found["active"] = active
    if "filter" in body:
        found["filter"] = _filter({} if body["filter"] is None else body["filter"])
    if "metadata" in body:
        metadata = {} if body["metadata"] is None else body["metadata"]
        if not isinstance(metadata, dict) or len(orjson.dumps(metadata)) > METADATA_BYTES:
            raise invalid_field("metadata", metadata, f"an object of at most {METADATA_BYTES} bytes")
        found["metadata"] = metadata
    return found


def _events(events: object) -> list[str]:
    expected = f"a list of 1 to {EVENT_TYPES_MAX} event types such as 'job.completed', 'job.*' or '*'"
    if not isinstance(events, list) or not 1 <= len(events) <= EVENT_TYPES_MAX:
        raise invalid_field("events", events, expected)
    for one in events:
        if not (isinstance(one, str) and len(one) <= TYPE_LENGTH and EVENT_TYPE.fullmatch(one)):
            raise invalid_field("events", one, expected)
    return list(dict.fromkeys(events))


def _filter(given: object) -> dict[str, list[str]]:
    if not isinstance(given, dict):
        raise invalid_field("filter", given, "an object with 'queues' and 'job_types'")
    found: dict[str, list[str]] = {}
    for kind, names in given.items():
        if kind not in _FILTERS:
            raise invalid_field(f"filter.{kind}", names, "'queues' or 'job_types'")
        expected = f"a list of 1 to {FILTER_NAMES_MAX} names"
        if names is None:
            continue
        if not isinstance(names, list) or not 1 <= len(names) <= FILTER_NAMES_MAX:
            raise invalid_field(f"filter.{kind}", names, expected)
        for name in names:
            _check_name(kind, name, expected)
        found[kind] = list(dict.fromkeys(names))
    return found


def _check_name(kind: str, name: object, expected: str) -> None:
    if not isinstance(name, str) or not 1 <= len(name) <= TYPE_LENGTH:
        raise invalid_field(f"filter.{kind}", name, expected)
    if kind == "queues":
        try:
            _core.check_queue_name(name, "filter.queues")
        except ValueError as error:
            raise refused(error) from None
    elif not JOB_TYPE.fullmatch(name):
        raise invalid_field("filter.job_types", name, "job types such as 'email.send'")
