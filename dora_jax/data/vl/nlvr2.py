"""NLVR2: statements about two photographs, to be judged."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dora_jax.data.fields import text_of, value_of, wrong
from dora_jax.data.jsonl import json_rows
from dora_jax.data.vl.row import VLRow

ANSWERS = ("true", "false")
_SAMPLE = (
    '{"identifier": "dev-850-0-0", "sentence": "There is a dog in each image.", "label": "True"}'
)


def read_nlvr2(path: Path) -> Iterator[VLRow]:
    """Yield NLVR2's rows, a JSON object a line as it was published, or LXMERT's list of them.

    `identifier` (`dev-850-0-0`), `sentence`, and `label` ("True", "False"; LXMERT's 1, 0); a label
    is missing in a hidden test. The images are the identifier without its last number, with
    `-img0` (left) and `-img1`; or LXMERT's `img0` and `img1`, whose text is `sent` and whose
    identifier is `uid`. The target is "true" or "false".

    Raises:
        DoraError: naming the file, line and field.
    """
    for where, row in json_rows(path, _SAMPLE):
        is_listed = isinstance(row, dict) and "uid" in row
        name = text_of(row, "uid" if is_listed else "identifier", where)
        if is_listed:
            images = (text_of(row, "img0", where), text_of(row, "img1", where))
        else:
            pair = name.rpartition("-")[0]
            if not pair:
                raise wrong("identifier", "a name such as dev-850-0-0", name, where)
            images = (f"{pair}-img0", f"{pair}-img1")
        answers = (_answer(row, where),) if "label" in row else ()
        yield VLRow(
            "nlvr",
            name,
            text_of(row, "sent" if is_listed else "sentence", where),
            answers,
            references=answers,
            visuals=images,
            where=where,
        )


def _answer(row: dict[str, Any], where: str) -> str:
    label = value_of(row, "label", where)
    shown = {1: "true", 0: "false"}.get(label) if isinstance(label, int) else str(label).lower()
    if shown not in ANSWERS:
        raise wrong("label", "True or False (or 1 or 0)", label, where)
    return shown
