import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from dora_jax.data.encode import encode_all
from dora_jax.data.formats import read_row
from dora_jax.data.prompts import get_template
from dora_jax.data.splits import read_examples
from dora_jax.data.vision import ImageFile
from dora_jax.errors import DoraError
from dora_jax.evaluation.exact_match import new_tokens
from dora_jax.evaluation.first_match import judge
from dora_jax.evaluation.task import encode_task
from dora_jax.evaluation.writing import write_answers
from dora_jax.generation import Sampling, generate_ids
from dora_jax.models.llama import Llama
from dora_jax.training.config import DataConfig, EvaluationConfig, TrainConfig
from tests.checkpoint.tiny_model import CONFIG, hf_weights, our_params, tokenizer


def load_task(config, tokenizer):
    return encode_task(read_examples(config), config, tokenizer)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(n, **fields):
    return {"instruction": f"question {n}", "output": f"answer {n}"} | fields


@pytest.fixture
def data(tmp_path):
    """Files of 20 and 6 rows; one prompt is in both, one twice in the first."""

    def make(train=None, **fields):
        train = [*map(row, range(20)), row(3)] if train is None else train
        evaluation = [row(n) for n in (5, 100, 101, 102, 103, 104)]
        return DataConfig(
            train=write(tmp_path / "train.jsonl", train),
            eval=write(tmp_path / "eval.jsonl", evaluation),
            **fields,
        )

    return make


def prompts(task, split):
    return {r.prompt for r in task.rows[split]}


def test_splits_of_files_share_no_prompt(data):
    task = load_task(data(validation_rows=4), tokenizer())
    assert [len(task.rows[s]) for s in ("train", "validation", "evaluation")] == [15, 4, 6]
    assert not prompts(task, "train") & prompts(task, "validation")
    assert not prompts(task, "train") & prompts(task, "evaluation")
    assert not prompts(task, "validation") & prompts(task, "evaluation")
    reasons = {"in the evaluation file too": 1, "with a prompt seen before": 1}
    assert task.info.skipped == {"train": reasons}
    assert any("1 rows, in the evaluation file too" in line for line in task.describe())


def test_rows_are_taken_at_random_up_to_the_limits(data):
    config = data(validation_rows=3, train_rows=5, eval_rows=2)
    task = load_task(config, tokenizer())
    assert [len(task.rows[s]) for s in ("train", "validation", "evaluation")] == [5, 3, 2]
    assert task.info.skipped["train"]["beyond data.train_rows"] == 19 - 8
    assert load_task(config, tokenizer()).digest == task.digest
    other = load_task(data(validation_rows=3, train_rows=5, eval_rows=2, seed=1), tokenizer())
    assert other.digest != task.digest


def test_free_answers_are_matched_and_options_chosen(data, tmp_path):
    assert load_task(data(), tokenizer()).info.metric == "exact_match"
    options = {"output": "a", "options": ["a", "b", "c"]}
    files = {
        "train": write(tmp_path / "t.jsonl", [row(n, **options) for n in range(6)]),
        "eval": write(tmp_path / "e.jsonl", [row(n, **options) for n in range(10, 14)]),
    }
    info = load_task(DataConfig(**files), tokenizer()).info
    assert (info.metric, info.chance) == ("accuracy", pytest.approx(1 / 3))


def test_rows_that_a_limit_leaves_out_of_the_evaluation_are_not_trained_on(data):
    task = load_task(data([*map(row, range(90, 110))], eval_rows=2), tokenizer())
    # Five of the twenty are in the evaluation file; only two of its six rows are evaluated.
    assert task.info.train_rows + task.info.validation_rows == 15
    assert task.info.skipped["train"] == {"in the evaluation file too": 5}


def test_options_of_the_evaluation_count_whatever_the_training_rows_have(data, tmp_path):
    choice = {"output": "a", "options": ["a", "b"]}
    config = data()
    write(config.eval, [row(n, **choice) for n in range(100, 104)])
    assert load_task(config, tokenizer()).info.metric == "accuracy"
    write(config.eval, [row(100, **choice), row(101)])
    mixed = load_task(config, tokenizer())
    assert mixed.info.metric == "exact_match"
    assert any("1 of the 2 rows to evaluate have options" in line for line in mixed.describe())


def test_too_long_rows_are_counted_or_refused(data):
    long = row(50, instruction="question " * 50)
    task = load_task(data([*map(row, range(10)), long], max_length=60), tokenizer())
    skipped = task.info.skipped["train"] | task.info.skipped.get("validation", {})
    assert skipped["longer than data.max_length (60 tokens)"] == 1
    with pytest.raises(DoraError, match=r"no rows are left for train .*raise --data\.max-length"):
        load_task(data(max_length=5), tokenizer())


def test_too_few_rows(data):
    with pytest.raises(DoraError, match="has 1 rows of its own, and needs at least two"):
        load_task(data([row(1)]), tokenizer())


def test_the_world_is_the_default():
    task = load_task(DataConfig(train_rows=40, validation_rows=8, eval_rows=16), tokenizer())
    assert task.info.metric == "accuracy"
    assert (task.info.train_rows, task.info.validation_rows, task.info.eval_rows) == (40, 8, 16)
    assert {r.task for r in task.eval_rows} == {
        "city-continent",
        "city-country",
        "country-currency",
        "country-neighbour",
    }
    assert (
        task.train_tokens(TrainConfig(batch_size=4), 3)
        == 12 * task.batches(TrainConfig(batch_size=4), 0).length
    )


@pytest.mark.parametrize("options", [["a", "b"], None])
def test_score_counts_what_is_right_and_reports_all_its_work(tmp_path, options):
    fields = {"output": "a"} if options is None else {"output": "a", "options": options}
    files = {
        "train": write(tmp_path / "t.jsonl", [row(n, **fields) for n in range(6)]),
        "eval": write(tmp_path / "e.jsonl", [row(n, **fields) for n in range(10, 15)]),
    }
    task = load_task(DataConfig(**files, eval_batch_size=2), tokenizer())
    done = []
    score = task.score(Llama(CONFIG), our_params(hf_weights()), done.append)
    assert sum(done) == task.tokens("evaluation")
    assert score.accuracy == sum(score.correct) / 5
    assert 0 < score.loss < 3 * math.log(CONFIG.vocab_size)


def test_exact_match_compares_the_greedy_text(data):
    model, params, tiny = Llama(CONFIG), our_params(hf_weights()), tokenizer()
    task = load_task(data([row(n, options=None) for n in range(10)]), tiny)
    rows = task.rows["evaluation"]
    # What the model says within the tokens that it is given is right, anything else is wrong.
    sampling = Sampling(max_new_tokens=new_tokens(rows))
    said = generate_ids(model, {"params": params}, [r.prompt for r in rows], sampling, [2])
    expected = [n % 2 for n in range(len(rows))]
    texts = [
        tiny.decode(ids) + ("" if right else " no")
        for ids, right in zip(said, expected, strict=True)
    ]
    asked = [dataclasses.replace(r, text=text) for r, text in zip(rows, texts, strict=True)]
    known = dataclasses.replace(task, rows={**task.rows, "evaluation": tuple(asked)})
    score = known.score(model, params)
    assert list(score.correct) == expected
    assert score.other == {}


def test_rows_are_scored_by_every_protocol_that_is_asked_for(data, tmp_path):
    model, params, tiny = Llama(CONFIG), our_params(hf_weights()), tokenizer()
    both = EvaluationConfig(protocols=("likelihood", "generate"), beams=2, new_tokens=5)
    choice = {"output": "hello", "options": ["hello", "wor"]}
    asked = write(tmp_path / "asked.jsonl", [row(n, **choice) for n in range(50, 57)])
    likely = load_task(dataclasses.replace(data([*map(row, range(9))]), eval=asked), tiny)
    task = dataclasses.replace(likely, evaluation=both)
    done = []
    score = task.score(model, params, done.append)
    assert sum(done) == task.tokens("evaluation")
    assert score.correct == likely.score(model, params).correct
    found = score.other["generate"]
    sampling = Sampling(max_new_tokens=5, num_beams=2)
    rows = task.rows["evaluation"]
    texts = write_answers(model, params, rows, sampling, 3, tiny)
    judged = [judge(r, text) for r, text in zip(rows, texts, strict=True)]
    assert list(found.correct) == [int(j is True) for j in judged]
    assert found.unanswered == sum(j is None for j in judged)
    first = dataclasses.replace(task, evaluation=dataclasses.replace(both, protocols=("generate",)))
    swapped = first.score(model, params)
    assert swapped.correct == found.correct
    assert swapped.unanswered == found.unanswered > score.unanswered == 0


@pytest.mark.parametrize(
    ("fields", "metric"),
    [
        ({}, "exact_match"),
        ({"options": ["hello", "wor"], "output": "hello"}, "accuracy"),
        ({"metric": "cider", "references": ["answer", "an answer"]}, "score"),
    ],
)
def test_nothing_is_written_to_validation_rows(data, tmp_path, monkeypatch, fields, metric):
    asked = write(tmp_path / "asked.jsonl", [row(n, **fields) for n in range(100, 104)])
    config = data([row(n, **fields) for n in range(12)], validation_rows=5, eval_batch_size=2)
    config = dataclasses.replace(config, eval=asked)
    how = EvaluationConfig(protocols=("generate",), beams=2, new_tokens=4)
    task = encode_task(read_examples(config), config, tokenizer(), how)
    assert task.info.metric == metric
    monkeypatch.setattr("dora_jax.evaluation.task.write_answers", None)
    done = []
    found = task.validate(Llama(CONFIG), our_params(hf_weights()), done.append)
    assert sum(done) == task.tokens("validation")
    assert found.loss > 0
    assert (found.accuracy is None) == (metric != "accuracy")


@pytest.mark.parametrize(("images", "repeated"), [("ab", 0), ("aa", 1), (("", ""), 1)])
def test_one_question_about_two_images_is_no_repetition(data, images, repeated):
    task = load_task(data([row(n) for n in range(10)]), tokenizer())
    asked = [
        dataclasses.replace(
            task.rows["evaluation"][0], images=tuple(ImageFile(name, name) for name in own)
        )
        for own in images
    ]
    task = dataclasses.replace(task, rows={**task.rows, "evaluation": tuple(asked)})
    lines = [line for line in task.describe() if "repeat" in line]
    what = "prompt and images" if images[0] else "prompt"
    told = f"1 of the rows to evaluate repeat the {what} of another one"
    assert lines == [told] * repeated


def chat(n):
    said = [("user", f"first {n}"), ("assistant", f"said {n}"), ("user", f"question {n}")]
    messages = [{"role": role, "content": text} for role, text in said]
    return {"messages": [*messages, {"role": "assistant", "content": f"answer {n}"}]}


def test_conversations_are_trained_on_and_scored_by_their_last_answers(tmp_path):
    files = {
        "train": write(
            tmp_path / "t.jsonl", [*map(chat, range(20)), {"messages": chat(0)["messages"][:1]}]
        ),
        "eval": write(tmp_path / "e.jsonl", [*map(chat, range(15, 20))]),
    }
    task = load_task(DataConfig(**files, validation_rows=4, prompt="chat"), tokenizer())
    assert [len(task.rows[s]) for s in ("train", "validation", "evaluation")] == [11, 4, 5]
    assert task.info.skipped["train"] == {
        "in the evaluation file too": 5,
        "without an answer to train on": 1,
    }
    batch = task.batches(TrainConfig(batch_size=11), 0).batch(0)
    answers = [len(row.answer) + 1 for row in task.rows["train"]]
    assert batch.label_weights.sum() > sum(answers) + 11 * len("said 1")
    everything = load_task(
        DataConfig(**files, validation_rows=4, prompt="chat", train_on="all"), tokenizer()
    )
    tokens = sum(len(row.prompt) + len(row.answer) for row in task.rows["train"])
    assert everything.batches(TrainConfig(batch_size=11), 0).batch(0).label_weights.sum() == tokens
    score = task.score(Llama(CONFIG), our_params(hf_weights()))
    assert len(score.correct) == 5


def test_a_mixture_is_drawn_by_its_weights(tmp_path, data):
    first = write(tmp_path / "a.jsonl", [row(n) for n in range(200, 260)])
    second = write(tmp_path / "b.jsonl", [row(n) for n in range(250, 280)])
    config = DataConfig(
        mix={str(first): 1, str(second): 3}, eval=data().eval, train_rows=40, validation_rows=0
    )
    task = load_task(config, tokenizer())
    assert task.name.startswith("a.jsonl + b.jsonl, evaluated on eval.jsonl")
    # Ten rows of the one and, of thirty asked for, the twenty that are not in the first as well.
    sources = [r.source for r in task.rows["train"]]
    assert (sources.count(0), sources.count(1)) == (10, 20)
    reasons = {"with a prompt seen before": 10, "beyond data.train_rows": 50}
    assert task.info.skipped["train"] == reasons
    batches = task.batches(TrainConfig(batch_size=30), 0)
    of_second = {r.prompt for r in task.rows["train"] if r.source == 1}
    made = jax.tree.map(np.asarray, batches.batch(0))
    drawn = [
        tuple(tokens[: positions[0] + 1]) in of_second
        for tokens, positions in zip(made.tokens, made.label_positions, strict=True)
    ]
    assert sum(drawn) in (22, 23)  # three quarters of an epoch
    assert load_task(config, tokenizer()).digest == task.digest


@pytest.mark.parametrize("packing", ["none", "pack", "bucket"])
def test_the_ways_of_packing_are_described_and_counted(data, packing):
    config = TrainConfig(batch_size=2)
    task = load_task(data(packing=packing, max_length=128), tokenizer())
    batches = task.batches(config, 0)
    shape = batches.batch(0).tokens.shape
    assert task.train_tokens(config, 3) == pytest.approx(3 * batches.slots)
    assert task.info.efficiency == batches.efficiency
    described = task.describe()[-1]
    assert described.startswith(f"packing {packing}: an epoch fills {batches.places_an_epoch:,} ")
    assert f"{batches.efficiency:.1%} of their slots hold a token" in described
    padded = load_task(data(max_length=128), tokenizer()).info.efficiency
    assert (f"and {padded:.1%} if padded to the longest" in described) == (packing != "none")
    assert shape[0] == 2
    if packing == "pack":
        assert shape[1] == 128
        assert task.info.efficiency > 0.7


LONG = {"instruction": "question " * 30, "output": "hello", "options": ["hello", "wor"]}


@pytest.mark.parametrize(
    ("evaluation", "context", "reason"),
    [
        (EvaluationConfig(), 400, None),
        (EvaluationConfig(max_length=80), 400, "longer than evaluation.max_length (80 tokens)"),
        (EvaluationConfig(), 80, "longer than the model's context (80 tokens)"),
    ],
)
def test_training_s_bound_is_none_of_what_is_evaluated(data, tmp_path, evaluation, context, reason):
    config = data([row(n, options=None) for n in range(10)], max_length=60, too_long="drop")
    asked = write(tmp_path / "asked.jsonl", [LONG, row(70, options=["answer 70", "no"])])
    config = dataclasses.replace(config, eval=asked)
    task = encode_task(read_examples(config), config, tokenizer(), evaluation, context=context)
    assert len(task.rows["evaluation"]) == (2 if reason is None else 1)
    assert task.skipped.get("evaluation", {}) == ({} if reason is None else {reason: 1})


@pytest.mark.parametrize("protocol", ["likelihood", "generate"])
def test_there_is_room_for_what_is_written(data, tmp_path, protocol):
    config = dataclasses.replace(
        data([row(n, options=None) for n in range(10)], too_long="truncate_left"),
        eval=write(tmp_path / "asked.jsonl", [LONG]),
    )
    evaluation = EvaluationConfig(protocols=(protocol,), new_tokens=32)
    task = encode_task(read_examples(config), config, tokenizer(), evaluation, context=100)
    (found,) = task.rows["evaluation"]
    behind = 32 if protocol == "generate" else len(found.answer) + 1
    assert len(found.prompt) == 100 - behind
    (reason,) = task.cut["evaluation"]
    assert ("with 32 tokens to be written" in reason) == (protocol == "generate")


def test_a_row_that_leaves_room_stays_beside_one_that_does_not(data, tmp_path):
    options = ["hello", "x" * 50]  # an answer may be longer than what is written
    fits = {"instruction": "a" * 30, "output": "hello", "options": options}
    config = dataclasses.replace(
        data([row(n, options=None) for n in range(10)], prompt="none"),
        eval=write(tmp_path / "asked.jsonl", [fits, LONG]),
    )
    evaluation = EvaluationConfig(protocols=("generate",), new_tokens=32)
    task = encode_task(read_examples(config), config, tokenizer(), evaluation, context=110)
    assert len(task.rows["evaluation"]) == 1
    config = dataclasses.replace(config, eval=write(tmp_path / "long.jsonl", [LONG]))
    with pytest.raises(DoraError, match=r"no rows are left for evaluation .*--evaluation\.max-len"):
        encode_task(read_examples(config), config, tokenizer(), evaluation, context=110)


def test_the_beginning_of_a_long_row_is_learned_where_prompts_are(data):
    """The paper's data: rows that list options, prompt and answer learned, cut at 256 tokens."""
    config = data([LONG, *map(row, range(10))], max_length=60, too_long="truncate_right")
    for train_on in ("answers", "all"):
        task = load_task(dataclasses.replace(config, train_on=train_on), tokenizer())
        cut = [r for r in task.rows["train"] if r.is_cut]
        assert len(cut) == (train_on == "all")
    batch = task.batches(TrainConfig(steps=1, batch_size=len(task.rows["train"])), 0).batch(0)
    example = read_row(LONG, "here")
    whole = encode_all([example], get_template("plain"), tokenizer(), 10_000).rows[0]
    begins = np.array(whole.prompt[:59])
    (place,) = np.flatnonzero((batch.tokens[:, :59] == begins).all(axis=1))
    learned = batch.label_targets[place][batch.label_weights[place] > 0]
    np.testing.assert_array_equal(learned, begins[1:])  # and no end


def test_long_rows_are_cut_only_where_their_answers_are_not_scored(data):
    long = [row(n, output="answer " * 30) for n in range(50, 60)]
    config = data([*map(row, range(10)), *long], max_length=100, too_long="truncate_right")
    task = load_task(config, tokenizer())
    reason = "longer than data.max_length (100 tokens)"
    cut, dropped = task.info.cut["train"][reason], task.info.skipped["validation"][reason]
    assert cut + dropped == 10
    assert sum(r.is_cut for r in task.rows["train"]) == cut > 0
    assert not any(r.is_cut for r in task.rows["validation"])
    assert any(f"shortened in train: {cut} rows, {reason}" in line for line in task.describe())
    with pytest.raises(DoraError, match=r"more than data\.max_length \(100\)"):
        load_task(
            data([*map(row, range(10)), *long], max_length=100, too_long="error"), tokenizer()
        )
