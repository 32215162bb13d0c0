"""What a request's body may not ask for: dangerous parameters, media from anywhere, unbounded work.

One table names each watched field of `body` and its check; a field that is not in it is the engine's to
judge. Null counts as absent. Never raises, and walks without recursion, since JSON nests up to 1,024 deep.

Why each stands here: templates and embedded tensors run or load what the user sends (CVE-2025-62164), media
URLs make the engine fetch or read for him (CVE-2026-34753), transfer parameters name hosts that it connects
to, server-side tools send what he writes to the operator's servers, and n, logprobs, lists of prompts and
grammars multiply the work of one line (CVE-2026-34756, CVE-2026-73559). Numbers must be JSON integers,
because vLLM also takes "1000000" and 1e6 for one; a negative number of logprobs means the whole vocabulary to
it, so it is too many. tests/unit/test_guarded_fields.py reads vLLM's own request models: a field that nobody
has judged fails it.
Limits: hosts are compared as they are written; a redirect or a name that resolves inwards is the engine's
and the network's business. A small regular expression or grammar can still be a costly one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from config.settings import LimitSettings
from spool.codes import Refusal

# Characters of a user's value that a message may show.
SHOWN_CHARS = 80

# Keys of content parts that name media, as a string or as {"url": ...}.
_MEDIA_KEYS = frozenset({"image_url", "input_image", "audio_url", "input_audio", "video_url", "file_url"})
# Keys, and types, of content parts that bring tensors or objects of the engine's own.
_TENSOR_KEYS = frozenset({"prompt_embeds", "image_embeds", "audio_embeds", "video_embeds", "image_pil"})
_PART_KEYS = _MEDIA_KEYS | _TENSOR_KEYS | {"type"}

# Of chat_template_kwargs: parameters of the tokenizer's apply_chat_template, no variables of a template.
_TOKENIZER_KEYS = (
    *("chat_template", "tokenize", "conversation", "padding", "truncation", "max_length", "return_tensors"),
    *("return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
)
_TRANSFER_KEYS = ("kv_transfer_params", "ec_transfer_params")
# What scoring and reranking call their content, and what an engine may take for it elsewhere.
_SCORED = ("text_1", "text_2", "data_1", "data_2", "queries", "items", "query", "documents")
# Tools that a server runs, not the reader of the answer; some with headers or an address of the request's.
_SERVER_TOOLS = ("mcp", "web_search", "code_interpreter", "container", "file_search", "image_generation")
# Texts to embed, or documents to score, in one request: the limit that OpenAI has. vLLM 0.32 has none,
# and makes an engine request of each: one line could bring a million.
MAX_INPUTS = 2048
# One tool has at most limits.max_grammar_bytes; tool_choice "required" makes one grammar of all of them.
_MOST_GRAMMARS = 16


class Problem(NamedTuple):
    """Why a request is refused.

    Attributes:
        message: one sentence or two, bounded and printable.
        param: the field, such as `body.model`.
    """

    code: Refusal
    message: str
    param: str | None = None


class Guard(NamedTuple):
    """What the checks need to know."""

    limits: LimitSettings
    allowed_media_domains: frozenset[str]


_Check = Callable[[str, Any, Guard], Problem | None]


def shown(value: object) -> str:
    """A value of the user's for a message: printable and short whatever it is."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, str):
        text = repr(value[:SHOWN_CHARS])
        is_cut = len(value) > SHOWN_CHARS
    else:
        text = orjson.dumps(value).decode()
        is_cut = False
    if len(text) > SHOWN_CHARS:
        text, is_cut = text[:SHOWN_CHARS], True
    return f"{text}..." if is_cut else text


def find_problem(body: dict[str, Any], guard: Guard) -> Problem | None:
    """The first thing that a body asks for and may not have, in the order of its fields."""
    for field, value in body.items():
        check = _CHECKS.get(field)
        if check is not None and value is not None and (problem := check(field, value, guard)):
            return problem
    return None


def _check_stream(field: str, value: object, guard: Guard) -> Problem | None:
    if not value:
        return None
    message = f"body.stream is {shown(value)}; a batch has no stream, so leave it out or set it to false."
    return Problem(Refusal.STREAMING, message, "body.stream")


def _refuse(field: str, value: object, guard: Guard) -> Problem | None:
    return _refuse_param(f"body.{field}")


def _refuse_param(param: str) -> Problem:
    return Problem(
        Refusal.UNSUPPORTED_PARAMETER, f"{param} is not supported in a batch: leave it out.", param
    )


def _check_template_kwargs(field: str, value: object, guard: Guard) -> Problem | None:
    return _check_keys(field, value, _TOKENIZER_KEYS)


def _check_xargs(field: str, value: object, guard: Guard) -> Problem | None:
    return _check_keys(field, value, _TRANSFER_KEYS)  # vLLM takes them from here as well


def _check_keys(field: str, value: object, refused: tuple[str, ...]) -> Problem | None:
    if not isinstance(value, dict):
        return Problem(
            Refusal.INVALID_REQUEST, f"body.{field} is {shown(value)}; it must be an object.", f"body.{field}"
        )
    for key in refused:
        if key in value:
            return _refuse_param(f"body.{field}.{key}")
    return None


def _check_count(field: str, value: object, guard: Guard) -> Problem | None:
    return _check_integer(field, value, guard.limits.max_n, "limits.max_n")


def _check_logprobs(field: str, value: object, guard: Guard) -> Problem | None:
    if isinstance(value, bool):  # what chat requests say: whether, while top_logprobs says how many
        return None
    return _check_integer(field, value, guard.limits.max_logprobs, "limits.max_logprobs")


def _check_token_ids(field: str, value: object, guard: Guard) -> Problem | None:
    """Tokens whose logprobs are wanted at each position: as many values as that many logprobs."""
    most = guard.limits.max_logprobs
    if not isinstance(value, list) or not 0 < most < len(value):
        return None
    message = f"body.{field} names {len(value)} tokens; at most {most} may be here (limits.max_logprobs)."
    return Problem(Refusal.INVALID_REQUEST, message, f"body.{field}")


def _check_integer(field: str, value: object, most: int, setting: str) -> Problem | None:
    if type(value) is not int:
        message = f"body.{field} is {shown(value)}; it must be an integer."
    elif most and not 0 <= value <= most:
        message = f"body.{field} is {value}; 0 to {most} are allowed here ({setting})."
    else:
        return None
    return Problem(Refusal.INVALID_REQUEST, message, f"body.{field}")


def _check_prompts(field: str, value: object, guard: Guard) -> Problem | None:
    most = guard.limits.max_prompts
    # A list of integers is one prompt, given as tokens.
    if isinstance(value, list) and 0 < most < len(value) and any(type(item) is not int for item in value):
        message = f"body.prompt holds {len(value)} prompts; at most {most} may be here (limits.max_prompts)."
        return Problem(Refusal.INVALID_REQUEST, message, "body.prompt")
    return _check_content(field, value, guard)


def _check_inputs(field: str, value: object, guard: Guard) -> Problem | None:
    """A list of inputs; one of integers is one input, as tokens, and one of messages is one conversation."""
    if isinstance(value, list) and len(value) > MAX_INPUTS:
        count = sum(type(item) is str or type(item) is list for item in value)
        if field in _SCORED:
            count = len(value)
        if count > MAX_INPUTS:
            message = f"body.{field} holds {count} inputs; at most {MAX_INPUTS} may be in one request."
            return Problem(Refusal.INVALID_REQUEST, message, f"body.{field}")
    return _check_content(field, value, guard)


def _check_grammar(field: str, value: object, guard: Guard) -> Problem | None:
    return _check_size(f"body.{field}", value, guard)


def _check_tools(field: str, value: object, guard: Guard) -> Problem | None:
    tools = value if isinstance(value, list) else ()
    for number, tool in enumerate(tools):
        param = f"body.{field}[{number}]"
        if isinstance(tool, dict) and _is_server_tool(tool):
            message = (
                f"{param} is a tool that a server runs, which is not supported in a batch: leave it out."
            )
            return Problem(Refusal.UNSUPPORTED_PARAMETER, message, param)
        if problem := _check_size(param, tool, guard):
            return problem
    most = _MOST_GRAMMARS * guard.limits.max_grammar_bytes
    # Only many tools can be too much together: each is small enough by now.
    if most and len(tools) > _MOST_GRAMMARS and (size := len(orjson.dumps(value))) > most:
        message = (
            f"body.{field} has {size} bytes; at most {_MOST_GRAMMARS} times"
            f" {guard.limits.max_grammar_bytes:d} are allowed here (limits.max_grammar_bytes)."
        )
        return Problem(Refusal.INVALID_REQUEST, message, f"body.{field}")
    return None


def _is_server_tool(tool: dict[str, Any]) -> bool:
    kind = tool.get("type")
    return tool.get("server_url") is not None or (type(kind) is str and kind.startswith(_SERVER_TOOLS))


def _check_size(param: str, value: object, guard: Guard) -> Problem | None:
    most = guard.limits.max_grammar_bytes
    if not most or isinstance(value, (bool, int, float)):
        return None
    try:
        size = len(value.encode() if isinstance(value, str) else orjson.dumps(value))
    except orjson.JSONEncodeError:  # writing stops at a depth of 254
        return Problem(Refusal.INVALID_REQUEST, f"{param} nests deeper than 254 levels: flatten it.", param)
    if size <= most:
        return None
    message = f"{param} has {size} bytes; at most {most:d} are allowed here (limits.max_grammar_bytes)."
    return Problem(Refusal.INVALID_REQUEST, message, param)


def _check_content(field: str, value: object, guard: Guard) -> Problem | None:
    if type(value) is str or (type(value) is list and all(map(_is_plain, value))):
        return None
    param = f"body.{field}"
    for part in _parts(value):
        if name := _find_tensor(part):
            message = f"{param} holds {name}, which are not supported in a batch: send text or data: URLs."
            return Problem(Refusal.UNSUPPORTED_PARAMETER, message, param)
        for key in _MEDIA_KEYS.intersection(part):
            media = part[key]
            url = media.get("url") if isinstance(media, dict) else media
            if url is not None and not _is_allowed(url, guard.allowed_media_domains):
                return Problem(Refusal.UNSUPPORTED_PARAMETER, _media_message(key, url, guard), param)
    return None


def _find_tensor(part: dict[str, Any]) -> str | None:
    for name in _TENSOR_KEYS.intersection(part):
        if part[name] is not None:
            return name
    kind = part.get("type")
    return kind if type(kind) is str and kind in _TENSOR_KEYS else None


def _is_plain(item: object) -> bool:
    """Whether an item needs no walk, which takes longer than all other checks: text, or a message of text."""
    if type(item) is dict:
        return len(item) == 2 and type(item.get("role")) is str and type(item.get("content")) is str
    return type(item) is str or type(item) is int


def _parts(value: object) -> Iterator[dict[str, Any]]:
    """Every object in a value, at any depth, that may be a content part."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if not _PART_KEYS.isdisjoint(item):
                yield item
            children = list(item.values())
        else:
            children = item if isinstance(item, list) else []
        waiting.extend(child for child in reversed(children) if type(child) is dict or type(child) is list)


def _is_allowed(url: object, domains: frozenset[str]) -> bool:
    if not isinstance(url, str):
        return False
    if url[:5].lower() == "data:":
        return True
    # Parsers disagree about backslashes, spaces, @ and letters outside ASCII; none of them is needed.
    if not domains or not url.isascii() or not url.isprintable() or any(char in url for char in "\\ @"):
        return False
    try:
        split = urlsplit(url)
        return split.scheme in ("http", "https") and split.hostname in domains
    except ValueError:
        return False


def _media_message(key: str, url: object, guard: Guard) -> str:
    domains = ", ".join(sorted(guard.allowed_media_domains)[:10])
    allowed = f"http(s) URLs of {domains}" if domains else "no other"
    return (
        f"{key} is {shown(url)}; data: URLs are allowed here, and {allowed}"
        " (engine.allowed_media_domains in the settings)."
    )


_CHECKS: dict[str, _Check] = {
    "stream": _check_stream,
    **dict.fromkeys(("chat_template", "prompt_embeds", "media_io_kwargs", "mm_processor_kwargs"), _refuse),
    **dict.fromkeys((*_TRANSFER_KEYS, "logits_processors"), _refuse),
    "vllm_xargs": _check_xargs,
    "chat_template_kwargs": _check_template_kwargs,
    **dict.fromkeys(("n", "best_of"), _check_count),
    **dict.fromkeys(("logprobs", "top_logprobs", "prompt_logprobs"), _check_logprobs),
    "logprob_token_ids": _check_token_ids,
    **dict.fromkeys(("response_format", "structured_outputs", "structural_tag", "text"), _check_grammar),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar"), _check_grammar),
    **dict.fromkeys(("tools", "functions"), _check_tools),
    "prompt": _check_prompts,
    "previous_input_messages": _check_content,
    **dict.fromkeys(("messages", "input", *_SCORED), _check_inputs),
}
