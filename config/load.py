"""Read the settings once: a YAML file, then the environment (`BATCHD_SPOOL__ROOT=/data`), checked.

Everything that is wrong becomes one SettingsError line that names the key, the value and what is
allowed; nothing is dropped silently. The environment wins over the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_settings import SettingsError as SourceError

from config.settings import Settings

DEFAULT_FILE = Path(__file__).parent / "batchd.yaml"


_TAGS = ("vllm", "openai", "echo", "number", "range")


class SettingsError(ValueError):
    """The settings cannot be used; the message is one line for the user."""


def load(path: Path | None = None) -> Settings:
    """Settings from a YAML file and the environment.

    Args:
        path: the YAML file; None reads the default one of this package.

    Raises:
        SettingsError: the file cannot be read, or a setting is unknown or bad.
    """
    path = path or DEFAULT_FILE
    tree = _read_yaml(path)
    _resolve_sources(tree, path.resolve().parent)
    try:
        return Settings(**tree)
    except ValidationError as error:
        raise SettingsError(f"{path}: {one_line(error)}") from error
    except SourceError as error:  # an environment variable that is no JSON where a section is expected
        raise SettingsError(f"environment: {' '.join(str(error).split())}") from error


def one_line(error: ValidationError) -> str:
    """The first problem of a ValidationError as `key: value: why`."""
    first = error.errors(include_url=False)[0]
    # A discriminated union puts its tag into the location: models.0.vllm.source -> models.0.source.
    key = ".".join(str(part) for part in first["loc"] if part not in _TAGS) or "settings"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown setting; docs/settings.md lists those that there are"
    if first["type"] == "missing":
        return f"{key}: missing; it has no default"
    if isinstance(first["input"], dict | list | tuple):
        return f"{key}: {message}"
    return f"{key}: {first['input']!r}: {message}"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise SettingsError(f"{path}: must hold settings as `key: value`, see docs/settings.md")
    return tree


def _resolve_sources(tree: dict[str, Any], base: Path) -> None:
    """Turn a model's relative folder, or its key's file, into an absolute one; leave hub names alone.

    `./x`, `../x` and `/x` are always folders; `org/name` is one only where such a folder stands.
    """
    models = tree.get("models")
    for model in models if isinstance(models, list) else []:
        source = model.get("source") if isinstance(model, dict) else None
        if isinstance(source, str) and (source.startswith((".", "/", "~")) or (base / source).is_dir()):
            model["source"] = str((base / Path(source).expanduser()).resolve())
        key_file = model.get("api_key_file") if isinstance(model, dict) else None
        if isinstance(key_file, str) and key_file:
            model["api_key_file"] = str(base / Path(key_file).expanduser())
