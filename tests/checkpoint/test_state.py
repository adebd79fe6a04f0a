import shutil

import jax
import numpy as np
import pytest

from dora_jax.checkpoint import state as checkpoints
from dora_jax.checkpoint.state import load_tree, misfits, save_tree
from dora_jax.errors import DoraError
from tests.checkpoint.test_store import assert_same, state


def test_many_misfits_are_counted():
    expected = {name: np.zeros(2) for name in "abcdefg"}
    assert misfits(expected, expected) == ""
    assert misfits({}, expected) == (
        "missing a; missing b; missing c; missing d; missing e; and 2 more"
    )
    assert misfits({}, {"a": np.zeros(2)}) == "missing a"


def test_a_tree_comes_back_bit_for_bit_and_replaces_the_one_before(tmp_path):
    folder = tmp_path / "weights"
    save_tree(folder, {"old": {"kernel": np.ones(3)}})
    tree = {"layers": {"q_proj": state(1).trainable["q_proj"]}, "norm": {"scale": np.ones(2)}}
    save_tree(folder, tree)
    del tree["layers"]["q_proj"]["kernel"]  # None: not part of the tree
    assert_same(load_tree(folder), tree)
    assert jax.tree.structure(load_tree(folder)) == jax.tree.structure(tree)


def test_arrays_that_are_not_those_written_are_refused(tmp_path, monkeypatch):
    # What a bit flipped on disk comes to, where the compression does not notice it.
    digest = checkpoints._digest
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_digest", lambda arrays: digest(arrays)[::-1])
        save_tree(tmp_path / "weights", state(1).trainable)
    with pytest.raises(DoraError, match=r"\(its arrays are not those that were written\)"):
        load_tree(tmp_path / "weights")


def test_trees_that_cannot_be_read_or_written(tmp_path):
    folder = tmp_path / "weights"
    with pytest.raises(DoraError, match="weights: no such checkpoint folder"):
        load_tree(folder)
    save_tree(folder, state(1).trainable)
    data = max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(DoraError, match=r"weights: damaged or not an orbax .*; train it again"):
        load_tree(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "weights.npz").write_bytes(b"PK")
    with pytest.raises(DoraError, match=r"weights: damaged or not an orbax .*; train it again"):
        load_tree(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(DoraError, match=r"file/weights: could not be written .*; free some space"):
        save_tree(tmp_path / "file" / "weights", {"a": np.ones(2)})
