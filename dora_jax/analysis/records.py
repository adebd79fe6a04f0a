"""Frozen dataclasses to and from plain JSON values, with errors that name the field.

Only what `results.json` needs: str, int, float, bool, `X | None`, `tuple[X, ...]`, `dict[str, X]`,
`Any` and nested dataclasses. JSON has no NaN, but a diverged run has one: floats that are not
finite are written as the strings of `NON_FINITE` and read back from them.
"""

import dataclasses
import difflib
import math
import numbers
import types
import typing
from typing import Any, TypeVar

import numpy as np

# What stands for each kind of value, and what it is called.
SCALARS: dict[type, tuple[tuple[type, ...], str]] = {
    float: ((int, float), "a number"),
    int: ((int,), "a whole number"),
    str: ((str,), "a text"),
    bool: ((bool,), "true or false"),
}
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

T = TypeVar("T")


class FieldError(ValueError):
    """A value that does not fit its field; `field` is its path, as in `runs[3].history[0].loss`."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        self.problem = problem


def encode(value: Any, field: str = "") -> Any:
    """Return `value` (a dataclass, or anything JSON-like) as plain JSON values.

    NumPy scalars and arrays become numbers and lists.

    Raises:
        FieldError: for a value that JSON cannot hold, naming its field.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            item.name: encode(getattr(value, item.name), _join(field, item.name))
            for item in dataclasses.fields(value)
        }
    if isinstance(value, np.ndarray | np.bool_):
        value = value.tolist()
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        if math.isfinite(number):
            return number
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    if isinstance(value, list | tuple):
        return [encode(item, f"{field}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {str(key): encode(item, _join(field, str(key))) for key, item in value.items()}
    raise FieldError(field, f"a {type(value).__name__} cannot be written as JSON")


def decode(kind: type[T], value: Any, field: str = "") -> T:
    """Build a `kind` (a dataclass) from JSON values, checking every field.

    Args:
        kind: the dataclass to build; its annotations say what is allowed.
        value: what `json.loads` gave.
        field: the path of `value` inside the file, for messages.

    Raises:
        FieldError: naming the field, what was given and what is allowed.
    """
    if not isinstance(value, dict):
        raise FieldError(field, f"must be an object, got {_shown(value)}")
    hints = typing.get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in value:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(fields)}"
            raise FieldError(_join(field, str(name)), f"unknown field; {hint}")
    given = {}
    for name, item in fields.items():
        if name in value:
            given[name] = _decode_any(hints[name], value[name], _join(field, name))
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise FieldError(_join(field, name), "is missing")
    try:
        return kind(**given)
    except FieldError as error:
        raise FieldError(_join(field, error.field), error.problem) from error


def _decode_any(kind: Any, value: Any, field: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return decode(typing.cast(type, kind), value, field)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _decode_any(inner, value, field)
    if origin is tuple:
        if not isinstance(value, list):
            raise FieldError(field, f"must be a list, got {_shown(value)}")
        return tuple(
            _decode_any(arguments[0], item, f"{field}[{i}]") for i, item in enumerate(value)
        )
    if origin is dict:
        if not isinstance(value, dict):
            raise FieldError(field, f"must be an object, got {_shown(value)}")
        return {
            key: _decode_any(arguments[1], item, _join(field, key)) for key, item in value.items()
        }
    return _decode_scalar(kind, value, field)


def _decode_scalar(kind: type, value: Any, field: str) -> Any:
    if kind is float and isinstance(value, str) and value in NON_FINITE:
        return NON_FINITE[value]
    allowed, words = SCALARS[kind]
    if not is_instance(value, allowed):
        raise FieldError(field, f"must be {words}, got {_shown(value)}")
    return kind(value)


def is_instance(value: object, allowed: tuple[type, ...]) -> bool:
    """As `isinstance`, but True is no number: in Python it is an int, in a file a mistake."""
    return isinstance(value, allowed) and (bool in allowed or not isinstance(value, bool))


def _join(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def differences(stored: Any, given: Any, path: str = "") -> list[str]:
    """Return in words where two JSON values differ; nothing where they do not."""
    if isinstance(stored, dict) and isinstance(given, dict):
        found = []
        for name in [*stored, *(n for n in given if n not in stored)]:
            found += differences(stored.get(name), given.get(name), _join(path, name))
        return found
    return [] if stored == given else [f"{path or 'all'} is {stored!r} there and {given!r} here"]
