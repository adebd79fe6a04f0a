"""Training state and adapters on disk, by orbax: nothing is ever pickled.

A tree is stored as a flat dict of arrays under slash-joined names, so that what is on disk can be
read without the code that wrote it. Orbax writes to a temporary folder and renames it: a killed
write leaves nothing that a later run would trust. A digest of all arrays is stored beside them,
because tensorstore does not notice a flipped bit. Writes are not asynchronous: states are small,
and a failed write is known at once (orbax's threads would hold up the exit for minutes).
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
_MAKE_ROOM = "free some space, or choose a folder that you may write to"


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
def _in_words(problem: str, way_out: str) -> Iterator[None]:
    """Raise a DoraError for anything that orbax raises: many types, all the same to users."""
    try:
        yield
    except Exception as error:
        # What follows is a kilobyte of tensorstore's settings.
        reason, *_ = (str(error) or type(error).__name__).split(" [tensorstore_spec=")
        raise DoraError(f"{problem} ({reason}); {way_out}") from error


class CheckpointStore:
    """The checkpoints of one run: the last two are kept. A context manager.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        with _in_words(f"{self.folder}: cannot hold checkpoints", _MAKE_ROOM):
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, step: int, state: Any) -> None:
        """Store a state under its step.

        Raises:
            DoraError: when it cannot be written.
        """
        problem = f"{self.folder}: the checkpoint of step {step} could not be written"
        with _in_words(problem, _MAKE_ROOM):
            self._manager.save(step, args=ocp.args.StandardSave(_sealed(state)))

    def latest_step(self) -> int | None:
        """Return the step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def restore(self, template: Any) -> Any:
        """Return the newest state, in the template's structure, shapes and dtypes.

        Raises:
            DoraError: when there is none, or it cannot be read or is of another structure.
        """
        step = self._manager.latest_step()
        if step is None:
            raise DoraError(f"{self.folder}: holds no checkpoint")
        where = self.folder / str(step)
        way_out = f"delete {where} to continue from the checkpoint before it, or from the start"
        with _in_words(f"{where}: damaged checkpoint", way_out):
            stored = _unsealed(self._manager.restore(step, args=ocp.args.StandardRestore()))
        expected = flatten(template)
        problems = misfits(stored, expected)
        if problems:
            raise DoraError(
                f"{where}: not a checkpoint of this run ({problems}); "
                f"delete {self.folder} to train this part again from its start"
            )
        leaves = [np.asarray(stored[name], leaf.dtype) for name, leaf in expected.items()]
        return jax.tree.unflatten(jax.tree.structure(template), leaves)

    def close(self) -> None:
        """Free what orbax holds."""
        self._manager.close()


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())


def save_tree(folder: Path, tree: Any) -> None:
    """Write a nested dict of arrays (None leaves are left out), replacing what was there.

    Raises:
        DoraError: when it cannot be written.
    """
    with (
        _in_words(f"{folder}: could not be written", _MAKE_ROOM),
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
        _in_words(f"{folder}: damaged or not an orbax checkpoint", "train it again"),
        _checkpointer() as checkpointer,
    ):
        stored = checkpointer.restore(folder.absolute(), args=ocp.args.StandardRestore())
        flat = _unsealed(stored)
    return flax.traverse_util.unflatten_dict(flat, sep="/")
