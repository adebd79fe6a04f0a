"""DoRA's mathematics as pure functions of arrays: norms, decomposition, merging, adapter init.

Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353. In the kernel
layout (in, out), where `y = x @ W`:

    V  = W + s A B          A: lora_a (in, r), B: lora_b (r, out)
    n  = ||V||              over the input axes (norm_axis="out") or the output axes ("in")
    W' = m V / n = c V      m: magnitude, c = m / n

A kernel's axes are, in this order: `stack_ndim` stack axes (scanned layers, DenseGeneral's batch
dimensions: every stacked kernel is a kernel of its own), `in_ndim` input axes (a convolution's
window and channels count as inputs), and the output axes. Every function views its arrays as
(stack, in, out) matrices first, and `norm_axis="in"` is `"out"` on the transposed ones.

Sums are float32, or float64 for float64 kernels, whatever the kernel's own dtype.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from dora_jax.perturbed import moving, pull_back
from dora_jax.spec import AdapterSpec, Init, NormAxis

# Where the factored sum is below this share of its terms it has lost accuracy to cancellation
# (relative error about eps / share, with the eps of 17 bits beside a bfloat16 kernel), and the norm
# is taken directly, tile by tile.
_CANCELLED_SHARE = 0.05
_TILE_ELEMENTS = 1 << 20
# What adding, squaring and summing one element costs beyond its operations, in those of a product:
# it is bound by memory. Measured on CPUs; see `benchmarks/norms.py`.
_ELEMENT_COST = 60.0
# c == 0 would lose z = y / c in the backward pass; 2^-100 loses nothing and is zero to any output.
_SMALLEST_SCALE = 2.0**-100


NormPath = Literal["factored", "direct"]
PRODUCT = "product"  # what a checkpoint policy may call the results of products with W


class Decomposition(NamedTuple):
    """A kernel as magnitude times direction: every column of `direction` has norm 1 or 0."""

    magnitude: Array
    direction: Array


class KernelLayout(NamedTuple):
    """How many leading axes of a kernel are stacks of kernels, and how many are inputs."""

    stack_ndim: int
    in_ndim: int


def sum_dtype(kernel: Array) -> jnp.dtype:
    """Return the dtype of norms and merges: float32, or float64 for a float64 kernel."""
    return jnp.promote_types(kernel.dtype, jnp.float32)


def _layout(kernel: Array, in_ndim: int | None, stack_ndim: int) -> KernelLayout:
    if in_ndim is None:
        in_ndim = kernel.ndim - stack_ndim - 1
    if stack_ndim < 0 or in_ndim < 1 or stack_ndim + in_ndim >= kernel.ndim:
        raise ValueError(
            f"a kernel of shape {kernel.shape} has no {stack_ndim} stack axes, {in_ndim} input "
            "axes and at least one output axis"
        )
    return KernelLayout(stack_ndim, in_ndim)


def _matrix(array: Array, first: int, second: int) -> Array:
    """View an array as (stack, rows, columns), split at axes `first` and `second`."""
    shape = array.shape
    return array.reshape(
        math.prod(shape[:first]), math.prod(shape[first:second]), math.prod(shape[second:])
    )


def _columns(kernel: Array, layout: KernelLayout, norm_axis: NormAxis) -> Array:
    """View a kernel as (stack, summed, kept): each vector along `summed` has one norm."""
    stack, in_ndim = layout
    matrix = _matrix(kernel, stack, stack + in_ndim)
    return matrix if norm_axis == "out" else matrix.swapaxes(1, 2)


def _kept_shape(kernel: Array, layout: KernelLayout, norm_axis: NormAxis) -> tuple[int, ...]:
    stack, in_ndim = layout
    shape = kernel.shape
    if norm_axis == "out":
        return shape[:stack] + shape[stack + in_ndim :]
    return shape[: stack + in_ndim]


def _spread(vector: Array, kernel: Array, layout: KernelLayout, norm_axis: NormAxis) -> Array:
    """Reshape a per-column vector so that it multiplies the kernel's columns."""
    stack, in_ndim = layout
    shape = kernel.shape
    ones_in, ones_out = (1,) * in_ndim, (1,) * (len(shape) - stack - in_ndim)
    if norm_axis == "out":
        return vector.reshape(shape[:stack] + ones_in + shape[stack + in_ndim :])
    return vector.reshape(shape[: stack + in_ndim] + ones_out)


def _sqrt(squares: Array) -> Array:
    """Return the square root, with gradient 0 instead of infinity at 0."""
    live = squares > 0
    return jnp.where(live, jnp.sqrt(jnp.where(live, squares, 1)), 0)


def column_sq_norm(
    kernel: Float[Array, "..."],
    norm_axis: NormAxis = "out",
    *,
    in_ndim: int | None = None,
    stack_ndim: int = 0,
) -> Float[Array, "..."]:
    """Return the squared norm of every column of a kernel; arguments as `column_norm`."""
    layout = _layout(kernel, in_ndim, stack_ndim)
    columns = _columns(kernel, layout, norm_axis).astype(sum_dtype(kernel))
    return jnp.sum(jnp.square(columns), axis=1).reshape(_kept_shape(kernel, layout, norm_axis))


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
    return _sqrt(column_sq_norm(kernel, norm_axis, in_ndim=in_ndim, stack_ndim=stack_ndim))


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
    layout = _layout(kernel, in_ndim, stack_ndim)
    magnitude = column_norm(kernel, norm_axis, in_ndim=layout.in_ndim, stack_ndim=stack_ndim)
    divisor = _spread(jnp.where(magnitude > 0, magnitude, 1), kernel, layout, norm_axis)
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
    layout = _layout(direction, in_ndim, stack_ndim)
    expected = _kept_shape(direction, layout, norm_axis)
    if magnitude.shape != expected:
        raise ValueError(
            f"magnitude of shape {magnitude.shape} does not fit a kernel of shape "
            f"{direction.shape} with norm_axis={norm_axis!r}: expected {expected}"
        )
    unit = decompose(direction, norm_axis, in_ndim=layout.in_ndim, stack_ndim=stack_ndim).direction
    return _spread(magnitude, direction, layout, norm_axis) * unit


def norm_flops(summed: int, kept: int, rank: int, *, narrow: bool = False) -> dict[NormPath, float]:
    """Return the floating-point operations of one ||W + s A B||, by either way to it.

    `factored` takes W^T A, the Gram matrix A^T A, its product with B and two sums over r; `direct`
    takes A B tile by tile, adds it to W, squares and sums.

    Args:
        summed: length of the vectors whose norms are taken.
        kept: their number.
        rank: r.
        narrow: whether the kernel is narrower than the sums (bfloat16): W^T A then takes A in two
            parts, of about 17 bits together.
    """
    product = 2.0 * summed * kept * rank
    gram = 2.0 * rank**2 * (summed + kept) + 4.0 * rank * kept
    return {
        "factored": (2 if narrow else 1) * product + gram,
        "direct": product + 4.0 * summed * kept,
    }


def cheaper_path(summed: int, kept: int, rank: int, *, narrow: bool = False) -> NormPath:
    """Return the way to the norm that costs less; arguments as `norm_flops`.

    High ranks are where it is the direct one, as the Gram matrix's cost grows with r^2; but not for
    narrow kernels, whose tiles would be products of wide numbers.
    """
    flops = norm_flops(summed, kept, rank)
    tiles = flops["direct"] + _ELEMENT_COST * summed * kept
    return "factored" if narrow or flops["factored"] <= tiles else "direct"


def _direct_sq_norm(matrix: Array, left: Array, right: Array, norm_axis: NormAxis) -> Array:
    """Return ||V||^2 of every column without ever holding the whole of V, or turning W.

    A tile is every `steps`-th row (of the summed axis), not a run of rows: where rows are sharded,
    each device then has its share of every tile, and no device gathers the others' rows.
    """
    stack, rows, rank = left.shape
    wanted = min(rows, -(-matrix.size // _TILE_ELEMENTS))
    steps = next(steps for steps in range(max(1, wanted), rows + 1) if rows % steps == 0)
    tiles = (rows // steps, steps)
    left = left.reshape(stack, *tiles, rank)
    if norm_axis == "out":
        matrix, tile_axis, product = matrix.reshape(stack, *tiles, -1), 2, "str,srk->stk"
    else:
        matrix, tile_axis, product = matrix.reshape(stack, -1, *tiles), 3, "str,srk->skt"
    summed_axis = tile_axis - 1

    def add_tile(index: Array, total: Array) -> Array:
        part = jax.lax.dynamic_index_in_dim(matrix, index, axis=tile_axis, keepdims=False)
        low = jax.lax.dynamic_index_in_dim(left, index, axis=2, keepdims=False)
        v = part.astype(total.dtype) + jnp.einsum(product, low, right, precision="highest")
        return total + jnp.sum(jnp.square(v), axis=summed_axis)

    return jax.lax.fori_loop(0, steps, add_tile, jnp.zeros((stack, right.shape[2]), left.dtype))


def _projected(matrix: Array, left: Array, norm_axis: NormAxis) -> Array:
    """Return left^T @ columns (stack, r, kept), the one product with W that a norm takes.

    W is neither widened nor turned: a narrow W's product takes the factor in two narrow parts, and
    the operands stand in the order in which a CPU turns the narrow factor alone.
    """
    rank, dtype = left.shape[2], left.dtype
    if matrix.dtype != dtype:
        high = left.astype(matrix.dtype)
        low = (left - high.astype(dtype)).astype(matrix.dtype)
        left = jnp.concatenate([high, low], axis=2)
    stacks = ((0,), (0,))
    exact: Any = {"precision": "highest", "preferred_element_type": dtype}
    if norm_axis == "out":
        found = jax.lax.dot_general(left, matrix, (((1,), (1,)), stacks), **exact)
    else:
        found = jax.lax.dot_general(matrix, left, (((2,), (1,)), stacks), **exact).swapaxes(1, 2)
    return found if found.shape[1] == rank else found[:, :rank] + found[:, rank:]


class _SumOver(NamedTuple):
    """What is known of a norm before its arrays are."""

    path: NormPath
    layout: KernelLayout
    norm_axis: NormAxis
    detach_kernel: bool

    def matrix(self, kernel: Array) -> Array:
        """View W as (stack, in, out)."""
        stack, in_ndim = self.layout
        return _matrix(kernel, stack, stack + in_ndim)


def _factored_sq_norm(
    over: _SumOver, kernel: Array, left: Array, right: Array, base: Array
) -> tuple[Array, Array]:
    """Return ||V||^2 = base + 2 <W^T A, B> + <B, (A^T A) B>, s within A, and its squares alone."""
    projected = _projected(over.matrix(kernel), left, over.norm_axis)
    gram = jnp.einsum("sir,siq->srq", left, left, precision="highest")
    turned = jnp.einsum("srq,sqk->srk", gram, right, precision="highest")
    squares = base + jnp.sum(right * turned, axis=1)
    return squares + 2 * jnp.sum(projected * right, axis=1), squares


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sq_norm(over: _SumOver, kernel: Array, left: Array, right: Array, base: Array) -> Array:
    """Return ||V||^2, (stack, kept), by the chosen path.

    Where the factored sum has lost its digits to cancellation, such stacks of kernels (only they,
    at run time) take the direct one.

    Args:
        over: path and layout.
        kernel: W as it came: the backward pass keeps it, and a copy of it in another shape would
            be kept for every layer.
        left: (stack, summed, r), with left @ right the columns of s A B.
        right: (stack, r, kept).
        base: (stack, kept), ||W||^2.
    """

    def direct(kernel: Array, left: Array, right: Array) -> Array:
        return _direct_sq_norm(over.matrix(kernel), left, right, over.norm_axis)

    if over.path == "direct":
        return direct(kernel, left, right)
    sq_norm, squares = _factored_sq_norm(over, kernel, left, right, base)
    return jax.lax.cond(
        jnp.any(sq_norm < _CANCELLED_SHARE * squares),
        lambda w, lo, hi, _: direct(w, lo, hi),
        lambda w, lo, hi, factored: factored,
        *(kernel, left, right, sq_norm),
    )


def _sq_norm_forward(over: _SumOver, *args: Any) -> tuple[Array, tuple]:
    values = tuple(arg.value for arg in args)
    moves = list(moving(args))
    if over.detach_kernel:
        moves[0] = None
    return _sq_norm(over, *values), (values, moves)


def _sq_norm_backward(over: _SumOver, residuals: tuple, g: Any) -> tuple:
    """Differentiate the factored form by what moves alone: A B is not formed, nor dW unasked."""
    values, moves = residuals
    return pull_back(lambda *args: _factored_sq_norm(over, *args)[0], values, moves, g)


_sq_norm.defvjp(_sq_norm_forward, _sq_norm_backward, symbolic_zeros=True)


def adapted_norm(
    kernel: Float[Array, "..."],
    lora_a: Float[Array, "..."],
    lora_b: Float[Array, "..."],
    scale: float,
    norm_axis: NormAxis = "out",
    kernel_sq_norm: Float[Array, "..."] | None = None,
    *,
    stack_ndim: int = 0,
    detach_kernel: bool = False,
) -> Float[Array, "..."]:
    """Return ||W + s A B|| per column, by its factors: A B is never formed.

    ||V||^2 = ||W||^2 + 2 s <W^T A, B> + s^2 <B, (A^T A) B> per column: O(in out r) operations and
    O((in + out) r) memory. Where W and s A B nearly cancel that sum loses its digits, and a stack
    with such a column takes (at run time) the direct sum tile by tile instead; so do all kernels
    where that is cheaper (`cheaper_path`: high ranks). The gradient is that of the factored form
    and forms neither A B nor dW; beside a narrow kernel it is rounded to the kernel's dtype.

    Args:
        kernel: W (*stack, *in, *out).
        lora_a: A (*stack, *in, r).
        lora_b: B (*stack, r, *out).
        scale: s.
        norm_axis: see `column_norm`.
        kernel_sq_norm: ||W||^2 as `column_sq_norm` gives it, if already known (it never changes
            while W is frozen). No gradient flows through a given one.
        stack_ndim: see `column_norm`.
        detach_kernel: give W no gradient. (Not by `stop_gradient`: the backward pass of scanned
            layers would then keep a copy of W for each.)

    Returns:
        Norms as `column_norm`'s. At least eps ||W||, below which V is W's rounding error; the
        gradient is 0 there, and where V is zero.
    """
    layout = KernelLayout(stack_ndim, lora_a.ndim - 1 - stack_ndim)
    dtype = sum_dtype(kernel)
    if kernel_sq_norm is None:
        kernel_sq_norm = column_sq_norm(
            kernel, norm_axis, in_ndim=layout.in_ndim, stack_ndim=stack_ndim
        )
        if detach_kernel:
            kernel_sq_norm = jax.lax.stop_gradient(kernel_sq_norm)
    else:
        kernel_sq_norm = jax.lax.stop_gradient(kernel_sq_norm)
    a = _matrix(lora_a, stack_ndim, lora_a.ndim - 1).astype(dtype)
    b = _matrix(lora_b, stack_ndim, stack_ndim + 1).astype(dtype)
    # V's columns are W's plus left @ right, whichever axis is summed.
    left, right = (a, b) if norm_axis == "out" else (b.swapaxes(1, 2), a.swapaxes(1, 2))
    left = scale * left
    base = kernel_sq_norm.reshape(right.shape[0], right.shape[2]).astype(dtype)
    path = cheaper_path(left.shape[1], right.shape[2], left.shape[2], narrow=kernel.dtype != dtype)
    sq_norm = _sq_norm(_SumOver(path, layout, norm_axis, detach_kernel), kernel, left, right, base)

    floor = jax.lax.stop_gradient(jnp.finfo(dtype).eps ** 2 * base)
    norm = _sqrt(jnp.where(sq_norm > floor, sq_norm, floor))
    return norm.reshape(_kept_shape(kernel, layout, norm_axis))


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
        a = _matrix(adapter["lora_a"], stack, stack + in_ndim).astype(dtype)
        b = _matrix(adapter["lora_b"], stack, stack + 1).astype(dtype)
        delta = jnp.einsum("sir,sro->sio", a, b, precision="highest")
        merged = merged + spec.scale * delta.reshape(kernel.shape)
    if spec.has_magnitude:
        axes = {"in_ndim": in_ndim, "stack_ndim": stack}
        kernel_sq_norm = column_sq_norm(kernel, spec.norm_axis, **axes)
        floor = jnp.finfo(dtype).eps * _sqrt(kernel_sq_norm)
        norm = jnp.maximum(column_norm(merged, spec.norm_axis, **axes), floor)
        c = magnitude_scale(adapter["magnitude"], norm, kernel_sq_norm)
        # Sums of n squares agree to about eps sqrt(n) between jit, eager and other devices: a
        # magnitude that close to the norm is the norm. (Its gradient stays.)
        accuracy = jnp.finfo(dtype).eps * (1 + math.sqrt(kernel.size // max(1, c.size)))
        unmoved = jnp.abs(c - 1) <= accuracy
        c = c + jax.lax.stop_gradient(jnp.where(unmoved, 1 - c, 0))
        merged = merged * _spread(c, kernel, layout, spec.norm_axis)
    return merged.astype(kernel.dtype)


def init_low_rank(
    key: jax.Array,
    in_shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    rank: int,
    init: Init = "kaiming",
    dtype: jnp.dtype | str = "float32",
    stack_shape: tuple[int, ...] = (),
) -> tuple[Array, Array]:
    """Return fresh lora_a (*stack, *in, r) and lora_b (*stack, r, *out), whose product is zero.

    The choices of `init` are described at `AdapterSpec`. The random factor depends on the key and
    the shapes alone, so LoRA and DoRA of one key start from the same A.
    """
    a_shape, b_shape = (*stack_shape, *in_shape, rank), (*stack_shape, rank, *out_shape)
    if init == "normal_b":
        b = jax.random.normal(key, b_shape, dtype) / math.sqrt(rank)
        return jnp.zeros(a_shape, dtype), b
    if init == "kaiming":
        bound = 1 / math.sqrt(math.prod(in_shape))
        a = jax.random.uniform(key, a_shape, dtype, -bound, bound)
    elif init == "gaussian":
        a = jax.random.normal(key, a_shape, dtype) / rank
    else:
        a = jax.random.normal(key, a_shape, dtype) / math.sqrt(rank)
    return a, jnp.zeros(b_shape, dtype)
