"""Settings: units, environment, one-line errors, the default files."""

from __future__ import annotations

from pathlib import Path

import pytest

from config import load, units
from config.settings import OpenAIModel, Settings, VllmModel

ECHO = "models: [{name: m, kind: echo}]\n"


def openai(urls: str) -> str:
    return f"models: [{{name: m, kind: openai, urls: {urls}}}]\n"


def _load(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "batchd.yaml"
    path.write_text(text)
    return load.load(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [("90m", 5400.0), ("24h", 86400.0), ("7d", 604800.0), ("500ms", 0.5), (3, 3.0), ("2", 2.0)],
)
def test_durations_take_units(text: object, value: float) -> None:
    """A duration is a number of seconds or a number with a unit."""
    assert units.seconds(text) == value


@pytest.mark.parametrize("text", ["", "-1s", "1 fortnight", True, None, [1], "1h30m", float("nan")])
def test_bad_durations_are_refused(text: object) -> None:
    """Whatever is no duration is refused with what is allowed."""
    with pytest.raises(ValueError, match="duration"):
        units.seconds(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ECHO + "spol: {root: x}\n", "spol: unknown setting"),
        (ECHO + "spool: {rot: x}\n", "spool.rot: unknown setting"),
        (ECHO + "scheduler: {policy: lifo}\n", "scheduler.policy: 'lifo': Input should be 'fifo' or 'edf'"),
        (ECHO + "limits: {max_line_bytes: 0}\n", "limits.max_line_bytes: 0: Input should be greater than 0"),
        (ECHO + "limits: {max_bytes: lots}\n", "limits.max_bytes: 'lots'"),
        (ECHO + "batches: {completion_window: soon}\n", "batches.completion_window: 'soon': a duration is"),
        (ECHO + "lease: {heartbeat_s: 40}\n", "lease: heartbeat_s 40 must be at most half of expire_s 60"),
        (
            ECHO + "scheduler: {pools: {spot: {capacity: 0}, dedicated: {capacity: 0}}}\n",
            "both 0: nothing could run",
        ),
        (
            "models: [{name: m, kind: echo}, {name: m, kind: echo}]\n",
            "models: the model name 'm' stands twice",
        ),
        ("models: [{name: m, kind: vllm}]\n", "models.0.source: missing"),
        ("models: [{name: m, kind: echo, replicas: 0}]\n", "models.0.replicas: 0: Input should be greater"),
        ("models: [{name: m, kind: echo, replicas: {min: 1}}]\n", "models.0.replicas.max: missing"),
        ("models: [{name: m, kind: echo, replicas: {min: 3, max: 2}}]\n", "replicas: min 3 is above max 2"),
        (
            "models: [{name: m, kind: echo, replicas: {min: 0, max: 2}}]\n",
            "the model 'm' has replicas.min 0, which needs engine.idle_s above 0",
        ),
        ("models: [{name: m, kind: magic}]\n", "magic"),
        (openai("[ftp://h]"), "models.0.urls: URL 1 must be http(s)://HOST[:PORT][/PATH]"),
        (openai("[http://h, 'http://']"), "models.0.urls: URL 2 must be http"),
        (openai("[http://h:x]"), "URL 1 must be"),
        (openai("['http://[h']"), "URL 1 must be"),
        (openai("['http://h?a=b']"), "URL 1 must be"),
        (openai("['http://h#a']"), "URL 1 must be"),
        (openai("['http://h /v1']"), "URL 1 must be"),
        (openai("[]"), "models.0.urls"),
        (openai("[http://h/v1/, http://h]"), "models.0.urls: http://h stands twice"),
        (
            openai("[http://h], api_key_env: A, api_key_file: b"),
            "api_key_env and api_key_file are both given",
        ),
        (openai("[http://h], max_concurrency: 0"), "models.0.max_concurrency: 0"),
        ("models: []\n", "models"),
        ("", "models: missing"),
        ("- a\n", "key: value"),
        ("a: [\n", "is not YAML"),
    ],
)
def test_bad_settings_are_one_line_that_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    """Unknown keys, bad values and impossible combinations give one line."""
    with pytest.raises(load.SettingsError) as caught:
        _load(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BATCHD_SECTION__KEY overrides one key and leaves its neighbours."""
    monkeypatch.setenv("BATCHD_SPOOL__ROOT", "/data")
    settings = _load(tmp_path, ECHO + "spool: {root: /other, retention_days: 3}\n")
    assert settings.spool.root == "/data"
    assert settings.spool.retention_days == 3


def test_an_unknown_key_in_the_environment_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped variable is not dropped silently."""
    monkeypatch.setenv("BATCHD_SPOOL__ROOOT", "/data")
    with pytest.raises(load.SettingsError, match=r"spool\.rooot: unknown setting"):
        _load(tmp_path, ECHO)


def test_a_source_is_relative_to_the_yaml_file(tmp_path: Path) -> None:
    """`../x` means beside the file, `org/name` stays a hub name."""
    models = "{name: a, kind: vllm, source: ../weights}, {name: b, kind: vllm, source: Qwen/Qwen2.5-0.5B}"
    text = f"models: [{models}]\n"
    near, hub = _load(tmp_path, text).models
    assert isinstance(near, VllmModel)
    assert isinstance(hub, VllmModel)
    assert near.source == str(tmp_path.parent / "weights")
    assert hub.source == "Qwen/Qwen2.5-0.5B"


def test_a_servers_url_may_end_in_v1_or_not(tmp_path: Path) -> None:
    """What the endpoints of a file are appended to is the same."""
    urls = "[http://a:8000, http://b:8000/v1, https://c/api/v1/, 'http://[::1]:8000/']"
    (model,) = _load(tmp_path, openai(urls)).models
    assert isinstance(model, OpenAIModel)
    assert model.urls == ("http://a:8000", "http://b:8000", "https://c/api", "http://[::1]:8000")


def test_a_password_in_a_url_is_refused_without_showing_it(tmp_path: Path) -> None:
    """It would stand in each message that names the server."""
    with pytest.raises(load.SettingsError, match=r"URL 1 must be .* without user, password") as refused:
        _load(tmp_path, openai("['http://me:secret@h:8000']"))
    assert "secret" not in str(refused.value)


def test_a_key_file_is_relative_to_the_yaml_file(tmp_path: Path) -> None:
    (model,) = _load(tmp_path, openai("[http://h], api_key_file: ../key")).models
    assert isinstance(model, OpenAIModel)
    assert model.api_key_file == str(tmp_path / "../key")


@pytest.mark.parametrize("name", ["batchd.yaml", "qwen2.5-0.5b.yaml", "qwen2.5-7b.yaml"])
def test_the_shipped_files_load(name: str) -> None:
    """Each YAML file in config/ is valid."""
    assert load.load(load.DEFAULT_FILE.with_name(name)).models


def test_sizes_take_units(tmp_path: Path) -> None:
    """1GiB is 2**30 bytes."""
    assert _load(tmp_path, ECHO + "spool: {min_free_bytes: 1GiB}\n").spool.min_free_bytes == 1 << 30


@pytest.mark.parametrize(("replicas", "least", "most"), [("2", 2, 2), ("{min: 0, max: 3}", 0, 3)])
def test_replicas_are_a_number_or_a_range(tmp_path: Path, replicas: str, least: int, most: int) -> None:
    """0 is allowed where engines are ever stopped."""
    text = f"models: [{{name: m, kind: echo, replicas: {replicas}}}]\nengine: {{idle_s: 5m}}\n"
    (model,) = _load(tmp_path, text).models
    assert (model.min_replicas, model.max_replicas) == (least, most)
