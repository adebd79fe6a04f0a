import numpy as np

from dora_jax.data.batches import ShuffledBatches
from tests.data.rows import random_row

EOS = 2
ROWS = [random_row(seed, 3 + seed, [1 + seed % 3]) for seed in range(7)]


def sequences(batches, steps):
    """Return the (prompt, answer) of each row of some batches, read back from the arrays."""
    found = []
    for step in range(steps):
        batch = batches.batch(step)
        for i in range(batch.tokens.shape[0]):
            labels = int(batch.label_weights[i].sum())
            first = int(batch.label_positions[i, 0])
            ids = np.asarray(batch.tokens[i])
            answer = tuple(int(t) for t in batch.label_targets[i, :labels])
            assert answer[-1] == EOS
            assert [*ids[first + 1 : first + labels]] == [*answer[:-1]]
            assert [*batch.label_positions[i, :labels]] == [*range(first, first + labels)]
            assert (ids[first + labels :] == EOS).all()
            found.append((tuple(int(t) for t in ids[: first + 1]), answer[:-1]))
    return found


def test_labels_are_the_answer_and_its_end():
    batches = ShuffledBatches(ROWS, 7, 0, EOS)
    expected = {(row.prompt, row.answer) for row in ROWS}
    assert set(sequences(batches, 1)) == expected
    assert batches.length == 16  # the longest row feeds 11 tokens


def test_every_epoch_holds_every_row_once_in_another_order():
    found = sequences(ShuffledBatches(ROWS, 3, 0, EOS), 7)  # 21 rows: three epochs
    epochs = [found[n : n + 7] for n in (0, 7, 14)]
    assert all(len(set(epoch)) == 7 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_pure_function_of_seed_and_step():
    batches = ShuffledBatches(ROWS, 3, 0, EOS)
    fifth = batches.batch(5)
    again = ShuffledBatches(ROWS, 3, 0, EOS).batch(5)
    assert all(np.array_equal(a, b) for a, b in zip(fifth, again, strict=True))
    other = ShuffledBatches(ROWS, 3, 1, EOS).batch(5)
    assert (other.tokens != fifth.tokens).any()


def test_a_batch_may_be_larger_than_the_data():
    found = sequences(ShuffledBatches(ROWS[:2], 5, 0, EOS), 1)
    assert len(found) == 5
    assert len(set(found)) == 2
