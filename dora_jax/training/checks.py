"""Checks of the configs' fields: each names the field, what it was given and what is allowed."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from dora_jax.analysis.records import SCALARS, is_instance
from dora_jax.errors import DoraError
from dora_jax.spec import nearest


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Require that a field's value is allowed."""
    if not condition:
        raise DoraError(f"{name} must be {allowed}; got {value!r}")


def require_choice(name: str, value: object, choices: Any) -> None:
    """Require one of the values of a Literal; the nearest one is named."""
    allowed = get_args(choices)
    words = f"one of {', '.join(map(repr, allowed))}"
    if value not in allowed:
        raise DoraError(f"{name} must be {words}; got {value!r}{nearest(value, allowed)}")


_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    **SCALARS,
    Path: ((str, Path), "a path"),
    tuple: ((list, tuple, Mapping), "a list"),
    NoneType: ((NoneType,), "null"),
}


def frozen(value: Any) -> Any:
    """Return a value whose lists are tuples, as the fields have them."""
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def of_kind(name: str, value: object, hint: Any) -> object:
    """Return a value as the kind that a field's annotation names: 1 is 1.0, a list is a tuple.

    What a `Literal` allows is left to the field's own check, which names the choices.

    Raises:
        DoraError: for a value of another kind.
    """
    words = []
    is_union = get_origin(hint) in (Union, UnionType)
    for kind in get_args(hint) if is_union else (hint,):
        origin = get_origin(kind) or kind
        if origin is Literal:
            return value
        types, word = _KINDS[origin]
        if is_instance(value, types):
            return float(value) if origin is float else frozen(value)  # type: ignore[arg-type]
        words.append(word)
    raise DoraError(f"{name} must be {' or '.join(words)}; got {value!r}")


def require_seed(name: str, seed: int) -> None:
    """Require a seed of random numbers."""
    # What the random keys hold: larger seeds would repeat smaller ones.
    require(0 <= seed < 2**32, name, seed, "at least 0 and below 2**32")


def require_count(name: str, value: object, least: int = 1) -> None:
    """Require a whole number of at least `least`."""
    allowed = isinstance(value, int) and not isinstance(value, bool) and value >= least
    require(allowed, name, value, f"a whole number of at least {least}")


def require_pattern(name: str, pattern: str) -> None:
    """Require a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise DoraError(f"{name}: {pattern!r} is not a regular expression: {error}") from None
