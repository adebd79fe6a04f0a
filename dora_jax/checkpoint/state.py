"""Trees of arrays on disk, by orbax: nothing is ever pickled.

A tree is stored as a flat dict of arrays under slash-joined names, so that what is on disk can be
read without the code that wrote it. Orbax writes to a temporary folder and renames it: a killed
write leaves nothing that a later run would trust. A digest of all arrays is stored beside them,
because tensorstore does not notice a flipped bit. (A run's checkpoints: see `store`.)
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp

from dora_jax.errors import DoraError

_DIGEST = "sha256"
MAKE_ROOM = "free some space, or choose a folder that you may write to"


def flatten(tree: Any) -> dict[str, Any]:
    """Return a tree's leaves by slash-joined names; None leaves are left out."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def misfits(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Return in words what is missing, unexpected or of another shape; "" when all fits.

    Args:
        found: arrays by name.
        expected: arrays, or their shapes, by name.
    """
    problems = [f"missing {n}" for n in expected if n not in found]
    problems += [f"unexpected {n}" for n in found if n not in expected]
    problems += [
        f"{n} has shape {tuple(found[n].shape)}, expected {tuple(leaf.shape)}"
        for n, leaf in expected.items()
        if n in found and tuple(found[n].shape) != tuple(leaf.shape)
    ]
    more = [f"and {len(problems) - 5} more"] if len(problems) > 5 else []
    return "; ".join(problems[:5] + more)


def _digest(arrays: Mapping[str, Any]) -> np.ndarray:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(array.tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def _sealed(tree: Any) -> dict[str, np.ndarray]:
    """Return a tree's arrays by name, and their digest among them."""
    arrays = {name: np.asarray(leaf) for name, leaf in flatten(tree).items()}
    return arrays | {_DIGEST: _digest(arrays)}


def _unsealed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `_sealed`.

    Raises:
        ValueError: when the arrays are not those that were written.
    """
    arrays = {name: leaf for name, leaf in stored.items() if name != _DIGEST}
    if _DIGEST not in stored or not np.array_equal(stored[_DIGEST], _digest(arrays)):
        raise ValueError("its arrays are not those that were written")
    return arrays


@contextlib.contextmanager
def in_words(problem: str, way_out: str) -> Iterator[None]:
    """Raise a DoraError for anything that orbax raises: many types, all the same to users."""
    try:
        yield
    except Exception as error:
        # What follows is a kilobyte of tensorstore's settings.
        reason, *_ = (str(error) or type(error).__name__).split(" [tensorstore_spec")
        raise DoraError(f"{problem} ({reason}); {way_out}") from error


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())


def save_tree(folder: Path, tree: Any) -> None:
    """Write a nested dict of arrays (None leaves are left out), replacing what was there.

    Raises:
        DoraError: when it cannot be written.
    """
    with (
        in_words(f"{folder}: could not be written", MAKE_ROOM),
        _checkpointer() as checkpointer,
    ):
        checkpointer.save(folder.absolute(), args=ocp.args.StandardSave(_sealed(tree)), force=True)


def load_tree(folder: Path) -> Any:
    """Read what `save_tree` wrote.

    Raises:
        DoraError: when there is no complete tree in the folder.
    """
    if not folder.is_dir():
        raise DoraError(f"{folder}: no such checkpoint folder")
    with (
        in_words(f"{folder}: damaged or not an orbax checkpoint", "train it again"),
        _checkpointer() as checkpointer,
    ):
        stored = checkpointer.restore(folder.absolute(), args=ocp.args.StandardRestore())
        flat = _unsealed(stored)
    return flax.traverse_util.unflatten_dict(flat, sep="/")
