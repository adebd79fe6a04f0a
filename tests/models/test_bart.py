"""BART against what `transformers` made of the same weights."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.adapters import init_adapters, merge_params
from dora_jax.checkpoint.bart import read_bart_folder
from dora_jax.models.bart import SHARDING, Bart
from dora_jax.models.bart_config import BartConfig
from dora_jax.models.llama import param_shapes
from dora_jax.models.source import Source, Visual
from dora_jax.partition import partition, trainable_mask
from dora_jax.spec import AdapterRules, AdapterSpec
from dora_jax.training.step import Batch, labelled_loss
from tests.models.barts import BARTS, LENGTHS, SEEN, TOKENS, golden, source, write_folder

every_model = pytest.mark.parametrize("name", BARTS)


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Return a function of a model's name: what its folder holds."""

    @functools.cache
    def read(name):
        folder = tmp_path_factory.mktemp(name) / "folder"
        write_folder(folder, name)
        return read_bart_folder(folder)

    return read


@functools.lru_cache
def program(config, adapters=None):
    return jax.jit(Bart(config, adapters).apply)


def logits(folder, source, adapters=None, params=None):
    params = folder.params if params is None else params
    return program(folder.config, adapters)({"params": params}, TOKENS, source=source)


@every_model
def test_logits_are_those_of_transformers(read, name):
    found = logits(read(name), source())
    np.testing.assert_allclose(found[:, list(SEEN)], golden(name)["logits"], atol=1e-4)


@every_model
def test_a_model_has_the_parameters_that_its_files_hold(read, name):
    config, params, *_ = read(name)
    shapes = param_shapes(Bart(config))
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, params)


def test_padding_of_the_source_does_not_matter(read):
    given = source()
    changed = given._replace(tokens=np.where(given.is_real, given.tokens, 77))
    wider = Source(*(np.pad(x, [(0, 0), (0, 9)]) for x in given[:2]))
    expected = logits(read("bart"), given)
    np.testing.assert_array_equal(logits(read("bart"), changed), expected)
    np.testing.assert_allclose(logits(read("bart"), wider), expected, atol=1e-4)


def test_each_text_sees_its_own_source_and_no_later_token(read):
    folder, given = read("bart"), source()
    plain = logits(folder, given)
    other = given.tokens.copy()
    other[1, 3] += 1
    moved = np.abs(logits(folder, given._replace(tokens=other)) - plain).max(axis=(1, 2))
    assert moved[1] > 1e-2
    assert max(moved[0], moved[2]) == 0
    tokens = TOKENS.copy()
    tokens[:, 6] += 1
    later = program(folder.config)({"params": folder.params}, tokens, source=given)
    np.testing.assert_allclose(later[:, :6], plain[:, :6], atol=1e-4)
    assert np.abs(later[:, 6:] - plain[:, 6:]).max(axis=(1, 2)).min() > 1e-2


@every_model
def test_token_by_token_with_a_cache_is_all_at_once(read, name):
    config, params, *_ = read(name)
    model, variables = Bart(config), {"params": params}

    def run(tokens, cache, source=None):
        return model.apply(variables, tokens, cache=cache, source=source, method="hidden_states")

    hidden, cache = jax.jit(run, static_argnums=1)(TOKENS[:, :3], TOKENS.shape[1], source())
    assert cache.encoded.key.shape == (3, 3, 2, max(LENGTHS), 16)
    parts, step = [hidden], jax.jit(run)
    for at in range(3, TOKENS.shape[1]):
        hidden, cache = step(TOKENS[:, at : at + 1], cache)
        parts.append(hidden)
    expected, none = jax.jit(run)(TOKENS, None, source())
    assert none is None
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, atol=2e-5)


RULES = AdapterRules(
    [
        (r"encoder/layers/self_attn/(q|v)_proj", AdapterSpec("dora", rank=2, alpha=4)),
        (r"decoder/layers/encoder_attn/(q|v)_proj", AdapterSpec("lora", rank=2, alpha=4)),
        (r"decoder/layers/fc1", AdapterSpec("magnitude")),
        (r"decoder/layers/fc2", AdapterSpec("frozen", train_bias=True)),
        (r".*/layers/.*layer_norm", AdapterSpec("full")),
        ("shared", AdapterSpec("dora", rank=2)),
    ]
)


def tuned(folder):
    """Return fresh adapted parameters, and the same with all that is trained moved."""
    shapes = param_shapes(Bart(folder.config, RULES))
    adapted = init_adapters(folder.params, shapes, RULES, jax.random.key(1))
    mask = trainable_mask(adapted, RULES)
    changed = jax.tree.map(lambda x, trains: x * 1.1 + 0.02 if trains else x, adapted, mask)
    return adapted, changed, mask


def test_rules_choose_what_is_tuned(read):
    folder = read("bart")
    adapted, changed, mask = tuned(folder)
    plain = logits(folder, source())
    np.testing.assert_allclose(logits(folder, source(), RULES, adapted), plain, atol=5e-5)
    flat = flax.traverse_util.flatten_dict(mask, sep="/")
    trained = {path for path, trains in flat.items() if trains}
    attention = {
        f"{stack}_attn/{m}_proj/{leaf}"
        for stack, leaves in (
            ("encoder/layers/self", ("lora_a", "lora_b", "magnitude")),
            ("decoder/layers/encoder", ("lora_a", "lora_b")),
        )
        for m in "qv"
        for leaf in leaves
    }
    norms = {
        f"{part}/layers/{norm}layer_norm/{leaf}"
        for part, norm in (
            *(("encoder", n) for n in ("self_attn_", "final_")),
            *(("decoder", n) for n in ("self_attn_", "encoder_attn_", "final_")),
        )
        for leaf in ("scale", "bias")
    }
    embedding = {f"shared/{leaf}" for leaf in ("lora_a", "lora_b", "magnitude")}
    feed_forward = {"decoder/layers/fc1/magnitude", "decoder/layers/fc2/bias"}
    assert trained == attention | norms | embedding | feed_forward

    found = logits(folder, source(), RULES, changed)
    assert jnp.abs(found - plain).max() > 1e-2
    merged = logits(folder, source(), None, merge_params(changed, RULES))
    np.testing.assert_allclose(merged, found, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_the_training_loss_is_the_labels_log_likelihood(read, remat):
    folder = read("bart")
    _, params, mask = tuned(folder)
    model = Bart(folder.config, RULES, remat=remat)
    positions = np.array([[0, 4], [2, 10], [5, 0]])
    targets = np.array([[7, 3], [200, 9], [42, 0]])
    weights = np.array([[1, 1], [1, 1], [1, 0]], np.float32)
    batch = Batch(TOKENS, positions, targets, weights, source=source())
    trainable, frozen = partition(params, mask)
    loss_of = jax.jit(jax.value_and_grad(lambda t: labelled_loss(model, t, frozen, batch)))
    loss, grads = loss_of(trainable)
    all_logits = np.asarray(logits(folder, source(), RULES, params), np.float64)
    log_probs = all_logits - np.log(np.exp(all_logits).sum(-1, keepdims=True))
    expected = -sum(
        log_probs[row, positions[row, n], targets[row, n]] * weights[row, n]
        for row, n in np.ndindex(3, 2)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    # Not the gradients alone of what lies behind the encoder.
    for path, gradient in flax.traverse_util.flatten_dict(grads, sep="/").items():
        assert gradient is None or np.abs(gradient).max() > 1e-6, path


def test_every_sharding_rule_matches_weights(read):
    import re

    paths = flax.traverse_util.flatten_dict(read("bart").params, sep="/")
    for pattern, _ in SHARDING:
        assert any(re.fullmatch(pattern, path) for path in paths), pattern


def test_what_cannot_be_computed_is_refused(read):
    config, params, *_ = read("bart")
    model, given = Bart(config), source()

    def run(tokens=TOKENS, source=given, model=model, **more):
        return model.apply(
            {"params": params}, tokens, source=source, method="hidden_states", **more
        )

    def refuse(message, **arguments):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda: run(**arguments))

    refuse("the source is given with the first tokens", source=None)
    with pytest.raises(ValueError, match="the source is given with the first tokens"):
        jax.eval_shape(lambda: run(cache=run(cache=20)[1]))
    long = Source(np.ones((3, 60), int), np.ones((3, 60), bool))
    refuse(r"60 tokens, and the encoder has .* 48", source=long)
    refuse(r"49 tokens, and the decoder has .* 48", tokens=np.ones((3, 49), int))
    visual = Visual(np.zeros((3, 1, 2, 4)), np.zeros((3, 1, 2, 4)), np.ones((3, 1, 2), bool))
    refuse("reads text alone", source=given._replace(visual=visual))
    refuse(r"Bart\.remat must be .* 'dot' \(did you mean 'dots'", model=Bart(config, remat="dot"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_ffn_dim": 0}, "decoder_ffn_dim must be at least 1"),
        ({"encoder_attention_heads": 7}, r"must be a multiple of encoder_attention_heads \(7\)"),
        ({"decoder_attention_heads": 5}, r"must be a multiple of decoder_attention_heads \(5\)"),
        ({"decoder_start_token_id": 50265}, r"\(50265\) must be one of the 50265 tokens"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        BartConfig(**changes)


@pytest.mark.parametrize("path", ["encoder/layers/fc1", "decoder/layers/encoder_attn/v_proj"])
def test_adapters_drop_their_inputs_in_training(read, path):
    folder = read("bart")
    rules = AdapterRules([(path, AdapterSpec("lora", rank=2, dropout=0.5))])
    model = Bart(folder.config, rules)
    fresh = init_adapters(folder.params, param_shapes(model), rules, jax.random.key(1))
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 0.3 if path[-1].key == "lora_b" else x, fresh
    )
    run = jax.jit(lambda **rngs: model.apply({"params": params}, TOKENS, source=source(), **rngs))
    plain, again, first, second = (
        run(**({} if key is None else {"rngs": {"dropout": jax.random.key(key)}}))
        for key in (None, None, 0, 1)
    )
    np.testing.assert_array_equal(plain, again)
    assert jnp.abs(first - plain).max() > 1e-3
    assert jnp.abs(first - second).max() > 1e-3
