"""Which engine a model's `kind` gets: the one place that picks its module.

Each module is imported when it is picked; neither ever stands in for the other.
"""

from __future__ import annotations

from pydantic import SecretStr

from config import settings
from pipeline import api_key
from pipeline.engine import Engine

_DEFAULTS = settings.EngineSettings()


def make_engine(
    model: settings.ModelSettings,
    limits: settings.EngineSettings = _DEFAULTS,
    key: SecretStr | None = None,
) -> Engine:
    """Make the engine of a configured model; it does nothing before `start`.

    Args:
        model: its settings; `kind` picks the engine.
        limits: hosts that media URLs may name, and how long a request may take.
        key: of servers elsewhere, see api_key.py.
    """
    if isinstance(model, settings.VllmModel):
        from pipeline import vllm_engine

        return vllm_engine.VllmEngine(model, allowed_media_domains=limits.allowed_media_domains)
    if isinstance(model, settings.OpenAIModel):
        from pipeline import openai_engine

        return openai_engine.OpenAIEngine(model, key, limits.request_timeout_s)
    from pipeline import echo

    return echo.EchoEngine(model)


def preflight(model: settings.ModelSettings) -> None:
    """Find at once what would make `start` fail: no import of vllm, no loading, no connection; milliseconds.

    Raises:
        EngineStartError: the engine is not installed, the model's folder holds none, or there is no key.
    """
    if isinstance(model, settings.VllmModel):
        from pipeline import vllm_engine

        vllm_engine.preflight(model)
    else:
        api_key.read(model)
