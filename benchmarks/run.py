"""Runs workloads on batchd and its peers, in turn, and says what came out: a table, results.json, plots.

Exits with 1 when an answer is not what it must be, or something could not be measured; with --strict
also when a bar is missed. All goes to a folder of its own below build/benchmarks/, logs of all processes
included.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import figures, machine, measures, measures_data, served, workloads
from benchmarks.measured import Measured
from benchmarks.sessions import Bench, Session

BUILD = served.ROOT / "build" / "benchmarks"
KINDS: dict[str, Callable[[Bench], Measured]] = {
    kind.name: kind for kind in (*measures.ALL, *measures_data.ALL)
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for."""
    arguments = _parser().parse_args(argv)
    importlib.import_module("matplotlib")  # missing, it is to be missed now and not after an hour
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through everything that ends what was started
    _set_environment()
    out = arguments.out or BUILD / time.strftime("%Y%m%d-%H%M%S")
    (out / "logs").mkdir(parents=True)
    about = {"quick": arguments.quick, "workloads": arguments.workloads, "at_begin": machine.describe()}
    began = time.monotonic()
    bench = _bench(arguments, out)
    try:
        outcomes = run(bench, [KINDS[name](bench) for name in arguments.workloads or KINDS])
    finally:
        shutil.rmtree(bench.work, ignore_errors=True)
    about |= {
        "seconds": time.monotonic() - began,
        "served": [
            dataclasses.asdict(each) for each in (bench.served, bench.prefix_served, bench.tail_served)
        ],
        "load_average_at_end": os.getloadavg(),
    }
    figures.write_json(out / "results.json", about, outcomes)
    for outcome in outcomes:
        figures.plot(out / f"{outcome.name}.png", outcome)
        print(f"\n{figures.show(outcome)}")
    print(f"\n{about['seconds'] / 60:.1f} minutes; figures, plots and logs are in {out}")
    is_bad = not all(outcome.is_right for outcome in outcomes)
    return int(is_bad or (arguments.strict and any(outcome.misses_a_bar for outcome in outcomes)))


def run(bench: Bench, chosen: Sequence[Measured]) -> list[figures.Outcome]:
    """Measure in turn; what breaks is left out from then on, and the others go on."""
    broken: dict[str, str] = {}
    sessions: list[Session] = []
    for each in chosen:
        sessions += [session for session in each.sessions if session not in sessions]
    for repetition in range(1 if bench.is_quick else workloads.REPETITIONS):
        # Every other time the other way round, so that nobody is always first on a machine that changes.
        for session in reversed(sessions) if repetition % 2 else sessions:
            todo = [
                each
                for each in chosen
                if session in each.sessions and repetition < each.repetitions and each.name not in broken
            ]
            if todo:
                _run_session(bench, session, todo, repetition, broken)
    outcomes = []
    for each in chosen:
        outcome = each.outcome()
        outcome.broken = broken.get(each.name)
        outcome.is_judged = not bench.is_quick
        outcomes.append(outcome)
    return outcomes


def _run_session(
    bench: Bench, session: Session, todo: list[Measured], repetition: int, broken: dict[str, str]
) -> None:
    try:
        with session.open(bench, repetition) as live:
            for each in todo:
                began = time.monotonic()
                try:
                    each.measure(session, live, repetition)
                except Exception as error:  # noqa: BLE001 (one workload must not cost the others their hour)
                    broken[each.name] = f"{session.label}: {error!r}"
                    _say(f"{each.name} broke on {session.label}: {error!r}")
                else:
                    _say(
                        f"{repetition + 1}. {each.name} on {session.label}: {time.monotonic() - began:.1f} s"
                    )
    except Exception as error:  # noqa: BLE001 (likewise)
        for each in todo:
            broken.setdefault(each.name, f"{session.label}: {error!r}")
        _say(f"{session.label} broke: {error!r}")


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _bench(arguments: argparse.Namespace, out: Path) -> Bench:
    sizes = workloads.QUICK if arguments.quick else workloads.FULL if arguments.full else workloads.Sizes()
    if arguments.config:
        model = prefix_model = served.from_config(arguments.config)
    else:
        model = served.tiny_adder()
        prefix_model = served.Served("qwen2-8x512", str(_make_model()), model.engine_args, "any")
    small_cache = prefix_model.with_args(
        "small KV cache",
        block_size=workloads.KV_BLOCK_TOKENS,
        num_gpu_blocks_override=workloads.KV_CACHE_TOKENS // workloads.KV_BLOCK_TOKENS,
    )
    few_places = model.with_args("few places", max_num_seqs=workloads.TAIL_PLACES)
    work = out / "work"
    work.mkdir()
    return Bench(
        sizes=sizes,
        served=model,
        prefix_served=small_cache,
        tail_served=model if arguments.config or arguments.quick else few_places,
        work=work,
        logs=out / "logs",
        is_quick=arguments.quick,
    )


def _make_model() -> Path:
    folder = BUILD / "models" / "qwen2-8x512"
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.model", str(folder)]
    subprocess.run(command, cwd=served.ROOT, check=True, timeout=300)
    return folder


def _set_environment() -> None:
    """The same for all that is started here, whatever the shell says."""
    for name in list(os.environ):
        if name.startswith("BATCHD_"):
            del os.environ[name]
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; else vLLM takes what it finds
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "workloads", nargs="*", metavar="WORKLOAD", help=f"all without any: {', '.join(KINDS)}"
    )
    parser.add_argument("--config", type=Path, help="a settings file whose first vLLM model is used")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once each: does it work at all?")
    parser.add_argument("--full", action="store_true", help="scale also runs 5,000,000 lines")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a bar is missed, too")
    parser.add_argument("--out", type=Path, help="where results go (default: below build/benchmarks/)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
