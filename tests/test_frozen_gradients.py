"""No gradient of a frozen kernel is computed: neither in the jaxpr nor in the compiled step."""

import functools

import jax
import jax.numpy as jnp
import pytest

from dora_jax import factored_norm
from dora_jax.adapters import column_norms
from dora_jax.layers import NORMS
from dora_jax.partition import combine, partition, trainable_mask
from dora_jax.spec import AdapterRules
from tests import hlo, small_net, tiny
from tests.jaxprs import equations
from tests.small_net import RULES, rules_of, spec
from tests.training_ways import Task, make_step

# Each kernel, and the matrix that a compiler may make of it, with their axes sorted.
FORMS = {
    "embed": {(4, 12)},
    "conv": {(3, 4, 6), (6, 12)},
    "general": {(2, 4, 6), (6, 8)},
    "head": {(8, 10)},
}
TUNED = [name for name in RULES if name != "full"]
PRODUCTS = ("dot", "convolution", "custom-call", "scatter")
# The one exception: no scaling of a convolution's inputs equals one of its kernel's inputs, so its
# magnitude on that axis gets its gradient by way of the scaled kernel's.
EXCEPTIONS = {"mixed": {"conv"}}


def kernels_among(shapes):
    return {name for name, forms in FORMS.items() if forms & set(shapes)}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Let the direct norm of nearly cancelling kernels run in tiles of one row.

    Its tiles of real size would hold the whole of a kernel this small.
    """
    monkeypatch.setattr(factored_norm, "_TILE_ELEMENTS", 1)


def small_task(rules):
    net, params = small_net.adapted(rules)
    return Task(functools.partial(small_net.loss_of, net), params, rules, [small_net.batch(0)])


def computed_in_the_gradient(task, with_norms):
    """Return the squeezed shapes of all products and scatters of the gradient's jaxpr."""
    train, frozen = partition(task.params, trainable_mask(task.params, task.rules))
    variables = {NORMS: column_norms(task.params, task.rules)} if with_norms else {}

    def loss(train):
        return task.loss({"params": combine(train, frozen), **variables}, *task.batches[0])

    jaxpr = jax.make_jaxpr(jax.grad(loss))(train)
    names = ("dot_general", "conv_general_dilated", "scatter-add", "scatter_add")
    return {
        hlo.squeezed(e.outvars[0].aval.shape) for e in equations(jaxpr) if e.primitive.name in names
    }


@pytest.mark.parametrize("with_norms", [True, False])
@pytest.mark.parametrize("name", TUNED)
def test_jaxpr_of_the_trainable_part_s_gradient(name, with_norms):
    found = computed_in_the_gradient(small_task(RULES[name]), with_norms)
    assert kernels_among(found) == EXCEPTIONS.get(name, set())
    assert len(found) > 5


@pytest.mark.parametrize("module", FORMS)
def test_the_gradient_of_a_tuned_kernel_would_be_seen(module):
    """Without this, the test above could look for the wrong thing."""
    found = computed_in_the_gradient(small_task(rules_of(**{module: spec("full")})), True)
    assert kernels_among(found) == {module}


def compiled_products(task, way):
    step, start = make_step(task, way)
    text = jax.jit(step).lower(*start, *task.batches[0]).compile().as_text()
    return {hlo.squeezed(shape) for shape in hlo.result_shapes(text, *PRODUCTS)}


@pytest.mark.parametrize(
    ("name", "way"), [("dora, exact", "partition"), ("dora", "masked"), ("mixed", "masked")]
)
def test_the_compiled_step_has_no_product_of_a_frozen_kernel_s_shape(name, way):
    found = compiled_products(small_task(RULES[name]), way)
    assert kernels_among(found) == EXCEPTIONS.get(name, set())
    assert len(found) > 5


def test_the_compiled_step_of_full_tuning_has_them_all():
    found = compiled_products(small_task(RULES["full"]), "masked")
    assert kernels_among(found) == set(FORMS)


def llama_loss(model, variables, tokens):
    logits = model.apply(variables, tokens)
    log_probs = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1).mean()


# What a scan returns or carries in its backward is there as well: (layers, in, out).
LLAMA_KERNELS = {
    "attention": (32, 32),
    "key, value": (16, 32),
    "mlp": (32, 48),
    "embedding": (32, 101),
}


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("method", ["lora", "dora", "magnitude", "full"])
def test_the_scanned_llama_accumulates_no_kernel_gradient(method, remat):
    rules = AdapterRules.preset("all-linear", spec(method))
    model, params = tiny.adapted_params(rules, remat=remat)
    tokens = jnp.zeros((2, 7), jnp.int32)
    train, frozen = partition(params, trainable_mask(params, rules))
    norms = column_norms(params, rules)

    def loss(train):
        return llama_loss(model, {"params": combine(train, frozen), NORMS: norms}, tokens)

    jaxpr = jax.make_jaxpr(jax.grad(loss))(train)
    computed = [
        hlo.squeezed(out.aval.shape)
        for e in equations(jaxpr)
        if e.primitive.name in ("dot_general", "scatter-add", "add_any", "scan")
        for out in e.outvars
    ]
    stacked = {(2, *shape) for shape in LLAMA_KERNELS.values()}
    seen = {shape for shape in computed if shape in stacked or shape in LLAMA_KERNELS.values()}
    if method == "full":
        assert seen == (stacked | set(LLAMA_KERNELS.values())) - {(32, 101), (2, 32, 101)}
    else:
        assert not seen
