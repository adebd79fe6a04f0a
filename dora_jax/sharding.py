"""Where arrays live on the mesh of a run, and how the host gets them back.

The mesh is the one around (`jax.set_mesh`), or else all devices, each with its own rows. Every
process of a run calls the same functions in the same order.
"""

from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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
    is_global = isinstance(x, jax.Array) and not x.is_fully_addressable
    if sharding.is_fully_addressable or is_global:
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


def fetch(tree: T) -> T:
    """Return arrays as whole numpy arrays, in every process."""

    def get(x: Any) -> Any:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(get, tree)
