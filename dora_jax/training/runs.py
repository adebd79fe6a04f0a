"""Run folders: whose they are, what is finished in them, and in what environment.

A folder belongs to one set of settings, written to `config.json` before anything else; a run with
other settings is refused. A part of a run is finished when its `results.json` is
there, and that file is written last and in one step.
"""

import contextlib
import fcntl
import functools
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax

from dora_jax.analysis.atomic import write_text
from dora_jax.analysis.records import FieldError, decode, differences, encode
from dora_jax.errors import DoraError
from dora_jax.json_file import read_json
from dora_jax.processes import first_decides, is_first

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
RESULTS_FILE = "results.json"
_PACKAGES = ("dora-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

T = TypeVar("T")


@functools.cache
def package_versions() -> Mapping[str, str]:
    """Return the versions of our own package and of those that compute."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def environment() -> dict[str, Any]:
    """Return versions, devices and the git commit of the code (None outside a checkout)."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "devices": [f"{d.platform}: {d.device_kind}" for d in jax.devices()],
        "versions": package_versions(),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # Fails where the code is installed inside somebody else's checkout.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--", "..")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit} with uncommitted changes" if changed else commit


@contextlib.contextmanager
def claim(folder: Path, settings: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Make a run folder ours, or continue the run of the same settings that it holds.

    Writes `config.json`, and to `environment.json` every environment that worked in it; holds a
    lock until the context ends.

    Yields:
        The environments, oldest first; the last is the present one.

    Raises:
        DoraError: when the folder belongs to another config, is in use by another process, holds
            other files, or cannot be written.
    """
    config_path = folder / CONFIG_FILE
    other_folder = "choose another folder with --out"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Hidden files do not count: a killed process may have left a temporary one.
        strange = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        if strange and not config_path.exists():
            raise DoraError(
                f"{folder}: holds files that are not a run's ({', '.join(strange[:3])}); "
                f"{other_folder}"
            )
        # Held for the whole run; "a", because a file of that name may be someone else's.
        lock = open(folder / ".lock", "a")  # noqa: SIM115
    except OSError as error:
        raise DoraError(
            f"{folder}: cannot be used as a run folder ({error}); {other_folder}"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DoraError(
                f"{folder}: another process is running in it; wait for it, or {other_folder}"
            ) from None
        except OSError as error:
            raise DoraError(f"{folder}: cannot be locked ({error}); {other_folder}") from error
        if config_path.exists():
            way_out = f"{other_folder}, or delete {folder}"
            found = differences(read_json(config_path, way_out), settings)
            if found:
                more = [f"and {len(found) - 4} more"] if len(found) > 4 else []
                shown = "; ".join(found[:4] + more)
                raise DoraError(f"{folder}: holds the run of another config ({shown}); {way_out}")
        else:
            write_text(config_path, json.dumps(settings, indent=1) + "\n")
        yield _environments(folder / ENVIRONMENT_FILE)


def _environments(path: Path) -> list[dict[str, Any]]:
    """Return the environments of a run, the present one last, and keep them in its file."""
    now = environment()
    before = read_json(path, f"delete {path}") if path.exists() else []
    environments = [e for e in before if e != now] + [now]
    write_text(path, json.dumps(environments, indent=1) + "\n")
    return environments


def finished_part(folder: Path, kind: type[T], file: str = RESULTS_FILE) -> T | None:
    """Return the result of a finished part of a run, or None if it is still to be done.

    Raises:
        DoraError: when its file is broken.
    """
    path = folder / file
    way_out = f"delete {folder} to do this part again"
    stored = first_decides(lambda: read_json(path, way_out) if path.exists() else None)
    if stored is None:
        return None
    try:
        return decode(kind, stored)
    except FieldError as error:
        raise DoraError(f"{path}: {error}; {way_out}") from error


def finish_part(folder: Path, result: Any, file: str = RESULTS_FILE) -> None:
    """Write a part's result: from now on it is finished."""
    if is_first():
        write_text(folder / file, json.dumps(encode(result), allow_nan=False) + "\n")
