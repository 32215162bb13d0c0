"""Many requests on one timer: each has its own moment of expiry, as with a timeout of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from pipeline.time_limit import Limited, TimeLimit

LIMIT_S = 0.1
# What a busy machine may add.
SLACK_S = 2.0


async def took(limit: TimeLimit, work: Awaitable[object]) -> float:
    """Seconds until the limit ended this work."""
    began = time.monotonic()
    limited = limit.begin()
    with pytest.raises(TimeoutError), limited:
        await work
    assert limited.is_expired
    return time.monotonic() - began


def test_each_expires_at_its_own_moment() -> None:
    """Those that begin later expire later, though there is one timer."""

    async def main() -> list[float]:
        limit = TimeLimit(LIMIT_S, 256)
        running = []
        for _ in range(4):
            running.append(asyncio.create_task(took(limit, asyncio.sleep(10))))
            await asyncio.sleep(LIMIT_S / 3)
        return await asyncio.gather(*running)

    for seconds in asyncio.run(main()):
        assert LIMIT_S <= seconds < LIMIT_S + SLACK_S


def test_time_runs_from_its_turn_on() -> None:
    """An engine that computes one at a time is not too slow for what waits behind it."""

    async def main() -> None:
        limit = TimeLimit(60.0, at_once=1)
        entered: list[Limited] = []
        ends = [asyncio.Event() for _ in range(3)]

        async def work(end: asyncio.Event) -> None:
            with limit.begin() as limited:
                entered.append(limited)
                await end.wait()

        tasks = [asyncio.create_task(work(end)) for end in ends]
        await asyncio.sleep(0)
        first, second, third = entered
        assert first.ends_at < second.ends_at == third.ends_at == float("inf")
        tasks[1].cancel()  # one that leaves while it waits has no turn
        ends[0].set()
        await asyncio.wait(tasks[:2])
        assert first.ends_at < third.ends_at < second.ends_at
        ends[2].set()
        await tasks[2]

    asyncio.run(main())


def test_what_ends_in_time_is_left_alone() -> None:
    """Its task is not cancelled later, and the next one has the whole of its time."""

    async def main() -> float:
        limit = TimeLimit(LIMIT_S, 256)
        for _ in range(4):
            with limit.begin() as limited:
                await asyncio.sleep(LIMIT_S / 4)
            assert not limited.is_expired
        await asyncio.sleep(LIMIT_S * 2)
        return await took(limit, asyncio.sleep(10))

    assert asyncio.run(main()) >= LIMIT_S


def test_a_cancellation_from_outside_stays_one() -> None:
    """It is no timeout, and nothing of it is left."""

    async def main() -> None:
        limit = TimeLimit(LIMIT_S, 256)

        async def work() -> None:
            with limit.begin():
                await asyncio.sleep(10)

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(LIMIT_S * 2)

    asyncio.run(main())


def test_a_cancellation_that_comes_with_the_timeout_goes_on() -> None:
    """Of two reasons the caller's wins, as with asyncio.timeout."""

    async def main() -> None:
        limit = TimeLimit(LIMIT_S, 256)

        async def work() -> None:
            with limit.begin():
                try:
                    await asyncio.sleep(10)
                except asyncio.CancelledError:
                    asyncio.current_task().cancel()  # type: ignore[union-attr]  # there is one
                    raise

        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(work())

    asyncio.run(main())


def test_an_error_of_the_work_is_its_own() -> None:
    """A request that fails within its time fails with what it raised."""

    async def main() -> None:
        with TimeLimit(LIMIT_S, 256).begin():
            raise KeyError("tokens")

    with pytest.raises(KeyError):
        asyncio.run(main())


def test_there_is_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests begin and end before the first of them would have expired."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        started: list[asyncio.TimerHandle] = []

        def call_later(delay: float, call: Callable[[], None]) -> asyncio.TimerHandle:
            started.append(loop.call_at(loop.time() + delay, call))
            return started[-1]

        monkeypatch.setattr(loop, "call_later", call_later)
        limit = TimeLimit(60.0, 256)
        for _ in range(100):
            with limit.begin():
                await asyncio.sleep(0)
        return len(started)

    assert asyncio.run(main()) == 1
