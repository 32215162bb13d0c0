"""Refuses a line whose parsed form would take many times its bytes, before it is parsed.

An object of one field takes 250 bytes of memory and 8 of a line, `[],` 90 and 3, a short string 90 and 5
(measured with orjson on CPython 3.11: 16 MiB of a line took up to 690 MiB). So what counts are objects,
arrays and values, outside of strings; a line within the bounds takes less than 200 MiB. The bounds are
constants: no request has a quarter of a million objects, nor a prompt a million tokens.
"""

from __future__ import annotations

import re

# A shorter line cannot take much.
COUNTED_BYTES = 1 << 20
MAX_CONTAINERS = 250_000
MAX_VALUES = 1_000_000

# A string that is not closed matches too, to the end: else each of its quotes would be tried again.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{,]', re.DOTALL)


def find_excess(line: bytes) -> str | None:
    """What a line holds too much of, in a sentence; None where it may be parsed."""
    # Cheap and too high, since strings count as well: most lines end here.
    if line.count(b"[") + line.count(b"{") <= MAX_CONTAINERS and line.count(b",") <= MAX_VALUES:
        return None
    containers = values = 0
    for match in _TOKEN.finditer(line):
        token = line[match.start()]
        if token == 0x2C:
            values += 1
        elif token != 0x22:
            containers += 1
        if containers > MAX_CONTAINERS or values > MAX_VALUES:
            break
    if containers > MAX_CONTAINERS:
        return f"The line holds more than {MAX_CONTAINERS} arrays and objects, too many for one request."
    if values > MAX_VALUES:
        return f"The line holds more than {MAX_VALUES} values, too many for one request."
    return None
