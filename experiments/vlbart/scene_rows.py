"""VL-BART's eight tasks about scenes (docs/scenes.md): their rows, and the pictures these name.

| task      | it asks                                                                        |
|-----------|--------------------------------------------------------------------------------|
| `vqa`     | how many, whether there is one, which colour, shape, size, style, digit        |
| `gqa`     | what takes several steps: comparisons, places, sums                            |
| `nlvr`    | whether a statement about two pictures is true                                 |
| `caption` | for a sentence that tells a picture                                            |
| `tvqa`    | a multiple-choice question about a clip, which its subtitle is needed for      |
| `how2qa`  | one without a subtitle                                                         |
| `tvc`     | for a sentence that tells a clip                                               |
| `yc2c`    | for a sentence for each of its steps                                           |

Nothing is kept but the rows: their pictures are drawn again by their names.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dora_jax.analysis.atomic import write_text
from dora_jax.data.images import open_image
from dora_jax.data.nlvr import INSTRUCTION
from dora_jax.data.scenes.clip_questions import ClipQuestion
from dora_jax.data.scenes.families import FAMILY_A, FAMILY_B, Family
from dora_jax.data.scenes.render import render_all
from dora_jax.data.scenes.rows import Row, row
from dora_jax.data.scenes.scene import Split
from dora_jax.data.vl.row import CAPTION_TASKS, Task, VLRow, choice_source
from dora_jax.data.vl.rows_file import record
from dora_jax.data.vl.tower_features import Picture
from experiments.nlvr import nlvr_rows, unseen

Subject = Literal["images", "video"]
TASKS: dict[Subject, tuple[Task, ...]] = {
    "images": ("vqa", "gqa", "nlvr", "caption"),
    "video": ("tvqa", "how2qa", "tvc", "yc2c"),
}
# Clips are equally long in both: a base that never saw the last frames would not know their places.
WORLDS = {
    "A": dataclasses.replace(FAMILY_A, frames=FAMILY_B.frames),
    "B": FAMILY_B,
}
# NLVR's own sentences: a task beside those of scenes.
NLVR_REAL = "nlvr-real"
_SEVERAL_STEPS = ("compare-", "relation-", "digit-")
_NAME = re.compile(r"(\w+)-(\w+)-(\w+)-(\d+)(?:-(left|right))?")


def scene_row(task: Task, family: Family, split: Split, number: int) -> VLRow:
    """Return one row of a task; each can be made alone.

    Args:
        task: which.
        family: what the scenes are drawn from.
        split: whose scenes and digits.
        number: of the row.
    """
    (asked,) = _drawn(task, family, split, number).questions
    name = f"{family.name}-{split}-{task}-{number:06d}"
    is_caption = task in CAPTION_TASKS
    source = "" if is_caption else asked.question
    if isinstance(asked, ClipQuestion):
        source = choice_source(asked.question, asked.options, asked.subtitle)
    return VLRow(
        task,
        name,
        source,
        (asked.answer,),
        references=(asked.answer,) if is_caption else (),
        options=asked.options,
        visuals=(f"{name}-left", f"{name}-right") if task == "nlvr" else (name,),
    )


def write_scene_rows(path: Path, task: Task, family: Family, split: Split, count: int) -> None:
    """Write the first rows of a task.

    Captions are scored from 0 to 1, as all tasks are: a template's caption can be told word by
    word, so that its CIDEr-D would be most of any mean over tasks.
    """
    told = [record(scene_row(task, family, split, number)) for number in range(count)]
    own = {"metric": "cider_share"} if task in CAPTION_TASKS else {}
    write_text(path, "".join(json.dumps(row | own, ensure_ascii=False) + "\n" for row in told))


def _drawn(task: Task, family: Family, split: Split, number: int) -> Row:
    """Return the scenes of a row, and what is asked about them."""
    if task in ("vqa", "gqa"):
        kinds = [k for k in family.kinds if k.startswith(_SEVERAL_STEPS) == (task == "gqa")]
        asking = dataclasses.replace(family, kinds=tuple(kinds))
        return row("questions", asking, split, number, seed=int(task == "gqa"))
    if task == "nlvr":
        return row("pairs", family, split, number)
    if task == "caption":
        return row("captions", family, split, 2 * number)  # between them are full descriptions
    if task in ("tvqa", "how2qa"):
        # Rounds of all kinds come in turn without subtitles and with them.
        kind_round, kind = divmod(number, len(family.clip_kinds))
        own = 2 * kind_round + int(task == "tvqa")
        return row("clip-questions", family, split, own * len(family.clip_kinds) + kind)
    return row("clip-captions" if task == "tvc" else "clip-steps", family, split, number)


def pictures(name: str) -> list[Picture]:
    """Return the picture, or the frames, that a row of scenes calls by this name."""
    match = _NAME.fullmatch(name)
    assert match is not None, f"{name} is the name of a scene"
    family, split, task, number, side = match.groups()
    scenes = _drawn(task, WORLDS[family], split, int(number)).scenes  # type: ignore[arg-type]
    if side is not None:
        scenes = scenes[side == "right" :][:1]
    return list(render_all(scenes))


def write_nlvr(folder: Path, out: Path, train_rows: int, test_rows: int) -> list[str]:
    """Write rows of people's statements about three pictures, a task of its own, beside family B's.

    Args:
        folder: of NLVR's `train` and `dev`, each JSON lines and a zip of pictures.
        out: the folder of rows; gets the pictures too, in `train` and `dev`, which name them.
        train_rows: how many at most.
        test_rows: how many at most; none whose statement or boxes are trained on (`unseen`).

    Returns:
        The statements that are trained on, each once.

    Raises:
        DoraError: for a row or a picture that cannot be read, by file and line.
    """
    learnt = nlvr_rows(folder, "train", out / "train")
    tested = unseen(nlvr_rows(folder, "dev", out / "dev"), out / "dev", learnt, out / "train")
    for part, split, told in (
        ("train", "train", learnt[:train_rows]),
        ("dev", "test", tested[:test_rows]),
    ):
        lines = (_nlvr_line(part, number, row) for number, row in enumerate(told))
        write_text(out / "B" / split / f"{NLVR_REAL}.jsonl", "".join(lines))
    return list(dict.fromkeys(map(_statement, learnt[:train_rows])))


def _statement(told: dict[str, Any]) -> str:
    statement: str = told["question"].removesuffix(f"\n{INSTRUCTION}")
    return statement


def _nlvr_line(folder: str, number: int, told: dict[str, Any]) -> str:
    names = tuple(f"{folder}/{image}" for image in told["images"])
    answer = (told["answer"],)
    given = VLRow("nlvr", f"{folder}-{number}", _statement(told), answer, visuals=names)
    return json.dumps(record(given) | {"task": NLVR_REAL}) + "\n"


def nlvr_picture(folder: Path, name: str) -> Picture:
    """Return a picture that `write_nlvr` wrote to a folder in this one."""
    return np.asarray(open_image(folder / name))
