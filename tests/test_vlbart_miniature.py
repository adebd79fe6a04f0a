"""VL-BART in miniature, in sizes of a toy: both families' steps, and nothing twice."""

import dataclasses
import json

import jax
import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the scenes extra is not installed")
pytest.importorskip("PIL", reason="the scenes extra is not installed")


from dora_jax.checkpoint.bart import read_bart_folder
from dora_jax.comparison.arms import make_arms
from dora_jax.data.scenes.families import FAMILY_A, FAMILY_B
from dora_jax.errors import DoraError
from experiments import steps
from experiments.llava import miniature as llava
from experiments.vlbart import miniature
from experiments.vlbart.miniature import CPU, GPU
from experiments.vlbart.scene_rows import TASKS, pictures, scene_row
from tests.nlvr_folder import nlvr_folder

TOWER = dataclasses.replace(
    llava.CPU, name="toy", width=32, layers=2, tower_scenes=8, tower_steps=1
)
TOY = {
    "name": "toy",
    "tower": TOWER,
    "width": 32,
    "layers": 1,
    "vocabulary": 300,
    "learn_rows": 6,
    "text_rows": 2,
    "learn_steps": 4,
    "tune_rows": 6,
    "tune_steps": 2,
    "search_steps": 0,
    "test_rows": 2,
    "test_captions": 2,
    "rank": 2,
    "new_tokens": 3,
    "seeds": (0,),
}


def toy(subject):
    return dataclasses.replace(CPU[subject], **TOY)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where all is run: the tower that both families take, hardly trained, is there."""
    found = tmp_path_factory.mktemp("miniature")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(found)
        llava.make_tower(TOWER)
    nlvr_folder(found / "nlvr")
    return found


def done(subject, place, until):
    """Do the steps, NLVR too for images; return the sizes and where it was run."""
    sizes = toy(subject)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        miniature.run(sizes, place / "nlvr" if subject == "images" else None, until)
    return sizes, place


@pytest.fixture(scope="module", params=["images", "video"])
def made(request, place):
    return done(request.param, place, "base")


def records(sizes, place, part):
    files = sorted((place / sizes.folder / "rows" / part).glob("*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_methods_are_compared_by_task(place):
    sizes, _ = done("images", place, "compared")
    (run,) = (place / "runs").glob(f"vlbart-scenes-{sizes.subject}-toy-*")
    results = json.loads((run / "results.json").read_text())
    assert [arm["label"] for arm in results["arms"]] == [
        "LoRA",
        "DoRA",
        "Full fine-tuning",
        "LoRA, text alone",
        "LoRA, images alone",
    ]
    tasks = [row["task"] for row in results["eval_rows"]]
    assert sorted(tasks) == sorted(2 * [*TASKS[sizes.subject], "nlvr-real"])
    trained = {run["method"]: run["trainable_parameters"] for run in results["runs"]}
    assert trained["lora"] < trained["dora"] < trained["full-fine-tuning"]
    assert trained["lora"] == trained["lora-text-alone"] == trained["lora-images-alone"]
    losses = {run["method"]: run["loss"] for run in results["runs"]}
    assert len(set(losses.values())) == len(losses)


@pytest.mark.slow
def test_the_base_is_the_start_trained_in_full(made):
    sizes, place = made
    start, base = (
        read_bart_folder(place / sizes.folder / name).params for name in ("start", "base")
    )
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(start), jax.tree_util.tree_leaves(base), strict=True
    )
    kept = {jax.tree_util.keystr(path) for (path, a), b in pairs if np.array_equal(a, b)}
    # The tower's features have no boxes, so nothing comes through the kernel that reads them.
    no_boxes = "['visual_embedding']['absolute_vis_pos_embedding']['kernel']"
    assert kept == {"['final_logits_bias']['buffer']", no_boxes}


@pytest.mark.slow
def test_features_of_all_that_rows_name_are_kept(made, monkeypatch):
    sizes, place = made
    monkeypatch.chdir(place)
    cached = miniature.make_features(sizes)
    cached.verify()
    parts = [records(sizes, place, part) for part in ("A/train", "A/test", "B/train", "B/test")]
    named = [{name for row in rows for name in row.get("images", ())} for rows in parts]
    assert set(cached.names) == set.union(*named)
    assert sum(map(len, named)) == len(cached.names)  # no picture is in two parts
    if sizes.subject == "images":
        assert len(cached.get("A-train-nlvr-000001-right").features) == 16
        assert [len(row["images"]) for row in parts[3] if row["task"] == "nlvr-real"] == [3, 3]
    else:
        name = "{}-train-tvqa-000001".format
        # As many of both families: else the base would not know the places of the last ones.
        assert len(cached.get(name("A")).features) == FAMILY_B.frames
        assert len(cached.get(name("B")).features) == FAMILY_B.frames


@pytest.mark.slow
def test_again_nothing_is_done(made, monkeypatch):
    sizes, place = made
    monkeypatch.chdir(place)

    def refuse(*arguments):
        raise AssertionError("done already")

    before = {path: path.stat().st_mtime_ns for path in (place / sizes.folder).rglob("*")}
    for name in ("write_data", "write_start", "pictures"):
        monkeypatch.setattr(miniature, name, refuse)
    monkeypatch.setattr(llava, "train_tower", refuse)
    monkeypatch.setattr(steps, "train", refuse)
    done(sizes.subject, place, "base")
    assert {p: p.stat().st_mtime_ns for p in (place / sizes.folder).rglob("*")} == before


def test_other_settings_are_refused(made, monkeypatch):
    sizes, place = made
    monkeypatch.chdir(place)
    nlvr = place / "nlvr" if sizes.subject == "images" else None
    for field in ("learn_rows", "width", "learn_steps"):
        other = dataclasses.replace(sizes, **{field: 64})
        with pytest.raises(DoraError, match=rf"made of something else \({field} is .* and 64 here"):
            miniature.run(other, nlvr, until="base")


def test_nlvr_is_for_images(tmp_path):
    with pytest.raises(DoraError, match="--nlvr is for images; leave it out for video"):
        miniature.run(toy("video"), tmp_path)


def test_a_tower_that_is_not_there_is_the_llava_miniature_s(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(llava, "make_tower", asked.append)
    miniature.run(toy("images"), until="data")
    assert not asked
    miniature.run(toy("images"), until="tower")
    assert asked == [TOWER]


@pytest.mark.parametrize("family", [FAMILY_A, FAMILY_B], ids=lambda family: family.name)
def test_questions_are_of_their_task(family):
    def row(task, number):
        return scene_row(task, family, "train", number)

    # Two rounds of all kinds of questions.
    numbers = range(2 * len(family.clip_kinds))
    assert all("Subtitles:" in row("tvqa", n).source for n in numbers)
    assert not any("Subtitles:" in row("how2qa", n).source for n in numbers)
    assert all(row("tvqa", n).targets[0] in row("tvqa", n).source for n in numbers)
    several = ("more", "fewer", "larger", "bigger", "left", "above", "higher", "below", "Add")
    simple = [row("vqa", n).source for n in numbers]
    assert not any(word in source for source in simple for word in several), simple
    for task in ("caption", "tvc", "yc2c"):
        found = row(task, 3)
        assert (found.source, found.references) == ("", found.targets)
    assert {row("nlvr", n).targets for n in range(12)} == {("true",), ("false",)}


@pytest.mark.parametrize("subject", TASKS)
def test_pictures_are_those_of_their_row_alone(subject):
    for task in TASKS[subject]:
        row, other = (scene_row(task, FAMILY_B, "test", number) for number in (0, 1))
        count = FAMILY_B.frames if subject == "video" else 1
        seen = [pictures(name) for name in (*row.visuals, *other.visuals)]
        assert {len(frames) for frames in seen} == {count}
        assert {frames[0].shape for frames in seen} == {(64, 64, 3)}
        told = {np.stack(frames).tobytes() for frames in seen}
        assert len(told) == len(seen)
        np.testing.assert_array_equal(pictures(row.visuals[0]), seen[0])


@pytest.mark.parametrize(
    "sizes", [*CPU.values(), *GPU.values()], ids=lambda sizes: sizes.folder.name
)
def test_its_sizes_go_together(sizes, tmp_path):
    compared = miniature.comparison(sizes, tmp_path)
    assert sizes.rank * 6 == sizes.width
    seeds = [dict(fields).get("compare.first_seeds", 0) for _, fields in compared.variants]
    assert seeds == [0, 0, 0, 1, 1]
    assert [arm.baseline for arm in make_arms(compared)] == [False, False, False, True, True]
    rates = [dict(fields).get("compare.learning_rates") for _, fields in compared.variants]
    assert all(rate is None or len(rate) == 3 for rate in rates)
    patches = (FAMILY_A.canvas // sizes.tower.patch) ** 2
    frames = max(FAMILY_A.frames, FAMILY_B.frames)
    assert sizes.image_tokens == (frames if sizes.subject == "video" else min(patches, 36))
