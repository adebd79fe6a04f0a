"""Training state and adapters on disk, by orbax: nothing is ever pickled.

A tree is stored as a flat dict of arrays under slash-joined names, so that what is on disk can be
read without the code that wrote it. Orbax writes to a temporary folder and renames it: a killed
write leaves nothing that a later run would trust.
"""

from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp

from dora_jax.errors import DoraError


def _flatten(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _check(stored: dict[str, Any], expected: dict[str, Any], where: Path, way_out: str) -> None:
    problems = [f"missing {n}" for n in expected if n not in stored]
    problems += [f"unexpected {n}" for n in stored if n not in expected]
    problems += [
        f"{n} has shape {tuple(stored[n].shape)}, expected {tuple(leaf.shape)}"
        for n, leaf in expected.items()
        if n in stored and tuple(stored[n].shape) != tuple(leaf.shape)
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" * (len(problems) > 5))
        raise DoraError(f"{where}: not a checkpoint of this run ({shown}); {way_out}")


class CheckpointStore:
    """The checkpoints of one run: the last two are kept.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, state: Any) -> None:
        """Store a state under its step; returns while the write goes on."""
        arrays = {name: np.asarray(leaf) for name, leaf in _flatten(state).items()}
        self._manager.save(step, args=ocp.args.StandardSave(arrays))

    def latest_step(self) -> int | None:
        """Return the step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def restore(self, template: Any) -> Any:
        """Return the newest state, in the template's structure, shapes and dtypes.

        Raises:
            DoraError: when it cannot be read or is of another structure.
        """
        step = self._manager.latest_step()
        where = self.folder / str(step)
        way_out = f"delete {self.folder} to train this part again from its start"
        try:
            stored = self._manager.restore(step, args=ocp.args.StandardRestore())
        except Exception as error:
            # Orbax raises many types for damaged files; all mean the same to the user.
            raise DoraError(f"{where}: damaged checkpoint ({error}); {way_out}") from error
        expected = _flatten(template)
        _check(stored, expected, where, way_out)
        leaves = [np.asarray(stored[name], leaf.dtype) for name, leaf in expected.items()]
        return jax.tree.unflatten(jax.tree.structure(template), leaves)

    def close(self) -> None:
        """Wait for pending writes."""
        self._manager.close()


def save_tree(folder: Path, tree: Any) -> None:
    """Write a nested dict of arrays (None leaves are left out), replacing what was there."""
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = {name: np.asarray(leaf) for name, leaf in _flatten(tree).items()}
        checkpointer.save(folder.absolute(), arrays, force=True)


def load_tree(folder: Path) -> Any:
    """Read what `save_tree` wrote.

    Raises:
        DoraError: when there is no complete tree in the folder.
    """
    if not folder.is_dir():
        raise DoraError(f"{folder}: no such checkpoint folder")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            flat = checkpointer.restore(folder.absolute())
    except Exception as error:
        raise DoraError(
            f"{folder}: damaged or not an orbax checkpoint ({error}); train it again"
        ) from error
    return flax.traverse_util.unflatten_dict(flat, sep="/")
