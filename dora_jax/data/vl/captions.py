"""Captions: of COCO's images, and of the moments of TVC's and YouCook2's clips.

In training each caption is a row (`each_caption`), as published training has it; in evaluation each
image or moment is one, with all its captions as references.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from dora_jax.data.fields import (
    WAY_OUT,
    id_of,
    number_of,
    rows_of,
    text_of,
    value_of,
    wrong,
)
from dora_jax.data.jsonl import json_rows
from dora_jax.data.vl.row import Task, VLRow
from dora_jax.data.vl.subtitles import NO_SUBTITLES, Span, Subtitles, span_of
from dora_jax.errors import DoraError
from dora_jax.json_file import read_json_object

KarpathySplit = Literal["train", "val", "test"]
# Published training takes what Karpathy set apart and did not use, too.
_SPLITS: dict[KarpathySplit, tuple[str, ...]] = {
    "train": ("train", "restval"),
    "val": ("val",),
    "test": ("test",),
}
_SAMPLE = '{"clip_id": 7, "vid_name": "friends_s01", "ts": [1.5, 4.0], "descs": [{"desc": "..."}]}'


def read_karpathy(path: Path, split: KarpathySplit, *, each_caption: bool) -> Iterator[VLRow]:
    """Yield the captions of a split of `dataset_coco.json`; `train` has `restval` in it.

    An image is called as its file without the ending, such as `COCO_val2014_000000000042`.

    Args:
        path: the file.
        split: which images.
        each_caption: whether each caption is a row, or each image.

    Raises:
        DoraError: naming the file, row and field; when no image is of the split; or for COCO's own
            file, which has no splits.
    """
    is_any = False
    raw = read_json_object(path, WAY_OUT)
    if "annotations" in raw:
        raise DoraError(
            f"{path}: is of one split already, as COCO's own files are: leave --split out"
        )
    for where, row in rows_of(value_of(raw, "images", str(path)), path):
        if text_of(row, "split", where) not in _SPLITS[split]:
            continue
        is_any = True
        sentences = rows_of(value_of(row, "sentences", where), f"{where}, 'sentences'")
        captions = [text_of(sentence, "raw", inner).strip() for inner, sentence in sentences]
        image = text_of(row, "filename", where)
        name = id_of(row, "cocoid", where) if "cocoid" in row else image
        yield from _rows("caption", name, captions, Path(image).stem, where, each_caption)
    if not is_any:
        raise DoraError(f"{path}: has no image of split {split!r}; {WAY_OUT}")


def read_coco_captions(path: Path, *, each_caption: bool) -> Iterator[VLRow]:
    """Yield the captions of COCO's own `captions_*.json`: `images` and `annotations`.

    Args:
        path: the file.
        each_caption: whether each caption is a row, or each image that has one.

    Raises:
        DoraError: naming the file, row and field; also for a caption of no image, and for
            Karpathy's file, which is read by split.
    """
    raw = read_json_object(path, WAY_OUT)
    if "annotations" not in raw and "images" in raw:
        raise DoraError(
            f"{path}: has no 'annotations'; of Karpathy's dataset_coco.json, say which images "
            f"(--split {', '.join(_SPLITS)})"
        )
    files = {
        number_of(row, "id", where): text_of(row, "file_name", where)
        for where, row in rows_of(value_of(raw, "images", str(path)), f"{path}, 'images'")
    }
    captions: dict[int, list[str]] = {}
    annotations = value_of(raw, "annotations", str(path))
    for where, row in rows_of(annotations, f"{path}, 'annotations'"):
        image = number_of(row, "image_id", where)
        if image not in files:
            raise DoraError(f"{where}: image {image} is not among 'images'; {WAY_OUT}")
        captions.setdefault(image, []).append(text_of(row, "caption", where).strip())
    for image, own in captions.items():
        where = f"{path}, image {image}"
        name = Path(files[image]).stem
        yield from _rows("caption", str(image), own, name, where, each_caption)


def read_clip_captions(
    path: Path,
    task: Literal["tvc", "yc2c"],
    subtitles: Subtitles = NO_SUBTITLES,
    *,
    each_caption: bool,
) -> Iterator[VLRow]:
    """Yield the captions of clips, a JSON object a line as TVC and the VALUE benchmark publish.

    `clip_id`, `vid_name`, `ts` (from and to, seconds) and `descs`, a list of objects with `desc`;
    without `descs` in a hidden test. The source is what is said in the moment.

    Args:
        path: the file.
        task: which of the two it is of.
        subtitles: what is said in the clips.
        each_caption: whether each caption is a row, or each moment.

    Raises:
        DoraError: naming the file, line and field.
    """
    for where, row in json_rows(path, _SAMPLE):
        name, clip = id_of(row, "clip_id", where), text_of(row, "vid_name", where)
        span = span_of(value_of(row, "ts", where), where)
        captions: list[str] = []
        if "descs" in row:
            told = rows_of(row["descs"], f"{where}, 'descs'")
            captions = [text_of(desc, "desc", inner).strip() for inner, desc in told]
        said = subtitles.text(clip, span)
        yield from _rows(task, name, captions, clip, where, each_caption, said, span)


def _rows(
    task: Task,
    name: str,
    captions: Sequence[str],
    visual: str,
    where: str,
    each_caption: bool,
    source: str = "",
    span: Span | None = None,
) -> Iterator[VLRow]:
    """Yield a row for each caption, or one for all of them."""
    common: dict[str, Any] = {
        "references": tuple(captions),
        "visuals": (visual,),
        "span": span,
        "where": where,
    }
    if not each_caption:
        yield VLRow(task, name, source, tuple(dict.fromkeys(captions)), **common)
        return
    if not captions:
        raise wrong("descs", "captions to train on", None, where)
    for number, caption in enumerate(captions):
        yield VLRow(task, f"{name}#{number}", source, (caption,), **common)
