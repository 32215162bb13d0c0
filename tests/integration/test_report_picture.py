"""The page as a browser shows it: on a phone and on a desk, by day and by night."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config.settings import PoolsSettings
from daemon.page import page
from tests import pages
from tests.browser import Browser

PHONE, DESK = (390, 844), (1280, 900)
VIEWS = [(*size, is_dark) for size in (PHONE, DESK) for is_dark in (False, True)]
PRICES = PoolsSettings.model_validate({"spot": {"price_per_hour": 1.2}, "dedicated": {"price_per_hour": 3.5}})
SECTIONS = [
    *("Timeline", "Throughput", "Latency", "Tokens", "Errors", "Deadline", "Pools", "Cost", "Details"),
]
HOSTILE = "<script>console.error(1)</script><img src=http://127.0.0.1:9/x>" + "W" * 120
# Of style.py, light and dark.
PAPER = {False: (0xFC, 0xFC, 0xFB), True: (0x14, 0x17, 0x1B)}
GOOD = {False: (0x24, 0x68, 0xC4), True: (0x6A, 0xA5, 0xF5)}
BAD = {False: (0xC2, 0x37, 0x2F), True: (0xF2, 0x76, 0x6B)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


def _write(folder: Path, hostile: str = "") -> Path:
    file = folder / "page.html"
    file.write_bytes(page.render(pages.sample(folder, hostile), PRICES))
    return file


def _overflow_px(browser: Browser) -> int:
    """By how much something stands out to the right of the window, texts in charts included."""
    script = """
        Math.ceil(Math.max(document.documentElement.scrollWidth, ...[...document.body.querySelectorAll("*")]
          .filter(each => getComputedStyle(each).display !== "none")
          .map(each => each.getBoundingClientRect().right)) - document.documentElement.clientWidth)
    """
    return int(browser.value(script))


def _pixels(browser: Browser) -> Any:
    """The whole page, (height, width, 3) of uint8."""
    from matplotlib import image  # imports slowly

    return (image.imread(io.BytesIO(browser.picture()))[:, :, :3] * 255).round().astype(np.uint8)


def _count(pixels: Any, colour: tuple[int, int, int]) -> int:
    return int((np.abs(pixels.astype(int) - colour).max(axis=2) <= 3).sum())


@pytest.mark.parametrize(("width", "height", "is_dark"), VIEWS)
@pytest.mark.parametrize("hostile", ["", HOSTILE], ids=["plain", "hostile"])
def test_all_of_it_is_seen_and_nothing_stands_out(
    browser: Browser, tmp_path: Path, width: int, height: int, is_dark: bool, hostile: str
) -> None:
    """Each section has its place in the window, the console is silent, and nobody is asked for anything."""
    file = _write(tmp_path, hostile)
    browser.open(file, width, height, is_dark=is_dark)
    boxes = browser.value("""
        [...document.querySelectorAll("section")].map(each => {
          const {left, right, height} = each.getBoundingClientRect()
          return [each.querySelector("h2").textContent, left, right, height]
        })
    """)
    assert [name for name, *_ in boxes] == SECTIONS
    for name, left, right, tall in boxes:
        assert left >= 0 and left + 300 < right <= width and tall > 60, name
    assert _overflow_px(browser) <= 0
    assert browser.value("document.querySelectorAll('script, img, a, iframe').length") == 0
    assert (browser.problems, browser.requests) == ([], [file.as_uri()])


@pytest.mark.parametrize(("width", "height", "is_dark"), VIEWS)
def test_the_picture_shows_charts_in_the_colours_of_the_day(
    browser: Browser, tmp_path: Path, width: int, height: int, is_dark: bool
) -> None:
    """Paper around them, bars in them, of what was answered and of what failed; and texts."""
    browser.open(_write(tmp_path), width, height, is_dark=is_dark)
    pixels = _pixels(browser)
    assert width - 20 < pixels.shape[1] <= width and pixels.shape[0] > 2000  # a desk has a scroll bar
    assert tuple(pixels[2, 2]) == PAPER[is_dark]
    assert _count(pixels, PAPER[not is_dark]) == 0
    for kind, colour, least in (("good", GOOD[is_dark], 20_000), ("bad", BAD[is_dark], 2_000)):
        area = browser.value(f"""
            [...document.querySelectorAll("rect.{kind}")].map(each => each.getBoundingClientRect())
              .map(box => box.width * box.height).reduce((one, two) => one + two)
        """)
        assert area > least
        assert _count(pixels, colour) == pytest.approx(area, rel=0.2)  # edges are blended
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100  # edges of letters


def test_bars_have_the_heights_of_their_values(browser: Browser, tmp_path: Path) -> None:
    """Measured on the screen: percentages become pixels in proportion."""
    facts = pages.sample(tmp_path)
    file = tmp_path / "page.html"
    file.write_bytes(page.render(facts, PRICES))
    browser.open(file, *PHONE)
    heights = browser.value("""
        [...document.querySelectorAll('[aria-label="Answers by latency"] g')].map(group => {
          const bar = group.querySelector("rect.good")
          return [group.querySelector("title").textContent, bar ? bar.getBoundingClientRect().height : 0]
        })
    """)
    counts = [int(title.rpartition(": ")[2].replace(",", "")) for title, _ in heights]
    assert facts.latency is not None
    assert [count for count in counts if count] == [count for count in facts.latency.counts if count]
    highest = max(height for _, height in heights)
    for count, (_, height) in zip(counts, heights, strict=True):
        assert height == pytest.approx(highest * count / max(counts), abs=1.0)


def test_fewer_labels_stand_below_a_chart_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    """None of those that are shown covers another."""
    file = _write(tmp_path)
    shown = {}
    for width, height in (PHONE, DESK):
        browser.open(file, width, height)
        rows = browser.value("""
            [...document.querySelectorAll(".chart")].map(chart => [...chart.querySelectorAll("text.label")]
              .filter(each => getComputedStyle(each).display !== "none")
              .map(each => each.getBoundingClientRect()).map(box => [box.left, box.right]))
        """)
        for row in rows:
            assert all(one[1] < two[0] for one, two in itertools.pairwise(row)), (width, row)
        shown[width] = sum(map(len, rows))
    assert shown[PHONE[0]] < shown[DESK[0]]


def test_a_page_that_is_not_as_it_should_be_is_seen(browser: Browser, tmp_path: Path) -> None:
    """The checks above can fail: on a script, an error, a request and on something too wide."""
    file = tmp_path / "bad.html"
    file.write_text(
        '<!doctype html><meta name="viewport" content="width=device-width"><p style="width: 500px">x</p>'
        '<img src="http://127.0.0.1:9/x"><script>console.error("bad")</script>'
    )
    browser.open(file, *PHONE)
    assert _overflow_px(browser) > 0
    assert browser.problems and "http://127.0.0.1:9/x" in browser.requests
