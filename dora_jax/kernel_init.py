"""Factors that start from the kernel's own directions, which they take out of it: PiSSA and OLoRA.

W becomes the residual W - s A0 B0, so that with the fresh factors nothing has changed. The residual
depends on W and the spec alone, never on a seed: who loads a trained adapter finds it again.

Sources: PiSSA, arXiv 2404.02948 (the largest singular directions); OLoRA, arXiv 2406.01775 (the
first columns of a QR decomposition); both as PEFT computes them on the transposed kernel.
"""

import re

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dora_jax.kernel_layout import as_matrix, sum_dtype
from dora_jax.spec import AdapterSpec, takes_from_kernel


def _pissa(matrix: Array, rank: int, scale: float, iterations: int | None) -> tuple[Array, Array]:
    if iterations is None:
        u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    else:
        # Subspace iteration (Halko et al., arXiv 0909.4061, algorithm 4.4).
        sketch = jax.random.normal(jax.random.key(0), (matrix.shape[1], rank), matrix.dtype)
        basis = jnp.linalg.qr(matrix @ sketch)[0]
        for _ in range(iterations):
            basis = jnp.linalg.qr(matrix.T @ basis)[0]
            basis = jnp.linalg.qr(matrix @ basis)[0]
        u, s, vt = jnp.linalg.svd(basis.T @ matrix, full_matrices=False)
        u = basis @ u
    root = jnp.sqrt(s[:rank] / scale)
    return u[:, :rank] * root, root[:, None] * vt[:rank]


def _olora(matrix: Array, rank: int) -> tuple[Array, Array]:
    q, r = jnp.linalg.qr(matrix.T)
    return r[:rank].T, q[:, :rank].T


def _factors(matrix: Array, rank: int, scale: float, init: str) -> tuple[Array, Array]:
    if init == "olora":
        return _olora(matrix, rank)
    found = re.fullmatch(r"pissa_niter_(\d+)", init)
    return _pissa(matrix, rank, scale, None if found is None else int(found[1]))


def init_from_kernel(
    kernel: Float[Array, "..."], spec: AdapterSpec, in_ndim: int, stack_ndim: int
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """Return the residual kernel, lora_a and lora_b of a spec whose `init` takes from the kernel.

    Args:
        kernel: W (*stack, *in, *out).
        spec: the module's; with `per_layer`, its layers (the one stack axis) have their own ranks.
        in_ndim: number of input axes.
        stack_ndim: number of stack axes.

    Returns:
        W - s A0 B0 in W's dtype; A0 (*stack, *in, r) and B0 (*stack, r, *out), filled up with zeros
        where a layer has a lower rank, in `spec.param_dtype`.

    Raises:
        ValueError: when the rank is larger than the kernel's, or the init is another one.
    """
    if not takes_from_kernel(spec.init):
        raise ValueError(f"init {spec.init!r} does not start from the kernel")
    split = stack_ndim + in_ndim
    matrices = as_matrix(kernel, stack_ndim, split).astype(sum_dtype(kernel))
    if spec.rank > min(matrices.shape[1:]):
        raise ValueError(
            f"init {spec.init!r} finds at most {min(matrices.shape[1:])} directions in a kernel of "
            f"shape {kernel.shape}; rank {spec.rank} asks for more"
        )
    layers = spec.per_layer or ((spec.rank, spec.alpha),) * len(matrices)
    scales = spec.layer_scales or (spec.scale,) * len(matrices)
    a, b, residual = [], [], []
    # One layer at a time: their decompositions need not be in memory together.
    with jax.default_matmul_precision("highest"):
        for matrix, layer, scale in zip(matrices, layers, scales, strict=True):
            rank = 0 if layer is None else layer[0]
            pad = spec.rank - rank
            low, high = _factors(matrix, rank, scale or 1.0, spec.init)
            a.append(jnp.pad(low, ((0, 0), (0, pad))))
            b.append(jnp.pad(high, ((0, pad), (0, 0))))
            residual.append(matrix - scale * low @ high)
    shape = kernel.shape
    return (
        jnp.stack(residual).reshape(shape).astype(kernel.dtype),
        jnp.stack(a).reshape(*shape[:split], spec.rank).astype(spec.param_dtype),
        jnp.stack(b)
        .reshape(*shape[:stack_ndim], spec.rank, *shape[split:])
        .astype(spec.param_dtype),
    )
