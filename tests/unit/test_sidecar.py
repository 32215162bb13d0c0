"""Sidecars: what may be wished for, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from config.units import window
from spool import sidecar
from spool.errors import SidecarError
from spool.record import Sidecar


def test_wishes_are_read() -> None:
    """Every key of the contract."""
    wishes = sidecar.parse(
        b"completion_window: 90m\nendpoint: /v1/embeddings\nmetadata: {a: b}\npool: spot\n"
        b"on_invalid: skip\nsubmission: abc-1\n",
        window,
    )
    assert wishes.completion_window == 5400
    assert wishes.endpoint == "/v1/embeddings"
    assert wishes.metadata == {"a": "b"}
    assert (wishes.pool, wishes.on_invalid, wishes.submission) == ("spot", "skip", "abc-1")


def test_text_that_yaml_takes_for_numbers_and_dates_stays_text() -> None:
    """YAML 1.1 makes 12:30 into 750, a day into an object and no into false."""
    wishes = sidecar.parse(
        b"metadata: {at: 12:30, on: 2026-01-01, c: no}\nsubmission: 1234567890123e45", window
    )
    assert wishes.metadata == {"at": "12:30", "on": "2026-01-01", "c": "no"}
    assert wishes.submission == "1234567890123e45"


@pytest.mark.parametrize(("number", "window_s"), [(b"5400", 5400.0), (b"90.5", 90.5), (b"+7.", 7.0)])
def test_decimal_numbers_are_seconds(number: bytes, window_s: float) -> None:
    """As in the settings."""
    assert sidecar.parse(b"completion_window: " + number, window).completion_window == window_s


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"window: 3", "sidecar window: unknown key; known: completion_window, endpoint, metadata, pool"),
        (b"completion_window: soon", "completion_window: a duration is"),
        (b"completion_window: 0", "completion_window"),
        (b"completion_window: 400d", "completion_window"),
        (b"pool: cheap", "sidecar pool"),
        (b"- a", "key: value"),
        (b"a: [", "not YAML"),
        (b"\xff\xfea", "not YAML"),
        (b"a: &x [1]\nb: *x", "aliases are not allowed"),
        (b"metadata: {" + b",".join(b"k%d: v" % i for i in range(17)) + b"}", "17 pairs"),
        (b"metadata: {k: " + b"v" * 513 + b"}", "at most 512"),
        (b"submission: ../../x", "sidecar submission"),
        # PyYAML answers these with KeyError, IndexError and AttributeError, which once ended the daemon.
        (b"pool: !!bool foo", "tags are not allowed"),
        (b'pool: !!int ""', "tags are not allowed"),
        (b"pool: !!timestamp x", "tags are not allowed"),
        (b"!!map {pool: spot}", "tags are not allowed"),
        (b"pool: ! spot", "tags are not allowed"),
        # Numbers of base 60 took seconds, and those with 309 digits or more ended the daemon (OverflowError).
        (b"completion_window: 1:30", "completion_window: a duration is"),
        (b"completion_window: 1" + b":1" * 20_000, "completion_window: a duration is"),
        (b"completion_window: 0x10", "completion_window: a duration is"),
        (b"completion_window: 1" + b"0" * 400, "more than 20 digits"),
        (b"1" + b"0" * 900 + b": x", "more than 20 digits"),
        (b"completion_window: '1" + b"0" * 400 + b"'", "must be finite"),
        (b"completion_window: '1" + b"0" * 300 + b"'", "0...: a completion window"),
        (b"metadata: {k: 1}", "sidecar metadata.k"),
        (b"metadata: {k: true}", "sidecar metadata.k"),
        (b"metadata: {k: }", "sidecar metadata.k"),
        (b'metadata: {"\\ud800": x}', "lone surrogate"),
    ],
)
def test_a_bad_wish_names_its_key(content: bytes, message: str) -> None:
    """Nothing is guessed at."""
    with pytest.raises(SidecarError) as caught:
        sidecar.parse(content, window)
    assert message in str(caught.value)


@given(st.dictionaries(st.text(max_size=64), st.text(max_size=90), max_size=6))
def test_what_submit_writes_is_read_back(metadata: dict[str, str]) -> None:
    """Any text, however YAML quotes it."""
    assert sidecar.parse(yaml.safe_dump({"metadata": metadata}).encode(), window).metadata == metadata


@given(st.binary(max_size=300))
def test_any_bytes_are_wishes_or_an_error(content: bytes) -> None:
    """No other exception comes out."""
    try:
        wishes = sidecar.parse(content, window)
    except SidecarError:
        return
    assert isinstance(wishes, Sidecar)


def test_links_and_pipes_are_not_read(tmp_path: Path) -> None:
    """A sidecar that is no regular file is an error, and opening it does not hang."""
    os.mkfifo(tmp_path / "a.batch.yaml")
    os.symlink("/etc/passwd", tmp_path / "b.batch.yaml")
    for name in ("a", "b"):
        with pytest.raises(SidecarError):
            sidecar.read(tmp_path / f"{name}.batch.yaml", window)
    assert sidecar.read(tmp_path / "c.batch.yaml", window) is None
