import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest

from dora_jax import factored_norm
from dora_jax.adapters import kernel_sq_norms
from dora_jax.encoder_decoder_cost import encoder_decoder_cost
from dora_jax.models.llama import param_shapes
from dora_jax.models.source import Source, Visual
from dora_jax.models.vlbart import VLBart, VLBartConfig
from dora_jax.partition import combine, partition, trainable_mask
from dora_jax.spec import AdapterRules, AdapterSpec
from dora_jax.training.step import Batch, init_state, make_train_step
from experiments.vlbart.tuned import tuned
from tests.hlo import made_of_size
from tests.test_cost import product_flops

# Sizes that differ: each kind of position and each layer's number tells in the sum.
CONFIG = VLBartConfig(
    vocab_size=97,
    d_model=24,
    encoder_layers=2,
    encoder_attention_heads=2,
    encoder_ffn_dim=40,
    decoder_layers=3,
    decoder_attention_heads=2,
    decoder_ffn_dim=56,
    feature_size=10,
    image_tokens=4,
)
ROWS, SOURCE, TARGET, LABELS, CELLS, RANK = 2, 5, 6, 3, 9, 3
_EVERYTHING = AdapterRules([(".*", AdapterSpec("full"))])
_DECODER = AdapterRules([("decoder/.*/q_proj", AdapterSpec("lora", rank=RANK))])


def of_rank(rules):
    """Return the paper's rules at a rank that is smaller than the kernels."""
    return AdapterRules(
        [(p, dataclasses.replace(s, rank=RANK) if s.has_low_rank else s) for p, s in rules.rules]
    )


def step_and_arguments(model, images):
    """Return a model's training step, and the shapes of its arguments."""
    rules = model.adapters
    shapes = param_shapes(model)
    trainable, frozen = partition(shapes, trainable_mask(shapes, rules))
    tx = optax.sgd(0.1)
    state = jax.eval_shape(lambda t: init_state(t, tx), trainable)
    sq_norms = jax.eval_shape(lambda t, f: kernel_sq_norms(combine(t, f), rules), trainable, frozen)

    def array(*shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(shape, dtype)

    cells = (ROWS, images, CELLS)
    visual = Visual(
        array(*cells, CONFIG.feature_size, dtype=jnp.float32),
        array(*cells, 4, dtype=jnp.float32),
        array(*cells, dtype=bool),
    )
    labels = array(ROWS, LABELS)
    batch = Batch(
        array(ROWS, TARGET),
        labels,
        labels,
        array(ROWS, LABELS, dtype=jnp.float32),
        source=Source(array(ROWS, SOURCE), array(ROWS, SOURCE, dtype=bool), visual),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    return make_train_step(model, rules, tx), (state, frozen, sq_norms, batch, key)


@pytest.mark.parametrize(
    "rules",
    [
        of_rank(tuned("lora", "image")),
        of_rank(tuned("dora", "image")),
        of_rank(tuned("dora", "video")),
        _EVERYTHING,
    ],
    ids=["lora", "dora", "dora-video", "full"],
)
def test_the_formula_counts_the_products_of_the_step(rules):
    images = 2
    model = VLBart(CONFIG, rules)
    visual = images * CONFIG.image_tokens
    cost = encoder_decoder_cost(model, ROWS, SOURCE, TARGET, ROWS * LABELS, visual)
    # Scaling and the norms' two sums over r are no products; of the decoder's own attention all is
    # computed, not the causal half.
    sums = 0.0
    if cost.norms:
        in_encoder, of_source = 2 * CONFIG.encoder_layers, CONFIG.decoder_layers
        in_decoder = 3 * CONFIG.decoder_layers
        sums = (in_encoder + of_source + in_decoder) * CONFIG.d_model * 4 * RANK
        positions = (in_encoder + of_source) * (SOURCE + visual) + in_decoder * TARGET
        assert cost.scaling == 6 * ROWS * positions * CONFIG.d_model
    half = 6.0 * CONFIG.decoder_layers * ROWS * TARGET**2 * CONFIG.d_model
    expected = cost.total - cost.scaling - sums + half
    step, arguments = step_and_arguments(model, images)
    found = product_flops(jax.make_jaxpr(step)(*arguments).jaxpr)
    assert found == pytest.approx(expected, rel=1e-6)


def test_no_array_of_a_kernel_s_size_is_made_on_account_of_dora(monkeypatch):
    # At their real size a tile of the direct norm would hold a whole kernel of this model.
    monkeypatch.setattr(factored_norm, "_TILE_ELEMENTS", 200)
    layers, kernels = {2, 3}, {24 * 24, 24 * 40, 24 * 56}
    sizes = kernels | {n * size for n in layers for size in kernels}

    def made(method):
        model = VLBart(CONFIG, of_rank(tuned(method, "image")), remat="dots")
        step, arguments = step_and_arguments(model, images=2)
        compiled = jax.jit(step, donate_argnums=0).lower(*arguments).compile()
        return made_of_size(compiled.as_text(), sizes)

    extra = made("dora") - made("lora")
    assert not extra, extra


def test_what_nothing_is_trained_of_runs_forward_alone():
    alone = encoder_decoder_cost(VLBart(CONFIG, _DECODER), ROWS, SOURCE, TARGET)
    both = encoder_decoder_cost(VLBart(CONFIG, of_rank(tuned("lora", "image"))), 2, SOURCE, TARGET)
    kernels = CONFIG.encoder_layers * (4 * 24 * 24 + 2 * 24 * 40) + 3 * 2 * 24 * 24
    assert both.kernels - alone.kernels == 2 * ROWS * SOURCE * kernels
    seen = 8 * ROWS * CONFIG.encoder_layers * SOURCE**2 * CONFIG.d_model
    assert both.attention - alone.attention == seen
