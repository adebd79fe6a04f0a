"""Hugging Face folders of LLaMA models: config, safetensors, tokenizer; read and written."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
import safetensors
import safetensors.numpy

from dora_jax.checkpoint import hf_config
from dora_jax.checkpoint.files import check_free_space
from dora_jax.checkpoint.names import (
    Tensor,
    build_params,
    check_shapes,
    file_shapes,
    names_in_file,
    parse_dtype,
    tensors,
)
from dora_jax.data.tokenizer import TOKENIZER_FILE, Tokenizer
from dora_jax.errors import DoraError
from dora_jax.models.config import LlamaConfig

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_READABLE = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_AGAIN = "Download the folder again, or take another one."
_MAX_SHARD_BYTES = 5 * 10**9
# The tokenizer and the configs; SmolLM2's take 4 MB.
_OTHER_FILES_BYTES = 32 * 10**6


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
    if any(folder.glob("pytorch_model*.bin")):
        raise DoraError(
            f"{folder}: holds pickled weights (pytorch_model.bin) only, and unpickling runs code. "
            "Convert them once with transformers: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)"
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


@contextlib.contextmanager
def _open_weights(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the open safetensors file of each tensor, by the tensor's name."""
    files = _weight_files(folder)
    lacking = [name for name in files if not (folder / name).is_file()]
    if lacking:
        raise DoraError(f"{folder}: lacks {', '.join(lacking)}, named in {INDEX_FILE}. {_AGAIN}")
    with contextlib.ExitStack() as stack:
        found = {}
        for name in files:
            path = folder / name
            try:
                file = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
            except (safetensors.SafetensorError, OSError) as error:
                size = path.stat().st_size
                raise DoraError(
                    f"{path}: damaged, or cut off after {size} bytes ({error}). {_AGAIN}"
                ) from error
            found.update(dict.fromkeys(file.keys(), file))
        yield found


def _is_ignored(name: str, config: LlamaConfig) -> bool:
    """Whether a tensor is of no use: old files hold rotary frequencies, some a tied head."""
    is_tied_head = config.tie_word_embeddings and name == "lm_head.weight"
    return name.endswith("rotary_emb.inv_freq") or is_tied_head


def _check_tied_head(files: dict[str, Any], folder: Path, config: LlamaConfig) -> None:
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if config.tie_word_embeddings and head in files and embedding in files:
        values = [files[name].get_tensor(name) for name in (head, embedding)]
        if not np.array_equal(*values):
            raise DoraError(
                f"{folder}: tie_word_embeddings is true, but {head} differs from {embedding}; "
                f"correct it in {hf_config.FILE}"
            )


def read_hf_folder(
    path: str | Path, dtype: Any = "float32"
) -> tuple[LlamaConfig, dict[str, Any], Tokenizer]:
    """Read a LLaMA-architecture model from a Hugging Face folder.

    Args:
        path: the folder; weights in one safetensors file, or in several with an index.
        dtype: of the arrays returned: float32, bfloat16 or float16.

    Returns:
        The shape, the parameters as a nested dict of numpy arrays, and the tokenizer.

    Raises:
        DoraError: when files are missing or damaged, the architecture or a setting is not
            supported, or tensors are missing, unexpected or of another shape.
    """
    folder = Path(path)
    wanted = parse_dtype(dtype)
    if not folder.is_dir():
        raise DoraError(f"{folder}: no such folder")
    config = hf_config.read_config(folder / hf_config.FILE)
    with _open_weights(folder) as files:
        slices = {
            name: file.get_slice(name)
            for name, file in files.items()
            if not _is_ignored(name, config)
        }
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        check_shapes(folder, file_shapes(config, "hf"), shapes, _AGAIN)
        kinds = {part.get_dtype() for part in slices.values()} - set(_READABLE)
        if kinds:
            raise DoraError(
                f"{folder}: holds weights of type {', '.join(sorted(kinds))}; supported: "
                f"{', '.join(_READABLE)}"
            )
        _check_tied_head(files, folder, config)

        def read(tensor: Tensor, name: str) -> np.ndarray:
            return files[name].get_tensor(name)

        params = build_params(config, "hf", wanted, read)
    return config, params, Tokenizer.load(folder)


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
        return np.ascontiguousarray(array.T if tensor.is_transposed else array)

    shards = _plan_shards(config, dtype, max_shard_bytes)
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        file = WEIGHTS_FILE if len(shards) == 1 else file
        # transformers refuses files without this.
        metadata = {"format": "pt"}
        safetensors.numpy.save_file({n: value(n) for n in names}, folder / file, metadata)
        weight_map.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        index = {"metadata": {"total_size": _total_bytes(config, dtype)}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _total_bytes(config: LlamaConfig, dtype: np.dtype) -> int:
    return sum(int(np.prod(s)) for s in file_shapes(config, "hf").values()) * dtype.itemsize


def _finish(folder: Path) -> None:
    """Make the files safe from a crash, and as readable as the user's other files are."""
    mode = (folder / hf_config.FILE).stat().st_mode
    for path in folder.iterdir():
        path.chmod(mode)  # safetensors makes its files private
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
    max_shard_bytes: int = _MAX_SHARD_BYTES,
) -> None:
    """Write a model as a Hugging Face folder that `transformers` and servers load.

    It is written beside `path` under a temporary name, and renamed when it is complete.

    Args:
        path: the folder; must not exist, or be empty.
        config: the model's shape.
        params: the plain model's parameters (adapters merged); numpy or jax arrays.
        tokenizer: written beside them.
        dtype: of the weights: float32, bfloat16 or float16.
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
        _finish(temporary)
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError) as error:
        raise DoraError(
            f"{path}: could not be written ({error}); nothing was left there. Free some space or "
            "choose a folder that you may write to"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
