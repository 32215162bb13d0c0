"""Sidecars: the wishes that stand beside a drop, `jan.batch.yaml` beside `jan.jsonl`.

Read with a bound, never followed through a link, and checked against OpenAI's limits. What is wrong is a
SidecarError, which fails the batch with `invalid_request`: a wish that was misread must not be guessed at.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from spool.errors import SidecarError
from spool.record import Sidecar

# 16 pairs of 64 + 512 characters fit many times over; YAML's aliases cannot grow beyond what is read.
MAX_BYTES = 64 << 10


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


class _NoAliasLoader(yaml.SafeLoader):
    """Safe YAML without aliases, which can make a small file huge in memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)


def read(path: Path, parse_window: Any) -> tuple[Sidecar, tuple[int, int]] | None:
    """The sidecar at a path.

    Args:
        path: where it may stand.
        parse_window: turns the text of completion_window into seconds, or raises ValueError.

    Returns:
        The wishes and the (device, inode) they were read from; None where no sidecar stands.

    Raises:
        SidecarError: it stands there and cannot be used.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None  # the drop's own name is so long that none can stand beside it
        raise SidecarError(f"the sidecar cannot be read: {error.strerror}") from error
    with open(descriptor, "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise SidecarError("the sidecar is not a regular file")
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise SidecarError(f"the sidecar is larger than {MAX_BYTES} bytes")
    return parse(content, parse_window), (facts.st_dev, facts.st_ino)


def parse(content: bytes, parse_window: Any) -> Sidecar:
    """The wishes in a sidecar's bytes.

    Raises:
        SidecarError: they cannot be used; the message names the key.
    """
    try:
        tree = yaml.load(content, Loader=_NoAliasLoader)  # noqa: S506 - a SafeLoader, see above
    except Exception as error:
        raise SidecarError(f"the sidecar is not YAML: {' '.join(str(error).split())[:200]}") from error
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
        raise SidecarError(f"sidecar {key}: {first['msg'].removeprefix('Value error, ')}") from error
    except ValueError as error:
        raise SidecarError(f"sidecar completion_window: {error}") from error
    return Sidecar(**wishes.model_dump())
