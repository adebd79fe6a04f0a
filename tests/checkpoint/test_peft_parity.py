"""Live against PEFT: which modules it adapts, what we write there and what it writes here."""

import dataclasses
import json
import warnings

import flax.traverse_util
import jax
import numpy as np
import pytest

from dora_jax.adapters import init_adapters, merge_params
from dora_jax.checkpoint import peft_config
from dora_jax.checkpoint.hf import read_hf_folder, write_hf_folder
from dora_jax.checkpoint.peft_load import layers_of, load_peft
from dora_jax.checkpoint.peft_modules import modules
from dora_jax.checkpoint.peft_rules import needs_own_head, rules_of
from dora_jax.checkpoint.peft_save import save_peft
from dora_jax.checkpoint.state import flatten
from dora_jax.models.build import build_model
from dora_jax.models.llama import param_shapes
from dora_jax.partition import trainable_mask
from dora_jax.spec import AdapterRules, AdapterSpec
from tests.checkpoint.peft_cases import base, inputs
from tests.checkpoint.test_peft_golden import by_hf_name, logits, stored
from tests.golden.make_peft_golden import torch_inputs
from tests.models.families import FAMILIES
from tests.models.llavas import LLAVAS

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="needs the parity extra")
peft = pytest.importorskip("peft", reason="needs the parity extra")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="needs the parity extra")
transformers = pytest.importorskip("transformers", reason="needs the parity extra")


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def torch_model(folder):
    seeing = json.loads((folder / "config.json").read_text())["model_type"] == "llava"
    kind = "AutoModelForImageTextToText" if seeing else "AutoModelForCausalLM"
    model = getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager")
    return model.eval()


def theirs(model):
    family = "llava-1.5" if model.config.model_type == "llava" else "llama"
    with torch.no_grad():
        return model(**torch_inputs(*inputs(family)[:2])).logits.numpy()


def peft_folder(model, out, **fields):
    """Save PEFT's adapter of a model, every tensor of it random; return its adapted model."""
    task = None if model.config.model_type == "llava" else "CAUSAL_LM"
    adapted = peft.get_peft_model(model, peft.LoraConfig(**{"task_type": task, **fields}))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
            elif parameter.requires_grad:
                parameter.add_(0.03 * torch.randn_like(parameter))
    adapted.save_pretrained(out)
    return adapted.eval()


def test_every_field_of_pefts_config_is_honoured_or_refused():
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    ours = peft_config.HONOURED | peft_config.RECORDS | set(peft_config.REFUSED)
    assert fields == ours
    groups = (peft_config.HONOURED, peft_config.RECORDS, set(peft_config.REFUSED))
    assert sum(map(len, groups)) == len(ours), "a field is in two groups"


def test_the_defaults_are_pefts():
    theirs = peft.LoraConfig()
    for field in dataclasses.fields(peft_config.PeftConfig):
        own = getattr(peft_config.PeftConfig(), field.name)
        # Nothing is None there and empty here.
        assert own == getattr(theirs, field.name) or not (own or getattr(theirs, field.name))


SELECTIONS = [
    {"target_modules": "all-linear"},
    {"target_modules": ["q_proj", "mlp.down_proj", "layers.2.self_attn.v_proj"]},
    {"target_modules": r".*layers\.[13]\..*(q|up)_proj"},
    {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["layers.1.mlp.up_proj"]},
    {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*\.[02]\.self_attn.*"},
    {"target_modules": ["q_proj", "k_proj"], "layers_to_transform": 2},
    {
        "target_modules": ["q_proj", "o_proj"],
        "layers_to_transform": [0, 3],
        "layers_pattern": "layers",
    },
    {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
    {"target_modules": ["model.layers.0.self_attn.q_proj", "v_proj"], "layers_to_transform": [1]},
    {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["v_proj"]},
    {"target_modules": ["embed_tokens", "q_proj"]},
    {"target_modules": ["lm_head", "q_proj"]},
    {
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 3, r"layers\.[12]\.mlp\..*": 5, "mlp.up_proj": 7},
        "alpha_pattern": {"model.layers.0.mlp.up_proj": 2, r".*v_proj": 9, "self_attn.*": 4},
    },
]


@pytest.mark.parametrize("fields", SELECTIONS, ids=range(len(SELECTIONS)))
@pytest.mark.parametrize("family", ["llama", "qwen2", "llava-1.5"])
def test_the_same_modules_get_the_same_ranks_and_scales(tmp_path, family, fields):
    config, _ = base(tmp_path / "base", family)
    given = {"r": 2, "lora_alpha": 6, "use_rslora": True, **fields}
    adapted = peft.get_peft_model(
        torch_model(tmp_path / "base"), peft.LoraConfig(task_type="CAUSAL_LM", **given)
    )
    expected = {
        name.removeprefix("base_model.model."): (m.r["default"], m.scaling["default"])
        for name, m in adapted.named_modules()
        if isinstance(m, peft.tuners.lora.LoraLayer)
    }
    read = peft_config.parse_config({"peft_type": "LORA", **given}, "here")
    if needs_own_head(read, config):
        config = dataclasses.replace(config, tie_word_embeddings=False)
    rules = rules_of(read, modules(config), "here")
    found = {}
    for module in modules(config):
        spec = rules.spec_for(module.path, module.weight)
        if spec.has_low_rank:
            scales = spec.layer_scales or (spec.scale,) * len(module.names)
            for name, rank in layers_of(module, spec):
                found[name] = (rank, scales[module.names.index(name)])
    assert found == expected
    assert len(expected) >= 2 or fields.get("layers_to_transform") == [1]


ROUND_TRIPS = [
    ("llama", {"target_modules": "all-linear", "use_dora": True}),
    ("llama-biases", {"target_modules": ["q_proj", "down_proj"], "bias": "all"}),
    ("mistral", {"target_modules": ["q_proj"], "layers_to_transform": [2], "use_dora": True}),
    ("qwen2", {"target_modules": ["q_proj", "o_proj"], "bias": "lora_only", "use_dora": True}),
    ("qwen2", {"target_modules": ["k_proj"], "modules_to_save": ["v_proj", "lm_head"]}),
    ("qwen3", {"target_modules": ["embed_tokens", "lm_head", "q_proj"], "use_dora": True}),
    ("qwen3", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "q_norm"]}),
    ("gemma", {"target_modules": "all-linear", "use_rslora": True}),
    ("gemma2", {"target_modules": ["lm_head", "v_proj"]}),
    ("gemma3", {"target_modules": "all-linear", "rank_pattern": {"layers.5.mlp.up_proj": 4}}),
    ("phi3", {"target_modules": "all-linear", "use_dora": True, "alpha_pattern": {"o_proj": 1}}),
    ("smollm3", {"target_modules": ["embed_tokens"], "use_dora": True}),
    ("llava-1.5", {"target_modules": ["q_proj", "down_proj"], "bias": "all", "use_dora": True}),
    ("llava-1.5", {"target_modules": ["q_proj"], "modules_to_save": ["multi_modal_projector"]}),
    (
        "llava-1.5",
        {
            "target_modules": ["k_proj", "lm_head", "linear_1"],
            "exclude_modules": r".*vision_tower.*",
            "task_type": "CAUSAL_LM",
            "use_dora": True,
        },
    ),
    ("two-layers", {"target_modules": "all-linear", "use_dora": True, "use_rslora": True}),
    ("siglip-qwen", {"target_modules": ["embed_tokens", "fc1"], "modules_to_save": ["norm"]}),
    ("siglip-qwen", {"target_modules": ["q_proj", "out_proj"], "bias": "lora_only"}),
]


@pytest.mark.parametrize(("family", "fields"), ROUND_TRIPS, ids=range(len(ROUND_TRIPS)))
def test_there_and_back_again(tmp_path, family, fields):
    config, plain = base(tmp_path / "base", family)
    model = torch_model(tmp_path / "base")
    # What float32 leaves of the plain model: more with images, and with scaled embeddings.
    rounding = np.abs(theirs(model) - logits(config, None, plain)).max()
    model = peft_folder(model, tmp_path / "theirs", r=3, lora_alpha=4, **fields)
    adapter = load_peft(tmp_path / "theirs", config, plain)
    params = adapter.params(plain)
    expected = theirs(model)
    np.testing.assert_allclose(
        logits(adapter.config, adapter.rules, params), expected, atol=max(1e-5, 3 * rounding)
    )
    # Ours is byte for byte theirs, and loads there as what it was.
    save_peft(tmp_path / "ours", adapter.config, adapter.rules, params, plain)
    assert stored(tmp_path / "ours") == stored(tmp_path / "theirs")
    again = peft.PeftModel.from_pretrained(torch_model(tmp_path / "base"), tmp_path / "ours")
    before, after = map(peft.get_peft_model_state_dict, (model, again))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # Torch's products round by where their operands lie in memory.
    np.testing.assert_allclose(theirs(again.eval()), expected, atol=1e-5)


def test_every_family_is_there(tmp_path):
    kinds = {family.split("-")[0] for family in FAMILIES} - {"llama3"}
    tried = {family for family, _ in ROUND_TRIPS}
    assert {family.split("-")[0] for family in tried - set(LLAVAS)} == kinds
    assert tried >= set(LLAVAS)


OURS = {
    "dora": [("(q|down)_proj", AdapterSpec("dora", rank=3, alpha=5))],
    "two ranks": [
        ("q_proj", AdapterSpec("dora", rank=3, alpha=5)),
        ("v_proj", AdapterSpec("dora", rank=2, alpha=7, scaling="rslora")),
        ("up_proj", AdapterSpec("dora", rank=2, alpha=0.7, scaling="alpha")),
    ],
    "per layer": [
        (
            "q_proj",
            AdapterSpec("lora", rank=3, alpha=5, per_layer=((1, 2.0), None, (3, 5), (2, 1))),
        ),
        ("norm", AdapterSpec("full")),
    ],
    "rslora": [("(q|k)_proj", AdapterSpec("lora", rank=3, alpha=5, scaling="rslora"))],
    "head": [("(lm_head|o_proj)", AdapterSpec("dora", rank=2, alpha=2))],
    "pissa": [
        ("q_proj", AdapterSpec("dora", rank=3, alpha=5, init="pissa")),
        (
            "up_proj",
            AdapterSpec(
                "dora", rank=3, alpha=6, init="pissa", per_layer=((1, 2), None, (3, 6), (3, 6))
            ),
        ),
    ],
    "olora": [("(q|o)_proj", AdapterSpec("lora", rank=4, alpha=6, scaling="rslora", init="olora"))],
    "pissa_niter_3": [("(q|o)_proj", AdapterSpec("lora", rank=4, alpha=6, init="pissa_niter_3"))],
    "orthogonal": [("v_proj", AdapterSpec("dora", rank=4, alpha=6, init="orthogonal"))],
}


def trained(config, rules, plain):
    """Return parameters of which everything that trains has moved."""
    shapes = param_shapes(build_model(config, rules))
    fresh = init_adapters(plain, shapes, rules, jax.random.key(0))
    mask = flatten(trainable_mask(fresh, rules))
    rng = np.random.default_rng(0)
    found = {}
    for name, leaf in flatten(fresh).items():
        found[name] = leaf = np.array(leaf)
        if not mask[name]:
            continue
        if name.endswith(("lora_a", "lora_b")):
            # A layer's own rank alone, as training has it.
            spec = rules.spec_for(name.rsplit("/", 1)[0])
            layers = spec.per_layer or ((spec.rank, spec.alpha),) * len(leaf)
            for n, layer in enumerate(layers if "layers/" in name else ()):
                factor = leaf[n].T if name.endswith("lora_a") else leaf[n]
                factor[: layer[0] if layer else 0] += 0.02
            leaf += 0 if "layers/" in name else 0.02
        found[name] = leaf * (1 + 0.1 * rng.standard_normal(leaf.shape)).astype("f4")
    return fresh, flax.traverse_util.unflatten_dict(found, sep="/")


# With the projector in full, as LLaVA trains it; with adapters in its tower.
OURS_OF_LLAVA = {
    "llava": [
        ("language_model/.*/(q|v|up)_proj", AdapterSpec("dora", rank=3, alpha=5)),
        (r"multi_modal_projector/linear_\d", AdapterSpec("full")),
    ],
    "llava, its tower": [
        ("vision_tower/.*/(q_proj|fc1)", AdapterSpec("dora", rank=2, alpha=5)),
        ("language_model/.*/q_proj", AdapterSpec("dora", rank=4, alpha=5)),
        ("multi_modal_projector/linear_1", AdapterSpec("dora", rank=2, alpha=3)),
        ("vision_tower/.*/layer_norm1", AdapterSpec("full")),
    ],
    "llava, per layer": [
        (
            "language_model/.*/q_proj",
            AdapterSpec("lora", rank=3, alpha=5, per_layer=((1, 2.0), None, (3, 5), (2, 1))),
        ),
        ("vision_tower/.*/q_proj", AdapterSpec("lora", rank=1, alpha=2, scaling="rslora")),
    ],
}


@pytest.mark.parametrize("name", [*OURS, *OURS_OF_LLAVA])
def test_peft_loads_and_merges_what_we_export(tmp_path, name):
    config, plain = base(tmp_path / "base", "llava-1.5" if name in OURS_OF_LLAVA else "llama")
    rules = AdapterRules((OURS | OURS_OF_LLAVA)[name])
    fresh, params = trained(config, rules, plain)
    # Whatever the start, it is the base model's.
    np.testing.assert_allclose(logits(config, rules, fresh), logits(config, None, plain), atol=2e-4)
    save_peft(tmp_path / "out", config, rules, params, plain)
    model = torch_model(tmp_path / "base")
    model = peft.PeftModel.from_pretrained(model, tmp_path / "out").eval()
    own = logits(config, rules, params)
    # A base kernel less its main directions is rounded once more; images pass more layers.
    rounded = dict.fromkeys(("pissa", "olora", "pissa_niter_3"), 1e-4)
    atol = (rounded | dict.fromkeys(OURS_OF_LLAVA, 5e-5)).get(name, 1e-5)
    np.testing.assert_allclose(theirs(model), own, atol=atol)
    merged = by_hf_name(config, merge_params(params, rules))
    for key, parameter in model.merge_and_unload().named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), merged[key], atol=2e-6, err_msg=key)
    assert np.abs(own - logits(config, None, plain)).max() > 1e-3


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_over_residual_weights_is_read(tmp_path, init):
    config, plain = base(tmp_path / "base", "llama")
    fields = {"r": 3, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj"]}
    model = torch_model(tmp_path / "base")
    model = peft_folder(model, tmp_path / "theirs", init_lora_weights=init, **fields)
    adapter = load_peft(tmp_path / "theirs", config, plain)
    params = adapter.params(plain)
    found = logits(adapter.config, adapter.rules, params)
    np.testing.assert_allclose(found, theirs(model), atol=1e-4)
    # As plain LoRA it needs no residual weights.
    save_peft(tmp_path / "ours", config, adapter.rules, params, plain)
    written = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["init_lora_weights"]) == (6, 8, True)
    again = peft.PeftModel.from_pretrained(torch_model(tmp_path / "base"), tmp_path / "ours")
    np.testing.assert_allclose(theirs(again.eval()), found, atol=1e-4)


def test_zero_columns_are_finite_there_too(tmp_path):
    config, plain = base(tmp_path / "base", "llama")
    plain = jax.tree.map(np.array, plain)
    plain["layers"]["self_attn"]["o_proj"]["kernel"][1, :, 4:9] = 0
    _, _, tokenizer = read_hf_folder(tmp_path / "base")
    write_hf_folder(tmp_path / "zeros", config, plain, tokenizer)
    rules = AdapterRules([("o_proj", AdapterSpec("dora", rank=2, alpha=4, init="normal"))])
    _, params = trained(config, rules, plain)
    o_proj = params["layers"]["self_attn"]["o_proj"]
    o_proj["lora_b"] = np.random.default_rng(1).normal(0, 0.1, o_proj["lora_b"].shape).astype("f4")
    save_peft(tmp_path / "out", config, rules, params, plain)
    model = peft.PeftModel.from_pretrained(torch_model(tmp_path / "zeros"), tmp_path / "out")
    np.testing.assert_allclose(theirs(model.eval()), logits(config, rules, params), atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_factors_keep_their_bits(tmp_path, dtype):
    config, plain = base(tmp_path / "base", "llama")
    model = torch_model(tmp_path / "base")
    model = peft_folder(model, tmp_path / "theirs", r=2, target_modules=["q_proj"], use_dora=True)
    narrow = {"bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    load_file, save_file = safetensors_torch.load_file, safetensors_torch.save_file
    path = tmp_path / "theirs" / "adapter_model.safetensors"
    tensors = {
        name: tensor if "magnitude" in name else tensor.to(narrow)
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, {"format": "pt"})
    adapter = load_peft(tmp_path / "theirs", config, plain)
    assert adapter.rules.rules[0][1].param_dtype == dtype
    save_peft(tmp_path / "ours", config, adapter.rules, adapter.trainable, plain)
    assert stored(tmp_path / "ours") == stored(tmp_path / "theirs")
