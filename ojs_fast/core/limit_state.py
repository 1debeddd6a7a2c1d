"""What the nodes share about one limit key, and what may start now. Pure (ojs-rate-limiting section 5).

Windows slide: a rate of N per period lets at most N jobs start in any span of that length. Starts are kept
in slices of 1/64 period, each as old as its latest start, so a slot comes free at most that much too late.
Times are ms of the nodes' common clock.
"""

import logging
from dataclasses import dataclass, field, replace
from typing import Any, Self

log = logging.getLogger(__name__)

SLICES = 64
MAX_SLICES = 128
# Throttles below this interval let the starts of one such moment through together: pulls come no finer.
GRAIN_MS = 10.0
UNBOUNDED = 1_000_000
# Unused keys leave the bucket, and the list, by themselves.
IDLE_S = 86_400
LONGEST_TTL_S = 100 * 365 * 86_400  # NATS takes 292 years at most


@dataclass(slots=True, frozen=True)
class Limit:
    """One limit as `_core.parse_rate_limit` gives it; 0 = not set, concurrency -1 = none may run."""

    key: str
    concurrency: int = 0
    rate: int = 0
    period_ms: int = 0
    throttle_ms: float = 0
    on_limit: str = "wait"
    throttle: int = 1

    def stored(self) -> list[Any]:
        """The form that `Limit(*stored)` reads."""
        return [
            self.key,
            self.concurrency,
            self.rate,
            self.period_ms,
            self.throttle_ms,
            self.on_limit,
            self.throttle,
        ]


@dataclass(slots=True, frozen=True)
class Refusal:
    """Why nothing may start: `until_ms` 0 = nobody knows for how long; `limit` and `current` for the event."""

    strategy: str
    until_ms: float
    limit: int
    current: int


@dataclass(slots=True)
class LimitState:
    """One entry of `ojs-limits`."""

    # What the jobs declare, as last seen.
    limit: Limit
    override: dict[str, Any] | None = None
    # job id → (permit, taken at ms); only of jobs under a concurrency limit.
    holders: dict[str, tuple[str, float]] = field(default_factory=dict)
    # [first ms, last ms, number of starts], oldest first.
    starts: list[list[float]] = field(default_factory=list)
    last_ms: float = 0
    # The earliest start that the throttle allows.
    spaced_ms: float = 0
    # Nothing starts before: a handler was told so by what it called (section 9.1).
    until_ms: float = 0
    # The longest period that a job of this key declared; older starts are forgotten.
    span_ms: int = 0
    # Tells one's own write from others'.
    writer: str = ""

    @classmethod
    def read(cls, name: str, value: Any) -> Self | None:
        """Read an entry; None for a foreign one, which the next change replaces."""
        try:
            return cls.parse(value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            log.error("the entry of '%s' in ojs-limits is not one of ours: %r", name, error)
            return None

    @classmethod
    def parse(cls, value: dict[str, Any]) -> Self:
        """Read an entry that is one of ours."""
        return cls(
            Limit(*value["limit"]),
            value.get("override"),
            {job_id: (permit, taken_ms) for job_id, (permit, taken_ms) in value["holders"].items()},
            value["starts"],
            value["last_ms"],
            value["spaced_ms"],
            value["until_ms"],
            value["span_ms"],
            value["writer"],
        )

    def as_json(self) -> dict[str, Any]:
        """The entry's value."""
        return {
            "limit": self.limit.stored(),
            "override": self.override,
            "holders": self.holders,
            "starts": self.starts,
            "last_ms": self.last_ms,
            "spaced_ms": self.spaced_ms,
            "until_ms": self.until_ms,
            "span_ms": self.span_ms,
            "writer": self.writer,
        }

    def copy(self) -> Self:
        """A state that can be changed without changing this one."""
        return replace(self, holders=dict(self.holders), starts=[list(slice_) for slice_ in self.starts])

    # -- rules -----------------------------------------------------------------------------------

    def in_force(self, now_ms: float) -> dict[str, Any]:
        """The override as long as it holds, else empty."""
        override = self.override
        return {} if override is None or 0 < override["expires_ms"] <= now_ms else override

    def effective(self, limit: Limit, now_ms: float) -> Limit:
        """A job's limit with what the override of its key replaces."""
        override = self.in_force(now_ms)
        if not override:
            return limit
        rate, period_ms = override.get("rate", (limit.rate, limit.period_ms))
        throttle_ms, throttle = override.get("throttle", (limit.throttle_ms, limit.throttle))
        concurrency = override["concurrency"] or -1 if "concurrency" in override else limit.concurrency
        return Limit(limit.key, concurrency, rate, period_ms, throttle_ms, limit.on_limit, throttle)

    def started_since(self, since_ms: float) -> int:
        """How many starts count that are younger than `since_ms`."""
        return int(sum(count for _, last_ms, count in self.starts if last_ms > since_ms))

    def now_ms(self, clock_ms: float) -> float:
        """The clock, but never behind what was seen before: no start looks older than it is."""
        return max(clock_ms, self.last_ms)

    def room(self, limit: Limit, now_ms: float) -> int:
        """How many more jobs with this effective limit may start now; `UNBOUNDED` = no limit says anything."""
        if self.until_ms > now_ms:
            return 0
        room = UNBOUNDED
        if limit.concurrency:
            room = max(0, limit.concurrency - len(self.holders))
        if limit.rate:
            room = min(room, max(0, limit.rate - self.started_since(now_ms - limit.period_ms)))
        if limit.throttle_ms:
            spare_ms = now_ms - self._spaced_ms(limit)
            if spare_ms < 0:
                return 0
            room = min(room, int(min(spare_ms, _slack_ms(limit)) // limit.throttle_ms) + 1)
        return room

    def _spaced_ms(self, limit: Limit) -> float:
        return self.spaced_ms - _slack_ms(limit)

    def refusal(self, limit: Limit, now_ms: float) -> Refusal | None:
        """Why no job with this effective limit may start now, None when one may."""
        active = len(self.holders)
        if limit.concurrency and active >= limit.concurrency:
            return Refusal("concurrency", 0, max(0, limit.concurrency), active)
        started = self.started_since(now_ms - limit.period_ms) if limit.rate else 0
        reasons = []
        if self.until_ms > now_ms:
            reasons.append(Refusal("dynamic", self.until_ms, 0, started))
        if limit.rate and started >= limit.rate:
            reasons.append(Refusal("rate", self._slot_ms(limit, started, now_ms), limit.rate, started))
        if limit.throttle_ms and self._spaced_ms(limit) > now_ms:
            reasons.append(Refusal("throttle", self._spaced_ms(limit), limit.throttle, limit.throttle))
        return max(reasons, key=lambda reason: reason.until_ms) if reasons else None

    def _slot_ms(self, limit: Limit, started: int, now_ms: float) -> float:
        # When so many slices have left the window that one more start fits.
        until_ms = now_ms
        for _, last_ms, count in self.starts:
            if last_ms <= now_ms - limit.period_ms:
                continue
            started -= int(count)
            until_ms = last_ms + limit.period_ms
            if started < limit.rate:
                break
        return until_ms

    def next_room_ms(self, limit: Limit, now_ms: float) -> float:
        """The next instant at which time alone makes more room; 0 = never."""
        refusal = self.refusal(limit, now_ms)
        if refusal is not None:
            expires_ms = self.override["expires_ms"] if self.override is not None else 0
            # Whatever refuses now may do so by an override that ends.
            return min((at_ms for at_ms in (refusal.until_ms, expires_ms) if at_ms > now_ms), default=0)
        if not limit.rate:
            return 0
        since_ms = now_ms - limit.period_ms
        return next((last_ms + limit.period_ms for _, last_ms, _ in self.starts if last_ms > since_ms), 0)

    # -- changes ---------------------------------------------------------------------------------

    def start(self, job_id: str, permit: str, limit: Limit, now_ms: float) -> float:
        """One job with this effective limit starts at `now_ms`; returns it."""
        self.last_ms = now_ms
        if limit.concurrency:
            self.holders[job_id] = (permit, now_ms)
        if limit.rate:
            self._count(limit, now_ms)
        if limit.throttle_ms:
            self.spaced_ms = max(self.spaced_ms, now_ms) + limit.throttle_ms
        return now_ms

    def _count(self, limit: Limit, now_ms: float) -> None:
        self.span_ms = max(self.span_ms, limit.period_ms)
        while self.starts and self.starts[0][1] <= now_ms - self.span_ms:
            del self.starts[0]
        if self.starts and now_ms - self.starts[-1][0] <= limit.period_ms / SLICES:
            self.starts[-1][1] = now_ms
            self.starts[-1][2] += 1
        else:
            self.starts.append([now_ms, now_ms, 1])
        if len(self.starts) > MAX_SLICES:
            # Jobs of one key with very different periods: what is old becomes coarse, never forgotten.
            (first_ms, _, older), (_, last_ms, newer) = self.starts[:2]
            self.starts[:2] = [[first_ms, last_ms, older + newer]]

    def give_back(self, job_id: str, permit: str, started_ms: float) -> bool:
        """A permit ends; `started_ms` > 0: its job did not start after all. False when nothing changes."""
        changed = False
        if self.holders.get(job_id, ("",))[0] == permit:
            del self.holders[job_id]
            changed = True
        if started_ms > 0:
            for slice_ in reversed(self.starts):
                if slice_[0] <= started_ms <= slice_[1]:
                    slice_[2] -= 1
                    changed = True
                    break
            self.starts = [slice_ for slice_ in self.starts if slice_[2] > 0]
        return changed

    def ttl_s(self, now_ms: float) -> int:
        """How long the entry must live when nobody changes it; 0 = for ever, or longer than NATS takes."""
        if self.holders or (self.override is not None and not self.override["expires_ms"]):
            return 0
        ends_ms = max(now_ms + self.span_ms, self.spaced_ms, self.until_ms, (self.override or {}).get("expires_ms", 0))
        left_s = int(max(0.0, ends_ms - now_ms) / 1000) + IDLE_S
        return left_s if left_s < LONGEST_TTL_S else 0


def _slack_ms(limit: Limit) -> float:
    return max(0.0, GRAIN_MS - limit.throttle_ms)
