"""Finished runs are found again: by what they were of, in the comparisons beside this one.

`reuse/KEY.json` beside the run folders says where a part of that key lies. The key is of the
config, the rows, the weights, the code, the packages that compute, and the kind of device.
"""

import functools
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax

from dora_jax.analysis.atomic import write_text
from dora_jax.processes import first_decides, is_first
from dora_jax.training.runs import RESULTS_FILE, package_versions

SHELF = "reuse"


class Shelf:
    """The place of one part's result among those of other comparisons.

    Args:
        parent: the folder that holds the run folders.
        settings: what the result depends on, as JSON.
    """

    def __init__(self, parent: Path, settings: dict[str, Any]):
        text = json.dumps([settings, _place()], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        self._file = parent / SHELF / f"{key}.json"

    def take(self, folder: Path) -> str | None:
        """Copy a finished part into `folder`, if there is one; return where it was found."""
        return first_decides(lambda: self._take(folder))

    def _take(self, folder: Path) -> str | None:
        try:
            origin = Path(json.loads(self._file.read_text(encoding="utf-8"))["folder"])
            if origin.absolute() == folder.absolute() or not (origin / RESULTS_FILE).is_file():
                return None
            shutil.rmtree(folder, ignore_errors=True)
            # The result comes last: without it the part is not finished.
            late = shutil.ignore_patterns(RESULTS_FILE, ".*")
            shutil.copytree(origin, folder, ignore=late, copy_function=_link)
            shutil.copy2(origin / RESULTS_FILE, folder / RESULTS_FILE)
        except (OSError, ValueError, KeyError, TypeError):
            return None  # removed or broken meanwhile: it is done anew
        return str(origin)

    def put(self, folder: Path) -> None:
        """Say that a finished part lies in `folder`."""
        if is_first():
            self._file.parent.mkdir(exist_ok=True)
            write_text(self._file, json.dumps({"folder": str(folder.absolute())}) + "\n")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)  # without a second copy of the weights, where the disk can
    except OSError:
        shutil.copy2(source, target)


@functools.cache
def _code() -> str:
    """Return a name of the package's own source."""
    root = Path(__file__).parents[1]
    named = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        named.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return named.hexdigest()


def _place() -> list[Any]:
    # Our own code is named itself.
    packages = {name: v for name, v in package_versions().items() if name != "dora-jax"}
    return [_code(), packages, jax.devices()[0].device_kind, jax.device_count()]
