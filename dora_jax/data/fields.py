"""Fields of the rows that data sets publish, with one message for each thing that can be wrong."""

from collections.abc import Iterator
from typing import Any

from dora_jax.errors import DoraError

WAY_OUT = "take the file as it is published"


def rows_of(found: Any, where: object) -> Iterator[tuple[str, Any]]:
    """Yield (where, row) of a list of rows.

    Raises:
        DoraError: when it is no list, or empty.
    """
    if not isinstance(found, list) or not found:
        raise DoraError(f"{where}: must hold a list of rows, not empty; {WAY_OUT}")
    yield from ((f"{where}, row {number}", row) for number, row in enumerate(found, 1))


def value_of(row: Any, name: str, where: str) -> Any:
    """Return a field's value.

    Raises:
        DoraError: naming the row and the field, when it is not there.
    """
    if not isinstance(row, dict):
        raise DoraError(f"{where}: must be an object with fields; got {_shown(row)}; {WAY_OUT}")
    if name not in row:
        raise DoraError(
            f"{where}: has no field {name!r} (its fields: {', '.join(map(repr, row)) or 'none'}); "
            f"{WAY_OUT}"
        )
    return row[name]


def text_of(row: Any, name: str, where: str) -> str:
    """Return a field that holds a text; errors as `value_of`, and for what is none or blank."""
    found = value_of(row, name, where)
    if not isinstance(found, str) or not found.strip():
        raise wrong(name, "a text, not empty", found, where)
    return found


def texts_of(row: Any, name: str, where: str) -> tuple[str, ...]:
    """Return a field that holds a list of texts; errors as `value_of`, and for what is none."""
    found = value_of(row, name, where)
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise wrong(name, "a list of texts", found, where)
    return tuple(found)


def number_of(row: Any, name: str, where: str) -> int:
    """Return a field that holds a whole number, from 0; errors as `value_of`, and for others."""
    found = value_of(row, name, where)
    if not isinstance(found, int) or isinstance(found, bool) or found < 0:
        raise wrong(name, "a whole number, from 0", found, where)
    return found


def id_of(row: Any, name: str, where: str) -> str:
    """Return a field that names a row, a text or a number, as a text; errors as `value_of`."""
    found = value_of(row, name, where)
    if isinstance(found, bool) or not isinstance(found, int | str) or found == "":
        raise wrong(name, "a number or a text", found, where)
    return str(found)


def people_of(row: Any, where: str) -> tuple[str, ...]:
    """Return people's `answers`, each an object with `answer`, as VQA and VizWiz publish them."""
    found = value_of(row, "answers", where)
    if not isinstance(found, list) or not found:
        raise wrong("answers", "a list of objects with 'answer', not empty", found, where)
    answers = tuple(value_of(given, "answer", f"{where}, 'answers'") for given in found)
    if not all(isinstance(answer, str) for answer in answers):
        raise wrong("answers", "a list of objects whose 'answer' is a text", found, where)
    return answers


def wrong(name: str, what: str, found: Any, where: str) -> DoraError:
    """Return the error of a field that is not what it must be."""
    return DoraError(f"{where}: {name!r} must be {what}; got {_shown(found)}; {WAY_OUT}")


def _shown(found: Any) -> str:
    shown = repr(found)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
