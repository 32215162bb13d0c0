"""A forecast of a batch file, without an engine: its tokens, what would not fit, what need not be computed.

Tokens are counted with the model's own tokenizer and chat template, as vLLM does; what is shared is looked
for in the order in which batchd would run the requests. Imports transformers, inside functions only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import orjson

from pipeline import order_notes, pairing, prefixes

# Lines that are named one by one.
MAX_NAMED = 5
_HELD_LINES = 256


class Forecast(NamedTuple):
    """What is known of a file before it runs.

    Attributes:
        requests: in the file.
        counted: those whose tokens could be counted: texts and chats.
        input_tokens: of these.
        longest: (tokens, physical line) of the longest prompt.
        asked_tokens: the most that all answers may have, where each says a bound; None else.
        too_long: how many need more than the context length with their answer.
        too_long_lines: the first MAX_NAMED of their physical lines.
        twins: requests that are identical to an earlier one, and would take its answer.
        shared_bytes: of the prompts' beginnings that the request before has in common with it.
        prompt_bytes: of all prompts.
    """

    requests: int
    counted: int
    input_tokens: int
    longest: tuple[int, int]
    asked_tokens: int | None
    too_long: int
    too_long_lines: tuple[int, ...]
    twins: int
    shared_bytes: int
    prompt_bytes: int


class NoTokenizer(Exception):
    """The folder holds no tokenizer that can be loaded."""


def context_length(model: Path) -> int | None:
    """What a model's own config says; None where it does not."""
    try:
        found = orjson.loads((model / "config.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    texts = found.get("text_config") or found if isinstance(found, dict) else {}
    length = texts.get("max_position_embeddings")
    return length if isinstance(length, int) else None


def forecast(source: Iterable[bytes], model: Path, context: int | None) -> Forecast:
    """Read a valid batch file.

    Args:
        source: its physical lines.
        model: folder of the model, which holds its tokenizer.
        context: most tokens of a prompt with its answer; None for no limit.

    Raises:
        NoTokenizer: there is none.
        OSError: notes cannot be written.
    """
    count = _counter(model)
    counted = input_tokens = prompt_bytes = too_long = asked = 0
    longest, is_bounded = (0, 0), True
    lines: list[int] = []
    with (
        TemporaryDirectory() as folder,
        contextlib.closing(order_notes.Notes(order_notes.Wishes(), Path(folder))) as notes,
    ):
        held: list[tuple[bytes, dict[str, Any]]] = []
        for number, line in pairing.requests(source):
            request = orjson.loads(line)
            endpoint = prefixes.endpoint(request["url"])
            body = request["body"]
            bound = prefixes.answer_length(body, endpoint.length, endpoint.default_length)
            is_bounded &= bound < prefixes.UNBOUNDED
            asked += bound
            prompt_bytes += len(prefixes.prompt_of(body, endpoint.prompt))
            tokens = count(request["url"], body)
            if tokens is not None:
                counted += 1
                input_tokens += tokens
                longest = max(longest, (tokens, number))
                if context is not None and tokens + (bound if bound < prefixes.UNBOUNDED else 1) > context:
                    too_long += 1
                    lines += [number] if len(lines) < MAX_NAMED else []
            held.append((line, body))
            if len(held) == _HELD_LINES:
                _note(notes, request["url"], held)
        if held:
            _note(notes, request["url"], held)
        twins, shared_bytes = _shared(notes)
        requests = notes.lines
    return Forecast(
        requests,
        counted,
        input_tokens,
        longest,
        asked if is_bounded else None,
        too_long,
        tuple(lines),
        twins,
        shared_bytes,
        prompt_bytes,
    )


def _note(notes: order_notes.Notes, url: str, held: list[tuple[bytes, dict[str, Any]]]) -> None:
    notes.take(url, [line for line, _ in held], [body for _, body in held])
    held.clear()


def _shared(notes: order_notes.Notes) -> tuple[int, int]:
    """(twins, bytes that prompts share with the one before) in the order that batchd would choose."""
    import numpy as np

    from pipeline import order

    chosen = order.decide(notes)
    if chosen is None:
        return 0, 0
    twins = int((chosen.shared == order.TWIN).sum())
    sizes = [0, *prefixes.RUNGS]
    rungs, counts = np.unique(chosen.shared, return_counts=True)
    shared = sum(
        sizes[rung] * count
        for rung, count in zip(rungs.tolist(), counts.tolist(), strict=True)
        if rung < len(sizes)
    )
    return twins, shared


def _counter(model: Path) -> Callable[[str, dict[str, Any]], int | None]:
    """A function that counts the tokens of a request's prompt; None for what is neither text nor chat."""
    import transformers

    transformers.logging.set_verbosity_error()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError) as error:
        raise NoTokenizer(
            f"{model} holds no tokenizer, name a model's folder: {str(error).splitlines()[0]}"
        ) from error

    def count(url: str, body: dict[str, Any]) -> int | None:
        if url == "/v1/chat/completions":
            ids = tokenizer.apply_chat_template(
                body["messages"], tools=body.get("tools"), add_generation_prompt=True, return_dict=False
            )
            return len(ids)
        text = body.get("prompt", body.get("input"))
        return len(tokenizer(text)["input_ids"]) if isinstance(text, str) else None

    return count
