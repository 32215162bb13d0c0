"""Elements of a page, built as a tree, so that every text and attribute is escaped when it is written.

Nothing is ever glued together as HTML. Users control most of what a page says (names, custom_ids, messages,
metadata): it cannot become an element, and what is not printable is shown escaped, so that it hides nothing.
The page also forbids itself scripts and everything from elsewhere, should this ever fail.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element, tostring

from spool import layout

Child = Element | str | None

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def tag(name: str, /, *children: Child, **attributes: str | float) -> Element:
    """An element.

    Args:
        name: of the element.
        children: elements, and texts as they are to be read; None is left out.
        attributes: a trailing underscore is dropped and the others become hyphens: class_, stroke_width.
    """
    named = {key.rstrip("_").replace("_", "-"): _value(value) for key, value in attributes.items()}
    element = Element(name, named)
    last: Element | None = None
    for child in children:
        if isinstance(child, str):
            text = layout.printable(child)
            if last is None:
                element.text = (element.text or "") + text
            else:
                last.tail = (last.tail or "") + text
        elif child is not None:
            element.append(child)
            last = child
    return element


def _value(value: str | float) -> str:
    return layout.printable(value) if isinstance(value, str) else f"{value:.6g}"


def document(title: str, style: str, *body: Child) -> bytes:
    """A whole page.

    Args:
        title: of the window.
        style: CSS of our own, which is not escaped.
        body: what it shows.
    """
    sheet = Element("style")
    sheet.text = style
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        sheet,
    )
    page = tag("html", head, tag("body", *body), lang="en")
    return b"<!doctype html>\n" + tostring(page, encoding="unicode", method="html").encode() + b"\n"
