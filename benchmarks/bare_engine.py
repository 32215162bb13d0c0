"""The bare engine, as a process: answers files with vLLM's handlers alone, for benchmarks/peers.py.

Reads jobs from standard input, a JSON line each, and replies on standard output; vLLM's own output goes to
standard error. Lines are parsed and results written as batchd does, so that what is left of the difference is
the data path: validation, Ray, parts, merge and what makes them durable.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from config import settings
from pipeline.vllm_engine import VllmEngine
from spool import lines


async def serve(model: settings.VllmModel, reply: int) -> None:
    """Answer jobs until there are no more."""
    engine = VllmEngine(model, allowed_media_domains=())
    await engine.start()
    try:
        _say(reply, {"is_ready": True})
        while job := await asyncio.to_thread(sys.stdin.buffer.readline):
            where = orjson.loads(job)
            began = time.monotonic()
            await answer_all(engine, Path(where["file"]), Path(where["results"]))
            _say(reply, {"seconds": time.monotonic() - began})
    finally:
        await engine.stop()


async def answer_all(engine: VllmEngine, file: Path, results: Path) -> None:
    """Every request at once; nothing is written before the last answer is there, nothing is made durable."""
    requests = [orjson.loads(line) for line in file.read_bytes().splitlines()]
    texts = await asyncio.gather(*(_line(engine, n, request) for n, request in enumerate(requests)))
    results.write_bytes(b"\n".join(texts) + b"\n")


async def _line(engine: VllmEngine, number: int, request: dict[str, Any]) -> bytes:
    # vLLM wants ids that it does not know yet.
    key = lines.request_key(f"bare_{os.urandom(4).hex()}", number)
    answer = await engine.answer(request["url"], request["body"], key)
    return lines.response_line(key, request["custom_id"], answer.status_code, answer.body)


def _say(reply: int, message: dict[str, Any]) -> None:
    os.write(reply, orjson.dumps(message) + b"\n")


def main() -> None:
    """Serve the model that the argument describes."""
    reply = os.dup(1)
    os.dup2(2, 1)  # also for the processes that vLLM starts
    model = settings.VllmModel.model_validate_json(sys.argv[1])
    asyncio.run(serve(model, reply))


if __name__ == "__main__":
    main()
