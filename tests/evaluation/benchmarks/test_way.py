"""From a benchmark's files to its figures, as docs/benchmarks.md does it, with a tiny LLaVA."""

import base64
import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("PIL", reason="the vision extra is not installed")

from dora_jax import cli
from dora_jax.answer import answer
from dora_jax.checkpoint.hf import write_hf_folder
from dora_jax.evaluation.benchmarks.__main__ import main
from tests.checkpoint import tiny_model
from tests.data.pictures import draw
from tests.evaluation.benchmarks.published import lines, mmbench_table
from tests.models import towers

TEXT = (Path(__file__).parents[3] / "docs" / "benchmarks.md").read_text()
WAY = re.search(r"```bash\n(.*?)\n```", TEXT, re.DOTALL).group(1).splitlines()
GREYS = (20, 220)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with room for the template's words, and two pictures."""
    folder = tmp_path_factory.mktemp("way")
    towers.write_folder(folder / "tower", "clip")
    config = dataclasses.replace(tiny_model.CONFIG, max_position_embeddings=1024)
    params = tiny_model.our_params(tiny_model.hf_weights())
    write_hf_folder(folder / "language", config, params, tiny_model.tokenizer(), dtype="float32")
    parts = ["--vision", str(folder / "tower"), "--model", str(folder / "language")]
    cli.main(["llava", *parts, "--out", str(folder / "llava")])
    for grey in GREYS:
        draw(folder / "val2014" / f"{grey}.png", grey)
    return folder


def run(command, capsys):
    """Run a command of the docs; return what it prints."""
    words = shlex.split(command)
    capsys.readouterr()
    if words[0] == "dora-jax":
        cli.main(words[1:])
    else:
        assert words[:3] == ["python", "-m", "dora_jax.evaluation.benchmarks"]
        main(words[3:])
    return capsys.readouterr().out


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def said(row):
    """What the model says to a row, asked by itself."""
    return answer(
        row["prompt"],
        model="llava",
        template="vicuna",
        images=[row["image"]],
        max_new_tokens=128,
    )


def test_pope_by_the_commands_of_the_docs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    labels = {"random": ("yes", "no"), "popular": ("no", "no"), "adversarial": ("yes", "yes")}
    for subset, given in labels.items():
        rows = [
            {"question_id": n, "image": f"{grey}.png", "text": "Is there a cat?", "label": label}
            for n, (grey, label) in enumerate(zip(GREYS, given, strict=True), 1)
        ]
        lines(folder / f"coco_pope_{subset}.json", rows)
    ask, generate, score = WAY
    assert json.loads(run(ask, capsys)) == {"prompts": "pope.jsonl", "questions": 6, "images": 2}
    assert "6 lines written" in run(generate, capsys)
    answers = rows_of(folder / "pope_answers.jsonl")
    assert [row["question_id"] for row in answers] == [f"{s}/{n}" for s in labels for n in (1, 2)]
    dark, light = answers[:2]
    assert dark["prompt"] == light["prompt"]
    assert dark["log_prob"] != light["log_prob"]  # the picture is seen
    assert [row["completion"] for row in (dark, light)] == [said(dark), said(light)]
    # Half a sentence of noise has no "no" in it: all is answered with yes.
    assert not any(re.search(r"\b(No|no|not)\b", row["completion"]) for row in answers)
    found = json.loads(run(score, capsys))
    assert [found["subsets"][s]["accuracy"] for s in labels] == [50.0, 0.0, 100.0]
    assert found["f1"] == pytest.approx((200 / 3 + 0 + 100) / 3)
    assert found["missing"]["count"] == found["extra"]["count"] == 0


def test_mmbench_with_the_images_of_its_table(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    pictures = [
        base64.b64encode((folder / "val2014" / f"{grey}.png").read_bytes()).decode()
        for grey in GREYS
    ]
    rows = [
        (7, "Which?", ("low", "wor"), {"answer": "A", "image": pictures[0]}),
        (8, "Which?", ("low", "wor"), {"answer": "B", "image": pictures[1]}),
        (1_000_007, "Which?", ("wor", "low"), {"answer": "B", "image": "7"}),
    ]
    mmbench_table(folder / "mmbench.tsv", rows)
    ask, generate, score = (
        re.sub("--questions .*", "--table mmbench.tsv", line)
        .replace(" --images val2014", "")
        .replace("pope", "mmbench")
        for line in WAY
    )
    assert json.loads(run(ask, capsys))["images"] == 2
    assert "3 lines written" in run(generate, capsys)
    answers = rows_of(folder / "mmbench_answers.jsonl")
    assert [row["question_id"] for row in answers] == ["7", "8", "1000007"]
    assert answers[0]["image"] == answers[2]["image"]
    shown = [base64.b64encode((folder / row["image"]).read_bytes()).decode() for row in answers]
    assert shown == [*pictures, pictures[0]]
    assert [row["completion"] for row in answers[:2]] == [said(row) for row in answers[:2]]
    found = json.loads(run(score, capsys))
    assert (found["accuracy"], found["unread"]["count"]) == (0.0, 3)  # noise names no option
    assert found["missing"]["count"] == found["extra"]["count"] == 0
    # As a better model would have answered, but for one.
    letters = [row | {"completion": letter} for row, letter in zip(answers, "AAB", strict=True)]
    lines(folder / "mmbench_answers.jsonl", letters)
    assert json.loads(run(score, capsys))["accuracy"] == 50.0
