"""Batches of several tasks: of one task each, every row once an epoch, pure in seed and step."""

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest

from dora_jax.data.batches import Share
from dora_jax.data.read_ahead import ReadAhead
from dora_jax.data.vl.batches import TaskBatches, TaskData, VLBatching, multitask_batches
from dora_jax.data.vl.encode import encode_rows
from dora_jax.data.vl.feature_files import Seen
from dora_jax.data.vl.row import VLRow
from dora_jax.data.vl.visuals import row_visuals
from dora_jax.errors import DoraError
from dora_jax.models.llama import param_shapes
from dora_jax.models.vlbart import VLBart
from dora_jax.partition import partition
from dora_jax.training.step import labelled_loss
from tests.checkpoint.tiny_model import tokenizer
from tests.data.vl.tiny import CONFIG

FRAMES = dataclasses.replace(CONFIG, layout="frames")
PAD = 0


class Numbered:
    """Features that tell whose they are: image n is all n."""

    def __init__(self, count=9):
        self._count = count

    def get(self, name):
        return Seen(np.full((self._count, 3), float(name), np.float16))


class Counting:
    """Frames that tell their places."""

    def get(self, name):
        return Seen(np.repeat(np.arange(float(name)), 3).reshape(-1, 3))


def rows_of(task, count, images=1, **more):
    return [
        VLRow(
            task,
            str(n),
            "x" * (1 + 7 * (n % 3)),
            more.get("targets", (f"answer {n}",)),
            more.get("weights", ()),
            visuals=tuple(str(10 * n + place) for place in range(images)),
            where=f"{task}.json, row {n}",
        )
        for n in range(count)
    ]


def encoded(rows, **limits):
    return encode_rows(rows, tokenizer(), **{"max_source": 40, "max_target": 20, **limits})


def data_of(task, count, images=1, **more):
    rows = encoded(rows_of(task, count, images, **more)).trainable
    return TaskData(rows, Numbered() if images else None)


def both(**how):
    tasks = {"vqa": data_of("vqa", 7), "nlvr": data_of("nlvr", 5, images=2)}
    return multitask_batches(tasks, VLBatching(**{"batch_size": 2, **how}), CONFIG, PAD)


def same(a, b):
    leaves = [jax.tree.leaves(batch) for batch in (a, b)]
    return len(leaves[0]) == len(leaves[1]) and all(map(np.array_equal, *leaves))


def test_a_batch_has_all_that_a_row_says():
    """Against what each row says: its texts, its images in order, what is to be written."""
    batches, rows = both(), encoded(rows_of("vqa", 7)).rows + encoded(rows_of("nlvr", 5, 2)).rows
    for step in range(7):
        batch, held = batches.batch(step), batches.held(step, range(2))
        for place, numbers in enumerate(held):
            labels = batch.label_weights[place] > 0
            if not numbers:
                assert not labels.any()
                assert not batch.source.visual.is_real[place].any()
                assert batch.source.is_real[place].sum() == 1
                continue
            given = rows[numbers[0]]
            assert tuple(batch.source.tokens[place][batch.source.is_real[place]]) == given.source
            written = batch.label_targets[place][labels]
            assert tuple(written) == given.targets[0]
            assert written[-1] == tokenizer().eos_id
            fed = batch.tokens[place]
            assert fed[0] == CONFIG.decoder_start_token_id
            np.testing.assert_array_equal(fed[1 : len(written)], written[:-1])
            np.testing.assert_array_equal(
                batch.label_positions[place][labels], np.arange(len(written))
            )
            seen = batch.source.visual.features[place, :, 0, 0]
            assert tuple(str(int(n)) for n in seen) == given.row.visuals
            assert batch.source.visual.is_real[place].all()


def test_every_row_comes_once_an_epoch_and_tasks_do_not_mix():
    batches = both()
    assert batches.places_an_epoch == 14
    epochs = []
    for epoch in range(3):
        steps = range(7 * epoch, 7 * epoch + 7)
        ids = [batches.row_ids(step) for step in steps]
        assert all(len({name.split(".")[0] for name in names}) == 1 for names in ids)
        assert len({name for names in ids for name in names}) == sum(map(len, ids)) == 12
        epochs.append(ids)
    assert epochs[0] != epochs[1] != epochs[2]


def test_tasks_can_have_equal_shares():
    batches = both(balance="tasks", batch_size=1)
    names = [batches.row_ids(step)[0].split(".")[0] for step in range(12)]
    assert Counter(names) == {"vqa": 6, "nlvr": 6}
    # Each goes through all its rows before one comes again.
    steps = [s for s in range(24) if batches.row_ids(s)[0].startswith("nlvr")]
    assert len({batches.row_ids(s)[0] for s in steps[:5]}) == 5


def test_a_pure_function_of_seed_and_step():
    """Resumed at any step, in any order, and ahead of time: the same batches."""
    targets = {"targets": ("a", "b", "c"), "weights": (0.3, 1.0, 0.6)}
    tasks = {"vqa": data_of("vqa", 9, **targets), "gqa": data_of("gqa", 4)}
    how = VLBatching(batch_size=2, seed=3)
    one, other = (multitask_batches(tasks, how, CONFIG, PAD) for _ in range(2))
    in_order = [one.batch(step) for step in range(20)]
    assert all(same(other.batch(step), in_order[step]) for step in (19, 4, 11, 4))
    ahead = ReadAhead(multitask_batches(tasks, how, CONFIG, PAD), ahead=0)
    assert same(ahead.batch(15), in_order[15])
    different = multitask_batches(tasks, dataclasses.replace(how, seed=4), CONFIG, PAD)
    assert not all(same(different.batch(step), in_order[step]) for step in range(7))


def test_the_shares_of_processes_are_the_batch():
    whole = both(batch_size=4)
    parts = [both(batch_size=4, share=Share(n, 2)) for n in range(2)]
    for step in range(4):
        halves = [part.batch(step) for part in parts]
        joined = jax.tree.map(lambda *x: np.concatenate(x), *halves)
        assert same(joined, whole.batch(step))
    with pytest.raises(DoraError, match="must be a multiple of the number of processes"):
        both(batch_size=3, share=Share(0, 2))


def test_few_shapes():
    batches = both(buckets=2)
    shapes = {str(jax.tree.map(np.shape, batches.batch(step))) for step in range(21)}
    assert 2 <= len(shapes) <= 4  # two of each task
    lengths = {batches.batch(step).source.tokens.shape[1] for step in range(7)}
    assert all(length % 8 == 0 for length in lengths)
    assert 0 < batches.efficiency < 1
    assert batches.slots > 0


def test_answers_are_drawn_by_their_weight():
    data = data_of("vqa", 200, targets=("a", "b"), weights=(0.25, 0.75))
    drawn = {}
    for way in ("sampled", "best"):
        batches = TaskBatches(data, VLBatching(100, targets=way), CONFIG, PAD)
        first = tokenizer().encode("a")
        at = len(tokenizer().start_ids)
        written = [batches.batch(step).label_targets[:, at] for step in range(4)]
        drawn[way] = [np.isin(ids, first) for ids in written]
    assert not np.any(drawn["best"])
    assert 70 < np.sum(drawn["sampled"]) < 130  # 100 of 400; deviation 8.7
    epochs = [np.sum(drawn["sampled"][:2]), np.sum(drawn["sampled"][2:])]
    assert epochs[0] != epochs[1]


def test_what_is_too_long_is_cut_at_its_end_and_counted():
    rows = rows_of("vqa", 3, targets=("long answer",))
    found = encoded(rows, max_source=10, max_target=4)
    whole = encoded(rows)
    assert (whole.cut_sources, whole.cut_targets) == (0, 0)
    assert found.cut_sources == sum(len(row.source) > 10 for row in whole.rows) > 0
    assert found.cut_targets == 3
    for cut, full in zip(found.rows, whole.rows, strict=True):
        final = len(tokenizer().final_ids)
        kept = len(cut.source) - final
        assert len(cut.source) <= 10
        assert cut.source[:kept] == full.source[:kept]
        assert cut.targets[0] == full.targets[0][:4]
        assert tokenizer().eos_id not in cut.targets[0][1:]
    with pytest.raises(DoraError, match="max_target must be more than the"):
        encoded(rows, max_target=len(tokenizer().start_ids) + final)


@pytest.mark.parametrize(
    ("frames", "span", "seconds", "places"),
    [
        (3, None, None, [0, 1, 2]),
        (8, None, None, [1, 3, 5, 7]),
        (8, (3.0, 5.9), 1.5, [2, 3]),
        (8, (3.0, 5.9), None, [1, 3, 5, 7]),
        (8, (30.0, 31.0), 1.5, [7]),
        (8, (3.2, 3.2), 1.5, [2]),
    ],
)
def test_frames_are_those_of_the_moment_evenly(frames, span, seconds, places):
    row = VLRow("tvc", "1", "", ("a",), visuals=(str(frames),), span=span)
    (seen,) = row_visuals(row, Counting(), FRAMES, seconds)
    assert seen.features[:, 0].tolist() == places


def test_clips_are_filled_up_to_the_models_tokens():
    rows = [VLRow("tvqa", str(n), "q", ("a",), visuals=(str(n),), where=f"row {n}") for n in (2, 6)]
    data = TaskData(encoded(rows).rows, Counting())
    batch = TaskBatches(data, VLBatching(2), FRAMES, PAD).batch(0)
    assert batch.source.visual.features.shape == (2, 1, 4, 3)
    assert sorted(batch.source.visual.is_real.sum(axis=(1, 2))) == [2, 4]


def test_rows_without_images_have_none():
    batch = TaskBatches(data_of("vqa", 3, images=0), VLBatching(2), CONFIG, PAD).batch(0)
    assert batch.source.visual is None


def test_the_model_trains_on_them_whole_or_not():
    """Also where a row of the batch is empty: the gradient is finite."""
    model = VLBart(CONFIG)
    batches = TaskBatches(data_of("vqa", 1), VLBatching(2), CONFIG, PAD)
    batch = batches.batch(0)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), param_shapes(model)
    )
    trainable, frozen = partition(params, jax.tree.map(lambda _: True, params))
    loss_of = jax.jit(jax.value_and_grad(lambda t: labelled_loss(model, t, frozen, batch)))
    loss, grads = loss_of(trainable)
    labels = batch.label_weights.sum()
    assert 0.5 * np.log(CONFIG.vocab_size) < loss / labels < 2 * np.log(CONFIG.vocab_size)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_what_does_not_fit_is_named():
    with pytest.raises(DoraError, match="a task must have a row to train on"):
        TaskData(())
    hidden = encoded(rows_of("gqa", 1, targets=())).rows
    with pytest.raises(DoraError, match=r"gqa\.json, row 0: has no target to train on"):
        TaskData(hidden)
    with pytest.raises(DoraError, match="there must be a task to train on"):
        multitask_batches({}, VLBatching(2), CONFIG, PAD)
    with pytest.raises(DoraError, match=r"vqa\.json, row 0: names images, and no features"):
        row_visuals(rows_of("vqa", 1)[0], None, CONFIG)
    with pytest.raises(DoraError, match=r"vqa\.json, row 0 has 3 images; the model takes 2"):
        row_visuals(rows_of("vqa", 1, images=3)[0], Numbered(), CONFIG)
    for changes, message in (
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"balance": "row"}, "balance must be one of rows, tasks; got 'row'"),
        ({"targets": "all"}, "targets must be one of sampled, best; got 'all'"),
    ):
        with pytest.raises(ValueError, match=message):
            VLBatching(**{"batch_size": 1, **changes})
