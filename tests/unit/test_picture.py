"""The picture in README.md: how docs/picture.py reads a terminal, and what the picture may hold."""

from __future__ import annotations

import html
import re
import subprocess
import sys

import pytest

from docs import picture
from tests.daemons import REPOSITORY

PICTURE = REPOSITORY / "docs/terminal.svg"


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        ("one\r\ntwo\r\n", ["one", "two", ""]),
        ("a 10 %\r\nb\r\x1b[2K\x1b[1A\x1b[2Ka 20 %\r\nb", ["a 20 %", "b"]),
        ("\x1b[?25l\x1b[32mgreen\x1b[0m\x1b[?25h", ["\x1b[32mgreen\x1b[0m"]),
        ("old\rnew", ["new"]),
    ],
)
def test_the_screen_shows_what_stands_at_the_end(written: str, lines: list[str]) -> None:
    screen = picture.Screen()
    screen.write(written)
    assert screen.lines == lines


def test_what_the_screen_cannot_draw_is_no_picture() -> None:
    with pytest.raises(ValueError, match="cannot draw"):
        picture.Screen().write("\x1b[5;1Hthere")


def test_the_picture_loads_nothing_from_elsewhere() -> None:
    assert not re.search(r"@font-face|@import|url\(['\"]?http|href", PICTURE.read_text())
    assert "](docs/terminal.svg)" in (REPOSITORY / "README.md").read_text()


def test_the_commands_in_the_picture_are_batchds() -> None:
    """Else: make picture"""
    text = html.unescape(re.sub(r"<[^>]+>", "", PICTURE.read_text())).replace("\xa0", " ")
    shown = set(re.findall(r"batchd (\w+) (?=june|may|$)|batchd (status)", text, flags=re.MULTILINE))
    named = {name for pair in shown for name in pair if name}
    assert named >= {"watch", "submit", "status", "verify"}
    for name in named:
        command = [sys.executable, "-m", "daemon.main", name, "--help"]
        subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, timeout=60, check=True)
