import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze
from hypothesis import given
from hypothesis import strategies as st

from dora_jax.partition import (
    combine,
    count_parameters,
    iter_modules,
    masked_optimizer,
    module_specs,
    partition,
    trainable_leaves,
    trainable_mask,
    weight_name,
)
from dora_jax.spec import AdapterRules, AdapterSpec
from tests.training_ways import flat_leaves

DENSE = {"kernel": np.ones((4, 3)), "bias": np.ones(3)}
LORA = {"lora_a": np.ones((4, 2)), "lora_b": np.ones((2, 3))}
DORA = {**LORA, "magnitude": np.ones(3)}
PARAMS = {
    "layers": {"q": {**DENSE, **DORA}, "k": {**DENSE, **LORA}, "norm": {"scale": np.ones(4)}},
    "embed": {"embedding": np.ones((7, 4)), "magnitude": np.ones(4)},
}
ALL = flat_leaves(PARAMS)


def rules(**methods):
    return AdapterRules(
        [
            (name, spec if isinstance(spec, AdapterSpec) else AdapterSpec(spec, rank=2))
            for name, spec in methods.items()
        ]
    )


def chosen(mask):
    return {path for path, train in flat_leaves(mask).items() if train}


def test_without_rules_adapter_leaves_train():
    mask = trainable_mask(PARAMS)
    assert jax.tree.structure(mask) == jax.tree.structure(PARAMS)
    assert {type(leaf) for leaf in jax.tree.leaves(mask)} == {bool}
    assert chosen(mask) == {p for p in ALL if p.split("/")[-1] in DORA}
    assert len(chosen(mask)) == 6


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (AdapterSpec("frozen"), set()),
        (AdapterSpec("frozen", train_bias=True), {"bias"}),
        (AdapterSpec("lora"), {"lora_a", "lora_b"}),
        (AdapterSpec("lora", train_bias=True), {"lora_a", "lora_b", "bias"}),
        (AdapterSpec("dora"), {"lora_a", "lora_b", "magnitude"}),
        (AdapterSpec("magnitude"), {"magnitude"}),
        (AdapterSpec("magnitude", train_bias=True), {"magnitude", "bias"}),
        (AdapterSpec("full"), {"kernel", "bias", "lora_a", "lora_b", "magnitude"}),
    ],
)
def test_what_each_spec_trains(spec, names):
    assert chosen(trainable_mask(PARAMS, rules(q=spec))) == {f"layers/q/{n}" for n in names}
    assert trainable_leaves(spec) is None if spec.method == "full" else True


def test_rules_decide_module_by_module():
    mask = trainable_mask(
        PARAMS, rules(q="magnitude", k="lora", norm="full", embedding="magnitude")
    )
    assert chosen(mask) == {
        "layers/q/magnitude",
        "layers/k/lora_a",
        "layers/k/lora_b",
        "layers/norm/scale",
        "embed/magnitude",
    }


def test_a_module_at_the_root_and_one_below_another():
    params = {**DENSE, "lora_a": 0, "lora_b": 0, "inner": {"scale": 0, "deep": {"kernel": 0}}}
    assert [path for path, _ in iter_modules(params)] == ["", "inner", "inner/deep"]
    assert chosen(trainable_mask(params)) == {"lora_a", "lora_b"}
    assert chosen(trainable_mask(params, rules(deep="full"))) == {"inner/deep/kernel"}
    assert chosen(trainable_mask(params, rules(inner="full"))) == {"inner/scale"}


def test_trees_keep_their_structure():
    """Empty modules, names with slashes, FrozenDicts, shapes in place of arrays."""
    params = {"mlp/~/linear": {"kernel": 0, "lora_a": 0}, "empty": {}}
    mask = trainable_mask(params)
    assert mask == {"mlp/~/linear": {"kernel": False, "lora_a": True}, "empty": {}}
    assert trainable_mask(freeze(PARAMS)) == freeze(trainable_mask(PARAMS))
    shapes = jax.eval_shape(lambda: PARAMS)
    assert trainable_mask(shapes, rules(k="lora")) == trainable_mask(PARAMS, rules(k="lora"))


@pytest.mark.parametrize(
    ("leaves", "expected"),
    [
        (("bias", "kernel", "lora_a"), "kernel"),
        (("lora_a", "embedding"), "embedding"),
        (("bias", "scale"), "scale"),
        (("w", "b"), "w"),
    ],
)
def test_the_weight_of_a_module(leaves, expected):
    assert weight_name(dict.fromkeys(leaves)) == expected


def test_specs_by_module():
    specs = module_specs(PARAMS, rules(q="dora", embedding="magnitude"))
    assert {path: spec.method for path, spec in specs.items()} == {
        "layers/q": "dora",
        "layers/k": "frozen",
        "layers/norm": "frozen",
        "embed": "magnitude",
    }


def test_a_rule_without_a_module_is_an_error():
    with pytest.raises(ValueError, match=r"rule 'qq' matches no module; near misses: .*layers/q"):
        trainable_mask(PARAMS, rules(qq="lora"))


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"k": "dora"}, "'layers/k' has method 'dora' but no magnitude, only kernel, bias, lora_a"),
        ({"norm": "lora"}, "'layers/norm' has method 'lora' but no lora_a, lora_b, only scale"),
        ({"norm": "magnitude"}, "no magnitude, only scale: build the model .* these rules"),
    ],
)
def test_a_module_without_the_leaves_of_its_spec_is_an_error(methods, message):
    with pytest.raises(ValueError, match=message):
        trainable_mask(PARAMS, rules(**methods))


NAMES = st.sampled_from(["a", "b", "kernel", "bias", "lora_a", "lora_b", "magnitude"])
TREES = st.recursive(
    st.integers(0, 99).map(lambda n: np.full((1 + n % 3,), n)),
    lambda children: st.dictionaries(NAMES, children, max_size=4),
    max_leaves=12,
).filter(lambda tree: isinstance(tree, dict))


@given(tree=TREES, data=st.data())
def test_combine_undoes_partition(tree, data):
    mask = jax.tree.map(lambda _: data.draw(st.booleans()), tree)
    trainable, frozen = partition(tree, mask)
    assert len(jax.tree.leaves(trainable)) == sum(jax.tree.leaves(mask))
    assert len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(tree)) - sum(jax.tree.leaves(mask))
    whole = combine(trainable, frozen)
    assert jax.tree.structure(whole) == jax.tree.structure(tree)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(tree), strict=True):
        assert one is other
    assert jax.tree.structure(combine(frozen, trainable)) == jax.tree.structure(tree)


@given(tree=TREES)
def test_the_mask_has_the_tree_s_structure_and_follows_names(tree):
    mask = trainable_mask(tree)
    assert jax.tree.structure(mask) == jax.tree.structure(tree)
    for path, train in flat_leaves(mask).items():
        assert train == (path.split("/")[-1] in ("lora_a", "lora_b", "magnitude"))


def test_partition_puts_each_leaf_on_its_side():
    trainable, frozen = partition({"m": {"x": 1, "y": 2}}, {"m": {"x": True, "y": False}})
    assert trainable == {"m": {"x": 1, "y": None}}
    assert frozen == {"m": {"x": None, "y": 2}}


def test_partition_under_jit_and_grad():
    params = {"x": jnp.array(2.0), "y": jnp.array(3.0)}
    trainable, frozen = partition(params, {"x": True, "y": False})
    gradient = jax.jit(jax.grad(lambda t: combine(t, frozen)["x"] * combine(t, frozen)["y"]))(
        trainable
    )
    assert gradient == {"x": 3.0, "y": None}


def test_another_structure_is_refused():
    with pytest.raises(ValueError, match="kernel"):
        partition({"m": {"kernel": 1, "bias": 2}}, {"m": {"kernel": True}})


def minus_zero_params():
    return {"kernel": jnp.array([-0.0, 0.0, jnp.nan, 1.0]), "lora_a": jnp.ones(2)}


@pytest.mark.parametrize("compiled", [False, True])
def test_the_masked_optimizer_keeps_every_bit_of_frozen_leaves(compiled):
    params = minus_zero_params()
    tx = masked_optimizer(optax.adamw(0.1, weight_decay=0.5), trainable_mask(params))

    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        return optax.apply_updates(params, updates), updates

    after, updates = (jax.jit(step) if compiled else step)(params, tx.init(params))
    assert np.asarray(after["kernel"]).tobytes() == np.asarray(params["kernel"]).tobytes()
    assert not np.any(updates["kernel"])
    assert (after["lora_a"] != params["lora_a"]).all()


def test_the_masked_optimizer_clips_by_the_trainable_part_s_norm():
    params = {"kernel": jnp.ones(2), "lora_a": jnp.ones(2)}
    grads = {"kernel": jnp.full(2, 1e6), "lora_a": jnp.array([0.3, 0.4])}
    tx = masked_optimizer(
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)), trainable_mask(params)
    )
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["lora_a"], [-0.3, -0.4], rtol=1e-6)


def test_the_masked_optimizer_holds_state_for_trainable_leaves_alone():
    params = {"m": {"kernel": jnp.ones((4, 3)), "lora_a": jnp.ones((4, 2))}}
    state = masked_optimizer(optax.adam(0.1), trainable_mask(params)).init(params)
    assert sorted(leaf.shape for leaf in jax.tree.leaves(state)) == [(), (4, 2), (4, 2)]


def test_counts():
    assert count_parameters(PARAMS) == 2 * (12 + 3) + 2 * (8 + 6) + 3 + 4 + 28 + 4
    assert count_parameters(PARAMS, trainable_mask(PARAMS, rules(q="dora"))) == 8 + 6 + 3
    assert count_parameters(jax.eval_shape(lambda: PARAMS), trainable_mask(PARAMS)) == 35
    assert count_parameters(partition(PARAMS, trainable_mask(PARAMS))[0]) == 35
    assert count_parameters({}) == 0


def test_a_buffer_is_trained_by_no_rule():
    params = {"head": {"kernel": 0, "bias": 0, "buffer": 0}}
    for spec in (AdapterSpec("full"), AdapterSpec("frozen", train_bias=True)):
        mask = trainable_mask(params, AdapterRules([("head", spec)]))["head"]
        assert mask == {"kernel": spec.method == "full", "bias": True, "buffer": False}
