"""What a comparison compares, and the grid as it is written."""

import dataclasses
import re

import pytest

from dora_jax.comparison.arms import make_arms
from dora_jax.comparison.compare import _runs
from dora_jax.errors import DoraError
from dora_jax.training.config import (
    AdapterConfig,
    CompareConfig,
    ExperimentConfig,
    GridAxis,
    OptimConfig,
)

ALL = ("lora", "dora", "magnitude", "full", "bitfit")


def experiment(**fields):
    return ExperimentConfig(**{"compare": CompareConfig(methods=ALL), **fields})


def test_without_a_grid_the_arms_are_the_methods():
    arms = make_arms(experiment())
    assert tuple(arm.name for arm in arms) == ALL
    assert [arm.label for arm in arms][:3] == ["LoRA", "DoRA", "Magnitude only"]
    assert all(arm.point == {} and arm.start == arm.name for arm in arms)
    assert {arm.config.train.method for arm in arms} == set(ALL)


def test_every_method_is_at_every_point_that_matters_to_it():
    arms = make_arms(experiment(grid={"adapter.rank": (4, 8), "adapter.norm_axis": ("out", "in")}))
    names = [arm.name for arm in arms]
    assert names == [
        "lora-rank4",
        "lora-rank8",
        *(f"dora-rank{r}-norm_axis{a}" for r in (4, 8) for a in ("out", "in")),
        "magnitude-norm_axisout",
        "magnitude-norm_axisin",
        "full",
        "bitfit",
    ]
    by_name = dict(zip(names, arms, strict=True))
    arm = by_name["dora-rank8-norm_axisin"]
    assert arm.point == {"adapter.rank": 8, "adapter.norm_axis": "in"}
    assert (arm.config.adapter.rank, arm.config.adapter.norm_axis) == (8, "in")
    assert (arm.start, arm.label) == ("dora", "DoRA, rank 8, norm axis in")
    assert by_name["full"].point == {}


def test_what_has_no_adapters_is_once_on_any_axis_of_the_adapter():
    compared = CompareConfig(methods=("full", "bitfit", "norms"))
    arms = make_arms(experiment(compare=compared, grid={"adapter.modules": ("paper", "qv")}))
    assert [a.name for a in arms] == ["full-modulespaper", "full-modulesqv", "bitfit", "norms"]


def test_fields_that_vary_together_are_one_axis():
    grid = {"adapter.rank+adapter.alpha": [(4, 8.0), (8, 16.0)]}
    lora4, lora8, *_ = make_arms(experiment(grid=grid))
    assert [(a.config.adapter.rank, a.config.adapter.alpha) for a in (lora4, lora8)] == [
        (4, 8.0),
        (8, 16.0),
    ]
    assert lora8.point == {"adapter.rank": 8}


def test_an_axis_counts_for_a_method_that_any_of_its_fields_matters_to():
    arms = make_arms(experiment(grid={"adapter.rank+train.steps": [(4, 10), (8, 20)]}))
    (low, high) = (arm for arm in arms if arm.method == "magnitude")
    assert (low.config.train.steps, high.config.train.steps) == (10, 20)
    assert low.point != high.point


def test_arms_that_would_train_alike_are_one():
    settings = {}
    for rank in (4, 8):
        config = experiment(adapter=AdapterConfig(rank=rank))
        for arm in make_arms(config):
            settings.setdefault(arm.method, []).append(arm.settings())
    assert [m for m, (first, second) in settings.items() if first == second] == [
        "magnitude",
        "full",
        "bitfit",
    ]


def test_variants_stand_in_place_of_methods():
    arms = make_arms(
        experiment(
            variants={
                "DoRA, half rank": {"train.method": "dora", "adapter.rank": 8},
                "LoRA": {"train.method": "lora", "optim.learning_rate": 5e-4},
            },
            grid={"data.train_rows": (10, 20)},
        )
    )
    assert [arm.name for arm in arms] == [
        "dora-half-rank-train_rows10",
        "dora-half-rank-train_rows20",
        "lora-train_rows10",
        "lora-train_rows20",
    ]
    assert arms[0].label == "DoRA, half rank, train rows 10"
    assert arms[0].config.adapter.rank == 8
    assert arms[3].config.optim.learning_rate == 5e-4
    assert arms[3].config.data.train_rows == 20


def test_each_variant_may_search_among_its_own_rates_but_as_many():
    def with_rates(*rates):
        own = {"train.method": "full", "compare.learning_rates": rates}
        return experiment(variants={"Full": own, "LoRA": {"train.method": "lora"}})

    full, lora = make_arms(with_rates(1e-5, 3e-5, 1e-4))
    assert full.config.compare.learning_rates == (1e-5, 3e-5, 1e-4)
    assert lora.config.compare.learning_rates == CompareConfig().learning_rates
    with pytest.raises(DoraError, match="as many for every variant"):
        make_arms(with_rates(1e-5, 3e-5))


def test_arms_that_differ_in_the_rates_they_train_at_are_two():
    def arms(field, first, second, **compared):
        variants = {
            name: {"train.method": "lora", field: value}
            for name, value in (("A", first), ("B", second))
        }
        return make_arms(experiment(variants=variants, compare=CompareConfig(**compared)))

    assert len(arms("compare.learning_rates", (1e-4,), (1e-3,))) == 2
    assert len(arms("optim.learning_rate", 1e-4, 1e-3, search_steps=0)) == 2
    # What is searched for, or is not, is all that counts.
    assert len(arms("optim.learning_rate", 1e-4, 1e-3)) == 1
    assert len(arms("compare.learning_rates", (1e-4,), (1e-3,), search_steps=0)) == 1


@pytest.mark.parametrize(
    ("text", "fields", "values"),
    [
        ("adapter.rank=4,8", ("adapter.rank",), ((4,), (8,))),
        ("adapter.modules=paper,qv", ("adapter.modules",), (("paper",), ("qv",))),
        ('adapter.modules=["(q|k),?_proj"]', ("adapter.modules",), (("(q|k),?_proj",),)),
        (
            "adapter.rank+adapter.alpha=4+8,8+16.5",
            ("adapter.rank", "adapter.alpha"),
            ((4, 8), (8, 16.5)),
        ),
        ("optim.learning_rate=1e-4,3e-3", ("optim.learning_rate",), ((1e-4,), (3e-3,))),
    ],
)
def test_an_axis_is_read_from_one_word_and_written_as_one(text, fields, values):
    axis = GridAxis.parse(text)
    assert (axis.fields, axis.values) == (fields, values)
    assert GridAxis.parse(str(axis)) == axis
    searched = CompareConfig(search_steps=0)
    assert ExperimentConfig(compare=searched, grid=(text,)).grid == (axis,)


def test_yes_and_no_are_read_as_python_and_json_write_them():
    for text in ("adapter.detach_norm=True,False", "adapter.detach_norm=true,false"):
        dora = [arm for arm in make_arms(experiment(grid=(text,))) if arm.method == "dora"]
        assert [arm.config.adapter.detach_norm for arm in dora] == [True, False]


def test_lists_may_vary_and_whole_numbers_are_floats():
    text = 'adapter.modules_to_save=[["lm_head"],[]]'
    found = make_arms(experiment(grid=(text,), compare=CompareConfig(methods=("dora",))))
    assert [arm.config.adapter.modules_to_save for arm in found] == [("lm_head",), ()]
    for grid in (("adapter.alpha=16,16.0",), {"adapter.alpha": [16.0]}):
        (arm,) = make_arms(experiment(grid=grid, compare=CompareConfig(methods=("dora",))))
        assert repr(arm.settings()["adapter"]["alpha"]) == "16.0"


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"adapter.rank": 4}, r"grid over adapter\.rank: give a list of values; got 4"),
        ({"adapter.rank+adapter.alpha": (4, 8)}, "a list of values, each a list of 2; got"),
        (
            ("adapter.rnk=4",),
            r"'adapter.rnk' is not a field that may vary \(did you mean 'adapter.ra",
        ),
        (("adapter.rank",), "give FIELD=VALUE,VALUE"),
        (("adapter.rank=[4",), "is not a JSON list"),
        (("adapter.rank=4,4",), "give each value once"),
        (("adapter.rank+adapter.alpha=4,8",), "must give 2 values"),
        (("adapter.rank=4", "adapter.rank+adapter.alpha=4+8"), "each field may vary once"),
        (("seeds=1,2",), "give --seeds"),
        (("train.method=lora",), "give --compare.methods"),
        (("model.name=a",), "one model"),
        (("data.eval=a",), "the same rows"),
        (("optim.learning_rate=1e-3",), "--compare.search-steps 0"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(grid, message):
    with pytest.raises(DoraError, match=message):
        experiment(grid=grid)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": ("adapter.rank=4,0",)}, r"grid: adapter\.rank must be a whole number"),
        ({"grid": ("train.steps=4,many",)}, r"grid: train\.steps must be a whole number"),
        ({"grid": ("adapter.detach_norm=yes",)}, r"detach_norm must be true or false; got 'yes'"),
        ({"grid": ("adapter.rank=true",)}, r"adapter\.rank must be a whole number; got True"),
        ({"grid": ("optim.warmup_ratio=a",)}, r"grid: optim\.warmup_ratio must be a number"),
        ({"grid": ("optim.rate_ratios=lora_b",)}, r"optim\.rate_ratios must be a list; got 'lora"),
        ({"grid": ("adapter.modules=3",)}, r"adapter\.modules must be a text; got 3"),
        (
            {"variants": {"A": {"data.image_folder": 3}}},
            r"variant 'A': data\.image_folder must be a path or null; got 3",
        ),
        (
            {"variants": {"A b": {"adapter.rank": 2}, "a-b": {"adapter.rank": 3}}},
            "two arms would be called 'a-b'",
        ),
        ({"variants": {"A": {"train.method": "nora"}}}, r"variant 'A': train\.method must be one"),
        (
            {"compare": CompareConfig(pairs=(("lora", "dorra"),))},
            "compare.pairs names 'dorra'; the arms are lora, dora",
        ),
    ],
)
def test_values_that_a_field_refuses_are_named(changes, message):
    with pytest.raises(DoraError, match=message):
        make_arms(experiment(**changes))


def test_settings_of_an_arm_name_its_own_values_alone():
    config = experiment(grid=("adapter.rank=4,8",), optim=OptimConfig(learning_rate=2e-3))
    arm = make_arms(config)[0]
    settings = arm.settings()
    assert "grid" not in settings
    assert settings["adapter"]["rank"] == 4
    assert "norm_axis" not in settings["adapter"]
    assert re.search("lora", str(settings["train"]["method"]))
    # The rate of a run is that of its part.
    elsewhere = dataclasses.replace(config, name="other", seeds=(1, 2), optim=OptimConfig())
    assert make_arms(elsewhere)[0].settings() == settings


def test_a_dear_variant_is_run_with_the_first_seeds_alone():
    dear = {"train.method": "full", "compare.first_seeds": 2}
    config = experiment(seeds=(5, 3, 8), variants={"Full": dear, "LoRA": {"train.method": "lora"}})
    full, lora = make_arms(config)
    assert full.seeds == (5, 3)
    assert lora.seeds == (5, 3, 8)
    runs = [(run.arm.name, run.seed) for run in _runs(config, [full, lora], {})]
    assert runs == [("full", 5), ("lora", 5), ("full", 3), ("lora", 3), ("lora", 8)]


def test_arms_of_other_seeds_are_two():
    variants = {
        "A": {"train.method": "lora", "compare.first_seeds": 1},
        "B": {"train.method": "lora"},
    }
    assert len(make_arms(experiment(seeds=(0, 1), variants=variants))) == 2
    assert len(make_arms(experiment(seeds=(0,), variants=variants))) == 1


FAR = {"train.method": "lora", "data.images": "leave_out", "compare.baseline": True}
NEAR = {"LoRA": {"train.method": "lora"}, "DoRA": {"train.method": "dora"}}


def test_a_variant_may_be_a_baseline():
    arms = make_arms(experiment(variants={**NEAR, "LoRA, blind": FAR}))
    assert [arm.baseline for arm in arms] == [False, False, True]
    # One that trains as a compared arm does is another arm: it is in no pair.
    twin = {"train.method": "lora", "compare.baseline": True}
    assert len(make_arms(experiment(variants={"Twin": twin, **NEAR}))) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {"A": FAR}}, "compare.baseline: every arm is a baseline"),
        ({"compare": CompareConfig(baseline=True)}, "compare.baseline: every arm is a baseline"),
        (
            {
                "variants": {**NEAR, "Blind": FAR},
                "compare": CompareConfig(pairs=(("lora", "blind"),)),
            },
            "compare.pairs names 'blind', a baseline, which is in no pair",
        ),
        (
            {"variants": {**NEAR, "Blind": {**FAR, "compare.baseline": "yes"}}},
            r"variant 'Blind': compare\.baseline must be true or false; got 'yes'",
        ),
    ],
)
def test_baselines_that_cannot_be_are_refused(changes, message):
    with pytest.raises(DoraError, match=message):
        make_arms(experiment(**changes))


def test_a_grid_does_not_make_baselines():
    with pytest.raises(DoraError, match=r"grid: 'compare\.baseline' is not a field that may vary"):
        experiment(grid={"compare.baseline": (True, False)})
