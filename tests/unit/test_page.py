"""What a page is made of: figures that do not mislead, lengths in bounded memory, texts that stay texts."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import PoolsSettings
from daemon.page import charts, elements, figures, history, lengths, results
from daemon.page.elements import tag
from daemon.page.lengths import Lengths
from spool import lines, parts
from spool.parts import Result, Usage
from spool.timeline import Pace


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.0016, "1.6 ms"),
        (0.93, "930 ms"),
        (0.9999, "1 s"),
        (59.96, "1 min"),
        (200, "3 min 20 s"),
        (3599.9, "1 h"),
        (7500, "2 h 5 min"),
        (7199, "2 h"),
        (86399.9, "1 d"),
        (86399, "1 d"),
        (100_000, "1 d 4 h"),
        (-90, "-1 min 30 s"),
    ],
)
def test_a_duration_is_said_in_two_units(seconds: float, text: str) -> None:
    """And never as 60 of one, or as 24 h."""
    assert figures.span(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (950, "950"), (999.9, "1k"), (1234, "1.23k"), (34.5e6, "34.5M"), (2e9, "2G")],
)
def test_a_number_is_short(number: float, text: str) -> None:
    assert figures.short(number) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (1, "100 %"), (0.99999, "> 99.9 %"), (0.00001, "< 0.1 %"), (0.5, "50 %")]
)
def test_nearly_all_is_not_all_and_hardly_any_is_not_none(share: float, text: str) -> None:
    assert figures.percent(share) == text


@given(st.floats(1e-6, 1e9), st.integers(1, 30))
def test_steps_of_an_axis_are_few_and_not_too_few(span: float, most: int) -> None:
    step = figures.nice_step(span, most)
    assert most / 2.6 <= span / step <= most * (1 + 1e-6)


class TestLengths:
    """Histograms of any lengths, in memory that has a bound."""

    @given(st.lists(st.integers(0, 2_000_000), min_size=1, max_size=300))
    def test_bins_hold_each_length_once_and_cover_all(self, held: list[int]) -> None:
        """Few bins, without a gap; longer lengths may be off by 0.2 %."""
        made = Lengths()
        for length in held:
            made.add(length)
        bins = made.bins()
        assert len(bins) <= 22
        assert bins[0].low == 0 and bins[-1].low <= max(held) <= bins[-1].high
        for one, two in itertools.pairwise(bins):
            assert two.low == one.high + 1
        assert sum(each.answers for each in bins) == len(held) == made.count
        assert (made.total, made.longest) == (sum(held), max(held))
        median = sorted(held)[(len(held) - 1) // 2]
        assert median * 0.998 <= made.quantile(0.5) <= median

    def test_short_lengths_are_exact(self) -> None:
        made = Lengths()
        for length in (1, 2, 2, 3, 500):
            made.add(length)
        assert [made.quantile(share) for share in (0.2, 0.5, 0.8, 1.0)] == [1, 2, 3, 500]

    def test_few_long_ones_do_not_hide_the_rest(self) -> None:
        """They share the last bin; else all of the short ones would be one bar."""
        made = Lengths()
        for length in [*range(1, 100), 100_000]:
            made.add(length)
        bins = made.bins()
        assert [each.answers for each in bins] == [4, *[5] * 19, 1]
        assert (bins[-1].low, bins[-1].high) == (100, 100_000)

    def test_memory_does_not_grow_with_them(self) -> None:
        made = Lengths()
        for length in range(0, 5_000_000, 7):
            made.add(length)
        assert len(made._counts) < 8_000
        assert lengths._EXACT_BITS == 10


HOSTILE = (
    "</style></title><script>alert(1)</script>\"><img src=x onerror='alert(1)'>&amp;\x00\x1b[31m\u202e]]>"
)


class _Seen(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts = ""
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts += data


def seen(page: bytes) -> _Seen:
    parser = _Seen()
    parser.feed(page.decode())
    return parser


def test_no_text_becomes_an_element() -> None:
    """Whatever its place: title, text, behind an element, attribute; and what hides text is shown escaped."""
    page = elements.document(HOSTILE, "p {}", tag("p", HOSTILE, tag("b", HOSTILE), HOSTILE, title=HOSTILE))
    found = seen(page)
    assert found.tags == {"html", "head", "meta", "title", "style", "body", "p", "b"}
    assert found.texts.count("<script>alert(1)</script>") == 4
    assert not {name for name, _ in found.attributes if name.startswith("on") or name == "src"}
    for hidden in ("\x00", "\x1b", "\u202e"):
        assert hidden not in page.decode()
    assert "\\u202e" in found.texts


def test_a_page_forbids_itself_scripts_and_the_network() -> None:
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in seen(
        elements.document("t", "")
    ).attributes


def _rows(chart: Any, kind: str) -> list[dict[str, str]]:
    return [each.attrib for each in chart.iter("rect") if each.get("class") == kind]


def test_columns_are_as_high_as_their_values_and_stand_on_each_other() -> None:
    """The scale ends at a round number; what is little is still seen."""
    shown = [
        charts.Column([("good", 60.0), ("bad", 20.0)], "a"),
        charts.Column([("good", 0.0), ("bad", 0.01)], "b"),
    ]
    chart = charts.columns("c", shown, [charts.Label(0.0, "0")])
    (high,) = _rows(chart, "good")
    first, little = _rows(chart, "bad")
    assert (high["height"], high["y"], first["height"], first["y"]) == ("75%", "25%", "25%", "0%")
    assert little["height"] == "0.6%"
    assert [text.text for text in chart.iter("text")] == ["0", "20", "40", "60", "80", "0"]


def test_columns_of_nothing_are_drawn_all_the_same() -> None:
    charts.columns("c", [charts.Column([("good", 0.0)], "a")], [])
    charts.strip("s", [charts.Piece("queued", 0.0, "no time")])
    charts.bar("b", 0.0, "good")


def _event(at: float, phase: str, reason: str) -> dict[str, Any]:
    return {"at": at, "status": "in_progress", "phase": phase, "reason": reason}


EVENTS = [
    _event(0, "validating", "claimed from the inbox"),
    _event(1, "queued", "valid: 9 requests for m"),
    _event(10, "running", "assigned to spot: spot_first"),
    _event(110, "preempted", "preempted: 5 requests left"),
    _event(120, "running", "assigned to spot: spot_first"),
    _event(130, "running", "cancelled by its user"),
    _event(150, "preempted", "disk_full: 3 requests left"),
    _event(160, "queued", "taken up again"),
    _event(170, "running", "assigned to dedicated: deadline_at_risk"),
    _event(3770, "merging", "all"),
    _event(3780, "done", "all requests were worked on"),
]


def test_a_history_says_what_was_used_of_which_pool() -> None:
    """A cancel does not end a run, and a full disk is no pre-emption."""
    settings = PoolsSettings.model_validate(
        {"spot": {"price_per_hour": 2}, "dedicated": {"price_per_hour": 7}}
    )
    found = history.stretches(EVENTS, 9999)
    assert sum(each.seconds for each in found) == 3780
    spot, dedicated = history.pools(found, settings)
    assert (spot.pool, spot.runs, spot.preemptions, spot.seconds) == ("spot", 2, 1, 130)
    assert spot.cost == pytest.approx(130 / 3600 * 2)
    assert (dedicated.reasons, dedicated.seconds, dedicated.cost) == ({"deadline_at_risk": 1}, 3600, 7)
    assert [each.began for each in found if history.is_adoption(each)] == [160]


def test_a_batch_that_goes_on_is_told_until_now() -> None:
    found = history.stretches(EVENTS[:3], 50.0)
    assert found[-1] == history.Stretch("running", "spot", 10, 50.0, "assigned to spot: spot_first")


def test_a_history_whose_middle_was_dropped_is_known_as_such() -> None:
    """Nobody is told a cost of the runs that are left."""
    assert history.is_complete({"history": EVENTS, "attempt": 3})
    assert not history.is_complete({"history": EVENTS, "attempt": 300})


def _answer(number: int, usage: Any) -> bytes:
    return lines.response_line(f"x_{number}", f"c{number}", 200, orjson.dumps({"usage": usage}))


def test_lines_that_are_no_results_are_counted_and_nothing_else() -> None:
    """A file that somebody changed, or an engine that says no tokens, ends nothing."""
    found = results.Results()
    good = {"prompt_tokens": 3, "completion_tokens": 5}
    bad: list[Any] = [
        None,
        [],
        "x",
        {"prompt_tokens": "many"},
        {"prompt_tokens": -1},
        {"prompt_tokens_details": 4},
    ]
    found.add_answers([_answer(0, good), *(_answer(1, each) for each in bad), b"torn", b"[1]", b"{}"])
    assert (found.outputs.count, found.outputs.total, found.inputs.total) == (1, 5, 3)
    assert (found.unread_answers, found.unread_failures) == (len(bad) + 3, 0)
    found.add_failures([b"torn", b"3", b"null", b'{"response":null,"error":null,"custom_id":"a"}'])
    assert (found.unread_answers, found.unread_failures) == (len(bad) + 3, 4)
    assert not found.errors


def test_errors_are_told_by_status_or_code_with_the_first_as_an_example() -> None:
    found = results.Results()
    refused = lines.error_body("too long", "BadRequestError", None, 400)
    found.add_failures(
        [
            lines.response_line("x_0", "a", 400, refused),
            lines.response_line("x_1", "b", 400, refused),
            lines.response_line("x_2", "c", 502, b'"bare"'),
            lines.error_line("x_3", None, "invalid_json_line", "m" * 9999),
        ]
    )
    assert found.errors["HTTP 502"] == results.Kind(1, "c", "bare")
    assert found.errors["HTTP 400"] == results.Kind(2, "a", "too long")
    assert found.errors["invalid_json_line"].custom_id is None
    assert len(found.errors["invalid_json_line"].message) == 300


def test_kinds_of_errors_have_a_bound() -> None:
    found = results.Results()
    found.add_failures(lines.error_line(f"x_{n}", "c", f"code-{n}", "m") for n in range(1000))
    assert len(found.errors) == results.MOST_KINDS + 1
    assert found.errors[results.OTHERS].count == 1000 - results.MOST_KINDS


def test_memory_does_not_grow_with_the_result_files() -> None:
    """200,000 lines: what is kept are counts."""

    def answers() -> Iterator[bytes]:
        for number in range(100_000):
            yield _answer(number, {"prompt_tokens": number % 3000, "completion_tokens": number % 700})

    found = results.Results()
    tracemalloc.start()
    try:
        found.add_answers(answers())
        found.add_failures(lines.error_line(f"x_{n}", f"c{n}", "batch_expired", "m") for n in range(100_000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.outputs.count == found.errors["batch_expired"].count == 100_000
    assert peak < 1 << 20


def test_parts_of_a_batch_that_goes_on_count_each_line_once(tmp_path: Path) -> None:
    """The part of a shard with the lower name counts; tokens are the rows' own."""
    batch = tmp_path / "batch_x~1"
    (batch / parts.FOLDER).mkdir(parents=True)
    failure = Result(2, False, Usage(), lines.error_line("x_2", "c2", "request_timeout", "no answer"))
    parts.write(batch, 0, 1, [Result(0, True, Usage(3, 0, 4, 0), b"{}", latency=9), failure])
    parts.write(batch, 0, 2, [Result(line, True, Usage(5, 0, 6, 0), b"{}") for line in (0, 1, 2)])
    pace = Pace()
    found = results.of_parts(batch / parts.FOLDER, pace)
    assert (found.outputs.count, found.outputs.total, found.inputs.total) == (2, 10, 8)
    assert found.errors["request_timeout"].count == 1
    made = pace.timeline(None)
    assert made is not None
    assert (sum(made.completed), sum(made.failed)) == (2, 1)
