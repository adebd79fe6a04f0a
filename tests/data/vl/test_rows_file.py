"""Published annotations to rows that every command reads, by the command."""

import json

import pytest

from dora_jax.data.formats import read_row
from dora_jax.data.vl.__main__ import main
from dora_jax.data.vl.row import VLRow
from dora_jax.data.vl.rows_file import record, write_rows
from dora_jax.errors import DoraError


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_row_is_read_back_as_an_example():
    row = VLRow(
        "vqa",
        "7",
        "What is it?",
        ("dog", "puppy"),
        (1.0, 0.3),
        references=("dog", "dog", "puppy"),
        visuals=("42",),
    )
    example = read_row(record(row), "")
    assert example.prompt == "vqa: What is it?"
    assert (example.answer, example.task, example.metric) == ("dog", "vqa", "vqa")
    assert example.targets == (("dog", 1.0), ("puppy", 0.3))
    assert example.references == row.references


def test_a_clip_has_its_part():
    row = VLRow("tvc", "1", "Ann: I.", ("A man.",), visuals=("clip",), span=(1.5, 4.0))
    found = record(row)
    assert (found["span"], found["metric"], found["images"]) == ([1.5, 4.0], "cider", ["clip"])


def test_one_word_in_two_spellings_is_one_target():
    found = record(VLRow("gqa", "1", "What?", ("dog ", "dog"), (0.3, 0.6)))
    assert found["output"] == "dog"
    assert "targets" not in found


@pytest.mark.parametrize("weights", [(0.3, 0.6), (0.6, 0.3)])
def test_of_two_spellings_the_better_weight_counts(weights):
    row = VLRow("vqa", "1", "What?", ("dog ", "cat", "dog"), (weights[0], 0.5, weights[1]))
    assert record(row)["targets"] == {"dog": 0.6, "cat": 0.5}
    assert record(row)["output"] == "dog"


def test_rows_without_an_answer_are_left_out_and_counted(tmp_path):
    rows = [VLRow("gqa", "1", "What?", ("dog",)), VLRow("gqa", "2", "What?", ())]
    assert write_rows(tmp_path / "rows.jsonl", rows) == (1, 1)
    with pytest.raises(DoraError, match="none of 1 rows has an answer"):
        write_rows(tmp_path / "none.jsonl", rows[1:])
    assert not (tmp_path / "none.jsonl").exists()


def test_the_command_tells_files_apart(tmp_path, capsys):
    labelled = [{"question_id": 1, "img_id": "a", "sent": "Red?", "label": {"yes": 1.0}}]
    (tmp_path / "list.json").write_text(json.dumps(labelled))
    own = {"1": {"question": "Red?", "imageId": "a", "answer": "no"}}
    (tmp_path / "questions.json").write_text(json.dumps(own))
    for name, answer in (("list", "yes"), ("questions", "no")):
        out = tmp_path / f"{name}.jsonl"
        main(["gqa", str(tmp_path / f"{name}.json"), "--out", str(out)])
        (row,) = lines(out)
        assert (row["instruction"], row["output"]) == ("gqa: Red?", answer)
    assert "questions.jsonl: 1 rows" in capsys.readouterr().out


def test_captions_are_a_row_each_to_train_and_one_to_be_scored(tmp_path):
    sentences = [{"raw": "A dog."}, {"raw": "A big dog."}]
    image = {"filename": "x_01.jpg", "cocoid": 1, "split": "test", "sentences": sentences}
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": [image]}))
    for use, count in (("train", 2), ("eval", 1)):
        out = tmp_path / f"{use}.jsonl"
        main(["caption", str(path), "--out", str(out), "--split", "test", "--use", use])
        found = lines(out)
        assert len(found) == count
        assert found[0]["references"] == ["A dog.", "A big dog."]
        assert found[0]["instruction"] == "caption:"


def test_what_is_wrong_ends_the_command_with_its_place(tmp_path):
    path = tmp_path / "list.json"
    path.write_text('[{"question_id": 1}]')
    with pytest.raises(SystemExit, match=r"error: .*list\.json.*'sent'"):
        main(["vqa", str(path), "--out", str(tmp_path / "out.jsonl")])
