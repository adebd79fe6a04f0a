"""lm-eval's own evaluation of a tiny model, on tasks of local files."""

import json
import sys

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="the lm-eval extra is not installed")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from dora_jax.checkpoint.hf import write_hf_folder
from dora_jax.errors import DoraError
from dora_jax.evaluation import lm_eval as ours
from dora_jax.generation import Sampling, generate
from dora_jax.models.llama import Llama
from tests.checkpoint.tiny_adapter import adapter_info, write_adapter
from tests.checkpoint.tiny_model import CONFIG, hf_weights, our_params, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_hf_folder(path, CONFIG, our_params(hf_weights()), tokenizer(), dtype="float32")
    return path


@pytest.fixture(scope="module")
def model(folder):
    return get_model("dora_jax").create_from_arg_string(f"pretrained={folder},batch_size=4")


def log_probs(ids):
    """Log-probabilities of each next token, in float64, from the logits of one whole text."""
    logits = np.asarray(Llama(CONFIG).apply({"params": our_params(hf_weights())}, np.array([ids])))
    logits = logits[0].astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def direct(context, continuation):
    """What a continuation of ids scores, without anything of lm-eval or of our batches."""
    table = log_probs([*context, *continuation])[len(context) - 1 : -1]
    values = table[np.arange(len(continuation)), continuation]
    return values.sum(), bool((table.argmax(-1) == continuation).all())


def asked(kind, *arguments):
    return [Instance(kind, {}, given, n) for n, given in enumerate(arguments)]


def test_continuations_score_what_separate_texts_do(model):
    pairs = [("hello wor", "low"), ("hello wor", " hello"), ("low ", "low"), ("", "hello low")]
    found = model.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    words = tokenizer()
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        if context:
            space = context[len(context.rstrip()) :]
            before = model.tok_encode(context.rstrip())
            after = model.tok_encode(context.rstrip() + space + continuation)[len(before) :]
        else:
            before, after = [model.prefix_token_id], words.encode(continuation)
        expected, is_greedy = direct(before, after)
        assert value == pytest.approx(expected, abs=1e-4)
        assert greedy == is_greedy


def test_long_texts_are_scored_in_windows(folder):
    short = get_model("dora_jax")(pretrained=str(folder), max_length=8)
    text = "hello low wor hello low hello wor wor low hello"
    ids = tokenizer().encode(text)
    assert len(ids) > 16
    (found,) = short.loglikelihood_rolling(asked("loglikelihood_rolling", (text,)))
    # Windows of seven tokens; the last one is full, and scores what was not scored before.
    prefix, expected, done = [short.prefix_token_id], 0.0, 0
    expected += direct(prefix, ids[:7])[0]
    done = 7
    while done < len(ids):
        end = min(done + 7, len(ids))
        context = ids[end - 7 - 1 : done]
        expected += direct(context, ids[done:end])[0]
        done = end
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_context_that_is_too_long_loses_its_beginning(folder, capsys):
    short = get_model("dora_jax")(pretrained=str(folder), max_length=6)
    words = tokenizer()
    context, continuation = "hello low wor hello low wor hello", " low"
    ((value, _),) = short.loglikelihood(
        asked("loglikelihood", (context, continuation)), disable_tqdm=True
    )
    before = short.tok_encode(context)
    after = short.tok_encode(context + continuation)[len(before) :]
    assert value == pytest.approx(direct(before[-(6 - len(after)) :], after)[0], abs=1e-4)
    assert "1 contexts are longer than the model's 6 tokens" in capsys.readouterr().err
    with pytest.raises(
        DoraError, match=r"a continuation of .* tokens does not fit into the 6 tokens"
    ):
        short.loglikelihood(
            asked("loglikelihood", ("a", words.decode([5] * 20))), disable_tqdm=True
        )


def test_texts_are_written_as_generate_writes_them(model):
    given = {"until": ["wor"], "max_gen_toks": 6, "do_sample": False, "temperature": 0.0}
    found = model.generate_until(
        asked(
            "generate_until",
            ("hello", given),
            ("low", given | {"num_beams": 3}),
            ("low", given | {"do_sample": True, "temperature": 0.7, "top_k": 5, "seed": 3}),
            ("low", given | {"do_sample": False, "temperature": 5.0, "seed": 3}),
        )
    )
    samplings = [
        Sampling(6),
        Sampling(6, num_beams=3),
        Sampling(6, temperature=0.7, top_k=5, seed=3),
        Sampling(6),
    ]
    params, words = our_params(hf_weights()), tokenizer()
    prompts = ("hello", "low", "low", "low")
    for text, prompt, sampling in zip(found, prompts, samplings, strict=True):
        (expected,) = generate(
            Llama(CONFIG), params, [prompt], sampling, tokenizer=words, stop=["wor"]
        )
        assert text == expected.text
    with pytest.raises(DoraError, match=r"gen_kwargs 'top_q' is not known \(did you mean 'top_p'"):
        model.generate_until(asked("generate_until", ("a", {"top_q": 1})))
    with pytest.raises(DoraError, match="max_gen_toks 128 leaves no room"):
        model.generate_until(asked("generate_until", ("a", {"max_gen_toks": 128})))


@pytest.mark.parametrize(
    ("given", "temperature"),
    [
        ({}, 0.0),
        ({"temperature": 0.7}, 0.7),
        ({"do_sample": None, "temperature": 0.7}, 0.7),
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": 0.7}, 0.7),
        ({"do_sample": True, "temperature": 0}, 0.0),
        ({"do_sample": False}, 0.0),
        ({"do_sample": False, "temperature": 0.7}, 0.0),
    ],
)
def test_it_samples_when_asked_to_and_never_when_asked_not_to(model, given, temperature):
    sampling, _ = model._sampling(given)
    assert sampling.temperature == temperature


def write_tasks(folder):
    rows = [
        {"question": f"{n} low", "choices": ["hello", "wor", "low low"], "answer": n % 3}
        for n in range(7)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "rows.jsonl"}}}}}
test_split: test
"""
    (folder / "choice.yaml").write_text(
        f"""task: local_choice{shared}
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
    )
    (folder / "writing.yaml").write_text(
        f"""task: local_writing{shared}
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["wor"], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
    )
    return rows


def test_lm_eval_evaluates_local_tasks(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = write_tasks(tmp_path)
    found = simple_evaluate(
        model,
        tasks=["local_choice", "local_writing"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    right = 0
    for row in rows:
        before = model.tok_encode(row["question"])
        values = []
        for choice in row["choices"]:
            after = model.tok_encode(f"{row['question']} {choice}")[len(before) :]
            values.append(direct(before, after)[0])
        right += int(np.argmax(values) == row["answer"])
    assert found["local_choice"]["acc,none"] == pytest.approx(right / len(rows))
    assert 0 <= found["local_writing"]["exact_match,none"] <= 1


def test_an_adapter_is_merged(folder, tmp_path):
    from tests.checkpoint.tiny_adapter import write_base

    base = write_base(tmp_path)
    write_adapter(tmp_path / "adapter", adapter_info(base))
    make = get_model("dora_jax")
    context = asked("loglikelihood", ("hello", " low"))
    plain = make(pretrained=str(base)).loglikelihood(context, disable_tqdm=True)
    tuned = make(adapter=str(tmp_path / "adapter")).loglikelihood(context, disable_tqdm=True)
    assert plain != tuned


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"must give pretrained=MODEL, adapter=FOLDER, or both"),
        ({"pretrained": "x", "adaptor": "y"}, r"adaptor: .* \(did you mean 'adapter'\?\)"),
        ({"pretrained": "./nowhere"}, r"nowhere"),
        ({"adapter": "./nowhere"}, r"nowhere"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(DoraError, match=message):
        get_model("dora_jax")(**arguments)


def test_the_command_is_lm_eval_s_own(folder, tmp_path, monkeypatch, capsys):
    assert ours.with_our_model(["--tasks", "x"]) == ["--model", "dora_jax", "--tasks", "x"]
    assert ours.with_our_model(["run", "-M", "hf"]) == ["run", "-M", "hf"]
    assert ours.with_our_model(["ls", "tasks"]) == ["ls", "tasks"]
    write_tasks(tmp_path)
    words = ["run", "--tasks", "local_choice", "--include_path", str(tmp_path), "--model_args"]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *words, f"pretrained={folder}"])
    ours.main()
    assert "local_choice" in capsys.readouterr().out
