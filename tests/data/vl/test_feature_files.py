"""Features in HDF5 and NumPy files, in the published layouts and broken."""

import pickle

import numpy as np
import pytest

pytest.importorskip("h5py", reason="the features extra is not installed")

import h5py

from dora_jax.data.vl.feature_files import H5Features, NumpyFeatures
from dora_jax.errors import DoraError

RNG = np.random.default_rng(3)
REGIONS = RNG.standard_normal((3, 5)).astype(np.float32)
GRID = RNG.standard_normal((2, 2, 5)).astype(np.float32)
PIXELS = np.array([[0, 10, 100, 50], [20, 0, 40, 50], [0, 0, 200, 100]], np.float32)


@pytest.fixture
def path(tmp_path):
    """A file with each layout."""
    path = tmp_path / "features.h5"
    with h5py.File(path, "w") as file:
        file["plain"] = REGIONS
        file["regions/features"] = REGIONS
        file["regions/boxes"] = PIXELS
        file["regions/img_w"], file["regions/img_h"] = 200, 100
        file["shares/features"] = REGIONS
        file["shares/boxes"] = PIXELS / [200, 100, 200, 100]
        file["grid/features"] = GRID
        file["pixels/features"] = REGIONS
        file["pixels/boxes"] = PIXELS
        file["outside/features"] = REGIONS
        file["outside/boxes"] = PIXELS / [200, 100, 200, 100] - [0.1, 0, 0, 0]
        file["odd/features"] = REGIONS
        file["odd/boxes"] = PIXELS[:2]
        file["turned/features"] = REGIONS
        file["turned/boxes"] = np.array([[0, 0, 1, 1], [0.5, 0, 0.4, 1], [0, 0, 0, 0]])
        file["upside down/features"] = REGIONS
        file["upside down/boxes"] = np.array([[0, 1, 1, 0]] * 3, np.float32)
        file["text"] = "features"
        file["texts"] = ["a", "b", "c"]
        file["nothing"] = h5py.Empty("f")
        file["group/features/0"] = REGIONS
        file["named/features"] = REGIONS
        file["named/boxes"] = [["a", "b", "c", "d"]] * 3
        file["boxed/features"] = REGIONS
        file["boxed/boxes/0"] = PIXELS
        for name, width in (
            ("two", [200, 200]),
            ("flat", 0),
            ("endless", np.inf),
            ("word", "wide"),
        ):
            file[f"{name}/features"], file[f"{name}/boxes"] = REGIONS, PIXELS
            file[f"{name}/img_w"], file[f"{name}/img_h"] = width, 100
        file["bare/obj_id"] = np.zeros(3)
        file["whole"] = np.zeros((3, 5), np.int32)
        file["nan"] = REGIONS * np.nan
    return path


def test_each_layout_is_read(path):
    features = H5Features(path, size=5)
    np.testing.assert_array_equal(features.get("plain").features, REGIONS)
    assert features.get("plain").boxes is None
    np.testing.assert_array_equal(features.get("grid").features, GRID.reshape(4, 5))
    # (left, right, top, bottom), of a picture 200 wide and 100 high.
    expected = [[0, 0.5, 0.1, 0.5], [0.1, 0.2, 0, 0.5], [0, 1, 0, 1]]
    for name in ("regions", "shares"):
        np.testing.assert_allclose(features.get(name).boxes, expected, rtol=1e-6)
        np.testing.assert_array_equal(features.get(name).features, REGIONS)


def test_another_process_opens_the_file_for_itself(path):
    features = H5Features(path)
    features.get("plain")
    copied = pickle.loads(pickle.dumps(features))
    np.testing.assert_array_equal(copied.get("plain").features, REGIONS)


def test_a_file_an_image(tmp_path):
    with h5py.File(tmp_path / "n23.h5", "w") as file:
        file["n23/features"] = GRID
    features = H5Features(tmp_path, 5)
    np.testing.assert_array_equal(features.get("n23").features, GRID.reshape(4, 5))
    with pytest.raises(DoraError, match=r"has no file n24\.h5"):
        features.get("n24")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "none",
            5,
            r"features\.h5: has no features of 'none' \(it has 'bare', 'boxed', .*, \.\.\.\)",
        ),
        ("plain", 6, r"'plain': its features have shape \(3, 5\); the model takes \(any num.* 6\)"),
        ("grid", 6, r"'grid': its features have shape \(2, 2, 5\); the model takes"),
        ("pixels", 5, r"'pixels': its boxes must lie in the image: .* they are from 0 to 200"),
        ("outside", 5, "'outside': its boxes must lie in the image: .* they are from -0.1 to 1"),
        ("odd", 5, r"'odd': its boxes have shape \(2, 4\), and its features 3"),
        ("bare", 5, r"'bare': has no 'features' \(it has 'obj_id'\)"),
        ("turned", 5, r"'turned': its boxes must be .* number 2 is \[0.5, 0.0, 0.4\d*, 1.0\], and"),
        ("upside down", 5, r"its boxes must be .* number 1 is \[0.0, 1.0, 1.0, 0.0\], and ends"),
        ("text", 5, "'text': must be a dataset of numbers, and is of type object; write the file"),
        ("texts", 5, "'texts': must be a dataset of numbers, and is of type object"),
        ("nothing", 5, "'nothing': must be a dataset of numbers, and is empty; write the file as"),
        ("group", 5, "'group', 'features': must be a dataset .*, and is a group of '0'; write"),
        ("named", 5, "'named', 'boxes': must be a dataset of numbers, and is of type object"),
        ("boxed", 5, "'boxed', 'boxes': must be a dataset of numbers, and is a group of '0'"),
        ("two", 5, r"'two': 'img_w' must be one number of pixels, .*; got \[200, 200\]; write"),
        ("flat", 5, "'flat': 'img_w' must be one number of pixels, more than 0; got 0; write"),
        ("endless", 5, "'endless': 'img_w' must be one number of pixels, more than 0; got inf"),
        ("word", 5, "'word', 'img_w': must be a dataset of numbers, and is of type object"),
        ("whole", 5, "'whole': its features must be finite floating-point numbers"),
        ("nan", 5, "'nan': its features must be finite"),
    ],
)
def test_what_is_wrong_is_named(path, name, size, message):
    with pytest.raises(DoraError, match=message):
        H5Features(path, size).get(name)


def test_files_that_are_none_are_named(tmp_path):
    (tmp_path / "text.h5").write_text("no features")
    with pytest.raises(DoraError, match=r"text\.h5: is no HDF5 file that can be read"):
        H5Features(tmp_path / "text.h5").get("a")
    with pytest.raises(DoraError, match="there is no such file or folder of features"):
        H5Features(tmp_path / "absent.h5")
    with pytest.raises(DoraError, match="there is no such folder of features"):
        NumpyFeatures(tmp_path / "absent")


def test_clips_in_numpys_files(tmp_path):
    np.savez(tmp_path / "a.npz", features=REGIONS)
    np.save(tmp_path / "b.npy", REGIONS)
    np.savez(tmp_path / "c.npz", other=REGIONS)
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], object), allow_pickle=True)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:40])
    features = NumpyFeatures(tmp_path, 5)
    for name in "ab":
        np.testing.assert_array_equal(features.get(name).features, REGIONS)
    for name, message in (
        ("c", r"c\.npz: has no array 'features', but 'other'"),
        ("d", r"has no file d\.npz, and no d\.npy"),
        ("objects", r"objects\.npy: cannot be read \(Object arrays cannot be loaded"),
        ("cut", r"cut\.npz: cannot be read"),
    ):
        with pytest.raises(DoraError, match=message):
            features.get(name)
