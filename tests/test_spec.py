import dataclasses
import math

import pytest

from dora_jax.spec import (
    FROZEN,
    GRANULAR_PRESET,
    PRESETS,
    AdapterRules,
    AdapterSpec,
    snippet_dora,
    snippet_lora,
)

DORA, LORA = AdapterSpec("dora"), AdapterSpec("lora")


def llama_modules(tied=False):
    attention = [f"layers/self_attn/{name}_proj" for name in "qkvo"]
    mlp = [f"layers/mlp/{name}_proj" for name in ("gate", "up", "down")]
    modules = [(path, "kernel") for path in attention + mlp]
    modules.append(("embed_tokens", "embedding"))
    return modules if tied else [*modules, ("lm_head", "kernel")]


def tuned(rules, modules=None):
    resolved = rules.resolve(modules or llama_modules())
    return {path.rsplit("/", 1)[-1] for path, spec in resolved.items() if spec.method != "frozen"}


@pytest.mark.parametrize(
    ("scaling", "expected"), [("standard", 3.0), ("rslora", 6.0), ("alpha", 12.0)]
)
def test_scale(scaling, expected):
    assert AdapterSpec(rank=4, alpha=12.0, scaling=scaling).scale == expected


@pytest.mark.parametrize(
    ("method", "low_rank", "magnitude"),
    [
        ("frozen", False, False),
        ("full", False, False),
        ("lora", True, False),
        ("dora", True, True),
        ("magnitude", False, True),
    ],
)
def test_what_each_method_holds(method, low_rank, magnitude):
    spec = AdapterSpec(method)
    assert (spec.has_low_rank, spec.has_magnitude) == (low_rank, magnitude)


def test_the_defaults_are_the_papers():
    assert dataclasses.asdict(AdapterSpec()) == {
        "method": "dora",
        "rank": 16,
        "alpha": 32.0,
        "scaling": "standard",
        "dropout": 0.0,
        "dropout_style": "low_rank",
        "norm_axis": "out",
        "detach_norm": True,
        "init": "kaiming",
        "train_bias": False,
        "param_dtype": "float32",
        "per_layer": None,
    }
    assert FROZEN.method == "frozen"


@pytest.mark.parametrize(
    ("field", "given", "suggestion"),
    [
        ("method", "dorra", "dora"),
        ("method", "magnitudes", "magnitude"),
        ("scaling", "rs_lora", "rslora"),
        ("norm_axis", "output", "out"),
        ("init", "kaimin", "kaiming"),
        ("dropout_style", "lowrank", "low_rank"),
        ("param_dtype", "float23", "float32"),
    ],
)
def test_an_unknown_choice_names_field_value_choices_and_the_nearest(field, given, suggestion):
    with pytest.raises(ValueError, match=f"AdapterSpec.{field} must be one of") as raised:
        AdapterSpec(**{field: given})
    message = str(raised.value)
    assert f"got {given!r} (did you mean {suggestion!r}?)" in message
    # All choices, the nearest again among them.
    assert message.count(repr(suggestion)) == 2


def test_nothing_is_suggested_for_a_word_like_none_of_them():
    with pytest.raises(ValueError, match=r"got 'xyzzy'$"):
        AdapterSpec(method="xyzzy")
    with pytest.raises(ValueError, match=r"got None$"):
        AdapterSpec(norm_axis=None)


@pytest.mark.parametrize("rank", [0, -3, 2.0, "8", True, None])
def test_a_bad_rank(rank):
    with pytest.raises(ValueError, match=r"AdapterSpec.rank must be a whole number") as raised:
        AdapterSpec(rank=rank)
    assert f"got {rank!r}" in str(raised.value)
    assert "method='magnitude' or 'frozen'" in str(raised.value)


@pytest.mark.parametrize("alpha", [0, -1.0, math.inf, math.nan, "32", None])
def test_a_bad_alpha(alpha):
    with pytest.raises(ValueError, match=r"AdapterSpec.alpha must be positive") as raised:
        AdapterSpec(alpha=alpha)
    assert f"got {alpha!r}" in str(raised.value)


@pytest.mark.parametrize("dropout", [1.0, 1.5, -0.1, math.nan, "0.1", None])
def test_a_bad_dropout(dropout):
    with pytest.raises(ValueError, match=r"AdapterSpec.dropout must be in \[0, 1\)") as raised:
        AdapterSpec(dropout=dropout)
    assert f"got {dropout!r}" in str(raised.value)


def test_the_bounds_are_allowed():
    assert AdapterSpec(rank=1, alpha=1e-6, dropout=0).rank == 1
    assert AdapterSpec(dropout=0.999).dropout == 0.999
    assert snippet_dora(1).rank == snippet_lora(1, 2.0).rank == 1


def test_specs_and_rules_are_static_jit_arguments():
    rules = AdapterRules([["q_proj", DORA]])
    same = AdapterRules((("q_proj", AdapterSpec("dora")),))
    assert rules == same
    assert hash(rules) == hash(same)
    with pytest.raises(dataclasses.FrozenInstanceError):
        DORA.rank = 3


def test_the_first_match_wins_and_the_unmatched_are_frozen():
    rules = AdapterRules([("q_proj", LORA), ("(q|k)_proj", DORA)])
    assert rules.spec_for("layers/self_attn/q_proj") == LORA
    assert rules.spec_for("layers/self_attn/k_proj") == DORA
    assert rules.spec_for("layers/self_attn/v_proj") == FROZEN
    resolved = rules.resolve(llama_modules())
    assert resolved["layers/self_attn/q_proj"] == LORA
    assert resolved["layers/self_attn/k_proj"] == DORA
    assert resolved["lm_head"] == FROZEN
    assert list(resolved) == [path for path, _ in llama_modules()]


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("q_proj", "layers/self_attn/q_proj", True),
        ("q_proj", "q_proj", True),
        ("self_attn/q_proj", "layers/self_attn/q_proj", True),
        ("layers/self_attn/q_proj", "layers/self_attn/q_proj", True),
        ("q_proj/kernel", "layers/self_attn/q_proj", True),
        ("layers/.*/kernel", "layers/self_attn/q_proj", True),
        (".*", "layers/self_attn/q_proj", True),
        # Whole parts of the path only, and to its end.
        ("proj", "layers/self_attn/q_proj", False),
        ("q_proj", "layers/self_attn/seq_proj", False),
        ("q_pro", "layers/self_attn/q_proj", False),
        ("self_attn", "layers/self_attn/q_proj", False),
        ("q_proj/embedding", "layers/self_attn/q_proj", False),
        # An alternative is one pattern, not two halves of the whole.
        ("q_proj|v_proj", "layers/self_attn/q_proj", True),
        ("q_proj|v_proj", "layers/q_proj/other", False),
        ("q_proj|v_proj", "layers/self_attn/v_proj", True),
    ],
)
def test_what_a_pattern_matches(pattern, path, matches):
    method = AdapterRules([(pattern, DORA)]).spec_for(path).method
    assert method == ("dora" if matches else "frozen")


def test_an_embedding_is_matched_by_its_own_weight():
    rules = AdapterRules([("embed_tokens/embedding", DORA)])
    assert rules.spec_for("embed_tokens", "embedding") == DORA
    assert rules.spec_for("embed_tokens", "kernel") == FROZEN


@pytest.mark.parametrize(
    ("pattern", "misses"),
    [
        ("q_porj", ["layers/self_attn/q_proj"]),
        ("layers/mlp/gate", ["layers/mlp/gate_proj"]),
        ("(gates|ups)_proj", ["layers/mlp/up_proj"]),
        ("embed_token", ["embed_tokens"]),
    ],
)
def test_a_rule_that_matches_nothing_lists_near_misses(pattern, misses):
    rules = AdapterRules([("q_proj", DORA), (pattern, DORA)])
    with pytest.raises(ValueError, match="matches no module; near misses:") as raised:
        rules.resolve(llama_modules())
    message = str(raised.value)
    assert message.startswith(f"rule {pattern!r}")
    listed = message.split("near misses: ")[1].split(", ")
    assert set(misses) <= set(listed)
    assert len(listed) == len(set(listed)) < len(llama_modules())


def test_near_misses_of_nonsense_are_some_modules_and_of_no_modules_none():
    rules = AdapterRules([("xyzzy", DORA)])
    with pytest.raises(ValueError, match="near misses: layers/self_attn/q_proj, "):
        rules.resolve(llama_modules())
    with pytest.raises(ValueError, match="near misses: none"):
        rules.resolve([])


def test_a_shadowed_rule_is_an_error_that_says_so():
    rules = AdapterRules([("(q|k)_proj", DORA), ("q_proj", LORA)])
    with pytest.raises(ValueError, match=r"'q_proj' has no effect: earlier rules match"):
        rules.resolve(llama_modules())


def test_without_rules_all_is_frozen():
    assert set(AdapterRules([]).resolve(llama_modules()).values()) == {FROZEN}


def test_bad_rules():
    with pytest.raises(ValueError, match=r"rule '\(q' is not a regular expression: "):
        AdapterRules([("(q", DORA)])
    with pytest.raises(ValueError, match="rule 'q_proj' needs an AdapterSpec, got 'dora'"):
        AdapterRules([("q_proj", "dora")])


@pytest.mark.parametrize("head", ["lm_head", "model/lm_head", "head", "vit/head"])
def test_all_linear_leaves_out_head_and_embeddings(head):
    modules = [*llama_modules(tied=True), (head, "kernel"), ("up", "kernel"), ("heads", "kernel")]
    rules = AdapterRules.preset("all-linear", DORA)
    expected = {f"{name}_proj" for name in ["q", "k", "v", "o", "gate", "up", "down"]}
    assert tuned(rules, modules) == expected | {"up", "heads"}
    # A module inside of a head is linear as any other.
    assert rules.spec_for(f"{head}/dense") == DORA
    assert rules.spec_for("") == DORA


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("paper", ["q", "k", "v", "up", "down"]),
        ("attention", ["q", "k", "v", "o"]),
        ("qv", ["q", "v"]),
    ],
)
def test_presets(preset, expected):
    rules = AdapterRules.preset(preset, LORA)
    assert tuned(rules) == {f"{name}_proj" for name in expected}
    assert rules.spec_for("layers/self_attn/q_proj") == LORA


def test_qkv_dora_tunes_the_magnitude_alone_elsewhere():
    spec = AdapterSpec("dora", rank=8, norm_axis="in")
    resolved = AdapterRules.preset("qkv-dora", spec).resolve(llama_modules())
    methods = {path.rsplit("/", 1)[-1]: s.method for path, s in resolved.items()}
    assert methods == {
        **dict.fromkeys(["q_proj", "k_proj", "v_proj"], "dora"),
        **dict.fromkeys(["o_proj", "gate_proj", "up_proj", "down_proj"], "magnitude"),
        **dict.fromkeys(["embed_tokens", "lm_head"], "frozen"),
    }
    assert resolved["layers/self_attn/o_proj"] == dataclasses.replace(spec, method="magnitude")


def test_qkv_dora_with_lora_is_lora_on_qkv():
    assert tuned(AdapterRules.preset("qkv-dora", LORA)) == {"q_proj", "k_proj", "v_proj"}


def test_an_unknown_preset_names_the_nearest_and_all():
    with pytest.raises(ValueError, match=r"'all-liner' \(did you mean 'all-linear'\?\)") as raised:
        AdapterRules.preset("all-liner", DORA)
    assert all(name in str(raised.value) for name in [*PRESETS, GRANULAR_PRESET])
