"""Kernels of any number of axes as (stack, in, out) matrices: how every function here sees them.

A kernel's axes are, in this order: `stack_ndim` stack axes (scanned layers, DenseGeneral's batch
dimensions: every stacked kernel is a kernel of its own), `in_ndim` input axes (a convolution's
window and channels count as inputs), and the output axes. `norm_axis="in"` is `"out"` on the
transposed matrices.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from dora_jax.spec import NormAxis


class KernelLayout(NamedTuple):
    """How many leading axes of a kernel are stacks of kernels, and how many are inputs."""

    stack_ndim: int
    in_ndim: int


def sum_dtype(kernel: Array) -> jnp.dtype:
    """Return the dtype of norms and merges: float32, or float64 for a float64 kernel."""
    return jnp.promote_types(kernel.dtype, jnp.float32)


def kernel_layout(kernel: Array, in_ndim: int | None, stack_ndim: int) -> KernelLayout:
    """Return how a kernel's axes are counted; `in_ndim` None is all but the last one.

    Raises:
        ValueError: when it has not so many axes.
    """
    if in_ndim is None:
        in_ndim = kernel.ndim - stack_ndim - 1
    if stack_ndim < 0 or in_ndim < 1 or stack_ndim + in_ndim >= kernel.ndim:
        raise ValueError(
            f"a kernel of shape {kernel.shape} has no {stack_ndim} stack axes, {in_ndim} input "
            "axes and at least one output axis"
        )
    return KernelLayout(stack_ndim, in_ndim)


def as_matrix(array: Array, first: int, second: int) -> Array:
    """View an array as (stack, rows, columns), split at axes `first` and `second`."""
    shape = array.shape
    return array.reshape(
        math.prod(shape[:first]), math.prod(shape[first:second]), math.prod(shape[second:])
    )


def as_columns(kernel: Array, layout: KernelLayout, norm_axis: NormAxis) -> Array:
    """View a kernel as (stack, summed, kept): each vector along `summed` has one norm."""
    stack, in_ndim = layout
    matrix = as_matrix(kernel, stack, stack + in_ndim)
    return matrix if norm_axis == "out" else matrix.swapaxes(1, 2)


def kept_shape(kernel: Array, layout: KernelLayout, norm_axis: NormAxis) -> tuple[int, ...]:
    """Return the shape of a kernel's norms: stack and output axes, or stack and input axes."""
    stack, in_ndim = layout
    shape = kernel.shape
    if norm_axis == "out":
        return shape[:stack] + shape[stack + in_ndim :]
    return shape[: stack + in_ndim]


def spread(vector: Array, kernel: Array, layout: KernelLayout, norm_axis: NormAxis) -> Array:
    """Reshape a per-column vector so that it multiplies the kernel's columns."""
    stack, in_ndim = layout
    shape = kernel.shape
    ones_in, ones_out = (1,) * in_ndim, (1,) * (len(shape) - stack - in_ndim)
    if norm_axis == "out":
        return vector.reshape(shape[:stack] + ones_in + shape[stack + in_ndim :])
    return vector.reshape(shape[: stack + in_ndim] + ones_out)


def safe_sqrt(squares: Array) -> Array:
    """Return the square root, with gradient 0 instead of infinity at 0."""
    live = squares > 0
    return jnp.where(live, jnp.sqrt(jnp.where(live, squares, 1)), 0)
