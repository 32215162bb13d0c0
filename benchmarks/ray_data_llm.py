"""Ray Data's own LLM processor on one batch file, as a process, for benchmarks/peers.py.

As its documentation shows it: read the file, build_processor, write JSON. The results are put into the order
and the form of the other peers' afterwards. One reply on standard output: lines, and lines per second of the
middle 80 %, since the engine starts inside the run.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson

# Its four stages and the tasks around them reserve a CPU each, and wait for ever where there are fewer.
CPUS = 16
# 8 batches of 64 at a time: among the best of its own measurements (ray#52634).
BATCH_SIZE = 64


def run(source: str, engine_args: dict[str, Any], file: Path, parts: Path) -> None:
    """Answer a file into a folder of JSON files."""
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    has_gpu = ray.cluster_resources().get("GPU", 0) > 0
    config = vLLMEngineProcessorConfig(
        model_source=source,
        engine_kwargs={**engine_args, "disable_log_stats": True},
        batch_size=BATCH_SIZE,
        concurrency=1,
        placement_group_config=None if has_gpu else {"bundles": [{"CPU": 1}]},
        log_engine_metrics=False,
    )
    processor = build_processor(config, preprocess=_to_prompt, postprocess=_to_row)
    processor(ray.data.read_json(str(file), lines=True)).write_json(str(parts))


def _to_prompt(row: dict[str, Any]) -> dict[str, Any]:
    body = row["body"]
    wanted = ("temperature", "max_tokens", "min_tokens", "ignore_eos")
    return {
        "custom_id": row["custom_id"],
        "messages": body["messages"],
        "sampling_params": {name: body[name] for name in wanted if body.get(name) is not None},
    }


def _to_row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "custom_id": row["custom_id"],
        "text": row["generated_text"],
        "tokens": row["num_generated_tokens"],
        "done_at": time.time(),
    }


def gather(file: Path, parts: Path, results: Path) -> dict[str, float]:
    """Bring the results into the order of the file and the form of the other peers'.

    Returns:
        Lines, and lines per second between a tenth and nine tenths of them.
    """
    rows: dict[str, dict[str, Any]] = {}
    for part in parts.glob("*.json"):
        for line in part.read_bytes().splitlines():
            row = orjson.loads(line)
            rows[row["custom_id"]] = row
    with open(results, "wb") as sink:
        for line in file.read_bytes().splitlines():
            row = rows[orjson.loads(line)["custom_id"]]
            choice = {"message": {"content": row["text"]}, "finish_reason": None}
            body = {"choices": [choice], "usage": {"completion_tokens": row["tokens"]}}
            response = {"status_code": 200, "body": body}
            sink.write(orjson.dumps({"custom_id": row["custom_id"], "response": response}) + b"\n")
    done = sorted(row["done_at"] for row in rows.values())
    first, last = len(done) // 10, len(done) * 9 // 10
    return {"lines": len(done), "lines_per_s": (last - first) / max(1e-3, done[last] - done[first])}


def main() -> None:
    """Answer the file that the argument names."""
    reply = os.dup(1)
    os.dup2(2, 1)
    job = orjson.loads(sys.argv[1])
    file, results = Path(job["file"]), Path(job["results"])
    import ray

    session = tempfile.mkdtemp(prefix="bench-ray-")  # sockets lie in it, so its path has to be short
    parts = results.with_suffix(".parts")
    try:
        ray.init(num_cpus=CPUS, include_dashboard=False, _temp_dir=session)
        run(job["source"], job["engine_args"], file, parts)
        said = gather(file, parts, results)
    finally:
        ray.shutdown()
        shutil.rmtree(session, ignore_errors=True)
        shutil.rmtree(parts, ignore_errors=True)
    os.write(reply, orjson.dumps(said) + b"\n")


if __name__ == "__main__":
    main()
