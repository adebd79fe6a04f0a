"""DoRA's mathematics as pure functions of arrays: norms, decomposition, merging, adapter init.

Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353. In the kernel
layout (in, out), where `y = x @ W`:

    V  = W + s A B          A: lora_a (in, r), B: lora_b (r, out)
    n  = ||V||              over the input axes (norm_axis="out") or the output axes ("in")
    W' = m V / n = c V      m: magnitude, c = m / n

Kernels may have any number of axes: see `dora_jax.kernel_layout`. Sums are float32, or float64 for
float64 kernels, whatever the kernel's own dtype.
"""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from dora_jax.kernel_layout import (
    KernelLayout,
    as_columns,
    as_matrix,
    kept_shape,
    kernel_layout,
    safe_sqrt,
    spread,
    sum_dtype,
)
from dora_jax.spec import AdapterSpec, Init, NormAxis, takes_from_kernel

# c == 0 would lose z = y / c in the backward pass; 2^-100 loses nothing and is zero to any output.
_SMALLEST_SCALE = 2.0**-100


# What a checkpoint policy may call results: of products with W and of attention, and those of x A
# and W^T A.
PRODUCT, LOW_RANK = "product", "low_rank"


class Decomposition(NamedTuple):
    """A kernel as magnitude times direction: every column of `direction` has norm 1 or 0."""

    magnitude: Array
    direction: Array


def column_sq_norm(
    kernel: Float[Array, "..."],
    norm_axis: NormAxis = "out",
    *,
    in_ndim: int | None = None,
    stack_ndim: int = 0,
) -> Float[Array, "..."]:
    """Return the squared norm of every column of a kernel; arguments as `column_norm`."""
    layout = kernel_layout(kernel, in_ndim, stack_ndim)
    columns = as_columns(kernel, layout, norm_axis).astype(sum_dtype(kernel))
    return jnp.sum(jnp.square(columns), axis=1).reshape(kept_shape(kernel, layout, norm_axis))


def column_norm(
    kernel: Float[Array, "..."],
    norm_axis: NormAxis = "out",
    *,
    in_ndim: int | None = None,
    stack_ndim: int = 0,
) -> Float[Array, "..."]:
    """Return the Euclidean norm of every column of a kernel (paper, equation 2).

    The gradient of a zero column is 0. Squares are summed as they are, so in float32 a norm below
    about 1e-19 counts as 0 and one above 1e19 overflows.

    Args:
        kernel: (*stack, *in, *out), any float dtype.
        norm_axis: "out" sums over the input axes, "in" over the output axes.
        in_ndim: number of input axes; by default all but the stack axes and the last.
        stack_ndim: number of leading axes that stack independent kernels.

    Returns:
        (*stack, *out) for "out" or (*stack, *in) for "in"; float32, or float64 for float64.

    Raises:
        ValueError: when the kernel has not that many axes.

    Example:
        >>> column_norm(jnp.array([[3.0, 0.0], [4.0, 2.0]])).tolist()
        [5.0, 2.0]
    """
    return safe_sqrt(column_sq_norm(kernel, norm_axis, in_ndim=in_ndim, stack_ndim=stack_ndim))


def decompose(
    kernel: Float[Array, "..."],
    norm_axis: NormAxis = "out",
    *,
    in_ndim: int | None = None,
    stack_ndim: int = 0,
) -> Decomposition:
    """Split a kernel into magnitude and unit direction, W = m V / ||V|| (paper, equation 2).

    Arguments and errors are those of `column_norm`. A zero column has magnitude 0, direction 0.

    Returns:
        `magnitude` of the norms' shape and `direction` of the kernel's, both in the norms' dtype.
    """
    layout = kernel_layout(kernel, in_ndim, stack_ndim)
    magnitude = column_norm(kernel, norm_axis, in_ndim=layout.in_ndim, stack_ndim=stack_ndim)
    divisor = spread(jnp.where(magnitude > 0, magnitude, 1), kernel, layout, norm_axis)
    return Decomposition(magnitude, kernel.astype(magnitude.dtype) / divisor)


def compose(
    magnitude: Float[Array, "..."],
    direction: Float[Array, "..."],
    norm_axis: NormAxis = "out",
    *,
    in_ndim: int | None = None,
    stack_ndim: int = 0,
) -> Float[Array, "..."]:
    """Return m V / ||V||, for a direction V of any length (paper, equation 2).

    Args:
        magnitude: (*stack, *out) or (*stack, *in), see `column_norm`.
        direction: (*stack, *in, *out); zero columns stay zero.
        norm_axis: as in `column_norm`, like the rest.
        in_ndim: see `column_norm`.
        stack_ndim: see `column_norm`.

    Returns:
        The kernel, of the direction's shape, in the wider dtype of the two.

    Raises:
        ValueError: when the magnitude's shape does not belong to this norm axis.
    """
    layout = kernel_layout(direction, in_ndim, stack_ndim)
    expected = kept_shape(direction, layout, norm_axis)
    if magnitude.shape != expected:
        raise ValueError(
            f"magnitude of shape {magnitude.shape} does not fit a kernel of shape "
            f"{direction.shape} with norm_axis={norm_axis!r}: expected {expected}"
        )
    unit = decompose(direction, norm_axis, in_ndim=layout.in_ndim, stack_ndim=stack_ndim).direction
    return spread(magnitude, direction, layout, norm_axis) * unit


def magnitude_scale(
    magnitude: Float[Array, "..."],
    norm: Float[Array, "..."],
    kernel_sq_norm: Float[Array, "..."],
) -> Float[Array, "..."]:
    """Return c = m / n per column, and 1 for a column whose kernel is zero.

    Such columns exist in real checkpoints; there m and n start as 0 / 0. With c = 1 they are
    plain LoRA columns, and their magnitude gets no gradient.

    Args:
        magnitude: m, of the norms' shape.
        norm: n = ||V||, see `adapted_norm`; detach it before for the paper's gradient.
        kernel_sq_norm: ||W||^2 of the frozen kernel.
    """
    live = kernel_sq_norm > 0
    return jnp.where(live, magnitude.astype(norm.dtype) / jnp.where(norm > 0, norm, 1), 1)


def stack_scale(spec: AdapterSpec) -> float | Float[Array, " stack"]:
    """Return s, or that of each layer of a stack: 0 for one without an adapter."""
    return spec.scale if spec.layer_scales is None else jnp.asarray(spec.layer_scales)


def only_adapted(c: Float[Array, "..."], scale: float | Array) -> Float[Array, "..."]:
    """Return c, and 1 in layers without an adapter, whose scale s is 0: nothing trains there.

    Args:
        c: (*stack, ...), see `magnitude_scale`.
        scale: s of all layers, or (stack,), or () within one layer.
    """
    if isinstance(scale, int | float):
        return c
    return jnp.where(scale.reshape(scale.shape + (1,) * (c.ndim - scale.ndim)) == 0, 1, c)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def scale_features(z: Array, c: Array, dtype: jnp.dtype) -> Array:
    """Return y = c z in `dtype`, keeping only y for the backward pass.

    LoRA's next operation keeps y as well, so DoRA's backward needs no second array of z's size:
    dL/dz = g c and dL/dc = sum over tokens of g y / c (paper, section 4.3). A scale of exactly 0
    is replaced by 2^-100, which no output can show, so that this division is always defined and a
    column of magnitude 0 still learns (except in float16, too narrow to hold y then).

    Args:
        z: activations of any shape and float dtype; float32 where y is to be rounded once.
        c: scales, float32 or float64, of z's rank; axes of length 1 broadcast, the others are
            feature axes.
        dtype: of y.

    Returns:
        y, of z's shape.
    """
    return _scale_forward(z, c, dtype)[0]


def _nonzero(c: Array) -> Array:
    return jnp.where(jnp.abs(c) < _SMALLEST_SCALE, jnp.where(c < 0, -1, 1) * _SMALLEST_SCALE, c)


def _scale_forward(z: Array, c: Array, dtype: jnp.dtype) -> tuple[Array, tuple]:
    # Named here: a checkpoint policy that keeps y keeps the very array that the backward reads.
    y = checkpoint_name((z * _nonzero(c)).astype(dtype), PRODUCT)
    # An empty array remembers z's dtype: residuals must be arrays.
    return y, (y, c, jnp.zeros((0,), z.dtype))


def _scale_backward(dtype: jnp.dtype, residuals: tuple, g: Array) -> tuple[Array, Array]:
    y, c, like_z = residuals
    tokens = tuple(axis for axis in range(g.ndim) if c.shape[axis] == 1)
    dc = jnp.sum(g.astype(c.dtype) * y, axis=tokens, keepdims=True) / _nonzero(c)
    return (g * c).astype(like_z.dtype), dc


scale_features.defvjp(_scale_forward, _scale_backward)


def adapter_layout(
    kernel_shape: tuple[int, ...],
    adapter: Mapping[str, Array | jax.ShapeDtypeStruct],
    norm_axis: NormAxis,
) -> KernelLayout:
    """Find which of a kernel's axes are stacks and inputs from its adapter's shapes.

    Args:
        kernel_shape: (*stack, *in, *out).
        adapter: `lora_a`, `lora_b` and `magnitude`, those that the module has.
        norm_axis: of the magnitude.

    Raises:
        ValueError: when the shapes do not fit the kernel, or a lone magnitude fits it in two ways.
    """
    if "lora_a" in adapter and "lora_b" in adapter:
        a, b = adapter["lora_a"].shape, adapter["lora_b"].shape
        stack_ndim = len(a) + len(b) - len(kernel_shape) - 2
        layout = KernelLayout(stack_ndim, len(a) - 1 - stack_ndim)
        split = sum(layout)
        fits = (
            stack_ndim >= 0
            and layout.in_ndim >= 1
            and a[:-1] == kernel_shape[:split]
            and b[:stack_ndim] + b[stack_ndim + 1 :]
            == kernel_shape[:stack_ndim] + kernel_shape[split:]
            and a[-1] == b[stack_ndim]
        )
        candidates = [layout] if fits else []
    else:
        ndim = len(kernel_shape)
        candidates = [
            KernelLayout(stack, inputs)
            for stack in range(ndim - 1)
            for inputs in range(1, ndim - stack)
        ]
    if "magnitude" in adapter:
        shape = adapter["magnitude"].shape
        by_removal = {}
        for layout in candidates:
            stack, split = layout.stack_ndim, sum(layout)
            out = norm_axis == "out"
            kept = kernel_shape[:stack] + kernel_shape[split:] if out else kernel_shape[:split]
            if kept == shape:
                # Layouts that sum over the same axes are the same to a magnitude.
                by_removal[(stack, split) if out else split] = layout
        candidates = list(by_removal.values())
    if len(candidates) != 1:
        shapes = ", ".join(f"{name} {value.shape}" for name, value in adapter.items())
        problem = "fit it in more than one way" if candidates else "do not fit it"
        raise ValueError(
            f"kernel of shape {kernel_shape} with norm_axis={norm_axis!r}: the adapter's shapes "
            f"({shapes or 'none'}) {problem}"
        )
    return candidates[0]


def merge_kernel(
    kernel: Float[Array, "..."], adapter: Mapping[str, Array], spec: AdapterSpec
) -> Float[Array, "..."]:
    """Return the kernel that replaces W and its adapter: m V / ||V||, or W + s A B for LoRA.

    All arithmetic is float32 (float64 for a float64 kernel), rounded once to the kernel's dtype.
    A fresh adapter gives back the kernel bit for bit, wherever its magnitude was computed.

    Args:
        kernel: W (*stack, *in, *out).
        adapter: the module's `lora_a`, `lora_b` and `magnitude`, as its spec has them.
        spec: the module's spec.

    Returns:
        W' in the kernel's shape and dtype.

    Raises:
        ValueError: when the adapter lacks a leaf of its method, or a shape does not fit.
    """
    names = (["lora_a", "lora_b"] if spec.has_low_rank else []) + (
        ["magnitude"] if spec.has_magnitude else []
    )
    missing = [name for name in names if name not in adapter]
    if missing:
        raise ValueError(f"an adapter of method {spec.method!r} needs {', '.join(missing)}")
    if not names:
        return kernel
    dtype = sum_dtype(kernel)
    layout = adapter_layout(kernel.shape, {n: adapter[n] for n in names}, spec.norm_axis)
    stack, in_ndim = layout
    merged = kernel.astype(dtype)
    if spec.has_low_rank:
        a = as_matrix(adapter["lora_a"], stack, stack + in_ndim).astype(dtype)
        b = as_matrix(adapter["lora_b"], stack, stack + 1).astype(dtype)
        delta = jnp.einsum("sir,sro->sio", a, b, precision="highest")
        delta = (jnp.reshape(stack_scale(spec), (-1, 1, 1)) * delta).astype(dtype)
        merged = merged + delta.reshape(kernel.shape)
    if spec.has_magnitude:
        axes = {"in_ndim": in_ndim, "stack_ndim": stack}
        kernel_sq_norm = column_sq_norm(kernel, spec.norm_axis, **axes)
        floor = jnp.finfo(dtype).eps * safe_sqrt(kernel_sq_norm)
        norm = jnp.maximum(column_norm(merged, spec.norm_axis, **axes), floor)
        c = magnitude_scale(adapter["magnitude"], norm, kernel_sq_norm)
        c = only_adapted(c, stack_scale(spec))
        # Sums of n squares agree to about eps sqrt(n) between jit, eager and other devices: a
        # magnitude that close to the norm is the norm. (Its gradient stays.)
        accuracy = jnp.finfo(dtype).eps * (1 + math.sqrt(kernel.size // max(1, c.size)))
        unmoved = jnp.abs(c - 1) <= accuracy
        c = c + jax.lax.stop_gradient(jnp.where(unmoved, 1 - c, 0))
        merged = merged * spread(c, kernel, layout, spec.norm_axis)
    return merged.astype(kernel.dtype)


def init_low_rank(
    key: jax.Array,
    in_shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    rank: int,
    init: Init | str = "kaiming",
    dtype: jnp.dtype | str = "float32",
    stack_shape: tuple[int, ...] = (),
) -> tuple[Array, Array]:
    """Return fresh lora_a (*stack, *in, r) and lora_b (*stack, r, *out), whose product is zero.

    The choices of `init` are described at `AdapterSpec`. The random factor depends on the key and
    the shapes alone, so LoRA and DoRA of one key start from the same A.
    """
    a_shape, b_shape = (*stack_shape, *in_shape, rank), (*stack_shape, rank, *out_shape)
    if init in ("normal_b", "embedding"):
        b = jax.random.normal(key, b_shape, dtype)
        return jnp.zeros(a_shape, dtype), b / math.sqrt(rank) if init == "normal_b" else b
    if init == "orthogonal":
        return _init_orthogonal(key, stack_shape, in_shape, out_shape, rank, dtype)
    if init == "kaiming" or takes_from_kernel(init):
        bound = 1 / math.sqrt(math.prod(in_shape))
        a = jax.random.uniform(key, a_shape, dtype, -bound, bound)
    elif init == "gaussian":
        a = jax.random.normal(key, a_shape, dtype) / rank
    else:
        a = jax.random.normal(key, a_shape, dtype) / math.sqrt(rank)
    return a, jnp.zeros(b_shape, dtype)


def _init_orthogonal(
    key: jax.Array,
    stack_shape: tuple[int, ...],
    in_shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    rank: int,
    dtype: jnp.dtype | str,
) -> tuple[Array, Array]:
    """Return factors of normal entries / 10 in two orthogonal halves of the rank, as PEFT's."""
    half, wide = rank // 2, jnp.promote_types(dtype, jnp.float32)
    keys = jax.random.split(key, 3)
    q = jnp.linalg.qr(jax.random.normal(keys[0], (*stack_shape, rank, rank), wide))[0]
    a = jax.random.normal(keys[1], (*stack_shape, math.prod(in_shape), half), wide)
    b = jax.random.normal(keys[2], (*stack_shape, half, math.prod(out_shape)), wide)
    a = jnp.matmul(a, q[..., 0::2, :], precision="highest") / 10
    b = jnp.matmul(q[..., 1::2, :].swapaxes(-1, -2), b, precision="highest") / 10
    a, b = a.reshape(*stack_shape, *in_shape, rank), b.reshape(*stack_shape, rank, *out_shape)
    return a.astype(dtype), b.astype(dtype)
