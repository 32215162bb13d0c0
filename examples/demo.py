"""The one-minute demo: start batchd on a fresh spool, drop the sample batch, check every answer, stop.

Everything is the real thing: the daemon as its own process, vLLM under Ray Data, files in folders. Exits with
1 when an answer is wrong or the daemon fails, and then shows the end of its log. With --cluster Ray is a
cluster of three nodes on this machine, and the engine runs on another node than the daemon.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
SPOOL = HERE.parent / "demo-spool"
SAMPLE = HERE / "sample.jsonl"
START_LIMIT_S = 300.0
BATCH_LIMIT_S = 120.0


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(description="The one-minute demo of batchd.")
    parser.add_argument("--cluster", action="store_true", help="on a Ray cluster of three nodes")
    if not parser.parse_args().cluster:
        return demo({})
    from cluster import Cluster

    _say("starting a Ray cluster: the daemon's node, and two for engines")
    with Cluster() as ray:
        for number in (1, 2):
            ray.add(f"node-{number}")
        _say(f"three nodes at {ray.address}")
        return demo(ray.environ)


def demo(environ: dict[str, str]) -> int:
    """Run it with some more settings in the environment."""
    began = time.monotonic()
    shutil.rmtree(SPOOL, ignore_errors=True)
    subprocess.run([_batchd(), "init", str(SPOOL)], check=True, stdout=subprocess.DEVNULL)
    log = SPOOL / "daemon.log"
    with open(log, "wb") as sink:
        daemon = subprocess.Popen(
            [_batchd(), "run"],
            stdout=sink,
            stderr=sink,
            env={**os.environ, "BATCHD_SPOOL__ROOT": str(SPOOL), "BATCHD_METRICS__PORT": "0", **environ},
        )
    try:
        _say("started batchd: Ray, then vLLM with examples/tiny-adder (about half a minute on 2 cores)")
        port = _await(lambda: _port(log), daemon, START_LIMIT_S, "listening")
        _await(lambda: _is_ready(port), daemon, START_LIMIT_S, "ready")
        _say(f"ready after {time.monotonic() - began:.0f} s")
        dropped = time.monotonic()
        # As pipelines should: write under a temporary name in the inbox, then rename.
        shutil.copyfile(SAMPLE, SPOOL / "inbox/sample.jsonl.tmp")
        os.rename(SPOOL / "inbox/sample.jsonl.tmp", SPOOL / "inbox/sample.jsonl")
        _say(f"dropped {SAMPLE.relative_to(HERE.parent)} into {SPOOL.name}/inbox/")
        status = _await(_terminal_status, daemon, BATCH_LIMIT_S, "answered")
        took_s = time.monotonic() - dropped
        return _show(status, took_s, time.monotonic() - began)
    except RuntimeError as error:
        print(f"\ndemo failed: {error}; the end of {log}:", file=sys.stderr)
        print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
        return 1
    finally:
        _stop(daemon)


def _batchd() -> str:
    """The installed command, beside this Python."""
    return str(Path(sys.executable).parent / "batchd")


def _say(text: str) -> None:
    print(f"  {text}", flush=True)


def _await(look, daemon: subprocess.Popen[bytes], limit_s: float, what: str):  # type: ignore[no-untyped-def]
    """What `look` finds, asked five times a second."""
    ends_at = time.monotonic() + limit_s
    while time.monotonic() < ends_at:
        if found := look():
            return found
        if daemon.poll() is not None:
            raise RuntimeError(f"batchd ended with exit code {daemon.returncode} before it was {what}")
        time.sleep(0.2)
    raise RuntimeError(f"not {what} within {limit_s:.0f} s")


def _port(log: Path) -> int | None:
    found = re.search(r"http://127\.0\.0\.1:(\d+)/metrics", log.read_text(errors="replace"))
    return int(found[1]) if found else None


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _terminal_status() -> dict[str, object] | None:
    try:
        status = json.loads((SPOOL / "outbox/sample/status.json").read_text())
    except FileNotFoundError:
        return None
    return status if status["status"] in ("completed", "failed", "expired", "cancelled") else None


def _show(status: dict[str, object], took_s: float, total_s: float) -> int:
    outbox = SPOOL / "outbox/sample"
    questions = {}
    for line in SAMPLE.read_text().splitlines():
        request = json.loads(line)
        questions[request["custom_id"]] = request["body"]["messages"][-1]["content"]
    right = 0
    print()
    for line in (
        (outbox / "output.jsonl").read_text().splitlines() if (outbox / "output.jsonl").exists() else ()
    ):
        row = json.loads(line)
        question = questions[row["custom_id"]]
        answer = row["response"]["body"]["choices"][0]["message"]["content"]
        a, b = map(int, re.findall(r"\d+", question))
        is_right = answer.strip() == str(a + b)
        right += is_right
        print(f"  {'✓' if is_right else '✗'} {question:<18} {answer}")
    print(f"\n  {right} of {len(questions)} sums are right; status: {status['status']}\n")
    for name in ("status.json", "output.jsonl", "errors.jsonl"):
        note = "" if (outbox / name).exists() else "   (none: no line failed)"
        print(f"  {(outbox / name).relative_to(HERE.parent)}{note}")
    print(f"\n  {took_s:.1f} s from drop to results, {total_s:.0f} s with the start of the engine")
    return 0 if right == len(questions) else 1


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.send_signal(signal.SIGTERM)
    try:
        daemon.wait(60)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


if __name__ == "__main__":
    sys.exit(main())
