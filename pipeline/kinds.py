"""Which engine a model's `kind` gets: the one place that picks its module.

Each module is imported when it is picked; neither ever stands in for the other.
"""

from __future__ import annotations

from config import settings
from pipeline import errors
from pipeline.engine import Engine


def make_engine(model: settings.ModelSettings, *, allowed_media_domains: tuple[str, ...]) -> Engine:
    """Make the engine of a configured model; it does nothing before `start`.

    Args:
        model: its settings; `kind` picks the engine.
        allowed_media_domains: hosts that media URLs may name; without any, only `data:` URLs work.

    Raises:
        EngineStartError: this version has no engine of that kind.
    """
    if isinstance(model, settings.VllmModel):
        from pipeline import vllm_engine

        return vllm_engine.VllmEngine(model, allowed_media_domains=allowed_media_domains)
    if isinstance(model, settings.EchoModel):
        from pipeline import echo

        return echo.EchoEngine(model)
    raise errors.EngineStartError(
        f"model {model.name!r}: this version has no engine of kind {model.kind!r} yet: use `kind: vllm`"
    )


def preflight(model: settings.ModelSettings) -> None:
    """Find at once what would make `start` fail: no import of vllm, no loading; milliseconds.

    Raises:
        EngineStartError: the engine is not installed, or the model's folder holds none.
    """
    if isinstance(model, settings.VllmModel):
        from pipeline import vllm_engine

        vllm_engine.preflight(model)
    elif isinstance(model, settings.OpenAIModel):
        make_engine(model, allowed_media_domains=())
