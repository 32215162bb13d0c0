"""Rounds on a Ray cluster of several nodes: one fault each, judged like all others.

    python -m tests.faults.cluster_rounds --rounds 3 --seed 1 --json build/faults/cluster.json

Prints a table; exit code 1 if anything was lost, doubled or wrong. One cluster serves all rounds.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from examples.cluster import HEAD, Cluster
from tests import daemons
from tests.faults import judgement, tally
from tests.faults.cluster_scene import END_LIMIT_S, LINES, QUICK, SPOT_AND_DEDICATED, ClusterScene

CUT_OFF_S = 60.0
SLOW_S = 0.25


def kill_node(here: ClusterScene, answers: int) -> float:
    """Three nodes, two daemons, four replicas; a node dies."""
    here.cluster.add("one")
    here.cluster.add("two")
    here.start(replicas=2)
    here.start(replicas=2)
    here.drop("jan")
    here.drop("feb")
    here.under_way("jan", answers)
    here.cluster.kill("one")
    return time.monotonic()


def cut_off(here: ClusterScene, answers: int) -> float:
    """A node hears and says nothing for a minute, and is back in the middle of the next batch."""
    here.cluster.add("one")
    here.cluster.add("two")
    here.start(replicas=2)
    here.drop("jan")
    here.under_way("jan", answers)
    here.cluster.freeze("one")
    struck_at = time.monotonic()
    daemons.until(here.is_over, CUT_OFF_S, "the end without the node")
    time.sleep(struck_at + CUT_OFF_S - time.monotonic())
    here.drop("feb")
    here.under_way("feb", answers=1)
    here.cluster.thaw("one")
    return struck_at


def slow_volume(here: ClusterScene, answers: int) -> float:
    """Each fsync, rename, link, mkdir and unlink of the daemon and its tasks takes 0.25 s more."""
    here.cluster.add("one")
    here.cluster.add("two")
    node = here.start(replicas=2)
    here.drop("jan")
    here.under_way("jan", answers)
    here.drop("feb")
    struck_at = time.monotonic()
    with here.slow_disk(node, SLOW_S):
        daemons.until(here.is_over, END_LIMIT_S, "the end of all batches")
    return struck_at


def lose_spot(here: ClusterScene, answers: int) -> float:
    """The only spot node dies, and the batch goes on in the dedicated pool."""
    here.cluster.add("cheap", resources={"spot": 1})
    here.cluster.add("dear", resources={"dedicated": 1})
    here.start(scheduler=SPOT_AND_DEDICATED)
    here.drop("jan")
    here.under_way("jan", answers)
    here.cluster.kill("cheap")
    return time.monotonic()


def restart_head(here: ClusterScene, answers: int) -> float:
    """The head dies with the daemon's node; all are started again."""
    here.cluster.add("one")
    node = here.start()
    here.drop("jan")
    here.under_way("jan", answers)
    here.cluster.kill(HEAD)
    struck_at = time.monotonic()
    node.process.wait(60)
    here.cluster.kill("one")
    here.cluster.start_head()
    here.cluster.add("one")
    node.start(wait_ready=True)
    return struck_at


FAULTS: dict[str, Callable[[ClusterScene, int], float]] = {
    "kill -9 of a node": kill_node,
    "node cut off for a minute": cut_off,
    "slow volume": slow_volume,
    "spot node lost": lose_spot,
    "head killed, all started again": restart_head,
}


def play(cluster: Cluster, fault: str, seed: int, folder: Path) -> judgement.Round:
    """One round."""
    done = judgement.Round(fault, "cluster", seed, has_struck=True)
    here = ClusterScene(cluster, folder)
    began = time.monotonic()
    try:
        struck_at = FAULTS[fault](here, random.Random(f"{fault} {seed}").randrange(1, LINES // 2))
        done.verdict = here.verdict()
        done.recovery_s = time.monotonic() - struck_at
    except AssertionError as error:
        done.verdict.lost.append(str(error))
    finally:
        here.close()
    done.took_s = time.monotonic() - began
    return done


def main() -> int:
    """Play the rounds that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each fault")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fault", choices=list(FAULTS), action="append")
    parser.add_argument("--json", type=Path, help="the table for machines")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/faults/cluster"), help="for spools and logs"
    )
    arguments = parser.parse_args()
    table = tally.Tally()
    with Cluster(QUICK) as cluster:
        for seed in range(arguments.seed, arguments.seed + arguments.rounds):
            for fault in arguments.fault or FAULTS:
                folder = arguments.folder / f"{fault.replace(' ', '-')}-{seed}"
                shutil.rmtree(folder, ignore_errors=True)
                done = play(cluster, fault, seed, folder)
                table.add(done)
                print(f"{fault}, seed {seed}: {done.verdict}, {done.recovery_s:.1f} s", flush=True)
                if done.verdict.is_right:
                    shutil.rmtree(folder)
    if arguments.json:
        table.write(arguments.json, seed=arguments.seed)
    print(table)
    return not table.is_right


if __name__ == "__main__":
    sys.exit(main())
