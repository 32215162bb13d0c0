"""Admission: what a drop is held to, what its verdict makes durable, and whether today's engine may go on.

Called by daemon/lifecycle.py on the loop's thread. Raises BatchGone and OSError as every change of a record
does; nothing in memory has changed then.
"""

from __future__ import annotations

from config.settings import EchoModel, OpenAIModel, Settings, VllmModel
from daemon import logs, work
from daemon.held import Held, Outcome, Stage
from daemon.metrics import Metrics
from pipeline import validate
from pipeline.order_notes import Wishes
from spool.batch import Batch
from spool.codes import Refusal
from spool.record import LineError, Phase, Plan, Record, Status

_log = logs.get()


class Admission:
    """Judges batches on their way into the queue."""

    def __init__(self, settings: Settings, count: Metrics) -> None:
        self._settings = settings
        self._metrics = count

    def rules(self, record: Record) -> validate.Rules:
        """What the file of a batch is held to."""
        settings = self._settings
        return validate.Rules(
            models=frozenset(model.name for model in settings.models),
            limits=settings.limits,
            endpoint=record.sidecar.endpoint,
            on_invalid=record.sidecar.on_invalid or settings.batches.on_invalid,
            allowed_media_domains=settings.engine.allowed_media_domains,
            wishes=Wishes(settings.engine.order == "prefix", settings.engine.dedupe),
        )

    def pool_problem(self, pool: str) -> LineError | None:
        """Why a batch could never run: it asks for a pool in which nothing runs here."""
        pools = self._settings.scheduler.pools
        capacity = {"spot": pools.spot.capacity, "dedicated": pools.dedicated.capacity}.get(pool)
        if capacity != 0:
            return None
        message = f"sidecar pool: {pool!r} has no capacity here (scheduler.pools.{pool}.capacity is 0)"
        return LineError(code=Refusal.INVALID_REQUEST, message=message, param="pool")

    def apply(self, held: Held, checked: work.Checked, now: float) -> bool:
        """Make a verdict durable; False if the batch ends with it."""
        verdict = checked.verdict
        if checked.problem or verdict is None or not verdict.is_valid:
            self._fail(held, checked)
        else:
            plan = Plan(
                endpoint=verdict.endpoint,
                model=verdict.model,
                requests=verdict.requests,
                shards=verdict.shards,
                input_bytes=verdict.input_bytes,
                sha256=verdict.sha256,
                engine=self._engine_of(verdict.model),
            )
            reason = f"valid: {verdict.requests} requests for {verdict.model}"
            status = held.batch.record.status
            held.batch.advance(now, status, Phase.QUEUED, reason, plan=plan, identity=checked.identity)
            _log.info("batch_valid", batch=held.id, requests=verdict.requests, rejected=verdict.rejected)
        for code, count in verdict.codes.items() if verdict else ():
            self._metrics.lines_rejected(code, count)
        held.verdict, held.is_dirty = None, True
        return held.stage is not Stage.DECIDED

    def _fail(self, held: Held, checked: work.Checked) -> None:
        """End a batch whose file is not valid; a cancel that came meanwhile is obeyed all the same."""
        if checked.problem:
            found: tuple[LineError, ...] = (checked.problem,)
            count = 1
            self._metrics.lines_rejected(checked.problem.code)
        else:
            assert checked.verdict is not None
            found, count = checked.verdict.errors, checked.verdict.total_errors
        if held.batch.record.cancel_requested_at is not None:
            held.outcome = Outcome(Status.CANCELLED, "cancelled while it was validated")
        else:
            reason = f"validation found {count} error{'s' if count > 1 else ''}: {found[0].message}"
            held.outcome = Outcome(Status.FAILED, reason, errors=found)
        held.stage = Stage.DECIDED

    def _engine_of(self, model: str) -> dict[str, object]:
        """What decides the answers of a model; empty for one that is not configured."""
        for configured in self._settings.models:
            if configured.name == model:
                return identity(configured)
        return {}

    def engine_problem(self, plan: Plan, runs: int) -> str | None:
        """Why a batch cannot go on with the engine of today."""
        today = self._engine_of(plan.model)
        if not plan.model:
            return None
        if not today:
            return f"model {plan.model!r} is not configured any more: configure it again, or cancel the batch"
        if runs and today != plan.engine:
            return (
                f"model {plan.model!r} was {plan.engine} when this batch began and is {today} now: "
                "set it back, or cancel the batch and drop the file again"
            )
        return None

    def note_engine(self, batch: Batch) -> None:
        """Fix today's engine in the plan of a batch that has no part yet."""
        plan = batch.record.plan
        assert plan is not None
        if plan.engine != self._engine_of(plan.model):
            batch.save(plan=plan.model_copy(update={"engine": self._engine_of(plan.model)}))


def identity(model: VllmModel | OpenAIModel | EchoModel) -> dict[str, object]:
    """What of a model's settings decides its answers; how many engines it has does not.

    Of servers elsewhere that is the kind alone: they may move; the model's name stands in the plan itself.
    """
    servers = {"urls", "api_key_env", "api_key_file", "max_concurrency"}
    return model.model_dump(mode="json", exclude={"name", "replicas", "latency_s", *servers})
