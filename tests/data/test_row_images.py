"""Rows that name images: where they stand in the text, and what becomes of bad ones."""

import json
import logging

import numpy as np
import pytest

pytest.importorskip("PIL", reason="the vision extra is not installed")

from PIL import Image

from dora_jax.data.row_images import BAD_IMAGE, OTHER_NUMBER, RowImages
from dora_jax.data.sources import read_source
from dora_jax.data.splits import read_examples
from dora_jax.errors import DoraError
from dora_jax.training.config import DataConfig
from tests.data.pictures import draw, said, write_rows


def read(tmp_path, *rows, **how):
    write_rows(tmp_path / "rows.jsonl", list(rows))
    return read_source(tmp_path / "rows.jsonl", RowImages(**how))


@pytest.fixture
def folder(tmp_path):
    for n in (1, 2):
        draw(tmp_path / f"{n}.png", n)
    return tmp_path


def test_mix665k_is_read_as_it_is_published(folder):
    """A JSON array; the image of a message goes before its text; some rows have none."""
    rows = [
        {
            "id": "a",
            "image": "1.png",
            "conversations": said("What is it?\n<image>", "A dot.", "Where?", "There."),
        },
        {"id": "b", "conversations": said("Hello", "Hi")},
    ]
    (folder / "mix.json").write_text(json.dumps(rows))
    (seen, text), left_out = read_source(folder / "mix.json")
    assert [turn.text for turn in seen.turns] == ["<image>\nWhat is it?", "A dot.", "Where?"]
    assert (seen.prompt, seen.answer) == ("Where?", "There.")
    (image,) = seen.images
    assert (image.name, image.path) == ("1.png", str(folder / "1.png"))
    assert image.size == (folder / "1.png").stat().st_size
    assert (text.prompt, text.images) == ("Hello", ())
    assert left_out == {}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "What?", "output": "x", "image": "1.png"}, "<image>\nWhat?"),
        ({"question": "What? <image>", "answer": "x", "image": "1.png"}, "<image>\nWhat?"),
        (
            {"instruction": "<image> or <image>?", "output": "x", "images": ["1.png", "2.png"]},
            "<image> or <image>?",
        ),
        (
            {"instruction": "Same?", "output": "x", "images": ["1.png", "2.png"]},
            "<image>\n<image>\nSame?",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image"}, {"type": "text", "text": "What?"}],
                    },
                    {"role": "assistant", "content": "x"},
                ],
                "images": ["2.png"],
            },
            "<image>\nWhat?",
        ),
    ],
)
def test_every_format_may_name_images(folder, row, prompt):
    ((example,), _) = read(folder, row)
    assert example.prompt == prompt
    assert [image.name for image in example.images] == row.get("images", [row.get("image")])


def test_the_first_question_has_the_images_not_the_system_message(folder):
    turns = [{"from": "system", "value": "Be brief."}, *said("What?", "x", "Where?", "y")]
    ((example,), _) = read(folder, {"conversations": turns, "image": "1.png"})
    assert [turn.text for turn in example.turns] == ["Be brief.", "<image>\nWhat?", "x", "Where?"]


def test_more_images_than_marks_are_counted_too(folder):
    row = {"instruction": "<image> and", "output": "x", "images": ["1.png", "2.png"]}
    (_,), left_out = read(folder, row, {"instruction": "What?", "output": "x", "image": "1.png"})
    assert left_out == {OTHER_NUMBER: 1}


def test_options_may_stand_beside_a_question(folder):
    row = {"question": "Left?", "answer": "yes", "options": ["yes", "no"], "image": "1.png"}
    ((example,), _) = read(folder, row)
    assert (example.answer, example.options) == ("yes", ("yes", "no"))


def test_the_same_question_about_another_image_is_another_one(folder):
    rows = [{"question": "What?", "answer": "x", "image": f"{n}.png"} for n in (1, 2)]
    (one, two), _ = read(folder, *rows)
    assert one.asked != two.asked


def test_images_may_be_elsewhere(folder, tmp_path):
    moved = draw(tmp_path / "elsewhere" / "3.png", 3)
    row = {"question": "What?", "answer": "x", "image": "3.png"}
    ((example,), _) = read(folder, row, folder=tmp_path / "elsewhere")
    assert example.images[0].path == str(moved)


BROKEN = (
    {"question": "What?", "answer": "x", "image": "none.png"},
    {"question": "What?", "answer": "x", "image": "text.png"},
    {"question": "What?", "answer": "x", "image": "1.png"},
)


def test_bad_images_are_skipped_counted_and_named(folder, caplog):
    (folder / "text.png").write_text("no image")
    with caplog.at_level(logging.WARNING):
        (example,), left_out = read(folder, *BROKEN)
    assert example.images[0].name == "1.png"
    assert left_out == {BAD_IMAGE: 2}
    first, second = [record.getMessage() for record in caplog.records]
    assert "rows.jsonl, line 1: left out" in first
    assert "none.png: is no image that can be read (No such file or directory)" in first
    assert "line 2" in second
    assert "text.png: is no image" in second


def test_as_many_bad_images_are_named_as_is_said_and_the_rest_counted(folder, caplog):
    rows = [{"question": f"{n}?", "answer": "x", "image": f"none{n}.png"} for n in range(22)]
    with caplog.at_level(logging.WARNING):
        _, left_out = read(folder, *rows, BROKEN[-1])
    assert left_out == {BAD_IMAGE: 22}
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 20
    assert ["more of them are counted only" in line for line in told] == [False] * 19 + [True]


def test_or_they_are_an_error(folder):
    with pytest.raises(DoraError, match=r"rows.jsonl, line 1: .*none.png: is no image .*--data."):
        read(folder, *BROKEN, bad="error")


def test_a_folder_that_holds_none_of_them_is_the_error(folder, tmp_path):
    row = {"question": "What?", "answer": "x", "image": "1.png"}
    with pytest.raises(DoraError, match=r"no image of its rows can be read, of 2: .*image-folder"):
        read(folder, row, row | {"image": "2.png"}, folder=tmp_path / "mistyped")


def test_rows_to_evaluate_have_whole_images(folder):
    """Damage in the middle of a file shows before anything is trained."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / "2.png")
    content = bytearray((folder / "2.png").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (folder / "2.png").write_bytes(content)
    rows = [{"question": "What?", "answer": "x", "image": f"{n}.png"} for n in (1, 2)]
    assert len(read(folder, *rows)[0]) == 2
    (example,), left_out = read(folder, *rows, whole=True)
    assert (example.images[0].name, left_out) == ("1.png", {BAD_IMAGE: 1})
    config = DataConfig(
        train=write_rows(
            folder / "t.jsonl", [{"question": f"{n}?", "answer": "x"} for n in range(3)]
        ),
        eval=write_rows(folder / "e.jsonl", rows),
    )
    assert read_examples(config).left_out["evaluation"] == {BAD_IMAGE: 1}


def test_images_can_be_left_out(folder):
    rows = [
        {
            "conversations": said("<image>\nWhat?", "x", "And <image> here?", "y"),
            "images": ["a", "b"],
        }
    ]
    ((example,), _) = read(folder, *rows, images="leave_out")
    assert [turn.text for turn in example.turns] == ["What?", "x", "And  here?"]
    # Named alone, so that the same question about another image is another one.
    assert [image.name for image in example.images] == ["a", "b"]
    config = DataConfig(
        train=write_rows(
            folder / "t.jsonl", [{"question": "?", "answer": "x", "image": n} for n in "abc"]
        ),
        eval=write_rows(folder / "e.jsonl", rows),
        images="leave_out",
    )
    splits = read_examples(config).splits
    assert [len(splits[name]) for name in ("train", "validation", "evaluation")] == [2, 1, 1]
    assert not any(example.images for split in splits.values() for example in split)


def test_another_number_of_marks_is_counted(folder):
    row = {"instruction": "<image> and <image>", "output": "x", "image": "1.png"}
    good = {"instruction": "What?", "output": "x", "image": "1.png"}
    (example,), left_out = read(folder, row, good)
    assert left_out == {OTHER_NUMBER: 1}
    assert example.prompt == "<image>\nWhat?"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "1.png", "images": ["1.png"]}, "has both 'image' and 'images'"),
        ({"image": {"bytes": "x", "path": None}}, "must be the names of files, not dict"),
        ({"images": [""]}, "must be the names of files"),
        ({"image": 5}, "must be the names of files, not int"),
        ({"image": True}, "must be the names of files, not bool"),
    ],
)
def test_what_is_no_name_is_refused(folder, row, message):
    with pytest.raises(DoraError, match=rf"line 1: .*{message}"):
        read(folder, {"instruction": "What?", "output": "x", **row})
