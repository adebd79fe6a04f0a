"""NLVR as rows to train and evaluate on: statements that people wrote about drawn pictures.

`python -m dora_jax.data.nlvr dev.jsonl --images dev_images.zip --out nlvr/dev` writes `rows.jsonl`
and the pictures. A picture of NLVR is three boxes side by side; each becomes a picture of its own,
in their order, so that a small tower sees them as large as it can. (Suhr et al. 2017, "A corpus of
natural language for visual reasoning"; lil-lab/nlvr.)
"""

import argparse
import contextlib
import io
import json
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dora_jax.analysis.atomic import write_bytes, write_text
from dora_jax.data.images import open_image
from dora_jax.data.jsonl import json_rows
from dora_jax.errors import DoraError

TASK = "nlvr"
OPTIONS = ("true", "false")
INSTRUCTION = "Is the statement true or false?"
# Where a box begins and ends, of the 400 pixels of a picture's width.
BOXES = ((0, 100), (150, 250), (300, 400))
_WIDTH = 400
_SAMPLE = '{"sentence": "There is a blue square", "label": "true", "image": "dev-1-0-0.png"}'


def convert(rows: Path, images: Path, out: Path) -> Path:
    """Write NLVR's rows and pictures in a form that every command reads.

    Args:
        rows: JSON, an object a line: `sentence`, `label`, and `image`, or, as it was published,
            `identifier` and `directory`.
        images: the folder that the pictures are in, or a zip of it.
        out: the folder to write; pictures that are there are kept.

    Returns:
        The file of rows: `question`, `answer`, `options`, `images` (three), `task`.

    Raises:
        DoraError: for a row or a picture that cannot be read, by file and line.
    """
    found = []
    with _opened(images) as read:
        for where, row in json_rows(rows, _SAMPLE):
            sentence, label = (_text(row, name, where) for name in ("sentence", "label"))
            if label not in OPTIONS:
                raise DoraError(f"{where}: 'label' must be true or false; got {label!r}")
            name = _picture(row, rows, where)
            found.append(
                {
                    "question": f"{sentence}\n{INSTRUCTION}",
                    "answer": label,
                    "options": OPTIONS,
                    "images": _cut(read, name, out, where),
                    "task": TASK,
                }
            )
    if not found:
        raise DoraError(f"{rows}: holds no rows; they look like {_SAMPLE}")
    path = out / "rows.jsonl"
    write_text(path, "".join(json.dumps(row) + "\n" for row in found))
    return path


def _text(row: Any, name: str, where: str) -> str:
    text = row.get(name) if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise DoraError(f"{where}: must have a text {name!r}, as in {_SAMPLE}")
    return text.strip()


def _picture(row: dict[str, Any], rows: Path, where: str) -> str:
    """Return the path of a row's picture in the folder of pictures."""
    if "image" in row:
        return _text(row, "image", where)
    split = rows.name.split(".")[0]
    return f"{_text(row, 'directory', where)}/{split}-{_text(row, 'identifier', where)}-0.png"


@contextlib.contextmanager
def _opened(images: Path) -> Iterator[Callable[[str], bytes]]:
    """Give a function that returns the bytes of a picture, of a folder or a zip, by its name."""
    if images.is_dir():
        yield lambda name: (images / name).read_bytes()
        return
    try:
        file = zipfile.ZipFile(images)
    except (OSError, zipfile.BadZipFile) as error:
        raise DoraError(
            f"{images}: is neither a folder of pictures nor a zip of one ({error})"
        ) from None
    with file:
        yield file.read


def _cut(read: Callable[[str], bytes], name: str, out: Path, where: str) -> list[str]:
    """Write the boxes of a picture that are not there; return their paths from the folder."""
    stem = name.replace("/", "-").removesuffix(".png")
    paths = [f"images/{stem}-{number}.png" for number in range(len(BOXES))]
    if all((out / path).exists() for path in paths):
        return paths
    try:
        picture = open_image(io.BytesIO(read(name)))
    except (OSError, KeyError, DoraError) as error:
        raise DoraError(f"{where}: the picture {name} cannot be read ({error})") from None
    if picture.width != _WIDTH:
        raise DoraError(f"{where}: the picture {name} is {picture.width} pixels wide, not {_WIDTH}")
    for path, (left, right) in zip(paths, BOXES, strict=True):
        file = io.BytesIO()
        picture.crop((left, 0, right, picture.height)).save(file, "PNG")
        write_bytes(out / path, file.getvalue())
    return paths


def main(argv: Sequence[str] | None = None) -> None:
    """Write what the command line asks for, and say where."""
    parser = argparse.ArgumentParser(
        prog="python -m dora_jax.data.nlvr", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("rows", type=Path, help="JSON, an object a line")
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures, or a zip")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    given = parser.parse_args(argv)
    try:
        print(convert(given.rows, given.images, given.out))
    except DoraError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
