"""docs/troubleshooting.md names each code, message and log event that the code has, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from daemon.exits import Exit
from spool.codes import Failure, Refusal
from tests import messages
from tests.daemons import REPOSITORY

PAGE = REPOSITORY / "docs/troubleshooting.md"
# A code span; its text may hold single backticks where it stands between double ones.
SPAN = re.compile(r"(?<!`)(`{1,2})(?!`)(.+?)(?<!`)\1(?!`)")
# The columns of tables that hold messages and nothing else.
COLUMNS = {"message", "messages", "warning", "found"}


def spans(text: str) -> list[str]:
    return [match[2].strip() for match in SPAN.finditer(text)]


def sections() -> dict[str, str]:
    """The page's sections by their titles."""
    _, *parts = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def rows(section: str) -> list[list[str]]:
    """The cells of all tables, headers among them."""
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def first_cells(title: str) -> set[str]:
    return {span for row in rows(sections()[title]) for span in spans(row[0])}


def named_messages() -> set[str]:
    """What the page gives as a message: what stands in such a column, or leaves out what varies."""
    named = {span for span in spans(PAGE.read_text()) if "…" in span}
    for section in sections().values():
        columns: list[str] = []
        for row in rows(section):
            if row[0] in {"message", "code", "check", "warning", "event"}:
                columns = row
            for title, cell in zip(columns, row, strict=True):
                if title in COLUMNS:
                    named.update(spans(cell))
    return {span for span in named if " " in span}


def test_each_code_has_a_row_and_no_other_has() -> None:
    assert first_cells("Exit codes") == {str(int(code)) for code in Exit}
    assert first_cells("Codes of a refused file or line") - named_messages() == set(Refusal)
    assert first_cells("Codes of a failed request") == set(Failure)


def test_codes_are_named_in_one_place() -> None:
    """A code that is written out where it is used could be one that nobody has explained."""
    written = []
    for path in messages.files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("LineError", "Problem"):
                given = [*node.args[:1], *(each.value for each in node.keywords if each.arg == "code")]
                written += [f"{path}:{node.lineno}" for each in given if isinstance(each, ast.Constant)]
    assert written == []


def test_each_row_says_what_it_means_and_what_to_do() -> None:
    empty = [row[0] for section in sections().values() for row in rows(section) if not all(row)]
    assert empty == []


def test_each_message_stands_on_the_page_as_the_code_has_it() -> None:
    there = set(spans(PAGE.read_text()))
    missing = {each.text: each.place for each in messages.messages() if each.text not in there}
    assert missing == {}, "tell users what it means and what to do about it, in docs/troubleshooting.md"


def test_the_page_names_no_message_that_does_not_exist() -> None:
    assert named_messages() - {message.text for message in messages.messages()} == set()


def test_each_log_event_that_warns_has_a_row_and_no_other_has() -> None:
    assert first_cells("Log events") == messages.events()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("raise ValueError(f'{key}: is {what!r} here')", ["…: is … here"]),
        ("why = 'it is so'\n    raise spool.SpoolUnavailable(why)", ["it is so"]),
        ("raise OSError(errno.EIO, 'it broke', path)", ["it broke"]),
        ("return Problem(code, 'no ' + what, 'body.n')", ["no …"]),
        ("code, why = 1, 'the end'\n    error_line(key, custom_id, code, why)", ["the end"]),
        ("print('batchd: not now', file=sys.stderr)", ["not now"]),
        ("warning = f'held: {error}'", ["held: …"]),
        ("raise CommandError(str(error), 2)", []),
        ("raise KeyError('not shown')", []),
    ],
)
def test_what_counts_as_a_message(tmp_path: Path, line: str, expected: list[str]) -> None:
    """Else a message could be missing on the page without being missed."""
    file = tmp_path / "module.py"
    file.write_text(f"def go(key, what, error):\n    {line}\n")
    assert [message.text for message in messages.messages_of(file, "module.py")] == expected


def test_an_event_that_is_no_constant_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        "_log.warning('one' if x else 'two')\n(_log.error if x else _log.info)('three')\n_log.info('no')\n"
    )
    assert set(messages.events_of(file)) == {"one", "two", "three"}
    other = tmp_path / "other.py"
    other.write_text("_log.warning(name)\n")
    with pytest.raises(ValueError, match="an event is a constant, not name"):
        list(messages.events_of(other))
