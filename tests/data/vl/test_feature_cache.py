"""Features made once: read back, gone on with after an interruption, and never mistaken."""

import dataclasses
import json
import pickle
import threading

import numpy as np
import pytest

from dora_jax.data.vl.feature_cache import CachedFeatures, MadeBy, cached_features
from dora_jax.data.vl.store import open_features
from dora_jax.errors import DoraError

NAMES = tuple(f"image {n}" for n in range(7))
BY = MadeBy({"tower": "a"}, {"seed": 0}, "float32")


def features_of(name):
    number = int(name.split()[1])
    rng = np.random.default_rng(number)
    return rng.standard_normal((1 + number % 3, 4)).astype(np.float32)


class Maker:
    """Makes features, remembers of what, and fails when it has made so many parts."""

    def __init__(self, parts=99):
        self.asked, self._parts = [], parts

    def __call__(self, names):
        if len(self.asked) == self._parts:
            raise KeyboardInterrupt
        self.asked.append(tuple(names))
        return [features_of(name) for name in names]


def check(cached):
    for name in NAMES:
        np.testing.assert_array_equal(cached.get(name).features, features_of(name))
    cached.verify()


def test_features_are_made_once_and_read_back(tmp_path):
    maker = Maker()
    cached = cached_features(tmp_path, BY, NAMES, maker, part=3)
    assert maker.asked == [NAMES[:3], NAMES[3:6], NAMES[6:]]
    check(cached)
    assert cached.names == NAMES
    assert sorted(path.name for path in cached.folder.iterdir()) == [
        ".lock",
        "features.bin",
        "index.json",
    ]
    again = Maker()
    check(cached_features(tmp_path, BY, NAMES, again))
    assert again.asked == []
    mapped = cached.get(NAMES[2]).features
    assert isinstance(mapped, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 0
    check(pickle.loads(pickle.dumps(cached)))


def test_half_precision_is_kept_as_such(tmp_path):
    cached = cached_features(tmp_path, MadeBy({}, {}), NAMES, Maker())
    found = cached.get(NAMES[1]).features
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, features_of(NAMES[1]).astype(np.float16))
    assert (cached.folder / "features.bin").stat().st_size == 2 * 4 * (1 + 2 + 3 + 1 + 2 + 3 + 1)


def interrupted(root):
    """Leave a cache of two parts of three."""
    with pytest.raises(KeyboardInterrupt):
        cached_features(root, BY, NAMES, Maker(parts=2), part=2)
    (folder,) = root.iterdir()
    return folder


def test_what_was_interrupted_goes_on(tmp_path):
    folder = interrupted(tmp_path)
    with pytest.raises(DoraError, match=r"index\.json: cannot be read .* to have it made again"):
        CachedFeatures(folder)
    maker = Maker()
    check(cached_features(tmp_path, BY, NAMES, maker, part=2))
    assert maker.asked == [NAMES[4:6], NAMES[6:]]


def cut_array(folder):
    with open(folder / "features.bin", "r+b") as file:
        file.truncate(file.seek(0, 2) - 3)


def grow_array(folder):
    with open(folder / "features.bin", "ab") as file:
        file.write(b"part of a part that was not finished")


def change_array(folder):
    content = bytearray((folder / "features.bin").read_bytes())
    content[-1] ^= 1
    (folder / "features.bin").write_bytes(content)


def cut_journal(folder):
    content = (folder / "journal.jsonl").read_bytes()
    (folder / "journal.jsonl").write_bytes(content[:-1])


def spoil_journal(folder):
    with open(folder / "journal.jsonl", "ab") as file:
        file.write(b'{"counts": [1')


@pytest.mark.parametrize(
    ("harm", "kept"),
    [(cut_array, 2), (grow_array, 4), (change_array, 2), (cut_journal, 2), (spoil_journal, 4)],
)
def test_nothing_that_is_half_written_is_trusted(tmp_path, harm, kept):
    folder = interrupted(tmp_path)
    harm(folder)
    maker = Maker()
    check(cached_features(tmp_path, BY, NAMES, maker, part=2))
    assert maker.asked[0] == NAMES[kept : kept + 2]


@pytest.mark.parametrize(
    "changes",
    [{"maker": {"tower": "b"}}, {"inputs": {"seed": 1}}, {"dtype": "float16"}],
)
def test_another_maker_or_other_inputs_are_another_cache(tmp_path, changes):
    first = cached_features(tmp_path, BY, NAMES, Maker())
    maker = Maker()
    second = cached_features(tmp_path, dataclasses.replace(BY, **changes), NAMES, maker)
    assert maker.asked == [NAMES]
    assert first.folder != second.folder
    fewer = Maker()
    cached_features(tmp_path, BY, NAMES[:3], fewer)
    assert fewer.asked == [NAMES[:3]]


def test_several_that_ask_at_once_wait_for_one(tmp_path):
    maker, found = Maker(), []

    def ask():
        found.append(cached_features(tmp_path, BY, NAMES, maker, part=1))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(maker.asked) == len(NAMES)
    assert len(found) == 3


def rewrite(folder, **changes):
    """Change fields of an index."""
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_changed_bit_is_found_on_opening_and_by_verify(tmp_path):
    cached = cached_features(tmp_path, BY, NAMES, Maker())
    copied = pickle.dumps(cached)
    change_array(cached.folder)
    message = r"features\.bin: is not what it was; delete .* to have it made again"
    for read in (
        lambda: CachedFeatures(cached.folder),
        lambda: open_features(cached.folder),
        lambda: cached_features(tmp_path, BY, NAMES, Maker()),
        cached.verify,
    ):
        with pytest.raises(DoraError, match=message):
            read()
    # Another process maps what this one has read already.
    assert pickle.loads(copied).names == NAMES


def test_a_cache_keeps_its_name_and_a_link_to_it_may_have_any(tmp_path):
    folder = cached_features(tmp_path, BY, NAMES, Maker()).folder
    (tmp_path / "features").symlink_to(folder)
    check(CachedFeatures(tmp_path / "features"))
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(DoraError, match=rf"of a cache called {folder.name}: give its folder that"):
        CachedFeatures(moved)
    moved.rename(folder)
    by = json.loads((folder / "index.json").read_text())["made_by"]
    rewrite(folder, made_by=by | {"inputs": {"seed": 1}})
    with pytest.raises(DoraError, match=r"index\.json: is of a cache called"):
        CachedFeatures(folder)


def test_a_finished_cache_that_was_cut_is_refused(tmp_path):
    cached = cached_features(tmp_path, BY, NAMES, Maker())
    grow_array(cached.folder)
    for content in ((cached.folder / "features.bin").read_bytes(), b""):
        (cached.folder / "features.bin").write_bytes(content)
        with pytest.raises(DoraError, match=r"features\.bin: holds .* bytes, and its index says"):
            CachedFeatures(cached.folder)
    (cached.folder / "features.bin").unlink()
    with pytest.raises(DoraError, match=r"features\.bin: cannot be mapped"):
        CachedFeatures(cached.folder)


# Where the rows of the seven images are, of 1, 2, 3, 1, 2, 3 and 1 rows.
_ROWS = ([0, 1], [1, 2], [3, 3], [6, 1], [7, 2], [9, 3], [12, 1])
PLACES = dict(zip(NAMES, _ROWS, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": -4}, "'size' must be a whole number, from 1; got -4"),
        ({"size": 4.0}, "'size' must be a whole number"),
        ({"size": None}, "'size' must be a whole number, from 1; got None"),
        ({"size": True}, "'size' must be a whole number"),
        ({"sha256": "zz"}, "'sha256' must be 64 hexadecimal digits; got 'zz'"),
        ({"sha256": 7}, "'sha256' must be 64 hexadecimal digits"),
        ({"made_by": []}, r"'made_by' must be an object; got \[\]"),
        ({"made_by": {"dtype": "int8"}}, "'made_by.dtype' must be float16 or float32; got 'int8'"),
        ({"places": {}}, "'places' must be an object, not empty"),
        ({"places": [[0, 1]]}, "'places' must be an object, not empty"),
        (
            {"places": PLACES | {NAMES[0]: [-1, 2]}},
            "'places' of 'image 0' must be its first row, 0",
        ),
        ({"places": PLACES | {NAMES[1]: [1, 0]}}, r"'image 1' .* from 1; got \[1, 0\]"),
        (
            {"places": PLACES | {NAMES[2]: [2, 4]}},
            r"'image 2' must be its first row, 3, .* \[2, 4\]",
        ),
        ({"places": PLACES | {NAMES[3]: [6.0, 1]}}, "'image 3' must be its first row, 6"),
        ({"places": PLACES | {NAMES[4]: 7}}, "'image 4' must be its first row, 7"),
        # Outside the file.
        ({"places": PLACES | {NAMES[6]: [12, 2]}}, r"features\.bin: holds 208 bytes, .* says 224"),
        ({"places": dict(zip("abcdefg", PLACES.values(), strict=True))}, "'places' does not name"),
    ],
)
def test_an_index_is_checked_field_by_field(tmp_path, changes, message):
    folder = cached_features(tmp_path, BY, NAMES, Maker()).folder
    assert json.loads((folder / "index.json").read_text())["places"] == PLACES
    rewrite(folder, **changes)
    with pytest.raises(DoraError, match=rf"{message}.*; delete .* to have it made again"):
        CachedFeatures(folder)


def test_what_cannot_be_kept_is_named(tmp_path):
    with pytest.raises(DoraError, match="has no features of 'other'"):
        cached_features(tmp_path, BY, NAMES, Maker()).get("other")
    for names in ((), ("a", "a")):
        with pytest.raises(DoraError, match=f"must be given once each; got {len(names)}"):
            cached_features(tmp_path, BY, names, Maker())
    with pytest.raises(DoraError, match="must be told as JSON"):
        cached_features(tmp_path, MadeBy({"a": np.zeros(1)}, {}), NAMES, Maker())
    for number, (made, message) in enumerate(
        [
            ([np.zeros((1, 4))], "1 features were made of 2 images"),
            ([np.zeros((1, 4)), np.zeros((1, 5))], r"of 'b': its features have shape \(1, 5\)"),
            ([np.zeros((1, 4)), np.full((1, 4), 1e6)], r"of 'b' has 1e\+06, more than float16"),
        ]
    ):
        with pytest.raises(DoraError, match=message):
            cached_features(tmp_path, MadeBy({}, {"n": number}), ("a", "b"), lambda _, m=made: m)
    (tmp_path / "file").write_text("")
    with pytest.raises(DoraError, match="choose another folder for features"):
        cached_features(tmp_path / "file", BY, NAMES, Maker())
