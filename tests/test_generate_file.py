import dataclasses
import fcntl
import gzip
import json

import numpy as np
import pytest

from dora_jax import generate_file as module
from dora_jax.checkpoint.hf import write_hf_folder
from dora_jax.errors import DoraError
from dora_jax.generate_file import SETTINGS_SUFFIX, generate_file
from dora_jax.generation import Sampling
from dora_jax.prompt_rows import read_rows
from dora_jax.training.progress import WorkProgress
from tests.checkpoint.tiny_adapter import write_base
from tests.checkpoint.tiny_model import CONFIG, hf_weights, our_params, tokenizer
from tests.scripted import scripted

ROWS = [
    {"prompt": "hello"},
    {"id": 7, "prompt": "wor é", "level": {"a": [1]}},
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]},
    {"prompt": "d"},
    {"prompt": "e"},
]
GREEDY = Sampling(8)


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def prompts(tmp_path):
    return write(tmp_path / "in.jsonl", ROWS)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.jsonl"


@pytest.fixture
def ready(monkeypatch):
    """The answerer that every run loads; it echoes, with the seed."""
    made = scripted(reply=lambda text, seed: [" ", text[-14:-13], f"{seed % 1000}"])
    state = {"weights": "w", "ready": made}
    monkeypatch.setattr(module, "load_answerer", lambda *names: state["ready"])
    monkeypatch.setattr(module, "fingerprint", lambda params: state["weights"])
    return state


def test_rows_are_answered_in_order_and_carried_over(prompts, out, ready):
    assert generate_file(prompts, out, GREEDY, batch_size=2, stop=["x"]) == 5
    found = lines(out)
    added = ("completion", "finish_reason", "log_prob", "tokens")
    assert [{k: v for k, v in row.items() if k not in added} for row in found] == ROWS
    for row in found:
        assert row["completion"] == row["completion"].strip() != ""
        assert row["finish_reason"] == "stop"
        assert row["log_prob"] == -0.5 * row["tokens"]
    asked = ready["ready"].asked
    assert asked[0] == "<s>user: hello</s>\n<s>assistant: "
    assert asked[2] == "<s>system: s</s>\n<s>user: hello</s>\n<s>assistant: "
    assert [call["stop"] for call in ready["ready"].calls] == [["x"]] * 3
    # Batches do not share random numbers.
    seeds = [call["sampling"].seed for call in ready["ready"].calls]
    assert seeds[0] == 0
    assert len(set(seeds)) == 3


def test_every_sample_has_a_line(prompts, out, ready):
    sampling = Sampling(8, temperature=1.0, num_samples=3)
    assert generate_file(prompts, out, sampling, batch_size=2) == 15
    found = lines(out)
    assert [row["sample"] for row in found] == [0, 1, 2] * 5
    assert [row.get("id") for row in found[3:6]] == [7, 7, 7]
    assert [call["batch_size"] for call in ready["ready"].calls] == [6, 6, 6]


@pytest.mark.parametrize("samples", [1, 3])
def test_a_cut_off_file_is_continued_as_if_nothing_had_happened(prompts, tmp_path, ready, samples):
    sampling = Sampling(8, temperature=1.0, num_samples=samples)
    whole = tmp_path / "whole.jsonl"
    generate_file(prompts, whole, sampling, batch_size=2)
    content = whole.read_bytes()
    ends = [n + 1 for n, byte in enumerate(content) if byte == ord("\n")]
    for cut in {0, 3, ends[0], ends[0] + 5, ends[3], ends[-2] + 1, len(content) - 1}:
        out = tmp_path / f"cut-{cut}.jsonl"
        out.write_bytes(content[:cut])
        settings = (tmp_path / f"whole.jsonl{SETTINGS_SUFFIX}").read_text()
        (tmp_path / (out.name + SETTINGS_SUFFIX)).write_text(settings)
        left = sum(end > cut for end in ends)
        assert generate_file(prompts, out, sampling, batch_size=2) == left
        assert out.read_bytes() == content
    asked = len(ready["ready"].asked)
    assert generate_file(prompts, whole, sampling, batch_size=2) == 0
    assert len(ready["ready"].asked) == asked


def test_what_was_written_survives_a_failure(prompts, out, ready):
    base = ready["ready"]

    def fail_at_e(text, seed):
        if "user: e<" in text:
            raise KeyboardInterrupt
        return base.reply(text, seed)

    ready["ready"] = dataclasses.replace(base, reply=fail_at_e)
    with pytest.raises(KeyboardInterrupt):
        generate_file(prompts, out, GREEDY, batch_size=2)
    assert len(lines(out)) == 4
    ready["ready"] = base
    assert generate_file(prompts, out, GREEDY, batch_size=2) == 1
    assert len(lines(out)) == 5


def test_answers_of_something_else_are_not_continued(prompts, out, ready, tmp_path):
    generate_file(prompts, out, GREEDY)
    before = out.read_bytes()
    other = write(tmp_path / "other.jsonl", [*ROWS[:-1], {"prompt": "f"}])
    ready["weights"] = "v"
    with pytest.raises(
        DoraError, match=r"another run \(weights is 'w' there and 'v' here\).*--out"
    ):
        generate_file(prompts, out, GREEDY)
    ready["weights"] = "w"
    for changed, message in (
        ({"sampling": Sampling(9)}, "max_new_tokens is 8 there and 9 here"),
        ({"prompts": other}, "prompts is '5 rows, "),
        ({"stop": ["y"]}, r"stop is \[\] there and \['y'\] here"),
        ({"batch_size": 3}, "batch_size is 16 there and 3 here"),
    ):
        fields = {"prompts": prompts, "sampling": GREEDY} | changed
        with pytest.raises(DoraError, match=message):
            generate_file(out=out, **fields)
    assert out.read_bytes() == before
    # The same weights under another name are the same.
    ready["ready"] = dataclasses.replace(ready["ready"], name="elsewhere")
    assert generate_file(prompts, out, GREEDY) == 0


def test_outputs_that_cannot_be_used(prompts, out, ready, tmp_path):
    with pytest.raises(DoraError, match="is the file of prompts"):
        generate_file(prompts, prompts, GREEDY)
    with pytest.raises(DoraError, match="is a folder"):
        generate_file(prompts, tmp_path, GREEDY)
    out.write_text("mine\n")
    with pytest.raises(DoraError, match=r"nothing says what it belongs to \(out.jsonl.settings"):
        generate_file(prompts, out, GREEDY)
    assert out.read_text() == "mine\n"
    out.unlink()
    generate_file(prompts, out, GREEDY)
    with open(out, "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DoraError, match="another process is writing it"):
            generate_file(prompts, out, GREEDY)
    out.write_text("not json\n")
    with pytest.raises(DoraError, match=r"out\.jsonl, line 1: is not JSON"):
        generate_file(prompts, out, GREEDY)
    out.write_text("{}\n" * 6)
    with pytest.raises(DoraError, match="has 6 lines where 5 are due"):
        generate_file(prompts, out, GREEDY)
    (tmp_path / ("out.jsonl" + SETTINGS_SUFFIX)).write_text("{")
    with pytest.raises(DoraError, match=r"settings\.json: cannot be read"):
        generate_file(prompts, out, GREEDY)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"in.jsonl, line 3, column 2: is not JSON"),
        (b"\xff", "line 3: is not UTF-8"),
        (b'{"prompt": "\\ud800"}', "line 3: holds half a character"),
        (b"[1]", "line 3: must be a JSON object"),
        (b'{"question": "a"}', "line 3: must have 'prompt' or 'messages'.* it has 'question'"),
        (b'{"prompt": "a", "messages": []}', "line 3: must have 'prompt' or 'messages'"),
        (b'{"prompt": 3}', "line 3: 'prompt' must be a text; got 3"),
        (b'{"prompt": " "}', "line 3: 'prompt' is empty"),
        (b'{"prompt": "a", "completion": 1}', "line 3: 'completion' would be written over"),
        (b'{"messages": []}', "line 3: 'messages' must be a list of messages, not empty"),
        (b'{"messages": [{"role": "user"}]}', "line 3: chat message 1 lacks content"),
        (
            b'{"messages": [{"role": "assistant", "content": "a"}]}',
            "line 3: the last of 'messages' is an answer already",
        ),
        (
            b'{"prompt": "' + b"a" * 120 + b'"}',
            "line 3: 1.. tokens; with 8 new ones they exceed the model's context of 128",
        ),
    ],
)
def test_a_bad_line_is_named_before_any_work(tmp_path, out, ready, line, message):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n\n' + line + b"\n")
    with pytest.raises(DoraError, match=message):
        generate_file(path, out, GREEDY)
    assert not out.exists()
    assert ready["ready"].asked == []


def test_files_that_hold_nothing(tmp_path):
    with pytest.raises(DoraError, match=r"none\.jsonl: cannot be read"):
        read_rows(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DoraError, match="holds no rows"):
        read_rows(tmp_path / "empty.jsonl")
    (tmp_path / "bad.gz").write_bytes(b"not gzip")
    with pytest.raises(DoraError, match=r"bad\.gz: cannot be read"):
        read_rows(tmp_path / "bad.gz")
    (tmp_path / "good.jsonl.gz").write_bytes(gzip.compress(b'\xef\xbb\xbf{"prompt": "a"}\r\n'))
    assert [row.fields for row in read_rows(tmp_path / "good.jsonl.gz")] == [{"prompt": "a"}]


def test_progress_counts_what_is_left(prompts, out, ready, capsys):
    generate_file(prompts, out, GREEDY, batch_size=2)
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:3]))
    progress = WorkProgress(0.0)
    said = []
    progress.say = said.append
    generate_file(prompts, out, GREEDY, batch_size=2, progress=progress)
    assert f"{out}: goes on after 3 of 5 lines" in said


def test_a_model_answers_a_file_the_same_whether_interrupted_or_not(tmp_path):
    base = str(write_base(tmp_path / "base"))
    prompts = write(tmp_path / "in.jsonl", ROWS[:3])
    sampling = Sampling(4, temperature=1.0, seed=3)
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    generate_file(prompts, whole, sampling, model=base, batch_size=2)
    found = lines(whole)
    assert all(np.isfinite(row["log_prob"]) and row["log_prob"] < 0 for row in found)
    assert all(0 < row["tokens"] <= 4 for row in found)
    generate_file(prompts, cut, sampling, model=base, batch_size=2)
    cut.write_bytes(whole.read_bytes()[: len(whole.read_bytes()) // 2])
    generate_file(prompts, cut, sampling, model=base, batch_size=2)
    assert cut.read_bytes() == whole.read_bytes()
    other = tmp_path / "other"
    write_hf_folder(other, CONFIG, our_params(hf_weights(seed=1)), tokenizer())
    with pytest.raises(DoraError, match="weights is"):
        generate_file(prompts, whole, sampling, model=str(other), batch_size=2)
