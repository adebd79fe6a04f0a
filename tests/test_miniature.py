"""LLaVA in miniature, in sizes of a toy: every step, and nothing twice."""

import dataclasses
import json
import zipfile

import jax
import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the scenes extra is not installed")
pytest.importorskip("PIL", reason="the scenes extra is not installed")

from PIL import Image

from dora_jax.checkpoint.hf import write_hf_folder
from dora_jax.checkpoint.llava import read_llava_folder
from dora_jax.data.sources import read_source
from dora_jax.errors import DoraError
from experiments.llava import miniature
from tests.checkpoint.tiny_model import CONFIG, hf_weights, our_params, tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Run it all, NLVR too; return the sizes and where it was run."""
    place = tmp_path_factory.mktemp("miniature")
    roomy = dataclasses.replace(CONFIG, max_position_embeddings=1000)
    language = place / "language"
    write_hf_folder(language, roomy, our_params(hf_weights()), tokenizer())
    sizes = dataclasses.replace(
        miniature.CPU,
        name="toy",
        language=str(language),
        width=32,
        layers=2,
        tower_rows=8,
        tower_steps=2,
        align_rows=4,
        align_steps=2,
        tune_rows=6,
        tune_steps=2,
        search_steps=0,
        test_rows=4,
        seeds=(0,),
        max_length=1000,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        miniature.run(sizes, _nlvr(place / "nlvr"))
    return sizes, place


def _nlvr(folder):
    folder.mkdir()
    for split in ("train", "dev"):
        rows = [{"sentence": f"It is {n}.", "label": "true", "image": f"{n}.png"} for n in range(5)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)
        with zipfile.ZipFile(folder / f"{split}_images.zip", "w") as file:
            for n in range(5):
                Image.new("RGB", (400, 100), (n, n, n)).save(folder / "one.png")
                file.write(folder / "one.png", f"{n}.png")
    return folder


def parts(place, sizes, name):
    return read_llava_folder(place / sizes.folder / name).params


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_each_step_changes_what_it_should(made):
    sizes, place = made
    captioner, tower, joined, aligned = (
        parts(place, sizes, name) for name in ("captioner", "tower-model", "joined", "aligned")
    )
    assert not same(captioner["vision_tower"], tower["vision_tower"])
    assert same(tower["vision_tower"], joined["vision_tower"])
    assert same(joined["vision_tower"], aligned["vision_tower"])
    assert same(joined["language_model"], aligned["language_model"])
    assert not same(joined["multi_modal_projector"], aligned["multi_modal_projector"])


def test_methods_are_compared_by_task(made):
    _, place = made
    (run,) = (place / "runs").glob("llava-scenes-toy-*")
    results = json.loads((run / "results.json").read_text())
    assert [arm["label"] for arm in results["arms"]] == [
        "LoRA",
        "DoRA",
        "Full fine-tuning",
        "LoRA, blind",
    ]
    tasks = [row["task"] for row in results["eval_rows"]]
    assert (tasks.count("family A"), tasks.count("nlvr"), len(tasks)) == (2, 4, 10)
    trained = {run["method"]: run["trainable_parameters"] for run in results["runs"]}
    assert trained["lora"] == trained["lora-blind"] < trained["dora"] < trained["full-fine-tuning"]


def test_training_rows_and_tests_share_no_scene(made):
    sizes, place = made

    def pixels(stage):
        found = set()
        for file in (place / sizes.folder / stage).glob("*/*.json*"):
            for example in read_source(file)[0]:
                found |= {np.asarray(Image.open(image.path)).tobytes() for image in example.images}
        return found

    scenes = {stage: pixels(stage) for stage in ("tower", "align", "tune", "test")}
    for stage in ("tower", "align", "tune"):
        boxes = 5 if stage == "tune" else 0  # NLVR's toy pictures are the same in both splits
        assert len(scenes[stage] & scenes["test"]) <= boxes


def test_again_nothing_is_done(made, monkeypatch):
    sizes, place = made
    monkeypatch.chdir(place)

    def refuse(*arguments):
        raise AssertionError("done already")

    before = {path: path.stat().st_mtime_ns for path in (place / sizes.folder).rglob("*")}
    for name in ("learn_data", "captioner", "join_parts", "train"):
        monkeypatch.setattr(miniature, name, refuse)
    miniature.run(sizes)
    assert {p: p.stat().st_mtime_ns for p in (place / sizes.folder).rglob("*")} == before


def test_what_was_half_made_is_made_again(made, monkeypatch, tmp_path):
    sizes, _ = made
    monkeypatch.chdir(tmp_path)
    half = tmp_path / sizes.folder / ".tower" / "captions"
    half.mkdir(parents=True)
    (half / "rest.txt").write_text("of an interrupted run")
    miniature.run(sizes, until="data")
    assert not (tmp_path / sizes.folder / "tower" / "captions" / "rest.txt").exists()
    assert not (tmp_path / sizes.folder / ".tower").exists()
    assert (tmp_path / sizes.folder / "test" / "b" / "rows.jsonl").exists()
    assert not (tmp_path / sizes.folder / "captioner").exists()
    with pytest.raises(DoraError, match="was made without NLVR"):
        miniature.run(sizes, tmp_path / "nlvr", until="data")


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(miniature, "run", interrupt)
    with pytest.raises(SystemExit) as stopped:
        miniature.main([])
    assert stopped.value.code == 130
    assert "run the same command again to continue" in capsys.readouterr().err
