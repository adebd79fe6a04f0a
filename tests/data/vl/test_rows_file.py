"""Published annotations to rows that every command reads, by the command."""

import json

import pytest

from dora_jax.data.formats import read_row
from dora_jax.data.vl.__main__ import main
from dora_jax.data.vl.row import VLRow
from dora_jax.data.vl.rows_file import record, write_rows
from dora_jax.errors import DoraError
from tests.data.vl import files


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
    assert write_rows(tmp_path / "rows.jsonl", rows) == (1, 1, 0)
    with pytest.raises(DoraError, match=r"none\.jsonl: none of 1 rows has an answer"):
        write_rows(tmp_path / "none.jsonl", rows[1:])
    with pytest.raises(DoraError, match=r"given\.json: none of 1 rows has an answer"):
        write_rows(tmp_path / "none.jsonl", rows[1:], tmp_path / "given.json")
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


def refused(folder, message, *arguments):
    """Check what the command says, and that it wrote nothing."""
    out = folder / "out.jsonl"
    with pytest.raises(SystemExit, match=message):
        main([*map(str, arguments), "--out", str(out)])
    assert not out.exists()


def test_what_a_published_file_needs_beside_it_is_named(tmp_path):
    questions = files.write(tmp_path / "questions.json", files.QUESTIONS)
    karpathy = files.write(tmp_path / "dataset_coco.json", files.KARPATHY)
    coco = files.write(tmp_path / "captions.json", {"images": [], "annotations": []})
    refused(tmp_path, r"questions\.json: .*VQAv2.* \(--annotations\)", "vqa", questions)
    needs = r"dataset_coco\.json: .* say which images \(--split train, val, test\)"
    refused(tmp_path, needs, "caption", karpathy)
    whole = r"captions\.json: .*: leave --split out"
    refused(tmp_path, whole, "caption", coco, "--split", "val")


def test_lists_of_labels_may_be_lines_too(tmp_path):
    path = files.write(tmp_path / "vqa.jsonl", files.LABELLED)
    main(["vqa", str(path), "--out", str(tmp_path / "out.jsonl")])
    assert [row["output"] for row in lines(tmp_path / "out.jsonl")] == ["yes"]


@pytest.mark.parametrize("name", ["empty.json", "empty.jsonl"])
def test_an_empty_file_is_the_one_that_is_named(tmp_path, name):
    (tmp_path / name).write_text("[]" if name.endswith("json") else "")
    refused(tmp_path, rf"error: \S*{name}: there are no rows", "nlvr", tmp_path / name)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (
            "vqa",
            ["--subtitles", "s.jsonl", "--localised"],
            "--subtitles is of tvqa, how2qa, tvc",
        ),
        ("gqa", ["--annotations", "a.json"], "--annotations is of vqa: leave it out for gqa"),
        ("nlvr", ["--split", "test"], "--split is of caption: leave it out for nlvr"),
        ("tvc", ["--localised"], "--localised is of tvqa, how2qa: leave it out for tvc"),
        ("tvqa", ["--use", "eval"], "--use is of caption, tvc, yc2c: leave it out for tvqa"),
    ],
)
def test_an_option_of_other_tasks_is_refused(tmp_path, task, options, message):
    refused(tmp_path, message, task, tmp_path / "rows.jsonl", *options)


def test_questions_with_two_options_alike_are_counted(tmp_path, capsys):
    asked = files.TVQA[0] | {"a1": "answer 2", "ts": "nan-nan"}  # a2: "Answer 2.", the right one
    path = files.write(tmp_path / "tvqa.jsonl", [files.TVQA[0], asked, files.TVQA[1]])
    main(["tvqa", str(path), "--out", str(tmp_path / "out.jsonl")])
    told = capsys.readouterr().out
    assert "2 rows, 1 of them with two options alike, 1 without an answer left out" in told
    assert len(lines(tmp_path / "out.jsonl")) == 2
