"""The command prints what the scorers say; a case a benchmark, its value worked by hand."""

import json

import pytest

from dora_jax.evaluation.benchmarks.__main__ import main
from tests.evaluation.benchmarks import published
from tests.evaluation.benchmarks.published import lines, write


def vqav2(folder):
    write(folder / "q.json", published.vqa_questions((1, 1, "What?")))
    write(folder / "a.json", published.vqa_annotations([(1, "other", "a cat", "a cat", "dog")]))
    return ["--questions", "q.json", "--annotations", "a.json"], {1: "cat"}, 60


def gqa(folder):
    write(folder / "q.json", {"1": published.gqa_question("?", "cat")})
    return ["--questions", "q.json"], {1: "Cat."}, 100


def vizwiz(folder):
    row = {"image": "v.jpg", "question": "?", "answers": published.vqa_answers("cat", "dog")}
    write(folder / "val.json", [row | {"answer_type": "other"}])
    return ["--annotations", "val.json"], {"v.jpg": "cat"}, 30


def scienceqa(folder):
    write(folder / "p.json", {"1": published.problem(1)})
    write(folder / "s.json", {"test": [], "val": ["1"]})
    return ["--problems", "p.json", "--splits", "s.json", "--split", "val"], {1: "B"}, 100


def textvqa(folder):
    row = {"question_id": 1, "image_id": "t", "question": "?", "answers": ["a", "the x"] * 5}
    write(folder / "val.json", {"data": [row]})
    return ["--annotations", "val.json"], {1: "X"}, 100


def mmbench(folder):
    rows = [(1, "?", "xy", {"answer": "A"}), (1_000_001, "?", "yx", {"answer": "B"})]
    published.mmbench_table(folder / "m.tsv", rows)
    return ["--table", "m.tsv"], {1: "A", 1_000_001: "A"}, 0


def run(monkeypatch, capsys, folder, benchmark, files, answers):
    monkeypatch.chdir(folder)
    lines(folder / "out.jsonl", [{"question_id": q, "text": t} for q, t in answers.items()])
    main([benchmark, "--answers", "out.jsonl", *files])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("case", [vqav2, gqa, vizwiz, scienceqa, textvqa, mmbench])
def test_scores(case, tmp_path, monkeypatch, capsys):
    files, answers, expected = case(tmp_path)
    found = run(monkeypatch, capsys, tmp_path, case.__name__, files, answers)
    assert found["accuracy"] == pytest.approx(expected)
    assert found["questions"] == 1


def test_pope_takes_several_files(tmp_path, monkeypatch, capsys):
    names = []
    for subset in ("random", "popular"):
        row = {"question_id": 1, "image": "i.jpg", "text": "?", "label": "yes"}
        names.append(lines(tmp_path / f"coco_pope_{subset}.json", [row]).name)
    answers = {"random/1": "Yes", "popular/1": "No"}
    found = run(monkeypatch, capsys, tmp_path, "pope", ["--questions", *names], answers)
    assert found["f1"] == pytest.approx(50)


def test_a_submission_is_written_and_what_is_missing_counted(tmp_path, monkeypatch, capsys):
    write(tmp_path / "q.json", published.vqa_questions((1, 1, "?"), (2, 1, "?")))
    files = ["--questions", "q.json", "--submission", "s.json"]
    found = run(monkeypatch, capsys, tmp_path, "vqav2", files, {1: "a cat"})
    assert found["missing"] == {"count": 1, "first": ["2"]}
    written = json.loads((tmp_path / "s.json").read_text())
    assert [row["answer"] for row in written] == ["cat", ""]


@pytest.mark.parametrize(
    ("case", "image"),
    [
        (vqav2, "COCO_val2014_000000000001.jpg"),
        (gqa, "n1.jpg"),
        (vizwiz, "v.jpg"),
        (textvqa, "t.jpg"),
    ],
)
def test_images_are_looked_for_in_their_folder(case, image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files, _, _ = case(tmp_path)
    given = [case.__name__, *files, "--prompts", "p.jsonl", "--images", "pictures"]
    with pytest.raises(SystemExit, match=f"1 of 1 images are missing: pictures/{image};"):
        main(given)


def test_bad_input_is_one_message(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"^error: q\.json: cannot be read"):
        main(["gqa", "--answers", "a.jsonl", "--questions", "q.json"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "^error: give --prompts FILE, .* or --answers FILE.*: one of the two"),
        (["--answers", "a", "--prompts", "b"], "one of the two"),
        (["--submission", "s", "--prompts", "b"], "--submission needs the answers .*: give --ans"),
    ],
)
def test_what_is_to_be_done_is_one_thing(given, message):
    with pytest.raises(SystemExit, match=message):
        main(["vqav2", "--questions", "q.json", *given])


def test_answers_of_another_file_are_no_result(tmp_path, monkeypatch, capsys):
    files, _, _ = gqa(tmp_path)
    with pytest.raises(
        SystemExit, match=r"none of the 2 answers is .* called 1, .*the answers 7, 8"
    ):
        run(monkeypatch, capsys, tmp_path, "gqa", files, {7: "Cat.", 8: "Dog."})


def test_nothing_is_written_over(tmp_path, monkeypatch, capsys):
    files, answers, _ = vqav2(tmp_path)
    before = (tmp_path / "q.json").read_text()
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "out.jsonl", [{"question_id": q, "text": t} for q, t in answers.items()])
    given = (tmp_path / "out.jsonl").read_text()
    with pytest.raises(SystemExit, match=r"out\.jsonl: exists, with something else in it"):
        main(["vqav2", "--answers", "out.jsonl", "--submission", "out.jsonl", *files])
    assert (tmp_path / "out.jsonl").read_text() == given
    (tmp_path / "COCO_val2014_000000000001.jpg").write_bytes(b"")
    with pytest.raises(SystemExit, match="error: "):
        main(["vqav2", "--prompts", "q.json", "--images", ".", *files])
    assert (tmp_path / "q.json").read_text() == before
