import json
import os
import shutil
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dora_jax.checkpoint.checksum import checksums
from dora_jax.checkpoint.store import CheckpointStore
from dora_jax.errors import DoraError
from dora_jax.mesh import MeshConfig
from dora_jax.sharding import replicate


class State(NamedTuple):
    step: Any
    trainable: Any
    moments: Any


def state(step=0, rows=300):
    # Of every kind that training holds; -0.0 and the smallest floats too.
    a = jnp.arange(rows * 8, dtype=jnp.float32).reshape(rows, 8) / 7 + step
    a = a.at[0, :2].set(jnp.array([-0.0, 1e-45]))
    trainable = {"q_proj": {"kernel": None, "lora_a": a, "magnitude": a[0].astype(jnp.bfloat16)}}
    return State(jnp.int32(step), trainable, (jnp.int8(3), [a[1] * 1e30]))


def saved(folder, *states):
    with CheckpointStore(folder) as store:
        for one in states:
            store.save(int(one.step), one)
    return folder


def save_and_wait(store, tree):
    store.save(int(tree.step), tree)
    store.wait()


def assert_same(found, expected):
    def check(a, b):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())

    jax.tree.map(check, found, expected)


@pytest.mark.parametrize("place", [lambda tree: tree, replicate], ids=["one", "all devices"])
def test_a_state_comes_back_bit_for_bit(tmp_path, place):
    folder = saved(tmp_path / "c", place(state(4)))
    with CheckpointStore(folder) as store:
        restored, manifest = store.restore(place(state(0)))
    assert isinstance(restored, State)
    assert restored.trainable["q_proj"]["kernel"] is None
    assert_same(restored, state(4))
    assert (manifest.step, manifest.metric) == (4, None)


def on_mesh(tree, **sizes):
    """Return a tree whose arrays are divided over fsdp and tensor where they can be."""
    mesh = MeshConfig(**sizes).build()

    def place(x):
        axes = (None, ("fsdp", "tensor")) if x.ndim == 2 else ()
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))

    return jax.tree.map(place, tree)


def test_a_checkpoint_goes_from_mesh_to_mesh(tmp_path):
    meshes = [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 8}, {"data": 8}]
    folder = saved(tmp_path / "0", on_mesh(state(1), **meshes[0]))
    for number, sizes in enumerate(meshes[1:], 1):
        template = on_mesh(state(0), **sizes)
        with CheckpointStore(folder) as store:
            restored, _ = store.restore(template)
        assert_same(restored, state(1))
        for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(template), strict=True):
            assert leaf.sharding == wanted.sharding
        folder = saved(tmp_path / str(number), restored)
    with CheckpointStore(folder) as store:
        assert_same(store.restore(state(0))[0], state(1))


@pytest.mark.parametrize("place", [lambda tree: tree, replicate], ids=["one", "all devices"])
def test_a_state_may_be_given_up_as_soon_as_save_returns(tmp_path, place):
    """The next step takes the state's memory, while it is still being written."""
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    big = place({"a": jnp.zeros((1000, 1000)), "step": jnp.int32(0)})
    with CheckpointStore(tmp_path, keep=9) as store:
        for number in range(5):
            store.save(number, big)
            for _ in range(3):
                big = step(big)
    with CheckpointStore(tmp_path, keep=9) as store:
        for number in range(5):
            found, _ = store.restore(big, number)
            assert set(np.unique(found["a"])) == {3 * number}
            assert int(found["step"]) == 3 * number


def test_the_last_two_and_the_best_are_kept(tmp_path):
    with CheckpointStore(tmp_path / "a") as store:
        for number in (2, 4, 10, 12):
            store.save(number, state(number), metric=number)
        assert store.steps() == [10, 12]
    with CheckpointStore(tmp_path / "b", keep_best=True) as store:
        for number, metric in ((2, 3.0), (4, 1.0), (6, None), (10, 2.0), (12, None)):
            store.save(number, state(number), metric)
    with CheckpointStore(tmp_path / "b", keep_best=True) as store:
        assert store.steps() == [4, 10, 12]
        assert_same(store.restore(state())[0], state(12))
        best, manifest = store.restore(state(), 4)
        assert_same(best, state(4))
        assert manifest.metric == 1.0


def test_half_written_checkpoints_are_ignored(tmp_path):
    folder = saved(tmp_path, state(2))
    # Orbax renames a folder when it is complete; until then it is called so.
    torn = folder / "4.orbax-checkpoint-tmp"
    shutil.copytree(folder / "2", torn)
    (torn / "state" / "_METADATA").unlink()
    with CheckpointStore(folder) as store:
        assert store.steps() == [2]
        assert_same(store.restore(state())[0], state(2))
        store.save(4, state(4))
    with CheckpointStore(folder) as store:
        assert_same(store.restore(state())[0], state(4))


def test_a_store_without_checkpoints(tmp_path):
    with CheckpointStore(tmp_path / "new" / "c") as store:
        assert store.steps() == []
        assert store.restore(state()) is None


def files_of(folder):
    """Return the files without which the checkpoint cannot be read."""
    data = max((folder / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    names = ("state/_METADATA", "state/manifest.ocdbt", "manifest/metadata")
    return [data, *(folder / name for name in names)]


# All that it tells is in the manifest too.
NEEDLESS = (1, "deleted")


# Orbax's threads may outlive a failed read.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("file", range(4), ids=["data", "metadata", "ocdbt", "manifest"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied", "deleted"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, file, damage, caplog):
    newest = saved(tmp_path, state(2), state(4)) / "4"
    path = files_of(newest)[file]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"flipped": content, "truncated": content[: len(content) // 2]}
    path.write_bytes(damaged.get(damage, b""))
    if damage == "deleted":
        path.unlink()
    with CheckpointStore(tmp_path) as store:
        found, manifest = store.restore(state())
        if (file, damage) == NEEDLESS:
            assert_same(found, state(4))
            return
        assert_same(found, state(2))
        assert manifest.step == 2
        assert f"{newest}: damaged checkpoint (" in caplog.text
        assert "going on from the one before it" in caplog.text
        assert "tensorstore_spec" not in caplog.text
        # Training comes to the same step again.
        store.save(4, state(4))
    with CheckpointStore(tmp_path) as store:
        assert_same(store.restore(state())[0], state(4))


def test_a_manifest_that_was_changed_is_damaged_though_it_is_json(tmp_path, caplog):
    path = saved(tmp_path, state(2), state(4)) / "4" / "manifest" / "metadata"
    text = path.read_text()
    for name in ("magnitude", "step", "checksum"):
        assert name in text
    path.write_text(text.replace("magnitude", "magnitudf"))
    with CheckpointStore(tmp_path) as store:
        assert_same(store.restore(state())[0], state(2))
    assert "its manifest is not what was written" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_where_no_sound_checkpoint_is_left_nothing_starts_from_zero(tmp_path):
    saved(tmp_path, state(2), state(4))
    for step in ("2", "4"):
        files_of(tmp_path / step)[0].write_bytes(b"")
    with CheckpointStore(tmp_path) as store, pytest.raises(DoraError) as caught:
        store.restore(state())
    assert f"{tmp_path / '2'}: damaged checkpoint (" in str(caught.value)
    assert f"no sound one is left: delete {tmp_path} to train" in str(caught.value)


def test_another_structure_is_refused_and_listed(tmp_path):
    folder = saved(tmp_path, state(2))
    other = state(rows=200)
    other.trainable["q_proj"].pop("magnitude")
    other.trainable["q_proj"]["bias"] = np.zeros(5)
    with CheckpointStore(folder) as store, pytest.raises(DoraError) as caught:
        store.restore(other)
    assert str(caught.value) == (
        f"{folder / '2'}: not a checkpoint of this run (missing trainable/q_proj/bias; "
        "unexpected trainable/q_proj/magnitude; trainable/q_proj/lora_a has shape (300, 8), "
        f"expected (200, 8)); delete {folder} to train this part again from its start"
    )


def test_another_run_is_refused_and_what_differs_is_named(tmp_path):
    with CheckpointStore(tmp_path, {"weights": "abc", "seed": 1, "data": {"rows": "x"}}) as store:
        store.save(2, state(2))
    other = {"weights": "abd", "seed": 1, "data": {"rows": "y"}}
    with CheckpointStore(tmp_path, other) as store, pytest.raises(DoraError) as caught:
        store.restore(state())
    assert (
        "not a checkpoint of this run (weights is 'abc' there and 'abd' here; data.rows is 'x' "
        "there and 'y' here)"
    ) in str(caught.value)
    assert CheckpointStore(tmp_path, other).steps() == [2]  # it is still there


def test_a_checkpoint_that_cannot_be_written_is_an_error_in_words(tmp_path):
    folder = tmp_path / "c"
    store = CheckpointStore(folder)
    shutil.rmtree(folder)
    folder.write_text("in the way")
    with pytest.raises(DoraError) as caught:
        save_and_wait(store, state(1))
    message = str(caught.value)
    assert message.startswith(f"{folder}: ")
    assert " could not be written (" in message
    assert message.endswith("; free some space, or choose a folder that you may write to")
    with pytest.raises(DoraError, match=r"c/inside: cannot hold checkpoints .*; free some space"):
        CheckpointStore(folder / "inside")


FULL_DISK = """
import resource, signal, sys, pathlib
import jax.numpy as jnp
from dora_jax.checkpoint.store import CheckpointStore
from dora_jax.errors import DoraError
with CheckpointStore(pathlib.Path(sys.argv[1])) as store:
    store.save(1, {"a": jnp.ones(1000)})
    store.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        store.save(2, {"a": jnp.arange(1e6)})
        store.wait()
    except DoraError as error:
        print(error)
"""


def test_a_disk_that_is_full_is_said_and_the_checkpoint_before_stays(tmp_path):
    """A limit on file sizes stands for the full disk: writes fail half way."""
    found = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True
    )
    assert "could not be written (" in found.stdout, found.stderr[-2000:]
    assert "free some space" in found.stdout
    with CheckpointStore(tmp_path) as store:
        assert store.steps() == [1]
        np.testing.assert_array_equal(store.restore({"a": jnp.zeros(1000)})[0]["a"], np.ones(1000))


def checksum_by_hand(array):
    """The formula, an element at a time."""
    flat = np.ascontiguousarray(array).reshape(-1)
    size = min(flat.dtype.itemsize, 4)
    bits = flat.view(f"uint{8 * size}").astype(object)
    return sum(int(b) * (2 * i + 1) for i, b in enumerate(bits)) % 2**32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "int8", "uint32"])
def test_checksums_are_the_formula_s_whatever_the_mesh(dtype):
    array = jnp.arange(48).reshape(6, 8).astype(dtype) * 3
    expected = checksum_by_hand(np.asarray(array))
    assert checksums({"a": array}) == {"a": expected}
    assert checksums(on_mesh({"a": array}, data=2, fsdp=2, tensor=2)) == {"a": expected}


def test_checksums_notice_a_bit_and_an_exchange():
    array = np.random.default_rng(0).normal(size=(50, 7)).astype("float32")
    expected = checksums({"a": array})["a"]
    for bit in range(32):
        flipped = array.copy()
        flipped.view(np.uint32)[13, 4] ^= np.uint32(1 << bit)
        assert checksums({"a": flipped})["a"] != expected
    exchanged = array.copy()
    exchanged[[0, 1]] = exchanged[[1, 0]]
    assert checksums({"a": exchanged})["a"] != expected
    assert checksums({}) == {}


def test_what_is_stored_can_be_read_without_this_code(tmp_path):
    with CheckpointStore(tmp_path, {"seed": 3}) as store:
        store.save(2, state(2))
    manifest = json.loads((tmp_path / "2" / "manifest" / "metadata").read_text())
    assert manifest["identity"] == {"seed": 3}
    assert manifest["arrays"]["trainable/q_proj/lora_a"]["shape"] == [300, 8]
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if "pickle" in name]
