"""A process that holds one Ray for many daemons, so that a round does not pay for starting one.

    python -m tests.faults.ray_host        prints one line of JSON, `{"address": …, "raylet": pid}`

It lives until its standard input is closed or it is killed; Ray's processes end with it. Whoever connects
needs the same RAY_AUTH_TOKEN, which comes from the environment.
"""

from __future__ import annotations

import json
import os
import sys

from pipeline import fleet, ray_start

# Four daemons keep their workers for some seconds after a kill, while their successors start theirs.
OBJECT_STORE_BYTES = 512 << 20


def main() -> None:
    """Start Ray, say where it is, and wait."""
    ray_start.prepare("local", fleet.MAX_WARM + 1)
    import ray

    with ray_start.lean():
        ray.init(
            address="local",
            num_cpus=os.cpu_count() or 1,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            configure_logging=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
    node = ray._private.worker._global_node
    raylet = node.all_processes["raylet"][0].process.pid
    print(json.dumps({"address": node.gcs_address, "raylet": raylet}), flush=True)
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main()
