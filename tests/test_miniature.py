"""LLaVA in miniature, in sizes of a toy: every step, and nothing twice."""

import dataclasses
import json

import jax
import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the scenes extra is not installed")
pytest.importorskip("PIL", reason="the scenes extra is not installed")

from PIL import Image

from dora_jax.checkpoint.hf import write_hf_folder
from dora_jax.checkpoint.llava import read_llava_folder
from dora_jax.checkpoint.vision import read_vision_folder
from dora_jax.data.sources import read_source
from dora_jax.errors import DoraError
from experiments.llava import miniature
from experiments.llava.tower import pictures_of
from tests.checkpoint.tiny_model import CONFIG, hf_weights, our_params, tokenizer
from tests.nlvr_folder import nlvr_folder

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
        tower_scenes=8,
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
        miniature.run(sizes, nlvr_folder(place / "nlvr"))
    return sizes, place


def parts(place, sizes, name):
    return read_llava_folder(place / sizes.folder / name).params


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_each_step_changes_what_it_should(made):
    sizes, place = made
    _, tower = read_vision_folder(place / sizes.folder / "tower")
    joined, aligned = (parts(place, sizes, name) for name in ("joined", "aligned"))
    assert same(tower, joined["vision_tower"])
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
    assert (tasks.count("family A"), tasks.count("nlvr"), len(tasks)) == (2, 3, 9)
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

    scenes = {stage: pixels(stage) for stage in ("align", "tune", "test")}
    pictures, _ = pictures_of("train", sizes.tower_scenes, 4)
    scenes["tower"] = {picture.tobytes() for picture in pictures}
    for stage in ("tower", "align", "tune"):
        assert not scenes[stage] & scenes["test"]


def test_again_nothing_is_done(made, monkeypatch):
    sizes, place = made
    monkeypatch.chdir(place)

    def refuse(*arguments):
        raise AssertionError("done already")

    before = {path: path.stat().st_mtime_ns for path in (place / sizes.folder).rglob("*")}
    for name in ("learn_data", "train_tower", "join_parts", "write_trained"):
        monkeypatch.setattr(miniature, name, refuse)
    miniature.run(sizes, place / "nlvr")
    assert {p: p.stat().st_mtime_ns for p in (place / sizes.folder).rglob("*")} == before


def test_what_was_half_made_is_made_again(made, monkeypatch, tmp_path):
    sizes, _ = made
    monkeypatch.chdir(tmp_path)
    half = tmp_path / sizes.folder / ".align" / "captions"
    half.mkdir(parents=True)
    (half / "rest.txt").write_text("of an interrupted run")
    miniature.run(sizes, until="data")
    assert not (tmp_path / sizes.folder / "align" / "captions" / "rest.txt").exists()
    assert not (tmp_path / sizes.folder / ".align").exists()
    assert (tmp_path / sizes.folder / "test" / "b" / "rows.jsonl").exists()
    assert not (tmp_path / sizes.folder / "tower").exists()


def test_what_was_made_of_something_else_is_not_taken(made, monkeypatch, tmp_path):
    sizes, place = made
    monkeypatch.chdir(place)
    with pytest.raises(DoraError, match=r"tune: was made of something else .nlvr is True there"):
        miniature.run(sizes)
    other = dataclasses.replace(sizes, tower_steps=3)
    with pytest.raises(DoraError, match=r"tower: was made .*tower_steps is 2 there and 3 here"):
        miniature.run(other, place / "nlvr")
    with pytest.raises(DoraError, match=r"train\.jsonl: no such file; --nlvr takes a folder"):
        miniature.run(sizes, tmp_path)


def test_statements_that_are_tested_are_not_trained_on(made):
    sizes, place = made

    def rows(stage):
        path = place / sizes.folder / stage / "nlvr" / "rows.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    assert [row["question"].split("\n")[0] for row in rows("test")] == [
        "It is 0.",
        "It is 3.",
        "It is 4.",
    ]
    assert len(rows("tune")) == 5


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(miniature, "run", interrupt)
    with pytest.raises(SystemExit) as stopped:
        miniature.main([])
    assert stopped.value.code == 130
    assert "run the same command again to continue" in capsys.readouterr().err
