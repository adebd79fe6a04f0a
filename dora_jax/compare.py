"""The comparison: base, learning-rate search, every method with every seed, results, report.

Each part has a folder of its own and is finished when its `results.json` is there, so an
interrupted command run again repeats no finished part:

    config.json, environment.json     whose folder this is
    base/                             the untuned model's score
    search/dora-lr0.001/              one trial: metrics.jsonl, results.json
    seed-0/dora/                      one run: metrics.jsonl, adapter/, results.json
    results.json, report.html         the whole

Every method gets the same data order, initial A, schedule, steps and search budget, and is scored
on the same rows. Scoring is done with the adapter merged, so one compiled program serves them all.
"""

import contextlib
import dataclasses
import datetime
import functools
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console

from dora_jax.adapters import init_adapters, merge_params
from dora_jax.analysis.report import write_report
from dora_jax.analysis.results import (
    BaseResult,
    ComparisonResults,
    ModelInfo,
    RunResult,
    SearchTrial,
)
from dora_jax.analysis.terminal import print_comparison
from dora_jax.checkpoint.adapter import FOLDER, AdapterInfo, load_model, save_adapter
from dora_jax.checkpoint.pretrained import Pretrained, fingerprint, load_pretrained
from dora_jax.cost import step_cost
from dora_jax.data.examples import Split
from dora_jax.data.splits import read_examples
from dora_jax.errors import DoraError
from dora_jax.evaluation.task import Score, Task, encode_task
from dora_jax.models.llama import SHARDING, Llama, param_shapes
from dora_jax.partition import Params, count_parameters, partition, trainable_mask
from dora_jax.processes import first_decides, is_first
from dora_jax.sharding import run_mesh
from dora_jax.spec import AdapterRules
from dora_jax.training.config import ExperimentConfig, ModelConfig, RunMethod
from dora_jax.training.loop import CHECKPOINTS, VALIDATION, DivergedError, FitResult, fit
from dora_jax.training.metrics import Row
from dora_jax.training.optimizer import learning_rate_schedule, make_optimizer
from dora_jax.training.placement import param_shardings, place, weight_sharding
from dora_jax.training.preemption import listening
from dora_jax.training.progress import TRAIN_PASSES, WorkProgress
from dora_jax.training.reporting import Watching
from dora_jax.training.runs import (
    RESULTS_FILE,
    claim,
    finish_part,
    finished_part,
)
from dora_jax.training.shares import row_share

REPORT_FILE = "report.html"


@dataclass(frozen=True)
class Workbench:
    """What the parts of a comparison share.

    Attributes:
        config: the resolved config.
        pretrained: the model, its weights in their place and of the compute dtype.
        weights: their fingerprint.
        task: the data.
        folder: the run's folder.
        progress: counts the work.
    """

    config: ExperimentConfig
    pretrained: Pretrained
    weights: str
    task: Task
    folder: Path
    progress: WorkProgress

    def score(self, params: Params, split: Split) -> Score:
        """Score plain (merged) parameters on a split."""
        advance = functools.partial(self.progress.advance, detail="scoring")
        return self.task.score(self.plain, params, split, advance)

    @functools.cached_property
    def plain(self) -> Llama:
        """The model without adapters."""
        return Llama(self.pretrained.config, dtype=jnp.dtype(self.config.model.dtype))

    def adapted(self, rules: AdapterRules) -> Llama:
        """The model with adapters."""
        model = self.config.model
        return Llama(
            self.pretrained.config,
            rules,
            dtype=jnp.dtype(model.dtype),
            remat=model.remat,
            attention=model.attention,
            neftune_alpha=self.config.train.neftune_alpha,
        )


def load_weights(config: ExperimentConfig) -> tuple[Pretrained, str]:
    """Return the pre-trained model, each weight in its place on the mesh around, and its name.

    The weights are of the compute dtype; the fingerprint that names them is of the file's values.
    """
    where = weight_sharding(run_mesh(), SHARDING)
    pretrained = load_pretrained(config.model.name, sharding=where)
    name = fingerprint(pretrained.params)
    return dataclasses.replace(pretrained, params=rounded(pretrained.params, config.model)), name


def rounded(params: Params, model: ModelConfig) -> Params:
    """Return weights in the compute dtype, where they are."""
    dtype = jnp.dtype(model.dtype)
    return jax.tree.map(lambda x: x if x.dtype == dtype else x.astype(dtype), params)


def compare(config: ExperimentConfig, command: str) -> ComparisonResults:
    """Run the whole comparison, or what is left of it, and write and print its report.

    Args:
        config: the experiment.
        command: the command line that makes it again, for the report.

    Raises:
        DoraError: for bad data, a run folder of another config, a diverged run, a full disk.
        Preempted: when told to stop (SIGTERM, SIGINT); the same call goes on.
    """
    with jax.set_mesh(config.mesh.build()), listening():
        return _compare(config, command)


def _compare(config: ExperimentConfig, command: str) -> ComparisonResults:
    console = Console(stderr=True, quiet=not is_first())
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
    if config.model.attention == "cudnn" and jax.default_backend() != "gpu":
        raise DoraError(
            "model.attention 'cudnn' needs an NVIDIA GPU, and JAX finds "
            f"{jax.default_backend()!r}: give --model.attention xla"
        )
    examples = read_examples(config.data)
    pretrained, weights = load_weights(config)
    _check_fit(config, pretrained)
    task = encode_task(examples, config.data, pretrained.tokenizer)
    for line in task.describe():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    folder = config.run_folder()
    console.print(f"run folder: {folder}", highlight=False, markup=False, soft_wrap=True)
    origin = f"{pretrained.source}, {weights}"
    identity = config.settings() | {"weights": origin, "rows": task.digest()}
    with contextlib.ExitStack() as stack:
        environments = first_decides(lambda: stack.enter_context(claim(folder, identity)))
        if len(environments) > 1:
            console.print(
                "this run was begun in another environment (environment.json lists them); its "
                "finished parts are kept",
                highlight=False,
                soft_wrap=True,
            )
        with WorkProgress(_total_work(config, task), console) as progress:
            bench = Workbench(config, pretrained, weights, task, folder, progress)
            base = _base(bench)
            trials = [
                trial for method in config.compare.methods for trial in _search(bench, method)
            ]
            rates = {t.method: t.learning_rate for t in trials if t.chosen}
            runs = [
                _run(bench, method, seed, rates.get(method, config.optim.learning_rate))
                for seed in config.seeds
                for method in config.compare.methods
            ]
        results = ComparisonResults(
            name=config.name,
            command=command,
            finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            model=ModelInfo(
                config.model.name, pretrained.source, count_parameters(pretrained.params)
            ),
            data=task.info,
            eval_rows=task.eval_rows,
            base=base,
            runs=tuple(runs),
            search=tuple(trials),
            settings=config.settings(),
            environment=environments[-1] | {"earlier": environments[:-1]},
        )
        if is_first():
            write_report(results, folder / REPORT_FILE)
            results.to_json(folder / RESULTS_FILE)
    print_comparison(results, Console(quiet=not is_first()))
    console.print(f"report: {folder / REPORT_FILE}", highlight=False, soft_wrap=True)
    return results


def train(config: ExperimentConfig, command: str) -> ComparisonResults:
    """Train `train.method` alone at `optim.learning_rate`: a comparison with the base model.

    Nothing is searched for, so no rows are set aside for it, but where training is validated.
    """
    alone = dataclasses.replace(config.compare, methods=(config.train.method,), search_steps=0)
    validation = config.data.validation_rows if config.train.validate_every else 0
    data = dataclasses.replace(config.data, validation_rows=validation)
    return compare(dataclasses.replace(config, compare=alone, data=data), command)


def evaluate(config: ExperimentConfig, adapter: Path | None) -> list[str]:
    """Score the base model, or an adapter, on the config's evaluation rows.

    Returns:
        Lines for the terminal: the whole, then each task where there are several.

    Raises:
        DoraError: when the adapter was trained with another prompt template.
    """
    with jax.set_mesh(config.mesh.build()):
        return _evaluate(config, adapter)


def _evaluate(config: ExperimentConfig, adapter: Path | None) -> list[str]:
    examples = read_examples(config.data)
    where = weight_sharding(run_mesh(), SHARDING)
    loaded = load_model(config.model.name, adapter, where)
    if loaded.info is not None and loaded.info.prompt != config.data.prompt:
        raise DoraError(
            f"{adapter}: was trained with the prompt template {loaded.info.prompt!r}, not "
            f"{config.data.prompt!r}: give --data.prompt {loaded.info.prompt}"
        )
    pretrained = loaded.pretrained
    dtype = jnp.dtype(config.model.dtype)
    params = rounded(loaded.merged(), config.model)
    _check_fit(config, pretrained)
    task = encode_task(examples, config.data, pretrained.tokenizer)
    plain = Llama(pretrained.config, dtype=dtype)
    with WorkProgress(task.tokens("evaluation")) as progress:
        progress.part("evaluation")
        score = task.score(plain, params, "evaluation", progress.advance)
    lines = [
        f"{task.info.metric} {score.accuracy:.1%} of {len(score.correct)} rows, "
        f"loss {score.loss:.4f}"
    ]
    by_task: dict[str, list[int]] = {}
    for row, correct in zip(task.eval_rows, score.correct, strict=True):
        by_task.setdefault(row.task, []).append(correct)
    if len(by_task) > 1:
        lines += [f"  {name}: {sum(c) / len(c):.1%} of {len(c)}" for name, c in by_task.items()]
    if loaded.info is not None:
        lines += _doubts(config, loaded.info)
    return lines


def _doubts(config: ExperimentConfig, info: AdapterInfo) -> list[str]:
    """Return a warning where the rows may be among those that the adapter was trained on."""
    before, now = info.data, config.settings()["data"]
    if before is None or before["train"] is not None or now["train"] is not None:
        return []  # not the embedded task
    # The seed decides which of its entities are held out.
    if before["seed"] == now["seed"]:
        return []
    return [
        f"warning: the adapter was trained with data.seed {before['seed']}, not {now['seed']}: "
        "some of these rows are about what it was trained on"
    ]


def _check_fit(config: ExperimentConfig, pretrained: Pretrained) -> None:
    """Find what does not suit the model before anything is run."""
    context = pretrained.config.context_length
    if config.data.max_length > context:
        raise DoraError(
            f"data.max_length ({config.data.max_length}) is more than the model's context of "
            f"{context} tokens: lower --data.max-length"
        )
    for method in config.compare.methods:
        rules = config.adapter.rules(method)
        shapes = param_shapes(Llama(pretrained.config, rules))
        try:
            mask = trainable_mask(shapes, rules)
        except ValueError as error:
            raise DoraError(f"adapter.modules: {error}") from None
        if not any(jax.tree.leaves(mask)):
            raise DoraError(f"method {method!r} trains nothing: this model has no such parameters")


def _total_work(config: ExperimentConfig, task: Task) -> float:
    def one(steps: int, split: Split) -> float:
        return TRAIN_PASSES * task.train_tokens(config.train, steps) + task.tokens(split)

    compared, methods = config.compare, len(config.compare.methods)
    trials = methods * len(compared.learning_rates) if compared.search_steps else 0
    return (
        task.tokens("evaluation")
        + trials * one(compared.search_steps, "validation")
        + methods * len(config.seeds) * one(config.train.steps, "evaluation")
    )


def _base(bench: Workbench) -> BaseResult:
    folder = bench.folder / "base"
    done = finished_part(folder, BaseResult)
    if done is not None:
        bench.progress.skip(bench.task.tokens("evaluation"))
        return done
    bench.progress.part("base model: evaluation")
    score = bench.score(bench.pretrained.params, "evaluation")
    result = BaseResult(score.accuracy, score.correct, score.loss)
    finish_part(folder, result)
    bench.progress.say(f"base model: {score.accuracy:.1%}")
    return result


def _fit(
    bench: Workbench, method: RunMethod, seed: int, rate: float, steps: int, folder: Path
) -> tuple[FitResult, AdapterRules]:
    config = bench.config
    rules = config.adapter.rules(method)
    model = bench.adapted(rules)
    params = _start(bench.pretrained.params, model, rules, seed)
    share = row_share(run_mesh(), config.train.batch_size)
    batches = bench.task.batches(config.train, seed, share)
    work = TRAIN_PASSES * bench.task.train_tokens(config.train, 1)

    expected = 1

    def on_row(row: Row) -> None:
        nonlocal expected
        # The steps before an interruption are not done again.
        bench.progress.skip(work * (row["step"] - expected))
        expected = row["step"] + 1
        bench.progress.advance(work, _describe(row, steps))

    def validate(params: Params) -> dict[str, float]:
        score = bench.score(merge_params(params, rules), "validation")
        return {VALIDATION: score.loss, "validation_accuracy": score.accuracy}

    @functools.cache
    def flops(rows: int, length: int, labels: int) -> float:
        return step_cost(model, rows, length, labels).total

    watching = Watching(
        on_row=on_row,
        track=config.track,
        profile=config.profile,
        flops=flops,
        settings=config.settings() | {"method": method, "seed": seed, "learning_rate": rate},
    )
    with batches:
        result = fit(
            model,
            rules,
            params,
            batches,
            make_optimizer(config.optim, rate, steps),
            learning_rate_schedule(config.optim, rate, steps),
            config.train,
            steps=steps,
            seed=seed,
            folder=folder,
            noise=config.adapter.dropout > 0 or config.train.neftune_alpha > 0,
            ema=config.optim.ema,
            validate=validate if config.train.validate_every else None,
            identity={"weights": bench.weights, "rows": bench.task.digest()},
            share=share,
            watching=watching,
        )
    bench.progress.skip(work * (steps + 1 - expected))
    return result, rules


def _describe(row: Row, steps: int) -> str:
    loss = "not finite, skipped" if row["loss"] is None else f"{row['loss']:.3f}"
    speed = f"{row['tokens_per_s']:,.0f} tokens/s"
    return f"step {row['step']}/{steps}, loss {loss}, {speed}"


def _start(base: Params, model: Llama, rules: AdapterRules, seed: int) -> Params:
    """Return the adapted model's parameters at the start, fresh adapters beside their kernels."""
    shapes = param_shapes(model)
    where = param_shardings(run_mesh(), shapes, SHARDING, rules)
    params = init_adapters(base, shapes, rules, jax.random.key(seed))
    return place(params, where)


def _search(bench: Workbench, method: RunMethod) -> list[SearchTrial]:
    """Try every rate on the validation split; the one of least validation loss is chosen."""
    compared = bench.config.compare
    if compared.search_steps == 0:
        return []
    trials = []
    for rate in compared.learning_rates:
        folder = bench.folder / "search" / f"{method}-lr{rate:g}"
        trial = finished_part(folder, SearchTrial)
        if trial is None:
            bench.progress.part(f"search: {method}, learning rate {rate:g}")
            # Trials use the first seed: the same initial A and data order for every method.
            seed = bench.config.seeds[0]
            trial = _trial(bench, method, seed, rate, folder)
            _finish(folder, trial)
        else:
            bench.progress.skip(_part_work(bench, compared.search_steps, "validation"))
        trials.append(trial)
    best = min(trials, key=_validation_loss)
    if math.isinf(_validation_loss(best)):
        raise DoraError(
            f"{method} diverged at every learning rate that was tried; lower "
            "--compare.learning-rates"
        )
    return [dataclasses.replace(trial, chosen=trial is best) for trial in trials]


def _trial(
    bench: Workbench, method: RunMethod, seed: int, rate: float, folder: Path
) -> SearchTrial:
    steps = bench.config.compare.search_steps
    try:
        result, rules = _fit(bench, method, seed, rate, steps, folder)
    except DivergedError as error:
        # Too high a rate for this method: a finding of the search, not the end of it.
        bench.progress.say(f"search: {method}, learning rate {rate:g}: diverged ({error})")
        return SearchTrial(method, rate, steps, False)
    score = bench.score(merge_params(result.params, rules), "validation")
    bench.progress.say(
        f"search: {method}, learning rate {rate:g}: validation loss {score.loss:.4f}, "
        f"accuracy {score.accuracy:.1%}"
    )
    return SearchTrial(method, rate, steps, False, score.accuracy, score.loss)


def _validation_loss(trial: SearchTrial) -> float:
    loss = trial.validation_loss
    return loss if loss is not None and math.isfinite(loss) else math.inf


def _finish(folder: Path, result: SearchTrial | RunResult) -> None:
    """Write a part's result; what it needed to continue is then of no use."""
    finish_part(folder, result)
    if is_first():
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _run(bench: Workbench, method: RunMethod, seed: int, rate: float) -> RunResult:
    folder = bench.folder / f"seed-{seed}" / method
    steps = bench.config.train.steps
    done = finished_part(folder, RunResult)
    if done is not None:
        bench.progress.skip(_part_work(bench, steps, "evaluation"))
        return done
    bench.progress.part(f"{method}, seed {seed}, learning rate {rate:g}")
    result, rules = _fit(bench, method, seed, rate, steps, folder)
    trainable, _ = partition(result.params, trainable_mask(result.params, rules))
    info = AdapterInfo(
        model=bench.pretrained.name,
        source=bench.pretrained.source,
        weights=bench.weights,
        method=method,
        adapter=dataclasses.asdict(bench.config.adapter),
        prompt=bench.config.data.prompt,
        dtype=bench.config.model.dtype,
        data=bench.config.settings()["data"],
    )
    save_adapter(folder / FOLDER, info, trainable)
    score = bench.score(merge_params(result.params, rules), "evaluation")
    run = RunResult(
        method=method,
        seed=seed,
        learning_rate=rate,
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
        history=result.history,
    )
    _finish(folder, run)
    bench.progress.say(f"{method}, seed {seed}: {score.accuracy:.1%}")
    return run


def _part_work(bench: Workbench, steps: int, split: Split) -> float:
    tokens = bench.task.train_tokens(bench.config.train, steps)
    return TRAIN_PASSES * tokens + bench.task.tokens(split)
