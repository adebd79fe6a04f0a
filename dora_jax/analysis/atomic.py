"""Write a file so that a reader sees the old text or the new one, never a part of either."""

import contextlib
import os
from pathlib import Path

from dora_jax.errors import DoraError


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` to `path` as UTF-8 in one step: a temporary file beside it, then a rename.

    Args:
        path: the file to write; missing folders above it are made.
        text: its whole content. What UTF-8 cannot hold (half a surrogate pair, as JSON can carry)
            is written as a backslash escape rather than losing the file.

    Returns:
        The path written.

    Raises:
        DoraError: when the file system refuses (no space, no permission); `path` is then untouched.
    """
    return write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write bytes to `path` in one step, as `write_text` does."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DoraError(
            f"{path}: could not be written ({error.strerror or error}). "
            "Free some space or choose a folder that you may write to; nothing was changed."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # such as a file where a folder should be
            temporary.unlink()
    return path
