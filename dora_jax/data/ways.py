"""The ways from encoded rows to batches that a config chooses between."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dora_jax.data.batch_images import batch_images
from dora_jax.data.batches import Order, Share, ShuffledBatches, StepBatches
from dora_jax.data.buckets import BucketedBatches
from dora_jax.data.encode import EncodedRow
from dora_jax.data.modality import GroupedBatches
from dora_jax.data.order import MixedOrder, ShuffledOrder
from dora_jax.data.packing import PackedBatches
from dora_jax.data.pairs import PairBatches
from dora_jax.data.vision import Sight
from dora_jax.errors import DoraError

if TYPE_CHECKING:
    from dora_jax.training.config import DataConfig


def make_batches(
    rows: Sequence[EncodedRow],
    config: "DataConfig",
    batch_size: int,
    seed: int,
    eos_id: int,
    share: Share = Share(),  # noqa: B008 - immutable
    vision: Sight | None = None,
) -> StepBatches:
    """Return the batches of a seed, as `packing`, `mix` and `train_on` of the config say.

    Rows with images and rows without are in batches of their own; see `_kinds`.

    Args:
        rows: to train on.
        config: of the data.
        batch_size: rows of a batch, packed ones if they are.
        seed: of the order.
        eos_id: the token that ends an answer.
        share: which of a batch's rows this process makes.
        vision: the model's, where rows have images.

    Raises:
        DoraError: when a part of a mixture has no row, or the batch cannot be divided.
    """
    counts = Counter(row.source for row in rows)
    for number, (name, _) in enumerate(config.mix):
        if not counts[number]:
            raise DoraError(
                f"data.mix: no row of {name} is left to train on: give more rows, or leave it out"
            )
    images = None if vision is None else batch_images(vision, config.bad_images)

    def batches(numbers: Sequence[int]) -> StepBatches:
        sources = [rows[n].source for n in numbers]
        order = _order(sources, _weights(sources, counts, config), seed)
        how = (batch_size, seed, eos_id, config.train_on, order, share, images)
        return _batches([rows[n] for n in numbers], config, *how)

    kinds = _kinds(rows)
    if len(kinds) == 1:
        return batches(range(len(rows)))
    parts = [batches(numbers) for numbers in kinds]
    steps = []
    for part, numbers in zip(parts, kinds, strict=True):
        # A kind comes as often as its rows do in the mixture.
        often = sum(_weights([rows[n].source for n in numbers], counts, config).values())
        places = part.places_an_epoch * often * len(rows) / len(numbers)
        steps.append(max(1, round(places / batch_size)))
    return GroupedBatches(parts, kinds, steps, batch_size, seed)


def _kinds(rows: Sequence[EncodedRow]) -> list[list[int]]:
    """Return the numbers of the rows of each kind, that have batches of their own.

    Rows with images and rows of text alone; of an encoder-decoder each task, as VL-BART was
    trained, and each number of images: a batch's rows have places for as many as its fullest.
    """
    found: dict[object, list[int]] = {}
    for number, row in enumerate(rows):
        kind = not row.images if row.start is None else (row.task, len(row.images))
        found.setdefault(kind, []).append(number)
    return [found[kind] for kind in sorted(found)]  # type: ignore[type-var]


def _weights(
    sources: Sequence[int], counts: Mapping[int, int], config: "DataConfig"
) -> dict[int, float]:
    """Return how much of an epoch the rows of each source are, of all rows' 1."""
    given = [weight for _, weight in config.mix] or [1.0]
    own = Counter(sources)
    return {n: given[n] / sum(given) * own[n] / counts[n] for n in sorted(own)}


def _order(sources: Sequence[int], weights: Mapping[int, float], seed: int) -> Order:
    if len(weights) == 1:
        return ShuffledOrder(len(sources), seed)
    number = {source: n for n, source in enumerate(weights)}
    return MixedOrder([number[source] for source in sources], list(weights.values()), seed)


def _batches(rows: Sequence[EncodedRow], config: "DataConfig", *how: Any) -> StepBatches:
    if rows[0].start is not None:
        return PairBatches(rows, config.buckets if config.packing == "bucket" else 1, *how)
    if config.packing == "pack":
        return PackedBatches(rows, config.max_length, *how)
    if config.packing == "bucket":
        return BucketedBatches(rows, config.buckets, *how)
    return ShuffledBatches(rows, *how)
