"""The mesh of devices that everything is divided over.

data      rows of a batch; weights are repeated
fsdp      rows of a batch, and the weights: gathered where they are used, layer by layer
tensor    the weights, by heads and by the MLP's width: each device computes its part
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from dora_jax.errors import DoraError

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # what the rows of a batch are divided over

# (pattern of a leaf's slash-joined path, the mesh axis of each of its last axes); first match wins.
ShardingRules = Sequence[tuple[str, tuple[str | None, ...]]]


@dataclass(frozen=True)
class MeshConfig:
    """How the devices are arranged; their number is the product."""

    data: int = -1
    """Copies of the model, each with its own rows; -1 is all devices that are left."""
    fsdp: int = 1
    """Parts that weights and optimizer state are divided into; each has its own rows too."""
    tensor: int = 1
    """Parts that each layer's products are divided into."""

    def __post_init__(self) -> None:
        sizes = [self.data, self.fsdp, self.tensor]
        for name, size in zip(AXES, sizes, strict=True):
            if size != -1 and size < 1:
                raise DoraError(f"mesh.{name} must be at least 1, or -1 for the rest; got {size}")
        if sizes.count(-1) > 1:
            raise DoraError(
                f"mesh: only one axis may be -1; got {dict(zip(AXES, sizes, strict=True))}"
            )

    def build(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """Return the mesh.

        Args:
            devices: by default all, of all processes.

        Raises:
            DoraError: when they cannot be arranged so.
        """
        devices = jax.devices() if devices is None else devices
        sizes = [self.data, self.fsdp, self.tensor]
        given = int(np.prod([size for size in sizes if size != -1]))
        if -1 in sizes and len(devices) % given == 0:
            sizes[sizes.index(-1)] = len(devices) // given
        if int(np.prod(sizes)) != len(devices):
            shape = " x ".join(f"{name} {size}" for name, size in zip(AXES, sizes, strict=True))
            raise DoraError(
                f"mesh: {shape} does not make {len(devices)} devices: change --mesh.data, "
                "--mesh.fsdp or --mesh.tensor"
            )
        types = (AxisType.Auto,) * len(AXES)
        return jax.make_mesh(tuple(sizes), AXES, axis_types=types, devices=devices)


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Say over which mesh axes the leading axes of an activation are divided.

    Without a mesh of ours around (`jax.set_mesh`), and for an axis that does not divide, nothing is
    said.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not set(AXES) <= set(mesh.axis_names):
        return x
    wanted = [
        fitting_axis(axis, size, mesh.shape) for axis, size in zip(axes, x.shape, strict=False)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*wanted))


def fitting_axis(
    axis: str | tuple[str, ...] | None, size: int, shape: Mapping[str, int]
) -> str | tuple[str, ...] | None:
    """Return the mesh axis, or None where it does not divide."""
    if axis is None:
        return None
    names = (axis,) if isinstance(axis, str) else axis
    return axis if size % int(np.prod([shape[name] for name in names])) == 0 else None
