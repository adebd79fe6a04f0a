import numpy as np
import pytest

from dora_jax.adapters import merge_params
from dora_jax.closest_lora import closest_lora
from dora_jax.errors import DoraError
from dora_jax.spec import AdapterRules, AdapterSpec

RULES = AdapterRules([("q", AdapterSpec("dora", rank=2, alpha=3)), ("m", AdapterSpec("magnitude"))])


def trees():
    """Return (base, tuned): a stack of DoRA, and a magnitude alone that moved in two columns."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype("f4")

    q, m, bias = normal(3, 8, 6), normal(5, 7), normal(7)
    tuned = {
        "q": {"kernel": q, "lora_a": normal(3, 8, 2), "lora_b": normal(3, 2, 6) / 4},
        "m": {"kernel": m, "bias": bias, "magnitude": np.linalg.norm(m, axis=0)},
        "norm": {"scale": np.ones(4, "f4")},
    }
    tuned["q"]["magnitude"] = np.linalg.norm(q, axis=1) * 1.1
    tuned["m"]["magnitude"][[1, 4]] *= [1.2, 0.7]
    base = {"q": {"kernel": q}, "m": {"kernel": m, "bias": bias}, "norm": tuned["norm"]}
    return base, tuned


def change(base, tuned, path, layer=...):
    """Return W' - W in float64, from DoRA's formula."""
    leaves = tuned[path]
    w = base[path]["kernel"].astype(np.float64)
    v = w + (1.5 * leaves["lora_a"].astype(float) @ leaves["lora_b"] if "lora_a" in leaves else 0)
    norm = np.linalg.norm(v, axis=-2, keepdims=True)
    return (leaves["magnitude"][..., None, :] * v / norm - w)[layer]


def test_no_product_of_that_rank_is_closer():
    base, tuned = trees()
    found = closest_lora(base, tuned, RULES, rank=2)
    for n in range(3):
        wanted = change(base, tuned, "q", n)
        got = (found.params["q"]["lora_a"][n] @ found.params["q"]["lora_b"][n]).astype(float)
        s = np.linalg.svd(wanted, compute_uv=False)
        error = np.linalg.norm(wanted - got) / np.linalg.norm(wanted)
        np.testing.assert_allclose(error, np.sqrt((s[2:] ** 2).sum() / (s**2).sum()), rtol=1e-4)
        np.testing.assert_allclose(found.errors["q"][n], error, rtol=1e-4)
    assert found.ranks == {"q": [2, 2, 2], "m": [2]}
    assert found.params["norm"]["scale"] is tuned["norm"]["scale"]
    # Two columns moved: rank 2 holds all of it.
    merged = merge_params(found.params, found.rules)
    expected = base["m"]["kernel"] + change(base, tuned, "m")
    np.testing.assert_allclose(merged["m"]["kernel"], expected, atol=1e-6)


@pytest.mark.parametrize("error", [0.5, 0.2, 0.01, 0])
def test_the_rank_is_the_lowest_that_keeps_the_error(error):
    base, tuned = trees()
    found = closest_lora(base, tuned, RULES, error=error)
    merged = merge_params(found.params, found.rules)
    for n, rank in enumerate(found.ranks["q"]):
        wanted = change(base, tuned, "q", n)
        s = np.linalg.svd(wanted, compute_uv=False)
        tail = np.sqrt(np.append(np.cumsum((s**2)[::-1])[::-1], 0) / (s**2).sum())
        assert tail[rank] <= error + 1e-9 < tail[rank - 1] + 1e-6
        left = merged["q"]["kernel"][n] - base["q"]["kernel"][n] - wanted
        assert np.linalg.norm(left) <= (error + 1e-5) * np.linalg.norm(wanted)


def test_what_did_not_change_gets_no_adapter():
    base, tuned = trees()
    tuned["m"]["magnitude"] = np.linalg.norm(base["m"]["kernel"], axis=0)
    tuned["q"]["lora_b"][1] = 0
    tuned["q"]["magnitude"][1] = np.linalg.norm(base["q"]["kernel"][1], axis=0)
    found = closest_lora(base, tuned, RULES, rank=4)
    assert found.ranks == {"q": [4, 0, 4], "m": [0]}
    spec = found.rules.spec_for("q")
    assert spec.per_layer == ((4, 4.0), None, (4, 4.0))
    assert set(found.params["m"]) == {"kernel", "bias"}
    merged = merge_params(found.params, found.rules)
    np.testing.assert_array_equal(merged["q"]["kernel"][1], base["q"]["kernel"][1])


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "give a rank, or an error"),
        ({"rank": 1, "error": 0.1}, "and not both"),
        ({"rank": 0}, "must be at least 1; got 0"),
        ({"error": 1.0}, r"a share in \[0, 1\); got 1.0"),
    ],
)
def test_rank_or_error(given, problem):
    with pytest.raises(DoraError, match=problem):
        closest_lora(*trees(), RULES, **given)
