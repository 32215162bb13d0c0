"""The workloads: which requests each is made of, how many, and how long answers are. Pure; seeds are fixed.

Requests are chat requests in OpenAI's batch format. `{a}+{b}` below 100 is what examples/tiny-adder was
trained on, so that its answers can be checked by arithmetic; all pairs make 10,000 distinct requests.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

Request = dict[str, Any]

# Measured several times, in turn with the peers; the median counts.
REPETITIONS = 3
# A long answer of `tail` is this many times as long as the others.
TAIL_FACTOR = 50
TAIL_SHARE = 0.01
TAIL_TOKENS = 16
# Requests that its engine computes at once, on a CPU: there the cost of a step grows with them (3.5 ms for
# 10, 24 ms for 256; 2 cores, 2026-11), so that with 256 places no order could gain more than 6 %.
TAIL_PLACES = 32
STEADY_TOKENS = 32
PREFIX_TOKENS = 16
SUM_TOKENS = 8

# The `prefix` workload's shared prompts, and the KV cache that holds about 20 of them at a time.
PREFIX_PROMPT_TOKENS = 900
KV_CACHE_TOKENS = 20_000
KV_BLOCK_TOKENS = 32


@dataclass(frozen=True)
class Sizes:
    """How much of each workload is run."""

    steady: int = 10_000
    cold: int = 2_000
    small_files: int = 200
    small_lines: int = 10
    latency: int = 10
    prefix: int = 800
    prefix_prompts: int = 40
    twins: int = 4_000
    twins_distinct: int = 1_000
    tail_per_place: int = 32
    scale: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    validate: int = 1_000_000
    order_cost: int = 10_000
    correct: int = 10_000
    replicas: int = 51_200


FULL = Sizes(scale=(10_000, 100_000, 1_000_000, 5_000_000))
# For a smoke test: every step is taken, no figure means anything.
QUICK = Sizes(
    steady=512,
    cold=128,
    small_files=10,
    latency=2,
    prefix=48,
    prefix_prompts=12,
    twins=400,
    twins_distinct=100,
    tail_per_place=1,
    scale=(10_000,),
    validate=50_000,
    order_cost=2_000,
    correct=1_000,
    replicas=320,
)


def request(model: str, custom_id: str, content: str, system: str | None = None, **body: Any) -> Request:
    """One chat request."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": content})
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": model, "messages": messages, "temperature": 0, **body},
    }


def _fixed(tokens: int) -> dict[str, Any]:
    """Fields of a body whose answer has exactly this many tokens."""
    return {"max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True}


def _pairs(count: int, seed: int) -> Iterator[tuple[int, int]]:
    """Pairs of numbers below 100, shuffled; distinct as far as 10,000 go, then again."""
    pairs = list(itertools.product(range(100), range(100)))
    random.Random(seed).shuffle(pairs)
    return itertools.islice(itertools.cycle(pairs), count)


def steady(model: str, count: int) -> list[Request]:
    """Distinct short questions with answers of one length."""
    return [
        request(model, f"steady-{n}", f"What is {a}+{b}?", **_fixed(STEADY_TOKENS))
        for n, (a, b) in enumerate(_pairs(count, 1))
    ]


def sums(model: str, count: int, seed: int = 2) -> list[Request]:
    """Distinct questions that are answered with a sum."""
    return [
        request(model, f"sum-{n}", f"What is {a}+{b}?", max_tokens=SUM_TOKENS)
        for n, (a, b) in enumerate(_pairs(count, seed))
    ]


def prefix(model: str, count: int, prompts: int) -> list[Request]:
    """Questions below a few long system prompts, shuffled.

    The prompts are digits: tokenizers that split numbers into digits, such as Qwen's and that of one byte
    a token, see one token in each.
    """
    rng = random.Random(3)
    shared = ["".join(rng.choices("0123456789", k=PREFIX_PROMPT_TOKENS)) for _ in range(prompts)]
    questions = list(enumerate(_pairs(count, 4)))
    made = [
        request(model, f"prefix-{n}", f"What is {a}+{b}?", shared[n % prompts], **_fixed(PREFIX_TOKENS))
        for n, (a, b) in questions
    ]
    rng.shuffle(made)
    return made


def twins(model: str, count: int, distinct: int) -> list[Request]:
    """Sums of which each is asked several times, under another custom_id, shuffled."""
    bodies = [each["body"] for each in sums(model, distinct, seed=5)]
    order = [n % distinct for n in range(count)]
    random.Random(6).shuffle(order)
    return [
        {
            "custom_id": f"twin-{n}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": bodies[which],
        }
        for n, which in enumerate(order)
    ]


def tail(model: str, count: int) -> list[Request]:
    """Mixed short lengths, and last in the file the few answers that are 50 times as long."""
    long = max(1, round(count * TAIL_SHARE))
    rng = random.Random(7)
    lengths = [rng.randint(TAIL_TOKENS // 2, TAIL_TOKENS * 3 // 2) for _ in range(count - long)]
    lengths += [TAIL_TOKENS * TAIL_FACTOR] * long
    return [
        request(model, f"tail-{n}", f"What is {a}+{b}?", **_fixed(length))
        for n, (length, (a, b)) in enumerate(zip(lengths, _pairs(count, 8), strict=True))
    ]


def repeated_sums(model: str, count: int) -> list[Request]:
    """Sums drawn with repetition: about a third of them stand in the file more than once."""
    rng = random.Random(9)
    return [
        request(
            model, f"sum-{n}", f"What is {rng.randrange(100)}+{rng.randrange(100)}?", max_tokens=SUM_TOKENS
        )
        for n in range(count)
    ]


def many(model: str, count: int) -> Iterator[Request]:
    """Any number of distinct requests, for engines that echo."""
    for n in range(count):
        yield request(model, f"line-{n}", f"What is {n}+{n % 97}?", max_tokens=SUM_TOKENS)


def write(path: Path, requests: Iterable[Request]) -> Path:
    """A batch file of these requests."""
    with open(path, "wb") as file:
        for each in requests:
            file.write(orjson.dumps(each))
            file.write(b"\n")
    return path
