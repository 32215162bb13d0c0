"""A pandas frame becomes a batch, and the answers become a column of it.

    python examples/pandas_client.py questions.csv ~/batches tiny-adder

reads a column `prompt`, and writes questions.answers.csv with the columns `answer` and `error` beside it.
"""

import json
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pandas as pd


def answer(frame: pd.DataFrame, spool: Path, model: str, name: str) -> pd.DataFrame:
    """The frame, whose index must be unique, with a column `answer`, and `error` where there is none."""
    bodies = [
        {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": 64,
        }
        for prompt in frame["prompt"]
    ]
    head = {"method": "POST", "url": "/v1/chat/completions"}
    rows = [
        {"custom_id": str(key), **head, "body": body} for key, body in zip(frame.index, bodies, strict=True)
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        command = ["batchd", "submit", file.name, "--name", name, "--spool", str(spool), "--wait"]
        subprocess.run([*command, "--timeout", "24h"], check=False)  # failed requests are told in `error`
    results = [
        json.loads(line)
        for file in ("output.jsonl", "errors.jsonl")
        if (path := spool / f"outbox/{name}/{file}").exists()
        for line in path.read_text().splitlines()
    ]
    index = frame.index.astype(str)
    ok = {
        r["custom_id"]: r["response"]["body"]["choices"][0]["message"]["content"] for r in results if is_ok(r)
    }
    bad = {r["custom_id"]: str(r["error"] or r["response"]["body"]["error"]) for r in results if not is_ok(r)}
    return frame.assign(answer=index.map(ok), error=index.map(bad))


def is_ok(result: dict) -> bool:
    """Whether a line of a result file is an answer."""
    return bool(result["response"]) and result["response"]["status_code"] == 200


if __name__ == "__main__":
    csv, spool, model = Path(sys.argv[1]), Path(sys.argv[2]).expanduser(), sys.argv[3]
    name = f"{csv.stem}-{uuid.uuid4().hex[:8]}"  # never used before: what was answered earlier stays apart
    answer(pd.read_csv(csv), spool, model, name).to_csv(csv.with_suffix(".answers.csv"), index=False)
