"""Calls: the requests of one shard on their way to a replica and back, whatever happens to its engine.

A replica that is not there costs nothing: its call asks another one, or waits and asks again. When an engine
dies, every request that was in it is a suspect, and the next time at most an eighth as many share an engine
with it. So after each death fewer suspects are left, until the one that kills is alone; only then does a
death count against it, and after `max_attempts` of those it fails. All others are answered on the way,
however often they were in bad company. What is known is made durable before a suspect is sent again
(spool/attempts.py).

    One request that kills each time, n requests in the engine when it first does:
    at most ceil(log8(n)) + max_attempts engines die                        n = 512, 3 attempts: 6
    Where the replica's process dies with its engine, nobody can tell what was in it: n is then all places of
    the engine, and what only waited for one is suspected as well.

Imported only inside functions, because it imports ray at the top.

Limits: a request that kills an engine only in the company of others is answered when it has less of it. A
replica that is killed from outside, or that a network cuts off, while one request is alone in it counts
against that request. A death that comes in the same moment as the daemon's own is not on record.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import ray

from pipeline import errors
from spool import attempts, codes, control, lines
from spool.attempts import Suspect
from spool.parts import Result, Usage

_log = logging.getLogger(__name__)

# How often a waiting task looks for its batch's `stop` file.
POLL_S = 0.25
# How long a task waits for a replica that answers to an abort, seconds.
ABORT_S = 15.0
# How long a task waits for a dead replica to come back: a large model loads for minutes.
RETURN_S = 300.0
# How long a replica may take to say that it is ready before another one is asked, and how long all others are
# asked before it then, seconds: its engine starts, or it waits for a node.
READY_S = 2.0
PASSED_OVER_S = 5.0
# Waits between two looks at a replica that is not back, seconds: doubled from the first to the second.
BACKOFF_S = (0.25, 5.0)
# After a death, one in so many may share an engine. 2 would need three times as many deaths, each an engine
# start of 20 to 30 s; 64 would run hundreds of innocent suspects five at a time.
NARROWING = 8


class Route(NamedTuple):
    """Where a run's requests go.

    Attributes:
        replicas: actor handles.
        places: requests in a replica's engine at a time.
        max_attempts: engines that a request may kill on its own before it fails.
        run: names the run; no other has this name.
    """

    replicas: list[Any]
    places: int
    max_attempts: int
    run: str


def answer_all(calls: Sequence[Call]) -> None:
    """Wait until every call has ended; those of stopped batches end early with what is finished."""
    looked_at = time.monotonic()
    while active := [call for call in calls if call.is_active]:
        _wait_for(active)
        if time.monotonic() - looked_at >= POLL_S:
            looked_at = time.monotonic()
            for batch in {call.batch for call in active}:
                if control.must_stop(Path(batch)):
                    for call in active:
                        call.abort_if_of(batch)


def _wait_for(active: list[Call]) -> None:
    """Wait until one call can go on, at most POLL_S, and let all go on that can."""
    asked = {call.asked: call for call in active if call.asked is not None}
    if asked:
        for done in ray.wait(list(asked), num_returns=1, timeout=POLL_S)[0]:
            asked[done].go_on()
    else:
        time.sleep(BACKOFF_S[0])
    for call in active:
        call.try_again_if_due()


# Until when, by the monotonic clock, each replica is passed over by this process.
_passed_over: dict[Any, float] = {}


class Call:
    """The requests of one shard: first those that nothing is known of, then the suspects, the least first.

    It asks its replica whether it is ready, or for places away from others, and only then sends requests: a
    death counts for what was sent alone, never for what waited. Not to ask would be a tenth faster, but what
    is sent to a replica that is absent would be suspected, and hold up the others where it goes next.

    Attributes:
        asked: what is awaited; None while it waits to try again, and at the end.
        results: by line.
        is_active: whether there is anything left to wait for.
    """

    def __init__(
        self,
        key: tuple[str, int, int],
        home: int,
        rank: int,
        requests: list[tuple[int, bytes]],
        route: Route,
    ) -> None:
        """Ask at once.

        Args:
            key: the batch's folder, the shard, the attempt.
            home: index of the replica that is asked first.
            rank: how many of the run's requests to that replica come before these.
            requests: index among the file's requests, and the line of input.jsonl.
            route: where they may go.
        """
        self.batch, self.shard, self.attempt = key
        self.results: dict[int, Result] = {}
        self.asked: Any = None
        self.is_active = True
        self._open = dict(requests)
        self._suspects = attempts.read(Path(self.batch), self.shard)
        self._route = route
        self._turn = home
        self._rank = rank
        self._chunk: list[int] = []
        self._company = route.places
        self._is_sent = False
        self._give_up_at = float("inf")
        self._due_at = 0.0
        self._asked_at = 0.0
        self._backoff_s = BACKOFF_S[0]
        self._absent_since: float | None = None
        self._fail_guilty("the daemon was restarted since")
        self._ask()

    @property
    def _replica(self) -> Any:
        return self._route.replicas[self._turn % len(self._route.replicas)]

    @property
    def batch_id(self) -> str:
        """The batch's id, which names the requests in the answers."""
        return Path(self.batch).name.rpartition("~")[0]

    @property
    def _is_aborted(self) -> bool:
        return self._give_up_at < float("inf")

    def _ask(self) -> None:
        """Ask for what the next requests need: a replica, and for suspects places in it."""
        self._is_sent = False
        if self._is_aborted or not self._open:
            self.is_active = False
            return
        self._asked_at = time.monotonic()
        self._turn += _steps_on(self._route.replicas, self._turn, self._asked_at)
        self._chunk = [line for line in self._open if line not in self._suspects]
        if self._chunk:
            self._company = self._route.places
            self.asked = self._replica.ready.remote()
            return
        allowed = {line: min(self._suspects[line].company, self._route.places) for line in self._open}
        self._company = max(allowed.values())
        self._chunk = [line for line in self._open if allowed[line] == self._company][: self._company]
        self.asked = self._replica.enter.remote(self.batch, self.shard, self._company, len(self._chunk))

    def _send(self) -> None:
        self._is_sent = True
        requests = [self._open[line] for line in self._chunk]
        has_places = self._chunk[0] in self._suspects
        self.asked = self._replica.infer.remote(
            self.batch,
            self.shard,
            self.batch_id,
            self._chunk,
            requests,
            self._route.run,
            self._rank,
            has_places,
        )

    def go_on(self) -> None:
        """Take what was awaited.

        Raises:
            OSError: what is known of suspects cannot be made durable.
        """
        asked, self.asked = self.asked, None
        try:
            value = ray.get(asked)
        except errors.PipelineError as error:  # there is a process, but no engine in it: nothing was tried
            self._not_ready(reason(error))
            return
        except ray.exceptions.RayActorError as error:
            if self._is_sent:
                self._lost(self._chunk, self._company, reason(error))
            else:
                self._not_ready(reason(error))
            return
        self._absent_since, self._backoff_s = None, BACKOFF_S[0]
        if not self._is_sent:
            self._send()
            return
        for result in value.results:
            self.results[result.line] = result
            del self._open[result.line]
        if value.died is not None:
            self._lost(value.inside, value.crowd, value.died)
        elif any(line in self._open for line in self._chunk) and not self._is_aborted:
            self._not_ready("the replica let go of the requests")
        else:
            self._ask()

    def _lost(self, inside: Sequence[int], crowd: int, why: str) -> None:
        """An engine died; these lines were in it, with at most `crowd` requests in all."""
        extra = {"batch": self.batch, "shard": self.shard, "suspects": len(inside), "crowd": crowd}
        _log.warning("requests_lost", extra={**extra, "reason": why})
        if inside:
            self._suspects |= {line: _suspected(self._suspects.get(line), crowd) for line in inside}
            try:
                attempts.write(Path(self.batch), self.shard, self._suspects)
            except FileNotFoundError:  # adopted by another daemon
                self.is_active = False
                return
            self._fail_guilty(why)
        if self._open and not self._is_aborted:
            self._later()
        else:
            self.is_active = False

    def _fail_guilty(self, why: str) -> None:
        """Requests that killed their engine max_attempts times, each time alone in it, fail."""
        for line, (_, kills) in self._suspects.items():
            if kills >= self._route.max_attempts and line in self._open:
                key = lines.request_key(self.batch_id, line)
                custom_id = orjson.loads(self._open.pop(line))["custom_id"]
                message = f"the engine died {kills} times with this request alone in it; last: {why}"
                text = lines.error_line(key, custom_id, codes.Failure.ENGINE, message)
                self.results[line] = Result(line, False, Usage(), text)

    def _not_ready(self, why: str) -> None:
        now = time.monotonic()
        self._absent_since = self._absent_since or now
        self._pass_over(now)
        if now - self._absent_since > RETURN_S or self._is_aborted:
            _log.error("replica_absent", extra={"batch": self.batch, "shard": self.shard, "reason": why})
            self.is_active = False
        else:
            self._later()

    def _later(self) -> None:
        self._due_at = time.monotonic() + self._backoff_s
        self._backoff_s = min(self._backoff_s * 2, BACKOFF_S[1])

    def _pass_over(self, now: float) -> None:
        """Turn to the next replica; this one's turn comes again later."""
        _passed_over[self._replica] = now + PASSED_OVER_S
        self._turn += 1

    @property
    def _is_kept_waiting(self) -> bool:
        """Whether another replica could take what this one has not said that it takes; it knows of none."""
        is_only_asked = self.asked is not None and not self._is_sent and self._chunk[0] not in self._suspects
        return is_only_asked and len(self._route.replicas) > 1

    def try_again_if_due(self) -> None:
        """Ask again after a backoff; give up what was aborted and did not return."""
        now = time.monotonic()
        if self.is_active and self._is_kept_waiting and now - self._asked_at >= READY_S:
            self._pass_over(now)
            self._ask()
        if now >= self._give_up_at:
            self.is_active = False
        elif self.is_active and self.asked is None and now >= self._due_at:
            self._ask()

    def abort_if_of(self, batch: str) -> None:
        """End early with what is finished; the replica then returns it."""
        if self.batch != batch or self._is_aborted:
            return
        self._give_up_at = time.monotonic() + ABORT_S
        if self.asked is not None:
            self._replica.abort.remote(self.batch, self.shard)
        if self.asked is None or not self._is_sent:
            self.is_active = False


def _steps_on(replicas: Sequence[Any], turn: int, now: float) -> int:
    """How many replicas to pass over from this turn on; none where all would be."""
    for steps in range(len(replicas)):
        if _passed_over.get(replicas[(turn + steps) % len(replicas)], 0.0) <= now:
            return steps
    return 0


def _suspected(known: Suspect | None, crowd: int) -> Suspect:
    """What is known of a request after an engine died with it and at most `crowd` requests in all inside."""
    if crowd > 1:
        return Suspect(max(1, crowd // NARROWING), known.kills if known else 0)
    return Suspect(1, known.kills + 1 if known else 1)


def reason(error: Exception) -> str:
    """One line; of an error that Ray wrapped, what was raised in the replica."""
    return " ".join(str(getattr(error, "cause", None) or error).split())[:300]
