"""Hugging Face folders of the LLaMA family: config, safetensors, tokenizer; read and written."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np

from dora_jax.checkpoint import hf_config
from dora_jax.checkpoint.assemble import Shardings, build_params
from dora_jax.checkpoint.files import check_free_space
from dora_jax.checkpoint.names import (
    Tensor,
    check_shapes,
    file_shapes,
    names_in_file,
    parse_dtype,
    tensors,
)
from dora_jax.checkpoint.safetensors_file import DTYPES, SafetensorsFile, write_safetensors
from dora_jax.data.tokenizer import TOKENIZER_FILE, Tokenizer
from dora_jax.errors import DoraError
from dora_jax.models.config import LlamaConfig

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
GENERATION_FILE = "generation_config.json"
_PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
_AGAIN = "Download the folder again, or take another one."
_MAX_SHARD_BYTES = 5 * 10**9
# The tokenizer and the configs; SmolLM2's take 4 MB.
_OTHER_FILES_BYTES = 32 * 10**6
# Rows of a tied head that are compared at a time.
_COMPARED = 1024


def _weight_files(folder: Path) -> list[str]:
    """Return the names of the weight files that the folder should hold.

    Raises:
        DoraError: when there is nothing to tell it, or the index is broken.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [WEIGHTS_FILE]
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return sorted(set(weight_map.values()))
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
            raise DoraError(f"{index}: cannot be read ({error}). {_AGAIN}") from error
    if any(any(folder.glob(pattern)) for pattern in _PICKLED):
        raise DoraError(
            f"{folder}: holds pickled weights (pytorch_model.bin) only, and unpickling runs code. "
            'If you trust them, convert them once with transformers: python -c "from transformers '
            f"import AutoModelForCausalLM as M; M.from_pretrained('{folder}').save_pretrained("
            f"'{folder}')\""
        )
    raise DoraError(f"{folder}: has neither {WEIGHTS_FILE} nor {INDEX_FILE}. {_AGAIN}")


def missing_files(folder: Path) -> list[str]:
    """Return the names of the files that a folder lacks to be read."""
    try:
        weights = _weight_files(folder)
    except DoraError:
        weights = [WEIGHTS_FILE]
    wanted = [hf_config.FILE, TOKENIZER_FILE, *weights]
    return [name for name in wanted if not (folder / name).is_file()]


def _open_weights(folder: Path) -> dict[str, SafetensorsFile]:
    """Return the open file of each tensor, by the tensor's name."""
    files = _weight_files(folder)
    lacking = [name for name in files if not (folder / name).is_file()]
    if lacking:
        raise DoraError(f"{folder}: lacks {', '.join(lacking)}, named in {INDEX_FILE}. {_AGAIN}")
    opened = [SafetensorsFile(folder / name) for name in files]
    return {name: file for file in opened for name in file.tensors}


def _is_ignored(name: str, config: LlamaConfig) -> bool:
    """Whether a tensor is of no use: old files hold rotary frequencies, some a tied head."""
    is_tied_head = config.tie_word_embeddings and name == "lm_head.weight"
    return name.endswith("rotary_emb.inv_freq") or is_tied_head


def _check_tied_head(files: dict[str, SafetensorsFile], folder: Path, config: LlamaConfig) -> None:
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if not config.tie_word_embeddings or head not in files:
        return
    is_same = files[head].tensors[head].shape == (config.vocab_size, config.hidden_size)
    for start in range(0, config.vocab_size if is_same else 0, _COMPARED):
        stop = min(start + _COMPARED, config.vocab_size)
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
    files = _open_weights(folder)
    stored = {
        name: file.tensors[name] for name, file in files.items() if not _is_ignored(name, config)
    }
    shapes = {name: part.shape for name, part in stored.items()}
    check_shapes(folder, file_shapes(config, "hf"), shapes, _AGAIN)
    kinds = {part.dtype for part in stored.values()} - set(DTYPES)
    if kinds:
        raise DoraError(
            f"{folder}: holds weights of type {', '.join(sorted(kinds))}; supported: "
            f"{', '.join(DTYPES)}"
        )
    _check_tied_head(files, folder, config)
    tokenizer = Tokenizer.load(folder)  # before the long work

    def rows(tensor: Tensor, name: str, start: int, stop: int) -> np.ndarray:
        return files[name].rows(name, start, stop)

    return config, build_params(config, "hf", wanted, rows, folder, sharding), tokenizer


def read_generation_config(folder: Path) -> dict[str, Any] | None:
    """Return a folder's `generation_config.json`, or None where there is none.

    Raises:
        DoraError: when it is broken.
    """
    path = folder / GENERATION_FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DoraError(f"{path}: cannot be read ({error}). {_AGAIN}") from error
    if not isinstance(found, dict):
        raise DoraError(f"{path}: must hold a JSON object. {_AGAIN}")
    return found


def _plan_shards(config: LlamaConfig, dtype: np.dtype, max_shard_bytes: int) -> list[list[str]]:
    """Return the names of the tensors in each file, in the table's order."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in file_shapes(config, "hf").items():
        size = int(np.prod(shape)) * dtype.itemsize
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_weights(
    folder: Path, config: LlamaConfig, flat: dict[str, Any], dtype: np.dtype, max_shard_bytes: int
) -> None:
    rows = {
        name: (tensor, n)
        for tensor in tensors(config)
        for n, name in enumerate(names_in_file(tensor, tensor.hf, config.num_hidden_layers))
    }

    def value(name: str) -> np.ndarray:
        tensor, n = rows[name]
        array = flat[tensor.path][n] if tensor.is_stacked else flat[tensor.path]
        with np.errstate(over="ignore"):  # checked below
            array = np.asarray(array).astype(dtype)
        if dtype == np.float16 and np.isinf(array).any():
            raise DoraError(
                f"{folder}: {name} has weights beyond what float16 holds; choose bfloat16"
            )
        return array.T if tensor.is_transposed else array

    shards = _plan_shards(config, dtype, max_shard_bytes)
    shapes = file_shapes(config, "hf")
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        file = WEIGHTS_FILE if len(shards) == 1 else file
        write_safetensors(folder / file, {n: shapes[n] for n in names}, dtype, value)
        weight_map.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        index = {"metadata": {"total_size": _total_bytes(config, dtype)}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _total_bytes(config: LlamaConfig, dtype: np.dtype) -> int:
    return sum(int(np.prod(s)) for s in file_shapes(config, "hf").values()) * dtype.itemsize


def _finish(folder: Path) -> None:
    """Make the files safe from a crash."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def check_free_name(path: Path) -> None:
    """Check that a folder may be written under this name.

    Raises:
        DoraError: when something is there already.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DoraError(f"{path}: exists and is not an empty folder; choose another name")


def write_hf_folder(
    path: str | Path,
    config: LlamaConfig,
    params: dict[str, Any],
    tokenizer: Tokenizer,
    dtype: Any = "float32",
    *,
    generation: dict[str, Any] | None = None,
    max_shard_bytes: int = _MAX_SHARD_BYTES,
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
    path = Path(path)
    wanted = parse_dtype(dtype)
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    layers = config.num_hidden_layers
    expected = {t.path: ((layers,) if t.is_stacked else ()) + t.shape for t in tensors(config)}
    check_shapes(
        path,
        expected,
        {name: tuple(leaf.shape) for name, leaf in flat.items()},
        "Adapters must be merged first (`dora_jax.merge_params`).",
    )
    check_free_name(path)
    check_free_space(
        path.parent,
        _total_bytes(config, wanted) + _OTHER_FILES_BYTES,
        f"writing the model as {wanted.name}",
        "free some, choose a folder on another disk, or a smaller dtype such as bfloat16",
    )
    temporary = path.absolute().with_name(f".{path.absolute().name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        _write_weights(temporary, config, flat, wanted, max_shard_bytes)
        tokenizer.save(temporary)
        text = hf_config.to_json(config, wanted.name)
        (temporary / hf_config.FILE).write_text(text, encoding="utf-8")
        if generation is not None:
            text = json.dumps(generation, indent=2) + "\n"
            (temporary / GENERATION_FILE).write_text(text, encoding="utf-8")
        _finish(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise DoraError(
            f"{path}: could not be written ({error}); nothing was left there. Free some space or "
            "choose a folder that you may write to"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
