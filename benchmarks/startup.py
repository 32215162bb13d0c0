"""How long a start takes that finds thousands of waiting batches of a daemon that was killed.

The loop and the spool are the real ones; no engine is started, since none is needed to take the batches up.
Prints the seconds of the first pass, after which all of them wait in the queue. Bar: 10,000 in under 10 s.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.shards import SHARD_LINES
from spool import create, layout, parts, plan
from spool.record import FileIdentity, Phase, Plan, Record
from tests.loops import Daemon


def main() -> int:
    """Make the batches, start, measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=10_000)
    count: int = parser.parse_args().batches
    with tempfile.TemporaryDirectory() as folder:
        home = create.create(Path(folder) / "spool")
        dead = home.work / layout.new_instance()
        dead.mkdir(0o700)
        began = time.time()
        for n in range(count):
            make_batch(home, dead, n, began)
        daemon = Daemon(Path(folder))
        daemon.run.may_go_on.clear()
        began = time.monotonic()
        daemon.step()
        seconds = time.monotonic() - began
        held = len(daemon.lifecycle.held)
        daemon.stop()
    print(f"{held} batches taken up in {seconds:.2f} s")
    return 0 if held == count and seconds < 10 * count / 10_000 else 1


def make_batch(home: layout.Layout, dead: Path, n: int, began: float, requests: int = 1) -> Path:
    """One waiting batch, as a killed daemon leaves it in the folder of its instance."""
    name = f"b{n}"
    batch_id = layout.new_batch_id(began + n / 1000)
    folder = layout.batch_folder(dead, batch_id, 1)
    for each in (folder, folder / plan.FOLDER, folder / parts.FOLDER, home.outbox / name):
        each.mkdir(0o700)
    request = b'{"custom_id":"a","body":{"model":"m","messages":[{"role":"user","content":"x"}]}}\n'
    for file in (layout.DROP_FILE, plan.INPUT_FILE):
        (folder / file).write_bytes(request * requests)
    shards = []
    for index, first in enumerate(range(0, requests, SHARD_LINES)):
        lines = min(SHARD_LINES, requests - first)
        shards.append(plan.Shard(index, first, lines, first * len(request), lines * len(request)))
    (folder / plan.FOLDER / plan.SHARDS_FILE).write_bytes(b"".join(map(plan.render, shards)))
    record = Record(
        batch_id=batch_id,
        drop=f"{name}.jsonl",
        drop_path=f"{name}.jsonl",
        identity=FileIdentity(device=0, inode=0, size_bytes=len(request) * requests, mtime_ns=0, ctime_ns=0),
        outbox_name=name,
        phase=Phase.QUEUED,
        submitted_at=began,
        deadline_at=began + 86400,
        plan=Plan(
            endpoint="/v1/chat/completions",
            model="m",
            requests=requests,
            shards=len(shards),
            input_bytes=len(request) * requests,
            sha256="",
            engine={"kind": "echo", "failure_rate": 0.0},
        ),
    )
    (folder / layout.RECORD_FILE).write_text(record.model_dump_json())
    return folder


if __name__ == "__main__":
    sys.exit(main())
