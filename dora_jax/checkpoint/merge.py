"""A base model and an adapter to a plain Hugging Face folder that anything can serve."""

from pathlib import Path

import jax
import numpy as np

from dora_jax.checkpoint.adapter import load_model
from dora_jax.checkpoint.hf import check_free_name, write_hf_folder


def merge_to_hf(adapter: Path, out: Path, dtype: str = "float32", model: str | None = None) -> None:
    """Merge an adapter into its base model and write safetensors, configs and tokenizer.

    The arithmetic is float32; weights are rounded once, to `dtype`.

    Args:
        adapter: an adapter's folder, or the part of a run that holds one.
        out: the folder to write; must not exist, or be empty.
        dtype: of the written weights: float32, bfloat16 or float16.
        model: where the base weights are now; None takes the adapter's own record.

    Raises:
        DoraError: when the adapter or its base model cannot be loaded, or `out` cannot be written.
    """
    check_free_name(out)  # before minutes of loading
    loaded = load_model(model, adapter)
    merged = jax.tree.map(np.asarray, loaded.merged())
    pretrained = loaded.pretrained
    write_hf_folder(
        out,
        pretrained.config,
        merged,
        pretrained.tokenizer,
        dtype=dtype,
        generation=pretrained.generation,
    )
