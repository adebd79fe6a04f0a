"""Large files of the Hugging Face hub, downloaded so that an interruption does not undo it.

The hub's library begins a file anew when a process was interrupted inside it. So large files are
streamed here, into the place where the library's cache keeps a file's content, by its checksum; the
library then finds them there and fetches the rest.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dora_jax.checkpoint.download import resume_download
from dora_jax.checkpoint.files import megabytes, sha256_of
from dora_jax.errors import DoraError
from dora_jax.training.progress import WorkProgress

# Smaller ones are not worth a part file.
_LARGE_BYTES = 8 * 2**20


class LargeFile(NamedTuple):
    """A file of a repository.

    Attributes:
        name: in the repository.
        size: in bytes.
        sha256: its checksum; the hub knows it of files that git does not keep itself.
    """

    name: str
    size: int
    sha256: str


def large_files(siblings: Sequence[Any]) -> list[LargeFile]:
    """Return the large ones of files as the hub's library describes them (`RepoSibling`)."""
    found = []
    for file in siblings:
        lfs = getattr(file, "lfs", None)
        if lfs is not None and lfs.size >= _LARGE_BYTES:
            found.append(LargeFile(file.rfilename, lfs.size, lfs.sha256))
    return found


def fetch_large_files(repo: str, commit: str, files: Sequence[LargeFile]) -> None:
    """Put the content of files into the library's cache, where it is not there yet.

    Safe to interrupt: the next call continues; and to call from several processes at once.

    Args:
        repo: owner/name.
        commit: the version.
        files: of that version.

    Raises:
        DownloadFailed: when an address cannot be read to its end.
        DoraError: when a checksum is wrong, or the disk is full.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import WeakFileLock

    root = Path(constants.HF_HUB_CACHE)
    folder = repo_folder_name(repo_id=repo, repo_type="model")
    blobs, locks = root / folder / "blobs", root / ".locks" / folder
    blobs.mkdir(parents=True, exist_ok=True)
    locks.mkdir(parents=True, exist_ok=True)
    for file in files:
        # The library's own lock of this content.
        with WeakFileLock(locks / f"{file.sha256}.lock"):
            if (blobs / file.sha256).exists():
                continue
            # The address behind the hub's: it needs no token, and gets none.
            address = huggingface_hub.get_hf_file_metadata(
                huggingface_hub.hf_hub_url(repo, file.name, revision=commit)
            ).location
            _fetch(address, file, blobs)


def _fetch(address: str, file: LargeFile, blobs: Path) -> None:
    part = blobs / f"{file.sha256}.part"
    done = part.stat().st_size if part.exists() else 0
    with WorkProgress(file.size) as progress:
        progress.skip(done)
        progress.part(f"downloading {file.name} ({megabytes(file.size - done)} to go)")

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress.advance(count, f"{megabytes(done)} of {megabytes(file.size)}")

        resume_download(address, part, file.size, advance)
    found = sha256_of(part)
    if found != file.sha256:
        part.unlink()
        raise DoraError(
            f"{file.name}: wrong checksum: SHA-256 {found}, expected {file.sha256}. The file has "
            "been deleted; run the same command again to fetch it anew"
        )
    os.replace(part, blobs / file.sha256)
