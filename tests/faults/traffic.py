"""The files that rounds drop: sums whose right answers are known, in all sizes, some with sidecars."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from tests import daemons

MODEL = "tiny-adder"
# In a file that asks for `on_invalid: skip`: validation refuses it, and it gets its line in errors.jsonl.
BAD = {"custom_id": "bad", "method": "POST", "url": "/v1/chat/completions", "body": {}}
_SIDECARS = (
    "",
    "",
    "",
    "metadata: {team: a}\n",
    "pool: dedicated\n",
    "pool: spot\n",
    "completion_window: 6h\n",
)


@dataclass(frozen=True)
class File:
    """One drop.

    Attributes:
        name: in the inbox.
        sidecar: text of its sidecar; empty for none.
    """

    name: str
    content: bytes
    sidecar: str

    @property
    def stem(self) -> str:
        """Its folder in outbox/."""
        return self.name.removesuffix(".jsonl")


def make(rng: random.Random, name: str, *, longest: int = 600) -> File:
    """A file of 1 to `longest` sums; every tenth has a bad line that is to be skipped."""
    count = rng.choice(
        [1, rng.randint(2, min(20, longest)), rng.randint(1, longest), rng.randint(1, longest)]
    )
    pairs = rng.sample(range(10_000), count)
    rows: list[dict[str, Any]] = [daemons.addition(pair // 100, pair % 100) for pair in pairs]
    sidecar = rng.choice(_SIDECARS)
    if rng.random() < 0.1:
        rows.insert(rng.randint(0, len(rows)), BAD)
        sidecar = "on_invalid: skip\n"
    return File(name, daemons.jsonl(rows), sidecar)


def echoed(request: dict[str, Any]) -> str | None:
    """The right answer of `kind: echo`."""
    content: str = request["body"]["messages"][-1]["content"]
    return content


def added(request: dict[str, Any]) -> str | None:
    """The right answer of tiny-adder."""
    _, a, b = request["custom_id"].split("-")
    return str(int(a) + int(b))
