"""A few evaluated rows as a reader sees them: the question, its images, the right answer."""

import base64
import io
from collections.abc import Sequence

import numpy as np

from dora_jax.analysis.results import Sample
from dora_jax.data.encode import EncodedRow
from dora_jax.data.images import open_image
from dora_jax.data.tokenizer import Tokenizer

_WIDEST = 160  # pixels of a picture in a report


def sample_places(rows: int, count: int) -> list[int]:
    """Return which rows are shown: as many as asked for, evenly over all of them."""
    return [int(n) for n in np.linspace(0, rows - 1, min(count, rows)).round()]


def show(rows: Sequence[EncodedRow], count: int, tokenizer: Tokenizer) -> tuple[Sample, ...]:
    """Return rows for a report.

    Args:
        rows: the evaluated ones.
        count: how many are shown.
        tokenizer: the model's.
    """
    return tuple(
        Sample(
            question=tokenizer.decode(rows[place].prompt).strip(),
            answer=rows[place].text.strip(),
            row=place,
            images=tuple(_embedded(image.path) for image in rows[place].images),
        )
        for place in sample_places(len(rows), count)
    )


def _embedded(path: str) -> str:
    """Return a small copy of a picture as a data URI, so that a report needs no other file."""
    picture = open_image(path)
    picture.thumbnail((_WIDEST, _WIDEST))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
