"""A model's settings as arguments of a command line, on a parser like vLLM's but a small one. No vLLM."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from config import settings
from pipeline import engine_args, errors, gate


def make(source: str = "hub/model", **given: Any) -> settings.VllmModel:
    return settings.VllmModel(name="m", kind="vllm", source=source, engine_args=given)


def parse(media_domains: tuple[str, ...] = (), is_cpu: bool = False, **given: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--model")
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--allowed-media-domains", nargs="*")
    parser.add_argument("--allowed-local-media-path")
    parser.add_argument("--enable-prompt-tokens-details", action=flag)
    parser.add_argument("--enable-per-request-metrics", action=flag)
    parser.add_argument("--disable-log-stats", action="store_true")
    parser.add_argument("--gpu-memory-utilization", type=float)
    parser.add_argument("--kv-cache-memory-bytes", type=int)
    parser.add_argument("--max-len", "--max-model-len", type=int)
    parser.add_argument("--max-num-seqs", type=int)
    parser.add_argument("--max-num-batched-tokens", type=int)
    parser.add_argument("--middleware", nargs="*")
    parser.add_argument("--hf-overrides")
    return engine_args.parse(make(**given), media_domains, parser, is_cpu=is_cpu)


def test_the_models_own_fields_become_arguments() -> None:
    """Without an allowed domain there is one that cannot exist: to vLLM, none would mean all."""
    args = parse()
    assert (args.model, args.served_model_name) == ("hub/model", ["m"])
    [nowhere] = args.allowed_media_domains
    assert nowhere.endswith(".invalid")
    assert parse(("a.org", "b.org")).allowed_media_domains == ["a.org", "b.org"]


def test_values_arrive_as_they_stand_in_the_settings() -> None:
    """Numbers, lists, objects, flags both ways, and null for vLLM's default."""
    args = parse(
        max_len=512,
        middleware=["a", "b"],
        hf_overrides={"a": [1]},
        enable_prompt_tokens_details=False,
        gpu_memory_utilization=None,
    )
    assert (args.max_len, args.middleware, args.hf_overrides) == (512, ["a", "b"], '{"a": [1]}')
    assert args.enable_prompt_tokens_details is False and args.gpu_memory_utilization is None


def test_the_engine_computes_as_many_at_once_as_the_gate_reckons_with() -> None:
    """Where fewer tokens go into a step, vLLM would refuse 256 requests."""
    assert parse().max_num_seqs == gate.max_num_seqs(make()) == 256
    assert parse(max_num_seqs=7).max_num_seqs == 7
    assert parse(max_num_batched_tokens=64).max_num_seqs is None


def test_defaults_give_way_to_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics are off unless metrics need them; a CPU's cache has a size unless someone gave it one."""
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    assert parse().disable_log_stats is True
    assert parse(enable_per_request_metrics=True).disable_log_stats is False
    assert parse().kv_cache_memory_bytes is None
    assert parse(is_cpu=True).kv_cache_memory_bytes == 1 << 30
    assert parse(is_cpu=True, kv_cache_memory_bytes=5).kv_cache_memory_bytes == 5
    assert parse(is_cpu=True, gpu_memory_utilization=0.5).kv_cache_memory_bytes is None
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    assert parse(is_cpu=True).kv_cache_memory_bytes is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"xyzzy": 1}, "xyzzy: vLLM has no such argument"),
        ({"max_lenn": 1}, "max_lenn: vLLM has no such argument; did you mean max_len?"),
        ({"max_len": "long"}, "max_model_len: invalid int value: 'long'"),
        ({"disable_log_stats": "yes"}, "disable_log_stats: must be true or false, not 'yes'"),
        (
            {"allowed_local_media_path": "/"},
            "allowed_local_media_path is set by batchd, from nothing: requests may not name files",
        ),
        ({"model": "other"}, "model is set by batchd, from models[].source"),
    ],
)
def test_a_mistake_names_its_key(given: dict[str, Any], says: str) -> None:
    """In one line, with the model before it."""
    with pytest.raises(errors.EngineStartError) as caught:
        parse(**given)
    assert str(caught.value) == f"model 'm': engine_args.{says}"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    """Both configurations that vLLM knows will do, and so do a file and a name on a hub."""
    with pytest.raises(errors.EngineStartError, match=r"^model 'm': source .*/none does not exist: name "):
        engine_args.check_source(make(str(tmp_path / "none")))
    with pytest.raises(errors.EngineStartError, match=r"^model 'm': source .* holds no config\.json: name "):
        engine_args.check_source(make(str(tmp_path)))
    for name in ("config.json", "params.json"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).touch()
        engine_args.check_source(make(str(folder)))
    engine_args.check_source(make(str(folder / name)))
    engine_args.check_source(make("hub/model"))
