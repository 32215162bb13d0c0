"""The page docs/settings.md, made from the settings' own classes so that it cannot be wrong.

python -m config.reference > docs/settings.md
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo

from config import settings

_HEAD = """\
# Settings

Made from the classes in `config/settings.py` by `python -m config.reference > docs/settings.md`; do not edit.

One YAML file, given with `batchd run --config FILE`. Each key may also stand in the environment, which
wins: `spool.root` is `BATCHD_SPOOL__ROOT`, `scheduler.pools.spot.capacity` is
`BATCHD_SCHEDULER__POOLS__SPOT__CAPACITY`. Sizes take units (`1GiB`, `500MB`), durations too (`90m`, `24h`,
`7d`). A key that is not on this page, a bad value or an impossible combination stops the start with one
line; `batchd run --check` finds that out without starting.
"""
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def render() -> str:
    """The page."""
    return "\n".join([_HEAD, *_sections(settings.Settings, ""), ""])


def _sections(model: type[BaseModel], path: str) -> Iterator[str]:
    """A table for each section that has settings of its own, depth first."""
    own = {name: field for name, field in model.model_fields.items() if not _below(field)}
    if own:
        title = path.removesuffix(".")
        yield f"## {title}\n\n{(model.__doc__ or '').strip()}\n"
        yield "| key | default | allowed | what |\n|---|---|---|---|"
        for name, field in own.items():
            default = _default(field)
            key = name if "[]" in path else f"{path}{name}"
            yield f"| `{key}` | {default} | {_allowed(field)} | {field.description} |"
        yield ""
    for name, field in model.model_fields.items():
        for below, suffix in _below(field):
            yield from _sections(below, f"{path}{name}{suffix}.")


def _below(field: FieldInfo) -> list[tuple[type[BaseModel], str]]:
    """The sections below a field, each with what its name is followed by."""
    kind = field.annotation
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [(kind, "")]
    found = [
        each
        for each in _flatten(kind)
        if isinstance(each, type) and issubclass(each, BaseModel) and "kind" in each.model_fields
    ]
    return [(each, f"[] ({_kind(each)})") for each in found]


def _flatten(kind: Any) -> Iterator[Any]:
    yield kind
    for each in typing.get_args(kind):
        yield from _flatten(each)


def _kind(model: type[BaseModel]) -> str:
    (kind,) = typing.get_args(model.model_fields["kind"].annotation)
    return f"kind: {kind}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return f"`{_shown(field.get_default(call_default_factory=True))}`"


def _shown(value: Any) -> str:
    if isinstance(value, ByteSize):
        size, unit = int(value), 0
        while size and size % 1024 == 0 and unit < len(_UNITS) - 1:
            size, unit = size // 1024, unit + 1
        return f"{size}{_UNITS[unit]}" if unit else str(size)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[]" if not value else ", ".join(map(_shown, value))
    if value is None:
        return "null"
    return str(value)


def _allowed(field: FieldInfo) -> str:
    kind = field.annotation
    if typing.get_origin(kind) is Literal:
        return ", ".join(f"`{each}`" for each in typing.get_args(kind))
    if kind is bool:
        return "`true`, `false`"
    bounds = [
        f"{sign} {_shown(getattr(each, name))}"
        for each in field.metadata
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        if getattr(each, name, None) is not None
    ]
    return ", ".join(bounds)


if __name__ == "__main__":
    sys.stdout.write(render())
