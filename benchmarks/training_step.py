"""One compiled training step on random weights, ready to be timed."""

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shapes import SHAPES
from dora_jax.adapters import init_adapters, kernel_sq_norms
from dora_jax.models.llama import Llama, param_shapes
from dora_jax.partition import combine, partition, trainable_mask
from dora_jax.training.config import AdapterConfig, OptimConfig
from dora_jax.training.step import Batch, init_state, make_optimizer, make_train_step

METHODS = ("lora", "dora", "full")


@dataclass
class TrainingStep:
    """A compiled step; `run()` takes one and waits for it."""

    method: str
    compile_s: float
    temp_bytes: int | None
    run: Callable[[], None]


def build_step(
    model: str, method: str, batch: int, seq: int, rank: int, labelled: float = 1.0
) -> TrainingStep:
    """Compile the training step of one method on random weights of a model's shape.

    Args:
        model: a name in `SHAPES`.
        method: lora, dora, magnitude or full.
        batch: rows a step.
        seq: tokens a row.
        rank: of the low-rank factors; alpha is twice as much.
        labelled: share of the tokens that carry a label.
    """
    config = SHAPES[model]
    rules = AdapterConfig(rank=rank, alpha=2.0 * rank).rules(method)  # type: ignore[arg-type]
    adapted = Llama(config, rules)
    key = jax.random.key(0)
    base = jax.jit(Llama(config).init)(key, jnp.zeros((1, 2), jnp.int32))["params"]
    shapes = param_shapes(adapted)
    params = init_adapters(base, shapes, rules, key)
    trainable, frozen = partition(params, trainable_mask(params, rules))
    trainable = jax.tree.map(jnp.array, trainable)
    tx = make_optimizer(OptimConfig(), 1e-3, 100)
    state = init_state(trainable, tx)
    sq_norms = jax.jit(lambda p: kernel_sq_norms(p, rules))(combine(trainable, frozen))

    rng = np.random.default_rng(0)
    labels = max(1, round(labelled * seq))
    rows = Batch(
        tokens=jnp.asarray(rng.integers(0, config.vocab_size, (batch, seq)), jnp.int32),
        label_positions=jnp.broadcast_to(jnp.arange(seq - labels, seq), (batch, labels)),
        label_targets=jnp.asarray(rng.integers(0, config.vocab_size, (batch, labels)), jnp.int32),
        label_weights=jnp.ones((batch, labels), jnp.float32),
    )
    step = jax.jit(make_train_step(adapted, rules, tx), donate_argnums=0)
    started = time.perf_counter()
    compiled = step.lower(state, frozen, sq_norms, rows, key).compile()
    compile_s = time.perf_counter() - started
    memory = compiled.memory_analysis()
    box: list[Any] = [state]

    def run() -> None:
        box[0], metrics = compiled(box[0], frozen, sq_norms, rows, key)
        jax.block_until_ready((box[0], metrics))

    return TrainingStep(
        method, compile_s, None if memory is None else int(memory.temp_size_in_bytes), run
    )


def time_alternately(steps: list[TrainingStep], rounds: int) -> dict[str, list[float]]:
    """Time each step once a round, in turn, so that all meet the same noise; one warm-up round."""
    times: dict[str, list[float]] = {step.method: [] for step in steps}
    for index in range(rounds + 1):
        for step in steps:
            started = time.perf_counter()
            step.run()
            if index:
                times[step.method].append(time.perf_counter() - started)
    gc.collect()
    return times


def peak_rss_bytes() -> int:
    """Return the process's highest resident memory so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def describe(step: TrainingStep, times: list[float], batch: int, seq: int) -> dict[str, Any]:
    """Return the JSON line of one timed step."""
    median = statistics.median(times)
    return {
        "method": step.method,
        "step_time_s": median,
        "step_time_min_s": min(times),
        "temp_bytes": step.temp_bytes,
        "peak_rss_bytes": peak_rss_bytes(),
        "compile_s": step.compile_s,
        "tokens_per_s": batch * seq / median,
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
    }
