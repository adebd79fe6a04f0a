"""The parts of a comparison: the base model's score, trials of learning rates, and the runs.

Each part has a folder of its own and is finished when its `results.json` is there. A part that
failed leaves `failed.json` instead: one that diverged is finished too, any other is tried again.
Whoever carries parts out (this process, others, a cluster) calls `do_part`, and all that passes
between them is these files.
"""

import dataclasses
import functools
import shutil
import statistics
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax

from dora_jax.adapters import init_adapters, merge_params
from dora_jax.analysis.results import BaseResult, Failure, RunResult, SearchTrial
from dora_jax.batch_cost import batch_flops
from dora_jax.checkpoint.adapter import FOLDER, AdapterInfo, save_adapter
from dora_jax.comparison.arms import ArmPlan
from dora_jax.comparison.reuse import Shelf
from dora_jax.comparison.workbench import Workbench
from dora_jax.data.broken_images import FILE as BROKEN_FILE
from dora_jax.data.broken_images import read_broken
from dora_jax.data.examples import Split
from dora_jax.errors import DoraError
from dora_jax.models.build import Writer
from dora_jax.models.llama import param_shapes
from dora_jax.partition import Params, partition, trainable_mask
from dora_jax.processes import all_arrive, is_first
from dora_jax.sharding import run_mesh
from dora_jax.spec import AdapterRules
from dora_jax.training.loop import CHECKPOINTS, VALIDATION, DivergedError, FitResult, fit
from dora_jax.training.metrics import METRICS_FILE, Row, read_metrics
from dora_jax.training.optimizer import learning_rate_schedule, make_optimizer
from dora_jax.training.placement import param_shardings, place
from dora_jax.training.progress import TRAIN_PASSES, WorkProgress
from dora_jax.training.reporting import Watching
from dora_jax.training.runs import finish_part, finished_part
from dora_jax.training.shares import row_share
from dora_jax.training.step import Batch

FAILED_FILE = "failed.json"
Kind = Literal["base", "trial", "run"]
Result = BaseResult | SearchTrial | RunResult
_RESULTS: dict[Kind, type[Result]] = {"base": BaseResult, "trial": SearchTrial, "run": RunResult}


@dataclass(frozen=True)
class Part:
    """One piece of work.

    Attributes:
        kind: the base model's score, a trial of a rate, or a run.
        arm: whose; of the base model's score the first arm.
        seed: of training.
        rate: the learning rate.
    """

    kind: Kind
    arm: ArmPlan
    seed: int = 0
    rate: float = 0.0

    @property
    def path(self) -> str:
        """Its folder in that of the comparison."""
        if self.kind == "base":
            return "base"
        if self.kind == "trial":
            return f"search/{self.arm.name}-lr{self.rate:g}"
        return f"seed-{self.seed}/{self.arm.name}"

    @property
    def label(self) -> str:
        """For people."""
        if self.kind == "base":
            return "base model: evaluation"
        if self.kind == "trial":
            return f"search: {self.arm.name}, learning rate {self.rate:g}"
        return f"{self.arm.name}, seed {self.seed}, learning rate {self.rate:g}"

    @property
    def steps(self) -> int:
        """Optimizer steps, at most."""
        config = self.arm.config
        return {"base": 0, "trial": config.compare.search_steps, "run": config.train.steps}[
            self.kind
        ]

    @property
    def split(self) -> Split:
        """The rows that it is scored on."""
        return "validation" if self.kind == "trial" else "evaluation"

    def work(self, bench: Workbench) -> float:
        """Return its size, as `WorkProgress` counts it."""
        trained = bench.task.train_tokens(self.arm.config.train, self.steps) if self.steps else 0.0
        return TRAIN_PASSES * trained + bench.task.tokens(self.split)

    def settings(self, bench: Workbench) -> dict[str, Any]:
        """Return all that the result of training depends on but the code."""
        return {
            "kind": self.kind,
            "steps": self.steps,
            "weights": bench.weights,
            "rows": bench.task.digest,
            "seed": self.seed,
            "rate": self.rate,
            "arm": self.arm.settings(),
        }


@dataclass(frozen=True)
class Failed:
    """What `failed.json` holds: see `Failure`; and where in the code it was, for those who mend."""

    diverged: bool
    message: str
    details: str = ""


def outcome(folder: Path, part: Part) -> Result | Failure | None:
    """Return what became of a part: its result, a failure, or None where it is to be done.

    A part that failed otherwise than by diverging is to be done again, once more.
    """
    result = finished_part(folder / part.path, _RESULTS[part.kind])
    if result is not None:
        if isinstance(result, BaseResult):
            return result
        # Found in another comparison it may have been called otherwise.
        return dataclasses.replace(result, method=part.arm.name)
    failed = finished_part(folder / part.path, Failed, FAILED_FILE)
    if failed is None:
        return None
    return Failure(part.arm.name, part.seed, part.rate, failed.diverged, failed.message)


def is_final(found: Result | Failure | None) -> bool:
    """Whether nothing is left to do about a part: it has a result, or it diverged."""
    return found.diverged if isinstance(found, Failure) else found is not None


def do_part(folder: Path, part: Part, bench: Workbench, progress: WorkProgress) -> None:
    """Carry a part out, or find that it is done; leave its result, or why there is none.

    Args:
        folder: the comparison's.
        part: what to do.
        bench: its arm's.
        progress: counts the work.

    Raises:
        OSError: for a full disk and the like, which no other part would survive either.
        KeyboardInterrupt, Preempted: when told to stop.
    """
    own = folder / part.path
    found = outcome(folder, part)
    may_reuse = bench.config.execute.reuse and part.kind != "base" and not is_final(found)
    shelf = Shelf(folder.parent, part.settings(bench)) if may_reuse else None
    if found is None and shelf is not None and (origin := shelf.take(own)):
        progress.say(f"{part.label}: found finished, {origin}")
        found = outcome(folder, part)
    if is_final(found):
        progress.skip(part.work(bench))
        return
    if is_first():
        (own / FAILED_FILE).unlink(missing_ok=True)
    progress.part(part.label)
    try:
        result, words = _DO[part.kind](own, part, bench, progress)
    except DivergedError as error:
        leave_failure(own, Failed(True, str(error)))
        progress.say(f"{part.label}: diverged ({error})")
    except OSError:
        raise
    except Exception as error:
        leave_failure(own, Failed(False, _message(error), traceback.format_exc()))
        progress.say(f"{part.label}: failed ({_message(error)}); see {own / FAILED_FILE}")
    else:
        finish_part(own, result)
        if is_first():
            # What it needed to continue is of no use any more.
            shutil.rmtree(own / CHECKPOINTS, ignore_errors=True)
        if shelf is not None:
            shelf.put(own)
        progress.say(words)
    all_arrive(part.path)


def leave_failure(folder: Path, failed: Failed) -> None:
    """Write why a part has no result, into its own folder."""
    folder.mkdir(parents=True, exist_ok=True)
    finish_part(folder, failed, FAILED_FILE)


def _message(error: Exception) -> str:
    text = str(error).strip().splitlines()
    first = text[0] if text else "no message"
    return first if isinstance(error, DoraError) else f"{type(error).__name__}: {first[:300]}"


def _base(folder: Path, part: Part, bench: Workbench, progress: WorkProgress) -> tuple[Result, str]:
    score = bench.score(bench.pretrained.params, _scoring(progress))
    result = BaseResult(
        score.accuracy, score.correct, score.loss, score.other, score.answers, score.unanswered
    )
    return result, f"base model: {bench.task.figure(score.accuracy)}"


def _trial(
    folder: Path, part: Part, bench: Workbench, progress: WorkProgress
) -> tuple[Result, str]:
    result, rules = _fit(folder, part, bench, progress)
    found = bench.validate(merge_params(result.params, rules), _scoring(progress))
    several = len(found.losses) > 1
    trial = SearchTrial(
        part.arm.name,
        part.rate,
        part.steps,
        False,
        found.accuracy,
        found.mean_over_tasks,
        found.losses if several else {},
    )
    words = f"validation loss {found.mean_over_tasks:.4f}"
    if several:
        words += f", the mean of {len(found.losses)} tasks"
    if found.accuracy is not None:
        words += f", accuracy {found.accuracy:.1%}"
    return trial, f"{part.label}: {words}"


def _run(folder: Path, part: Part, bench: Workbench, progress: WorkProgress) -> tuple[Result, str]:
    result, rules = _fit(folder, part, bench, progress)
    trainable, _ = partition(result.params, trainable_mask(result.params, rules))
    config = bench.config
    info = AdapterInfo(
        model=bench.pretrained.name,
        source=bench.pretrained.source,
        weights=bench.weights,
        method=part.arm.method,
        adapter=dataclasses.asdict(config.adapter),
        prompt=config.data.prompt,
        dtype=config.model.dtype,
        data=config.settings()["data"],
    )
    save_adapter(folder / FOLDER, info, trainable)
    score = bench.score(merge_params(result.params, rules), _scoring(progress))
    rows = read_metrics(folder / METRICS_FILE, len(result.history))
    run = RunResult(
        method=part.arm.name,
        seed=part.seed,
        learning_rate=part.rate,
        accuracy=score.accuracy,
        correct=score.correct,
        loss=score.loss,
        trainable_parameters=result.trainable_parameters,
        magnitude_parameters=result.magnitude_parameters,
        step_time_s=result.step_time_s,
        temp_bytes=result.temp_bytes,
        peak_rss_bytes=result.peak_memory_bytes,
        compile_s=result.compile_s,
        train_seconds=result.train_seconds,
        flops_per_s=_median(rows, "flops_per_s"),
        mfu=_median(rows, "mfu"),
        history=result.history,
        other=score.other,
        answers=score.answers,
        unanswered=score.unanswered,
        broken_images=len(read_broken(folder / BROKEN_FILE)),
    )
    return run, (
        f"{part.arm.name}, seed {part.seed}: {bench.task.figure(score.accuracy)}; "
        f"{_pace(rows, bench.task.epochs(config.train, len(rows)))}"
    )


_DO: dict[Kind, Callable[..., tuple[Result, str]]] = {"base": _base, "trial": _trial, "run": _run}


def _pace(rows: list[Row], epochs: float) -> str:
    """Return how far training went, and how much of its time it waited for data."""
    took = sum(row["step_time_s"] for row in rows)
    waited = sum(row["wait_s"] for row in rows) / took if took else 0.0
    return f"{epochs:.3g} epochs, {waited:.2%} of the time waiting for data"


def _median(rows: list[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return statistics.median(values) if values else None


def _scoring(progress: WorkProgress) -> Callable[[float], None]:
    return functools.partial(progress.advance, detail="scoring")


def _fit(
    folder: Path, part: Part, bench: Workbench, progress: WorkProgress
) -> tuple[FitResult, AdapterRules]:
    config, steps = bench.config, part.steps
    rules = config.adapter.rules(part.arm.method)
    model = bench.adapted(rules)
    params = _start(bench.pretrained.params, model, rules, part.seed)
    share = row_share(run_mesh(), config.train.batch_size)
    batches = bench.task.batches(config.train, part.seed, share)
    if is_first() and not (folder / CHECKPOINTS).exists():
        (folder / BROKEN_FILE).unlink(missing_ok=True)  # of a try that left nothing to go on from
    batches.note_broken(folder / BROKEN_FILE)
    work = TRAIN_PASSES * bench.task.train_tokens(config.train, 1)

    expected = 1

    def on_row(row: Row) -> None:
        nonlocal expected
        # The steps before an interruption are not done again.
        progress.skip(work * (row["step"] - expected))
        expected = row["step"] + 1
        progress.advance(work, _describe(row, steps))

    def validate(params: Params) -> dict[str, float]:
        found = bench.validate(merge_params(params, rules), _scoring(progress))
        told = {} if found.accuracy is None else {"validation_accuracy": found.accuracy}
        return {VALIDATION: found.loss} | told

    counted: dict[Any, float] = {}

    def flops(batch: Batch) -> float:
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        if shapes not in counted:
            counted[shapes] = batch_flops(model, batch)
        return counted[shapes]

    named = {"method": part.arm.name, "seed": part.seed, "learning_rate": part.rate}
    watching = Watching(
        on_row=on_row,
        track=config.track,
        profile=config.profile,
        flops=flops,
        settings=config.settings() | named,
    )
    with batches:
        result = fit(
            model,
            rules,
            params,
            batches,
            make_optimizer(config.optim, part.rate, steps),
            learning_rate_schedule(config.optim, part.rate, steps),
            config.train,
            steps=steps,
            seed=part.seed,
            folder=folder,
            noise=config.adapter.dropout > 0 or config.train.neftune_alpha > 0,
            ema=config.optim.ema,
            validate=validate if config.train.validate_every else None,
            identity={"weights": bench.weights, "rows": bench.task.digest},
            share=share,
            watching=watching,
        )
    progress.skip(work * (steps + 1 - expected))
    return result, rules


def _describe(row: Row, steps: int) -> str:
    loss = "not finite, skipped" if row["loss"] is None else f"{row['loss']:.3f}"
    speed = f"{row['tokens_per_s']:,.0f} tokens/s"
    return f"step {row['step']}/{steps}, loss {loss}, {speed}"


def _start(base: Params, model: Writer, rules: AdapterRules, seed: int) -> Params:
    """Return the adapted model's parameters at the start, fresh adapters beside their kernels."""
    shapes = param_shapes(model)
    where = param_shardings(run_mesh(), shapes, model.sharding_rules, rules)
    params = init_adapters(base, shapes, rules, jax.random.key(seed))
    return place(params, where)
