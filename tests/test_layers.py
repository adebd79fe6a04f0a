import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax import layers
from dora_jax.decomposition import column_sq_norm, merge_kernel
from dora_jax.factored_norm import adapted_norm
from dora_jax.spec import FROZEN, AdapterRules, AdapterSpec
from tests import reference
from tests.layer_cases import (
    CASES,
    FEW,
    SPEC,
    jit_apply,
    merged_params,
    random_params,
    run,
)

AXES = ["out", "in"]
METHODS = ["lora", "dora", "magnitude"]


@pytest.mark.parametrize("adapter", [None, FROZEN, AdapterSpec("full"), AdapterRules([])])
@pytest.mark.parametrize("name", CASES)
def test_without_an_adapter_a_layer_is_flax_own(name, adapter):
    case = CASES[name]
    ours, plain, x = case.adapted(adapter), case.plain(), case.inputs()
    key = jax.random.key(0)
    initial = [jax.make_jaxpr(module.init, return_shape=True)(key, x) for module in (ours, plain)]
    assert initial[0][1] == initial[1][1]
    assert str(initial[0][0]) == str(initial[1][0])
    shapes = initial[1][1]
    assert str(jax.make_jaxpr(ours.apply)(shapes, x)) == str(jax.make_jaxpr(plain.apply)(shapes, x))


def test_without_an_adapter_numbers_are_flax_own_bit_for_bit():
    for name in FEW:
        case = CASES[name]
        x = case.inputs()
        params = jax.jit(case.plain().init)(jax.random.key(0), x)["params"]
        np.testing.assert_array_equal(
            jit_apply(case.adapted(None), params, x), jit_apply(case.plain(), params, x)
        )


@pytest.mark.parametrize("name", CASES)
def test_shapes_of_an_adapters_parameters(name):
    case, key = CASES[name], jax.random.key(0)
    adapted = jax.eval_shape(case.adapted(SPEC).init, key, case.inputs())["params"]
    plain = jax.eval_shape(case.plain().init, key, case.inputs())["params"]
    layout = case.layout
    assert plain["kernel"].shape == layout.shape
    assert {name: leaf.shape for name, leaf in adapted.items()} == {
        **{name: leaf.shape for name, leaf in plain.items()},
        "lora_a": (*layout.stack_shape, *layout.in_shape, 3),
        "lora_b": (*layout.stack_shape, 3, *layout.out_shape),
        "magnitude": (*layout.stack_shape, *layout.out_shape),
    }


@pytest.mark.parametrize(
    ("name", "norm_axis"), [("general, swapped", "in"), ("conv, groups", "out")]
)
def test_an_adapter_leaves_flax_initial_parameters_and_outputs(name, norm_axis):
    case = CASES[name]
    spec = dataclasses.replace(SPEC, norm_axis=norm_axis)
    ours, plain, x = case.adapted(spec), case.plain(), case.inputs()
    adapted = jax.jit(ours.init)(jax.random.key(1), x)["params"]
    expected = jax.jit(plain.init)(jax.random.key(1), x)["params"]
    for leaf, value in expected.items():
        # The same key; the compiler may fuse the two programs differently.
        np.testing.assert_allclose(adapted[leaf], value, rtol=1e-5, atol=1e-7)
    assert adapted["lora_a"].any()
    assert not adapted["lora_b"].any()
    norms = reference.norm(adapted["kernel"], case.layout, norm_axis)
    np.testing.assert_allclose(adapted["magnitude"], norms, rtol=1e-6)
    # Made under jit, merged outside of it.
    adapter = {k: v for k, v in adapted.items() if k not in expected}
    np.testing.assert_array_equal(merge_kernel(adapted["kernel"], adapter, spec), adapted["kernel"])
    np.testing.assert_allclose(
        jit_apply(ours, adapted, x), jit_apply(plain, expected, x), rtol=1e-5, atol=1e-6
    )


def test_lora_and_dora_of_one_key_start_from_the_same_factors():
    case = CASES["dense"]
    dora, lora = (
        jax.jit(case.adapted(AdapterSpec(method, rank=3)).init)(jax.random.key(0), case.inputs())[
            "params"
        ]
        for method in ("dora", "lora")
    )
    assert set(dora) - set(lora) == {"magnitude"}
    for leaf, value in lora.items():
        np.testing.assert_allclose(dora[leaf], value, rtol=1e-5, atol=1e-7)


# The scale of the outputs in every layer; that of the inputs differs with the axes of x alone.
@pytest.mark.parametrize(
    ("name", "norm_axis"),
    [(name, "out") for name in CASES]
    + [(name, "in") for name in CASES if "conv" not in name or name == "conv, groups"],
)
def test_forward_equals_flax_layer_with_the_merged_kernel(name, norm_axis):
    case = CASES[name]
    spec = dataclasses.replace(SPEC, norm_axis=norm_axis)
    params, x = random_params(case, spec), case.inputs()
    y = jit_apply(case.adapted(spec), params, x)
    expected = jit_apply(case.plain(), merged_params(case, params, spec), x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm_axis", AXES)
@pytest.mark.parametrize("method", ["lora", "magnitude"])
@pytest.mark.parametrize("name", FEW)
def test_the_other_methods(name, method, norm_axis):
    case = CASES[name]
    spec = AdapterSpec(method, rank=3, alpha=2.0, scaling="rslora", norm_axis=norm_axis)
    params, x = random_params(case, spec), case.inputs()
    y = jit_apply(case.adapted(spec), params, x)
    expected = jit_apply(case.plain(), merged_params(case, params, spec), x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "norm_axis"), list(zip(FEW, AXES * 2, strict=True)))
def test_bfloat16_compute_over_float32_parameters(name, norm_axis):
    case = CASES[name]
    spec = dataclasses.replace(SPEC, norm_axis=norm_axis)
    params, x = random_params(case, spec), case.inputs()
    module = case.adapted(spec, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    assert all(p.dtype == jnp.float32 for p in shapes.values())
    y = jit_apply(module, params, x)
    assert y.dtype == jnp.bfloat16
    expected = jit_apply(case.plain(), merged_params(case, params, spec), x)
    np.testing.assert_allclose(y.astype("float32"), expected, atol=0.02 * jnp.abs(expected).max())


def test_bfloat16_output_is_rounded_once():
    # m is the norm times 1.003: rounded in bfloat16 on the way, c would be 1 or 1.0078.
    case = CASES["dense, no bias"]
    spec = AdapterSpec("magnitude")
    params = random_params(case, spec, "bfloat16")
    params["magnitude"] = np.float32(1.003) * reference.norm(
        params["kernel"], case.layout, "out"
    ).astype("float32")
    x = case.inputs("bfloat16")
    y = run(case.adapted(spec), params, x)
    exact = 1.003 * reference.wide(x) @ reference.wide(params["kernel"])
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, jnp.asarray(exact, "bfloat16"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_magnitude_is_float32_over_narrow_parameters(dtype):
    case = CASES["dense"]
    spec = AdapterSpec("dora", rank=2, param_dtype=dtype)
    module = case.adapted(spec, param_dtype=dtype)
    params = jax.eval_shape(module.init, jax.random.key(0), case.inputs())["params"]
    assert params["kernel"].dtype == params["lora_a"].dtype == params["lora_b"].dtype == dtype
    assert params["magnitude"].dtype == jnp.float32


def norms_of(case, params, spec):
    sq_norm = column_sq_norm(params["kernel"], spec.norm_axis, **case.layout.axes)
    norms = {"kernel_sq_norm": sq_norm}
    if spec.has_low_rank:
        norms["norm"] = adapted_norm(
            params["kernel"],
            params["lora_a"],
            params["lora_b"],
            spec.scale,
            spec.norm_axis,
            sq_norm,
            stack_ndim=case.layout.stack_ndim,
        )
    return norms


@pytest.mark.parametrize(
    ("method", "norm_axis"), [("dora", "out"), ("dora", "in"), ("magnitude", "out")]
)
@pytest.mark.parametrize("name", ["general, batch", "conv, groups"])
def test_given_norms_are_the_same_numbers_and_are_used(name, method, norm_axis):
    case = CASES[name]
    spec = AdapterSpec(method, rank=3, norm_axis=norm_axis)
    params, x = random_params(case, spec), case.inputs()
    norms = jax.jit(lambda params: norms_of(case, params, spec))(params)
    module = case.adapted(spec, **({"use_bias": False} if "bias" in params else {}))
    params.pop("bias", None)
    apply = jax.jit(lambda norms: module.apply({"params": params, "norms": norms}, x))
    own = jit_apply(module, params, x)
    np.testing.assert_allclose(apply(norms), own, rtol=1e-5, atol=1e-6)
    used = "norm" if method == "dora" else "kernel_sq_norm"
    factor = 2 if method == "dora" else 4
    doubled = apply(norms | {used: factor * norms[used]})
    np.testing.assert_allclose(doubled, own / 2, rtol=1e-5, atol=1e-6)


def test_the_exact_norm_is_never_taken_from_outside():
    case = CASES["dense"]
    spec = dataclasses.replace(SPEC, detach_norm=False)
    params, x = random_params(case, spec), case.inputs()
    norms = norms_of(case, params, spec)
    norms["norm"] = 3 * norms["norm"]
    y = case.adapted(spec).apply({"params": params, "norms": norms}, x)
    np.testing.assert_allclose(y, run(case.adapted(spec), params, x), rtol=1e-6)
    # The square norm, which does not change, is taken.
    norms["kernel_sq_norm"] = norms["kernel_sq_norm"] + 50.0
    other = case.adapted(spec).apply({"params": params, "norms": norms}, x)
    assert jnp.abs(other - y).max() > 0.1


@pytest.mark.parametrize("name", ["dense", "conv"])
def test_a_product_of_the_users_own_is_refused(name):
    case = CASES[name]
    field = "dot_general" if name == "dense" else "conv_general_dilated"
    for given in ({field: jax.lax.dot_general}, {f"{field}_cls": object}):
        with pytest.raises(ValueError, match=f"{field} and {field}_cls cannot be given"):
            case.adapted(SPEC, **given).init(jax.random.key(0), case.inputs())


def test_a_frozen_layer_takes_a_product_of_the_users_own():
    calls = []

    def dot_general(*args, **options):
        calls.append(args)
        return jax.lax.dot_general(*args, **options)

    case = CASES["dense"]
    case.adapted(FROZEN, dot_general=dot_general).init(jax.random.key(0), case.inputs())
    assert calls


def test_a_convolution_with_a_mask_is_refused():
    case = CASES["conv"]
    module = case.adapted(SPEC, mask=jnp.ones(case.layout.shape))
    with pytest.raises(ValueError, match="cannot hold a kernel mask"):
        module.init(jax.random.key(0), case.inputs())


def test_a_layer_may_be_called_twice():
    class Net(nn.Module):
        def setup(self):
            self.layer = layers.Dense(4, use_bias=False, adapter=SPEC)

        def __call__(self, x):
            return self.layer(self.layer(x))

    x = CASES["dense"].inputs()
    params = Net().init(jax.random.key(0), x)["params"]
    np.testing.assert_allclose(
        run(Net(), params, x), x @ params["layer"]["kernel"] @ params["layer"]["kernel"], rtol=1e-4
    )


def test_boxed_parameters():
    case = CASES["dense"]
    initial = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    module = case.adapted(SPEC, kernel_init=initial)
    params = module.init(jax.random.key(0), case.inputs())["params"]
    assert isinstance(params["kernel"], nn.Partitioned)
    y = run(module, params, case.inputs())
    np.testing.assert_array_equal(y, run(module, nn.meta.unbox(params), case.inputs()))


def test_precision_reaches_every_product():
    case = CASES["dense"]
    module = case.adapted(SPEC, precision=jax.lax.Precision.HIGH)
    params = random_params(case, SPEC)
    text = str(jax.make_jaxpr(lambda x: run(module, params, x))(case.inputs()))
    high = text.count("precision=(Precision.HIGH, Precision.HIGH)") + text.count(
        "precision=Precision.HIGH\n"
    )
    assert high == 3, text


class Net(nn.Module):
    """Two layers scanned over depth, in a named block: paths are layers/attn/q and layers/up."""

    rules: AdapterRules | None
    remat: bool = False
    depth: int = 3

    @nn.compact
    def __call__(self, x):
        rules = self.rules

        class Attention(nn.Module):
            @nn.compact
            def __call__(self, x):
                return layers.Dense(4, name="q", adapter=rules)(x)

        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                x = Attention(name="attn")(x)
                return jnp.tanh(layers.Dense(4, name="up", adapter=rules)(x)), None

        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        scan = nn.scan(
            block,
            variable_axes={"params": 0, "norms": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.depth,
        )
        return scan(name="layers")(x, None)[0]


RULES = AdapterRules(
    [("attn/q", AdapterSpec("dora", rank=2)), ("layers/up", AdapterSpec("magnitude"))]
)


@pytest.mark.parametrize("remat", [False, True])
def test_rules_find_their_modules_inside_scan_and_remat(remat):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), "float32")
    net = Net(RULES, remat)
    params = jax.jit(net.init)(jax.random.key(0), x)["params"]["layers"]
    q, up = params["attn"]["q"], params["up"]
    assert {k: v.shape for k, v in q.items()} == {
        "kernel": (3, 4, 4),
        "bias": (3, 4),
        "lora_a": (3, 4, 2),
        "lora_b": (3, 2, 4),
        "magnitude": (3, 4),
    }
    assert {k: v.shape for k, v in up.items()} == {
        "kernel": (3, 4, 4),
        "bias": (3, 4),
        "magnitude": (3, 4),
    }
    # Layers differ, and each has the norms of its own kernel.
    assert not (q["lora_a"][0] == q["lora_a"][1]).any()
    np.testing.assert_allclose(q["magnitude"], jnp.linalg.norm(q["kernel"], axis=1), rtol=1e-5)

    rng = np.random.default_rng(1)
    q["lora_b"] = jnp.asarray(rng.normal(size=(3, 2, 4)), "float32")
    q["magnitude"] = q["magnitude"] * jnp.asarray(rng.uniform(0.5, 2, (3, 4)), "float32")
    up["magnitude"] = up["magnitude"] * jnp.asarray(rng.uniform(0.5, 2, (3, 4)), "float32")
    expected = reference.wide(x)
    for layer in range(3):
        for leaves, spec in ((q, RULES.rules[0][1]), (up, RULES.rules[1][1])):
            one = {k: v[layer] for k, v in leaves.items()}
            adapter = {k: v for k, v in one.items() if k not in ("kernel", "bias")}
            layout = reference.Layout((4, 4), 1)
            kernel = reference.merged(one["kernel"], adapter, spec.scale, layout, "out")
            expected = expected @ kernel + reference.wide(one["bias"])
        expected = np.tanh(expected)
    params = {"layers": {"attn": {"q": q}, "up": up}}

    def loss(params, net):
        return jnp.sum(net.apply({"params": params}, x) ** 2)

    np.testing.assert_allclose(jit_apply(net, params, x), expected, rtol=1e-4, atol=1e-5)
    gradients = jax.jit(jax.grad(loss), static_argnums=1)(params, net)
    plain = jax.jit(jax.grad(loss), static_argnums=1)(params, Net(RULES, False))
    assert all(g.any() for g in jax.tree.leaves(gradients))
    jax.tree.map(
        lambda g, p: np.testing.assert_allclose(g, p, rtol=1e-4, atol=1e-5), gradients, plain
    )


def test_without_rules_the_scanned_net_is_plain():
    x = jnp.ones((5, 4))
    shapes = jax.eval_shape(Net(None).init, jax.random.key(0), x)["params"]["layers"]
    assert set(shapes["attn"]["q"]) == set(shapes["up"]) == {"kernel", "bias"}


@pytest.mark.parametrize("norm_axis", AXES)
def test_vmapped_over_adapters_and_inputs(norm_axis):
    case = CASES["dense"]
    spec = dataclasses.replace(SPEC, norm_axis=norm_axis)
    module = case.adapted(spec)
    each = [random_params(case, spec, seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    x = jnp.stack([case.inputs(seed=seed) for seed in range(3)])

    def gradient(params, x):
        return jax.grad(lambda p: jnp.sum(run(module, p, x) ** 2))(params)

    many = jax.jit(jax.vmap(gradient))(stacked, x)
    one = jax.jit(gradient)
    for index in range(3):
        expected = one(each[index], x[index])
        for leaf, value in expected.items():
            np.testing.assert_allclose(many[leaf][index], value, rtol=1e-4, atol=1e-5)


def test_linen_vmap_stacks_adapters():
    mapped = nn.vmap(
        layers.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, axis_size=3
    )
    x = jnp.ones((3, 5, 4))
    params = jax.jit(mapped(6, adapter=SPEC).init)(jax.random.key(0), x)["params"]
    assert params["lora_a"].shape == (3, 4, 3)
    np.testing.assert_allclose(
        params["magnitude"], jnp.linalg.norm(params["kernel"], axis=1), rtol=1e-5
    )
