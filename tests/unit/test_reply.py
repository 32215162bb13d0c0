"""What a replica hands back crosses processes unchanged, and cheaply."""

from __future__ import annotations

import pickle

from pipeline.reply import Reply
from spool.parts import Result, Usage

RESULTS = [
    Result(5, True, Usage(3, 1, 2, 4), b'{"a":1}', shared=True, latency=12),
    Result(7, False, Usage(), b'{"error":1}'),
]


def test_a_reply_is_the_same_on_the_other_side() -> None:
    """Values and types: its readers go by names."""
    sent = Reply(RESULTS, "the engine died", [6, 8], 320)
    got = pickle.loads(pickle.dumps(sent, protocol=5))
    assert got == sent._replace(inside=(6, 8))
    assert (type(got), type(got.results[0]), type(got.results[0].usage)) == (Reply, Result, Usage)
    nothing = Reply([], None)
    assert pickle.loads(pickle.dumps(nothing, protocol=5)) == nothing


def test_a_result_costs_no_more_than_its_fields() -> None:
    """No type is named for each line: that took four times as long."""
    one, many = (pickle.dumps(Reply(RESULTS[:1] * count, None), protocol=5) for count in (1, 1001))
    assert (len(many) - len(one)) / 1000 < 32 and many.count(b"Result") == 0
