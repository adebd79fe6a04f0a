import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dora_jax.errors import DoraError
from dora_jax.training.config import OptimConfig
from dora_jax.training.optimizer import learning_rate_schedule, make_optimizer, matches

RATE, STEPS = 0.1, 4
CONSTANT = {"schedule": "constant", "warmup_ratio": 0.0}


def tree():
    rng = np.random.default_rng(0)
    shapes = {
        "layers": {
            "q_proj": {"lora_a": (3, 6, 2), "lora_b": (3, 2, 5), "magnitude": (3, 5)},
            "norm": {"scale": (3, 6)},
        },
        "lm_head": {"kernel": (6, 7), "bias": (7,)},
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), "float32"),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def gradients():
    rng = np.random.default_rng(1)
    return [
        jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), "float32"), tree())
        for _ in range(STEPS)
    ]


def trained(tx):
    """Return the parameters after some steps, compiled."""
    params = tree()
    state = tx.init(params)
    update = jax.jit(tx.update)
    for grads in gradients():
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def clipped(*parts):
    return optax.chain(optax.clip_by_global_norm(1.0), *parts)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"optimizer": "adamw"}, optax.adamw(RATE, weight_decay=0.0)),
        ({"optimizer": "adamw", "beta1": 0.8, "beta2": 0.9}, optax.adam(RATE, 0.8, 0.9)),
        ({"optimizer": "nadamw"}, optax.nadam(RATE)),
        ({"optimizer": "lion"}, optax.lion(RATE, weight_decay=0.0)),
        ({"optimizer": "sgd"}, optax.sgd(RATE)),
        ({"optimizer": "sgd", "beta1": 0.7}, optax.sgd(RATE, 0.7)),
        (
            {"optimizer": "adafactor"},
            optax.adafactor(RATE, multiply_by_parameter_scale=False, clipping_threshold=1.0),
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_optimizers_are_optax_s(fields, expected):
    found = trained(make_optimizer(OptimConfig(**fields, **CONSTANT), RATE, STEPS))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        found,
        trained(clipped(expected)),
    )


def test_muon_makes_each_layer_s_matrix_orthogonal_by_itself():
    config = OptimConfig(optimizer="muon", **CONSTANT)
    whole = trained(make_optimizer(config, RATE, STEPS))
    muon = optax.contrib.muon(RATE, consistent_rms=0.2)
    update = jax.jit(muon.update)
    for name in ("lora_a", "lora_b"):
        for layer in range(3):
            params = tree()["layers"]["q_proj"][name][layer]
            state = muon.init({"w": params})
            for grads in gradients():
                # Clipped with all the others.
                grads, _ = optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
                own = {"w": grads["layers"]["q_proj"][name][layer]}
                updates, state = update(own, state, {"w": params})
                params = params + updates["w"]
            found = whole["layers"]["q_proj"][name][layer]
            np.testing.assert_allclose(found, params, rtol=1e-4, atol=1e-5)
    # What is no matrix goes to Adam, Nesterov's.
    adam = trained(clipped(optax.nadam(RATE)))
    for path in (("layers", "q_proj", "magnitude"), ("lm_head", "bias")):
        found, expected = whole, adam
        for name in path:
            found, expected = found[name], expected[name]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    # One update moves matrices by about as much as Adam's moves the rest.
    tx = make_optimizer(config, RATE, STEPS)
    updates, _ = jax.jit(tx.update)(gradients()[0], tx.init(tree()), tree())
    size = float(jnp.sqrt(jnp.mean(updates["lm_head"]["kernel"] ** 2)))
    assert 0.1 * RATE < size < 2 * RATE


def adamw_by_hand(w, steps, decay, rate):
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) in float64."""
    m = v = np.zeros_like(w)
    for t, g in enumerate(steps, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        ahead = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        w = w - rate * (ahead + decay * w)
    return w


@pytest.mark.parametrize("name", ["lora_a", "lora_b", "magnitude"])
def test_decay_and_rates_are_those_of_each_leaf(name):
    ratios = {"q_proj/lora_b": 16.0, "magnitude": 0.5, "lora_.*": 2.0}
    config = OptimConfig(weight_decay=0.3, rate_ratios=ratios, clip_norm=1e9, **CONSTANT)
    found = trained(make_optimizer(config, 0.01, STEPS))["layers"]["q_proj"][name]
    steps = [np.float64(g["layers"]["q_proj"][name]) for g in gradients()]
    decay = 0.0 if name == "magnitude" else 0.3
    # The first pattern that matches counts.
    rate = {"lora_a": 0.02, "lora_b": 0.16, "magnitude": 0.005}[name]
    start = np.float64(tree()["layers"]["q_proj"][name])
    np.testing.assert_allclose(found, adamw_by_hand(start, steps, decay, rate), rtol=2e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "nadamw", "lion", "adafactor", "muon", "sgd"])
def test_every_optimizer_decays_the_same_leaves_by_the_same_amount(optimizer):
    def step(**fields):
        config = OptimConfig(optimizer=optimizer, **fields, **CONSTANT)
        tx = make_optimizer(config, RATE, STEPS)
        return tx.update(gradients()[0], tx.init(tree()), tree())[0]

    plain, decayed = step(), step(weight_decay=0.5)
    moved = jax.tree.map(lambda a, b: b - a, plain, decayed)
    for path, leaf in jax.tree_util.tree_leaves_with_path(moved):
        own = tree()
        for key in path:
            own = own[key.key]
        expected = 0.0 if path[-1].key in ("magnitude", "bias", "scale") else -RATE * 0.5 * own
        np.testing.assert_allclose(leaf, jnp.broadcast_to(expected, leaf.shape), atol=1e-6)


def test_what_decays_may_be_changed():
    config = OptimConfig(weight_decay=0.5, no_decay=("lora_b",), **CONSTANT)
    tx = make_optimizer(config, RATE, STEPS)
    zero = jax.tree.map(jnp.zeros_like, tree())
    updates, _ = tx.update(zero, tx.init(tree()), tree())
    moved = {path[-1].key: bool(x.any()) for path, x in jax.tree.leaves_with_path(updates)}
    assert [name for name, moves in moved.items() if not moves] == ["lora_b"]


def test_a_pattern_that_matches_nothing_is_an_error():
    tx = make_optimizer(OptimConfig(rate_ratios=(("lora_c", 2.0),)), RATE, STEPS)
    with pytest.raises(DoraError, match=r"'lora_c' matches no trained leaf \(did you mean 'lora_"):
        tx.init(tree())


def test_patterns_match_whole_names_at_the_end():
    assert matches("lora_b", "layers/q_proj/lora_b")
    assert matches("q_proj/.*", "layers/q_proj/lora_b")
    assert not matches("b", "layers/q_proj/lora_b")
    assert not matches("q_proj", "layers/q_proj/lora_b")


def test_warm_up_stable_decay():
    config = OptimConfig(schedule="wsd", warmup_ratio=0.1, decay_ratio=0.2)
    rate = learning_rate_schedule(config, 2.0, 100)
    found = [float(rate(step)) for step in (0, 9, 10, 50, 79, 80, 90, 99, 100)]
    np.testing.assert_allclose(found, [0.2, 2, 2, 2, 2, 2, 1, 0.1, 0], atol=1e-6)
    # All that is left after the warm-up, where the decay would take more.
    config = OptimConfig(schedule="wsd", warmup_ratio=0.5, decay_ratio=0.9)
    rate = learning_rate_schedule(config, 2.0, 100)
    np.testing.assert_allclose([float(rate(n)) for n in (50, 75, 100)], [2, 1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "adam"}, "optim.optimizer must be one of .* \\(did you mean 'adamw'"),
        ({"optimizer": "sgd", "beta2": 0.9}, "optim.beta2 means nothing to sgd: leave it out"),
        ({"optimizer": "adafactor", "beta1": 0.9}, "optim.beta1 means nothing to adafactor"),
        ({"rate_ratios": (("(", 2.0),)}, "'\\(' is not a regular expression"),
        ({"rate_ratios": (("lora_b", -1.0),)}, "optim.rate_ratios of lora_b must be finite"),
        ({"ema": 1.0}, "optim.ema must be in"),
    ],
)
def test_what_is_not_allowed_is_refused(fields, message):
    with pytest.raises(DoraError, match=message):
        OptimConfig(**fields)
