"""The places in an engine: how many, who gets them and in which order. No Ray."""

from __future__ import annotations

import asyncio

import pytest

from config import settings
from pipeline import gate
from pipeline.gate import Gate


def test_the_gate_keeps_order_and_company() -> None:
    """Whoever must be alone waits until all are out, and holds up those behind; a cancel frees them."""

    async def play() -> list[str]:
        gate, entered = Gate(8), []

        async def enter(name: str, company: int, count: int = 1) -> None:
            await gate.enter(company, count)
            entered.append(name)

        tasks = {
            name: asyncio.create_task(enter(name, *places))
            for name, places in {"a": (8,), "pair": (4, 2), "b": (8,), "alone": (1,), "c": (8,)}.items()
        }
        await asyncio.sleep(0)
        assert entered == ["a", "pair", "b"]
        for company in (8, 4, 4):
            gate.leave(company)
        await asyncio.sleep(0)
        assert entered == ["a", "pair", "b"]  # b is inside still
        gate.leave(8)
        await asyncio.sleep(0)
        assert entered[3:] == ["alone"]
        waiting = asyncio.create_task(enter("never", 1))
        await asyncio.sleep(0)
        waiting.cancel()
        gate.leave(1)
        await asyncio.gather(*tasks.values())
        await gate.enter(8, 7)
        return entered

    assert asyncio.run(play()) == ["a", "pair", "b", "alone", "c"]


def test_no_one_overtakes_whoever_waits() -> None:
    """There is room for the second, but the first came before it."""

    async def play() -> None:
        here = Gate(8)
        await here.enter(8, 4)
        first = asyncio.create_task(here.enter(8, 5))
        await asyncio.sleep(0)
        second = asyncio.create_task(here.enter(8))
        await asyncio.sleep(0)
        assert not first.done() and not second.done() and not here.try_enter(8)
        here.leave(8, 4)
        await asyncio.gather(first, second)

    asyncio.run(play())


def _let_in(*waiting: tuple[str, int], gone: int = 0) -> list[str]:
    """Whom a full gate of one place lets in, and in which order, of the run and rank of whoever waits.

    The first `gone` of them leave before there is room.
    """

    async def play() -> list[str]:
        here, entered = Gate(1), []
        await here.enter(1)

        async def enter(run: str, rank: int) -> None:
            await here.enter(1, 1, run, rank)
            entered.append(f"{run}{rank}")
            here.leave(1)

        tasks = [asyncio.create_task(enter(*each)) for each in waiting]
        await asyncio.sleep(0)
        for task in tasks[:gone]:
            task.cancel()
        await asyncio.sleep(0)
        here.leave(1)
        await asyncio.gather(*tasks, return_exceptions=True)
        return entered

    return asyncio.run(play())


def test_a_run_is_let_in_as_it_was_ordered_whoever_arrives_first() -> None:
    assert _let_in(("a", 256), ("a", 128), ("a", 0)) == ["a0", "a128", "a256"]


def test_equal_ranks_go_by_arrival() -> None:
    async def play() -> list[int]:
        here, entered = Gate(1), []
        await here.enter(1)

        async def enter(number: int) -> None:
            await here.enter(1, 1, "a", 7)
            entered.append(number)
            here.leave(1)

        tasks = [asyncio.create_task(enter(number)) for number in range(5)]
        await asyncio.sleep(0)
        here.leave(1)
        await asyncio.gather(*tasks)
        return entered

    assert asyncio.run(play()) == [0, 1, 2, 3, 4]


def test_runs_take_turns_however_far_they_are_and_however_much_they_send() -> None:
    """Those that belong to no run are one as well."""
    long = [("a", 1000 + n) for n in range(5)]
    entered = _let_in(*long, ("b", 0), ("b", 1), ("", 0))
    assert entered == ["a1000", "b0", "0", "a1001", "b1", "a1002", "a1003", "a1004"]


def test_who_has_left_costs_its_run_no_turn() -> None:
    assert _let_in(("a", 0), ("a", 1), ("b", 0), gone=1) == ["a1", "b0"]


def test_a_cancel_in_the_turn_of_the_admission_gives_the_places_back() -> None:
    """Both reach the one who waits in one turn of the loop; the places must not get lost."""

    async def play() -> None:
        here = Gate(2)
        await here.enter(2, 2)
        waiting = asyncio.create_task(here.enter(2, 2))
        await asyncio.sleep(0)
        here.leave(2, 2)  # admits it, before it runs
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with asyncio.timeout(1):
            await here.enter(2, 2)

    asyncio.run(play())


def test_a_cancel_of_the_first_lets_in_those_behind() -> None:
    """It was the only one that there was no room for."""

    async def play() -> None:
        here = Gate(4)
        await here.enter(4)
        alone = asyncio.create_task(here.enter(1))
        await asyncio.sleep(0)
        behind = asyncio.create_task(here.enter(4, 3))
        await asyncio.sleep(0)
        alone.cancel()
        async with asyncio.timeout(1):
            await behind

    asyncio.run(play())


@pytest.mark.parametrize(
    ("engine_args", "computed", "places"),
    [
        ({}, 256, 512),
        ({"max_num_seqs": 64}, 64, 128),
        ({"max_num_seqs": 1}, 1, 8),
        ({"max_num_seqs": "x"}, 256, 512),
    ],
)
def test_there_are_twice_as_many_places_as_are_computed_at_once(
    engine_args: dict[str, object], computed: int, places: int
) -> None:
    """max_num_seqs of the engine's arguments, or vLLM's default for offline work, twice."""
    model = settings.VllmModel(name="m", kind="vllm", source="m", engine_args=engine_args)
    assert (gate.max_num_seqs(model), gate.slots(model)) == (computed, places)


def test_servers_elsewhere_have_a_limit_each() -> None:
    urls = ("http://a", "http://b")
    model = settings.OpenAIModel(name="m", kind="openai", urls=urls, max_concurrency=100)
    assert (gate.max_num_seqs(model), gate.slots(model)) == (200, 400)
