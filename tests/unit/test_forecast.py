"""A forecast counts as the engine does, and finds what the plan would group."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from daemon import outbox, throughput
from pipeline import forecast
from tests import daemons

ADDER = daemons.REPOSITORY / "examples/tiny-adder"


def _lines(bodies: list[dict[str, Any]], url: str = "/v1/chat/completions") -> list[bytes]:
    return [
        orjson.dumps({"custom_id": str(n), "method": "POST", "url": url, "body": {"model": "m", **body}})
        + b"\n"
        for n, body in enumerate(bodies)
    ]


def _chat(text: str, **body: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 8, **body}


def test_tokens_are_those_of_the_models_own_template() -> None:
    """tiny-adder sees a token for each byte of its template's text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ADDER)
    texts = ["What is 1+1?", "What is 10+20?"]
    wanted = [
        len(
            tokenizer.apply_chat_template(
                _chat(text)["messages"], add_generation_prompt=True, return_dict=False
            )
        )
        for text in texts
    ]
    found = forecast.forecast(_lines([_chat(text) for text in texts]), ADDER, None)
    assert (found.requests, found.counted, found.input_tokens) == (2, 2, sum(wanted))
    assert found.longest == (wanted[1], 2)
    assert found.asked_tokens == 16
    assert found.too_long == 0


def test_what_does_not_fit_is_named_by_its_line() -> None:
    """With the answer that it asks for; blank lines are counted."""
    short, long = _chat("hi"), _chat("hi", max_tokens=500)
    lines = [*_lines([short, long]), b"\n", *_lines([long] * 7)]
    found = forecast.forecast(lines, ADDER, 512)
    assert found.too_long == 8
    assert found.too_long_lines == (2, 4, 5, 6, 7)
    unbounded = {"messages": short["messages"]}
    assert forecast.forecast(_lines([unbounded]), ADDER, 512).asked_tokens is None


def test_twins_and_shared_prompts_are_found() -> None:
    """As the plan would: shuffled groups of a long system prompt, and identical deterministic requests."""
    system = [{"role": "system", "content": letter * 3000} for letter in "abcd"]
    bodies = [
        {"messages": [system[n % 4], {"role": "user", "content": f"{n}"}], "max_tokens": 8} for n in range(40)
    ]
    found = forecast.forecast(_lines(bodies), ADDER, None)
    assert found.twins == 0
    # Of 3,000 shared bytes, 2,048 are a rung of the ladder; the first of each group shares nothing.
    assert found.shared_bytes == 36 * 2048
    found = forecast.forecast(_lines([_chat(f"{n % 5}", temperature=0) for n in range(20)]), ADDER, None)
    assert found.twins == 15


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    """In one line."""
    with pytest.raises(forecast.NoTokenizer, match="holds no tokenizer"):
        forecast.forecast([], tmp_path, None)
    assert forecast.context_length(tmp_path) is None
    assert forecast.context_length(ADDER) is not None


def _shown(number: int, *, seconds: float, requests: int = 200, model: str = "m") -> outbox.Shown:
    usage = {"total_tokens": 1000, "output_tokens": 400}
    history = [
        {"at": 0.0, "phase": "queued"},
        {"at": 5.0, "phase": "running"},
        {"at": 5.0 + seconds / 2, "phase": "preempted"},
        {"at": 90.0, "phase": "running"},
        {"at": 90.0 + seconds / 2, "phase": "merging"},
    ]
    counts = {"total": requests, "completed": requests, "failed": 0}
    tree = {"model": model, "usage": usage, "request_counts": counts, "batchd": {"history": history}}
    return outbox.Shown(f"b{number}", tree)


def test_the_past_tells_the_speed() -> None:
    """Of the latest batches of that model, large ones, while they ran."""
    shown = [_shown(n, seconds=s) for n, s in enumerate([10.0, 20.0, 40.0])]
    others = [_shown(3, seconds=1.0, requests=10), _shown(4, seconds=1.0, model="other")]
    assert throughput.past([*others, *shown], "m") == throughput.Past(3, 50.0, 2.0)
    assert throughput.past(others, "m") is None
    assert throughput.past([_shown(n, seconds=10.0) for n in range(30)], "m") == throughput.Past(
        10, 100.0, 2.0
    )


def test_the_command_prints_it(tmp_path: Path) -> None:
    """After the verdict; without a spool the time is unknown."""
    file = tmp_path / "jan.jsonl"
    file.write_bytes(daemons.jsonl([daemons.addition(1, 2), daemons.addition(1, 2) | {"custom_id": "again"}]))
    done = daemons.command("validate", file, "--model", ADDER, spool=tmp_path / "none")
    assert done.returncode == 0, done.stderr
    for fact in (
        "valid: 2 requests",
        "tokens in",
        "none: all fit into 512 tokens",
        "1 requests are identical",
    ):
        assert fact in done.stdout
    assert "unknown: " in done.stdout.splitlines()[-1]


def test_nothing_heavy_is_imported_for_a_plain_verdict() -> None:
    """transformers takes seconds."""
    code = "import sys; from daemon import main; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
