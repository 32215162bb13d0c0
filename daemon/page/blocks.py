"""What sections are built of: headings, figures with their names, legends."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree.ElementTree import Element

from daemon.page.elements import Child, tag


def section(title: str, *children: Child) -> Element:
    """A section with its heading."""
    return tag("section", tag("h2", title), *children)


def missing(why: str) -> Element:
    """What stands where a figure is not known."""
    return tag("p", f"Not known: {why}.", class_="soft")


def known(facts: Mapping[str, str]) -> Element:
    """Some figures side by side, each with its name."""
    pairs = (tag("div", tag("dt", name), tag("dd", text)) for name, text in facts.items())
    return tag("dl", *pairs, class_="figures")


def legend(*entries: tuple[str, str]) -> Element:
    """What colours mean: the class and the meaning of each."""
    rows = []
    for kind, text in entries:
        square = tag("svg", tag("rect", width="100%", height="100%", rx=2, class_=kind), aria_hidden="true")
        rows.append(tag("li", square, text))
    return tag("ul", *rows, class_="legend")
