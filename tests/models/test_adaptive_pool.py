import math

import numpy as np
import pytest

from dora_jax.models.adaptive_pool import pool, row_windows, square_windows

RNG = np.random.default_rng(0)
SIZES = [(7, 6), (12, 5), (3, 3), (10, 1), (3, 5)]


def reference(x, is_real, to, how):
    """Return the pooled row of features and what of it is real, one window after the other."""
    found, real = [], []
    for n in range(to):
        window = range(math.floor(n * len(x) / to), math.ceil((n + 1) * len(x) / to))
        own = [x[i].astype(np.float64) for i in window if is_real[i]]
        reduce = np.mean if how == "mean" else np.max
        found.append(reduce(own, axis=0) if own else np.zeros(x.shape[-1]))
        real.append(bool(own))
    return np.stack(found), np.array(real)


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize(("size", "to"), SIZES)
def test_a_row_is_pooled_window_by_window(size, to, how):
    x = RNG.standard_normal((2, size, 3)).astype(np.float32)
    is_real = RNG.random((2, size)) < 0.5
    is_real[0] = True
    found, real = pool(x, is_real, row_windows(size, to), how)
    for row in range(2):
        expected, expected_real = reference(x[row], is_real[row], to, how)
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(real[row], expected_real)


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize(("side", "to"), [(7, 6), (5, 2), (4, 4)])
def test_a_square_is_pooled_row_by_row_and_column_by_column(side, to, how):
    x = RNG.standard_normal((side * side, 3)).astype(np.float32)
    found, real = pool(x, np.ones(side * side, bool), square_windows(side, to), how)
    whole = np.ones(side, bool)
    columns = x.reshape(side, side, 3)
    # The windows of a square are those of its rows and of its columns: all of one size in each.
    across = np.stack([reference(row, whole, to, how)[0] for row in columns])
    expected = np.stack([reference(across[:, n], whole, to, how)[0] for n in range(to)], axis=1)
    np.testing.assert_allclose(found, expected.reshape(to * to, 3), rtol=1e-4, atol=1e-5)
    assert real.all()


@pytest.mark.parity
@pytest.mark.parametrize(("side", "to"), [(7, 6), (14, 6), (5, 3)])
def test_pooling_is_that_of_torch(side, to):
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    x = RNG.standard_normal((2, side * side, 3)).astype(np.float32)
    channels_first = torch.from_numpy(x).permute(0, 2, 1).reshape(2, 3, side, side)
    functional = torch.nn.functional
    for how, by_torch in (
        ("mean", functional.adaptive_avg_pool2d),
        ("max", functional.adaptive_max_pool2d),
    ):
        found, _ = pool(x, np.ones(x.shape[:2], bool), square_windows(side, to), how)
        expected = by_torch(channels_first, (to, to)).flatten(2).permute(0, 2, 1)
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)
