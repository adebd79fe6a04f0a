"""Gradients of a `custom_vjp` with `symbolic_zeros`, by the differentiated arguments alone.

A frozen kernel's gradient would otherwise stand in the program, and be computed where no compiler
finds that nobody reads it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero


def moving(args: Sequence[Any]) -> tuple[tuple[()] | None, ...]:
    """Return a residual that tells which of the forward rule's arguments are differentiated.

    Residuals are trees of arrays, so its structure tells: () where one is, None where not.
    """
    return tuple(() if arg.perturbed else None for arg in args)


def pull_back(
    function: Callable[..., Any], values: Sequence[Any], moves: Sequence[tuple[()] | None], g: Any
) -> tuple[Any, ...]:
    """Return the gradient of `function(*values)` by each argument that moves, None for the others.

    Args:
        function: what is differentiated.
        values: its arguments.
        moves: what `moving` returned.
        g: the result's cotangent, perhaps a `SymbolicZero`.
    """
    indices = [i for i, moves_too in enumerate(moves) if moves_too is not None]
    if isinstance(g, SymbolicZero):
        return (None,) * len(values)

    def of_moving(*moved: Any) -> Any:
        args = list(values)
        for i, value in zip(indices, moved, strict=True):
            args[i] = value
        return function(*args)

    _, pull = jax.vjp(of_moving, *(values[i] for i in indices))
    found = dict(zip(indices, pull(g), strict=True))
    return tuple(found.get(i) for i in range(len(values)))
