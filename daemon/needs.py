"""What models need of engines: at most by their settings, and now by the batches that wait and run."""

from __future__ import annotations

from collections.abc import Mapping

from config.settings import EngineSettings, ModelSettings, Settings
from daemon.held import Stage
from daemon.runs import Runs
from pipeline import gate
from scheduler.engines import Demand, Model


def models(settings: Settings, sizes: Mapping[str, float], pools: int = 1) -> list[Model]:
    """The models of the settings, as capacity is decided for them.

    Args:
        settings: all of them.
        sizes: GPUs of a replica of each, in all pools together that have their own.
        pools: that have their own engines.
    """
    return [_model(model, settings.engine, sizes[model.name], pools) for model in settings.models]


def _model(model: ModelSettings, engine: EngineSettings, size: float, pools: int) -> Model:
    is_fixed = isinstance(model.replicas, int)
    return Model(
        name=model.name,
        first=model.min_replicas,
        idle=0 if is_fixed and engine.idle_s else model.min_replicas,
        least=max(1, model.min_replicas),
        most=model.max_replicas,
        places=gate.max_num_seqs(model) * pools,
        size=size,
    )


def requests(runs: Runs) -> dict[str, int]:
    """Requests that wait in the queue or run, by model; without those that have none."""
    found = dict(runs.queue.requests)
    for going in runs.going.values():
        left = sum(held.left for held in going.batches if held.stage is Stage.RUNNING)
        found[going.model] = found.get(going.model, 0) + left
    return {model: count for model, count in found.items() if count}


def demands(runs: Runs) -> dict[str, Demand]:
    """What there is to do, by model; without those that have nothing to do."""
    counts, ranks = requests(runs), runs.queue.ranks()
    going = [each.model for each in runs.going.values()]
    return {
        model: Demand(counts.get(model, 0), going.count(model), ranks.get(model))
        for model in {*counts, *ranks, *going}
    }
