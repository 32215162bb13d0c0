"""Makes spools and claimed batches for tests; no sleeping, time is an argument."""

from __future__ import annotations

from pathlib import Path

from config.units import window
from spool import claim, create, files, layout, parts, plan
from spool.batch import Batch
from spool.record import Phase, Plan, Status

DEFAULTS = claim.Defaults(window_s=86400.0, parse_window=window, mode=0o644)


def make(tmp_path: Path) -> tuple[layout.Layout, Path]:
    """A new spool, and the folder of an instance in it."""
    home = create.create(tmp_path / "spool")
    instance = home.work / layout.new_instance()
    files.make_folder(instance)
    return home, instance


def claimed(
    home: layout.Layout,
    instance: Path,
    name: str = "jan.jsonl",
    content: bytes = b"{}\n",
    now: float = 1000.0,
) -> Batch:
    """A batch claimed from a drop of this content."""
    (home.inbox / name).write_bytes(content)
    batch = claim.claim(home, instance, Path(name), now, DEFAULTS)
    assert batch
    claim.finish(batch)
    return batch


def planned(batch: Batch, requests: int = 2) -> Batch:
    """The batch as validation leaves it."""
    for folder in (plan.FOLDER, parts.FOLDER):
        files.make_folder(batch.folder / folder)
    fixed = Plan(
        endpoint="/v1/chat/completions",
        model="m",
        requests=requests,
        shards=1,
        input_bytes=9,
        sha256="0",
        engine={},
    )
    batch.advance(1001.0, Status.VALIDATING, Phase.QUEUED, "valid", plan=fixed)
    return batch
