"""Fuzzing of the line reader, the validator and the sidecar reader, guided by coverage (atheris).

    python -m venv /tmp/fuzz && /tmp/fuzz/bin/pip install atheris==3.0.0 -e .
    /tmp/fuzz/bin/python -m tests.faults.fuzz --minutes 10        # or: --target lines|file|request|sidecar

atheris is in no lock: it has no wheels for every Python that batchd runs on, and nothing needs it but this
file. Each target gets its share of the time in a process of its own, limited to 1 GiB, and 20 s for an input.
What it finds it writes to crash-*, oom-* or timeout-* in the folder --found; one of these as an argument
after --target runs it again. The checks are plain functions, which tests/unit/test_fuzz.py uses too.
"""

from __future__ import annotations

import argparse
import importlib
import io
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import orjson

from config.settings import LimitSettings
from config.units import window
from pipeline import request_guards, requests, validate, validate_lines, validate_size
from spool import sidecar
from spool.errors import SidecarError

MODELS = frozenset({"m", "m2"})
LIMITS = LimitSettings()
MAX_MESSAGE_CHARS = 1_000
REQUEST = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
}
MEDIA = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]}


def check_lines(content: bytes, limit: int = 1000) -> None:
    """The reader finds the lines that splitting at line ends finds."""
    reader = validate_lines.LineReader(io.BytesIO(content), limit, 0, lambda: None)
    found = list(reader.lines())
    assert reader.size_bytes == len(content)
    if reader.foreign:
        assert not found
        return
    start = 3 if content.startswith(b"\xef\xbb\xbf") else 0
    expected = content[start:].split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    assert [number for number, _, _ in found] == list(range(1, len(expected) + 1))
    for (_, offset, line), raw in zip(found, expected, strict=True):
        assert offset == start
        assert line == (raw.strip(b" \t\r") if len(raw) <= limit else None)
        if line is not None:
            assert reader.line_at(offset) == line
        start += len(raw) + 1


def check_file(content: bytes) -> None:
    """A verdict that is bounded and printable; both ways to treat bad lines count the same."""
    verdict = validate.check(io.BytesIO(content), validate.Rules(MODELS, LIMITS))
    assert len(verdict.errors) <= LIMITS.max_reported_errors
    for error in verdict.errors:
        assert error.message.isprintable() and len(error.message) < MAX_MESSAGE_CHARS
        error.model_dump_json()
    assert verdict.is_valid == (verdict.total_errors == 0)
    skipping = validate.check(io.BytesIO(content), validate.Rules(MODELS, LIMITS, on_invalid="skip"))
    assert skipping.requests == verdict.requests
    assert skipping.rejected <= skipping.requests
    if verdict.is_valid:
        assert (skipping.rejected, skipping.endpoint, skipping.model) == (0, verdict.endpoint, verdict.model)
        for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
            if stripped := line.strip(b" \t\r"):
                check_request(stripped, verdict.endpoint, verdict.model)


def check_request(line: bytes, endpoint: str, model: str) -> None:
    """An accepted line is a whole request by itself, and names nothing that an engine would fetch or load."""
    request = orjson.loads(line)
    assert requests.Checker(MODELS, LIMITS, ()).find_problem(request) is None
    assert (request["url"], request["method"], request["body"]["model"]) == (endpoint, "POST", model)
    assert isinstance(request["custom_id"], str) and request["custom_id"]
    body = request["body"]
    assert not any(
        body.get(name) for name in ("stream", "chat_template", "prompt_embeds", "mm_processor_kwargs")
    )
    content = [body.get(name) for name in ("messages", "input", "documents", "query")]
    for url in _media(content):
        assert url[:5].lower() == "data:"


def _media(value: Any) -> list[str]:
    """Every string that stands for media, found in another way than the guards do: by recursion."""
    if isinstance(value, list):
        return [url for item in value for url in _media(item)]
    if not isinstance(value, dict):
        return []
    found = [url for item in value.values() for url in _media(item)]
    for key in ("image_url", "audio_url", "video_url", "file_url"):
        media = value.get(key)
        url = media.get("url") if isinstance(media, dict) else media
        found += [url] if isinstance(url, str) else []
    return found


def check_sidecar(content: bytes) -> None:
    """Wishes that a record can hold, or SidecarError with a short message."""
    try:
        wishes = sidecar.parse(content, window)
    except SidecarError as error:
        message = str(error)
    else:
        message = ""
        again = type(wishes).model_validate_json(wishes.model_dump_json())
        assert again == wishes
    assert len(message.encode()) < MAX_MESSAGE_CHARS * 4


def check_part(content: bytes) -> None:
    """A request whose body the fuzzer writes: most of the guards stand behind whole JSON."""
    check_file(orjson.dumps(REQUEST)[:-2] + b"," + content.replace(b"\n", b" ") + b"}}")


TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "lines": (check_lines, [b"a\r\n\n b\t\nc", b"\xef\xbb\xbfx\n", b"\x1f\x8b", b"{\x00}\x00"]),
    "file": (
        check_file,
        [orjson.dumps(REQUEST), b'{"custom_id":1}\n[]\n', orjson.dumps(REQUEST) + b"\n\xff"],
    ),
    "request": (
        check_part,
        [
            orjson.dumps(MEDIA)[1:-1],
            b'"n":9,"logprobs":-1,"tools":[{"type":"mcp","server_url":"x"}]',
            b'"chat_template_kwargs":{"tokenize":1},"vllm_xargs":{"kv_transfer_params":1}',
            b'"url":"/v1/completions","prompt":["a",[1]],"response_format":{"type":"x"}',
        ],
    ),
    "sidecar": (
        check_sidecar,
        [
            b"completion_window: 90m\npool: spot\non_invalid: skip\nmetadata: {a: b}\nsubmission: a-1\n",
            b"endpoint: /v1/embeddings\n<<: {a: &b [1:2:3, !!int 0x]}\n? [x]\n: *b\n",
        ],
    ),
}


def _fuzz(target: str, arguments: list[str]) -> None:
    atheris = importlib.import_module("atheris")
    # What is watched for coverage; watching is slow, so only the code at stake.
    for module in (validate, validate_lines, validate_size, requests, request_guards, sidecar):
        for thing in list(vars(module).values()):
            if getattr(thing, "__module__", "") == module.__name__:
                for function in vars(thing).values() if isinstance(thing, type) else (thing,):
                    if isinstance(function, FunctionType):
                        atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], *arguments], TARGETS[target][0])
    atheris.Fuzz()


def main() -> int:
    """Fuzz one target, or all of them for their share of the time."""
    parser = argparse.ArgumentParser(description="Fuzz batchd's readers with atheris.")
    parser.add_argument("--target", choices=sorted(TARGETS))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--found", type=Path, default=Path(tempfile.gettempdir(), "batchd-fuzz"))
    known, rest = parser.parse_known_args()
    if known.target:
        _fuzz(known.target, rest)
        return 0
    failed = 0
    for target, (_, seeds) in TARGETS.items():
        corpus = known.found / target
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds):
            (corpus / f"seed-{number}").write_bytes(seed)
        seconds = max(1, int(known.minutes * 60 / len(TARGETS)))
        bounds = [f"-max_total_time={seconds}", "-rss_limit_mb=1024", "-timeout=20", "-max_len=65536"]
        command = [sys.executable, "-m", "tests.faults.fuzz", "--target", target, *bounds]
        # Mostly short inputs first, and only the summary in the log.
        command += [
            "-len_control=50",
            "-print_final_stats=1",
            f"-artifact_prefix={known.found}/",
            str(corpus),
        ]
        ran = subprocess.run(command, capture_output=True, text=True)
        executed = re.search(r"number_of_executed_units: *(\d+)", ran.stderr)
        count = int(executed[1]) if executed else 0
        print(f"{target:<8} {seconds} s  {count} executions  {'FOUND SOMETHING' if ran.returncode else 'ok'}")
        if ran.returncode:
            failed += 1
            print(ran.stderr[-3000:])
    return failed


if __name__ == "__main__":
    sys.exit(main())
