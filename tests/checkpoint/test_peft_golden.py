"""Adapters that PEFT trained and saved: the same logits, merged weights and training here."""

import functools
import json

import jax
import numpy as np
import optax
import pytest
import safetensors.numpy

from dora_jax.adapters import column_norms, layer_scale_leaves, merge_params
from dora_jax.checkpoint.llava_names import LIVE, llava_tensors
from dora_jax.checkpoint.names import names_in_file, tensors
from dora_jax.checkpoint.peft_load import load_peft
from dora_jax.checkpoint.peft_modules import modules
from dora_jax.checkpoint.peft_save import save_peft
from dora_jax.checkpoint.safetensors_file import SafetensorsFile
from dora_jax.checkpoint.state import flatten
from dora_jax.models.build import build_model
from dora_jax.models.llava import LlavaConfig
from dora_jax.partition import combine, partition, trainable_mask
from tests.checkpoint.peft_cases import (
    CASES,
    DECAY,
    GOLDEN,
    PROJECTOR_RATE,
    RATE,
    STEPS,
    base,
    batches,
    initial,
    inputs,
)
from tests.models import families, llavas
from tests.models.llavas import IMAGE

OUTPUTS = json.loads((GOLDEN / "outputs.json").read_text(encoding="utf-8"))
every_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Return a function of a case's name: (adapter, base parameters, adapted parameters)."""

    @functools.cache
    def load(case):
        folder = tmp_path_factory.mktemp(case) / "base"
        config, params = base(folder, CASES[case][0])
        adapter = load_peft(GOLDEN / case, config, params)
        return adapter, params, adapter.params(params)

    return load


ROUNDING = 1e-5  # of float32 logits of about 3


@functools.lru_cache
def program(config, rules):
    return jax.jit(build_model(config, rules).apply)


def logits(config, rules, params):
    """Of the golden files' tokens, with images where the model sees."""
    given = (families.TOKENS,)
    if isinstance(config, LlavaConfig):
        given = (llavas.TOKENS, None, None, llavas.IMAGES)
    with jax.default_matmul_precision("highest"):
        return np.asarray(program(config, rules)({"params": params}, *given))


def by_hf_name(config, params):
    """Return plain parameters in torch's layout, by Hugging Face's names."""
    flat, found = flatten(params), {}
    is_seeing = isinstance(config, LlavaConfig)
    for tensor in llava_tensors(config, LIVE) if is_seeing else tensors(config):
        names = names_in_file(tensor, tensor.hf)
        array = np.asarray(flat[tensor.path])
        layers = array if tensor.is_stacked else array[None]
        for name, layer in zip(names, layers, strict=True):
            found[name] = tensor.to_file(layer)
    return found


@every_case
def test_logits_are_pefts(loaded, case):
    adapter, plain, params = loaded(case)
    seen = inputs(CASES[case][0])[2]
    found = logits(adapter.config, adapter.rules, params)[:, seen]
    np.testing.assert_allclose(found, OUTPUTS[case]["logits"], atol=ROUNDING)
    untuned = logits(adapter.config, None, base_of(adapter, plain))
    assert np.abs(untuned[:, seen] - found).max() > 0.01


@every_case
def test_merged_weights_are_pefts(loaded, case):
    adapter, _, params = loaded(case)
    merged = by_hf_name(adapter.config, merge_params(params, adapter.rules))
    expected = OUTPUTS[case]["merged"]
    assert len(expected) >= 3
    for name, entries in expected.items():
        flat = merged[name].reshape(-1)
        found = flat[:: max(1, flat.size // 12)]
        np.testing.assert_allclose(found, entries, atol=1e-6, err_msg=name)


@every_case
def test_merged_and_unmerged_agree(loaded, case):
    adapter, _, params = loaded(case)
    merged = logits(adapter.config, None, merge_params(params, adapter.rules))
    unmerged = logits(adapter.config, adapter.rules, params)
    # The weight is rounded once more: to 1e-6, as the test above says.
    np.testing.assert_allclose(merged, unmerged, atol=4 * ROUNDING)


def stored(folder):
    file = SafetensorsFile(folder / "adapter_model.safetensors")
    return {
        name: (part.dtype, part.shape, file.rows(name, 0, part.shape[0]).tobytes())
        for name, part in file.tensors.items()
    }


@every_case
def test_what_was_read_is_written_byte_for_byte(loaded, case, tmp_path):
    adapter, plain, params = loaded(case)
    save_peft(tmp_path / "out", adapter.config, adapter.rules, params, plain)
    assert stored(tmp_path / "out") == stored(GOLDEN / case)
    again = load_peft(tmp_path / "out", adapter.config, plain)
    assert again.rules == adapter.rules
    jax.tree.map(np.testing.assert_array_equal, again.trainable, adapter.trainable)


def start(adapter, plain, case, tmp_path):
    """Return the parameters that PEFT's training started from."""
    file = SafetensorsFile(GOLDEN / case / "adapter_model.safetensors")
    weights = by_hf_name(adapter.config, base_of(adapter, plain))
    found = {}
    for name, part in file.tensors.items():
        found[name] = initial(name, part.shape)
        if found[name] is None and "magnitude" not in name:
            plain_name = name.removeprefix("base_model.model.").replace("base_layer.", "")
            found[name] = weights[plain_name]
    for module in modules(adapter.config):
        spec = adapter.rules.spec_for(module.path, module.weight)
        if not spec.has_magnitude:
            continue
        layers = spec.layer_scales or (spec.scale,) * len(module.names)
        for name, scale in zip(module.names, layers, strict=True):
            key = module.adapter_name(name, "magnitude")
            if key not in found:
                continue
            b = found[module.adapter_name(name, "lora_b")]
            a = found[module.adapter_name(name, "lora_a")]
            w = weights[f"{name}.weight"]
            v = w + scale * (b @ a if module.weight == "kernel" else (b @ a).T)
            axis = 1 if module.weight == "kernel" else 0
            found[key] = (np.linalg.norm(v, axis=axis) * 1.05).astype(np.float32)
    folder = tmp_path / "start"
    folder.mkdir()
    config = (GOLDEN / case / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(config)
    contiguous = {name: np.ascontiguousarray(array) for name, array in found.items()}
    safetensors.numpy.save_file(contiguous, folder / "adapter_model.safetensors")
    return load_peft(folder, adapter.config).params(plain)


def base_of(adapter, plain):
    is_as_read = adapter.config.text.tie_word_embeddings or "lm_head" in plain
    if is_as_read or isinstance(adapter.config, LlavaConfig):
        return plain
    return {**plain, "lm_head": {"kernel": plain["embed_tokens"]["embedding"].T}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "norms_once"),
    # Each module's own norm where layers differ, which is where it is another code.
    [(case, True) for case in CASES] + [("patterns", False), ("some-layers", False)],
)
def test_training_follows_pefts_loss_by_loss(loaded, case, norms_once, tmp_path):
    adapter, plain, _ = loaded(case)
    params = start(adapter, plain, case, tmp_path)
    model = build_model(adapter.config, adapter.rules)
    trainable, frozen = partition(params, trainable_mask(params, adapter.rules))
    rates = {True: PROJECTOR_RATE, False: RATE}
    tx = optax.multi_transform(
        {part: optax.adamw(rate, weight_decay=DECAY) for part, rate in rates.items()},
        lambda tree: jax.tree_util.tree_map_with_path(
            lambda path, _: path[0].key == "multi_modal_projector", tree
        ),
    )
    state = tx.init(trainable)

    @jax.jit
    def step(trainable, state, batch, images):
        variables = {}
        if norms_once:
            variables["norms"] = column_norms(combine(trainable, frozen), adapter.rules)

        def loss(trainable):
            whole = {"params": combine(trainable, frozen), **variables}
            given = () if images is None else (None, None, images)
            found = model.apply(whole, batch, *given)[:, :-1]
            each = optax.softmax_cross_entropy_with_integer_labels(found, batch[:, 1:])
            return each.mean(where=None if images is None else batch[:, 1:] != IMAGE)

        value, grads = jax.value_and_grad(loss)(trainable)
        updates, state = tx.update(grads, state, trainable)
        return optax.apply_updates(trainable, updates), state, value

    losses = []
    tokens, images = batches(CASES[case][0])
    with jax.default_matmul_precision("highest"):
        for n, batch in enumerate(tokens):
            seen = None if images is None else images[n]
            trainable, state, value = step(trainable, state, batch, seen)
            losses.append(float(value))
    np.testing.assert_allclose(losses, OUTPUTS[case]["losses"], atol=1e-4)
    # And the adapter that PEFT saved at the end. (Adam turns a gradient of nearly 0 into a step.)
    for name, leaf in flatten(adapter.trainable).items():
        own, expected = np.asarray(flatten(trainable)[name]), leaf.copy()
        if name.startswith("vision_tower/layers") and -1 not in adapter.config.feature_layers:
            # Torch leaves the last layer alone, which no gradient reaches; here it decays.
            expected[-1] *= (1 - RATE * DECAY) ** STEPS
        assert np.mean(np.abs(own - expected)) < 1e-4, name


@pytest.mark.parametrize("case", ["patterns", "some-layers"])
def test_layers_without_their_share_of_the_rank_stay_zero(loaded, case):
    adapter, _, params = loaded(case)
    scales = layer_scale_leaves(params, adapter.rules)
    assert len(scales) >= 2
    for path in scales:
        module = path.rsplit("/", 1)[0]
        spec = adapter.rules.spec_for(module)
        leaves = {n.rsplit("/", 1)[1]: x for n, x in flatten(params).items() if module in n}
        for n, layer in enumerate(spec.per_layer):
            rank = layer[0] if layer else 0
            assert not leaves["lora_a"][n][:, rank:].any()
            assert leaves["lora_a"][n][:, :rank].all()
            assert not leaves["lora_b"][n][rank:].any()
