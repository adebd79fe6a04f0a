"""A model that sees, from its parts to an answer: every command that a user would give."""

import base64
import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

pytest.importorskip("PIL", reason="the vision extra is not installed")

from PIL import Image

from dora_jax import cli
from dora_jax.analysis.records import decode
from dora_jax.analysis.results import ComparisonResults
from dora_jax.answer import answer, load_answerer
from dora_jax.chat import Chat
from dora_jax.checkpoint.llava import read_llava_folder
from dora_jax.checkpoint.llava_parts import join_parts
from dora_jax.checkpoint.pretrained import load_pretrained
from dora_jax.comparison.compare import compare
from dora_jax.comparison.evaluate import evaluate
from dora_jax.errors import DoraError
from dora_jax.generate_file import generate_file
from dora_jax.generation import Sampling
from dora_jax.models.llava import LlavaConfig
from dora_jax.training import loop
from dora_jax.training.config import (
    AdapterConfig,
    CompareConfig,
    DataConfig,
    EvaluationConfig,
    ExecuteConfig,
    ExperimentConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from tests.data.pictures import draw, said, write_rows
from tests.models import towers
from tests.tiny_comparison import write_inputs

GREYS = (20, 220)
NAMES = ("hello", "world")
TUNED = r"language_model/.*/(q|v)_proj"


def command(*arguments):
    cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The parts, the model put together of them, pictures, and rows about these and of text."""
    folder = write_inputs(tmp_path_factory.mktemp("seeing"))
    towers.write_folder(folder / "tower", "clip")
    for n, grey in enumerate(GREYS):
        draw(folder / "pictures" / f"{n}.png", grey)
    train = [
        {"id": str(n), "image": f"{n % 2}.png", "conversations": said("Which?", NAMES[n % 2])}
        for n in range(2)
    ]
    train += [{"id": f"t{n}", "conversations": said(f"Say {n}", "low")} for n in range(6)]
    train += [
        {"id": f"m{n}", "image": f"{n % 2}.png", "conversations": said(f"Which {n}?", NAMES[n % 2])}
        for n in range(10)
    ]
    (folder / "train.json").write_text(json.dumps(train))
    write_rows(
        folder / "eval.jsonl",
        [
            {
                "question": "So?",
                "answer": NAMES[n],
                "options": NAMES,
                "image": f"{n}.png",
                "task": t,
            }
            for t in ("one", "two")
            for n in range(2)
        ],
    )
    parts = ("--vision", folder / "tower", "--model", folder / "model")
    command("llava", *parts, "--out", folder / "llava")
    return folder


def experiment(folder, **fields):
    data = DataConfig(
        train=folder / "train.json",
        eval=folder / "eval.jsonl",
        image_folder=folder / "pictures",
        validation_rows=2,
        max_length=80,
        eval_batch_size=4,
    )
    given = {
        "name": "seeing",
        "model": ModelConfig(name=str(folder / "llava")),
        "data": data,
        "adapter": AdapterConfig(
            rank=2, alpha=4, modules=TUNED, modules_to_save=(r"multi_modal_projector/linear_\d",)
        ),
        "optim": OptimConfig(rate_ratios={"multi_modal_projector/.*": 0.5}),
        "evaluation": EvaluationConfig(samples=2),
        "train": TrainConfig(steps=4, batch_size=4, checkpoint_every=2),
        "compare": CompareConfig(learning_rates=(1e-2,), search_steps=0),
        "out": folder / "run",
    }
    return ExperimentConfig(**given | fields)


@pytest.fixture(scope="module")
def results(folder):
    return compare(experiment(folder), "the command")


def test_the_parts_are_what_they_were(folder):
    found = load_pretrained(folder / "llava")
    language = load_pretrained(folder / "model")
    assert isinstance(found.config, LlavaConfig)
    (token,) = found.tokenizer.encode("<image>")
    assert token == found.config.image_token_id == language.config.vocab_size
    tower = read_llava_folder(folder / "llava").params["vision_tower"]
    own = towers.golden("clip")["tensors"]
    assert len(own) > 0
    kernel = tower["layers"]["mlp"]["fc1"]["kernel"]
    expected = np.stack(
        [
            towers.weight(f"encoder.layers.{n}.mlp.fc1.weight", (40, 24)).T
            if f"encoder.layers.{n}.mlp.fc1.weight" in own
            else towers.weight(f"vision_model.encoder.layers.{n}.mlp.fc1.weight", (40, 24)).T
            for n in range(3)
        ]
    )
    np.testing.assert_array_equal(kernel, expected)
    embedding = found.params["language_model"]["embed_tokens"]["embedding"]
    before = language.params["embed_tokens"]["embedding"]
    np.testing.assert_array_equal(embedding[:-1], before)
    np.testing.assert_allclose(embedding[-1], before.mean(axis=0), atol=1e-6)


def test_another_llavas_tower_and_a_trained_projector_can_be_parts(folder, tmp_path):
    whole = read_llava_folder(folder / "llava")
    tensors = safetensors.numpy.load_file(folder / "llava" / "model.safetensors")
    original = {"linear_1": "0", "linear_2": "2"}
    kept = {}
    for name, array in tensors.items():
        if name.startswith("multi_modal_projector."):
            _, layer, leaf = name.split(".")
            kept[f"model.mm_projector.{original[layer]}.{leaf}"] = array + 1
    safetensors.numpy.save_file(kept, tmp_path / "mm_projector.safetensors")
    join_parts(
        folder / "llava",
        folder / "model",
        tmp_path / "again",
        projector=tmp_path / "mm_projector.safetensors",
    )
    again = read_llava_folder(tmp_path / "again")
    for part in ("vision_tower", "language_model"):
        for a, b in zip(_leaves(again, part), _leaves(whole, part), strict=True):
            np.testing.assert_array_equal(a, b)
    pairs = zip(*(_leaves(x, "multi_modal_projector") for x in (again, whole)), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b + 1, atol=1e-6)
    pickled = tmp_path / "old" / "mm_projector.bin"
    pickled.parent.mkdir()
    pickled.write_bytes(b"")
    with pytest.raises(DoraError, match=r"mm_projector\.bin: is pickled, .*convert it once"):
        join_parts(folder / "llava", folder / "model", tmp_path / "x", projector=pickled)


def _leaves(found, part):
    return jax.tree.leaves(found.params[part])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"feature_layer": -9}, "vision_feature_layer must be from -4 to 3"),
        ({"language": "llava"}, "sees already"),
        ({"vision": "model"}, "a vision tower of model_type 'llama'"),
        ({"vision": "nothing"}, "no such folder; fetch a tower first"),
    ],
)
def test_parts_that_do_not_fit_are_refused(folder, tmp_path, given, message):
    parts = {"vision": "tower", "language": "model"}
    named = {name: folder / given.get(name, path) for name, path in parts.items()}
    more = {name: value for name, value in given.items() if name not in parts}
    with pytest.raises(DoraError, match=message):
        join_parts(named["vision"], named["language"], tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_methods_are_compared_on_pictures(results, folder):
    assert {row.task for row in results.eval_rows} == {"one", "two"}
    assert results.data.train_rows == 16
    assert [run.method for run in results.runs] == ["lora", "dora"]
    lora, dora = results.runs
    assert lora.history[0].loss == pytest.approx(dora.history[0].loss, rel=1e-4)
    projector = 24 * 96 + 96 + 96 * 96 + 96
    low_rank = 3 * 2 * ((96 + 128) + (96 + 64))
    assert lora.trainable_parameters == projector + low_rank
    assert dora.trainable_parameters == projector + low_rank + 3 * (128 + 64)
    assert lora.flops_per_s > 0
    again = compare(experiment(folder), "the command")
    assert [run.correct for run in again.runs] == [run.correct for run in results.runs]


def test_the_report_shows_pictures_and_what_was_said(results, folder):
    assert [sample.row for sample in results.samples] == [0, 3]
    first, last = results.samples
    assert first.question == "Question: \nSo?\nAnswer:"
    assert (first.answer, last.answer) == NAMES
    for run in (results.base, *results.runs):
        right = [
            said == sample.answer for said, sample in zip(run.answers, results.samples, strict=True)
        ]
        assert right == [bool(run.correct[0]), bool(run.correct[3])]
    (uri,) = first.images
    picture = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
    assert (picture.size, picture.getpixel((0, 0))) == ((14, 14), (GREYS[0],) * 3)
    page = (folder / "run" / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 2
    assert page.count(uri) == 1


def test_blind_arms_stand_beside_those_that_see(folder):
    config = experiment(
        folder,
        out=folder / "blind",
        variants={
            "LoRA": {"train.method": "lora"},
            "LoRA, blind": {"train.method": "lora", "data.images": "leave_out"},
        },
    )
    seeing, blind = compare(config, "the command").runs
    assert seeing.history != blind.history
    # The same words, and two answers to each: half of them are right, whatever was learnt.
    assert blind.accuracy == 0.5


def test_an_interrupted_run_goes_on_with_its_pictures(results, folder, monkeypatch):
    """Killed behind its first checkpoint; the numbers are those of the run that was not."""
    config = experiment(folder, out=folder / "killed", execute=ExecuteConfig(reuse=False))
    real, calls = loop.join_rows, []

    def killing(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(loop, "join_rows", killing)
    with pytest.raises(KeyboardInterrupt):
        compare(config, "the command")
    monkeypatch.undo()
    found = compare(config, "the command")
    assert [run.history for run in found.runs] == [run.history for run in results.runs]
    assert [run.correct for run in found.runs] == [run.correct for run in results.runs]


def test_the_pictures_matter_and_can_be_left_out(folder):
    def losses(**fields):
        config = experiment(folder)

        return evaluate(
            dataclasses.replace(config, data=dataclasses.replace(config.data, **fields)), None
        )[0]

    seen, blind = losses(), losses(images="leave_out")
    assert seen != blind
    assert "accuracy 50.0% of 4 rows" in blind  # the same text, and two answers


def test_an_adapter_answers_about_a_picture(results, folder, capsys):
    adapter = folder / "run" / "seed-0" / "dora"
    question, picture = "Which?", folder / "pictures" / "0.png"
    said_ = answer(question, adapter=adapter, images=[picture], max_new_tokens=4)
    how = ("--adapter", adapter, "--max-new-tokens", 4)
    command("generate", "--prompt", question, "--image", picture, "--no-stream", *how)
    assert capsys.readouterr().out.strip() == said_
    rows = [
        {"prompt": question, "image": "0.png"},
        {"messages": [{"role": "user", "content": "<image>\nWhich?"}], "images": ["0.png"]},
        {"prompt": "Say 3"},
    ]
    write_rows(folder / "asked.jsonl", rows)
    files = ("--prompts", folder / "asked.jsonl", "--out", folder / "said.jsonl")
    command("generate", *files, "--image-folder", folder / "pictures", *how)
    found = [json.loads(line) for line in (folder / "said.jsonl").read_text().splitlines()]
    assert found[0]["completion"] == found[1]["completion"] == said_
    merged = folder / "merged"
    command("merge", "--adapter", adapter, "--out", merged)
    assert (
        answer(question, model=str(merged), template="plain", images=[picture], max_new_tokens=4)
        == said_
    )
    assert load_pretrained(merged).processor == load_pretrained(folder / "llava").processor


BAD_ROWS = (
    ({"prompt": "<image> and <image>", "image": "0.png"}, "says <image> 2 times"),
    ({"prompt": "What?", "image": "none.png"}, r"none\.png: is no image"),
    ({"prompt": "What?", "image": 5}, "must be the names of files, not int"),
    ({"messages": [{"role": "system", "content": "x"}], "image": "0.png"}, "no question of a user"),
)


@pytest.mark.parametrize(("row", "message"), BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_a_bad_row_of_prompts_is_named_before_any_work(folder, tmp_path, row, message):
    write_rows(tmp_path / "asked.jsonl", [{"prompt": "Say 3"}, row])
    with pytest.raises(DoraError, match=rf"asked\.jsonl, line 2: .*{message}"):
        generate_file(
            tmp_path / "asked.jsonl",
            tmp_path / "said.jsonl",
            Sampling(2),
            model=str(folder / "llava"),
            template="plain",
            image_folder=folder / "pictures",
        )
    assert not (tmp_path / "said.jsonl").exists()


def damage(path):
    """Write noise as an image, and change it in the middle, where neither end shows it."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_an_image_that_is_damaged_in_its_middle_is_named_before_any_work(folder, tmp_path):
    damage(tmp_path / "b.png")
    draw(tmp_path / "a.png", 20)
    asked = tmp_path / "asked.jsonl"
    write_rows(asked, [{"prompt": "Which?", "image": name} for name in ("a.png", "b.png")])
    with pytest.raises(DoraError, match=r"asked\.jsonl, line 2: .*b\.png: is no image"):
        generate_file(asked, tmp_path / "said.jsonl", Sampling(2), model=str(folder / "llava"))
    assert not (tmp_path / "said.jsonl").exists()


def test_images_of_rows_that_are_not_answered_may_change(folder, tmp_path):
    """The first row stays answered when the second one's image is replaced, and only then."""
    names = ("a.png", "b.png")
    for name in names:
        draw(tmp_path / name, 20)
    asked, said_ = tmp_path / "asked.jsonl", tmp_path / "said.jsonl"
    write_rows(asked, [{"prompt": "Which?", "image": name} for name in names])
    how = {"model": str(folder / "llava"), "template": "plain", "batch_size": 1}
    assert generate_file(asked, said_, Sampling(2), **how) == 2
    first, second = said_.read_bytes().splitlines(keepends=True)
    said_.write_bytes(first)
    Image.new("RGB", (30, 14), (1, 2, 3)).save(tmp_path / "b.png")
    assert generate_file(asked, said_, Sampling(2), **how) == 1
    assert said_.read_bytes().splitlines(keepends=True)[0] == first
    assert said_.read_bytes().splitlines(keepends=True)[1] != second
    # What is answered now is noted: neither image may change any more.
    for name, row in (("a.png", 1), ("b.png", 2)):
        kept = (tmp_path / name).read_bytes()
        Image.new("RGB", (9, 14), (1, 2, 3)).save(tmp_path / name)
        with pytest.raises(
            DoraError, match=rf"another run \(the images of row {row} have \[.*\] bytes there and"
        ):
            generate_file(asked, said_, Sampling(2), **how)
        (tmp_path / name).write_bytes(kept)
    assert generate_file(asked, said_, Sampling(2), **how) == 0


def test_answers_about_other_images_are_not_mixed(folder, tmp_path):
    """Parts of a message, and another folder with images of the same names."""
    parts = [{"type": "text", "text": "Which?"}]
    asked = tmp_path / "asked.jsonl"
    write_rows(asked, [{"messages": [{"role": "user", "content": parts}], "image": "0.png"}])
    how = {"model": str(folder / "llava"), "template": "chat"}
    said_ = tmp_path / "said.jsonl"
    assert generate_file(asked, said_, Sampling(2), image_folder=folder / "pictures", **how) == 1
    Image.new("RGB", (30, 14), (1, 2, 3)).save(tmp_path / "0.png")
    with pytest.raises(DoraError, match=r"holds answers of another run \(the images of row 1"):
        generate_file(asked, said_, Sampling(2), **how)


def test_processors_are_found_where_transformers_writes_them(folder, tmp_path, caplog):
    own = load_pretrained(folder / "llava").processor
    shutil.copytree(folder / "llava", tmp_path / "new")
    told = tmp_path / "new" / "preprocessor_config.json"
    whole = {"processor_class": "LlavaProcessor", "image_processor": json.loads(told.read_text())}
    (tmp_path / "new" / "processor_config.json").write_text(json.dumps(whole))
    told.unlink()
    assert load_pretrained(tmp_path / "new").processor == own
    assert caplog.records == []
    (tmp_path / "new" / "processor_config.json").unlink()
    usual = load_pretrained(tmp_path / "new").processor
    assert (usual.size, usual.crop, usual.pad) == (14, (14, 14), False)
    assert "says nothing of how images are processed" in caplog.records[0].getMessage()


@pytest.mark.parity
def test_transformers_processor_gives_what_ours_does(folder):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    theirs = transformers.AutoProcessor.from_pretrained(folder / "llava")
    assert type(theirs).__name__ == "LlavaProcessor"
    picture = Image.open(folder / "pictures" / "1.png")
    given = theirs(images=picture, text="<image>\nWhich?", return_tensors="np")
    ready = load_answerer(str(folder / "llava"), template="none")
    assert given["input_ids"][0].tolist() == ready.encode_prompt("<image>\nWhich?")
    pixels = ready.vision.pixels(folder / "pictures" / "1.png")
    np.testing.assert_allclose(given["pixel_values"][0].transpose(1, 2, 0), pixels, atol=1 / 255)


def test_a_conversation_shows_a_picture_with_the_next_message(folder):
    told: list[str] = []
    chat = Chat(
        lambda path: load_answerer(str(folder / "llava"), path, "plain"),
        Sampling(3),
        write=lambda text: None,
        say=told.append,
    )
    chat.feed(f"/image {folder / 'pictures' / '1.png'}")
    assert told[-1] == "1.png will be shown with your next message"
    chat.feed("Which?")
    chat.feed("And now?")
    first, _, second, _ = chat.messages
    assert first["content"] == "<image>\nWhich?"
    assert first["images"] == [str(folder / "pictures" / "1.png")]
    assert "images" not in second
    chat.feed(f"/image {folder / 'none.png'}")
    assert "none.png: is no image that can be read" in told[-1]
    chat.feed("/image")
    assert told[-1] == "no image is to be shown"
    chat.feed(f"/image {folder / 'pictures' / '0.png'}")
    chat.feed("/image")
    assert told[-1] == "1 images will not be shown"
    chat.feed("What of <image>?")
    assert told[-1] == "<image> in a message stands for one: show it with /image FILE"
    chat.feed("/system See <image>.")
    assert told[-1] == "a system message cannot hold <image>: show one with /image FILE"
    assert len(chat.messages) == 4
    for _ in range(14):
        chat.feed(f"/image {folder / 'pictures' / '0.png'}")
    chat.feed("Which?")
    assert "show fewer images (/image takes them back; each is 9 tokens)" in told[-1]
    blind = Chat(
        lambda path: load_answerer(str(folder / "model"), path, "plain"),
        Sampling(3),
        write=lambda text: None,
        say=told.append,
    )
    blind.feed(f"/image {folder / 'pictures' / '1.png'}")
    assert "reads text alone; name a model that sees with --model" in told[-1]


def test_a_llava_without_a_chat_template_is_asked_as_llava_was(folder, tmp_path):
    shutil.copytree(folder / "llava", tmp_path / "old")
    config = json.loads((tmp_path / "old" / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (tmp_path / "old" / "tokenizer_config.json").write_text(json.dumps(config))
    ready = load_answerer(str(tmp_path / "old"))
    assert ready.template.name == "vicuna"
    said_ = [
        {"role": "user", "content": "<image>\nWhich?"},
        {"role": "assistant", "content": "world"},
        {"role": "user", "content": "So?"},
    ]
    ids = ready.encode_messages(said_)
    assert ids.count(ready.vision.token_id) == ready.vision.tokens
    text = ready.tokenizer.decode(ids)
    assert text.startswith("A chat between a curious user")
    assert text.endswith("USER: \nWhich? ASSISTANT: worldUSER: So? ASSISTANT:")
    assert ready.tokenizer.eos_id in ids
    assert load_answerer(str(folder / "llava")).template.name == "chat"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model", "model", "--prompt", "What?", "--image", "pictures/0.png"],
            "reads text alone",
        ),
        (["--model", "llava", "--prompt", "What?", "--image", "none.png"], "none.png: is no image"),
        (
            ["--model", "llava", "--prompts", "x.jsonl", "--out", "y", "--image", "z"],
            "--image goes",
        ),
        (
            ["--model", "llava", "--prompt", "<image> <image>", "--image", "pictures/0.png"],
            "the text says <image> 2 times, and there are 1 images",
        ),
    ],
)
def test_bad_requests_are_one_message(folder, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit):
        cli.main(["generate", "--template", "plain", *arguments])
    assert message in capsys.readouterr().err


def test_results_are_read_back(results, folder):
    stored = json.loads((folder / "run" / "results.json").read_text())
    assert decode(ComparisonResults, stored).runs == results.runs
