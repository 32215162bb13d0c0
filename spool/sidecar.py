"""Sidecars: the wishes that stand beside a drop, `jan.batch.yaml` beside `jan.jsonl`.

Read with a bound, never followed through a link, and checked against OpenAI's limits. What is wrong is a
SidecarError, which fails the batch with `invalid_request`: a wish that was misread must not be guessed at.
Its message is short and printable, whatever the sidecar holds.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from spool import files, layout
from spool.errors import SidecarError
from spool.record import FileIdentity, Sidecar

# 16 pairs of 64 + 512 characters fit many times over.
MAX_BYTES = 64 << 10
_MAX_MESSAGE_CHARS = 300
_MAX_DIGITS = 20


class _Wishes(BaseModel):
    """The keys of a sidecar, as a user writes them."""

    model_config = ConfigDict(extra="forbid")

    completion_window: float | None = None
    endpoint: str | None = Field(None, max_length=256, pattern=r"^[!-~]*$")
    metadata: dict[str, str] | None = None
    pool: Literal["auto", "spot", "dedicated"] = "auto"
    on_invalid: Literal["fail", "skip"] | None = None
    submission: str | None = Field(None, max_length=128, pattern=r"^[A-Za-z0-9_-]+$")

    @field_validator("metadata")
    @classmethod
    def _within_openai_limits(cls, pairs: dict[str, str] | None) -> dict[str, str] | None:
        if pairs is None:
            return None
        if len(pairs) > 16:
            raise ValueError(f"holds {len(pairs)} pairs, at most 16 are allowed")
        for key, value in pairs.items():
            if len(key) > 64 or len(value) > 512:
                raise ValueError("a key has at most 64 characters, a value at most 512")
            if not _is_encodable(key) or not _is_encodable(value):
                raise ValueError("holds a lone surrogate, which no JSON file can hold")
        return pairs


def _is_encodable(text: str) -> bool:
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in text)


class _Loader(yaml.SafeLoader):
    """YAML of which no piece takes long or grows: no aliases, no tags, and of numbers only short decimals.

    YAML 1.1 has numbers of base 60: 12:30 is 750, and 40 KB of them a number that takes seconds to make. Here
    what is neither null, true, false nor a decimal number stays the text that it is: 12:30, 2026-01-01, no.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError("tags are not allowed")
        return super().compose_node(parent, index)


def _number(loader: _Loader, node: yaml.ScalarNode) -> float:
    if len(node.value) > _MAX_DIGITS:
        raise yaml.YAMLError(f"a number has more than {_MAX_DIGITS} digits")
    return float(node.value)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)\Z", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)\Z", list("tTfF")),
    ("float", r"[-+]?[0-9]+(?:\.[0-9]*)?\Z", list("-+0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)


def read(path: Path, parse_window: Any, folder: int | None = None) -> tuple[Sidecar, FileIdentity] | None:
    """The sidecar at a path.

    Args:
        path: where it may stand.
        parse_window: turns the text of completion_window into seconds, or raises ValueError.
        folder: a descriptor of the folder that a relative path starts from.

    Returns:
        The wishes and what they were read from; None where no sidecar stands.

    Raises:
        SidecarError: it stands there and cannot be used.
    """
    try:
        file = files.open_regular(path, folder)
    except FileNotFoundError:
        return None
    except files.NotRegular as error:
        raise SidecarError(f"the sidecar is a {error.kind}, not a regular file") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None  # the drop's own name is so long that none can stand beside it
        raise SidecarError(f"the sidecar cannot be read: {error.strerror}") from error
    with file:
        facts = os.fstat(file.fileno())
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise SidecarError(f"the sidecar is larger than {MAX_BYTES} bytes")
    return parse(content, parse_window), FileIdentity.of(facts)


def parse(content: bytes, parse_window: Any) -> Sidecar:
    """The wishes in a sidecar's bytes.

    Raises:
        SidecarError: they cannot be used; the message names the key.
    """
    try:
        tree = yaml.load(content, Loader=_Loader)  # noqa: S506 - a SafeLoader, see above
    except Exception as error:
        raise _refused(f"the sidecar is not YAML: {' '.join(str(error).split())}") from error
    if tree is None:
        return Sidecar()
    if not isinstance(tree, dict):
        raise SidecarError("the sidecar must hold `key: value` lines")
    window = tree.get("completion_window")
    try:
        if window is not None:
            tree["completion_window"] = parse_window(window)
        wishes = _Wishes.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])[:100]
        if first["type"] == "extra_forbidden":
            raise _refused(f"sidecar {key}: unknown key; known: {', '.join(_Wishes.model_fields)}") from error
        raise _refused(f"sidecar {key}: {first['msg'].removeprefix('Value error, ')}") from error
    except ValueError as error:
        raise _refused(f"sidecar completion_window: {error}") from error
    return Sidecar(**wishes.model_dump())


def _refused(message: str) -> SidecarError:
    return SidecarError(layout.printable(message)[:_MAX_MESSAGE_CHARS])
