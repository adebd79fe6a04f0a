"""A grid's fields, values and points, as people read them."""

import json
from collections.abc import Mapping
from typing import Any


def axis_title(path: str) -> str:
    """Return a field that varies, in words: "adapter.norm_axis" -> "norm axis"."""
    return path.rsplit(".", 1)[-1].replace("_", " ")


def value_text(value: Any) -> str:
    """Return a value of such a field: 0.0010 -> "0.001", "in" -> "in"."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def point_text(point: Mapping[str, Any]) -> str:
    """Return a point as it ends an arm's label: {"adapter.rank": 4} -> ", rank 4"."""
    return "".join(f", {axis_title(path)} {value_text(value)}" for path, value in point.items())
