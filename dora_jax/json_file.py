"""JSON files, read with one message for what can be wrong with them."""

import json
from pathlib import Path
from typing import Any

from dora_jax.errors import DoraError


def read_json(path: Path, way_out: str, joint: str = "; ") -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        way_out: what the user can do; ends the message.
        joint: stands before it.

    Raises:
        DoraError: when it is not there or broken, with the way out.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DoraError(f"{path}: cannot be read ({error}){joint}{way_out}") from error


def read_json_object(path: Path, way_out: str, joint: str = "; ") -> dict[str, Any]:
    """Read a JSON file that holds an object; arguments and errors as `read_json`."""
    found = read_json(path, way_out, joint)
    if not isinstance(found, dict):
        raise DoraError(f"{path}: must hold a JSON object{joint}{way_out}")
    return found


def starts_with_list(path: Path) -> bool:
    """Whether a JSON file holds a list; only its beginning is read.

    Raises:
        DoraError: when it cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(4096).lstrip("\ufeff \t\r\n").startswith("[")
    except (OSError, UnicodeDecodeError) as error:
        raise DoraError(f"{path}: cannot be read ({error}); check the path") from error
