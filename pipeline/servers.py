"""The servers of a model of kind openai: which one gets the next request, and when one gets none.

Pure decisions: time is an argument (seconds of a monotonic clock), what happened is told by methods, nothing
waits or connects. Each server has a limit of requests at a time that adapts: 429 and 503 halve it and hold it
off for `Retry-After`, answers raise it by one for each round of requests, after a break by one for each
answer up to half of what it was (as TCP does, RFC 5681). A server that fails several times in a row is
ejected: others get its requests, until a look at it finds it well; then it begins with one request.

What counts against whom. A connection that cannot be made or breaks, and a proxy's 502, mean that a server
cannot be reached. Any other useless response (5xx, no JSON, cut off, a redirect) may be the request's fault
as well: where all servers give such, they are used all the same, slowly, and the requests fail in the end.

Limits: replicas do not know of each other, each has limits of its own. Requests with a common prefix may go
to different servers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

# Failures in a row that eject a server; useless answers may be the requests' fault, so it takes more of them.
UNREACHABLE_FAILURES = 3
USELESS_FAILURES = 5
# Seconds until an ejected server is looked at, doubled each time up to the second.
EJECTION_S = (1.0, 60.0)
# Seconds for which a server that refuses without Retry-After gets nothing, doubled likewise.
REFUSAL_S = (0.5, 30.0)
# Seconds between requests to servers of which all give useless answers, doubled likewise.
USELESS_S = (0.25, 5.0)
# Share of a request's time after which a server that has answered nothing since is given up for another.
STALL_SHARE = 0.5
# Servers that a message names.
_NAMED = 3


class Fault(Enum):
    """What a failure says of the server."""

    UNREACHABLE = auto()
    USELESS = auto()


@dataclass(eq=False, slots=True)
class Server:
    """One server. Only `Servers` changes it.

    Attributes:
        url: its root, such as `http://host:8000`.
        limit: requests that it may have at a time; grows by fractions.
        threshold: below this limit, each answer raises it by one.
        inflight: requests that it has.
        sent: requests that it ever got.
        failures: in a row.
        refusals: in a row; those of requests that were sent before the limit was halved do not count.
        ejections: in a row.
        answered_at: when it last answered anything.
        held_until: it gets nothing before.
        halved_at: when the limit was halved.
        outage: why it is ejected; None while it is not.
        fault: of what it is ejected for.
        look_at: when an ejected server is looked at again.
    """

    url: str
    limit: float
    threshold: float
    inflight: int = 0
    sent: int = 0
    failures: int = 0
    refusals: int = 0
    ejections: int = 0
    answered_at: float = -math.inf
    held_until: float = -math.inf
    halved_at: float = -math.inf
    outage: str | None = None
    fault: Fault = Fault.UNREACHABLE
    look_at: float = math.inf

    def has_room(self, now: float) -> bool:
        """Whether it may get a request, were it chosen."""
        return self.inflight < int(self.limit) and now >= self.held_until


@dataclass(eq=False, frozen=True, slots=True)
class Attempt:
    """One request at one server.

    Attributes:
        number: `server.sent` when it began.
        was_first: whether the server had no other then.
    """

    server: Server
    began_at: float
    number: int
    was_first: bool

    @property
    def is_alone(self) -> bool:
        """Whether the server has had no other request since it began."""
        return self.was_first and self.server.sent == self.number


@dataclass(slots=True)
class Servers:
    """All servers of a model, and what is known of each."""

    urls: Sequence[str]
    max_concurrency: int
    dice: random.Random = field(default_factory=random.Random)
    all: list[Server] = field(init=False)

    def __post_init__(self) -> None:
        ceiling = float(self.max_concurrency)
        self.all = [Server(url, ceiling, ceiling) for url in self.urls]

    def choose(self, now: float, avoid: Collection[Server] = ()) -> Server | None:
        """The server with the least to do for its limit; None if a request has to wait.

        Args:
            now: seconds.
            avoid: those that failed this request; they are chosen only where there is no other.
        """
        usable = self._usable()
        fresh = [server for server in usable if server not in avoid] or usable
        free = [server for server in fresh if server.has_room(now)]
        return min(free, key=lambda server: (server.inflight / server.limit, server.sent), default=None)

    def has_room(self, now: float) -> bool:
        """Whether any request need not wait."""
        return any(server.has_room(now) for server in self._usable())

    def _usable(self) -> list[Server]:
        """Servers that are not ejected; where all are, those that do answer something."""
        return [server for server in self.all if server.outage is None] or [
            server for server in self.all if server.fault is Fault.USELESS
        ]

    def begin(self, server: Server, now: float) -> Attempt:
        """A request goes to a server."""
        server.sent += 1
        server.inflight += 1
        return Attempt(server, now, server.sent, server.inflight == 1)

    def answered(self, attempt: Attempt, now: float) -> None:
        """The server gave an answer of use, to a bad request as well: it is well."""
        server = attempt.server
        server.inflight -= 1
        server.answered_at = now
        server.failures = server.refusals = server.ejections = 0
        server.outage = None
        step = 1.0 if server.limit < server.threshold else 1.0 / server.limit
        server.limit = min(server.limit + step, self.max_concurrency)

    def refused(self, attempt: Attempt, now: float, retry_after_s: float | None) -> None:
        """The server has too much to do, and said for how long or not."""
        server = attempt.server
        if attempt.began_at >= server.halved_at:
            server.refusals += 1
            self._halve(server, now)
        server.inflight -= 1
        wait_s = self._backoff(REFUSAL_S, server.refusals) if retry_after_s is None else retry_after_s
        server.held_until = max(server.held_until, now + wait_s)

    def failed(self, attempt: Attempt, now: float, fault: Fault, reason: str) -> None:
        """The server gave nothing of use to this request."""
        server = attempt.server
        server.inflight -= 1
        server.failures += 1
        if fault is Fault.USELESS:
            server.answered_at = now
        if server.outage is not None:
            if fault is Fault.UNREACHABLE:
                server.outage, server.fault = reason, fault
            else:  # all servers are ejected, so that this one was used all the same
                wait_s = self._backoff(USELESS_S, server.failures - USELESS_FAILURES)
                server.held_until = max(server.held_until, now + wait_s)
            return
        most = UNREACHABLE_FAILURES if fault is Fault.UNREACHABLE else USELESS_FAILURES
        if server.failures >= most:
            self._eject(server, now, fault, reason)

    def ran_out(self, attempt: Attempt, now: float, reason: str) -> None:
        """The request's time is over: the server has too much to do, or answers nothing at all."""
        server = attempt.server
        answered_at = server.answered_at
        if answered_at <= attempt.began_at:
            self.failed(attempt, now, Fault.USELESS, reason)
            server.answered_at = answered_at  # it was silence, no answer
            return
        if attempt.began_at >= server.halved_at:
            self._halve(server, now)
        self.left(attempt)

    def left(self, attempt: Attempt) -> None:
        """The request was withdrawn, which says nothing."""
        attempt.server.inflight -= 1

    def is_stalled(self, attempt: Attempt, now: float, time_s: float) -> bool:
        """Whether a request should be taken to another server, since this one answers nothing.

        Args:
            attempt: under way.
            now: seconds.
            time_s: that the request may take in all.
        """
        server = attempt.server
        if now - attempt.began_at < STALL_SHARE * time_s or server.answered_at > attempt.began_at:
            return False
        return any(other is not server and other.outage is None for other in self.all)

    def to_look_at(self, now: float) -> list[Server]:
        """Ejected servers that may be well again."""
        return [server for server in self.all if server.outage is not None and now >= server.look_at]

    def seen_well(self, server: Server) -> None:
        """A look found an ejected server well: it gets a request, and is ejected again if that fails."""
        server.outage = None

    def seen_ill(self, server: Server, now: float, reason: str) -> None:
        """A look, at the start or at an ejected server, found nothing that answers."""
        self._eject(server, now, Fault.UNREACHABLE, reason)

    def changes_at(self, now: float) -> float:
        """When a request that waits may be sent although nothing happened; infinite if never."""
        return min((each.held_until for each in self._usable() if each.held_until > now), default=math.inf)

    def absence(self) -> str | None:
        """Why no request can be answered now: no server can be reached, and none works on any; else None."""
        if any(each.outage is None or each.fault is Fault.USELESS or each.inflight for each in self.all):
            return None
        return describe({server.url: server.outage or "" for server in self.all})

    def outages(self) -> dict[str, str]:
        """Why servers are ejected, by URL."""
        return {server.url: server.outage for server in self.all if server.outage is not None}

    def jitter(self, seconds: float) -> float:
        """A wait of about so long, so that what failed together does not come back together."""
        return seconds * self.dice.uniform(0.5, 1.5)

    def _backoff(self, bounds_s: tuple[float, float], times: int) -> float:
        least_s, most_s = bounds_s
        return self.jitter(min(most_s, least_s * 2.0 ** min(max(0, times - 1), 30)))

    def _halve(self, server: Server, now: float) -> None:
        server.limit = server.threshold = max(1.0, min(server.limit, server.inflight) / 2)
        server.halved_at = now

    def _eject(self, server: Server, now: float, fault: Fault, reason: str) -> None:
        if server.outage is None and server.limit > 1:
            server.threshold = max(1.0, server.limit / 2)
        server.ejections += 1
        server.outage, server.fault, server.limit = reason, fault, 1.0
        server.look_at = now + self._backoff(EJECTION_S, server.ejections)


def describe(outages: dict[str, str]) -> str:
    """Which servers are out and why, in one line."""
    named = "; ".join(f"{url}: {reason}" for url, reason in list(outages.items())[:_NAMED])
    more = len(outages) - _NAMED
    return f"{named}; and {more} more" if more > 0 else named
