"""The torture's short form; the long one is `python -m tests.torture.kill_resume`."""

import pytest

from tests.torture.kill_resume import torture


@pytest.mark.slow
def test_a_run_killed_again_and_again_is_one_that_was_left_alone():
    found = torture(kills=3, seed=1, steps=16)
    assert found["kills"] == 3
    assert found["kills_while_saving"] >= 1
    assert found["steps"] == 16
    assert found["equal"] == {"metrics": True, "scores": True, "weights": True}
