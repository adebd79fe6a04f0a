from dataclasses import replace

import numpy as np
import pytest

from dora_jax.data.batches import Share
from dora_jax.data.vision import ImageFile
from dora_jax.data.ways import make_batches
from dora_jax.errors import DoraError
from dora_jax.training.config import DataConfig
from tests.data.rows import random_row
from tests.data.test_packing import EOS, some_rows


def mixed(counts):
    """Return rows of sources, so many of each: of two tokens, of four, and so on."""
    numbers = np.repeat(np.arange(len(counts)), counts)
    return [
        replace(random_row(n, int(s) + 1, [int(s) + 1]), source=int(s))
        for n, s in enumerate(numbers)
    ]


def config(**fields):
    return DataConfig(mix={"a.jsonl": 3, "b.jsonl": 1}, eval="eval.jsonl", **fields)


@pytest.mark.parametrize("packing", ["none", "pack", "bucket"])
def test_a_mixture_is_drawn_by_its_weights_however_it_is_batched(packing):
    rows = mixed((8, 24))
    batches = make_batches(rows, config(packing=packing), 4, 0, EOS)
    places = (divmod(n, 4) for n in range(batches.places_an_epoch))
    held = [batches.held(step, [place]) for step, place in places]
    sources = [rows[i].source for (numbers,) in held for i in numbers]
    assert (sources.count(0), sources.count(1)) == (24, 8)  # three quarters of the 32 draws
    tokens = 24 * 2 + 8 * 4
    assert batches.efficiency * batches.places_an_epoch * batches.slots / 4 == pytest.approx(tokens)


def test_the_config_s_choices_reach_the_batches():
    rows = some_rows(40)
    made = make_batches(rows, DataConfig(packing="pack", max_length=40), 6, 0, EOS, Share(1, 3))
    assert made.batch(0).tokens.shape == (2, 40)
    made = make_batches(rows, DataConfig(packing="bucket", buckets=2), 6, 0, EOS, Share(1, 3))
    shapes = {made.batch(step).tokens.shape for step in range(7)}
    assert {rows for rows, _ in shapes} == {2}
    assert len(shapes) == 2
    made = make_batches(rows, DataConfig(train_on="all"), 40, 0, EOS)
    tokens = sum(len(row.prompt) + len(row.answer) for row in rows)
    assert made.batch(0).label_weights.sum() == tokens


def test_a_source_without_rows_is_named():
    with pytest.raises(DoraError, match=r"data\.mix: no row of b\.jsonl is left to train on: give"):
        make_batches(mixed((8,)), config(), 4, 0, EOS)


def test_of_an_encoder_decoder_rows_with_as_many_images_share_batches():
    """A batch has places for as many images as its fullest row: another number would be filled."""
    images = {1: ("a",), 2: ("a", "b"), 3: ("c",), 4: (), 5: ("d", "e"), 6: ("f",), 7: ()}
    rows = [
        replace(
            random_row(n, 3, [2], task="one"),
            start=7,
            images=tuple(ImageFile(name, "") for name in names),
        )
        for n, names in images.items()
    ]
    made = make_batches(rows, DataConfig(), 2, 0, EOS)
    counts = []
    for step in range(4):
        held = [i for numbers in made.held(step, range(2)) for i in numbers]
        counts.append([len(rows[i].images) for i in held])
    assert sorted(counts) == [[0, 0], [1], [1, 1], [2, 2]]
