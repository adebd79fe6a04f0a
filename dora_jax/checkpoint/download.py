"""A download over HTTP that an interruption does not undo."""

import errno
import http.client
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from dora_jax.errors import DoraError

_log = logging.getLogger(__name__)
_CHUNK = 2**18
_TIMEOUT_S = 30.0
# In a row, without a byte in between.
_ATTEMPTS = 4


class DownloadFailed(Exception):  # noqa: N818 - what happened, in a caller's words
    """The address could not be read to its end; what came is kept in the `.part` file."""


def _open_at(url: str, start: int) -> tuple[http.client.HTTPResponse, bool]:
    """Open an address at an offset; returns (response, whether it starts there and not at 0)."""
    request = urllib.request.Request(url)
    if start:
        request.add_header("Range", f"bytes={start}-")
    response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    return response, response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _stream(url: str, part: Path, size: int, advance: Callable[[int], None]) -> None:
    start = part.stat().st_size if part.exists() else 0
    response, is_continued = _open_at(url, start)
    with response, open(part, "ab" if is_continued else "wb") as file:
        if start and not is_continued:
            _log.warning("%s: the server cannot continue a download; it starts again", part.name)
            advance(-start)
        while file.tell() < size and (chunk := response.read(min(_CHUNK, size - file.tell()))):
            file.write(chunk)
            advance(len(chunk))


def resume_download(
    url: str, part: Path, size: int, advance: Callable[[int], None], pause_s: float = 1.0
) -> None:
    """Read an address into a file, going on after the bytes that the file already holds.

    A broken connection is taken up again a few times; what came so far always stays in the file.

    Args:
        url: an http or https address.
        part: the file; longer than `size`, it is begun again.
        size: bytes to expect.
        advance: told how many bytes have come; negative when bytes are given up.
        pause_s: before the first new attempt; doubled for each after it.

    Raises:
        DownloadFailed: when the address refuses, or the connection breaks again and again.
        DoraError: when the disk is full.
    """
    if part.exists() and part.stat().st_size > size:
        part.unlink()
    failures = 0
    while (before := part.stat().st_size if part.exists() else 0) < size:
        try:
            _stream(url, part, size, advance)
            reason = "the connection closed early"
        except urllib.error.HTTPError as error:
            if error.code < 500:  # asking again would not help
                raise DownloadFailed(f"HTTP {error.code} {error.reason}") from error
            reason = f"HTTP {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DoraError(
                    f"{part}: the disk is full; free some space and run the same command again: "
                    "the download continues"
                ) from error
            reason = f"{type(error).__name__}: {error}"
        after = part.stat().st_size if part.exists() else 0
        failures = 0 if after > before else failures + 1
        if after < size:
            if failures >= _ATTEMPTS:
                raise DownloadFailed(reason)
            time.sleep(pause_s * 2 ** max(failures - 1, 0))
