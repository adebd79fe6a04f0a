"""Flax Linen layers with an adapter: Dense, DenseGeneral, Conv and Embed.

Each is Flax's own layer, with the same fields, parameters and numbers, and one field more:
`adapter`. Where the module's spec tunes it by LoRA, DoRA or magnitude, `lora_a`, `lora_b` and
`magnitude` stand beside `kernel` and `bias` in its `params`, and the product with the kernel,
which Flax lets us exchange, becomes

    y = c (x W + s (x A) B)          norm_axis="out"
    y = (c x) W + s ((c x) A) B      norm_axis="in"

with c = m / ||W + s A B||, never forming A B. The norm is read from the `norms` collection where
there is one (`dora_jax.column_norms`, once an optimizer step), and computed here otherwise.

Dropout on the low-rank path is on when, and only when, an rng named `dropout` is passed.

For `jax.checkpoint`, results are named: `product` those of an adapted layer, `low_rank` those of
x A. A policy that keeps products, as Flax's own layers need it, and these names keeps no more.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero

from dora_jax.decomposition import (
    LOW_RANK,
    PRODUCT,
    column_norm,
    column_sq_norm,
    init_low_rank,
    magnitude_scale,
    only_adapted,
    scale_features,
)
from dora_jax.factored_norm import adapted_norm
from dora_jax.kernel_layout import sum_dtype
from dora_jax.partition import SCALE_LEAF
from dora_jax.perturbed import moving, pull_back
from dora_jax.spec import FROZEN, AdapterRules, AdapterSpec

Adapter = AdapterSpec | AdapterRules | None
NORMS = "norms"


def _spec_of(module: nn.Module, adapter: Adapter, weight: str) -> AdapterSpec:
    if adapter is None:
        return FROZEN
    if isinstance(adapter, AdapterSpec):
        return adapter
    return adapter.spec_for("/".join(module.path), weight)


def _low_rank_params(
    module: nn.Module, spec: AdapterSpec, kernel: jax.Array, in_ndim: int, stack_ndim: int
) -> tuple[jax.Array, jax.Array]:
    stack, split = stack_ndim, stack_ndim + in_ndim
    shapes = kernel.shape[stack:split], kernel.shape[split:]

    def init(index: int) -> Callable[[jax.Array], jax.Array]:
        def make(key: jax.Array) -> jax.Array:
            return init_low_rank(
                key, *shapes, spec.rank, spec.init, spec.param_dtype, kernel.shape[:stack]
            )[index]

        return make

    return module.param("lora_a", init(0)), module.param("lora_b", init(1))


def _scale(module: nn.Module, spec: AdapterSpec) -> float | jax.Array:
    """Return s: that of this layer, sliced by the scan over them, where a stack's differ."""
    if spec.per_layer is None:
        return spec.scale
    scale = module.param(SCALE_LEAF, nn.initializers.constant(spec.scale), (), jnp.float32)
    return lax.stop_gradient(scale)


def _column_scale(
    module: nn.Module,
    spec: AdapterSpec,
    kernel: jax.Array,
    factors: tuple[jax.Array, jax.Array] | None,
    scale: float | jax.Array,
    in_ndim: int,
    stack_ndim: int,
) -> jax.Array:
    """Return c = m / n of this module, of the magnitude's shape."""
    axes = {"in_ndim": in_ndim, "stack_ndim": stack_ndim}
    magnitude = module.param(
        "magnitude",
        lambda _: column_norm(kernel, spec.norm_axis, **axes),
    )
    if module.has_variable(NORMS, "kernel_sq_norm"):
        kernel_sq_norm: jax.Array = module.get_variable(NORMS, "kernel_sq_norm")
    else:
        kernel_sq_norm = lax.stop_gradient(column_sq_norm(kernel, spec.norm_axis, **axes))
    if factors is None:
        norm = jnp.sqrt(kernel_sq_norm)  # a constant: never differentiated
    elif spec.detach_norm and module.has_variable(NORMS, "norm"):
        norm = module.get_variable(NORMS, "norm")
    else:
        detach = lax.stop_gradient if spec.detach_norm else lambda x: x
        a, b = factors
        norm = adapted_norm(
            kernel,
            detach(a),
            detach(b),
            scale,
            spec.norm_axis,
            kernel_sq_norm,
            stack_ndim=stack_ndim,
            detach_kernel=True,
        )
    return only_adapted(magnitude_scale(magnitude, norm, kernel_sq_norm), scale)


def _dropped(module: nn.Module, spec: AdapterSpec, x: jax.Array) -> jax.Array:
    if not spec.dropout or not module.has_rng("dropout"):
        return x
    keep = 1.0 - spec.dropout
    mask = jax.random.bernoulli(module.make_rng("dropout"), keep, x.shape)
    return jnp.where(mask, x / keep, 0).astype(x.dtype)


class _AdaptedProduct:
    """The product of inputs and kernel, with a module's adapter in it.

    `linear(x, w)` is the base product, `reduce(x, a)` the same with lora_a, `expand(low, b)` takes
    the rank-r result to the outputs: all three in the sum dtype. `spread_in` and `spread_out`
    reshape c to the rank of the inputs and of the outputs (`spread_in` is None where no scaling of
    the inputs equals one of the kernel's inputs: convolutions).
    """

    def __init__(
        self,
        module: nn.Module,
        spec: AdapterSpec,
        *,
        linear: Callable[[jax.Array, jax.Array], jax.Array],
        reduce: Callable[[jax.Array, jax.Array], jax.Array],
        expand: Callable[[jax.Array, jax.Array], jax.Array],
        spread_in: Callable[[jax.Array], jax.Array] | None,
        spread_out: Callable[[jax.Array], jax.Array],
        in_ndim: int,
        stack_ndim: int = 0,
    ):
        self.module, self.spec = module, spec
        self.linear, self.reduce, self.expand = linear, reduce, expand
        self.spread_in, self.spread_out = spread_in, spread_out
        self.axes = {"in_ndim": in_ndim, "stack_ndim": stack_ndim}

    def __call__(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Return the adapted product; `kernel` is the promoted one that Flax would use."""
        module, spec = self.module, self.spec
        # Norms and shapes are the stored kernel's; the product takes the promoted one.
        stored = nn.meta.unbox(module.get_variable("params", "kernel"))
        factors = c = None
        self.scale = _scale(module, spec)
        if spec.has_low_rank:
            factors = _low_rank_params(module, spec, stored, **self.axes)
        if spec.has_magnitude:
            c = _column_scale(module, spec, stored, factors, self.scale, **self.axes)
        dropped = _dropped(module, spec, x) if spec.has_low_rank else x
        if dropped is x or c is None or spec.dropout_style == "low_rank":
            return self._product(x, dropped, kernel, factors, c)
        y = self._product(dropped, dropped, kernel, factors, c)
        return y + self.linear(x - dropped, kernel).astype(y.dtype)

    def _product(
        self,
        x: jax.Array,
        x_low: jax.Array,
        kernel: jax.Array,
        factors: tuple[jax.Array, jax.Array] | None,
        c: jax.Array | None,
    ) -> jax.Array:
        spec, dtype = self.spec, x.dtype
        a, b = (factors[0].astype(dtype), factors[1].astype(dtype)) if factors else (None, None)
        if c is not None and spec.norm_axis == "in":
            if self.spread_in is None:
                c_wide = c[..., None]
                kernel = (kernel * c_wide).astype(dtype)
                a = None if a is None else (a * c_wide).astype(dtype)
            else:
                c_in = self.spread_in(c)
                same = x_low is x
                x = scale_features(x, c_in, dtype)
                x_low = x if same else scale_features(x_low, c_in, dtype)
        z = self.linear(x, kernel)
        if a is not None and b is not None:
            low = checkpoint_name(self.reduce(x_low, a).astype(dtype), LOW_RANK)
            z = z + self.scale * self.expand(low, b)
        if c is not None and spec.norm_axis == "out":
            return scale_features(z, self.spread_out(c), dtype)
        return checkpoint_name(z.astype(dtype), PRODUCT)


def _call_with(
    call: Callable[[jax.Array], jax.Array],
    module: nn.Module,
    field: str,
    product: Callable[..., jax.Array],
    inputs: jax.Array,
) -> jax.Array:
    """Run Flax's own layer with another product in its `field`.

    The field is set on this bound instance for the call alone: as a permanent field, a closure
    over the module would break its equality and hash.
    """
    if getattr(module, field) is not None or getattr(module, f"{field}_cls") is not None:
        raise ValueError(
            f"{'/'.join(module.path) or type(module).__name__}: an adapter needs the product for "
            f"itself, so {field} and {field}_cls cannot be given"
        )
    object.__setattr__(module, field, product)
    try:
        return call(inputs)
    finally:
        object.__setattr__(module, field, None)


def _dot(x: jax.Array, w: jax.Array, dims: tuple, precision: Any) -> jax.Array:
    """Return the product in the sum dtype."""
    if x.dtype == sum_dtype(x):
        return lax.dot_general(x, w, dims, precision=precision)
    return _narrow_dot(x, w, dims, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _narrow_dot(x: jax.Array, w: jax.Array, dims: tuple, precision: Any) -> jax.Array:
    """Return the product of narrow operands, summed wide.

    JAX's own gradient would multiply the wide cotangent with the narrow kernel, and a backend then
    widens the kernel; this rounds the cotangent first, as a product with a narrow result has it.
    """
    return lax.dot_general(x, w, dims, precision=precision, preferred_element_type=sum_dtype(x))


def _narrow_dot_forward(x: Any, w: Any, dims: tuple, precision: Any) -> tuple:
    values = x.value, w.value
    return _narrow_dot(*values, dims, precision), (values, moving((x, w)))


def _narrow_dot_backward(dims: tuple, precision: Any, residuals: tuple, g: Any) -> tuple:
    values, moves = residuals

    def narrow(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.dot_general(x, w, dims, precision=precision)

    g = g if isinstance(g, SymbolicZero) else g.astype(values[0].dtype)
    return pull_back(narrow, values, moves, g)


_narrow_dot.defvjp(_narrow_dot_forward, _narrow_dot_backward, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _expand(low: jax.Array, b: jax.Array, stack: int, precision: Any) -> jax.Array:
    """Return low @ b, (*stack, *tokens, r) and (*stack, r, *out), in the sum dtype.

    JAX would take lora_b's gradient as (g^T low)^T, and a CPU then transposes g, of the size of the
    layer's output; this takes low^T g, of which only the narrow `low` is turned.
    """
    stacks = tuple(range(stack))
    return _dot(low, b, (((low.ndim - 1,), (stack,)), (stacks, stacks)), precision)


def _expand_forward(low: jax.Array, b: jax.Array, stack: int, precision: Any) -> tuple:
    return _expand(low, b, stack, precision), (low, b)


def _expand_backward(stack: int, precision: Any, residuals: tuple, g: jax.Array) -> tuple:
    low, b = residuals
    stacks, tokens = tuple(range(stack)), tuple(range(stack, low.ndim - 1))
    outs = tuple(range(low.ndim - 1, g.ndim)), tuple(range(stack + 1, b.ndim))
    g = g.astype(low.dtype)
    by_low = _dot(g, b, (outs, (stacks, stacks)), precision)
    by_b = _dot(low, g, ((tokens, tokens), (stacks, stacks)), precision)
    return by_low.astype(low.dtype), by_b.astype(b.dtype)


_expand.defvjp(_expand_forward, _expand_backward)


class Dense(nn.Dense):
    """`flax.linen.Dense` with an adapter; kernel (in, out), magnitude (out,) or (in,)."""

    adapter: Adapter = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        spec = _spec_of(self, self.adapter, "kernel")
        if not (spec.has_low_rank or spec.has_magnitude):
            return super().__call__(inputs)

        def dot_general(x: jax.Array, kernel: jax.Array, dims: tuple, precision: Any) -> jax.Array:
            trailing = (1,) * (x.ndim - 1)
            return _AdaptedProduct(
                self,
                spec,
                linear=lambda x, w: _dot(x, w, dims, precision),
                reduce=lambda x, a: _dot(x, a, dims, precision),
                expand=lambda low, b: _expand(low, b, 0, precision),
                spread_in=lambda c: c.reshape(trailing + c.shape),
                spread_out=lambda c: c.reshape(trailing + c.shape),
                in_ndim=1,
            )(x, kernel)

        return _call_with(super().__call__, self, "dot_general", dot_general, inputs)


class DenseGeneral(nn.DenseGeneral):
    """`flax.linen.DenseGeneral` with an adapter.

    kernel (*batch, *in, *out); lora_a (*batch, *in, r), lora_b (*batch, r, *out); magnitude
    (*batch, *out) or (*batch, *in): the norm runs over all input axes or all output axes.
    """

    adapter: Adapter = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        spec = _spec_of(self, self.adapter, "kernel")
        if not (spec.has_low_rank or spec.has_magnitude):
            return super().__call__(inputs)

        def dot_general(x: jax.Array, kernel: jax.Array, dims: tuple, precision: Any) -> jax.Array:
            (axis, _), (batch, _) = dims
            stack, rest = len(batch), x.ndim - len(axis) - len(batch)

            def spread_in(c: jax.Array) -> jax.Array:
                # c's axes are (batch, in), and Flax has them in the order in which x has them.
                own = (*batch, *axis)
                return c.reshape([size if i in own else 1 for i, size in enumerate(x.shape)])

            return _AdaptedProduct(
                self,
                spec,
                linear=lambda x, w: _dot(x, w, dims, precision),
                reduce=lambda x, a: _dot(x, a, dims, precision),
                expand=lambda low, b: _expand(low, b, stack, precision),
                spread_in=spread_in,
                spread_out=lambda c: c.reshape(c.shape[:stack] + (1,) * rest + c.shape[stack:]),
                in_ndim=len(axis),
                stack_ndim=stack,
            )(x, kernel)

        return _call_with(super().__call__, self, "dot_general", dot_general, inputs)


class Conv(nn.Conv):
    """`flax.linen.Conv` with an adapter; the window and the channels count as inputs.

    kernel (*window, in / groups, out); lora_a (*window, in / groups, r), lora_b (r, out);
    magnitude (out,), or (*window, in / groups) with norm_axis="in".
    """

    adapter: Adapter = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        spec = _spec_of(self, self.adapter, "kernel")
        if not (spec.has_low_rank or spec.has_magnitude):
            return super().__call__(inputs)
        if self.mask is not None:
            raise ValueError(f"{'/'.join(self.path)}: an adapter cannot hold a kernel mask")
        groups = self.feature_group_count

        def convolve(
            x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any
        ) -> jax.Array:
            options["preferred_element_type"] = sum_dtype(x)

            def linear(x: jax.Array, w: jax.Array) -> jax.Array:
                return lax.conv_general_dilated(x, w, strides, padding, **options)

            def expand(low: jax.Array, b: jax.Array) -> jax.Array:
                low = low.reshape(*low.shape[:-1], groups, -1)
                b = b.reshape(b.shape[0], groups, -1)
                y = jnp.einsum(
                    "...gr,rgo->...go",
                    low,
                    b,
                    precision=self.precision,
                    preferred_element_type=sum_dtype(low),
                )
                return y.reshape(*y.shape[:-2], -1)

            return _AdaptedProduct(
                self,
                spec,
                linear=linear,
                # The low-rank window serves every group: (.., r) becomes (.., groups * r).
                reduce=lambda x, a: linear(x, jnp.concatenate([a] * groups, axis=-1)),
                expand=expand,
                spread_in=None,
                spread_out=lambda c: c.reshape((1,) * (x.ndim - 1) + c.shape),
                in_ndim=kernel.ndim - 1,
            )(x, kernel)

        return _call_with(super().__call__, self, "conv_general_dilated", convolve, inputs)


class Embed(nn.Embed):
    """`flax.linen.Embed` with an adapter: the embedding is a kernel (in = vocabulary, out).

    lora_a (vocabulary, r), lora_b (r, features); magnitude (features,) as in PEFT, or
    (vocabulary,) with norm_axis="in". A low-rank path's dropout does not apply: ids cannot be
    dropped.
    """

    adapter: Adapter = None

    def setup(self) -> None:
        super().setup()
        spec = self.spec = _spec_of(self, self.adapter, "embedding")
        stored = nn.meta.unbox(self.embedding)
        self.factors = _low_rank_params(self, spec, stored, 1, 0) if spec.has_low_rank else None
        self.c = (
            _column_scale(self, spec, stored, self.factors, spec.scale, 1, 0)
            if spec.has_magnitude
            else None
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        y = super().__call__(inputs)
        if self.factors is None and self.c is None:
            return y
        z = y.astype(sum_dtype(y))
        if self.factors is not None:
            a, b = self.factors
            low = jnp.take(a, inputs, axis=0).astype(y.dtype)
            z = z + self.spec.scale * _expand(low, b.astype(y.dtype), 0, None)
        if self.c is None:
            return z.astype(y.dtype)
        if self.spec.norm_axis == "in":
            # One scale a token: its gradient is a sum over features, plain autodiff does it.
            return (z * jnp.take(self.c, inputs)[..., None]).astype(y.dtype)
        return scale_features(z, self.c.reshape((1,) * (z.ndim - 1) + self.c.shape), y.dtype)

    def attend(self, query: jax.Array) -> jax.Array:
        if self.factors is None and self.c is None:
            return super().attend(query)
        promoted: Any = self.promote_dtype(query, self.embedding, dtype=self.dtype)
        query, embedding = promoted
        dtype, last = query.dtype, query.ndim - 1
        c = None if self.c is None else self.c.reshape((1,) * last + self.c.shape)
        if c is not None and self.spec.norm_axis == "out":
            query = scale_features(query, c, dtype)
        z = _dot(query, embedding, (((last,), (1,)), ((), ())), None)
        if self.factors is not None:
            a, b = (f.astype(dtype) for f in self.factors)
            low = _dot(query, b, (((last,), (1,)), ((), ())), None).astype(dtype)
            z = z + self.spec.scale * _dot(low, a, (((last,), (1,)), ((), ())), None)
        if c is not None and self.spec.norm_axis == "in":
            return scale_features(z, c, dtype)
        return z.astype(dtype)
