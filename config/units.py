"""Sizes and durations as people write them: `1GiB`, `64KiB`, `90m`, `7d`, or a plain number.

Bytes and Seconds are annotated types for pydantic models; both refuse what they cannot read with a
message that says what is allowed. Sizes are binary or decimal by their unit (KiB = 1024, KB = 1000).
"""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import BeforeValidator, ByteSize, Field

# 30 days: OpenAI's longest window is 24h; one longer than this is a typing mistake.
MAX_WINDOW_S = 30 * 86400.0

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)?\s*", re.ASCII)
_SECONDS_PER_UNIT = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def seconds(value: object) -> float:
    """Read a duration.

    Args:
        value: a number of seconds, or text such as `90m`, `24h`, `7d`, `500ms`.

    Returns:
        Seconds as a float.

    Raises:
        ValueError: it is neither; the message says what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("a duration is a number of seconds or text such as 90s, 30m, 24h, 7d")
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if not match:
            raise ValueError("a duration is a number of seconds or text such as 90s, 30m, 24h, 7d")
        value = float(match[1]) * _SECONDS_PER_UNIT[match[2]]
    try:
        duration_s = float(value)
    except OverflowError:  # an integer of more than 308 digits
        duration_s = math.inf
    if not math.isfinite(duration_s):
        raise ValueError("a duration must be finite")
    return duration_s


def window(value: object) -> float:
    """Read a completion window: a duration above 0 and of at most 30 days.

    Raises:
        ValueError: it is none.
    """
    window_s = seconds(value)
    if not 0 < window_s <= MAX_WINDOW_S:
        shown = repr(value) if len(repr(value)) <= 40 else f"{value!r:.40}..."
        raise ValueError(f"{shown}: a completion window is above 0 and at most 30d, such as 90m, 24h, 7d")
    return window_s


Seconds = Annotated[float, BeforeValidator(seconds)]
Window = Annotated[float, BeforeValidator(window)]
Bytes = Annotated[ByteSize, Field(ge=0)]
