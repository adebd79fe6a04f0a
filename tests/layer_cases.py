"""Every kind of layer, with Flax's own beside it: shared by the tests of layers."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dora_jax import layers
from dora_jax.spec import AdapterSpec
from tests import reference
from tests.reference import Layout


class Case(NamedTuple):
    """A layer: ours and Flax's, their fields, an input's shape and the kernel's layout."""

    ours: Any
    flax: Any
    fields: dict
    input_shape: tuple[int, ...]
    layout: Layout

    def adapted(self, adapter, **fields):
        return self.ours(**self.fields, adapter=adapter, **fields)

    def plain(self, **fields):
        return self.flax(**self.fields, **fields)

    def inputs(self, dtype="float32", seed=0):
        return jnp.asarray(np.random.default_rng(seed).normal(size=self.input_shape), dtype)


def _dense(input_shape, **fields):
    fields = {"features": 6, **fields}
    layout = Layout((input_shape[-1], fields["features"]), 1)
    return Case(layers.Dense, nn.Dense, fields, input_shape, layout)


def _general(input_shape, kernel_shape, in_ndim, stack_ndim=0, **fields):
    layout = Layout(kernel_shape, in_ndim, stack_ndim)
    return Case(layers.DenseGeneral, nn.DenseGeneral, fields, input_shape, layout)


def _conv(input_shape, kernel_shape, **fields):
    layout = Layout(kernel_shape, len(kernel_shape) - 1)
    fields = {"features": kernel_shape[-1], "kernel_size": kernel_shape[:-2], **fields}
    return Case(layers.Conv, nn.Conv, fields, input_shape, layout)


CASES = {
    "dense": _dense((2, 5, 4)),
    "dense, no bias": _dense((3, 4), use_bias=False),
    "dense, a vector": _dense((4,)),
    "dense, one output": _dense((3, 4), features=1),
    "general, last axis": _general((2, 3, 4), (4, 5, 6), 1, features=(5, 6)),
    "general, last two": _general((2, 3, 4), (3, 4, 5, 6), 2, features=(5, 6), axis=(-2, -1)),
    # Flax sorts the axes.
    "general, swapped": _general((2, 3, 4), (3, 4, 5), 2, features=5, axis=(-1, 1)),
    "general, first axis": _general((3, 2, 4), (3, 5), 1, features=5, axis=0),
    "general, batch": _general(
        (2, 3, 4), (2, 4, 5, 6), 1, 1, features=(5, 6), axis=-1, batch_dims=(0,)
    ),
    "general, batch of two, swapped": _general(
        (2, 3, 4, 5), (2, 3, 4, 5, 6), 2, 2, features=6, axis=(3, 2), batch_dims=(0, 1)
    ),
    "conv": _conv((2, 8, 4), (3, 4, 6)),
    "conv, no bias": _conv((2, 8, 4), (3, 4, 6), use_bias=False),
    "conv, one image": _conv((8, 4), (3, 4, 6), padding="VALID"),
    "conv, strides, dilation": _conv(
        (2, 9, 4), (2, 4, 6), strides=2, kernel_dilation=2, input_dilation=2, padding=((2, 2),)
    ),
    "conv, groups": _conv((2, 8, 4), (3, 2, 6), feature_group_count=2),
    "conv, depthwise": _conv((2, 8, 4), (3, 1, 8), feature_group_count=4),
    "conv, causal": _conv((2, 8, 4), (3, 4, 6), padding="CAUSAL"),
    "conv, circular 2-D": _conv((2, 5, 6, 3), (3, 2, 3, 4), padding="CIRCULAR"),
    "conv, reflect, two batch axes": _conv((2, 1, 5, 6, 3), (3, 2, 3, 4), padding="REFLECT"),
}
# One of each kind, for the costlier checks.
FEW = ["dense", "general, swapped", "general, batch", "conv, groups"]


def random_params(case, spec, dtype="float32", seed=0, size=0.5):
    """Parameters of an adapted layer, with an adapter far from the fresh one."""
    rng = np.random.default_rng(seed)
    layout = case.layout
    # The layers initialise kernels, with fan-in; here sizes only need to be near 1.
    kernel = rng.normal(size=layout.shape) / np.sqrt(np.prod(layout.in_shape))
    params = {"kernel": kernel}
    if case.fields.get("use_bias", True):
        params["bias"] = rng.normal(size=layout.stack_shape + layout.out_shape)
    adapter = reference.random_adapter(rng, layout, spec.rank, spec.norm_axis, kernel, size)
    if case.ours is layers.Conv:
        adapter["lora_b"] = adapter["lora_b"].reshape(spec.rank, -1)
    params |= (
        {"lora_a": adapter["lora_a"], "lora_b": adapter["lora_b"]} if spec.has_low_rank else {}
    )
    params |= {"magnitude": adapter["magnitude"]} if spec.has_magnitude else {}
    return {name: jnp.asarray(value, dtype) for name, value in params.items()}


def merged_params(case, params, spec):
    """Parameters of Flax's layer that holds the merged kernel, by the float64 reference."""
    adapter = {n: v for n, v in params.items() if n not in ("kernel", "bias")}
    s = reference.scale(spec.alpha, spec.rank, spec.scaling)
    kernel = reference.merged(params["kernel"], adapter, s, case.layout, spec.norm_axis)
    plain = {"kernel": jnp.asarray(kernel, params["kernel"].dtype)}
    return plain | ({"bias": params["bias"]} if "bias" in params else {})


def run(module, params, *args, **options):
    return module.apply({"params": params}, *args, **options)


SPEC = AdapterSpec("dora", rank=3, alpha=1.5)
jit_apply = jax.jit(run, static_argnums=0)
