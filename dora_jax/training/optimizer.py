"""Optimizers by name, their schedule, and what differs from leaf to leaf.

clip by the global norm -> the optimizer, its decay on the decayed leaves -> each leaf's rate ratio

A leaf is named by its slash-joined path, `layers/self_attn/q_proj/lora_b`; a pattern is a regular
expression that matches the whole path or its trailing parts, as in `AdapterRules`.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from dora_jax.errors import DoraError
from dora_jax.spec import nearest
from dora_jax.training.config import OptimConfig
from dora_jax.training.sections import OptimizerName

# Matrices of these names; other leaves go to Adam within Muon.
_MATRICES = ("kernel", "lora_a", "lora_b")


def learning_rate_schedule(config: OptimConfig, peak: float, steps: int) -> optax.Schedule:
    """Return the rate by step: linear warm-up from zero, then the config's decay to zero."""
    warmup = round(config.warmup_ratio * steps)
    rest = max(1, steps - warmup)
    falls = max(1, min(round(config.decay_ratio * steps), rest))
    decay = {
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "constant": optax.constant_schedule(peak),
        # Warm-up, stable, decay (Hu et al. 2024, MiniCPM, section 4.1).
        "wsd": optax.linear_schedule(peak, 0.0, falls, transition_begin=rest - falls),
    }[config.schedule]
    if warmup == 0:
        return decay
    # The first step trains as well: the ramp starts one step above zero.
    ramp = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([ramp, decay], [warmup])


def make_optimizer(config: OptimConfig, peak: float, steps: int) -> optax.GradientTransformation:
    """Return the config's optimizer; it sees the trained leaves alone.

    Args:
        config: which, and how.
        peak: learning rate after the warm-up.
        steps: of the whole run.

    Raises:
        DoraError: by `init`, when a pattern of the config matches no trained leaf.
    """
    rate = learning_rate_schedule(config, peak, steps)
    parts = [
        optax.clip_by_global_norm(config.clip_norm),
        _OPTIMIZERS[config.optimizer](config, rate, _decayed(config)),
    ]
    if config.rate_ratios:
        parts.append(_scale_by_path(config.rate_ratios))
    return optax.chain(*parts)


def _adamw(config: OptimConfig, rate: optax.Schedule, mask: Any) -> optax.GradientTransformation:
    return optax.adamw(rate, **config.betas(), weight_decay=config.weight_decay, mask=mask)


def _nadamw(config: OptimConfig, rate: optax.Schedule, mask: Any) -> optax.GradientTransformation:
    return optax.nadamw(rate, **config.betas(), weight_decay=config.weight_decay, mask=mask)


def _lion(config: OptimConfig, rate: optax.Schedule, mask: Any) -> optax.GradientTransformation:
    return optax.lion(rate, **config.betas(), weight_decay=config.weight_decay, mask=mask)


def _sgd(config: OptimConfig, rate: optax.Schedule, mask: Any) -> optax.GradientTransformation:
    momentum = [] if config.beta1 is None else [optax.trace(config.beta1)]
    return _decayed_descent(config, rate, mask, *momentum)


def _adafactor(
    config: OptimConfig, rate: optax.Schedule, mask: Any
) -> optax.GradientTransformation:
    # Updates are not scaled by the parameter: a factor that starts at zero would hardly move, and
    # the rate would mean something else than it does for the others.
    return _decayed_descent(
        config, rate, mask, optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
    )


def _decayed_descent(
    config: OptimConfig, rate: optax.Schedule, mask: Any, *direction: optax.GradientTransformation
) -> optax.GradientTransformation:
    return optax.chain(
        *direction,
        optax.add_decayed_weights(config.weight_decay, mask),
        optax.scale_by_learning_rate(rate),
    )


def _muon(config: OptimConfig, rate: optax.Schedule, mask: Any) -> optax.GradientTransformation:
    def matrices(params: Any) -> Any:
        # Leading axes are layers: each of their matrices is made orthogonal by itself.
        spec = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
        return _by_path(params, lambda path, _: spec if path.endswith(_MATRICES) else None)

    direction = optax.contrib.muon(
        -1.0,  # uphill, as the other directions are before the rate
        **({} if config.beta1 is None else {"beta": config.beta1}),
        muon_weight_dimension_numbers=matrices,
        # Updates of AdamW's size, so that one rate suits matrices and the rest.
        consistent_rms=0.2,
    )
    return _decayed_descent(config, rate, mask, direction)


Builder = Callable[[OptimConfig, optax.Schedule, Any], optax.GradientTransformation]
_OPTIMIZERS: dict[OptimizerName, Builder] = {
    "adamw": _adamw,
    "nadamw": _nadamw,
    "lion": _lion,
    "adafactor": _adafactor,
    "muon": _muon,
    "sgd": _sgd,
}


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern matches a leaf's path, or its trailing parts."""
    return re.fullmatch(rf"(?:.*/)?(?:{pattern})", path) is not None


def _by_path(tree: Any, function: Callable[[str, Any], Any]) -> Any:
    """Return a tree of what a function makes of each leaf's path and value."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(jax.tree_util.keystr(path, simple=True, separator="/"), leaf),
        tree,
    )


def _decayed(config: OptimConfig) -> Callable[[Any], Any]:
    """Return a function of the parameters that says which of them decay."""
    patterns = config.no_decay
    return lambda params: _by_path(
        params, lambda path, _: not any(matches(pattern, path) for pattern in patterns)
    )


def _scale_by_path(ratios: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Multiply each leaf's update by the ratio of the first pattern that matches it."""

    def init(params: Any) -> optax.EmptyState:
        paths = jax.tree.leaves(_by_path(params, lambda path, _: path))
        for pattern, _ in ratios:
            # `optax.tree.map_params` looks at the state of something without leaves.
            if paths and not any(matches(pattern, path) for path in paths):
                ends = sorted({path.rsplit("/", 1)[-1] for path in paths})
                raise DoraError(
                    f"optim.rate_ratios: {pattern!r} matches no trained leaf"
                    f"{nearest(pattern, ends)}; they end in {', '.join(ends)}"
                )
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def scaled(path: str, update: Any) -> Any:
            return next((r for pattern, r in ratios if matches(pattern, path)), 1.0) * update

        return _by_path(updates, scaled), state

    return optax.GradientTransformation(init, update)
