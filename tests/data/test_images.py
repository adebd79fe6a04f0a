"""Images as towers take them, against the reference processors and rules worked by hand."""

import json

import numpy as np
import pytest

pytest.importorskip("PIL", reason="the vision extra is not installed")

from PIL import Image

from dora_jax.data.images import BrokenImageError, ImageProcessor, open_image
from dora_jax.errors import DoraError

CLIP = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
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
        ('{"do_tile": true}', "settings that are not supported: do_tile"),
        ('{"size": {"longest_edge": 3}}', "'height'"),
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
