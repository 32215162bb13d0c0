"""A sensor for a workflow scheduler: is the batch done? It reads one small file on the shared volume.

In Airflow, with nothing to install on its workers:

    PythonSensor(task_id="answers", python_callable=is_done, op_args=["/batches/outbox/jan"],
                 mode="reschedule", poke_interval=60, timeout=86400)
"""

import json
from pathlib import Path


def is_done(folder: str) -> bool:
    """Whether a batch has ended well, by its folder in outbox/; False as long as it goes on.

    Raises:
        RuntimeError: it failed, expired or was cancelled, or none of its requests was answered.
    """
    try:
        status = json.loads((Path(folder) / "status.json").read_text())
    except FileNotFoundError:
        return False  # not claimed yet
    if status["status"] in ("failed", "expired", "cancelled"):
        problems = [error["message"] for error in (status["errors"] or {}).get("data", [])]
        raise RuntimeError(
            f"{folder} ended as {status['status']}: {'; '.join(problems) or 'see errors.jsonl'}"
        )
    if status["status"] != "completed":
        return False
    if status["output_file_id"] is None:
        raise RuntimeError(f"{folder}: all {status['request_counts']['failed']} requests failed")
    return True  # and every file that status.json names is there, whole
