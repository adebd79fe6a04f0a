import dataclasses
import json
import math
from pathlib import Path

import pytest

from dora_jax.errors import DoraError
from dora_jax.spec import PRESETS, AdapterSpec
from dora_jax.training.config import (
    NO_RESULT,
    WORK_ALONE,
    AdapterConfig,
    CompareConfig,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    digest,
)

REFUSED = [
    (
        ModelConfig,
        {"dtype": "float16"},
        "model.dtype 'float16' is refused: its small gradients become zero without a loss scale",
    ),
    (ModelConfig, {"remat": "dot"}, "got 'dot' (did you mean 'dots'?)"),
    (DataConfig, {"train_rows": 0}, "data.train_rows must be a whole number of at least 1; got 0"),
    (
        DataConfig,
        {"validation_rows": -1},
        "data.validation_rows must be a whole number of at least 0; got -1",
    ),
    (DataConfig, {"eval_rows": -3}, "data.eval_rows must be a whole number of at least 1; got -3"),
    (DataConfig, {"max_length": 0}, "data.max_length must be a whole number of at least 1; got 0"),
    (
        DataConfig,
        {"eval_batch_size": 0},
        "data.eval_batch_size must be a whole number of at least 1; got 0",
    ),
    (DataConfig, {"seed": -1}, "data.seed must be at least 0 and below 2**32; got -1"),
    (DataConfig, {"train": Path("a")}, "data.train is given without data.eval: give both files"),
    (DataConfig, {"eval": Path("a")}, "data.eval is given without data.train: give both files"),
    (
        DataConfig,
        {"train": Path("a"), "eval": Path("b"), "relations": ("capital",)},
        "data.relations belongs to the embedded task; data.train replaces it",
    ),
    (DataConfig, {"packing": "packed"}, "got 'packed' (did you mean 'pack'?)"),
    (DataConfig, {"train_on": "answer"}, "got 'answer' (did you mean 'answers'?)"),
    (DataConfig, {"too_long": "truncate"}, "data.too_long must be one of 'drop', 'truncate_left'"),
    (DataConfig, {"workers": 2, "read_ahead": 0}, "data.read_ahead must not be 0"),
    (DataConfig, {"buckets": 0}, "data.buckets must be a whole number of at least 1; got 0"),
    (DataConfig, {"workers": -1}, "data.workers must be a whole number of at least 0; got -1"),
    (DataConfig, {"mix": {"a": 1.0}}, "data.mix is given without data.eval: give both files"),
    (
        DataConfig,
        {"mix": (("a", 1.0), ("b", 0.0)), "eval": Path("c")},
        "data.mix, weight of b must be positive and finite; got 0.0",
    ),
    (
        DataConfig,
        {"mix": (("a", 1.0), ("a", 2.0)), "eval": Path("c")},
        "data.mix must be without repeats; got a, a",
    ),
    (
        DataConfig,
        {"mix": {"a": 1.0}, "train": Path("b"), "eval": Path("c")},
        "data.train and data.mix are both given: give one of them",
    ),
    (AdapterConfig, {"rank": 0}, "adapter.rank must be a whole number of at least 1; got 0"),
    (AdapterConfig, {"rank": 2.5}, "adapter.rank must be a whole number of at least 1; got 2.5"),
    (AdapterConfig, {"alpha": -1.0}, "adapter.alpha must be positive and finite; got -1.0"),
    (AdapterConfig, {"alpha": math.inf}, "adapter.alpha must be positive and finite; got inf"),
    (AdapterConfig, {"dropout": 1.0}, "adapter.dropout must be in [0, 1); got 1.0"),
    (AdapterConfig, {"scaling": "rs"}, "adapter.scaling must be one of 'standard', 'rslora'"),
    (AdapterConfig, {"dropout_style": "pefd"}, "got 'pefd' (did you mean 'peft'?)"),
    (AdapterConfig, {"norm_axis": "outt"}, "adapter.norm_axis must be one of 'out', 'in'; got"),
    (AdapterConfig, {"init": "kaimin"}, "got 'kaimin' (did you mean 'kaiming'?)"),
    (AdapterConfig, {"modules": "papr"}, "adapter.modules: unknown preset 'papr' (did you mean"),
    (AdapterConfig, {"modules": "all_linear"}, "(did you mean 'all-linear'?)"),
    (AdapterConfig, {"modules": "(q|k"}, "adapter.modules: '(q|k' is not a regular expression"),
    (OptimConfig, {"learning_rate": 0.0}, "optim.learning_rate must be positive; got 0.0"),
    (OptimConfig, {"learning_rate": math.nan}, "optim.learning_rate must be positive; got nan"),
    (OptimConfig, {"learning_rate": math.inf}, "optim.learning_rate must be positive; got inf"),
    (OptimConfig, {"schedule": "lineer"}, "got 'lineer' (did you mean 'linear'?)"),
    (OptimConfig, {"warmup_ratio": 1.1}, "optim.warmup_ratio must be in [0, 1]; got 1.1"),
    (
        OptimConfig,
        {"weight_decay": math.inf},
        "optim.weight_decay must be finite and at least 0; got inf",
    ),
    (OptimConfig, {"clip_norm": 0.0}, "optim.clip_norm must be positive; got 0.0"),
    (OptimConfig, {"beta1": 1.0}, "optim.beta1 must be in [0, 1); got 1.0"),
    (OptimConfig, {"beta2": -0.1}, "optim.beta2 must be in [0, 1); got -0.1"),
    (TrainConfig, {"method": "lorra"}, "got 'lorra' (did you mean 'lora'?)"),
    (TrainConfig, {"method": "frozen"}, "train.method must be a method that trains; got 'frozen'"),
    (TrainConfig, {"steps": 0}, "train.steps must be a whole number of at least 1"),
    (
        TrainConfig,
        {"batch_size": 0},
        "train.batch_size must be a whole number of at least 1",
    ),
    (
        TrainConfig,
        {"micro_batches": 0},
        "train.micro_batches must be a whole number of at least 1",
    ),
    (
        TrainConfig,
        {"checkpoint_every": 0},
        "train.checkpoint_every must be a whole number of at least 1",
    ),
    (
        TrainConfig,
        {"batch_size": 10, "micro_batches": 4},
        "train.batch_size (10) must be a multiple of train.micro_batches (4)",
    ),
    (CompareConfig, {"methods": ()}, "compare.methods must be at least one method; got ()"),
    (CompareConfig, {"methods": ("dora", "dora")}, "compare.methods must be without repeats; got"),
    (CompareConfig, {"methods": ("dora", "frozen")}, "compare.methods must be methods that train"),
    (CompareConfig, {"methods": ("dorra",)}, "got 'dorra' (did you mean 'dora'?)"),
    (CompareConfig, {"learning_rates": ()}, "compare.learning_rates must be positive rates; got"),
    (CompareConfig, {"learning_rates": (0.1, -0.1)}, "compare.learning_rates must be positive"),
    (CompareConfig, {"learning_rates": (math.nan,)}, "compare.learning_rates must be positive"),
    (CompareConfig, {"learning_rates": (1e-3, 0.001)}, "must be rates that differ in their first"),
    (CompareConfig, {"learning_rates": (0.1, 0.10000001)}, "must be rates that differ in their"),
    (CompareConfig, {"search_steps": -1}, "compare.search_steps must be at least 0; got -1"),
    (ExperimentConfig, {"name": "a/b"}, "name must be a plain file name; got 'a/b'"),
    (ExperimentConfig, {"name": ""}, "name must be a plain file name; got ''"),
    (ExperimentConfig, {"seeds": ()}, "seeds must be at least one seed; got ()"),
    (ExperimentConfig, {"seeds": (1, 1)}, "seeds must be without repeats; got (1, 1)"),
    (ExperimentConfig, {"seeds": (0, -1)}, "seeds must be at least 0 and below 2**32; got -1"),
    (ExperimentConfig, {"seeds": (0, 2**32)}, "seeds must be at least 0 and below 2**32; got 4294"),
]

ALLOWED = [
    (ModelConfig, {"dtype": "bfloat16", "remat": "full"}),
    (DataConfig, {"train": Path("a"), "eval": Path("b")}),
    (DataConfig, {"train_rows": 1, "seed": 2**32 - 1}),
    (OptimConfig, {"warmup_ratio": 0.0, "beta1": 0.0, "weight_decay": 0.0}),
    (OptimConfig, {"warmup_ratio": 1.0}),
    (TrainConfig, {"batch_size": 12, "micro_batches": 4, "steps": 1, "checkpoint_every": 1}),
    (CompareConfig, {"methods": ("full", "magnitude"), "search_steps": 0}),
    (CompareConfig, {"learning_rates": (0.1, 0.100001)}),
    (ExperimentConfig, {"name": "my.first_run-2", "seeds": (5, 2**32 - 1)}),
]


@pytest.mark.parametrize(("kind", "fields", "message"), REFUSED)
def test_what_is_not_allowed_is_refused_in_words(kind, fields, message):
    with pytest.raises(DoraError) as caught:
        kind(**fields)
    assert message in str(caught.value)


@pytest.mark.parametrize(("kind", "fields"), ALLOWED)
def test_the_limits_themselves_are_allowed(kind, fields):
    config = kind(**fields)
    assert {name: getattr(config, name) for name in fields} == fields


def test_every_check_holds_for_replaced_fields_too():
    config = ExperimentConfig()
    with pytest.raises(DoraError, match=r"train\.steps must be a whole number of at least 1"):
        dataclasses.replace(config.train, steps=0)


SPEC_FIELDS = {
    "rank": 4,
    "alpha": 6.0,
    "scaling": "rslora",
    "dropout": 0.1,
    "dropout_style": "peft",
    "norm_axis": "in",
    "detach_norm": False,
    "init": "gaussian",
}


@pytest.mark.parametrize("method", ["lora", "dora", "magnitude", "full"])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_gives_its_modules_the_spec(method, preset):
    rules = AdapterConfig(modules=preset, **SPEC_FIELDS).rules(method)
    spec = AdapterSpec(method, **SPEC_FIELDS)
    assert list(rules.rules) == [(pattern, spec) for pattern in PRESETS[preset]]


def test_the_spec_has_every_field_of_the_config():
    fields = {field.name for field in dataclasses.fields(AdapterConfig)}
    beside = {"bias", "modules_to_save"}  # said of other modules
    assert fields == {"modules", *beside, *SPEC_FIELDS}


def test_the_granular_preset_tunes_magnitudes_alone_beside_dora():
    config = AdapterConfig(modules="qkv-dora")
    rules = config.rules("dora")
    assert rules.spec_for("layers/self_attn/q_proj").method == "dora"
    assert rules.spec_for("layers/mlp/up_proj").method == "magnitude"
    assert config.rules("lora").spec_for("layers/mlp/up_proj").method == "frozen"


@pytest.mark.parametrize("modules", ["q_proj", "down_proj", "self_attn/.*", "mlp", "lm_head", "x"])
def test_a_regular_expression_or_a_module_s_name_is_taken_as_it_is(modules):
    (rule,) = AdapterConfig(modules=modules).rules("lora").rules
    assert rule[0] == modules


def test_settings_are_plain_json():
    config = ExperimentConfig(data=DataConfig(train=Path("a.jsonl"), eval=Path("b")), seeds=(3, 1))
    settings = config.settings()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["seeds"] == [3, 1]
    assert settings["data"]["train"] == "a.jsonl"
    assert settings["adapter"]["rank"] == 16


def names(value):
    if not isinstance(value, dict):
        return None
    return {name: names(inner) for name, inner in value.items()}


def test_settings_name_every_field_of_every_part():
    config = ExperimentConfig()
    expected = names(dataclasses.asdict(config))
    for name in NO_RESULT:
        del expected[name]
    for name in WORK_ALONE:
        del expected["data"][name]
    assert names(config.settings()) == expected


def test_who_makes_the_batches_names_no_other_run():
    data = DataConfig(read_ahead=5, workers=3)
    assert ExperimentConfig(data=data).run_folder() == ExperimentConfig().run_folder()
    assert ExperimentConfig(data=DataConfig(packing="pack")).run_folder() != (
        ExperimentConfig().run_folder()
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"seeds": (1,)},
        {"data": DataConfig(train=Path("a"), eval=Path("b"))},
        {"adapter": AdapterConfig(detach_norm=False)},
        {"optim": OptimConfig(learning_rate=1e-3 + 1e-9)},
        {"train": TrainConfig(micro_batches=2)},
        {"compare": CompareConfig(methods=("dora", "lora"))},
    ],
)
def test_other_settings_have_another_folder(changes):
    folders = [ExperimentConfig(**fields).run_folder().name for fields in ({}, changes)]
    assert folders[0][-8:] != folders[1][-8:]


def test_the_run_folder_is_named_by_the_settings_and_the_same_in_every_process():
    config = ExperimentConfig(name="mine")
    assert config.run_folder() == Path("runs") / f"mine-{digest(config.settings())}"
    elsewhere = dataclasses.replace(config, out=Path("/elsewhere"))
    assert elsewhere.run_folder() == Path("/elsewhere")
    assert elsewhere.settings() == config.settings()
    # A fixed value: nothing about the process, such as its hash seed, goes into it.
    assert digest({"b": [1, 0.5, None], "a": "é"}) == digest({"a": "é", "b": [1, 0.5, None]})
    assert digest({"b": [1, 0.5, None], "a": "é"}) == "97f0d070"


def test_texts_become_paths_and_steps_are_whole():
    config = ExperimentConfig(data=DataConfig(train="a.jsonl", eval="b.jsonl"), out="runs/x")
    assert (config.data.train, config.data.eval) == (Path("a.jsonl"), Path("b.jsonl"))
    assert config.run_folder() == Path("runs/x")
    for value in (2.5, True, "2"):
        with pytest.raises(DoraError, match=r"train\.steps must be a whole number of at least 1"):
            TrainConfig(steps=value)
