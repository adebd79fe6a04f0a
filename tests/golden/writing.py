"""How golden files are written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_by_name(path: Path, found: Mapping[str, Any]) -> None:
    """Write a JSON object with one line a name, so that a diff shows which have changed."""
    lines = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}"
        for name, value in found.items()
    )
    path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
