"""Where fetched models are kept, and what is checked about files before they are trusted."""

import hashlib
import os
import shutil
from pathlib import Path

from dora_jax.errors import DoraError

CACHE_VARIABLE = "DORA_JAX_CACHE"
_MARGIN = 32 * 2**20


def cache_folder() -> Path:
    """Return the user's folder for fetched models.

    `$DORA_JAX_CACHE`, else `dora-jax` in `$XDG_CACHE_HOME`, else `~/.cache/dora-jax`.
    """
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).expanduser()
    above = os.environ.get("XDG_CACHE_HOME")
    return (Path(above) if above else Path.home() / ".cache") / "dora-jax"


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_free_space(folder: Path, needed: int, what: str, way_out: str) -> None:
    """Refuse to begin to write what cannot end.

    Args:
        folder: to be written to; need not exist yet.
        needed: bytes.
        what: named in the error.
        way_out: what the user can do.

    Raises:
        DoraError: when less than that, and a small margin, is free.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed + _MARGIN:
        raise DoraError(
            f"{folder}: {what} needs {megabytes(needed + _MARGIN)} of disk space and "
            f"{megabytes(free)} is free; {way_out}"
        )


def megabytes(size: int) -> str:
    """Return a number of bytes in words."""
    return f"{size / 1e6:,.0f} MB"
