"""Paths and names of a spool. A state is a folder; nothing outside this package joins a state to a path.

    inbox/                                  drops, subfolders allowed
    work/<instance>/<batch_id>~<epoch>/     private to the instance that holds the batch
    outbox/<name>/                          what users read
    archive/<batch_id>/                     finished batches

Names that users chose never become a path as they are: see `outbox_name`.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

SUFFIX = ".jsonl"
SIDECAR_SUFFIX = ".batch.yaml"
STATUS_FILE = "status.json"
OUTPUT_FILE = "output.jsonl"
ERRORS_FILE = "errors.jsonl"
RECORD_FILE = "record.json"
FINAL_FILE = "final.json"
DROP_FILE = "drop.jsonl"
# Empty; stands once the end of the batch was shown.
PUBLISHED_FILE = "published"

_TEMPORARY_SUFFIXES = (".tmp", ".part", ".partial", ".filepart", ".crdownload", ".swp", "~")
_BATCH_FOLDER = re.compile(r"(batch_[0-9a-z]+)~(\d+)")
# 255 is the usual limit of a name; room is left for `.2`, `.3`, … and for `~` with a hash.
_MAX_NAME_BYTES = 200


class Layout:
    """Where everything of one spool lies.

    Attributes:
        root: the spool's folder, absolute.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.identity = self.root / "spool.json"
        self.pause = self.root / "pause"
        self.inbox = self.root / "inbox"
        self.work = self.root / "work"
        self.outbox = self.root / "outbox"
        self.archive = self.root / "archive"

    @property
    def folders(self) -> tuple[Path, ...]:
        """The four folders that must stand on one filesystem."""
        return (self.inbox, self.work, self.outbox, self.archive)


def is_drop_name(name: str) -> bool:
    """Whether a file of this name in the inbox is meant to be run."""
    return name.endswith(SUFFIX) and not name.startswith(".") and not name.endswith(_TEMPORARY_SUFFIXES)


def is_temporary_name(name: str) -> bool:
    """Whether a name is one that a writer uses before the final one."""
    return not is_drop_name(name)


def sidecar_of(drop: Path) -> Path:
    """The sidecar's path: `jan.batch.yaml` beside `jan.jsonl`."""
    return drop.with_name(drop.name.removesuffix(SUFFIX) + SIDECAR_SUFFIX)


def exact(relative: Path) -> str:
    """A path in ASCII that `from_exact` turns back into the very same bytes."""
    return quote_from_bytes(os.fsencode(relative), safe="/ ,;:=@+()[]{}!$&'*")


def from_exact(text: str) -> Path:
    """The path that `exact` wrote."""
    return Path(os.fsdecode(unquote_to_bytes(text)))


def readable(relative: Path) -> str:
    """A path as valid, printable text: bytes that are no UTF-8 and control characters are escaped."""
    return printable(os.fsencode(relative).decode("utf-8", "backslashreplace"))


def printable(text: str) -> str:
    """Text on one line that drives no terminal: what is not printable is escaped, lone surrogates too."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def outbox_name(relative: Path, attempt: int = 1) -> str:
    """The name in outbox/ of a drop: `team-a/jan.jsonl` -> `team-a~jan`, then `team-a~jan.2`, ….

    Args:
        relative: the drop's path relative to inbox/.
        attempt: 1 for the plain name, n for the n-th when those before are taken.
    """
    raw = os.fsencode(relative).removesuffix(SUFFIX.encode())
    parts = [_percent(part) for part in raw.split(b"/")]
    name = "~".join(parts)
    # A name of dots alone, or a leading dot, would be hidden or leave the folder.
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) > _MAX_NAME_BYTES:
        digest = hashlib.sha256(raw).hexdigest()[:16]
        name = f"{name[: _MAX_NAME_BYTES - 17]}~{digest}"
    return name if attempt == 1 else f"{name}.{attempt}"


def _percent(part: bytes) -> str:
    # quote keeps `~`, which joins folders here: a tilde of the user's own must not look like one of ours.
    return quote_from_bytes(part, safe="").replace("~", "%7E")


def new_batch_id(now: float) -> str:
    """`batch_` and 26 characters that sort by time: 12 hexadecimal digits of milliseconds, 14 random ones."""
    return f"batch_{int(now * 1000):012x}{secrets.token_hex(7)}"


def new_instance() -> str:
    """A random id of one start of a daemon; never a pid or a host name, which come back."""
    return f"i{secrets.token_hex(8)}"


def batch_folder(instance: Path, batch_id: str, epoch: int) -> Path:
    """The private folder of a batch that an instance holds."""
    return instance / f"{batch_id}~{epoch}"


def record_aside(folder: Path) -> Path:
    """Where the record of a batch is while its folder is being removed; no batch's folder is named so."""
    return folder.with_name(f"{folder.name}.{RECORD_FILE}")


def parse_batch_folder(name: str) -> tuple[str, int] | None:
    """(batch_id, epoch) of a folder in work/<instance>/; None for anything else."""
    match = _BATCH_FOLDER.fullmatch(name)
    return (match[1], int(match[2])) if match else None
