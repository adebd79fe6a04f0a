"""Images as towers take them, against the reference processors and rules worked by hand."""

import json

import numpy as np
import pytest

pytest.importorskip("PIL", reason="the vision extra is not installed")

from PIL import Image

from dora_jax.data.images import BrokenImageError, ImageProcessor, open_image
from dora_jax.errors import DoraError

CLIP = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
_NUMBERS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
}
_DOES = {f"do_{name}": True for name in ("center_crop", "convert_rgb", "normalize", "rescale")}
_EDGES = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
_KEYS = ["images", "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale"]
# What transformers of each age writes for CLIP ViT-L/14 at 336 pixels.
OF_AGES = {
    "4.1": {
        "crop_size": 336,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        **_NUMBERS,
        "size": 336,
    },
    "4.26": {
        **_DOES,
        **_EDGES,
        **_NUMBERS,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_processor_type": "CLIPImageProcessor",
        "rescale_factor": 0.00392156862745098,
    },
    "4.41": {
        "_valid_processor_keys": _KEYS,
        **_DOES,
        **_EDGES,
        **_NUMBERS,
        "do_resize": True,
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "rescale_factor": 0.00392156862745098,
    },
    "4.57": {
        "data_format": "channels_first",
        "default_to_square": False,
        "device": None,
        "disable_grouping": None,
        **_DOES,
        "do_pad": None,
        "do_resize": True,
        **_EDGES,
        **_NUMBERS,
        "image_processor_type": "CLIPImageProcessorFast",
        "input_data_format": None,
        "pad_size": None,
        "rescale_factor": 0.00392156862745098,
        "return_tensors": None,
    },
    "5": {
        **_DOES,
        "do_resize": True,
        **_EDGES,
        **_NUMBERS,
        "image_processor_type": "CLIPImageProcessor",
        "rescale_factor": 0.00392156862745098,
    },
}
PLAIN = ImageProcessor(size=None, crop=None, mean=None, rescale=None)


def image(height, width, seed=0, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_a_file_that_is_cut_short_shows_at_its_end(tmp_path, kind):
    path = tmp_path / f"a.{kind.lower()}"
    image(200, 150).save(path, kind)
    assert open_image(path, whole=False).size == (150, 200)
    content = path.read_bytes()
    path.write_bytes(content + b"\0" * 100)
    assert open_image(path, whole=False).size == (150, 200)
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(BrokenImageError, match="is no image that can be read"):
        open_image(path)
    if kind != "BMP":  # whose end says nothing
        with pytest.raises(BrokenImageError, match="it is cut short"):
            open_image(path, whole=False)


def test_without_anything_done_pixels_are_pixels():
    given = image(3, 5)
    np.testing.assert_array_equal(PLAIN([given])[0], np.asarray(given))
    grey = PLAIN([image(3, 5, channels=1)])[0]
    assert grey.shape == (3, 5, 3)
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])


def test_values_are_scaled_and_normalised_by_channel():
    white = Image.new("RGB", (2, 2), (255, 0, 51))
    found = ImageProcessor(None, None, mean=(0.5, 0.25, 0.1), std=(0.5, 0.25, 0.2))([white])
    np.testing.assert_allclose(found[0, 0, 0], [1.0, -1.0, 0.5], atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(2, 6), (7, 4), (5, 5)])
def test_a_padded_image_stands_in_the_middle_of_the_mean_colour(height, width):
    mean = (0.5, 0.25, 1.0)
    padded = ImageProcessor(None, None, pad=True, mean=mean, std=(1.0, 1.0, 1.0))
    (found,) = padded([image(height, width)]) * 255
    side = max(height, width)
    assert found.shape == (side, side, 3)
    top, left = (side - height) // 2, (side - width) // 2
    own = np.asarray(image(height, width)) - 255 * np.array(mean)
    np.testing.assert_allclose(found[top : top + height, left : left + width], own, atol=1e-3)
    if height < width:  # the ground: the mean colour, less what whole numbers lose
        assert np.abs(found[0, 0]).max() < 1


def test_what_is_not_normalised_is_padded_with_black():
    (found,) = ImageProcessor(None, None, pad=True, mean=None)([Image.new("RGB", (2, 6), "white")])
    np.testing.assert_array_equal(found[0, :, 0], [0, 0, 1, 1, 0, 0])


def test_the_middle_is_cut_out_or_filled_up():
    given = image(6, 9)
    cut = ImageProcessor(None, (4, 5), mean=None, rescale=None)([given])[0]
    np.testing.assert_array_equal(cut, np.asarray(given)[1:5, 2:7])
    filled = ImageProcessor(None, (8, 9), mean=None, rescale=None)([given])[0]
    np.testing.assert_array_equal(filled[1:7], np.asarray(given))
    assert filled[0].max() == filled[7].max() == 0


def test_the_shorter_edge_decides_the_size():
    resized = ImageProcessor(4, None, mean=None, rescale=None)
    assert resized([image(8, 20)]).shape == (1, 4, 10, 3)
    assert resized([image(20, 8)]).shape == (1, 10, 4, 3)
    assert ImageProcessor((3, 5), None, mean=None)([image(8, 20)]).shape == (1, 3, 5, 3)
    with pytest.raises(ValueError, match="of different sizes: resize to height and width, or crop"):
        resized([image(8, 20), image(20, 8)])


@pytest.mark.parity
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("CLIP", CLIP),
        ("CLIP", {"size": {"shortest_edge": 16}, "crop_size": {"height": 24, "width": 28}}),
        ("CLIP", {"do_resize": False, "crop_size": {"height": 31, "width": 44}}),
        ("CLIP", {**CLIP, "do_normalize": False, "resample": 2}),
        ("CLIP", {**CLIP, "do_rescale": False}),
        ("Siglip", {"size": {"height": 24, "width": 20}}),
        ("Llava", {**CLIP, "do_pad": True}),
        ("Llava", CLIP),
    ],
)
def test_pixels_are_those_of_the_reference_processors(kind, settings):
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    theirs = getattr(transformers, f"{kind}ImageProcessorPil")(**settings)
    ours = ImageProcessor.from_dict(theirs.to_dict())
    assert ImageProcessor.from_dict(ours.to_dict()) == ours
    shapes = [(37, 53), (53, 37), (40, 40), (200, 11), (20, 30), (9, 120)]
    for seed, (height, width) in enumerate(shapes):
        given = image(height, width, seed)
        expected = theirs(given, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        (found,) = ours([given])
        # Far within the 1/255 of a pixel that is asked for, in the units of either.
        scale = 1 if ours.rescale else 255
        np.testing.assert_allclose(found, expected, atol=1e-5 * scale)


def test_a_folder_s_processor_is_read(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"do_center_crop": True, "image_processor_type": "CLIPImageProcessor", **CLIP})
    )
    found = ImageProcessor.load(tmp_path)
    assert found == ImageProcessor(size=24, crop=(24, 24))


@pytest.mark.parametrize("age", OF_AGES)
def test_the_files_of_every_age_of_transformers_are_read(tmp_path, age):
    text = json.dumps(OF_AGES[age])
    if age == "5":
        (tmp_path / "processor_config.json").write_text(f'{{"image_processor": {text}}}')
    else:
        (tmp_path / "preprocessor_config.json").write_text(text)
    assert ImageProcessor.load(tmp_path) == ImageProcessor(size=336, crop=(336, 336))


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"size": 24}, 24),
        ({"size": 24, "default_to_square": False}, 24),
        ({"size": 24, "default_to_square": True}, (24, 24)),
        ({"size": {"shortest_edge": 24}, "default_to_square": True}, 24),
        ({"size": [24, 20]}, (24, 20)),
        ({"do_resize": None, "size": {"height": 24, "width": 20}}, (24, 20)),
        ({"do_resize": False, "size": 24}, None),
    ],
)
def test_the_size_has_the_meaning_that_it_has_in_transformers(settings, size):
    assert ImageProcessor.from_dict(settings) == ImageProcessor(size=size, crop=None)


@pytest.mark.parity
@pytest.mark.parametrize("is_square", [False, True])
def test_one_number_is_an_edge_or_a_square_as_in_the_reference(is_square):
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    settings = {"size": 24, "crop_size": 24, "default_to_square": is_square}
    theirs = transformers.CLIPImageProcessorPil(**settings)
    given = image(30, 70)
    expected = theirs(given, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    (found,) = ImageProcessor.from_dict({"do_center_crop": True, **settings})([given])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_number_for_all_channels_is_one_for_each():
    found = ImageProcessor.from_dict({"image_mean": 0.5, "image_std": 0.25})
    assert (found.mean, found.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"resample": 99},
            "resample must be the number of .*Pillow's filters, 0 to 5; got 99",
        ),
        ({"resample": True}, "resample must be .*; got True"),
        ({"resample": "cubic"}, "resample must be .*; got 'cubic'"),
        ({"size": 0}, "size must be a whole number of at least 1; got 0"),
        ({"size": "big"}, "size must be a whole number of at least 1; got 'big'"),
        ({"size": [24, 0]}, r"size must be a height and a width, .* at least 1; got \(24, 0\)"),
        ({"size": [24]}, r"size must be a height and a width, .*; got \(24,\)"),
        ({"size": {"longest_edge": 3}}, r'size must be .* or {"shortest_edge"}; got .*longest'),
        ({"size": {"shortest_edge": 3, "longest_edge": 9}}, "size must be a number, .*; got"),
        ({"do_center_crop": True, "crop_size": -4}, r"crop_size must be a height .*\(-4, -4\)"),
        ({"do_center_crop": True, "crop_size": {"side": 3}}, "crop_size must be a number"),
        ({"do_center_crop": "yes"}, "do_center_crop must be true or false; got 'yes'"),
        ({"default_to_square": 1}, "default_to_square must be true or false; got 1"),
        ({"image_std": [0.2, 0, 0.2]}, "image_std must be 3 numbers more than 0, one of each"),
        ({"image_std": 0}, "image_std must be 3 numbers more than 0, one of each channel"),
        ({"image_mean": [0.5]}, r"image_mean must be 3 numbers, one of each channel; got \(0.5,\)"),
        ({"image_mean": [0.5, "x", 0.5]}, "image_mean must be 3 numbers"),
        ({"rescale_factor": 0}, "rescale_factor must be a number more than 0; got 0"),
        ({"rescale_factor": "1/255"}, "rescale_factor must be a number more than 0; got '1/255'"),
    ],
)
def test_settings_that_no_image_can_be_made_by_are_named(tmp_path, settings, message):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(DoraError, match=rf"preprocessor_config\.json: {message}.*Mend it, or down"):
        ImageProcessor.load(tmp_path)


def test_a_processor_is_checked_when_it_is_built():
    with pytest.raises(ValueError, match="resample must be"):
        ImageProcessor(resample=6)
    with pytest.raises(ValueError, match="crop_size must be"):
        ImageProcessor(crop=(4, 0))


def test_what_is_not_supported_is_told_with_its_way_out(tmp_path):
    given = {"do_tile": True, "tile": None, "crop_pct": 0.9}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given))
    with pytest.raises(DoraError) as error:
        ImageProcessor.load(tmp_path)
    assert "not supported: do_tile (true), crop_pct (0.9); remove them if they change no pixel" in (
        str(error.value)
    )
    assert "ownload" not in str(error.value)


def test_a_whole_processor_without_a_part_for_images_says_nothing_of_them(tmp_path):
    for part, is_told in ((CLIP, True), (None, False)):
        written = json.dumps({"processor_class": "LlavaProcessor", "image_processor": part})
        (tmp_path / "processor_config.json").write_text(written)
        assert ImageProcessor.is_told(tmp_path) == is_told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"preprocessor_config\.json: cannot be read"),
        ("[", r"preprocessor_config\.json: cannot be read"),
        ("[]", "must hold a JSON object"),
    ],
)
def test_a_processor_that_cannot_be_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(DoraError, match=message):
        ImageProcessor.load(tmp_path)


def test_files_that_are_no_images_are_named(tmp_path):
    image(6, 7).save(tmp_path / "good.png")
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "good.png")), image(6, 7))
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("cut.png", "text.jpg", "none.png"):
        with pytest.raises(DoraError, match=rf"{name}: is no image that can be read"):
            open_image(tmp_path / name)


def test_an_image_that_would_fill_the_memory_is_named(tmp_path, monkeypatch):
    image(6, 7).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # Pillow refuses twice as many
    with pytest.raises(BrokenImageError, match=r"large\.png: is no image that can be read"):
        open_image(tmp_path / "large.png")
