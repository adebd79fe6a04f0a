"""Where metrics go beside `metrics.jsonl`: TensorBoard, Weights & Biases."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from dora_jax.errors import DoraError

TrackerName = Literal["tensorboard", "wandb"]
_EXTRA = "pip install 'dora-jax[tracking]', or leave it out of --track"


class Tracker(Protocol):
    """Takes the numbers of each step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the finite numbers of one step."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class _TensorBoard:
    """Event files in `tensorboard/` of the run's part."""

    def __init__(self, folder: Path, done: int):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise DoraError(f"track tensorboard needs tensorboardX: {_EXTRA}") from error
        # Points of steps that are done again, after an interruption, are not shown.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run of Weights & Biases, in `wandb/` of the run's part; `$WANDB_MODE=offline` stays here.

    The same part continues the same run.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise DoraError(f"track wandb needs wandb: {_EXTRA}") from error
        part = folder.absolute()
        self._run = wandb.init(
            id=hashlib.sha256(str(part).encode()).hexdigest()[:12],
            name="/".join(part.parts[-3:]),
            dir=str(folder),
            config=dict(settings),
            resume="allow",
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackers:
    """All trackers of a run's part; a context manager.

    Args:
        names: which.
        folder: of the part.
        settings: shown with the run.
        done: steps that were done before.

    Raises:
        DoraError: when one is not installed.
    """

    def __init__(
        self, names: tuple[TrackerName, ...], folder: Path, settings: Mapping[str, Any], done: int
    ):
        self._trackers: list[Tracker] = []
        for name in names:
            made = _TensorBoard(folder, done) if name == "tensorboard" else _Wandb(folder, settings)
            self._trackers.append(made)

    def log(self, row: Mapping[str, Any]) -> None:
        """Take a row of the metrics: the finite numbers in it."""
        values = {
            name: float(value)
            for name, value in row.items()
            if name != "step" and isinstance(value, int | float) and math.isfinite(value)
        }
        for tracker in self._trackers:
            tracker.log(row["step"], values)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *exception: object) -> None:
        for tracker in self._trackers:
            tracker.close()
