"""Every setting of batchd as frozen pydantic models, checked when they are made.

The names are a contract: scripts outside this repository use them. Unknown keys, bad values and
impossible combinations raise pydantic's ValidationError, which config/load.py turns into one line.
Units: bytes and seconds; 0 means no limit unless the field says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from config.units import Bytes, Seconds, Window


class _Section(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SpoolSettings(_Section):
    """Where batches live, and how long finished ones are kept."""

    root: str = Field("./spool", description="Folder of the spool, relative to the working directory.")
    mode: str = Field("0644", pattern=r"^0?[0-7]{3}$", description="Permissions of what is published, octal.")
    retention_days: float = Field(
        30, ge=0, description="Days a finished batch stays in archive/ (0 = for ever)."
    )
    retention_bytes: Bytes = Field(
        ByteSize(0), description="Bytes archive/ may hold; the oldest goes first (0 = no limit)."
    )
    min_free_bytes: Bytes = Field(
        ByteSize(1 << 30), description="Nothing new is claimed when fewer bytes than this are free."
    )

    @property
    def file_mode(self) -> int:
        """Permission bits of published files, such as 0o644."""
        return int(self.mode, 8)


class InboxSettings(_Section):
    """How drops are noticed and when one counts as complete."""

    backend: Literal["auto", "inotify", "polling"] = Field(
        "auto", description="How changes are noticed; auto polls on network filesystems."
    )
    settle_s: Seconds = Field(2.0, ge=0, description="Seconds a drop must stand still before it is claimed.")
    rescan_s: Seconds = Field(30.0, gt=0, description="Seconds between scans when no event came.")
    poll_s: Seconds = Field(2.0, gt=0, description="Seconds between scans with the polling backend.")


class LimitSettings(_Section):
    """Bounds on what one file and one request may ask for."""

    max_requests: int = Field(0, ge=0, description="Requests per file (0 = no limit).")
    max_bytes: Bytes = Field(ByteSize(0), description="Bytes per file (0 = no limit).")
    max_line_bytes: Bytes = Field(
        ByteSize(16 << 20), gt=0, lt=1 << 32, description="Bytes per line; must have a limit, below 4 GiB."
    )
    max_reported_errors: int = Field(100, ge=1, description="Validation errors listed in status.json.")
    max_custom_id_bytes: int = Field(1024, ge=1, description="Bytes of a custom_id.")
    max_n: int = Field(8, ge=0, description="Largest n or best_of of a request (0 = no limit).")
    max_logprobs: int = Field(20, ge=0, description="Largest logprobs or top_logprobs (0 = no limit).")
    max_prompts: int = Field(
        1, ge=0, description="Prompts in a /v1/completions list of prompts (0 = no limit)."
    )
    max_grammar_bytes: Bytes = Field(
        ByteSize(64 << 10), description="Bytes of a schema, regex or grammar (0 = no limit)."
    )


class BatchSettings(_Section):
    """What a drop gets that has no sidecar."""

    completion_window: Window = Field(
        86400.0, description="Time from claim to deadline, such as 90m, 24h, 7d."
    )
    on_invalid: Literal["fail", "skip"] = Field(
        "fail", description="fail: one bad line fails the file; skip: it goes to errors.jsonl."
    )


class PoolSettings(_Section):
    """One (mock) pool of capacity."""

    capacity: int = Field(ge=0, description="Runs at a time in this pool.")
    price_per_hour: float = Field(
        0,
        ge=0,
        description="Price of an hour of one run, in a currency of yours, for `batchd report` (0 = none).",
    )
    resources: dict[str, float] = Field(
        default_factory=dict,
        description="On a cluster: Ray resources that an engine of this pool asks of its node.",
    )


class SpotSettings(PoolSettings):
    """The spot pool, which may be pre-empted."""

    capacity: int = Field(2, ge=0, description="Runs at a time in this pool.")
    preempt_every_s: Seconds = Field(
        0, ge=0, description="Mean seconds between simulated pre-emptions of a run (0 = never)."
    )


class DedicatedSettings(PoolSettings):
    """The dedicated pool, which is never pre-empted."""

    capacity: int = Field(1, ge=0, description="Runs at a time in this pool.")


class PoolsSettings(_Section):
    """The two pools."""

    spot: SpotSettings = SpotSettings()
    dedicated: DedicatedSettings = DedicatedSettings()


class SchedulerSettings(_Section):
    """What runs next, and where."""

    policy: Literal["fifo", "edf"] = Field(
        "fifo", description="Order of the queue: first in first out, or earliest deadline first."
    )
    max_claimed: int = Field(10_000, ge=1, description="Batches that one daemon holds at a time.")
    pools: PoolsSettings = PoolsSettings()

    @model_validator(mode="after")
    def _some_capacity(self) -> SchedulerSettings:
        if self.pools.spot.capacity + self.pools.dedicated.capacity == 0:
            raise ValueError("pools.spot.capacity and pools.dedicated.capacity are both 0: nothing could run")
        return self


class EngineSettings(_Section):
    """How requests are sent to an engine."""

    request_timeout_s: Seconds = Field(
        600, gt=0, description="Seconds one request may take, from its turn in the engine on."
    )
    max_attempts: int = Field(
        3, ge=1, description="Engines that a request may kill on its own before it fails."
    )
    order: Literal["prefix", "file"] = Field(
        "prefix", description="Order of the work: grouped by shared prompt prefix, or as in the file."
    )
    dedupe: bool = Field(True, description="Run identical deterministic requests once.")
    idle_s: Seconds = Field(
        0,
        ge=0,
        description="Stop the engines of a model idle for so long (0 = never); its next batch starts them.",
    )
    allowed_media_domains: tuple[str, ...] = Field(
        (), description="Domains that media URLs may name; data: URLs always work."
    )


class Replicas(_Section):
    """A range for the number of engines, which follows the work within it."""

    min: int = Field(ge=0)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _is_a_range(self) -> Replicas:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


def _kind_of_replicas(value: object) -> str:
    return "range" if isinstance(value, dict | Replicas) else "number"


_Number = Annotated[int, Field(ge=1), Tag("number")]
_Range = Annotated[Replicas, Tag("range")]


class _Model(_Section):
    name: str = Field(min_length=1, description="What body.model says in a request.")
    replicas: Annotated[_Number | _Range, Discriminator(_kind_of_replicas)] = Field(
        1,
        description="Engines of this model: a number, or `{min: 0, max: 4}`, in which it follows the queue.",
    )

    @property
    def min_replicas(self) -> int:
        """Engines that it has at the start."""
        return self.replicas.min if isinstance(self.replicas, Replicas) else self.replicas

    @property
    def max_replicas(self) -> int:
        """Engines that it ever has."""
        return self.replicas.max if isinstance(self.replicas, Replicas) else self.replicas


class VllmModel(_Model):
    """A model that vLLM serves inside batchd."""

    kind: Literal["vllm"] = Field(description="The engine: vLLM itself.")
    source: str = Field(min_length=1, description="Folder, relative to the YAML file, or hub name.")
    engine_args: dict[str, Any] = Field(
        default_factory=dict, description="vLLM's engine arguments in snake_case, such as max_model_len."
    )


class OpenAIModel(_Model):
    """A model behind OpenAI-compatible servers."""

    kind: Literal["openai"] = Field(description="The engine: servers elsewhere.")
    urls: tuple[str, ...] = Field(
        min_length=1, description="Base URLs of OpenAI-compatible servers, with or without `/v1` at the end."
    )
    api_key_env: str | None = Field(
        None, min_length=1, description="Environment variable of the daemon that holds the API key."
    )
    api_key_file: str | None = Field(
        None, min_length=1, description="File that holds the API key, relative to the YAML file."
    )
    max_concurrency: int = Field(
        128, ge=1, description="Requests at a time to each server, of each replica; fewer while it refuses."
    )

    @field_validator("urls")
    @classmethod
    def _are_roots(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        """Cut them to what the endpoints of a file are appended to, such as `http://host:8000`."""
        roots = tuple(_root(url, place) for place, url in enumerate(urls))
        twice = sorted({root for root in roots if roots.count(root) > 1})
        if twice:
            raise ValueError(f"{twice[0]} stands twice")
        return roots

    @model_validator(mode="after")
    def _one_key(self) -> OpenAIModel:
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("api_key_env and api_key_file are both given: name one of them")
        return self


def _root(url: str, place: int) -> str:
    """A server's URL without `/v1`. The message of an error shows none of it, since it may hold a password.

    Raises:
        ValueError: it is no URL of a server.
    """
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not match
        is_good = False
    if (
        not is_good
        or "@" in parts.netloc
        or parts.query
        or parts.fragment
        or not url.isprintable()
        or " " in url
    ):
        raise ValueError(
            f"URL {place + 1} must be http(s)://HOST[:PORT][/PATH] without user, password, query and fragment"
        )
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


class EchoModel(_Model):
    """An engine for tests that echoes prompts; every answer says so."""

    kind: Literal["echo"] = Field(description="The engine: none, for tests.")
    latency_s: Seconds = Field(0, ge=0, description="Seconds each answer takes.")
    failure_rate: float = Field(0, ge=0, le=1, description="Share of requests that get a 500.")


ModelSettings = Annotated[VllmModel | OpenAIModel | EchoModel, Field(discriminator="kind")]


class RaySettings(_Section):
    """Where Ray runs."""

    address: str = Field("local", description="local, or HOST:6379 of a running cluster.")


class MetricsSettings(_Section):
    """Where Prometheus scrapes, and where probes ask."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(9108, ge=0, le=65535, description="Port to listen on (0 = any free one).")


class HookSettings(_Section):
    """A command that runs when a batch ends."""

    on_terminal: tuple[str, ...] = Field(
        (), description="A command and its arguments, run with the path of status.json when a batch ends."
    )
    timeout_s: Seconds = Field(30, gt=0, description="Seconds that a try of it may take; there are three.")


class LogSettings(_Section):
    """How the daemon logs."""

    format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto: console on a terminal, else JSON lines."
    )
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level shown.")


class ShutdownSettings(_Section):
    """How the daemon stops."""

    grace_s: Seconds = Field(30, ge=0, description="Seconds for running requests to finish after SIGTERM.")


class LeaseSettings(_Section):
    """How daemons on one spool tell that another has died."""

    heartbeat_s: Seconds = Field(5, gt=0, description="Seconds between heartbeats.")
    expire_s: Seconds = Field(60, gt=0, description="Seconds without a heartbeat after which others adopt.")

    @model_validator(mode="after")
    def _beats_before_expiry(self) -> LeaseSettings:
        if self.heartbeat_s * 2 > self.expire_s:
            raise ValueError(
                f"heartbeat_s {self.heartbeat_s:g} must be at most half of expire_s {self.expire_s:g}"
            )
        return self


class Settings(BaseSettings):
    """All settings: what the caller passes (the YAML file), overridden by `BATCHD_SECTION__KEY`."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="BATCHD_", env_nested_delimiter="__", case_sensitive=False
    )

    spool: SpoolSettings = SpoolSettings()
    inbox: InboxSettings = InboxSettings()
    limits: LimitSettings = LimitSettings()
    batches: BatchSettings = BatchSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    engine: EngineSettings = EngineSettings()
    models: tuple[ModelSettings, ...] = Field(description="The models that requests may name.", min_length=1)
    ray: RaySettings = RaySettings()
    metrics: MetricsSettings = MetricsSettings()
    hooks: HookSettings = HookSettings()
    log: LogSettings = LogSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
    lease: LeaseSettings = LeaseSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file; nothing else is read."""
        return env_settings, init_settings

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: tuple[ModelSettings, ...]) -> tuple[ModelSettings, ...]:
        names = [model.name for model in models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the model name {twice[0]!r} stands twice")
        return models

    @model_validator(mode="after")
    def _comes_back_to_none(self) -> Settings:
        for model in self.models:
            if not model.min_replicas and not self.engine.idle_s:
                raise ValueError(
                    f"the model {model.name!r} has replicas.min 0, which needs engine.idle_s above 0: "
                    "without it nothing is ever stopped"
                )
        return self

    def model_named(self, name: str) -> ModelSettings:
        """The settings of a configured model.

        Raises:
            KeyError: no model has that name.
        """
        for model in self.models:
            if model.name == name:
                return model
        raise KeyError(name)
