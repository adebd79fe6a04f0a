"""Where arrays live on the mesh of a run, and how the host gets them back.

The mesh is the one around (`jax.set_mesh`), or else all devices, each with its own rows. Every
process of a run calls the same functions in the same order.
"""

from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dora_jax.data.batches import Share
from dora_jax.mesh import AXES, ROWS, MeshConfig

T = TypeVar("T")


def run_mesh() -> Mesh:
    """Return the mesh that arrays are placed on."""
    mesh = jax.sharding.get_mesh()
    return mesh if set(AXES) <= set(mesh.axis_names) else MeshConfig().build()


def row_places(mesh: Mesh) -> int:
    """Return the number of parts that the rows of a batch are divided into."""
    return int(np.prod([mesh.shape[axis] for axis in ROWS]))


def put(x: Any, sharding: NamedSharding) -> jax.Array:
    """Put an array where it belongs; each process gives the whole, and keeps its part."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def replicate(tree: T) -> T:
    """Put every array on every device, but for those that are on all of the mesh already."""
    mesh = run_mesh()
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(x: Any) -> Any:
        if isinstance(x, jax.Array) and x.sharding.device_set == everywhere.device_set:
            return x
        return put(x, everywhere)

    return jax.tree.map(place, tree)


def _rows_sharding(mesh: Mesh, rows: int) -> NamedSharding:
    divides = rows % row_places(mesh) == 0
    return NamedSharding(mesh, PartitionSpec(ROWS) if divides else PartitionSpec())


def split_rows(tree: T) -> T:
    """Divide the leading axis of every array over the devices; replicate where it does not divide.

    The numbers are the same either way.

    Args:
        tree: of arrays with the same number of rows, whole in every process.
    """
    mesh = run_mesh()
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(tree)}
    divides = all(n % row_places(mesh) == 0 for n in rows)
    sharding = NamedSharding(mesh, PartitionSpec(ROWS) if divides else PartitionSpec())
    return jax.tree.map(lambda x: put(x, sharding), tree)


def row_share(mesh: Mesh, rows: int) -> Share:
    """Return which of a batch's rows this process has to read.

    All of them, where the processes' rows are not equal runs of the batch.
    """
    if jax.process_count() == 1:
        return Share()
    spans: dict[int, list[int]] = {}
    places = _rows_sharding(mesh, rows).devices_indices_map((rows,))
    for device, (span,) in places.items():
        spans.setdefault(device.process_index, []).extend(range(rows)[span])
    runs = {process: sorted(set(numbers)) for process, numbers in spans.items()}
    found = sorted({tuple(run) for run in runs.values()})
    share = Share(found.index(tuple(runs[jax.process_index()])), len(found))
    equal = rows % len(found) == 0 and all(
        tuple(Share(number, len(found)).rows(rows)) == run for number, run in enumerate(found)
    )
    return share if equal else Share()


def join_rows(tree: T, rows: int, share: Share) -> T:
    """Put a batch together, of which each process has its share.

    Args:
        tree: of arrays whose leading axis is the share's rows.
        rows: of the whole batch.
        share: of `row_share`.
    """
    if share.processes == 1:
        return split_rows(tree)
    sharding = _rows_sharding(run_mesh(), rows)

    def place(x: Any) -> jax.Array:
        whole = (rows, *x.shape[1:])
        return jax.make_array_from_process_local_data(sharding, np.asarray(x), whole)

    return jax.tree.map(place, tree)


def fetch(tree: T) -> T:
    """Return arrays as whole numpy arrays, in every process."""

    def get(x: Any) -> Any:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(get, tree)
