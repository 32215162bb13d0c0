"""What `validate --model` says of a file before it runs: tokens, what does not fit, what is shared, time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from config.settings import Settings, VllmModel
from daemon import outbox, throughput
from daemon.exits import CommandError, Exit
from pipeline import forecast
from spool import layout


def facts(file: Path, model: Path, spool: Path, settings: Settings, name: str) -> Iterator[str]:
    """A line for each fact.

    Args:
        file: a valid batch file.
        model: folder of the model, with its tokenizer.
        spool: whose past batches tell the speed.
        settings: which may bound the context length.
        name: of the model, as the file's requests name it.

    Raises:
        CommandError: the tokenizer or the file cannot be read.
    """
    configured = settings.model_named(name)
    given = configured.engine_args.get("max_model_len") if isinstance(configured, VllmModel) else None
    context = given if isinstance(given, int) else forecast.context_length(model)
    try:
        with open(file, "rb") as source:
            found = forecast.forecast(source, model, context)
    except (forecast.NoTokenizer, OSError) as error:
        raise CommandError(str(error), Exit.WRONG_USE) from error
    yield f"tokens in    {_tokens_in(found)}"
    yield f"tokens out   {_tokens_out(found)}"
    if context:
        yield f"too long     {_too_long(found, context)}"
    share = 100 * found.shared_bytes // max(1, found.prompt_bytes)
    yield f"shared       {share} % of the prompts' bytes begin as another prompt does: computed once"
    yield f"twins        {found.twins:,} requests are identical to another one: they take its answer"
    yield f"time         {_time(found, spool, name)}"


def _tokens_in(found: forecast.Forecast) -> str:
    tokens, line = found.longest
    text = f"{found.input_tokens:,}, {tokens:,} in the longest prompt (line {line})"
    uncounted = found.requests - found.counted
    return f"{text}; {uncounted:,} requests are neither texts nor chats" if uncounted else text


def _tokens_out(found: forecast.Forecast) -> str:
    return "not all requests bound it" if found.asked_tokens is None else f"at most {found.asked_tokens:,}"


def _too_long(found: forecast.Forecast, context: int) -> str:
    if not found.too_long:
        return f"none: all fit into {context:,} tokens with their answers"
    named = ", ".join(map(str, found.too_long_lines))
    more = ", …" if found.too_long > len(found.too_long_lines) else ""
    return f"{found.too_long:,} do not fit into {context:,} tokens with their answers: lines {named}{more}"


def _time(found: forecast.Forecast, spool: Path, name: str) -> str:
    """From what past batches of the model took."""
    home = layout.Layout(spool)
    known = throughput.past(outbox.read_all(home), name) if home.outbox.is_dir() else None
    if known is None:
        least = throughput.LEAST_REQUESTS
        return f"unknown: no batch of {least} requests or more for {name} has ended in {spool}"
    tokens = found.input_tokens + (found.requests - found.twins) * known.output_tokens
    span = timedelta(seconds=round(tokens / known.tokens_per_s))
    return (
        f"about {span}, at {known.tokens_per_s:,.0f} tokens/s "
        f"and {known.output_tokens:,.0f} tokens an answer, as in {known.batches} batches before"
    )
