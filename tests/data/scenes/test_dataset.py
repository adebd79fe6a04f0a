"""The files that the command writes, read by others."""

import dataclasses
import json
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the scenes extra is not installed")
pytest.importorskip("PIL", reason="the scenes extra is not installed")

from PIL import Image

from dora_jax.data.formats import read_row
from dora_jax.data.scenes import __main__ as command
from dora_jax.data.scenes.dataset import write
from dora_jax.data.scenes.families import FAMILY_A, FAMILY_B
from dora_jax.data.scenes.render import render
from dora_jax.data.scenes.rows import row
from dora_jax.data.sources import read_source
from dora_jax.errors import DoraError


def run(folder, *arguments):
    command.main(["--out", str(folder), "--rows", "6", *arguments])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_training_rows_are_llava_s(tmp_path, capsys):
    run(tmp_path, "--family", "B", "--seed", "3")
    assert capsys.readouterr().out.strip() == str(tmp_path / "train.json")
    records = json.loads((tmp_path / "train.json").read_text())
    assert len({record["id"] for record in records}) == len(records) == 6
    for index, record in enumerate(records):
        assert set(record) == {"id", "image", "conversations"}
        expected = row("conversations", FAMILY_B, "train", index, seed=3)
        human, gpt = record["conversations"][::2], record["conversations"][1::2]
        assert {turn["from"] for turn in human} == {"human"}
        assert {turn["from"] for turn in gpt} == {"gpt"}
        assert human[0]["value"].startswith("<image>\n" + expected.questions[0].question + "\n")
        assert not any("<image>" in turn["value"] for turn in human[1:])
        assert [turn["value"] for turn in gpt] == [q.answer for q in expected.questions]
        with Image.open(tmp_path / record["image"]) as image:
            assert (image.format, image.mode) == ("PNG", "RGB")
            np.testing.assert_array_equal(np.asarray(image), render(expected.scenes[0]))
        # Our own reader of ShareGPT rows takes them as they are.
        assert read_row(record, "train.json").answer == expected.questions[-1].answer


def test_test_rows_have_options_and_kinds(tmp_path):
    run(tmp_path, "--split", "test", "--task", "questions")
    records = lines(tmp_path / "test.jsonl")
    assert [record["task"] for record in records] == list(FAMILY_A.kinds[:6])
    for record in records:
        assert set(record) == {"id", "image", "question", "answer", "options", "task"}
        assert record["answer"] in record["options"]
        assert (tmp_path / record["image"]).exists()
        assert record["question"].endswith("?\nAnswer the question using a single word or phrase.")
    (first, *_), left_out = read_source(tmp_path / "test.jsonl")
    assert (list(first.options), first.task) == (records[0]["options"], records[0]["task"])
    assert first.prompt == "<image>\n" + records[0]["question"]
    assert left_out == {}


def test_pairs_have_two_pictures(tmp_path):
    run(tmp_path, "--task", "pairs")
    run(tmp_path, "--task", "pairs", "--split", "validation")
    records = json.loads((tmp_path / "train.json").read_text())
    for record in (*records, *lines(tmp_path / "validation.jsonl")):
        assert len(record["image"]) == 2
        assert all((tmp_path / path).exists() for path in record["image"])
    value = records[0]["conversations"][0]["value"]
    assert value.startswith("<image>\n<image>\n")
    assert value.endswith("\nIs the statement true or false?")


def test_a_clip_is_one_picture_of_frames_side_by_side(tmp_path):
    run(tmp_path, "--task", "clip-questions", "--canvas", "32")
    run(tmp_path, "--task", "clip-questions", "--canvas", "32", "--split", "test")
    (first, *_, fifth, _) = json.loads((tmp_path / "train.json").read_text())
    family = dataclasses.replace(FAMILY_A, canvas=32)
    expected = row("clip-questions", family, "train", 0)
    with Image.open(tmp_path / first["image"]) as image:
        frames = np.split(np.asarray(image), family.frames, axis=1)
    np.testing.assert_array_equal(frames, [render(scene) for scene in expected.scenes])
    question = expected.questions[0]
    assert first["conversations"][0]["value"] == (
        f"<image>\n{question.question}\nOptions: {'; '.join(question.options)}."
    )
    subtitle = row("clip-questions", family, "train", 4).questions[0].subtitle
    assert fifth["conversations"][0]["value"].startswith(f"<image>\n{subtitle}\n")
    first, *_, last = lines(tmp_path / "test.jsonl")
    untold, told = (row("clip-questions", family, "test", n).questions[0] for n in (0, 5))
    assert first["question"].split("\n")[0] == untold.question
    assert last["question"].startswith(f"{told.subtitle}\n{told.question}\nOptions: ")


def test_turns_of_a_tested_conversation_have_names_of_their_own(tmp_path):
    run(tmp_path, "--split", "test")
    names = [record["id"] for record in lines(tmp_path / "test.jsonl")]
    assert len(set(names)) == len(names) > 6


def test_again_nothing_is_written_and_more_rows_begin_with_the_same(tmp_path):
    run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    records = json.loads((tmp_path / "train.json").read_text())
    run(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == before
    run(tmp_path, "--rows", "8")
    pictures = [path for path in before if path.suffix == ".png"]
    assert [path.stat().st_mtime_ns for path in pictures] == [before[path] for path in pictures]
    assert json.loads((tmp_path / "train.json").read_text())[:6] == records


def test_pictures_of_other_settings_have_other_names(tmp_path):
    run(tmp_path)
    first = {path.name for path in (tmp_path / "images").iterdir()}
    for arguments in (["--seed", "1"], ["--task", "captions"], ["--canvas", "48"]):
        run(tmp_path, *arguments)
    assert len(first) == 6
    assert len(list((tmp_path / "images").iterdir())) == 24
    assert first < {path.name for path in (tmp_path / "images").iterdir()}


def test_knobs_start_from_the_family_that_is_named(tmp_path):
    run(tmp_path, "--family", "B", "--colours", "green", "brown", "--task", "captions")
    texts = [
        r["conversations"][1]["value"] for r in json.loads((tmp_path / "train.json").read_text())
    ]
    assert any("green" in text for text in texts)
    assert not any(colour in text for text in texts for colour in ("pink", "red", "cyan"))
    assert any(f"{word} picture" in text for text in texts for word in ("white", "beige"))


def test_mistakes_are_one_message(tmp_path):
    with pytest.raises(SystemExit, match=r"error: Family.colours: unknown 'gren' \(did you mean"):
        run(tmp_path, "--colours", "red", "gren")
    assert not list(tmp_path.iterdir())


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DoraError, match=r"pip install 'dora-jax\[scenes\]'"):
        write(tmp_path, FAMILY_A, "train", 1)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.delitem(sys.modules, "dora_jax.data.scenes.digits")
    with pytest.raises(DoraError, match=r"pip install 'dora-jax\[scenes\]'"):
        import dora_jax.data.scenes.digits  # noqa: F401


@pytest.mark.parametrize("rows", [0, -3])
def test_no_rows_are_no_data_set(tmp_path, rows):
    with pytest.raises(DoraError, match=f"rows must be at least 1; got {rows}"):
        write(tmp_path, FAMILY_A, "train", rows)
    assert list(tmp_path.iterdir()) == []
