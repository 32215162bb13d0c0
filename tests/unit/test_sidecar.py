"""Sidecars: what may be wished for, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"window: 3", "sidecar window: Extra inputs are not permitted"),
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
        (b"pool: !!bool foo", "not YAML"),
        (b'pool: !!int ""', "not YAML"),
        (b"pool: !!timestamp x", "not YAML"),
        (b'metadata: {"\\ud800": x}', "lone surrogate"),
    ],
)
def test_a_bad_wish_names_its_key(content: bytes, message: str) -> None:
    """Nothing is guessed at."""
    with pytest.raises(SidecarError) as caught:
        sidecar.parse(content, window)
    assert message in str(caught.value)


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
