"""||W + s A B|| without A B: factored, or summed tile by tile where that is cheaper or safer.

    ||V||^2 = ||W||^2 + 2 <W^T A', B> + <B, (A'^T A') B>        A' = s A

Source: "Scaling DoRA", arXiv 2603.22276, for the factored form; see docs/cost.md for what it costs.
Sums are float32, or float64 for float64 kernels, whatever the kernel's own dtype.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from dora_jax.decomposition import LOW_RANK, column_sq_norm
from dora_jax.kernel_layout import (
    KernelLayout,
    as_matrix,
    kept_shape,
    safe_sqrt,
    sum_dtype,
)
from dora_jax.perturbed import moving, pull_back
from dora_jax.spec import NormAxis

# Where the factored sum is below this share of its terms it has lost accuracy to cancellation
# (relative error about eps / share, with the eps of 17 bits beside a bfloat16 kernel), and the norm
# is taken directly, tile by tile.
_CANCELLED_SHARE = 0.05
_TILE_ELEMENTS = 1 << 20
# What adding, squaring and summing one element costs beyond its operations, in those of a product:
# it is bound by memory. Measured on CPUs; see `benchmarks/norms.py`.
_ELEMENT_COST = 60.0

NormPath = Literal["factored", "direct"]


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
        return as_matrix(kernel, stack, stack + in_ndim)


def _squares(left: Array, right: Array, base: Array) -> Array:
    """Return base + <B, (A^T A) B>, s within A: the terms that cannot cancel."""
    gram = jnp.einsum("sir,siq->srq", left, left, precision="highest")
    gram_right = jnp.einsum("srq,sqk->srk", gram, right, precision="highest")
    return base + jnp.sum(right * gram_right, axis=1)


def _cross(projected: Array, right: Array) -> Array:
    """Return 2 <W^T A, B>."""
    return 2 * jnp.sum(projected * right, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sq_norm(over: _SumOver, kernel: Array, left: Array, right: Array, base: Array) -> Array:
    """Return ||V||^2, (stack, kept), by the chosen path.

    Where a column of the factored sum has lost its digits to cancellation, this call's kernels
    take the direct one, at run time.

    Args:
        over: path and layout.
        kernel: W as it came: the backward pass keeps it, and a copy of it in another shape would
            be kept for every layer.
        left: (stack, summed, r), with left @ right the columns of s A B.
        right: (stack, r, kept).
        base: (stack, kept), ||W||^2.
    """
    return _with_projected(over, kernel, left, right, base)[0]


def _with_projected(
    over: _SumOver, kernel: Array, left: Array, right: Array, base: Array
) -> tuple[Array, Array | None]:
    """Return ||V||^2, and the product with W that the factored form took."""

    def direct(kernel: Array, left: Array, right: Array) -> Array:
        return _direct_sq_norm(over.matrix(kernel), left, right, over.norm_axis)

    if over.path == "direct":
        return direct(kernel, left, right), None
    projected = checkpoint_name(_projected(over.matrix(kernel), left, over.norm_axis), LOW_RANK)
    squares = _squares(left, right, base)
    factored = squares + _cross(projected, right)
    sq_norm = jax.lax.cond(
        jnp.any(factored < _CANCELLED_SHARE * squares),
        lambda w, lo, hi, _: direct(w, lo, hi),
        lambda w, lo, hi, factored: factored,
        *(kernel, left, right, factored),
    )
    return sq_norm, projected


def _sq_norm_forward(over: _SumOver, *args: Any) -> tuple[Array, tuple]:
    values = tuple(arg.value for arg in args)
    moves = list(moving(args))
    if over.detach_kernel:
        moves[0] = None
    sq_norm, projected = _with_projected(over, *values)
    return sq_norm, (values, projected, moves)


def _sq_norm_backward(over: _SumOver, residuals: tuple, g: Any) -> tuple:
    """Differentiate the factored form by what moves alone: A B is not formed, nor dW unasked.

    Its product with W is kept, of r numbers a column, and not computed again.
    """
    (kernel, left, right, base), projected, moves = residuals
    if isinstance(g, SymbolicZero):
        return (None,) * 4

    def project(kernel: Array, left: Array) -> Array:
        return _projected(over.matrix(kernel), left, over.norm_axis)

    if projected is None:
        projected = project(kernel, left)
    by_left, by_right, by_base = pull_back(_squares, (left, right, base), moves[1:], g)
    by_projected, by_right_too = jax.vjp(_cross, projected, right)[1](g)
    by_kernel, by_left_too = pull_back(project, (kernel, left), moves[:2], by_projected)
    return (
        by_kernel,
        None if by_left is None else by_left + by_left_too,
        None if by_right is None else by_right + by_right_too,
        by_base,
    )


_sq_norm.defvjp(_sq_norm_forward, _sq_norm_backward, symbolic_zeros=True)


def adapted_norm(
    kernel: Float[Array, "..."],
    lora_a: Float[Array, "..."],
    lora_b: Float[Array, "..."],
    scale: float | Array,
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
        scale: s, or (stack,) of them.
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
    a = as_matrix(lora_a, stack_ndim, lora_a.ndim - 1).astype(dtype)
    b = as_matrix(lora_b, stack_ndim, stack_ndim + 1).astype(dtype)
    # V's columns are W's plus left @ right, whichever axis is summed.
    left, right = (a, b) if norm_axis == "out" else (b.swapaxes(1, 2), a.swapaxes(1, 2))
    left = (jnp.reshape(scale, (-1, 1, 1)) * left).astype(dtype)
    base = kernel_sq_norm.reshape(right.shape[0], right.shape[2]).astype(dtype)
    path = cheaper_path(left.shape[1], right.shape[2], left.shape[2], narrow=kernel.dtype != dtype)
    sq_norm = _sq_norm(_SumOver(path, layout, norm_axis, detach_kernel), kernel, left, right, base)

    floor = jax.lax.stop_gradient(jnp.finfo(dtype).eps ** 2 * base)
    norm = safe_sqrt(jnp.where(sq_norm > floor, sq_norm, floor))
    return norm.reshape(kept_shape(kernel, layout, norm_axis))
