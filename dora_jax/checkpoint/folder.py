"""Folders of weights in safetensors files, as Hugging Face lays them out; read and written.

What a model's tensors are is told by its table (`names.Tensor`); the other files of a folder are
its readers' own.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np

from dora_jax.checkpoint.assemble import Shardings, build_params
from dora_jax.checkpoint.files import check_free_space
from dora_jax.checkpoint.names import Tensor, check_shapes, file_shapes, names_in_file
from dora_jax.checkpoint.safetensors_file import DTYPES, SafetensorsFile, write_safetensors
from dora_jax.errors import DoraError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
AGAIN = "Download the folder again, or take another one."
MAX_SHARD_BYTES = 5 * 10**9
_PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
# The tokenizer and the configs; SmolLM2's take 4 MB.
_OTHER_FILES_BYTES = 32 * 10**6
_AUTO_CLASS = "AutoModelForCausalLM"
Files = dict[str, SafetensorsFile]


def weight_files(folder: Path, auto_class: str = _AUTO_CLASS) -> list[str]:
    """Return the names of the weight files that the folder should hold.

    Args:
        folder: the folder.
        auto_class: of transformers, which converts pickled weights of such a model.

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
            raise DoraError(f"{index}: cannot be read ({error}). {AGAIN}") from error
    if any(any(folder.glob(pattern)) for pattern in _PICKLED):
        raise DoraError(
            f"{folder}: holds pickled weights (pytorch_model.bin) only, and unpickling runs code. "
            'If you trust them, convert them once with transformers: python -c "from transformers '
            f"import {auto_class} as M; M.from_pretrained('{folder}').save_pretrained("
            f"'{folder}')\""
        )
    raise DoraError(f"{folder}: has neither {WEIGHTS_FILE} nor {INDEX_FILE}. {AGAIN}")


def open_weights(folder: Path, auto_class: str = _AUTO_CLASS) -> Files:
    """Return the open file of each tensor, by its name; arguments and errors as `weight_files`."""
    files = weight_files(folder, auto_class)
    lacking = [name for name in files if not (folder / name).is_file()]
    if lacking:
        raise DoraError(f"{folder}: lacks {', '.join(lacking)}, named in {INDEX_FILE}. {AGAIN}")
    opened = [SafetensorsFile(folder / name) for name in files]
    return {name: file for file in opened for name in file.tensors}


def read_weights(
    folder: Path,
    files: Files,
    table: Sequence[Tensor],
    dtype: np.dtype,
    sharding: Shardings | None = None,
) -> dict[str, Any]:
    """Read a model's parameters, a piece at a time into their place.

    Args:
        folder: named in messages.
        files: of each tensor, by `open_weights`; checked by `check_tensors`.
        table: the model's tensors.
        dtype: of the arrays returned.
        sharding: where the arrays go; None keeps them on the host.
    """

    def rows(tensor: Tensor, name: str, start: int, stop: int) -> np.ndarray:
        return files[name].rows(name, start, stop)

    return build_params(table, "hf", dtype, rows, folder, sharding)


def check_tensors(
    folder: Path,
    files: Files,
    table: Sequence[Tensor],
    is_ignored: Callable[[str], bool] = lambda name: False,
) -> None:
    """Check that files hold a model's tensors.

    Args:
        folder: named in messages.
        files: of each tensor, by `open_weights`.
        table: the model's tensors.
        is_ignored: tells tensors of the files that are of no use.

    Raises:
        DoraError: when tensors are missing, unexpected, of another shape or of an unknown type.
    """
    stored = {name: file.tensors[name] for name, file in files.items() if not is_ignored(name)}
    shapes = {name: part.shape for name, part in stored.items()}
    check_shapes(folder, file_shapes(table, "hf"), shapes, AGAIN)
    kinds = {part.dtype for part in stored.values()} - set(DTYPES)
    if kinds:
        raise DoraError(
            f"{folder}: holds weights of type {', '.join(sorted(kinds))}; supported: "
            f"{', '.join(DTYPES)}"
        )


def _plan_shards(table: Sequence[Tensor], dtype: np.dtype, max_shard_bytes: int) -> list[list[str]]:
    """Return the names of the tensors in each file, in the table's order."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in file_shapes(table, "hf").items():
        size = int(np.prod(shape)) * dtype.itemsize
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_weights(
    folder: Path,
    table: Sequence[Tensor],
    flat: dict[str, Any],
    dtype: np.dtype,
    max_shard_bytes: int,
) -> None:
    rows = {
        name: (tensor, n)
        for tensor in table
        for n, name in enumerate(names_in_file(tensor, tensor.hf))
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
        return tensor.to_file(array)

    shards = _plan_shards(table, dtype, max_shard_bytes)
    shapes = file_shapes(table, "hf")
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        file = WEIGHTS_FILE if len(shards) == 1 else file
        write_safetensors(folder / file, {n: shapes[n] for n in names}, dtype, value)
        weight_map.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        index = {"metadata": {"total_size": _total_bytes(table, dtype)}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _total_bytes(table: Sequence[Tensor], dtype: np.dtype) -> int:
    return sum(int(np.prod(s)) for s in file_shapes(table, "hf").values()) * dtype.itemsize


def check_free_name(path: Path) -> None:
    """Check that a folder may be written under this name.

    Raises:
        DoraError: when something is there already.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DoraError(f"{path}: exists and is not an empty folder; choose another name")


@contextlib.contextmanager
def new_model_folder(
    path: Path,
    table: Sequence[Tensor],
    params: dict[str, Any],
    dtype: np.dtype,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Iterator[Path]:
    """Write a folder of weights, and what else its model needs, in one step.

    It is made beside `path` under a temporary name, and renamed when it is complete. No more than
    one tensor of a layer is held besides `params`.

    Args:
        path: the folder; must not exist, or be empty.
        table: the model's tensors.
        params: the plain model's parameters (adapters merged); numpy or jax arrays.
        dtype: of the weights.
        max_shard_bytes: more than this goes to several files and an index.

    Yields:
        The temporary folder, weights written, for the other files.

    Raises:
        DoraError: when parameters do not fit the table, the folder is not empty, the disk is too
            small, or the file system refuses.
    """
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    check_shapes(
        path,
        {tensor.path: tensor.whole_shape for tensor in table},
        {name: tuple(leaf.shape) for name, leaf in flat.items()},
        "Adapters must be merged first (`dora_jax.merge_params`).",
    )
    check_free_name(path)
    check_free_space(
        path.parent,
        _total_bytes(table, dtype) + _OTHER_FILES_BYTES,
        f"writing the model as {dtype.name}",
        "free some, choose a folder on another disk, or a smaller dtype such as bfloat16",
    )
    temporary = path.absolute().with_name(f".{path.absolute().name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        _write_weights(temporary, table, flat, dtype, max_shard_bytes)
        yield temporary
        _finish(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise DoraError(
            f"{path}: could not be written ({error}); nothing was left there. Free some space or "
            "choose a folder that you may write to"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _finish(folder: Path) -> None:
    """Make the files safe from a crash."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
