import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.checkpoint import state as checkpoints
from dora_jax.checkpoint.state import CheckpointStore, load_tree, misfits, save_tree
from dora_jax.errors import DoraError
from dora_jax.sharding import replicate


class State(NamedTuple):
    step: Any
    trainable: Any
    moments: Any


def state(step=0, rows=300):
    # Of every kind that training holds; -0.0 and the smallest floats too.
    a = jnp.arange(rows * 5, dtype=jnp.float32).reshape(rows, 5) / 7 + step
    a = a.at[0, :2].set(jnp.array([-0.0, 1e-45]))
    trainable = {"q_proj": {"kernel": None, "lora_a": a, "magnitude": a[0].astype(jnp.bfloat16)}}
    return State(jnp.int32(step), trainable, (jnp.int8(3), [a[1] * 1e30]))


def saved(folder, *states):
    with CheckpointStore(folder) as store:
        for one in states:
            store.save(int(one.step), one)
    return folder


def assert_same(found, expected):
    def check(a, b):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())

    jax.tree.map(check, found, expected)


@pytest.mark.parametrize("place", [lambda tree: tree, replicate], ids=["one", "all devices"])
def test_a_state_comes_back_bit_for_bit(tmp_path, place):
    folder = saved(tmp_path / "c", place(state(4)))
    with CheckpointStore(folder) as store:
        restored = store.restore(state(0))
    assert isinstance(restored, State)
    assert restored.trainable["q_proj"]["kernel"] is None
    assert_same(restored, state(4))


def test_a_saved_state_is_complete_when_save_returns(tmp_path):
    with CheckpointStore(tmp_path / "c") as store:
        store.save(4, state(4))
        shutil.copytree(tmp_path / "c", tmp_path / "copy")
    with CheckpointStore(tmp_path / "copy") as store:
        assert_same(store.restore(state()), state(4))


def test_the_last_two_are_kept_and_the_newest_is_restored(tmp_path):
    saved(tmp_path, *map(state, (2, 4, 10, 12)))
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [10, 12]
    with CheckpointStore(tmp_path) as store:
        assert store.latest_step() == 12
        assert_same(store.restore(state()), state(12))


def test_half_written_checkpoints_are_ignored(tmp_path):
    folder = saved(tmp_path, state(2))
    # Orbax renames a folder when it is complete; until then it is called so.
    shutil.copytree(folder / "2", folder / "4.orbax-checkpoint-tmp")
    (folder / "4.orbax-checkpoint-tmp" / "default" / "_METADATA").unlink()
    with CheckpointStore(folder) as store:
        assert store.latest_step() == 2
        assert_same(store.restore(state()), state(2))
        store.save(4, state(4))
    with CheckpointStore(folder) as store:
        assert_same(store.restore(state()), state(4))


def test_a_store_without_checkpoints(tmp_path):
    with CheckpointStore(tmp_path / "new" / "c") as store:
        assert store.latest_step() is None
        with pytest.raises(DoraError, match="new/c: holds no checkpoint"):
            store.restore(state())


def files_of(folder):
    """Return the files without which the arrays cannot be read."""
    data = max((folder / "default").rglob("d/*"), key=lambda path: path.stat().st_size)
    return [data, folder / "default" / "_METADATA", folder / "default" / "manifest.ocdbt"]


# Orbax's threads may outlive a failed read.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("file", [0, 1, 2], ids=["data", "metadata", "manifest"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied", "deleted"])
def test_damaged_checkpoints_are_refused_with_the_way_out(tmp_path, file, damage):
    newest = saved(tmp_path, state(2), state(4)) / "4"
    path = files_of(newest)[file]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"flipped": content, "truncated": content[: len(content) // 2]}
    path.write_bytes(damaged.get(damage, b""))
    if damage == "deleted":
        path.unlink()
    with CheckpointStore(tmp_path) as store, pytest.raises(DoraError) as caught:
        store.restore(state())
    message = str(caught.value)
    assert message.startswith(f"{newest}: damaged checkpoint (")
    assert message.endswith(
        f"; delete {newest} to continue from the checkpoint before it, or from the start"
    )
    assert "tensorstore_spec" not in message
    shutil.rmtree(newest)
    with CheckpointStore(tmp_path) as store:
        assert_same(store.restore(state()), state(2))


def test_another_structure_is_refused_and_listed(tmp_path):
    folder = saved(tmp_path, state(2))
    other = state(rows=200)
    other.trainable["q_proj"].pop("magnitude")
    other.trainable["q_proj"]["bias"] = np.zeros(5)
    with CheckpointStore(folder) as store, pytest.raises(DoraError) as caught:
        store.restore(other)
    assert str(caught.value) == (
        f"{folder / '2'}: not a checkpoint of this run (missing trainable/q_proj/bias; "
        "unexpected trainable/q_proj/magnitude; trainable/q_proj/lora_a has shape (300, 5), "
        f"expected (200, 5)); delete {folder} to train this part again from its start"
    )


def test_many_misfits_are_counted():
    expected = {name: np.zeros(2) for name in "abcdefg"}
    assert misfits(expected, expected) == ""
    assert misfits({}, expected) == (
        "missing a; missing b; missing c; missing d; missing e; and 2 more"
    )
    assert misfits({}, {"a": np.zeros(2)}) == "missing a"


def test_a_checkpoint_that_cannot_be_written_is_an_error_in_words(tmp_path):
    folder = tmp_path / "c"
    store = CheckpointStore(folder)
    shutil.rmtree(folder)
    folder.write_text("in the way")
    with pytest.raises(DoraError) as caught:
        store.save(1, state(1))
    message = str(caught.value)
    assert message.startswith(f"{folder}: the checkpoint of step 1 could not be written (")
    assert message.endswith("; free some space, or choose a folder that you may write to")
    with pytest.raises(DoraError, match=r"c/inside: cannot hold checkpoints .*; free some space"):
        CheckpointStore(folder / "inside")


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
        saved(tmp_path / "c", state(2))
    with pytest.raises(DoraError, match=r"\(its arrays are not those that were written\)"):
        load_tree(tmp_path / "weights")
    with (
        CheckpointStore(tmp_path / "c") as store,
        pytest.raises(DoraError, match=r"\(its arrays are not those that were written\)"),
    ):
        store.restore(state())


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
