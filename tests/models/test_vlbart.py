"""VL-BART: what its encoder reads, against a plain reference; what the paper tunes of it."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.adapters import init_adapters
from dora_jax.checkpoint.bart import read_bart_folder
from dora_jax.data.features import stack_features
from dora_jax.errors import DoraError
from dora_jax.generation import Sampling, generate
from dora_jax.models.bart import Bart
from dora_jax.models.llama import param_shapes
from dora_jax.models.source import Source
from dora_jax.models.vlbart import VLBart, VLBartConfig, pooled, start_from_bart
from dora_jax.partition import count_parameters, partition, trainable_mask
from dora_jax.training.step import Batch, labelled_loss
from experiments.vlbart.tuned import CONFIGS, PUBLISHED, tuned
from tests.models.barts import PROMPTS, TOKENS, source, write_folder

MORE_TOKENS, FEATURES, CELLS = 8, 6, 9
RNG = np.random.default_rng(31)


def image(count=CELLS):
    """Return features with boxes: (left, right, top, bottom)."""
    low, high = np.sort(RNG.random((2, count, 2)), axis=0)
    boxes = np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=-1)
    return RNG.standard_normal((count, FEATURES)).astype(np.float32), boxes.astype(np.float32)


IMAGES = [[image(), image()], [image()], []]  # of each row


@functools.lru_cache
def loaded(**changes):
    """Return a tiny model that started from the tiny BART, its parameters, and the BART's own."""
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder) / "it", "bart")
        found = read_bart_folder(Path(folder) / "it")
    sizes = dataclasses.asdict(found.config)
    sizes["vocab_size"] += MORE_TOKENS
    config = VLBartConfig(**sizes, **{"feature_size": FEATURES, "image_tokens": 4, **changes})
    model = VLBart(config)
    params = start_from_bart(model, found.params, jax.random.key(0))

    def wide(path, leaf):  # norms and embeddings that differ from their start
        is_visual = path[0].key == "visual_embedding"
        noise = np.random.default_rng(leaf.size).standard_normal(leaf.shape)
        return leaf + 0.3 * noise.astype(np.float32) if is_visual else leaf

    return model, jax.tree_util.tree_map_with_path(wide, params), found


def with_images(images=IMAGES, model=None):
    config = (model or loaded()[0]).config
    return source()._replace(visual=stack_features(images, config))


@functools.lru_cache
def program(model, **options):
    return jax.jit(functools.partial(model.apply, **options))


def encoder_input(model, params, given):
    return program(model, method="source_inputs")({"params": params}, given)


def logits(given):
    model, params, _ = loaded()
    return np.asarray(program(model)({"params": params}, TOKENS, source=given))


def reference_norm(x, module):
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return scaled * module["scale"] + module["bias"]


def reference_image(features, boxes, number, params):
    """Return an image's tokens, in float64, from the formula."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    visual = p["visual_embedding"]
    area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
    where = np.concatenate([boxes, area[:, None]], axis=1).astype(np.float64)

    def linear(x, name):
        return x @ visual[name]["kernel"] + visual[name]["bias"]

    seen = linear(features.astype(np.float64), "feat_embedding")
    lies = linear(where, "absolute_vis_pos_embedding")
    vocabulary = p["shared"]["embedding"]
    places = vocabulary[[len(vocabulary) - 1 - n for n in range(len(features))]]
    return (
        reference_norm(seen, visual["feat_layer_norm"])
        + reference_norm(lies, visual["absolute_vis_pos_layer_norm"])
        + visual["img_order_embedding"]["embedding"][number]
        + places
    )


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_the_encoder_reads_text_and_then_each_image(pooling):
    model, params, bart = loaded(pooling=pooling)
    given = with_images()
    x, is_real = encoder_input(model, params, given)
    text, text_is_real = encoder_input(Bart(bart.config), bart.params, source())
    length = text.shape[1]
    np.testing.assert_allclose(x[:, :length], text, atol=1e-5)
    np.testing.assert_array_equal(is_real[:, :length], text_is_real)
    np.testing.assert_array_equal(
        is_real[:, length:], [[True] * 8, [True] * 4 + [False] * 4, [False] * 8]
    )
    reduce = {"mean": np.mean, "max": np.max}[pooling]
    quarters = [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]  # of 3 x 3
    for row, images in enumerate(IMAGES):
        for number, (features, boxes) in enumerate(images):
            four = np.stack([reduce(features[q], axis=0) for q in quarters])
            around = np.stack(
                [
                    [
                        boxes[q, 0].min(),
                        boxes[q, 1].max(),
                        boxes[q, 2].min(),
                        boxes[q, 3].max(),
                    ]
                    for q in quarters
                ]
            )
            start = length + 4 * number
            expected = reference_image(four, around, number, params)
            np.testing.assert_allclose(x[row, start : start + 4], expected, rtol=1e-4, atol=1e-4)


def test_regions_are_read_as_they_are():
    model, params, _ = loaded(layout="regions")
    images = [[image(3), image(2)], [image(1)], []]
    given = with_images(images, model)
    x, is_real = encoder_input(model, params, given)
    # Each image has as many places as the model reads at most.
    assert is_real[:, -8:].tolist() == [
        [True, True, True, False, True, True, False, False],
        [True] + [False] * 7,
        [False] * 8,
    ]
    for number, (features, boxes) in enumerate(images[0]):
        expected = reference_image(features, boxes, number, params)
        own = x[0, -8 + 4 * number :][: len(features)]
        np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-4)


def test_frames_have_their_time_and_are_pooled_in_a_row():
    model, params, _ = loaded(layout="frames", max_images=1)
    clip = RNG.standard_normal((10, FEATURES)).astype(np.float32)  # without boxes
    given = with_images([[clip], [clip[:7]], []], model)
    x, is_real = encoder_input(model, params, given)
    four = np.stack([clip[a:b].mean(axis=0) for a, b in ((0, 3), (2, 5), (5, 8), (7, 10))])
    expected = reference_image(four, np.zeros((4, 4)), 0, params)
    np.testing.assert_allclose(x[0, -4:], expected, rtol=1e-4, atol=1e-4)
    # Of the shorter clip the third window has two frames, the last none.
    assert is_real[1, -4:].tolist() == [True, True, True, False]
    four[2] = clip[5:7].mean(axis=0)
    expected = reference_image(four, np.zeros((4, 4)), 0, params)
    np.testing.assert_allclose(x[1, -4:-1], expected[:3], rtol=1e-4, atol=1e-4)


@pytest.mark.parity
def test_logits_are_those_of_transformers_for_the_same_encoder_input():
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    pytest.importorskip("transformers", reason="the parity extra is not installed")
    from tests.golden.make_barts_golden import peer

    model, params, bart = loaded()
    given = with_images()
    x, is_real = encoder_input(model, params, given)
    theirs = peer("bart")[0]
    mask = torch.from_numpy(np.array(is_real))
    hidden = torch.from_numpy(np.array(x))
    with torch.no_grad():
        for layer in theirs.model.encoder.layers:
            barred = torch.where(mask, 0.0, torch.finfo(torch.float32).min)[:, None, None]
            hidden = layer(hidden, barred)
        expected = theirs(
            encoder_outputs=(hidden,),
            attention_mask=mask.int(),
            decoder_input_ids=torch.from_numpy(TOKENS),
        ).logits
    found = logits(given)[..., : bart.config.vocab_size]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_rows_without_images_are_bart_s():
    _, _, bart = loaded()
    plain = program(Bart(bart.config))({"params": bart.params}, TOKENS, source=source())
    alone, beside = logits(source()), logits(with_images())
    size = bart.config.vocab_size
    np.testing.assert_allclose(alone[..., :size], plain, atol=1e-4)
    np.testing.assert_allclose(beside[2], alone[2], atol=1e-4)
    assert np.abs(beside[:2] - alone[:2]).max(axis=(1, 2)).min() > 1e-2


def test_absent_images_do_not_matter_and_the_order_of_others_does():
    given = with_images()
    expected = logits(given)
    visual = given.visual
    features = np.where(visual.is_real[..., None], visual.features, 9.0)
    filled = given._replace(visual=visual._replace(features=features))
    np.testing.assert_allclose(logits(filled), expected, atol=1e-5)
    exchanged = with_images([IMAGES[0][::-1], *IMAGES[1:]])
    moved = np.abs(logits(exchanged) - expected).max(axis=(1, 2))
    assert moved[0] > 1e-2
    assert moved[1:].max() < 1e-5


def test_texts_about_images_are_the_likeliest_tokens():
    model, params, _ = loaded()
    sampling = Sampling(6, no_repeat_ngram_size=1)
    found = generate(model, params, PROMPTS, sampling, images=IMAGES, stop_ids=())
    blind = generate(model, params, PROMPTS, sampling, stop_ids=())
    given = with_images()
    rows = [[model.config.decoder_start_token_id] for _ in PROMPTS]
    width = TOKENS.shape[1]  # that of the program's other texts
    for length in range(1, 7):
        tokens = np.array([row + [0] * (width - length) for row in rows])
        last = np.array(program(model)({"params": params}, tokens, source=given))[:, length - 1]
        for row, own in zip(rows, last, strict=True):
            own[row] = -np.inf
            row.append(int(own.argmax()))
    assert [list(c.token_ids) for c in found] == [row[1:] for row in rows]
    assert [c.token_ids for c in found][:2] != [c.token_ids for c in blind][:2]
    assert found[2].token_ids == blind[2].token_ids


def test_beams_about_images_do_not_depend_on_the_batch():
    model, params, _ = loaded()
    sampling = Sampling(10, num_beams=5, num_samples=2, no_repeat_ngram_size=2)
    together = generate(model, params, PROMPTS, sampling, images=IMAGES)
    alone = generate(model, params, PROMPTS, sampling, images=IMAGES, batch_size=1)
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]


@pytest.mark.parametrize(("family", "method"), PUBLISHED)
def test_the_share_that_is_trained_is_the_published_one(family, method):
    """Of BART-base's real shape: no weights are made."""
    rules = tuned(method, family)
    shapes = param_shapes(VLBart(CONFIGS[family], rules))
    # What both add to BART-base's 139.42 million parameters, and DoRA beside.
    assert 139_420_416 + 7_000_000 < count_parameters(shapes) < 139_420_416 + 9_000_000
    share = count_parameters(shapes, trainable_mask(shapes, rules)) / count_parameters(shapes)
    assert abs(100 * share - PUBLISHED[family, method]) < 0.1


@pytest.mark.parametrize("family", ["image", "video"])
def test_the_paper_tunes_queries_values_biases_and_what_is_new(family):
    model, _, _ = loaded()
    rules = tuned("dora", family)
    shapes = param_shapes(VLBart(model.config, rules))
    flat = flax.traverse_util.flatten_dict(trainable_mask(shapes, rules), sep="/")
    for path, trains in flat.items():
        module, leaf = path.rsplit("/", 1)
        is_adapter = leaf in ("lora_a", "lora_b", "magnitude")
        is_bias = leaf == "bias"
        is_norm = family == "image" and "norm" in module
        assert trains == (is_adapter or is_bias or is_norm or "visual" in module), path
    adapted = {path.rsplit("/", 1)[0] for path in flat if path.endswith("magnitude")}
    attentions = ("encoder/layers/self", "decoder/layers/self", "decoder/layers/encoder")
    assert adapted == {f"{a}_attn/{m}_proj" for a in attentions for m in "qv"}


def test_training_reaches_the_visual_embedding():
    model, params, _ = loaded()
    rules = tuned("dora", "image")
    adapted_model = VLBart(model.config, rules)
    adapted = init_adapters(params, param_shapes(adapted_model), rules, jax.random.key(1))
    positions = np.array([[0, 4], [2, 10], [5, 6]])
    targets = np.array([[7, 3], [200, 9], [42, 8]])
    batch = Batch(TOKENS, positions, targets, np.ones((3, 2), np.float32), source=with_images())
    trainable, frozen = partition(adapted, trainable_mask(adapted, rules))
    loss_of = jax.jit(jax.value_and_grad(lambda t: labelled_loss(adapted_model, t, frozen, batch)))
    loss, grads = loss_of(trainable)
    plain = np.asarray(logits(with_images()), np.float64)
    log_probs = plain - np.log(np.exp(plain).sum(-1, keepdims=True))
    expected = -sum(log_probs[r, positions[r, n], targets[r, n]] for r, n in np.ndindex(3, 2))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for path, gradient in flax.traverse_util.flatten_dict(grads["visual_embedding"]).items():
        assert jnp.abs(gradient).max() > 1e-6, path


def test_a_start_from_bart_keeps_it_and_draws_the_rest():
    model, _, bart = loaded()
    params = start_from_bart(model, bart.params, jax.random.key(3))
    size = bart.config.vocab_size
    shared = params["shared"]["embedding"]
    np.testing.assert_array_equal(shared[:size], bart.params["shared"]["embedding"])
    assert shared.shape[0] == size + MORE_TOKENS
    assert 0.01 < np.std(shared[size:]) < 0.03
    assert not params["final_logits_bias"]["buffer"][:, size:].any()
    jax.tree.map(np.testing.assert_array_equal, params["decoder"], bart.params["decoder"])
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, param_shapes(model))
    narrow = VLBart(dataclasses.replace(model.config, encoder_ffn_dim=8))
    with pytest.raises(ValueError, match=r"encoder/layers/fc1/.* of the BART has shape"):
        start_from_bart(narrow, bart.params, jax.random.key(3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_size": 0}, "feature_size must be at least 1"),
        ({"layout": "grids"}, r"layout must be one of .* \(did you mean 'grid'\?\)"),
        ({"pooling": "sum"}, "pooling must be one of 'mean', 'max'; got 'sum'"),
        ({"image_tokens": 35}, "image_tokens of a grid must be a square, got 35"),
        ({"image_tokens": 36, "vocab_size": 30}, r"must not be more than vocab_size \(30\)"),
        ({"d_model": 7}, "must be a multiple of encoder_attention_heads"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        VLBartConfig(**changes)


def test_features_that_do_not_fit_are_refused():
    model, params, _ = loaded()
    features, boxes = image()

    def ask(images):
        generate(model, params, PROMPTS[:2], Sampling(1), images=[[], images])

    with pytest.raises(DoraError, match="prompt 2 has 3 images; the model takes 2"):
        ask([features] * 3)
    with pytest.raises(DoraError, match=r"prompt 2, image 2: its features have shape \(9, 5\)"):
        ask([features, features[:, :5]])
    with pytest.raises(DoraError, match=r"image 1: its boxes have shape \(8, 4\)"):
        ask([(features, boxes[:8])])
    with pytest.raises(
        DoraError, match="prompt 2, image 2: its 8 features are no square; the model"
    ):
        ask([features, features[:8]])
    with pytest.raises(DoraError, match="grids of 4, 9 features are in one batch"):
        ask([features, features[:4]])
    with pytest.raises(ValueError, match="must be a square grid, got 8"):
        pooled(model.config, stack_features([[features[:8]]], model.config))
    regions = loaded(layout="regions")[0]
    with pytest.raises(ValueError, match=r"9 regions of an image, and the model takes 4"):
        pooled(regions.config, stack_features([[features]], regions.config))
    many = stack_features([[features] * 3] * 3, model.config)
    with pytest.raises(ValueError, match=r"3 images .* and the model takes 2 \(max_images\) of 6"):
        logits(Source(*source()[:2], many))
    narrow = stack_features([[features]] * 3, model.config)
    narrow = narrow._replace(features=narrow.features[..., :5])
    with pytest.raises(ValueError, match=r"1 images of features of size 5, .* of 6 \(feature_size"):
        logits(Source(*source()[:2], narrow))
