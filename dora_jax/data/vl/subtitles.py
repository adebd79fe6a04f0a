"""What is said in clips, and when."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dora_jax.data.fields import rows_of, text_of, value_of, wrong
from dora_jax.data.jsonl import json_rows
from dora_jax.errors import DoraError

_SAMPLE = '{"vid_name": "friends_s01", "sub": [{"text": "Hi.", "start": 0.8, "end": 1.9}]}'
Span = tuple[float, float]


class Said(NamedTuple):
    """A line of subtitles, from and to in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Subtitles:
    """What is said, by the clip's name."""

    by_clip: Mapping[str, Sequence[Said]] = field(default_factory=dict)

    def text(self, clip: str, span: Span | None = None) -> str:
        """Return what is said in a clip, or in a part of it; nothing of a clip that is not known.

        Args:
            clip: its name.
            span: from and to, in seconds; a line that is heard in it counts whole.
        """
        lines = self.by_clip.get(clip, ())
        if span is not None:
            lines = [line for line in lines if line.start < span[1] and line.end > span[0]]
        return " ".join(line.text for line in lines)


NO_SUBTITLES = Subtitles()


def read_subtitles(path: Path) -> Subtitles:
    """Read subtitles as TVR, TVC and the VALUE benchmark publish them.

    JSON, an object a line or a list of such: `vid_name`, and `sub`, a list of `text`, `start` and
    `end` in seconds.

    Raises:
        DoraError: naming the file, line and field; also for a clip that is there twice.
    """
    by_clip: dict[str, list[Said]] = {}
    for where, row in json_rows(path, _SAMPLE):
        clip = text_of(row, "vid_name", where)
        if clip in by_clip:
            raise DoraError(f"{where}: has clip {clip!r} again; keep one row of each")
        lines = value_of(row, "sub", where)
        # A clip in which nobody speaks.
        given = rows_of(lines, f"{where}, 'sub'") if lines != [] else ()
        by_clip[clip] = [
            Said(
                " ".join(str(value_of(line, "text", inner)).split()),
                _seconds(line, "start", inner),
                _seconds(line, "end", inner),
            )
            for inner, line in given
        ]
    return Subtitles(by_clip)


def _seconds(row: Any, name: str, where: str) -> float:
    found = value_of(row, name, where)
    if not isinstance(found, int | float) or isinstance(found, bool) or not math.isfinite(found):
        raise wrong(name, "a number of seconds", found, where)
    return float(found)


def span_of(given: Any, where: str) -> Span | None:
    """Return a moment of a clip: of `[1.5, 4]`, or of a text "1.5-4" (TVQA), "[1.5:4]" (How2QA).

    TVQA's "nan-nan" says that nobody marked it: None, the whole clip.

    Raises:
        DoraError: for anything else, or an end that is before the start.
    """
    parts = given
    if isinstance(given, str):
        # Not "-" where there is ":"; no published time is negative.
        bare = given.strip().strip("[]")
        parts = bare.split(":" if ":" in bare else "-")
    try:
        start, end = (float(part) for part in parts)
    except (TypeError, ValueError):
        raise wrong("ts", "two times in seconds, from and to", given, where) from None
    if math.isnan(start) or math.isnan(end):
        return None
    if not 0 <= start <= end < math.inf:
        raise wrong("ts", "two times in seconds, from and to", given, where)
    return start, end
