"""The eight tasks' own rows in the study's wording; the script that writes its data."""

import json

import pytest

from dora_jax.data.cloze import cloze
from dora_jax.data.commonsense import TASKS, NoLabelError, build_row
from dora_jax.data.examples import Example
from dora_jax.data.formats import read_row
from dora_jax.data.prompts import get_template
from dora_jax.data.sources import read_source
from dora_jax.data.splits import read_examples
from dora_jax.errors import DoraError
from dora_jax.training.config import DataConfig
from experiments.commonsense import build_data
from tests.checkpoint.tiny_model import tokenizer

# A row as each data set has it, the instruction of the study, and the answer: written by hand.
ROWS = {
    "boolq": (
        {"question": "is snow cold", "passage": "Snow ...", "answer": True},
        "Please answer the following question with true or false, question: is snow cold?\n\n"
        "Answer format: true/false",
        "true",
    ),
    "piqa": (
        {"goal": "Dry a cup.", "sol1": "Wipe it.", "sol2": "Fill it.", "label": 0},
        "Please choose the correct solution to the question: Dry a cup.\n\n"
        "Solution1: Wipe it.\n\nSolution2: Fill it.\n\nAnswer format: solution1/solution2",
        "solution1",
    ),
    "social_i_qa": (
        {
            "context": "Ann fell.",
            "question": "How does Ann feel?",
            "answerA": "hurt",
            "answerB": "tall",
            "answerC": "rich",
            "label": "1",
        },
        "Please choose the correct answer to the question: Ann fell. How does Ann feel?\n\n"
        "Answer1: hurt Answer2: tall Answer3: rich\n\nAnswer format: answer1/answer2/answer3",
        "answer1",
    ),
    "hellaswag": (
        {
            "activity_label": "Ice skating",
            "ctx": "A man glides. He",
            "endings": ["falls.", "flies.", "swims.", "reads."],
            "label": "0",
        },
        "Please choose the correct ending to complete the given sentence: Ice skating: A man "
        "glides. He\n\nEnding1: falls. Ending2: flies. Ending3: swims. Ending4: reads.\n\n"
        "Answer format: ending1/ending2/ending3/ending4",
        "ending1",
    ),
    "winogrande": (
        {
            "sentence": "Ann thanked Bea since _ had helped.",
            "option1": "Ann",
            "option2": "Bea",
            "answer": "2",
        },
        "Please choose the correct answer to fill in the blank to complete the given sentence: "
        "Ann thanked Bea since _ had helped.\n\n"
        "Option1: Ann Option2: Bea Answer format: option1/option2",
        "option2",
    ),
    "ARC-Easy": (
        {
            "question": "Which is hot?",
            "choices": {"text": ["ice", "fire", "snow"], "label": ["A", "B", "C"]},
            "answerKey": "B",
        },
        "Please choose the correct answer to the question: Which is hot?\n\n"
        "Answer1: ice Answer2: fire Answer3: snow\n\nAnswer format: answer1/answer2/answer3",
        "answer2",
    ),
    "ARC-Challenge": (
        {
            "question": "Which is odd?",
            "choices": {"text": ["1", "2", "4", "6", "8"], "label": ["1", "2", "3", "4", "5"]},
            "answerKey": "1",
        },
        "Please choose the correct answer to the question: Which is odd?\n\n"
        "Answer1: 1 Answer2: 2 Answer3: 4 Answer4: 6 Answer5: 8\n\n"
        "Answer format: answer1/answer2/answer3/answer4/answer5",
        "answer1",
    ),
    "openbookqa": (
        {
            "question_stem": "Water boils when it is",
            "choices": {"text": ["cold", "hot", "old", "new"], "label": ["A", "B", "C", "D"]},
            "answerKey": "B",
        },
        "Please choose the correct answer to the question: Water boils when it is\n\n"
        "Answer1: cold Answer2: hot Answer3: old Answer4: new\n\n"
        "Answer format: answer1/answer2/answer3/answer4",
        "answer2",
    ),
}


def test_there_are_eight_tasks():
    assert list(ROWS) == list(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_row_is_written_in_the_study_s_words_and_read_back(name):
    row, instruction, answer = ROWS[name]
    built = build_row(TASKS[name], row, "here")
    assert built == {
        "task": name,
        "instruction": instruction,
        "input": "",
        "output": f"the correct answer is {answer}",
        "answer": answer,
    }
    example = read_row(built, "here")
    assert example.answer == built["output"]
    assert len(example.options) == instruction.rsplit("format: ", 1)[1].count("/") + 1
    assert cloze(example) is not None


def test_the_space_around_a_text_is_kept():
    """As in the study's own rows, of PIQA above all."""
    row = ROWS["piqa"][0] | {"sol1": "Wipe it. "}
    assert (
        "Solution1: Wipe it. \n\nSolution2: Fill it."
        in (build_row(TASKS["piqa"], row, "here")["instruction"])
    )


def test_a_label_with_a_line_break_as_social_i_qa_has_them():
    row = ROWS["social_i_qa"][0] | {"label": "2\n"}
    assert build_row(TASKS["social_i_qa"], row, "here")["answer"] == "answer2"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("boolq", {"answer": "yes"}, "row 3: field 'answer' must be true or false; got 'yes'"),
        ("boolq", {"question": " "}, "field 'question' must be a text, not empty"),
        ("piqa", {"sol2": None}, "field 'sol2' must be a text"),
        ("piqa", {"label": 2}, "field 'label' must be from 0 to 1; got 2"),
        ("social_i_qa", {"label": "4"}, "field 'label' must be from 1 to 3"),
        ("hellaswag", {"endings": ["a", "b"]}, "field 'endings' must hold 4 texts"),
        ("hellaswag", {"label": "first"}, "field 'label' must be a number"),
        ("ARC-Easy", {"answerKey": "Z"}, "field 'answerKey' must be one of A, B, C; got 'Z'"),
        ("ARC-Easy", {"choices": ["a"]}, "field 'choices' must hold 'text' and 'label'"),
        ("openbookqa", {"question_stem": 3}, "field 'question_stem' must be a text"),
    ],
)
def test_a_bad_row_is_named_with_its_field(name, changes, message):
    with pytest.raises(DoraError, match=message):
        build_row(TASKS[name], ROWS[name][0] | changes, "row 3")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("winogrande", {"answer": ""}),
        ("piqa", {"label": -1}),
        ("hellaswag", {"label": ""}),
        ("ARC-Easy", {"answerKey": ""}),
    ],
)
def test_a_row_without_its_answer_is_told_apart(name, changes):
    with pytest.raises(NoLabelError):
        build_row(TASKS[name], ROWS[name][0] | changes, "row 3")


def loader(task, split):
    assert split in ("train", task.evaluation)
    first = ROWS[task.name][0]
    name = next(
        n for n in ("question", "goal", "context", "ctx", "sentence", "question_stem") if n in first
    )
    rows = [first | {name: f"{split} {n} {first[name]}"} for n in range(6)]
    unlabelled = {"winogrande": {"answer": ""}, "piqa": {"label": -1}}
    return [*rows, first | unlabelled[task.name]] if task.name in unlabelled else rows


def test_the_script_writes_the_authors_layout_and_it_is_read(tmp_path, capsys):
    out = tmp_path / "data"
    manifest = build_data.build(out, load=loader)
    assert manifest["piqa"]["left_out_without_answer"] == 2
    assert manifest["piqa"]["revision"] == "refs/convert/parquet"
    assert json.loads((out / "manifest.json").read_text()) == manifest
    config = DataConfig(
        train=out / "commonsense_170k.json", eval=out / "*" / "test.json", validation_rows=4
    )
    found = read_examples(config).splits
    assert len(found["train"]) + len(found["validation"]) == 6 * 8
    assert len(found["evaluation"]) == 6 * 8
    assert {e.task for e in found["evaluation"]} == set(TASKS)
    # Shuffled, the same way each time.
    tasks = [row["task"] for row in json.loads((out / "commonsense_170k.json").read_text())]
    assert tasks != sorted(tasks, key=list(TASKS).index)
    build_data.build(tmp_path / "again", load=loader)
    again = (tmp_path / "again" / "commonsense_170k.json").read_text()
    assert again == (out / "commonsense_170k.json").read_text()


def test_rows_of_the_authors_layout_are_of_their_folder_s_task(tmp_path):
    """Their rows name no task."""
    for name in ("boolq", "piqa"):
        built = build_row(TASKS[name], ROWS[name][0], "here")
        built.pop("task")
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.json").write_text(json.dumps([built]))
    examples, _ = read_source(tmp_path / "*" / "test.json")
    assert [e.task for e in examples] == ["boolq", "piqa"]
    (alone,), _ = read_source(tmp_path / "piqa" / "test.json")
    assert alone.task == ""


def test_the_script_refuses_what_it_cannot_do(tmp_path, monkeypatch):
    with pytest.raises(DoraError, match=r"unknown task 'arc'; there are boolq, piqa"):
        build_data.build(tmp_path, ["arc"], load=loader)
    with pytest.raises(DoraError, match="has no labelled row in train or validation"):
        build_data.build(tmp_path, ["boolq"], load=lambda task, split: [])
    for limit in (0, -1):
        with pytest.raises(DoraError, match=f"limit must be .* at least 1; got {limit}"):
            build_data.build(tmp_path, limit=limit, load=loader)
    import datasets

    def offline(*arguments, **fields):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        SystemExit, match=r"google/boolq, split train: cannot be loaded \(no network"
    ):
        build_data.main(["--out", str(tmp_path), "--tasks", "boolq"])


def test_the_script_says_how_many_rows_have_no_answer(tmp_path, monkeypatch, capsys):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(hub, subset, split, revision):
        asked.append((hub, subset, split, revision))
        return loader(next(task for task in TASKS.values() if task.hub == hub), split)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    build_data.main(["--out", str(tmp_path), "--tasks", "boolq", "piqa"])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "boolq: 6 to train on, 6 to evaluate"
    assert said[1] == "piqa: 6 to train on, 6 to evaluate; 2 left out, which have no answer"
    assert asked[1:3] == [
        ("google/boolq", None, "validation", "main"),
        ("ybisk/piqa", None, "train", "refs/convert/parquet"),
    ]


def test_the_authors_template_is_the_clean_one_indented():
    clean, indented = (
        get_template(name).render(Example("Why?", ""), None)
        for name in ("alpaca", "alpaca-indented")
    )
    assert [line.strip() for line in indented.split("\n")] == [
        line.strip() for line in clean.split("\n")
    ]
    first, *others = indented.split("\n")
    assert not first.startswith(" ")
    assert all(line.startswith(16 * " ") for line in others if line)
    assert indented.endswith("### Response:\n" + 16 * " ")


def test_the_indented_prompt_and_answer_are_the_tokens_of_the_whole_text():
    """The authors train on the whole: the space before the answer joins its first word."""
    tiny, template, example = tokenizer(), get_template("alpaca-indented"), Example("hello?", "wor")
    ids = template.encode_prompt(example.prompt, tiny) + template.encode_answer("wor", tiny)
    assert ids == tiny.encode(template.render(example, tiny))
