"""Where the API key of servers elsewhere comes from, and that it shows nowhere."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from config import settings
from pipeline import api_key, errors, kinds

KEY = "sk-never-to-be-seen"


def model(**fields: Any) -> settings.OpenAIModel:
    return settings.OpenAIModel(name="m", kind="openai", urls=("http://h",), **fields)


def test_a_key_comes_from_the_environment_or_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the line end that editors leave."""
    monkeypatch.setenv("SOME_KEY", KEY)
    (tmp_path / "key").write_text(f"{KEY}\n")
    for given in ({"api_key_env": "SOME_KEY"}, {"api_key_file": str(tmp_path / "key")}):
        found = api_key.read(model(**given))
        assert found is not None and found.get_secret_value() == KEY


def test_without_a_key_there_is_none() -> None:
    assert api_key.read(model()) is None
    assert api_key.read(settings.EchoModel(name="e", kind="echo")) is None


def test_a_key_on_its_way_to_a_replica_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever prints the arguments of its actor sees asterisks."""
    monkeypatch.setenv("SOME_KEY", KEY)
    found = api_key.read(model(api_key_env="SOME_KEY"))
    arrived = pickle.loads(pickle.dumps(found))
    assert arrived.get_secret_value() == KEY
    assert KEY not in f"{arrived} {arrived!r} {(arrived,)!r}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        (f"{KEY}\nX-Evil: 1", "holds no key: it must be one word of printable ASCII"),
        (f"{KEY} {KEY}", "holds no key"),
        (f"{KEY}ä", "holds no key"),
        (f"{KEY}\x00", "holds no key"),
    ],
)
def test_what_can_be_no_key_is_refused_without_showing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, problem: str
) -> None:
    """It could end the header, and begin another."""
    (tmp_path / "key").write_text(text)
    with pytest.raises(errors.EngineStartError, match=problem) as refused:
        api_key.read(model(api_key_file=str(tmp_path / "key")))
    assert KEY not in repr(refused.value)


def test_a_preflight_wants_the_key_and_no_server(tmp_path: Path) -> None:
    """Before Ray starts, in one line that names the setting."""
    kinds.preflight(model())
    with pytest.raises(errors.EngineStartError, match=r"^model 'm': api_key_env: .* NO_SUCH_KEY is not set$"):
        kinds.preflight(model(api_key_env="NO_SUCH_KEY"))
    with pytest.raises(errors.EngineStartError, match=r"^model 'm': api_key_file: .* No such file"):
        kinds.preflight(model(api_key_file=str(tmp_path / "absent")))
