"""The comparison: base, learning-rate search, every arm with every seed, results, report.

Each part has a folder of its own and is finished when its `results.json` is there, so an
interrupted command run again repeats no finished part:

    config.json, environment.json     whose folder this is
    base/                             the untuned model's score
    search/dora-lr0.001/              one trial: metrics.jsonl, results.json
    seed-0/dora/                      one run: metrics.jsonl, adapter/, results.json
    results.json, report.html         the whole

Every arm gets the same data order, initial A, schedule, steps and search budget, and is scored
on the same rows. Scoring is done with the adapter merged, so one compiled program serves them all.
"""

import contextlib
import dataclasses
import datetime
import math
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console

from dora_jax.analysis.report import write_report
from dora_jax.analysis.results import (
    Arm,
    BaseResult,
    ComparisonResults,
    Failure,
    ModelInfo,
    RunResult,
    SearchTrial,
)
from dora_jax.analysis.terminal import print_comparison
from dora_jax.comparison.arms import ArmPlan, make_arms
from dora_jax.comparison.executors import make_executor
from dora_jax.comparison.parts import FAILED_FILE, Part, outcome
from dora_jax.comparison.workbench import Workbench, Workbenches, check_modules
from dora_jax.errors import DoraError
from dora_jax.mesh import MeshConfig
from dora_jax.partition import count_parameters
from dora_jax.processes import first_decides, is_first
from dora_jax.training.config import ExperimentConfig
from dora_jax.training.preemption import listening
from dora_jax.training.progress import WorkProgress
from dora_jax.training.runs import RESULTS_FILE, claim

REPORT_FILE = "report.html"


def compare(config: ExperimentConfig, command: str) -> ComparisonResults:
    """Run the whole comparison, or what is left of it, and write and print its report.

    Args:
        config: the experiment.
        command: the command line that makes it again, for the report.

    Raises:
        DoraError: for bad data, a run folder of another config, runs that failed (when all the
            others are done and the report is written), a full disk.
        Preempted: when told to stop (SIGTERM, SIGINT); the same call goes on.
    """
    if config.execute.executor != "here":
        # The workers' devices are theirs: this process only reads and writes.
        jax.config.update("jax_platforms", "cpu")
        if jax.process_count() > 1:
            raise DoraError(
                "execute.executor must be 'here' where several processes train one model together"
            )
    mesh = config.mesh if config.execute.executor == "here" else MeshConfig()
    with jax.set_mesh(mesh.build()), listening():
        return _compare(config, command)


def _compare(config: ExperimentConfig, command: str) -> ComparisonResults:
    console = Console(stderr=True, quiet=not is_first())
    _check(config)
    arms = make_arms(config)
    benches = Workbenches(arms)
    bench = benches.of(arms[0])
    identity = _identity(config, arms, benches)
    for line in bench.task.describe():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    folder = config.run_folder()
    console.print(f"run folder: {folder}", highlight=False, markup=False, soft_wrap=True)
    with contextlib.ExitStack() as stack:
        environments = first_decides(lambda: stack.enter_context(claim(folder, identity)))
        if len(environments) > 1:
            console.print(
                "this run was begun in another environment (environment.json lists them); its "
                "finished parts are kept",
                highlight=False,
                soft_wrap=True,
            )
        first = Part("base", arms[0])
        trials = _trials(config, arms)
        # The rates are not known yet; they change nothing about the work.
        all_parts = [first, *trials, *_runs(config, arms, {})]
        total = sum(part.work(benches.of(part.arm)) for part in all_parts)
        with WorkProgress(total, console) as progress:
            executor = make_executor(config.execute, folder, benches, progress)
            executor.run([first, *trials])
            search = _choose(folder, arms, trials)
            rates = {trial.method: trial.learning_rate for trial in search if trial.chosen}
            runs = _runs(config, arms, rates)
            executor.run(runs)
        base = outcome(folder, first)
        found = [outcome(folder, part) for part in runs]
        done = [result for result in found if isinstance(result, RunResult)]
        failures = [result for result in found if isinstance(result, Failure)]
        _require_results(folder, base, done, failures)
        assert isinstance(base, BaseResult), "checked above"
        results = ComparisonResults(
            name=config.name,
            command=command,
            finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            model=ModelInfo(
                config.model.name,
                bench.pretrained.source,
                count_parameters(bench.pretrained.params),
            ),
            data=bench.task.info,
            eval_rows=bench.task.eval_rows,
            base=base,
            runs=tuple(done),
            search=tuple(search),
            settings=config.settings(),
            environment=environments[-1] | {"earlier": environments[:-1]},
            arms=tuple(
                Arm(arm.name, arm.label, arm.method, arm.point, arm.start, arm.baseline)
                for arm in arms
            ),
            failures=tuple(failures),
            pairs=config.compare.pairs,
            published=config.published,
            protocol=bench.task.protocols[0],
            samples=bench.task.samples,
        )
        if is_first():
            write_report(results, folder / REPORT_FILE)
            results.to_json(folder / RESULTS_FILE)
    print_comparison(results, Console(quiet=not is_first()))
    console.print(f"report: {folder / REPORT_FILE}", highlight=False, soft_wrap=True)
    wrong = [failure for failure in failures if not failure.diverged]
    if wrong:
        raise DoraError(
            f"{len(wrong)} of {len(runs)} runs failed and are not in the report, first "
            f"{wrong[0].method}, seed {wrong[0].seed}: {wrong[0].message}; each one's "
            f"{FAILED_FILE} says more. The same command tries them again"
        )
    return results


def train(config: ExperimentConfig, command: str) -> ComparisonResults:
    """Train `train.method` alone at `optim.learning_rate`: a comparison with the base model.

    Nothing is searched for, so no rows are set aside for it, but where training is validated.
    """
    if config.grid or config.variants:
        raise DoraError("a grid and variants are for dora-jax compare: train trains one thing")
    alone = dataclasses.replace(
        config.compare, methods=(config.train.method,), search_steps=0, pairs=()
    )
    validation = config.data.validation_rows if config.train.validate_every else 0
    data = dataclasses.replace(config.data, validation_rows=validation)
    return compare(dataclasses.replace(config, compare=alone, data=data), command)


def _check(config: ExperimentConfig) -> None:
    """Find contradictions before anything is read."""
    if config.compare.search_steps and not config.data.validation_rows:
        raise DoraError(
            "a search for learning rates needs rows: raise --data.validation-rows, or give "
            "--compare.search-steps 0"
        )
    if config.train.validate_every and not config.data.validation_rows:
        raise DoraError(
            "train.validate_every needs rows: raise --data.validation-rows, or give "
            "--train.validate-every 0"
        )
    here = config.execute.executor == "here"
    if here and config.model.attention == "cudnn" and jax.default_backend() != "gpu":
        raise DoraError(
            "model.attention 'cudnn' needs an NVIDIA GPU, and JAX finds "
            f"{jax.default_backend()!r}: give --model.attention xla"
        )


def _identity(
    config: ExperimentConfig, arms: Sequence[ArmPlan], benches: Workbenches
) -> dict[str, object]:
    """Return what makes this comparison itself: the settings, the weights and all rows.

    Raises:
        DoraError: when an arm does not suit the model, or would be scored on other rows.
    """
    first = benches.of(arms[0])
    digests: dict[str, None] = {}
    for arm in arms:
        bench = benches.of(arm)
        check_modules(arm, bench.pretrained)
        digests[bench.task.digest] = None
        if not _asks_the_same(bench, first):
            raise DoraError(
                f"{arm.name} would be scored on other rows, or rows that read otherwise, than "
                f"{arms[0].name}: such scores do not compare; run a comparison for each"
            )
    return config.settings() | {
        "weights": f"{first.pretrained.source}, {first.weights}",
        "rows": " ".join(digests),
    }


def _asks_the_same(bench: Workbench, first: Workbench) -> bool:
    """Whether two arms are scored on the same rows, with all that is in them or without some."""
    own, other = bench.config.data, first.config.data
    if (own.images, own.texts) == (other.images, other.texts):
        return bench.task.evaluation_digest == first.task.evaluation_digest
    return bench.task.evaluation_names == first.task.evaluation_names


def _trials(config: ExperimentConfig, arms: Sequence[ArmPlan]) -> list[Part]:
    """Every rate for every arm, all with the first seed: the same initial A and data order."""
    if not config.compare.search_steps:
        return []
    return [Part("trial", arm, config.seeds[0], rate) for arm in arms for rate in arm.rates]


def _runs(config: ExperimentConfig, arms: Sequence[ArmPlan], rates: dict[str, float]) -> list[Part]:
    return [
        Part("run", arm, seed, rates.get(arm.name, arm.config.optim.learning_rate))
        for seed in config.seeds
        for arm in arms
        if seed in arm.seeds
    ]


def _choose(folder: Path, arms: Sequence[ArmPlan], trials: Sequence[Part]) -> list[SearchTrial]:
    """Return the trials, of each arm's the one of least validation loss chosen.

    Raises:
        DoraError: when an arm has no trial to choose from, or one that did not come to an end.
    """
    found = []
    for arm in arms:
        own = [_as_trial(folder, part) for part in trials if part.arm is arm]
        if not own:
            continue
        best = min(own, key=_validation_loss)
        if math.isinf(_validation_loss(best)):
            raise DoraError(
                f"{arm.name} diverged at every learning rate that was tried; lower "
                "--compare.learning-rates"
            )
        found += [dataclasses.replace(trial, chosen=trial is best) for trial in own]
    return found


def _as_trial(folder: Path, part: Part) -> SearchTrial:
    result = outcome(folder, part)
    if isinstance(result, SearchTrial):
        return result
    if isinstance(result, Failure) and result.diverged:
        # Too high a rate for this arm: a finding of the search, not the end of it.
        return SearchTrial(part.arm.name, part.rate, part.steps, False)
    # Without one of its rates an arm would not have had the same search.
    why = result.message if isinstance(result, Failure) else "it left no result"
    raise DoraError(
        f"{part.label} failed ({why}): without it the search would not be fair. "
        f"{folder / part.path / FAILED_FILE} says more; mend it and run the same command again"
    )


def _validation_loss(trial: SearchTrial) -> float:
    loss = trial.validation_loss
    return loss if loss is not None and math.isfinite(loss) else math.inf


def _require_results(
    folder: Path, base: object, done: Sequence[RunResult], failures: Sequence[Failure]
) -> None:
    """Find that there is nothing to report."""
    if isinstance(base, Failure):
        raise DoraError(
            f"the base model could not be scored ({base.message}): see "
            f"{folder / 'base' / FAILED_FILE}"
        )
    if not done:
        first = failures[0]
        verb = "diverged" if first.diverged else "failed"
        raise DoraError(
            f"no run came to a result; {first.method}, seed {first.seed}, {verb}: {first.message}"
        )
