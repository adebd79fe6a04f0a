"""DoRA in float64 numpy, written from the formulas of the paper; shares no code with the library.

Kernels are (*stack, *in, *out), A (*stack, *in, r), B (*stack, r, *out). `Layout` says how many
axes of each kind there are.
"""

import math
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """A kernel's shape and how many of its leading axes are stacks and inputs."""

    shape: tuple[int, ...]
    in_ndim: int
    stack_ndim: int = 0

    @property
    def stack_shape(self):
        return self.shape[: self.stack_ndim]

    @property
    def in_shape(self):
        return self.shape[self.stack_ndim : self.stack_ndim + self.in_ndim]

    @property
    def out_shape(self):
        return self.shape[self.stack_ndim + self.in_ndim :]

    @property
    def axes(self):
        return {"in_ndim": self.in_ndim, "stack_ndim": self.stack_ndim}

    def summed(self, norm_axis):
        first = self.stack_ndim + self.in_ndim
        return tuple(
            range(self.stack_ndim, first) if norm_axis == "out" else range(first, len(self.shape))
        )

    def magnitude_shape(self, norm_axis):
        return self.stack_shape + (self.out_shape if norm_axis == "out" else self.in_shape)


def scale(alpha, rank, scaling):
    return {"standard": alpha / rank, "rslora": alpha / math.sqrt(rank), "alpha": alpha}[scaling]


def wide(array):
    return np.asarray(array).astype(np.float64)


def adapted(kernel, a, b, s, layout):
    """V = W + s A B, one (in, r) x (r, out) product for each stacked kernel."""
    kernel, a, b = wide(kernel), wide(a), wide(b)
    total = np.empty(layout.shape)
    for index in np.ndindex(*layout.stack_shape):
        total[index] = kernel[index] + s * np.tensordot(a[index], b[index], axes=1)
    return total


def norm(kernel, layout, norm_axis):
    return np.sqrt(np.sum(wide(kernel) ** 2, axis=layout.summed(norm_axis)))


def merged(kernel, adapter, s, layout, norm_axis):
    """W' = m V / n (a column whose kernel is zero: V itself), or V where there is no magnitude."""
    v = wide(kernel)
    if "lora_a" in adapter:
        v = adapted(kernel, adapter["lora_a"], adapter["lora_b"], s, layout)
    if "magnitude" not in adapter:
        return v
    c = np.ones(layout.magnitude_shape(norm_axis))
    live = norm(kernel, layout, norm_axis) > 0
    c[live] = wide(adapter["magnitude"])[live] / norm(v, layout, norm_axis)[live]
    return np.expand_dims(c, layout.summed(norm_axis)) * v


# One of each kind of kernel: all sizes differ, so that a wrong axis is a wrong shape or number.
LAYOUTS = {
    "dense": Layout((5, 4), 1),
    "one input": Layout((1, 6), 1),
    "one output": Layout((6, 1), 1),
    "several axes": Layout((2, 3, 4, 5), 2),
    "one in, two out": Layout((6, 2, 3), 1),
    "batch, one in": Layout((2, 5, 3, 4), 1, 1),
    "batch, two in": Layout((2, 3, 5, 4), 2, 1),
    "convolution": Layout((3, 2, 4, 5), 3),
    "stacked": Layout((3, 5, 4), 1, 1),
    "twice stacked": Layout((2, 3, 5, 4), 1, 2),
}


def random_adapter(rng, layout, rank, norm_axis, kernel, size=0.5):
    """A, B and a magnitude well away from the fresh one."""
    return {
        "lora_a": size * rng.normal(size=(*layout.stack_shape, *layout.in_shape, rank)),
        "lora_b": size * rng.normal(size=(*layout.stack_shape, rank, *layout.out_shape)),
        "magnitude": norm(kernel, layout, norm_axis)
        * rng.uniform(0.5, 2.0, layout.magnitude_shape(norm_axis)),
    }
