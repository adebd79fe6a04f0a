"""The checkpoints of a run: written while it goes on, checked when they are read.

Each step's folder holds `state` (the arrays, by name; each process and device writes its own part)
and `manifest` (what belongs to them, see `Manifest`). Orbax writes to a temporary folder and
renames it: a killed write leaves nothing that a later run would trust. Tensorstore does not notice
a flipped bit, so the manifest has a checksum of every array.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from dora_jax.analysis.records import differences
from dora_jax.checkpoint.checksum import checksums
from dora_jax.checkpoint.state import MAKE_ROOM, flatten, in_words, misfits
from dora_jax.errors import DoraError

_log = logging.getLogger(__name__)

_FORMAT = 1
_STATE, _MANIFEST, _SEAL = "state", "manifest", "seal"


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint belongs to, beside its arrays.

    Attributes:
        step: number of steps done.
        identity: what the run is: the base model's weights, rules, data, seed; plain JSON.
        metric: by which the best checkpoint is kept, smaller is better; None where not measured.
    """

    step: int
    identity: Mapping[str, Any]
    metric: float | None = None


class CheckpointStore:
    """The checkpoints of one run; a context manager. Every process calls the same methods.

    Args:
        folder: made if it is not there.
        identity: what the run is; a checkpoint of another one is refused.
        keep: number of latest checkpoints that are kept.
        keep_best: whether the one of the least metric is kept too.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any] | None = None,
        *,
        keep: int = 2,
        keep_best: bool = False,
    ):
        self.folder = folder.absolute()
        self._identity = dict(identity or {})
        kept: list[preservation_policy.PreservationPolicy] = [preservation_policy.LatestN(keep)]
        if keep_best:
            best = preservation_policy.BestN(
                get_metric_fn=lambda metrics: metrics["metric"],
                reverse=True,
                n=1,
                keep_checkpoints_without_metrics=False,
            )
            kept.append(best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
        )
        with in_words(f"{self.folder}: cannot hold checkpoints", MAKE_ROOM):
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, item_names=(_STATE, _MANIFEST)
            )

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, step: int, state: Any, metric: float | None = None) -> None:
        """Store a state under its step; returns when it may be changed, before all is written.

        Args:
            step: number of steps done.
            state: arrays, where they lie.
            metric: see `Manifest`.

        Raises:
            DoraError: when this one, or the one before, cannot be written.
        """
        arrays = _own_copies(flatten(state))
        manifest = {
            "format": _FORMAT,
            "step": step,
            "identity": self._identity,
            "metric": metric,
            "arrays": {
                name: {"shape": list(x.shape), "dtype": str(x.dtype), "checksum": checksum}
                for (name, x), checksum in zip(
                    arrays.items(), checksums(arrays).values(), strict=True
                )
            },
        }
        with self._writing(f"the checkpoint of step {step}"):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{
                        _STATE: ocp.args.StandardSave(arrays),
                        _MANIFEST: ocp.args.JsonSave(manifest | {_SEAL: _seal(manifest)}),
                    }
                ),
                metrics=None if metric is None else {"metric": metric},
            )

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def restore(self, template: Any, step: int | None = None) -> tuple[Any, Manifest] | None:
        """Return the newest sound checkpoint, its arrays in their places; None if there is none.

        One that is damaged is deleted, with a warning, and the one before it taken.

        Args:
            template: arrays (or shapes with shardings) that say structure, dtypes and places.
            step: the only one that will do; None is the newest.

        Raises:
            DoraError: when none of those that are there is sound, or they are of another run or
                structure; says what differs.
        """
        steps = [n for n in reversed(self.steps()) if step in (None, n)]
        problem = ""
        for number in steps:
            try:
                return self._read(number, template)
            except _DamagedError as error:
                problem = f"{self.folder / str(number)}: damaged checkpoint ({error})"
                _log.warning("%s; going on from the one before it", problem)
                self._manager.delete(number)
        if problem:
            raise DoraError(
                f"{problem}; no sound one is left: delete {self.folder} to train this part again "
                "from its start"
            )
        return None

    def _read(self, step: int, template: Any) -> tuple[Any, Manifest]:
        where, expected = self.folder / str(step), flatten(template)
        with _damage():
            stored = self._manager.restore(
                step, args=ocp.args.Composite(**{_MANIFEST: ocp.args.JsonRestore()})
            )[_MANIFEST]
            seal = stored.pop(_SEAL)
            if seal != _seal(stored):
                raise ValueError("its manifest is not what was written")
            described = {
                name: jax.ShapeDtypeStruct(tuple(entry["shape"]), entry["dtype"])
                for name, entry in stored["arrays"].items()
            }
            identity, metric = stored["identity"], stored["metric"]
        anew = f"delete {self.folder} to train this part again from its start"
        problems = "; ".join(differences(identity, self._identity))
        problems = problems or misfits(described, expected)
        if problems:
            raise DoraError(f"{where}: not a checkpoint of this run ({problems}); {anew}")
        wanted = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))
            for name, x in expected.items()
        }
        with _damage():
            arrays = self._manager.restore(
                step, args=ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(wanted)})
            )[_STATE]
            found = checksums(arrays)
            wrong = [n for n, x in stored["arrays"].items() if x["checksum"] != found[n]]
            if wrong:
                raise ValueError(f"{', '.join(wrong[:3])} is not what was written")
        leaves = [arrays[name] for name in expected]
        state = jax.tree.unflatten(jax.tree.structure(template), leaves)
        return state, Manifest(step, identity, metric)

    def wait(self) -> None:
        """Return when everything is written.

        Raises:
            DoraError: when it could not be.
        """
        with self._writing("a checkpoint"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for what is being written, and free what orbax holds.

        Raises:
            DoraError: when something could not be written.
        """
        with self._writing("a checkpoint"):
            self._manager.close()

    def _writing(self, what: str) -> contextlib.AbstractContextManager[None]:
        return in_words(f"{self.folder}: {what} could not be written", MAKE_ROOM)


def _seal(manifest: Mapping[str, Any]) -> str:
    """Return a digest of a manifest: with a bit flipped it may well be JSON still."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _own_copies(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return arrays that nothing else writes to: orbax reads a CPU's where they lie."""
    if jax.default_backend() != "cpu":
        return dict(arrays)
    return {name: jnp.copy(x) if isinstance(x, jax.Array) else x for name, x in arrays.items()}


class _DamagedError(Exception):
    """What is on the disk is not what was written."""


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Raise for whatever goes wrong in any process, in all of them: a `_DamagedError`."""
    problem = ""
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise many types
        # What follows is a kilobyte of tensorstore's settings.
        problem, *_ = (str(error) or type(error).__name__).split(" [tensorstore_spec")
    everywhere = bool(problem)
    if jax.process_count() > 1:
        everywhere = bool(np.any(multihost_utils.process_allgather(np.array(bool(problem)))))
    if everywhere:
        raise _DamagedError(problem or "in another process")
