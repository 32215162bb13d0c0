"""How fast batches of a model were answered in the past, by what their status.json says."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import NamedTuple

from daemon import outbox

# The latest batches that count, and the fewest requests that one must have: small ones mostly wait.
LATEST = 10
LEAST_REQUESTS = 100


class Past(NamedTuple):
    """What past batches came to.

    Attributes:
        batches: how many there were.
        tokens_per_s: input and output tokens, the median of the batches.
        output_tokens: of an answer, the mean over all of them.
    """

    batches: int
    tokens_per_s: float
    output_tokens: float


def past(shown: Iterable[outbox.Shown], model: str) -> Past | None:
    """What the latest batches of a model came to; None where there are none.

    Args:
        shown: batches, newest first.
        model: as requests name it.
    """
    rates, answers, tokens = [], 0, 0
    for each in shown:
        usage, (_, completed, _) = each.tree["usage"], each.counts
        if each.tree.get("model") != model or not usage or completed < LEAST_REQUESTS:
            continue
        seconds = _running_s(each)
        if seconds > 0:
            rates.append(usage["total_tokens"] / seconds)
            answers, tokens = answers + completed, tokens + usage["output_tokens"]
        if len(rates) == LATEST:
            break
    return Past(len(rates), statistics.median(rates), tokens / answers) if rates else None


def _running_s(shown: outbox.Shown) -> float:
    """Seconds that a batch ran, less those that it waited in between."""
    seconds, since = 0.0, None
    for event in shown.extra["history"]:
        if since is not None:
            seconds += event["at"] - since
        since = event["at"] if event["phase"] == "running" else None
    return seconds
