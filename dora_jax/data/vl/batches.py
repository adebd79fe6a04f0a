"""Batches of several tasks: each of one task, a pure function of seed and step.

As published training (VL-T5, VL-Adapter) has it: every batch is of one task, and in an epoch each
task has all its batches, in an order drawn anew. So every row comes once an epoch, and a task's
share is that of its rows; `balance="tasks"` gives every task as many batches instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dora_jax.data.batches import LENGTH_MULTIPLE, Share, StepBatches, padded_batch
from dora_jax.data.buckets import bucket_lengths, bucketed_plan
from dora_jax.data.features import stack_features
from dora_jax.data.modality import GroupedBatches
from dora_jax.data.order import Recent, ShuffledOrder
from dora_jax.data.padding import round_up
from dora_jax.data.train_rows import TrainRow
from dora_jax.data.vl.encode import VLEncodedRow
from dora_jax.data.vl.feature_files import Features, Seen
from dora_jax.data.vl.row import Task, VLRow
from dora_jax.data.vl.visuals import row_visuals
from dora_jax.errors import DoraError
from dora_jax.models.source import Source
from dora_jax.models.vlbart import VLBartConfig
from dora_jax.training.step import Batch

Balance = Literal["rows", "tasks"]


@dataclass(frozen=True)
class TaskData:
    """What one task trains on.

    Attributes:
        rows: each with a target, at least one.
        features: of their images or clips; None where they have none.
        seconds: see `row_visuals`.
    """

    rows: Sequence[VLEncodedRow]
    features: Features | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.rows:
            raise DoraError("a task must have a row to train on")
        for encoded in self.rows:
            if not encoded.targets:
                named = encoded.row.where or f"row {encoded.row.id!r}"
                raise DoraError(f"{named}: has no target to train on; take `VLEncoded.trainable`")


@dataclass(frozen=True)
class VLBatching:
    """How rows become batches.

    Attributes:
        batch_size: rows of a batch, all processes together.
        seed: of every order and draw.
        buckets: lengths of sources in a task at most; each is a compilation.
        balance: `rows`, every row once an epoch; `tasks`, as many batches of each task, in sum as
            many as under `rows`.
        targets: of several targets, `sampled` draws one each time by its weight, as published
            training draws VQA's answers; `best` takes the first of those of most weight.
        share: which of a batch's rows this process makes.
    """

    batch_size: int
    seed: int = 0
    buckets: int = 2
    balance: Balance = "rows"
    targets: Literal["sampled", "best"] = "sampled"
    share: Share = Share()  # noqa: RUF009 - immutable

    def __post_init__(self) -> None:
        for name in ("batch_size", "buckets"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name, allowed in (("balance", ("rows", "tasks")), ("targets", ("sampled", "best"))):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}"
                )


def multitask_batches(
    tasks: Mapping[Task, TaskData], how: VLBatching, config: VLBartConfig, pad_id: int
) -> StepBatches:
    """Return the batches of several tasks.

    Args:
        tasks: what each trains on.
        how: rows become batches.
        config: the model's shape.
        pad_id: the token of padding.

    Raises:
        DoraError: for no task at all, or a batch that cannot be divided among processes.
    """
    if not tasks:
        raise DoraError("there must be a task to train on")
    parts = [TaskBatches(data, how, config, pad_id) for data in tasks.values()]
    steps = [part.steps_an_epoch for part in parts]
    if how.balance == "tasks":
        steps = [max(1, round(sum(steps) / len(steps)))] * len(steps)
    ends = np.cumsum([len(data.rows) for data in tasks.values()]).tolist()
    numbers = [range(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return GroupedBatches(parts, numbers, steps, how.batch_size, how.seed)


class TaskBatches(StepBatches):
    """Batches of one task; sources of like length are together.

    Every row comes once an epoch. The last batch of an epoch may have empty rows, which carry no
    label; they read one token of padding and no image.

    Args:
        data: of the task.
        how: rows become batches.
        config: the model's shape.
        pad_id: the token of padding.
    """

    def __init__(self, data: TaskData, how: VLBatching, config: VLBartConfig, pad_id: int):
        self._data, self._how, self._config, self._pad_id = data, how, config, pad_id
        self._sources = np.array([len(encoded.source) for encoded in data.rows])
        self._lengths = bucket_lengths(self._sources, how.buckets)
        self._bucket = np.searchsorted(self._lengths, self._sources)
        longest = max(len(target) for encoded in data.rows for target in encoded.targets)
        self._written = round_up(longest, LENGTH_MULTIPLE)
        self._order = ShuffledOrder(len(data.rows), how.seed)
        self._share = how.share.rows(how.batch_size)
        self._epoch = Recent(self._plan)
        self._room = self._find_room()
        self.steps_an_epoch = -(-len(data.rows) // how.batch_size)

    def _find_room(self) -> tuple[int, int] | None:
        """Return the images of a row, and the features of an image, of every batch."""
        most = max(len(encoded.row.visuals) for encoded in self._data.rows)
        if not most:
            return None
        if self._config.layout != "grid":
            return most, self._config.image_tokens
        # Grids are alike: any of them tells.
        seeing = next(encoded.row for encoded in self._data.rows if encoded.row.visuals)
        return most, len(self._visuals(seeing)[0].features)

    def _visuals(self, row: VLRow) -> list[Seen]:
        return row_visuals(row, self._data.features, self._config, self._data.seconds)

    def _plan(self, epoch: int) -> list[tuple[int, list[int]]]:
        order = self._order.epoch(epoch)
        return bucketed_plan(order, self._bucket, self._how.batch_size, (self._how.seed, epoch))

    def _planned(self, step: int) -> tuple[int, int, list[int]]:
        """Return a step's epoch, its bucket and its rows."""
        epoch, place = divmod(step, self.steps_an_epoch)
        return (epoch, *self._epoch(epoch)[place])

    @property
    def slots(self) -> float:
        read = np.mean([self._lengths[bucket] for bucket, _ in self._epoch(0)])
        return float(self._how.batch_size * (read + self._written))

    @property
    def places_an_epoch(self) -> int:
        return self.steps_an_epoch * self._how.batch_size

    @property
    def efficiency(self) -> float:
        written = sum(len(encoded.targets[0]) for encoded in self._data.rows)
        return float((self._sources.sum() + written) / (self.slots * self.steps_an_epoch))

    def row_ids(self, step: int) -> list[str]:
        rows = [self._data.rows[number].row for number in self._planned(step)[2]]
        return [row.where or f"{row.task} {row.id}" for row in rows]

    def held(self, step: int, places: Sequence[int]) -> list[list[int]]:
        rows = self._planned(step)[2]
        return [rows[place : place + 1] for place in places]

    def batch(self, step: int) -> Batch:
        epoch, bucket, _ = self._planned(step)
        held = self.held(step, self._share)
        chosen = [[self._train_row(number, epoch) for number in numbers] for numbers in held]
        batch = padded_batch(chosen, self._written, self._written, self._pad_id)
        source: Any = self._source(held, self._lengths[bucket])
        return batch._replace(source=source)

    def _train_row(self, number: int, epoch: int) -> TrainRow:
        """Return what is written: from the start token on, each token is predicted."""
        ids = np.array(self._target(number, epoch), np.int32)
        start = self._config.decoder_start_token_id
        fed = np.concatenate([[start], ids[:-1]]).astype(np.int32)
        return TrainRow(fed, np.arange(len(ids), dtype=np.int32), ids)

    def _target(self, number: int, epoch: int) -> tuple[int, ...]:
        encoded = self._data.rows[number]
        weights = np.array(encoded.row.weights)
        if len(weights) == 1 or self._how.targets == "best":
            return encoded.targets[int(weights.argmax())]
        rng = np.random.default_rng((self._how.seed, epoch, number))
        return encoded.targets[int(rng.choice(len(weights), p=weights / weights.sum()))]

    def _source(self, held: Sequence[Sequence[int]], length: int) -> Source:
        tokens = np.full((len(held), length), self._pad_id, np.int32)
        is_real = np.zeros(tokens.shape, bool)
        # An empty row reads something too: attention to nothing at all is not defined.
        is_real[:, 0] = True
        images: list[list[Seen]] = [[] for _ in held]
        for place, numbers in enumerate(held):
            for number in numbers:
                encoded = self._data.rows[number]
                count = len(encoded.source)
                tokens[place, :count], is_real[place, :count] = encoded.source, True
                images[place] = self._visuals(encoded.row)
        return Source(tokens, is_real, stack_features(images, self._config, self._room))
