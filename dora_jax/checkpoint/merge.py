"""A base model and an adapter to a plain Hugging Face folder that anything can serve."""

from pathlib import Path

import jax
import numpy as np

from dora_jax.adapters import merge_params
from dora_jax.checkpoint.adapter import load_model
from dora_jax.checkpoint.hf import write_hf_folder


def merge_to_hf(adapter: Path, out: Path, dtype: str = "float32") -> None:
    """Merge an adapter into its base model and write safetensors, config and tokenizer.

    The arithmetic is float32; weights are rounded once, to `dtype`.

    Args:
        adapter: an adapter's folder, or the part of a run that holds one.
        out: the folder to write; must not exist, or be empty.
        dtype: of the written weights: float32, bfloat16 or float16.

    Raises:
        DoraError: when the adapter or its base model cannot be loaded, or `out` cannot be written.
    """
    loaded = load_model("", adapter)
    assert loaded.rules is not None, "load_model returns rules with an adapter"
    merged = jax.tree.map(np.asarray, merge_params(loaded.params, loaded.rules))
    pretrained = loaded.pretrained
    write_hf_folder(out, pretrained.config, merged, pretrained.tokenizer, dtype=dtype)
