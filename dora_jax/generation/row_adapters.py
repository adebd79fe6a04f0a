"""Each row of a batch by its own adapter, in a plain model.

The leaves of the rows' adapters are given in the `norms` collection, which the model's scan over
layers slices as it slices parameters. While `row_adapters` is on, a `Dense` that finds its leaves
there computes, for row b,

    y = c_out[b] ((c_in[b] x) W + (c_in[b] x) A[b] B[b]) + bias

so that the product with W stays one product of all rows.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dora_jax.kernel_layout import sum_dtype
from dora_jax.layers import NORMS, Dense

# Names of the leaves of a module: (B, in, r), (B, r, out), (B, in), (B, out); layers come first.
ROW_A, ROW_B, ROW_IN, ROW_OUT = "row_lora_a", "row_lora_b", "row_scale_in", "row_scale_out"


@contextlib.contextmanager
def row_adapters() -> Iterator[None]:
    """Let a model that is applied inside use the rows' adapters, where there are any."""
    with nn.intercept_methods(_intercept):
        yield


def _intercept(
    call: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    module = context.module
    if not isinstance(module, Dense) or context.method_name != "__call__":
        return call(*args, **kwargs)
    leaves: dict[str, jax.Array] = {
        name: module.get_variable(NORMS, name)
        for name in (ROW_A, ROW_B, ROW_IN, ROW_OUT)
        if module.has_variable(NORMS, name)
    }
    return _dense(module, leaves, *args, **kwargs) if leaves else call(*args, **kwargs)


def _dense(module: Dense, leaves: dict[str, jax.Array], inputs: jax.Array) -> jax.Array:
    kernel: Any = nn.meta.unbox(module.get_variable("params", "kernel"))
    bias: Any = module.get_variable("params", "bias") if module.use_bias else None
    promoted: Any = module.promote_dtype(inputs, kernel, bias, dtype=module.dtype)
    x, kernel, bias = promoted
    wide, dtype = sum_dtype(x), x.dtype

    def spread(scale_BF: jax.Array) -> jax.Array:
        return scale_BF.reshape(scale_BF.shape[0], *(1,) * (x.ndim - 2), scale_BF.shape[1])

    def dot(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.einsum(
            equation, x, w.astype(dtype), precision=module.precision, preferred_element_type=wide
        )

    if ROW_IN in leaves:
        x = (x * spread(leaves[ROW_IN])).astype(dtype)
    z = dot("...i,io->...o", x, kernel)
    if ROW_A in leaves:
        low = dot("b...i,bir->b...r", x, leaves[ROW_A]).astype(dtype)
        z = z + dot("b...r,bro->b...o", low, leaves[ROW_B])
    if ROW_OUT in leaves:
        z = z * spread(leaves[ROW_OUT])
    y = z.astype(dtype)
    return y if bias is None else y + bias
