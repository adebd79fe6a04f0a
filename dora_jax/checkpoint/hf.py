"""Hugging Face folders of the LLaMA family: config, safetensors, tokenizer; read and written."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dora_jax.checkpoint import hf_config
from dora_jax.checkpoint.assemble import Shardings
from dora_jax.checkpoint.folder import (
    AGAIN,
    MAX_SHARD_BYTES,
    WEIGHTS_FILE,
    Files,
    check_tensors,
    new_model_folder,
    open_weights,
    read_weights,
    weight_files,
)
from dora_jax.checkpoint.names import parse_dtype, tensors
from dora_jax.data.tokenizer import TOKENIZER_FILE, Tokenizer
from dora_jax.errors import DoraError
from dora_jax.json_file import read_json_object
from dora_jax.models.config import LlamaConfig

GENERATION_FILE = "generation_config.json"
# Rows of a tied head that are compared at a time.
_COMPARED = 1024


def missing_files(folder: Path) -> list[str]:
    """Return the names of the files that a folder lacks to be read."""
    try:
        weights = weight_files(folder)
    except DoraError:
        weights = [WEIGHTS_FILE]
    wanted = [hf_config.FILE, TOKENIZER_FILE, *weights]
    return [name for name in wanted if not (folder / name).is_file()]


def is_unused(name: str, head: str, is_tied: bool) -> bool:
    """Whether a tensor is of no use: old files hold rotary frequencies, some a tied head.

    Args:
        name: the tensor's.
        head: the head's weight.
        is_tied: whether that is the embedding.
    """
    return name.endswith("rotary_emb.inv_freq") or (is_tied and name == head)


def check_tied_head(folder: Path, files: Files, head: str, embedding: str) -> None:
    """Check that a head which is in the files beside the embedding that it is tied to is the same.

    Args:
        folder: named in messages.
        files: of each tensor, by `open_weights`; the embedding is among them.
        head: the name of its weight.
        embedding: likewise.

    Raises:
        DoraError: when they differ.
    """
    if head not in files:
        return
    shape = files[embedding].tensors[embedding].shape
    is_same = files[head].tensors[head].shape == shape
    for start in range(0, shape[0] if is_same else 0, _COMPARED):
        stop = min(start + _COMPARED, shape[0])
        own, tied = (files[name].rows(name, start, stop) for name in (head, embedding))
        # What a tied head may hold is no reason to refuse NaN, which the warning names.
        is_same = is_same and np.array_equal(own, tied, equal_nan=True)
    if not is_same:
        raise DoraError(
            f"{folder}: tie_word_embeddings is true, but {head} differs from {embedding}; "
            f"correct it in {hf_config.FILE}"
        )


def read_hf_folder(
    path: str | Path, dtype: Any = "float32", sharding: Shardings | None = None
) -> tuple[LlamaConfig, dict[str, Any], Tokenizer]:
    """Read a model of the LLaMA family from a Hugging Face folder.

    The files are mapped, and read a piece at a time into their place.

    Args:
        path: the folder; weights in one safetensors file, or in several with an index.
        dtype: of the arrays returned: float32, bfloat16 or float16.
        sharding: where the arrays go: a sharding for all of them, or a function of path and shape
            that returns one; None keeps them on the host.

    Returns:
        The shape, the parameters as a nested dict of numpy arrays (jax arrays where a `sharding` is
        given), and the tokenizer.

    Raises:
        DoraError: when files are missing or damaged, the architecture or a setting is not
            supported, or tensors are missing, unexpected or of another shape.
    """
    folder = Path(path)
    wanted = parse_dtype(dtype)
    if not folder.is_dir():
        raise DoraError(f"{folder}: no such folder")
    config = hf_config.read_config(folder / hf_config.FILE)
    table = tensors(config)
    files = open_weights(folder)
    head, is_tied = "lm_head.weight", config.tie_word_embeddings
    check_tensors(folder, files, table, lambda name: is_unused(name, head, is_tied))
    if is_tied:
        check_tied_head(folder, files, head, "model.embed_tokens.weight")
    tokenizer = Tokenizer.load(folder)  # before the long work
    params = read_weights(folder, files, table, wanted, sharding)
    return config, params, tokenizer


def read_generation_config(folder: Path) -> dict[str, Any] | None:
    """Return a folder's `generation_config.json`, or None where there is none.

    Raises:
        DoraError: when it is broken.
    """
    path = folder / GENERATION_FILE
    if not path.is_file():
        return None
    return read_json_object(path, AGAIN, ". ")


def write_generation_config(folder: Path, generation: dict[str, Any] | None) -> None:
    """Write a folder's `generation_config.json`, where there is one."""
    if generation is not None:
        text = json.dumps(generation, indent=2) + "\n"
        (folder / GENERATION_FILE).write_text(text, encoding="utf-8")


def write_hf_folder(
    path: str | Path,
    config: LlamaConfig,
    params: dict[str, Any],
    tokenizer: Tokenizer,
    dtype: Any = "float32",
    *,
    generation: dict[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model as a Hugging Face folder that `transformers` and servers load.

    It is written beside `path` under a temporary name, and renamed when it is complete. No more
    than one tensor of a layer is held besides `params`.

    Args:
        path: the folder; must not exist, or be empty.
        config: the model's shape.
        params: the plain model's parameters (adapters merged); numpy or jax arrays.
        tokenizer: written beside them.
        dtype: of the weights: float32, bfloat16 or float16.
        generation: the model's `generation_config.json`, if it has one.
        max_shard_bytes: more than this goes to several files and an index.

    Raises:
        DoraError: when parameters do not fit the shape, the folder is not empty, the disk is too
            small, or the file system refuses.
    """
    path, wanted = Path(path), parse_dtype(dtype)
    with new_model_folder(path, tensors(config), params, wanted, max_shard_bytes) as folder:
        tokenizer.save(folder)
        text = hf_config.to_json(config, wanted.name)
        (folder / hf_config.FILE).write_text(text, encoding="utf-8")
        write_generation_config(folder, generation)
