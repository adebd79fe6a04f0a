"""One compiled training step on random weights, ready to be timed."""

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.processes import peak_rss_bytes
from benchmarks.shapes import SHAPES
from dora_jax.adapters import init_adapters, kernel_sq_norms
from dora_jax.cost import StepCost, step_cost
from dora_jax.models.llama import Llama, param_shapes
from dora_jax.partition import combine, partition, trainable_mask
from dora_jax.training.config import AdapterConfig, OptimConfig
from dora_jax.training.optimizer import make_optimizer
from dora_jax.training.step import Batch, TrainState, init_state, make_train_step

_PRODUCTS = 4  # each round, for the peak
METHODS = ("lora", "dora", "dora-exact", "magnitude", "full")


class Setting(Protocol):
    """What a step is compiled from; a frozen dataclass, whose fields go into the results.

    Attributes:
        method: one of `METHODS`.
        batch: rows a step.
        micro_batches: parts of the batch, one after another.
        tokens: a step, padding left out.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def method(self) -> str: ...

    @property
    def batch(self) -> int: ...

    @property
    def micro_batches(self) -> int: ...

    @property
    def tokens(self) -> int: ...

    def adapted(self) -> Any:
        """Return the model with its adapters."""

    def plain(self) -> Any:
        """Return the model without adapters."""

    def random_batch(self) -> Batch:
        """Return one batch of random rows."""

    def cost(self) -> StepCost:
        """Return the operations of a step."""


@dataclass(frozen=True)
class StepSetting:
    """What is timed.

    Attributes:
        model: a name in `SHAPES`.
        method: one of `METHODS`; dora-exact differentiates the norm.
        batch: rows a step.
        seq: tokens a row.
        rank: of the low-rank factors; alpha is twice as much.
        labelled: share of the tokens that carry a label.
        norm_axis: out or in.
        remat: none, dots or full.
        micro_batches: parts of the batch, one after another.
        dtype: of the computation and of the frozen weights.
        modules: preset or pattern of the tuned modules.
        attention: xla or cudnn.
    """

    model: str = "smollm2-135m"
    method: str = "dora"
    batch: int = 4
    seq: int = 256
    rank: int = 16
    labelled: float = 1.0
    norm_axis: str = "out"
    remat: str = "dots"
    micro_batches: int = 1
    dtype: str = "float32"
    modules: str = "paper"
    attention: str = "xla"

    def adapted(self) -> Llama:
        """Return the model with its adapters."""
        adapter: Any = {"norm_axis": self.norm_axis, "detach_norm": self.method != "dora-exact"}
        config = AdapterConfig(
            rank=self.rank, alpha=2.0 * self.rank, modules=self.modules, **adapter
        )
        method: Any = self.method.removesuffix("-exact")
        how: Any = {"remat": self.remat, "attention": self.attention}
        return Llama(SHAPES[self.model], config.rules(method), **self._dtypes(), **how)

    def plain(self) -> Llama:
        """Return the model without adapters."""
        return Llama(SHAPES[self.model], **self._dtypes())

    def _dtypes(self) -> dict[str, Any]:
        dtype = jnp.dtype(self.dtype)
        return {"dtype": dtype, "param_dtype": dtype}

    @property
    def labels(self) -> int:
        """Labelled tokens a row."""
        return max(1, round(self.labelled * self.seq))

    @property
    def tokens(self) -> int:
        """Tokens a step."""
        return self.batch * self.seq

    def random_batch(self) -> Batch:
        """Return one batch of random tokens, the last ones of each row labelled."""
        rng = np.random.default_rng(0)
        vocabulary = SHAPES[self.model].vocab_size
        batch, seq, labels = self.batch, self.seq, self.labels
        return Batch(
            tokens=jnp.asarray(rng.integers(0, vocabulary, (batch, seq)), jnp.int32),
            label_positions=jnp.broadcast_to(jnp.arange(seq - labels, seq), (batch, labels)),
            label_targets=jnp.asarray(rng.integers(0, vocabulary, (batch, labels)), jnp.int32),
            label_weights=jnp.ones((batch, labels), jnp.float32),
        )

    def cost(self) -> StepCost:
        """Return the operations of a step."""
        return step_cost(self.adapted(), self.batch, self.seq, self.batch * self.labels)


@dataclass
class TrainingStep:
    """A compiled step; `run()` takes one and waits for it."""

    setting: Setting
    cost: StepCost
    compile_s: float
    temp_bytes: int | None
    run: Callable[[], None]


def random_base(setting: Setting) -> Any:
    """Return random weights of the plain model, on the device."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    return jax.jit(setting.plain().init)(jax.random.key(0), tokens)["params"]


class StepInputs(NamedTuple):
    """What a training step is called with."""

    state: TrainState
    frozen: Any
    sq_norms: Any
    rows: Batch
    key: jax.Array


def jitted_step(setting: Setting) -> Any:
    """Return a setting's jitted step, which donates its state."""
    model = setting.adapted()
    step = make_train_step(model, model.adapters, _optimizer(), micro_batches=setting.micro_batches)
    return jax.jit(step, donate_argnums=0)


def step_inputs(setting: Setting, base: Any) -> StepInputs:
    """Return what a setting's first step is called with."""
    adapted = setting.adapted()
    rules = adapted.adapters
    key = jax.random.key(0)
    params = init_adapters(base, param_shapes(adapted), rules, key)
    trainable, frozen = partition(params, trainable_mask(params, rules))
    # The step donates its state; the base weights are shared.
    trainable = jax.tree.map(jnp.array, trainable)
    sq_norms = jax.jit(lambda p: kernel_sq_norms(p, rules))(combine(trainable, frozen))
    state = init_state(trainable, _optimizer())
    return StepInputs(state, frozen, sq_norms, setting.random_batch(), key)


def _optimizer() -> optax.GradientTransformation:
    return make_optimizer(OptimConfig(), 1e-3, 100)


def compile_step(setting: Setting) -> Any:
    """Compile a setting's step from the shapes of its inputs alone: no weight is made."""
    shapes = jax.eval_shape(lambda: step_inputs(setting, random_base(setting)))
    return jitted_step(setting).lower(*shapes).compile()


def temporary_bytes(compiled: Any) -> int | None:
    """Return a compiled program's temporary memory, where the backend tells it."""
    memory = compiled.memory_analysis()
    return None if memory is None else int(memory.temp_size_in_bytes)


def build_step(setting: Setting, base: Any = None) -> TrainingStep:
    """Compile the training step of a setting.

    Args:
        setting: what is timed.
        base: `random_base` of the setting, to share it between steps.
    """
    inputs = step_inputs(setting, random_base(setting) if base is None else base)
    state, *rest = inputs
    started = time.perf_counter()
    compiled = jitted_step(setting).lower(*inputs).compile()
    compile_s = time.perf_counter() - started
    box: list[Any] = [state]

    def run() -> None:
        box[0], metrics = compiled(box[0], *rest)
        jax.block_until_ready((box[0], metrics))

    return TrainingStep(
        setting,
        setting.cost(),
        compile_s,
        temporary_bytes(compiled),
        run,
    )


def time_alternately(runs: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Time each call once a round, in turn, so that all meet the same noise; one warm-up round."""
    times: list[list[float]] = [[] for _ in runs]
    for index in range(rounds + 1):
        for run, own in zip(runs, times, strict=True):
            started = time.perf_counter()
            run()
            if index:
                own.append(time.perf_counter() - started)
    gc.collect()
    return times


def time_with_peak(
    steps: Sequence[TrainingStep], rounds: int, dtype: str
) -> tuple[list[list[float]], float]:
    """Time steps and large square products in turn: one noise for all.

    Returns:
        The times of each step, and the FLOP/s of the fastest product: what the machine can do.
    """
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), jnp.dtype(dtype))
    multiply = jax.jit(lambda a, b: a @ b)

    def products() -> None:
        for _ in range(_PRODUCTS):
            started = time.perf_counter()
            jax.block_until_ready(multiply(x, x))
            fastest.append(time.perf_counter() - started)

    fastest: list[float] = []
    *times, _ = time_alternately([*(step.run for step in steps), products], rounds)
    return times, 2 * size**3 / min(fastest)


def device() -> dict[str, str]:
    """Return what the figures were measured on."""
    return {"device": jax.devices()[0].device_kind, "platform": jax.default_backend()}


def describe(step: TrainingStep, times: Sequence[float], peak: float | None) -> dict[str, Any]:
    """Return the JSON row of one timed step.

    Args:
        step: what was timed.
        times: of the step, in seconds.
        peak: FLOP/s of the same run, see `time_with_peak`; None leaves the utilisation out.
    """
    median, least = statistics.median(times), min(times)
    flops = step.cost.total
    setting = step.setting
    row = dataclasses.asdict(setting) | {
        "step_time_s": median,
        "step_time_min_s": least,
        "temp_bytes": step.temp_bytes,
        "peak_rss_bytes": peak_rss_bytes(),
        "compile_s": step.compile_s,
        "tokens_per_s": setting.tokens / median,
        "flops": flops,
        "predicted_overhead": step.cost.dora_overhead,
    }
    if peak is not None:
        row |= {"model_flop_utilisation": flops / least / peak, "matmul_peak": peak}
    return row | device()


def add_ratios(rows: Sequence[dict[str, Any]], base: dict[str, Any]) -> None:
    """Put into each row its ratios to the base row's times and memory."""
    for row in rows:
        row["ratio_to_lora"] = {
            name: row[name] / base[name]
            for name in ("step_time_s", "step_time_min_s", "temp_bytes")
            if row[name] and base[name]
        }
