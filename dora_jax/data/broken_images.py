"""The images that training could not read: each is told once, and counted once."""

import json
import logging
from pathlib import Path

from dora_jax.data.images import BrokenImageError

FILE = "broken_images.jsonl"
_log = logging.getLogger(__name__)


class BrokenImages:
    """Notes images that cannot be read.

    Attributes:
        path: a file with a line for each, which all processes that open images share, and which an
            interrupted run goes on with; None remembers them here alone.
    """

    def __init__(self, path: Path | None = None):
        self.path = path
        self._met: set[str] = set()

    def note(self, image: str, error: BrokenImageError) -> None:
        """Note an image, and warn of it unless that was done before.

        Args:
            image: its path.
            error: what is wrong with it.
        """
        if image in self._met:
            return
        self._met.add(image)
        if self.path is not None:
            if image in read_broken(self.path):
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(image) + "\n")
        _log.warning("%s; nothing of its row is trained on", error)


def read_broken(path: Path) -> set[str]:
    """Return the images that a file names; none where there is no file."""
    if not path.is_file():
        return set()
    # Of a killed process the last line may be half of one.
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return {json.loads(line) for line in lines if line.startswith('"') and line.endswith('"')}
