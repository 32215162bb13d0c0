"""What README.md shows of files can be used as it stands."""

from __future__ import annotations

import io
import re
from pathlib import Path

from config import load
from pipeline import validate
from tests.daemons import REPOSITORY

README = (REPOSITORY / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def test_the_batch_file_is_valid() -> None:
    """For the model that the default settings have."""
    settings = load.load()
    rules = validate.Rules(frozenset(model.name for model in settings.models), settings.limits)
    (shown,) = blocks("json")
    verdict = validate.check(io.BytesIO(shown.encode()), rules)
    assert (verdict.errors, verdict.requests) == ((), 1)


def test_the_settings_are_accepted(tmp_path: Path) -> None:
    (shown,) = blocks("yaml")
    (tmp_path / "batchd.yaml").write_text(shown)
    assert [model.name for model in load.load(tmp_path / "batchd.yaml").models] == ["qwen"]


def test_it_can_be_read_in_one_go() -> None:
    assert README.count("\n") < 150
    assert all((REPOSITORY / link).exists() for link in re.findall(r"\]\(((?!http)[^)#]+)", README))
