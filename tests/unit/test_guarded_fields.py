"""What a body may not reach out for, for every field of vLLM's request models; and what a line may hold."""

from __future__ import annotations

import inspect
import io
import resource
import subprocess
import sys
import time
import typing
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ByteSize

from config.settings import LimitSettings
from pipeline import request_guards, requests, validate, validate_lines, validate_size
from pipeline.request_guards import Problem

REPOSITORY = Path(__file__).resolve().parents[2]
MESSAGES = [{"role": "user", "content": "hi"}]
NEEDS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "x"},
    "/v1/responses": {"input": "x"},
    "/v1/embeddings": {"input": "x"},
    "/v1/score": {"text_1": "x", "text_2": "x"},
    "/v1/rerank": {"query": "x", "documents": ["x"]},
}
SERVER_TOOLS = ["mcp", "web_search", "web_search_preview", "web_search_preview_2025_03_11", "container"]
SERVER_TOOLS += ["code_interpreter", "file_search", "image_generation"]
FILE = "file:///etc/passwd"


def problem_of(url: str, body: dict[str, Any], **limits: Any) -> Problem | None:
    checker = requests.Checker(frozenset({"m"}), LimitSettings(**limits), ())
    full = {"model": "m"} | NEEDS[url] | body
    return checker.find_problem({"custom_id": "a", "method": "POST", "url": url, "body": full})


def tool(**fields: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f"}}, fields]}


def message(part: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}]}


# (endpoint, what a body asks for, the parameter that is named)
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    # templates, tensors and processors
    *[(url, {"chat_template": "{{ x }}"}, "chat_template") for url in NEEDS],
    *[(url, {"mm_processor_kwargs": {"num_crops": 9999}}, "mm_processor_kwargs") for url in NEEDS],
    *[(url, {"media_io_kwargs": {"video": {"num_frames": -1}}}, "media_io_kwargs") for url in NEEDS],
    *[(url, {"prompt_embeds": "AAAA"}, "prompt_embeds") for url in NEEDS],
    *[
        (url, {"chat_template_kwargs": {key: 1}}, f"chat_template_kwargs.{key}")
        for url in NEEDS
        for key in ("chat_template", "tokenize", "conversation", "padding", "max_length", "tokenizer_kwargs")
    ],
    ("/v1/chat/completions", {"logits_processors": ["os.system"]}, "logits_processors"),
    # hosts that the engine would connect to
    *[(url, {"kv_transfer_params": {"remote_host": "10.0.0.1"}}, "kv_transfer_params") for url in NEEDS],
    *[(url, {"ec_transfer_params": {"x": {"peer_host": "10.0.0.1"}}}, "ec_transfer_params") for url in NEEDS],
    ("/v1/responses", {"vllm_xargs": {"kv_transfer_params": "x"}}, "vllm_xargs.kv_transfer_params"),
    ("/v1/completions", {"vllm_xargs": {"ec_transfer_params": ["x"]}}, "vllm_xargs.ec_transfer_params"),
    # tools that a server runs
    *[
        ("/v1/responses", tool(type=kind), "tools[1]")
        for kind in SERVER_TOOLS
    ],
    ("/v1/responses", tool(type="x", server_url="http://10.0.0.1/"), "tools[1]"),
    ("/v1/chat/completions", tool(type="mcp", headers={"Authorization": "x"}), "tools[1]"),
    # tensors as content parts, by type and by key; with a uuid vLLM goes by the key
    *[
        ("/v1/chat/completions", message({"type": kind, kind: "AAAA"}), "messages")
        for kind in ("image_embeds", "audio_embeds", "video_embeds", "prompt_embeds", "image_pil")
    ],
    ("/v1/chat/completions", message({"type": "text", "uuid": "u", "image_embeds": {"x": "A"}}), "messages"),
    ("/v1/embeddings", message({"type": "prompt_embeds", "data": "AAAA"}), "messages"),
    ("/v1/score", {"text_1": {"content": [{"type": "image_embeds", "image_embeds": "A"}]}}, "text_1"),
    ("/v1/rerank", {"documents": [{"content": [{"video_embeds": "A"}]}]}, "documents"),
    # URLs, wherever a model knows them
    (
        "/v1/responses",
        {"previous_input_messages": [{"content": [{"image_url": FILE}]}]},
        "previous_input_messages",
    ),
    ("/v1/responses", {"prompt": {"id": "x", "variables": {"a": {"file_url": FILE}}}}, "prompt"),
    (
        "/v1/responses",
        {"input": [{"type": "computer_call_output", "output": {"image_url": FILE}}]},
        "input",
    ),
    ("/v1/responses", {"input": [{"type": "function_call_output", "output": [{"file_url": FILE}]}]}, "input"),
    ("/v1/chat/completions", message({"type": "text", "uuid": "u", "video_url": FILE}), "messages"),
    ("/v1/embeddings", {"messages": [{"role": "user", "content": [{"image_url": FILE}]}]}, "messages"),
    ("/v1/embeddings", {"input": [[{"role": "user", "content": [{"audio_url": {"url": FILE}}]}]]}, "input"),
    ("/v1/score", {"text_2": [{"content": [{"type": "image_url", "image_url": {"url": FILE}}]}]}, "text_2"),
    ("/v1/rerank", {"query": {"content": [{"type": "video_url", "video_url": {"url": FILE}}]}}, "query"),
]  # fmt: skip


@pytest.mark.parametrize(("url", "body", "param"), REFUSED)
def test_what_reaches_out_is_refused(url: str, body: dict[str, Any], param: str) -> None:
    """Whatever the endpoint: `unsupported_parameter`, naming where it stands."""
    problem = problem_of(url, body)
    assert problem is not None
    assert (problem.code, problem.param) == ("unsupported_parameter", f"body.{param}")


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/chat/completions", {"vllm_xargs": {"x": 3}, "chat_template_kwargs": {"thinking": True}}),
        ("/v1/chat/completions", {"kv_transfer_params": None, "vllm_xargs": None}),
        ("/v1/chat/completions", tool(type="function", function={"name": "g", "parameters": {"url": "x"}})),
        ("/v1/responses", tool(type="custom", name="c")),
        ("/v1/responses", {"tools": [{"type": "namespace", "name": "n", "tools": []}]}),
        ("/v1/chat/completions", message({"type": "image_embeds", "image_embeds": None} | {"type": "text"})),
        ("/v1/chat/completions", {"logprobs": True, "logprob_token_ids": list(range(20))}),
        ("/v1/chat/completions", {"tools": [{"function": {"description": "x" * 60_000}}] * 10}),
    ],
)  # fmt: skip
def test_what_stays_inside_is_accepted(url: str, body: dict[str, Any]) -> None:
    """The guards refuse nothing that is harmless."""
    assert problem_of(url, body) is None


def test_tools_are_capped_together() -> None:
    """With tool_choice `required` vLLM makes one grammar of all of them."""
    tools = [{"type": "function", "function": {"name": "f", "description": "x" * 60_000}}] * 20
    problem = problem_of("/v1/chat/completions", {"tools": tools})
    assert problem is not None
    assert (problem.code, problem.param) == ("invalid_request", "body.tools")
    assert "limits.max_grammar_bytes" in problem.message
    assert problem_of("/v1/chat/completions", {"tools": tools}, max_grammar_bytes=0) is None


@pytest.mark.parametrize(
    ("url", "field", "item"),
    [
        ("/v1/embeddings", "input", "x"),
        ("/v1/embeddings", "input", [1, 2]),
        ("/v1/embeddings", "input", [{"role": "user", "content": "x"}]),
        ("/v1/embeddings", "messages", [{"role": "user", "content": "x"}]),
        ("/v1/rerank", "documents", "x"),
        ("/v1/rerank", "documents", {"content": [{"type": "text", "text": "x"}]}),
        *[
            ("/v1/score", field, "x")
            for field in ("text_1", "text_2", "data_1", "data_2", "queries", "items")
        ],
    ],
)
def test_inputs_are_capped(url: str, field: str, item: Any) -> None:
    """Each is a request of its own to the engine, and vLLM takes a million of them from one line."""
    most = request_guards.MAX_INPUTS
    assert problem_of(url, {field: [item] * most}) is None
    problem = problem_of(url, {field: [item] * (most + 1)})
    assert problem is not None
    assert (problem.code, problem.param) == ("invalid_request", f"body.{field}")
    assert f"at most {most}" in problem.message


def test_a_long_input_is_one_input() -> None:
    """Tokens of one text, and the messages of one conversation, are as many as a line holds."""
    assert problem_of("/v1/embeddings", {"input": [7] * 30_000}) is None
    message = {"role": "user", "content": "x"}
    for url, field in (("/v1/responses", "input"), ("/v1/chat/completions", "messages")):
        assert problem_of(url, {field: [message] * 3_000}) is None


def test_logprobs_of_named_tokens_are_capped() -> None:
    """Each named token is one more logprob at each position."""
    body = {"logprobs": True, "logprob_token_ids": list(range(21))}
    problem = problem_of("/v1/chat/completions", body)
    assert problem is not None
    assert (problem.code, problem.param) == ("invalid_request", "body.logprob_token_ids")
    assert problem_of("/v1/chat/completions", body, max_logprobs=21) is None


# ------------------------------------------------------------------ vLLM's own models

# What somebody has looked at and found to reach nothing, in vLLM 0.32: sampling, output, names, and lists of
# tokens or words that vLLM bounds itself (stop 4, bad_words 128) or that no more than their bytes cost.
HARMLESS = frozenset(
    """add_generation_prompt add_special_tokens allowed_token_ids background bad_words cache_salt
    continue_final_message dimensions echo embed_dtype enable_response_messages encoding_format endianness
    frequency_penalty ignore_eos include include_reasoning include_stop_str_in_output instruction instructions
    length_penalty logit_bias max_completion_tokens max_output_tokens max_tokens max_tokens_per_doc
    max_tokens_per_query max_tool_calls metadata min_p min_tokens mm_payload model padding parallel_tool_calls
    presence_penalty previous_response_id priority prompt_cache_key reasoning reasoning_effort
    repetition_detection repetition_penalty request_id return_mm_kwargs return_prompt_text return_token_ids
    return_token_offsets return_tokens_as_token_ids routed_experts_prompt_start seed service_tier session_id
    skip_special_tokens spaces_between_special_tokens stop stop_token_ids store stream_interval stream_options
    suffix temperature thinking_token_budget tool_choice top_k top_n top_p truncate_prompt_tokens truncation
    truncation_side use_activation use_beam_search user watermarking""".split()  # noqa: SIM905 (a list of them is 70 lines)
)
TEXT_PARTS = {"text", "thinking", "input_text", "output_text", "refusal", "tool_reference"}


@pytest.mark.engine
def test_every_field_of_vllms_models_is_judged() -> None:
    """A vLLM with a new field fails here until somebody has decided about it."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest
    from vllm.entrypoints.pooling.scoring.protocol import RerankRequest, ScoreRequest

    models: list[Any] = [ChatCompletionRequest, CompletionRequest, ResponsesRequest, RerankRequest]
    models += typing.get_args(ScoreRequest)
    models += typing.get_args(typing.get_args(EmbeddingRequest)[0])
    fields = {name for model in models for name in model.model_fields}
    assert fields - HARMLESS - set(request_guards._CHECKS) == set()
    assert HARMLESS & set(request_guards._CHECKS) == set()


@pytest.mark.engine
def test_every_parameter_of_a_chat_template_is_judged() -> None:
    """vLLM passes chat_template_kwargs on to the tokenizer: its own parameters are refused there too."""
    from transformers import PythonBackend

    # What a template reads.
    harmless = {"tools", "documents", "add_generation_prompt", "continue_final_message"}
    for name in set(inspect.signature(PythonBackend.apply_chat_template).parameters) - {"self", "kwargs"}:
        for url in NEEDS:
            problem = problem_of(url, {"chat_template_kwargs": {name: None}})
            assert (problem is None) == (name in harmless), name


@pytest.mark.engine
def test_every_kind_of_part_is_judged() -> None:
    """What vLLM's chat parser knows is text, or guarded by its key and its type."""
    from vllm.renderers import chat_utils

    known = set(chat_utils.MM_PARSER_MAP)
    assert known - TEXT_PARTS <= request_guards._MEDIA_KEYS | request_guards._TENSOR_KEYS


@pytest.mark.engine
def test_every_kind_of_tool_is_judged() -> None:
    """What the Responses API knows as a tool runs at the reader's, or is refused."""
    from openai.types.responses.tool import Tool

    ours = {"function", "custom", "namespace", "programmatic_tool_calling", "tool_search", "apply_patch"}
    ours |= {"computer", "computer_use_preview", "local_shell", "shell"}  # the reader runs them, or nobody
    for model in typing.get_args(typing.get_args(Tool)[0]):
        for kind in typing.get_args(model.model_fields["type"].annotation):
            assert (problem_of("/v1/responses", tool(type=kind)) is None) == (kind in ours), kind


URL_PIECES = [
    "http",
    "https",
    "file",
    "data",
    ":",
    "/",
    "//",
    "\\",
    "@",
    "?",
    "#",
    ".",
    "%2f",
    "%00",
    "[",
    "]",
    "::1",
]
URL_PIECES += [
    "a.org",
    "A.ORG",
    "b.org",
    "evil",
    "127.0.0.1",
    "0x7f.1",
    ":80",
    ":",
    " ",
    "\t",
    "\n",
    "\u3002",
    "\uff0f",
]
URL_PIECES += ["http://", "https://a.org", "http://a.org/", "user:pw@", ";", "&", "xn--", "\xad", "\u212a"]


@pytest.mark.engine
@settings(max_examples=3_000)
@given(st.lists(st.sampled_from(URL_PIECES), min_size=1, max_size=8).map("".join))
@example("HTTPS://A.ORG:8443/x?y#z")
def test_an_accepted_url_has_the_same_host_for_all_who_read_it(url: str) -> None:
    """Ours, vLLM's and the one that fetches: none sees another host, or vLLM refuses."""
    import yarl
    from urllib3.exceptions import LocationParseError
    from urllib3.util import parse_url
    from vllm.multimodal.media.connector import MediaConnector

    guard = request_guards.Guard(LimitSettings(), frozenset({"a.org", "b.org"}))
    if not request_guards._is_allowed(url, guard.allowed_media_domains) or url[:5].lower() == "data:":
        return
    try:
        seen = parse_url(url)
    except LocationParseError:
        return
    MediaConnector(allowed_media_domains=["a.org", "b.org"])._assert_url_in_allowed_media_domains(seen)
    assert seen.scheme in ("http", "https")
    assert yarl.URL(seen.url).host == seen.hostname


# ------------------------------------------------------------------ what a line may hold


@pytest.mark.parametrize(
    ("unit", "excess"),
    [
        (b"[],", "objects"),
        (b'{"a":0},', "objects"),
        (b"[[[]]],", "objects"),
        (b"1,", "values"),
        (b'"ab",', "values"),
    ],
)
def test_a_line_of_too_many_values_is_refused(unit: bytes, excess: str) -> None:
    """16 MiB of `[],` took 500 MiB once parsed."""
    line = b'{"body":[' + unit * ((8 << 20) // len(unit)) + b"0]}"
    assert excess in str(validate_size.find_excess(line))


def test_what_stands_in_a_string_does_not_count() -> None:
    """Code, JSON in a string, escaped quotes."""
    text = orjson.dumps(['{"a":[1,2,"' * 400_000])
    assert validate_size.find_excess(text) is None
    assert validate_size.find_excess(text[:-2]) is None  # a string without an end
    assert validate_size.find_excess(b"[" * validate_size.MAX_CONTAINERS) is None


@pytest.mark.parametrize("unit", [b'\\"', b'"', b"\\", b'"\\', b'",', b"{", b'{"', b'\\\\"'])
def test_counting_takes_linear_time(unit: bytes) -> None:
    """No line makes the expression go back over it again and again."""
    line = b"," * 1_000_001 + b'"' + unit * ((8 << 20) // len(unit))
    started = time.process_time()
    validate_size.find_excess(line)
    validate_size.find_excess(line[1_000_000:])
    assert time.process_time() - started < 5


WITHIN = b'{"a":"bc"},' * 249_000 + b'"ab",' * 700_000
PEAK = """
import io, resource, sys
from config.settings import LimitSettings
from pipeline import validate
line = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
verdict = validate.check(io.BytesIO(line), validate.Rules(frozenset({"m"}), LimitSettings()))
print(verdict.errors[0].code, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.parametrize("content", [b"[]," * 5_500_000, b"[[[[]]]]," * 1_860_000, WITHIN])
def test_memory_of_a_line_is_bounded(content: bytes) -> None:
    """The worst that is refused, and the worst that is parsed: below 200 MiB."""
    line = b'{"custom_id":"a","method":"POST","url":"/v1/completions","body":{"x":[' + content + b"0]}}"
    assert len(line) < 16 << 20
    ran = subprocess.run(
        [sys.executable, "-c", PEAK], input=line, capture_output=True, cwd=REPOSITORY, check=True
    )
    code, grown_mib = ran.stdout.split()
    assert code == b"invalid_request"
    assert int(grown_mib) < 200


def test_a_file_that_grows_while_it_is_read_ends(tmp_path: Path) -> None:
    """A writer as fast as the reader must not keep it for ever."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n" * (1 << 20))

    class Growing(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            with open(path, "ab") as writer:
                writer.write(b"\n" * (1 << 20))
            return super().read(size)

    with Growing(path) as source:
        verdict = validate.check(source, validate.Rules(frozenset({"m"}), LimitSettings()))
    assert verdict.input_bytes <= 2 << 20
    assert "input_modified" in [error.code for error in verdict.errors]


@pytest.mark.parametrize("on_invalid", ["fail", "skip"])
def test_an_endless_line_ends_the_reading(
    on_invalid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparse file can claim exabytes: after a gibibyte of one line nothing more is read."""
    monkeypatch.setattr(validate_lines, "ENDLESS_BYTES", 8 << 20)
    path = tmp_path / "x.jsonl"
    with open(path, "wb") as file:
        file.truncate(1 << 42)
    rules = validate.Rules(
        frozenset({"m"}), LimitSettings(max_line_bytes=ByteSize(1 << 20)), on_invalid=on_invalid
    )
    with open(path, "rb") as source:
        verdict = validate.check(source, rules)
    assert verdict.input_bytes < 10 << 20
    assert not verdict.is_valid
    assert verdict.errors[0].code == "line_too_long"
    assert str(8 << 20) in verdict.errors[0].message


def test_memory_is_measured_in_kibibytes_here() -> None:
    """What the tests above rely on: Linux reports ru_maxrss in KiB."""
    assert 10 << 10 < resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 10 << 30
