"""Shapes as tests of points, in units of the object's radius, y pointing down."""

from collections.abc import Callable

import numpy as np

Inside = Callable[[np.ndarray, np.ndarray], np.ndarray]
STYLES = ("filled", "outlined", "striped")
_LINE = 0.24  # how thick an outline is
_STRIPE = 0.7  # from one stripe to the next
_BETWEEN = 0.45  # how much paint there is between stripes: the shape must still be seen


def _polygon(*corners: tuple[float, float]) -> Inside:
    def inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        # Even-odd rule: a ray to the right crosses the border an odd number of times.
        found = np.zeros(np.broadcast(x, y).shape, bool)
        for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
            if y0 != y1:
                crosses = (y0 > y) != (y1 > y)
                found ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
        return found

    return inside


def _star() -> Inside:
    angles = -np.pi / 2 + np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
    xs, ys = radii * np.cos(angles), radii * np.sin(angles)
    return _polygon(*zip(xs.tolist(), ys.tolist(), strict=True))


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = 1.2 * x, 0.1 - 1.2 * y
    return (x**2 + y**2 - 1) ** 3 <= x**2 * y**3


# No corner lies further out than 1.1 radii.
SHAPES: dict[str, Inside] = {
    "circle": lambda x, y: x**2 + y**2 <= 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.78,
    "triangle": _polygon((0, -1), (0.9, 0.62), (-0.9, 0.62)),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.32) & (np.maximum(abs(x), abs(y)) <= 1),
    "ring": lambda x, y: (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.3),
    "star": _star(),
    "diamond": lambda x, y: abs(x) / 0.75 + abs(y) <= 1,
    "heart": _heart,
    "arrow": _polygon(
        (1, 0), (0.1, -0.95), (0.1, -0.4), (-1, -0.4), (-1, 0.4), (0.1, 0.4), (0.1, 0.95)
    ),
}


def paint(shape: str, style: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return how much paint is on each point: float32 from 0 to 1.

    Args:
        shape: a name in `SHAPES`.
        style: a name in `STYLES`.
        x: to the right of the middle, in radii; broadcasts with `y`.
        y: below the middle, in radii.
    """
    inside = SHAPES[shape]
    found = inside(x, y).astype(np.float32)
    if style == "outlined":
        ways = np.arange(8) * np.pi / 4
        core = [inside(x + _LINE * np.cos(way), y + _LINE * np.sin(way)) for way in ways]
        found *= ~np.all(core, axis=0)
    if style == "striped":
        found *= np.where(np.mod(y / _STRIPE + 0.25, 1) < 0.5, 1, _BETWEEN)
    return found
