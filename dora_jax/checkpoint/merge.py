"""A base model and an adapter to a plain Hugging Face folder that anything can serve."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes  # noqa: F401  # registers "bfloat16" with numpy
import numpy as np

from dora_jax.checkpoint.adapter import load_model
from dora_jax.checkpoint.folder import check_free_name
from dora_jax.checkpoint.pretrained import write_pretrained
from dora_jax.checkpoint.state import flatten


class Rounding(NamedTuple):
    """What writing weights in a narrower type loses.

    Attributes:
        dtype: that type.
        path: of the array with the weight that changes most.
        change: of that weight, |rounded - merged|.
        share: ||rounded - merged|| / ||merged - base|| over all arrays that the adapter changed:
            at 1, rounding is as large as what was learnt.
    """

    dtype: str
    path: str
    change: float
    share: float

    def __str__(self) -> str:
        return (
            f"rounding to {self.dtype} changes a weight by {self.change:.3g} at most "
            f"({self.path}), and is {self.share:.2%} of the adapter's own change"
        )


def rounding(base: dict[str, Any], merged: dict[str, Any], dtype: str) -> Rounding | None:
    """Return what rounding loses of merged float32 weights; None where it loses nothing.

    Args:
        base: the plain model's parameters before.
        merged: after; an array at a time is rounded.
        dtype: of the written weights.
    """
    worst, where, lost, moved = 0.0, "", 0.0, 0.0
    flat_base = flatten(base)
    for path, leaf in flatten(merged).items():
        with np.errstate(over="ignore"):  # the writer refuses it
            error = np.abs(leaf.astype(dtype).astype(np.float32) - leaf)
        largest = float(error.max())
        if largest > worst:
            worst, where = largest, path
        difference = leaf - np.asarray(flat_base[path])
        if difference.any():
            lost += float(np.square(error, dtype=np.float64).sum())
            moved += float(np.square(difference, dtype=np.float64).sum())
    if not worst:
        return None
    return Rounding(dtype, where, worst, (lost / moved) ** 0.5 if moved else 0.0)


def merge_to_hf(
    adapter: Path, out: Path, dtype: str = "float32", model: str | None = None
) -> Rounding | None:
    """Merge an adapter into its base model and write safetensors, configs and tokenizer.

    The arithmetic is float32; weights are rounded once, to `dtype`.

    Args:
        adapter: an adapter's folder, or the part of a run that holds one.
        out: the folder to write; must not exist, or be empty.
        dtype: of the written weights: float32, bfloat16 or float16.
        model: where the base weights are now; None takes the adapter's own record.

    Returns:
        What the rounding lost; None where it lost nothing.

    Raises:
        DoraError: when the adapter or its base model cannot be loaded, or `out` cannot be written.
    """
    check_free_name(out)  # before minutes of loading
    loaded = load_model(model, adapter)
    merged = jax.tree.map(np.asarray, loaded.merged())
    pretrained = loaded.pretrained
    write_pretrained(out, dataclasses.replace(pretrained, params=merged), dtype)
    return rounding(pretrained.params, merged, dtype)
