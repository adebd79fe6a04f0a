"""What DoRA's compiled training step holds beyond LoRA's: nothing of a kernel's shape."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from dora_jax import factored_norm
from dora_jax.adapters import kernel_sq_norms
from dora_jax.models.config import LlamaConfig
from dora_jax.models.llama import Llama, param_shapes
from dora_jax.partition import combine, partition, trainable_mask
from dora_jax.spec import AdapterRules, AdapterSpec
from dora_jax.training.step import Batch, init_state, make_train_step
from tests.hlo import made_of_size
from tests.jaxprs import equations

# Sizes that no two kinds of array share: kernels are (40, 48), (40, 24), (40, 72) and (72, 40).
CONFIG = LlamaConfig(
    vocab_size=97,
    hidden_size=40,
    intermediate_size=72,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
)
KERNELS = [(40, 48), (48, 40), (40, 24), (40, 72), (72, 40)]
ROWS, LENGTH = 2, 5
SPECS = {
    "lora": AdapterSpec("lora", rank=2),
    "dora": AdapterSpec("dora", rank=2),
    "exact": AdapterSpec("dora", rank=2, detach_norm=False),
    "in": AdapterSpec("dora", rank=2, norm_axis="in"),
    "magnitude": AdapterSpec("magnitude"),
}


@pytest.fixture(autouse=True, scope="module")
def small_tiles():
    """Tiles of the direct norm, which nearly cancelling kernels take, of real size hold all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factored_norm, "_TILE_ELEMENTS", 600)
        yield


def step_and_arguments(model):
    """Return a model's training step, and the shapes of its arguments."""
    rules = model.adapters
    shapes = param_shapes(model)
    trainable, frozen = partition(shapes, trainable_mask(shapes, rules))
    tx = optax.adam(1e-3)
    state = jax.eval_shape(lambda t: init_state(t, tx), trainable)
    sq_norms = jax.eval_shape(lambda t, f: kernel_sq_norms(combine(t, f), rules), trainable, frozen)
    ids = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    weights = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = make_train_step(model, rules, tx)
    return step, (state, frozen, sq_norms, Batch(ids, ids, ids, weights), key)


def step_jaxpr(model):
    step, arguments = step_and_arguments(model)
    return jax.make_jaxpr(step)(*arguments)


@functools.cache
def compiled(name, remat="none", layers=3):
    config = LlamaConfig(**{**vars(CONFIG), "num_hidden_layers": layers})
    model = Llama(config, AdapterRules.preset("paper", SPECS[name]), remat=remat)
    step, arguments = step_and_arguments(model)
    return jax.jit(step, donate_argnums=0).lower(*arguments).compile()


def kernel_shaped(name, layers=3):
    """Count the results of a kernel's size that the compiled step computes, by operation."""
    sizes = {size for a, b in KERNELS for size in (a * b, layers * a * b)}
    return made_of_size(compiled(name).as_text(), sizes)


@pytest.mark.parametrize("name", ["dora", "exact", "in", "magnitude"])
def test_no_array_of_a_kernel_s_size_is_made_on_account_of_dora(name):
    extra = kernel_shaped(name) - kernel_shaped("lora")
    assert not extra, extra


def test_the_check_sees_a_kernel_that_is_made(monkeypatch):
    # Merged weights in the step: what DoRA must not do.
    from dora_jax import layers

    def merged(self, x, x_low, kernel, factors, c):
        return self.linear(x, kernel if c is None else kernel * c)

    monkeypatch.setattr(layers._AdaptedProduct, "_product", merged)
    compiled.cache_clear()
    try:
        assert kernel_shaped("dora") - kernel_shaped("lora")
    finally:
        compiled.cache_clear()


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_rematerialised_steps_give_the_same_program_size_at_any_depth(remat):
    def lines(layers):
        return len(compiled("dora", remat, layers).as_text().splitlines())

    # Tiles of the direct norm differ a little; a layer unrolled would add a quarter.
    assert lines(9) < 1.1 * lines(3)


@pytest.mark.parametrize("name", ["lora", "dora", "in", "magnitude"])
def test_no_product_of_a_bfloat16_step_widens_an_operand(name):
    rules = AdapterRules.preset("paper", SPECS[name])
    model = Llama(CONFIG, rules, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    jaxpr = step_jaxpr(model)
    pairs = [
        tuple(v.aval.dtype.name for v in e.invars)
        for e in equations(jaxpr)
        if e.primitive.name == "dot_general"
        # Attention's own products, of four axes, are JAX's.
        and all(v.aval.ndim < 4 for v in e.invars)
    ]
    assert ("bfloat16", "bfloat16") in pairs
    assert all(left == right for left, right in pairs), set(pairs)
