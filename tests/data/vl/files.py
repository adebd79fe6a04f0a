"""Small files in the published layouts."""

import json
from pathlib import Path
from typing import Any


def write(path: Path, content: Any) -> Path:
    """Write JSON; a list to `.jsonl` as a line each."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        path.write_text(json.dumps(content))
    return path


QUESTIONS = {
    "data_subtype": "val2014",
    "questions": [
        {"question_id": 420, "image_id": 42, "question": "What is it?"},
        {"question_id": 421, "image_id": 42, "question": "How many?"},
    ],
}
ANNOTATIONS = {
    "annotations": [
        {
            "question_id": 420,
            "answers": [{"answer": a} for a in ["a dog"] * 6 + ["Dog."] + ["puppy"] * 2 + ["the"]],
        },
        {"question_id": 421, "answers": [{"answer": "one"}] * 10},
    ]
}
LABELLED = [
    {
        "question_id": 7,
        "img_id": "COCO_val2014_000000000042",
        "sent": "Is it a dog?",
        "label": {"yes": 1, "no": 0.3, "maybe": 0},
    },
    {"question_id": 8, "img_id": "COCO_val2014_000000000043", "sent": "Why?", "label": {}},
]
KARPATHY = {
    "images": [
        {
            "split": split,
            "filename": f"COCO_val2014_{n:012d}.jpg",
            "cocoid": n,
            "sentences": [{"raw": f"Caption {n}. "}, {"raw": f"Another {n}."}],
        }
        for n, split in enumerate(["train", "restval", "val", "test"])
    ]
}
TVQA = [
    {
        "qid": 5,
        "q": "Why?",
        **{f"a{n}": f"Answer {n}." for n in range(5)},
        "answer_idx": 2,
        "vid_name": "s01e01_clip_02",
        "show_name": "A show",
        "ts": "1.5-4.0",
    },
    {"qid": 6, "q": "Who?", "a0": "Ann", "a1": "Ben", "vid_name": "s02", "ts": "nan-nan"},
]
SUBTITLES = [
    {
        "vid_name": "s01e01_clip_02",
        "sub": [
            {"text": " Ann :  Hi. ", "start": 0.2, "end": 1.0},
            {"text": "Ben : Ho.", "start": 1.4, "end": 2.0},
            {"text": "Ann : Bye.", "start": 3.9, "end": 5.0},
            {"text": "Ben : Bye.", "start": 4.0, "end": 5.0},
        ],
    },
    {"vid_name": "silent", "sub": []},
]
HOW2QA = (
    'vid1,[7.2:18.0],10,12,16,"How many, in all?",1\n'
    "vid1,[19.0:21.0],red,green,blue,Which colour?,white\n"
)
CLIP_CAPTIONS = [
    {
        "vid_name": "s01e01_clip_02",
        "duration": 9.0,
        "ts": [1.5, 4.0],
        "clip_id": 86,
        "descs": [{"desc": "Ben waves. ", "desc_id": 1, "type": "v"}, {"desc": "Ben greets Ann."}],
    }
]
