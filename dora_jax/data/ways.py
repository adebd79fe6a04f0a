"""The ways from encoded rows to batches that a config chooses between."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dora_jax.data.batches import Order, Share, ShuffledBatches, StepBatches
from dora_jax.data.buckets import BucketedBatches
from dora_jax.data.encode import EncodedRow
from dora_jax.data.order import MixedOrder, ShuffledOrder
from dora_jax.data.packing import PackedBatches
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
) -> StepBatches:
    """Return the batches of a seed, as `packing`, `mix` and `train_on` of the config say.

    Args:
        rows: to train on.
        config: of the data.
        batch_size: rows of a batch, packed ones if they are.
        seed: of the order.
        eos_id: the token that ends an answer.
        share: which of a batch's rows this process makes.

    Raises:
        DoraError: when a part of a mixture has no row, or the batch cannot be divided.
    """
    order: Order
    if len(config.mix) > 1:
        sources = [row.source for row in rows]
        for number, (name, _) in enumerate(config.mix):
            if number not in sources:
                raise DoraError(
                    f"data.mix: no row of {name} is left to train on: give more rows, or leave it "
                    "out"
                )
        order = MixedOrder(sources, [weight for _, weight in config.mix], seed)
    else:
        order = ShuffledOrder(len(rows), seed)
    how = (batch_size, seed, eos_id, config.train_on, order, share)
    if config.packing == "pack":
        return PackedBatches(rows, config.max_length, *how)
    if config.packing == "bucket":
        return BucketedBatches(rows, config.buckets, *how)
    return ShuffledBatches(rows, *how)
