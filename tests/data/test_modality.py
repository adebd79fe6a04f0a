"""Batches of rows with images and of text alone: grouped, pure, and what a broken image does."""

import json
import logging
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("PIL", reason="the vision extra is not installed")

from dora_jax.data.broken_images import read_broken
from dora_jax.data.encode import EncodedRow
from dora_jax.data.vision import ImageFile
from dora_jax.data.ways import make_batches
from dora_jax.errors import DoraError
from dora_jax.training.config import DataConfig
from tests.data.pictures import VISION, draw, grey
from tests.data.rows import random_row
from tests.models.llavas import IMAGE, PATCHES

EOS = 2


def without_marks(row):
    """Return a row whose random ids are of no image."""
    ids = {
        name: tuple(i + (i == IMAGE) for i in getattr(row, name)) for name in ("prompt", "answer")
    }
    return EncodedRow(**{**vars(row), **ids, "options": ()})


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Six rows with one or two images, each of its own grey, and five of text."""
    folder = tmp_path_factory.mktemp("images")
    found = []
    for n in range(11):
        row = without_marks(random_row(n, 3 + n % 4, [1 + n % 3]))
        if n % 2 == 0:
            count = 1 + n % 3 // 2
            files = tuple(
                ImageFile(f"{n}-{i}", str(draw(folder / f"{n}-{i}.png", 10 * n + i)))
                for i in range(count)
            )
            prompt = (*(IMAGE,) * PATCHES * count, *row.prompt)
            row = EncodedRow(prompt, row.answer, (), 0, row.text, (), row.task, images=files)
        found.append(row)
    return found


def made(rows, batch_size=2, seed=0, **fields):
    config = DataConfig(**{"max_length": 64, **fields})
    return make_batches(rows, config, batch_size, seed, EOS, vision=VISION)


def holds(batch):
    """Return the images that each row's tokens stand for, by their greys."""
    counts = (np.asarray(batch.tokens) == IMAGE).sum(axis=1) // PATCHES
    images = batch.images
    return [
        [round(float(images[r, i].mean()) * 255) for i in range(n)] for r, n in enumerate(counts)
    ]


@pytest.mark.parametrize("packing", ["none", "pack", "bucket"])
def test_a_batch_has_images_in_all_of_its_rows_or_in_none(rows, packing):
    batches = made(rows, packing=packing)
    seen, text = Counter(), 0
    steps = 3 * batches.places_an_epoch // 2
    shapes = set()
    for step in range(steps):
        batch = batches.batch(step)
        if batch.images is None:
            assert not (np.asarray(batch.tokens) == IMAGE).any()
            text += int(batch.label_weights.sum())
            continue
        shapes.add(batch.images.shape)
        for greys in holds(batch):
            assert greys or packing == "bucket"  # the last batch of an epoch has empty rows
            seen.update(greys)
    assert len(shapes) == 1
    assert text > 0
    expected = {round(10 * n + i) for n in range(0, 11, 2) for i in range(1 + n % 3 // 2)}
    assert set(seen) == expected


def test_every_row_comes_once_an_epoch_of_its_kind(rows):
    """Six and five rows by ones: an epoch is all eleven, in another order each time."""
    batches = made(rows, batch_size=1)
    assert batches.places_an_epoch == 11
    epochs = [
        [batches.held(step, [0])[0][0] for step in range(11 * n, 11 * n + 11)] for n in range(3)
    ]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [batches.row_ids(step) for step in range(2)] == [
        [f"row {1 + [*range(0, 11, 2), *range(1, 11, 2)].index(n) % 6} to train on"]
        if n % 2 == 0
        else [f"row {1 + n // 2} to train on"]
        for n in epochs[0][:2]
    ]


def test_each_kind_goes_on_through_its_own_epochs(rows):
    """Three of each: an epoch of two steps, and the rows of a kind come on and on."""
    chosen = [*rows[:5:2], *rows[1:6:2]]
    batches = made(chosen, batch_size=3)
    held = [frozenset(i for place in batches.held(s, range(3)) for i in place) for s in range(8)]
    assert set(held) == {frozenset((0, 1, 2)), frozenset((3, 4, 5))}
    single = made(rows, batch_size=1)
    first, second = (
        [single.held(step, [0])[0][0] for step in range(11 * n, 11 * n + 11)] for n in range(2)
    )
    images = [[i for i in epoch if i % 2 == 0] for epoch in (first, second)]
    assert images[0] != images[1]  # another order of the same rows
    assert sorted(images[0]) == sorted(images[1])


def test_a_pure_function_of_seed_and_step(rows):
    first = [made(rows).batch(step) for step in (4, 1, 9)]
    one = made(rows)
    again = [one.batch(step) for step in (4, 1, 9)]
    for a, b in zip(first, again, strict=True):
        assert (a.images is None) == (b.images is None)
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True) if x is not None)
    kinds = [made(rows, seed=s).batch(n).images is None for s in (0, 1, 2) for n in range(6)]
    assert kinds[:6] != kinds[6:12] or kinds[:6] != kinds[12:]


def test_slots_and_efficiency_are_of_both_kinds(rows):
    batches = made(rows, batch_size=1)
    tokens = sum(len(r.prompt) + len(r.answer) for r in rows)
    slots = sum(batches.batch(step).tokens.size for step in range(11))
    assert batches.slots == pytest.approx(slots / 11)
    assert batches.efficiency == pytest.approx(tokens / slots)


def test_a_mixture_weighs_across_kinds(rows):
    """The rows with images are one source, of weight 3; text is the other."""
    weighted = [EncodedRow(**{**vars(row), "source": int(not row.images)}) for row in rows]
    batches = made(weighted, batch_size=1, mix=(("a", 3.0), ("b", 1.0)), eval="x")
    kinds = [batches.batch(step).images is not None for step in range(batches.places_an_epoch)]
    assert len(kinds) == 11
    assert sum(kinds) == 8  # 8.25 of 11


def test_rows_of_one_kind_are_not_grouped(rows):
    alone = made([row for row in rows if row.images], batch_size=1)
    assert type(alone).__name__ == "ShuffledBatches"
    assert alone.batch(0).images.shape == (1, 2, *VISION.shape)
    text = made([row for row in rows if not row.images], batch_size=1)
    assert text.batch(0).images is None


def test_of_a_broken_image_nothing_is_trained_on(rows, tmp_path, caplog):
    good = draw(tmp_path / "good.png", 50)
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:60])
    broken = [
        EncodedRow(**{**vars(rows[2]), "images": (ImageFile(p.name, str(p)),)}) for p in (good, cut)
    ]
    with caplog.at_level(logging.WARNING):
        batch = made(broken).batch(0)
    labels = batch.label_weights.sum(axis=1)
    assert sorted(labels > 0) == [False, True]
    place = int(np.argmin(labels))
    np.testing.assert_array_equal(batch.images[place], 0)
    np.testing.assert_allclose(batch.images[1 - place, 0], grey(50), atol=1e-6)
    (record,) = caplog.records
    assert "cut.png: is no image that can be read" in record.getMessage()
    with pytest.raises(DoraError, match=r"cut\.png: .*mend it, or let --data\.bad-images skip"):
        made(broken, bad_images="error").batch(0)


def test_a_broken_image_is_told_once_and_counted_once(rows, tmp_path, caplog):
    """Over epochs and interruptions; both images of a row that has two of them."""
    names = ("a.png", "b.png")
    for name in names:
        (tmp_path / name).write_text("broken")
    files = tuple(ImageFile(name, str(tmp_path / name)) for name in names)
    both = EncodedRow(**{**vars(rows[8]), "images": files})
    first = EncodedRow(**{**vars(rows[2]), "images": files[:1]})
    note = tmp_path / "part" / "broken_images.jsonl"
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            batches = made([both, first, rows[4], rows[1]], batch_size=1)
            batches.note_broken(note)
            for step in range(3 * batches.places_an_epoch):
                batches.batch(step)
    assert read_broken(note) == {str(tmp_path / name) for name in names}
    told = [record.getMessage() for record in caplog.records]
    assert sorted(f"{name}: is no image" in text for text in told for name in names) == [
        False,
        False,
        True,
        True,
    ]
    note.write_text(note.read_text() + '"half')
    assert len(read_broken(note)) == 2
    assert read_broken(tmp_path / "none.jsonl") == set()


def test_a_broken_row_leaves_its_neighbours_their_images(rows, tmp_path):
    """Packed together: the broken row's places stay, and are empty."""
    cut = tmp_path / "cut.png"
    cut.write_text("broken")
    files = (ImageFile("cut.png", str(cut)), *rows[8].images[1:])
    assert len(files) == 2
    broken = EncodedRow(**{**vars(rows[8]), "images": files})
    packed = [broken, rows[2], rows[4]]
    batch = made(packed, batch_size=1, packing="pack", max_length=200).batch(0)
    is_image = np.asarray(batch.tokens[0]) == IMAGE
    segments = np.asarray(batch.segments[0])
    seen, place = set(), 0
    for segment in (1, 2, 3):
        count = int((is_image & (segments == segment)).sum()) // PATCHES
        own = batch.images[0, place : place + count]
        seen.add(tuple(round(float(image.mean()) * 255) for image in own))
        place += count
    assert seen == {(0, 0), (20, 21), (40,)}


def test_workers_make_the_same_batches_with_images(rows):
    from dora_jax.data.read_ahead import ReadAhead

    plain = made(rows)
    with ReadAhead(made(rows), 2) as ahead:
        for step in range(4):
            a, b = plain.batch(step), ahead.batch(step)
            assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True) if x is not None)
            assert (a.images is None) == (b.images is None)


def test_image_folders_do_not_change_what_a_run_is():
    from dora_jax.training.config import ExperimentConfig

    def settings(**fields):
        config = ExperimentConfig(data=DataConfig(train="a.json", eval="b.jsonl", **fields))
        return json.dumps(config.settings())

    assert settings() == settings(image_folder="elsewhere")
    assert settings() != settings(images="leave_out")
