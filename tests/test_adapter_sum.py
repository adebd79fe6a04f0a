import flax.traverse_util
import jax
import numpy as np
import pytest

from dora_jax.adapter_sum import sum_adapters
from dora_jax.adapters import merge_params
from dora_jax.checkpoint.state import flatten
from dora_jax.errors import DoraError
from dora_jax.models.config import LlamaConfig
from dora_jax.models.llama import Llama, param_shapes
from dora_jax.spec import AdapterRules, AdapterSpec

CONFIG = LlamaConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)
TOKENS = np.random.default_rng(0).integers(0, 40, (2, 9))


def normal(name, shape, seed):
    rng = np.random.default_rng([seed, *name.encode()])
    return (0.3 * rng.standard_normal(shape)).astype("f4")


def params_of(rules, seed):
    """Return parameters over the same base, every adapter leaf of which is of its own seed."""
    found = {}
    for name, leaf in flatten(param_shapes(Llama(CONFIG, rules))).items():
        own = name.rsplit("/", 1)[1]
        tuned = own in ("lora_a", "lora_b", "magnitude")
        found[name] = normal(name, leaf.shape, seed if tuned else 0)
        if own == "magnitude":
            found[name] = np.abs(found[name]) + 0.8
        if own == "lora_scale":
            spec = rules.spec_for(name.rsplit("/", 1)[0])
            found[name] = np.array(spec.layer_scales, "f4")
        if own == "scale":
            found[name] += 1
        if name == "layers/mlp/down_proj/kernel":
            found[name][0, :, 3] = 0
    return flax.traverse_util.unflatten_dict(found, sep="/")


BASE = params_of(AdapterRules(()), 0)
DORA = AdapterRules([("(q|down)_proj", AdapterSpec("dora", rank=2, alpha=3))])
OTHER = AdapterRules(
    [
        ("q_proj", AdapterSpec("dora", rank=3, alpha=3, per_layer=((3, 3.0), None))),
        ("down_proj", AdapterSpec("lora", rank=1, alpha=1)),
        ("up_proj", AdapterSpec("magnitude")),
    ]
)
LORA = AdapterRules([("(q|up)_proj", AdapterSpec("lora", rank=2, alpha=3))])
ADAPTERS = [(DORA, params_of(DORA, 1)), (OTHER, params_of(OTHER, 2)), (LORA, params_of(LORA, 3))]


def merged(rules, params):
    return {k: np.asarray(v, np.float64) for k, v in flatten(merge_params(params, rules)).items()}


def expected(adapters, weights):
    """Return W + sum of w (W' - W), each W' of one adapter alone."""
    base = {k: v.astype(np.float64) for k, v in flatten(BASE).items()}
    changes = [merged(*adapter) for adapter in adapters]
    return {
        k: w + sum(c * (change[k] - w) for c, change in zip(weights, changes, strict=True))
        for k, w in base.items()
    }


def logits(rules, params):
    with jax.default_matmul_precision("highest"):
        return Llama(CONFIG, rules).apply({"params": params}, TOKENS)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, -0.4, 2.0), (0.0, 1.0, 0.0)])
def test_concatenated_is_the_sum_of_the_changes_exactly(weights):
    rules, params = sum_adapters(BASE, ADAPTERS, weights)
    found = merged(rules, params)
    for name, leaf in expected(ADAPTERS, weights).items():
        np.testing.assert_allclose(found[name], leaf, atol=3e-6, err_msg=name)
    assert rules.spec_for("layers/self_attn/q_proj").rank == 2 + 3 + 2
    assert rules.spec_for("layers/self_attn/q_proj").method == "dora"
    # Two DoRA adapters on one module: merged and unmerged are the same.
    unmerged = logits(rules, params)
    np.testing.assert_allclose(logits(None, merge_params(params, rules)), unmerged, atol=2e-5)
    assert np.abs(unmerged - logits(None, BASE)).max() > 0.01


def test_magnitudes_are_not_dropped():
    """One adapter of weight 1 is itself, its trained magnitudes too."""
    rules, params = sum_adapters(BASE, ADAPTERS[:1], [1.0])
    found, alone = merged(rules, params), merged(*ADAPTERS[0])
    for name in alone:
        np.testing.assert_allclose(found[name], alone[name], atol=2e-6)
    own, given = params["layers"]["self_attn"]["q_proj"], ADAPTERS[0][1]["layers"]["self_attn"]
    np.testing.assert_allclose(own["magnitude"], given["q_proj"]["magnitude"], rtol=1e-5)


def test_cut_to_a_rank_it_is_the_closest_of_the_factors_with_every_gain():
    full_rules, full = sum_adapters(BASE, ADAPTERS, (1.0, 0.5, 0.3))
    rules, params = sum_adapters(BASE, ADAPTERS, (1.0, 0.5, 0.3), "svd", 3)
    q, whole = params["layers"]["self_attn"]["q_proj"], full["layers"]["self_attn"]["q_proj"]
    assert q["lora_a"].shape == (2, 16, 3)
    for n in range(2):
        product = whole["lora_a"][n].astype(float) @ whole["lora_b"][n]
        u, s, vt = np.linalg.svd(product)
        np.testing.assert_allclose(
            q["lora_a"][n] @ q["lora_b"][n], (u[:, :3] * s[:3]) @ vt[:3], atol=1e-5
        )
        # c = m / ||V|| is what it was before the cut.
        c = [
            x["magnitude"][n] / np.linalg.norm(v, axis=0)
            for x in (q, whole)
            for v in [x["kernel"][n] + x["lora_a"][n] @ x["lora_b"][n]]
        ]
        np.testing.assert_allclose(*c, rtol=1e-4)
    # At the full rank nothing is lost.
    rules, params = sum_adapters(BASE, ADAPTERS, (1.0, 0.5, 0.3), "svd", 16)
    for name, leaf in merged(full_rules, full).items():
        np.testing.assert_allclose(merged(rules, params)[name], leaf, atol=5e-6)


def test_linear_adds_the_factors_of_lora():
    two = [(LORA, params_of(LORA, 3)), (LORA, params_of(LORA, 4))]
    rules, params = sum_adapters(BASE, two, (0.5, 2.0), "linear")
    q = params["layers"]["self_attn"]["q_proj"]
    for leaf in ("lora_a", "lora_b"):
        parts = [p["layers"]["self_attn"]["q_proj"][leaf].astype(float) for _, p in two]
        wanted = np.sqrt(0.5 * 1.5) * parts[0] + np.sqrt(2.0 * 1.5) * parts[1]
        np.testing.assert_allclose(q[leaf], wanted, rtol=1e-5, atol=1e-6)
    assert rules.spec_for("layers/self_attn/q_proj").scale == 1


FULL = AdapterRules([("q_proj", AdapterSpec("full"))])
INWARD = AdapterRules([("q_proj", AdapterSpec("dora", norm_axis="in", rank=2))])
PISSA = AdapterRules([("q_proj", AdapterSpec("lora", init="pissa", rank=2))])


@pytest.mark.parametrize(
    ("adapters", "arguments", "problem"),
    [
        (ADAPTERS, {"weights": [1.0]}, "give a weight for each adapter; got 1 for 3"),
        ([], {"weights": []}, "got 0 for 0"),
        (ADAPTERS[:1], {"how": "svd"}, "how='svd' needs a rank"),
        (ADAPTERS[:1], {"rank": 3}, "and no other does; got 3"),
        (ADAPTERS[:1], {"how": "linear"}, "adapter 0, module 'layers/mlp/down_proj': is tuned by"),
        ([(FULL, params_of(FULL, 1))], {}, "trains weights or biases of its own; merge it first"),
        ([(INWARD, params_of(INWARD, 1))], {}, "has magnitudes of its inputs"),
        ([(PISSA, params_of(PISSA, 1))], {}, "its init 'pissa' changed the base weights"),
        ([(DORA, BASE)], {}, "holds no lora_a, lora_b, magnitude"),
        (
            [(LORA, params_of(LORA, 1))] * 2,
            {"how": "linear", "weights": [1.0, -1.0]},
            "takes roots of weights",
        ),
    ],
)
def test_what_cannot_be_added_is_refused(adapters, arguments, problem):
    with pytest.raises(DoraError) as caught:
        sum_adapters(BASE, adapters, **{"weights": [1.0] * len(adapters)} | arguments)
    assert problem in str(caught.value)
