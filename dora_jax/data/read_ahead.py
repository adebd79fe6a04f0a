"""Batches made before the step asks for them, by grain's threads or processes.

A batch is a pure function of its step, so what is made is the same for any number of workers, and
the only state is the number of the step that comes next.
"""

from collections.abc import Iterator
from typing import Any

from dora_jax.data.batches import StepBatches
from dora_jax.errors import DoraError
from dora_jax.training.step import Batch

_THREADS = 2  # enough for copies of arrays, which is all that a batch is
_LAST = 1 << 40  # no run has as many steps; grain's datasets are of a length


class ReadAhead:
    """Gives what `batches` gives, made ahead of time; asked for in order, it does not wait.

    Args:
        batches: where the batches come from.
        ahead: batches kept ready; 0 makes each when it is asked for, without grain.
        workers: processes that make them; 0 is threads of this process.
    """

    def __init__(self, batches: StepBatches, ahead: int = 2, workers: int = 0):
        self.batches, self._ahead, self._workers = batches, ahead, workers
        self._next = 0
        self._made: Iterator[Batch] | None = None

    def __getattr__(self, name: str) -> Any:
        """What else the batches tell: the names of their rows, their slots and efficiency."""
        if name.startswith("__") or name == "batches":
            raise AttributeError(name)
        return getattr(self.batches, name)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0; another one than the next starts anew."""
        if self._ahead == 0:
            found = self.batches.batch(step)
        else:
            if self._made is None or step != self._next:
                self.close()
                self._made = self._start(step)
            found = next(self._made)
        self._next = step + 1
        return found

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Return the next step's batch; there is always one."""
        return self.batch(self._next)

    def _start(self, step: int) -> Iterator[Batch]:
        try:
            import grain
            from absl import flags
        except ImportError as error:
            raise DoraError(
                "making batches ahead of the step needs grain: pip install "
                "'dora-jax[experiments]', or give --data.read-ahead 0"
            ) from error
        steps = grain.MapDataset.range(step, _LAST)
        options = grain.ReadOptions(
            num_threads=min(_THREADS, self._ahead), prefetch_buffer_size=self._ahead
        )
        made = steps.map(self.batches.batch).to_iter_dataset(options)
        if self._workers:
            # grain reads its settings from absl's flags, which nobody has parsed here.
            flags.FLAGS.mark_as_parsed()
            made = made.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self._workers, per_worker_buffer_size=self._ahead
                )
            )
        return iter(made)

    def get_state(self) -> dict[str, int]:
        """Return what a checkpoint has to hold of the data: the step that comes next."""
        return {"step": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Go on with the step of a state, in whatever number of workers and processes."""
        self.close()
        self._next = int(state["step"])

    def close(self) -> None:
        """Stop making batches."""
        made, self._made = self._made, None
        if made is not None and hasattr(made, "close"):
            made.close()

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
