"""Where arrays live: parameters on every device, the rows of a batch divided among them."""

from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")


def data_mesh() -> Mesh:
    """Return the mesh of all devices with one axis, `data`."""
    return Mesh(np.array(jax.devices()), ("data",))


def replicate(tree: T) -> T:
    """Put every array of a tree on every device."""
    return jax.device_put(tree, NamedSharding(data_mesh(), PartitionSpec()))


def split_rows(tree: T) -> T:
    """Divide the leading axis of every array over the devices; replicate where it does not divide.

    The numbers are the same either way.
    """
    mesh = data_mesh()
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(tree)}
    divides = all(n % mesh.size == 0 for n in rows)
    spec = PartitionSpec("data") if divides else PartitionSpec()
    return jax.device_put(tree, NamedSharding(mesh, spec))
