import json

import pytest

from dora_jax.errors import DoraError
from dora_jax.evaluation.benchmarks import prompts
from dora_jax.evaluation.benchmarks.__main__ import main
from dora_jax.evaluation.benchmarks.prompts import write_prompts
from dora_jax.evaluation.benchmarks.question import Question
from tests.evaluation.benchmarks.published import PIXEL, lines, mmbench_table, problem, write


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_rows_name_images_from_their_own_folder(tmp_path):
    image = touch(tmp_path / "data/val2014/i.jpg")
    questions = [Question("random/1", image, "A cat?\nSay."), Question("2", None, "Grüße?")]
    out = tmp_path / "runs/new/pope.jsonl"
    found = write_prompts(questions, out)
    assert read(out) == [
        {"question_id": "random/1", "prompt": "A cat?\nSay.", "image": "../../data/val2014/i.jpg"},
        {"question_id": "2", "prompt": "Grüße?"},
    ]
    assert found == {"prompts": str(out), "questions": 2, "images": 1}


def test_images_are_found_where_folders_are_links(tmp_path, monkeypatch):
    image = touch(tmp_path / "disk/pictures/train/i.jpg")
    (tmp_path / "disk/far/away").mkdir(parents=True)
    work = tmp_path / "work"
    work.mkdir()
    (work / "images").symlink_to(tmp_path / "disk/pictures/train")
    (work / "out").symlink_to(tmp_path / "disk/far/away")
    monkeypatch.chdir(work)
    out = work / "out/p.jsonl"
    write_prompts([Question("1", work / "images/i.jpg", "?")], out)
    (row,) = read(out)
    assert (out.parent / row["image"]).samefile(image)


def test_missing_images_are_named_before_anything_is_written(tmp_path):
    there = touch(tmp_path / "0.jpg")
    missing = [tmp_path / f"{n}.jpg" for n in (1, 2, 2, 3, 4)]
    images = [there, *missing, PIXEL]
    questions = [Question(str(n), image, "?") for n, image in enumerate(images)]
    with pytest.raises(DoraError, match=r"^4 of 5 images are missing: .*/3\.jpg, \.\.\.; "):
        write_prompts(questions, tmp_path / "p.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["0.jpg"]


def test_an_image_that_the_table_holds_is_written_once(tmp_path, monkeypatch):
    other = PIXEL + b"2"
    questions = [Question(str(n), x, "?") for n, x in enumerate((PIXEL, other, bytes(PIXEL)))]
    out = tmp_path / "dev.jsonl"
    write_prompts(questions, out)
    names = [row["image"] for row in read(out)]
    assert names[0] == names[2] != names[1]
    assert [(tmp_path / name).read_bytes() for name in names] == [PIXEL, other, PIXEL]
    assert {path.name for path in (tmp_path / "dev_images").iterdir()} == {
        name.removeprefix("dev_images/") for name in names
    }
    (tmp_path / names[1]).unlink()
    written = []
    real = prompts.write_bytes
    monkeypatch.setattr(prompts, "write_bytes", lambda *x: written.append(x) or real(*x))
    write_prompts(questions, out)
    assert written == [(tmp_path / names[1], other)]


def command(monkeypatch, capsys, folder, *arguments):
    monkeypatch.chdir(folder)
    main([*arguments, "--prompts", "p.jsonl"])
    return json.loads(capsys.readouterr().out), read(folder / "p.jsonl")


def test_the_command_for_images_in_a_folder(tmp_path, monkeypatch, capsys):
    row = {"question_id": 1, "image": "i.jpg", "text": "A cat?", "label": "yes"}
    lines(tmp_path / "coco_pope_random.json", [row])
    files = ("pope", "--questions", "coco_pope_random.json")
    with pytest.raises(SystemExit, match=r"error: 1 of 1 images are missing: i\.jpg; .*--images$"):
        command(monkeypatch, capsys, tmp_path, *files)
    touch(tmp_path / "val2014/i.jpg")
    printed, rows = command(monkeypatch, capsys, tmp_path, *files, "--images", "val2014")
    assert printed == {"prompts": "p.jsonl", "questions": 1, "images": 1}
    assert [(row["question_id"], row["image"]) for row in rows] == [("random/1", "val2014/i.jpg")]


def test_the_command_for_scienceqa_s_subset(tmp_path, monkeypatch, capsys):
    write(tmp_path / "p.json", {"1": problem(), "2": problem(image="image.png")})
    write(tmp_path / "s.json", {"test": ["1", "2"]})
    touch(tmp_path / "test/2/image.png")
    files = ("scienceqa", "--problems", "p.json", "--splits", "s.json", "--images", "test")
    _, rows = command(monkeypatch, capsys, tmp_path, *files)
    assert [row.get("image") for row in rows] == [None, "test/2/image.png"]
    assert "image" not in rows[0]
    (tmp_path / "p.jsonl").unlink()
    _, rows = command(monkeypatch, capsys, tmp_path, *files, "--only-with-image")
    assert [row["question_id"] for row in rows] == ["2"]


def test_the_command_for_textvqa_s_tokens(tmp_path, monkeypatch, capsys):
    row = {"question_id": 1, "image_id": "t", "question": "which?"}
    write(tmp_path / "val.json", {"data": [row]})
    write(tmp_path / "ocr.json", {"data": [{"image_id": "t", "ocr_tokens": ["EXIT", "5"]}]})
    touch(tmp_path / "t.jpg")
    files = ("textvqa", "--annotations", "val.json", "--ocr", "ocr.json")
    _, rows = command(monkeypatch, capsys, tmp_path, *files)
    assert rows[0]["prompt"].startswith("Which?\nReference OCR token: EXIT, 5\n")


def test_the_command_for_images_in_a_table(tmp_path, monkeypatch, capsys):
    turns = [(7, "?", "ab", {}), (1_000_007, "?", "ba", {"image": "7"})]
    mmbench_table(tmp_path / "m.tsv", turns)
    printed, rows = command(monkeypatch, capsys, tmp_path, "mmbench", "--table", "m.tsv")
    assert (printed["questions"], printed["images"]) == (2, 1)
    assert [row["question_id"] for row in rows] == ["7", "1000007"]
    assert {(tmp_path / row["image"]).read_bytes() for row in rows} == {PIXEL}
