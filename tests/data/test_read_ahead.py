import sys
import threading

import numpy as np
import pytest

from dora_jax.data.batches import Share
from dora_jax.data.packing import PackedBatches
from dora_jax.data.read_ahead import ReadAhead
from dora_jax.errors import DoraError
from tests.data.test_packing import EOS, WAYS, some_rows


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_batches_made_ahead_are_those_made_when_asked_for(way, ahead):
    rows = some_rows(23)
    plain = WAYS[way](rows, 4, 0, EOS)
    with ReadAhead(WAYS[way](rows, 4, 0, EOS), ahead) as made:
        # In order, and from another step, as resuming.
        for step in (0, 0, 1, 2, 3, 17, 18, 18, 19, 4):
            assert same(made.batch(step), plain.batch(step))


@pytest.mark.parametrize(
    ("way", "share"), [("none", Share(0, 1)), ("pack", Share(1, 2)), ("bucket", Share(3, 4))]
)
def test_worker_processes_make_the_same_batches_in_each_of_several_processes(way, share):
    rows = some_rows(23)
    whole, part = WAYS[way](rows, 8, 0, EOS), WAYS[way](rows, 8, 0, EOS, share=share)
    with ReadAhead(part, 1, workers=2) as ahead:
        for step in range(5, 12):
            expected = [x[share.rows(8)] for x in whole.batch(step) if x is not None]
            found = [x for x in ahead.batch(step) if x is not None]
            assert same(found, expected)


def test_the_state_is_the_step_and_suits_any_number_of_workers():
    rows = some_rows(23)
    with ReadAhead(PackedBatches(rows, 48, 4, 0, EOS), 3) as first:
        for step in range(6):
            first.batch(step)
        state = first.get_state()
        expected = first.batch(6)
    assert state == {"step": 6}
    with ReadAhead(PackedBatches(rows, 48, 4, 0, EOS), 1) as second:
        assert second.get_state() == {"step": 0}
        next(second)
        second.set_state(state)
        assert second.get_state() == state
        assert same(next(second), expected)
        assert second.get_state() == {"step": 7}


class Gate:
    """Batches that are made only when the gate is open; notes which."""

    def __init__(self):
        self.open, self.made = threading.Event(), []
        self.length = 48

    def batch(self, step):
        assert self.open.wait(20)
        self.made.append(step)
        return step


def test_batches_are_made_before_they_are_asked_for():
    gate = Gate()
    with ReadAhead(gate, 2) as ahead:
        assert ahead.length == 48  # what the batches tell
        threading.Timer(0.05, gate.open.set).start()
        assert ahead.batch(3) == 3
        for _ in range(200):
            if len(gate.made) >= 3:
                break
            threading.Event().wait(0.05)
        assert sorted(gate.made)[:3] == [3, 4, 5]


def test_without_grain_it_says_how_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    rows = some_rows(5)
    with pytest.raises(DoraError, match=r"needs grain: pip install .*or give --data\.read-ahead 0"):
        ReadAhead(WAYS["none"](rows, 4, 0, EOS)).batch(0)
    assert ReadAhead(WAYS["none"](rows, 4, 0, EOS), 0).batch(0).tokens.shape[0] == 4


def test_an_error_in_the_data_reaches_the_step():
    class Broken:
        def batch(self, step):
            raise ValueError(f"no step {step}")

    with ReadAhead(Broken(), 1) as ahead, pytest.raises(ValueError, match="no step 4"):
        ahead.batch(4)
