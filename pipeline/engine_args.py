"""The arguments of a vLLM engine, from a model's settings, and what is wrong with them before it starts.

vLLM's own command line parser, which the caller brings, knows every option, its type and its range; here is
only which options batchd sets itself or by default, and how a mistake is told. Touches nothing of vLLM's but
options and variables that it documents.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, NoReturn

from config import settings
from pipeline import errors, gate

# Engine arguments that batchd sets itself, and where they come from.
_OWN_ARGS = {
    "model": "models[].source",
    "served_model_name": "models[].name",
    "allowed_media_domains": "engine.allowed_media_domains",
    "allowed_local_media_path": "nothing: requests may not name files",
    "trust_request_chat_template": "nothing: a template runs code, and requests are not trusted",
    "trust_request_mm_kwargs": "nothing: requests are not trusted",
    "enable_log_requests": "nothing: one log line for each request would drown the log",
}

# vLLM takes an empty list of domains for "all of them"; this name can never be resolved (RFC 6761).
_NO_DOMAIN = "no-media-domain-is-allowed.invalid"

_CPU_KV_CACHE_BYTES = 1 << 30


def check_source(model: settings.VllmModel) -> None:
    """Refuse a folder that holds no model, before vLLM takes ten seconds to say so. Hub names are vLLM's.

    Raises:
        EngineStartError: saying which.
    """
    source = Path(model.source)
    if not source.is_absolute():
        return
    if not source.exists():
        raise errors.EngineStartError(
            f"model {model.name!r}: source {model.source} does not exist: name a folder or a hub name"
        )
    if source.is_dir() and not any((source / name).is_file() for name in ("config.json", "params.json")):
        raise errors.EngineStartError(
            f"model {model.name!r}: source {model.source} holds no config.json: name the model's own folder"
        )


def parse(
    model: settings.VllmModel, media_domains: tuple[str, ...], parser: ArgumentParser, *, is_cpu: bool
) -> Namespace:
    """vLLM's arguments from ours, and the defaults for what the settings leave open.

    Args:
        model: its settings.
        media_domains: hosts that media URLs may name.
        parser: of vLLM's command line; afterwards it is of no other use.
        is_cpu: there is no accelerator.

    Raises:
        EngineStartError: naming the key.
    """
    where = f"model {model.name!r}: engine_args"

    def refuse(message: str) -> NoReturn:
        # argparse says "argument --max-model-len: ..." and may list other spellings of the same option.
        named = re.match(r"argument (?:[^:]*/)?--([\w-]+)[^:]*: (.*)", message, re.DOTALL)
        text = f"{where}.{named[1].replace('-', '_')}: {named[2]}" if named else f"{where}: {message}"
        told = errors.one_line(text).split(" [type=")[0]  # pydantic goes on about itself
        raise errors.EngineStartError(told)

    parser.error = refuse  # type: ignore[method-assign]
    actions = {action.dest: action for action in parser._actions if action.dest != "help"}
    words = [f"--model={model.source}", f"--served-model-name={model.name}"]
    words += ["--allowed-media-domains", *(media_domains or (_NO_DOMAIN,))]
    for key, value in {**_defaults(model.engine_args, is_cpu), **model.engine_args}.items():
        if key in _OWN_ARGS:
            raise errors.EngineStartError(f"{where}.{key} is set by batchd, from {_OWN_ARGS[key]}")
        if key not in actions:
            near = difflib.get_close_matches(key, actions, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise errors.EngineStartError(f"{where}.{key}: vLLM has no such argument{hint}")
        try:
            words += _words(actions[key], value)
        except TypeError as error:
            raise errors.EngineStartError(f"{where}.{key}: {error}") from None
    return parser.parse_args(words)


def _defaults(given: dict[str, Any], is_cpu: bool) -> dict[str, Any]:
    """Engine arguments that differ from vLLM's defaults unless the settings say otherwise."""
    # Metrics of a request are made from the statistics, which cost time where nobody reads them.
    defaults: dict[str, Any] = {
        "enable_prompt_tokens_details": True,
        "disable_log_stats": not given.get("enable_per_request_metrics", False),
    }
    if not isinstance(given.get("max_num_batched_tokens"), int):  # else vLLM wants it to be no less
        defaults["max_num_seqs"] = gate.DEFAULT_MAX_NUM_SEQS
    sized = "gpu_memory_utilization" in given or "VLLM_CPU_KVCACHE_SPACE" in os.environ
    if is_cpu and not sized:
        # Else vLLM wants 92 % of the machine's memory to be free, and takes it.
        defaults["kv_cache_memory_bytes"] = _CPU_KV_CACHE_BYTES
    return defaults


def _words(action: Any, value: Any) -> list[str]:
    """One argument as words of a command line.

    Raises:
        TypeError: the value cannot be one.
    """
    option = max((text for text in action.option_strings if not text.startswith("--no-")), key=len)
    if value is None:
        return []
    if action.nargs == 0:  # a flag, which may have a --no- form
        if not isinstance(value, bool):
            raise TypeError(f"must be true or false, not {value!r}")
        negative = [text for text in action.option_strings if text.startswith("--no-")]
        return [option] if value else negative[:1]
    texts = [item if isinstance(item, str) else json.dumps(item) for item in _as_list(value)]
    if action.nargs in ("+", "*"):
        return [option, *texts]
    if isinstance(value, list):
        texts = [json.dumps(value)]
    return [f"{option}={texts[0]}"]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
