"""The grid of a comparison: fields that vary, and their values."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dora_jax.errors import DoraError
from dora_jax.spec import nearest
from dora_jax.training.checks import frozen
from dora_jax.training.sections import (
    AdapterConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)

# The search's own field; and what a grid and a variant may not change, with the way out.
SEARCHED = ("optim.learning_rate",)
_FIXED = {
    "seeds": "give --seeds",
    "train.method": "give --compare.methods",
    "model.name": "a comparison has one model: run one for each",
    "data.eval": "all arms are scored on the same rows: run a comparison for each",
}
_SECTIONS: dict[str, Any] = {
    "model": ModelConfig,
    "data": DataConfig,
    "adapter": AdapterConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
}


def require_varies(where: str, path: str) -> None:
    """Check that a grid or a variant may set a field."""
    if path in _FIXED:
        raise DoraError(f"{where}: {path} does not vary so: {_FIXED[path]}")
    allowed = [
        f"{section}.{item.name}"
        for section, kind in _SECTIONS.items()
        for item in dataclasses.fields(kind)
    ]
    if path not in allowed:
        raise DoraError(
            f"{where}: {path!r} is not a field that may vary{nearest(path, allowed)}; those are "
            f"the fields of {', '.join(_SECTIONS)}"
        )


@dataclass(frozen=True)
class GridAxis:
    """One axis of a grid.

    Attributes:
        fields: what varies along it, by dotted path; several vary together.
        values: at each place, one value for each field.
    """

    fields: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]

    @classmethod
    def parse(cls, text: str) -> "GridAxis":
        """Read an axis from the command line: `adapter.rank=4,8`.

        Fields that vary together are joined by `+`, as are their values:
        `adapter.rank+adapter.alpha=4+8,8+16`. A value that holds a comma or plus is written in a
        JSON list of all values: `adapter.modules=["(q|k)_proj"]`.
        """
        names, equals, given = text.partition("=")
        fields = tuple(name.strip() for name in names.split("+"))
        if not equals or not given.strip():
            raise DoraError(f"grid {text!r}: give FIELD=VALUE,VALUE, such as adapter.rank=4,8")
        if given.lstrip().startswith("["):
            try:
                values = json.loads(given)
            except json.JSONDecodeError as error:
                raise DoraError(f"grid {text!r}: is not a JSON list ({error})") from None
        else:
            values = [
                [_json_or_text(part) for part in value.split("+")]
                if len(fields) > 1
                else _json_or_text(value)
                for value in given.split(",")
            ]
        return cls.of(fields, values)

    @classmethod
    def of(cls, fields: Sequence[str], values: Sequence[Any]) -> "GridAxis":
        """Make an axis of values, each a sequence where several fields vary together."""
        several, given = len(fields) > 1, frozen(values)
        rows = given if isinstance(given, tuple) else ()
        if several and not all(isinstance(row, tuple) for row in rows):
            rows = ()
        if not rows:
            each = f", each a list of {len(fields)}" if several else ""
            raise DoraError(
                f"grid over {'+'.join(fields)}: give a list of values{each}; got {values!r}"
            )
        return cls(tuple(fields), rows if several else tuple((value,) for value in rows))

    def __str__(self) -> str:
        values = [row if len(self.fields) > 1 else row[0] for row in self.values]
        return f"{'+'.join(self.fields)}={json.dumps(values)}"

    def __post_init__(self) -> None:
        name = "+".join(self.fields)
        for row in self.values:
            if len(row) != len(self.fields):
                raise DoraError(f"grid over {name}: {row!r} must give {len(self.fields)} values")
        if len({repr(row) for row in self.values}) < len(self.values) or not self.values:
            raise DoraError(f"grid over {name}: give each value once; got {self.values!r}")


# As Python, and the other options, write them.
_WORDS = {"True": True, "False": False, "None": None}


def _json_or_text(text: str) -> Any:
    if text.strip() in _WORDS:
        return _WORDS[text.strip()]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text.strip()
