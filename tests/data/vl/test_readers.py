"""The readers of eight tasks' published files: what rows they give, and what they refuse."""

import copy

import pytest

from dora_jax.data.vl.captions import read_clip_captions, read_coco_captions, read_karpathy
from dora_jax.data.vl.clip_questions import read_clip_questions, read_how2qa_csv
from dora_jax.data.vl.nlvr2 import read_nlvr2
from dora_jax.data.vl.questions import read_gqa, read_labelled, read_vqa
from dora_jax.data.vl.row import TASKS, VLRow, choice_source, source_text
from dora_jax.data.vl.subtitles import read_subtitles, span_of
from dora_jax.errors import DoraError
from tests.data.vl import files
from tests.data.vl.files import write


def test_vqa_has_soft_targets_of_what_people_answered(tmp_path):
    asked = write(tmp_path / "q.json", files.QUESTIONS)
    answered = write(tmp_path / "a.json", files.ANNOTATIONS)
    first, second = read_vqa(asked, answered)
    # Normalised, seven of ten say "dog"; "the" is nothing.
    assert first.targets == ("dog", "puppy")
    assert first.weights == pytest.approx((1.0, 0.6))
    assert first.references[6] == "Dog."
    assert len(first.references) == 10
    assert first.visuals == ("COCO_val2014_000000000042",)
    assert (second.id, second.source, second.targets) == ("421", "How many?", ("1",))
    hidden = list(read_vqa(asked))
    assert [row.targets for row in hidden] == [(), ()]


def test_vqa_of_two_splits_is_refused(tmp_path):
    asked = write(tmp_path / "q.json", files.QUESTIONS)
    less = {"annotations": files.ANNOTATIONS["annotations"][:1]}
    answered = write(tmp_path / "a.json", less)
    with pytest.raises(DoraError, match=r"a\.json: has no answers to question 421 of .*q\.json"):
        list(read_vqa(asked, answered))
    fewer = {**files.QUESTIONS, "questions": files.QUESTIONS["questions"][:1]}
    write(tmp_path / "q.json", fewer)
    write(tmp_path / "a.json", files.ANNOTATIONS)
    with pytest.raises(DoraError, match=r"q\.json: has no question 421, which .*a\.json answers"):
        list(read_vqa(asked, answered))
    write(tmp_path / "q.json", {**fewer, "questions": 2 * fewer["questions"]})
    with pytest.raises(DoraError, match=r"q\.json: has question '420' twice"):
        list(read_vqa(asked, answered))


@pytest.mark.parametrize("task", ["vqa", "gqa"])
def test_labelled_lists_have_their_scores(tmp_path, task):
    rows = list(read_labelled(write(tmp_path / "karpathy.json", files.LABELLED), task))
    assert rows[0].targets == ("yes", "no")
    assert rows[0].weights == (1.0, 0.3)
    assert rows[0].references == (("yes", "no") if task == "gqa" else ())
    assert rows[1].targets == ()
    assert {row.task for row in rows} == {task}


@pytest.mark.parametrize("label", [["yes"], {"yes": 2}, {"yes": "1"}, {"yes": float("nan")}])
def test_a_label_is_an_object_of_scores(tmp_path, label):
    path = write(tmp_path / "rows.json", [{**files.LABELLED[0], "label": label}])
    with pytest.raises(DoraError, match=r"rows\.json, row 1: 'label' must be an object of answers"):
        list(read_labelled(path, "vqa"))


def test_gqa_of_the_published_object(tmp_path):
    given = {
        "07": {"question": "Is it red?", "imageId": "n1", "answer": "yes"},
        "08": {"question": "What?", "imageId": 23},
    }
    first, second = read_gqa(write(tmp_path / "gqa.json", given))
    assert (first.id, first.targets, first.references) == ("07", ("yes",), ("yes",))
    assert (second.visuals, second.targets) == (("23",), ())
    with pytest.raises(DoraError, match="question 1: has no field 'question'"):
        list(read_gqa(write(tmp_path / "gqa.json", {"1": {}})))


def test_nlvr2_has_two_images_in_order(tmp_path):
    published = [
        {"identifier": "dev-850-0-1", "sentence": "Both are dogs.", "label": "True"},
        {"identifier": "test2-1-0-0", "sentence": "None is."},
    ]
    first, second = read_nlvr2(write(tmp_path / "dev.jsonl", published))
    assert first.visuals == ("dev-850-0-img0", "dev-850-0-img1")
    assert (first.targets, second.targets) == (("true",), ())
    images = {"img0": "a-img0", "img1": "a-img1"}
    (listed,) = read_nlvr2(
        write(tmp_path / "dev.json", [{"uid": "u", "sent": "No.", "label": 0, **images}])
    )
    assert (listed.id, listed.targets, listed.visuals) == ("u", ("false",), ("a-img0", "a-img1"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "Maybe"}, "line 2: 'label' must be True or False"),
        ({"label": 2}, "line 2: 'label' must be True or False"),
        ({"identifier": "alone"}, "line 2: 'identifier' must be a name such as"),
        ({"sentence": " "}, "line 2: 'sentence' must be a text, not empty"),
    ],
)
def test_nlvr2_names_line_and_field(tmp_path, change, message):
    good = {"identifier": "dev-850-0-1", "sentence": "Both are dogs.", "label": "True"}
    path = write(tmp_path / "dev.jsonl", [good, {**good, **change}])
    with pytest.raises(DoraError, match=message):
        list(read_nlvr2(path))


def test_karpathys_training_split_has_what_was_set_apart(tmp_path):
    path = write(tmp_path / "dataset_coco.json", files.KARPATHY)
    rows = list(read_karpathy(path, "train", each_caption=True))
    assert [row.id for row in rows] == ["0#0", "0#1", "1#0", "1#1"]
    assert rows[2].targets == ("Caption 1.",)
    assert rows[2].references == ("Caption 1.", "Another 1.")
    assert rows[2].visuals == ("COCO_val2014_000000000001",)
    assert source_text(rows[2]) == "caption:"
    (test,) = read_karpathy(path, "test", each_caption=False)
    assert (test.id, test.references) == ("3", ("Caption 3.", "Another 3."))
    few = write(tmp_path / "few.json", {"images": files.KARPATHY["images"][:1]})
    with pytest.raises(DoraError, match="has no image of split 'val'"):
        list(read_karpathy(few, "val", each_caption=False))


def test_coco_captions_of_an_image_are_together(tmp_path):
    given = {
        "images": [{"id": 9, "file_name": "000000000009.jpg"}],
        "annotations": [
            {"image_id": 9, "id": 1, "caption": "A dog."},
            {"image_id": 9, "id": 2, "caption": "One dog."},
        ],
    }
    path = write(tmp_path / "captions.json", given)
    (row,) = read_coco_captions(path, each_caption=False)
    assert (row.references, row.visuals) == (("A dog.", "One dog."), ("000000000009",))
    assert len(list(read_coco_captions(path, each_caption=True))) == 2
    broken = copy.deepcopy(given)
    broken["annotations"][1]["image_id"] = 8
    with pytest.raises(DoraError, match="'annotations', row 2: image 8 is not among 'images'"):
        list(read_coco_captions(write(path, broken), each_caption=True))


def test_tvqa_lists_its_options_and_what_is_said(tmp_path):
    said = read_subtitles(write(tmp_path / "sub.jsonl", files.SUBTITLES))
    path = write(tmp_path / "tvqa.jsonl", files.TVQA)
    first, hidden = read_clip_questions(path, "tvqa", said, localised=True)
    assert source_text(first) == (
        "tvqa: Why? Options: (A) Answer 0. (B) Answer 1. (C) Answer 2. (D) Answer 3. (E) Answer 4."
        " Subtitles: Ben : Ho. Ann : Bye."
    )
    assert (first.targets, first.span) == (("Answer 2.",), (1.5, 4.0))
    assert hidden.options == ("Ann", "Ben")
    assert (hidden.targets, hidden.span) == ((), None)
    assert hidden.source == "Who? Options: (A) Ann (B) Ben"
    whole, _ = read_clip_questions(path, "tvqa", said)
    assert whole.source.endswith("Subtitles: Ann : Hi. Ben : Ho. Ann : Bye. Ben : Bye.")
    assert whole.span is None
    alone = {name: value for name, value in files.TVQA[1].items() if name != "a1"}
    one = write(tmp_path / "one.jsonl", [alone])
    with pytest.raises(DoraError, match=r"one\.jsonl, line 1: has no field 'a1'"):
        list(read_clip_questions(one, "tvqa"))
    wrong = write(tmp_path / "wrong.jsonl", [{**files.TVQA[0], "answer_idx": 5}])
    with pytest.raises(DoraError, match="line 1: 'answer_idx' must be below 5; got 5"):
        list(read_clip_questions(wrong, "tvqa"))


def test_the_place_of_how2qas_right_answer_says_nothing(tmp_path):
    path = tmp_path / "how2qa.csv"
    path.write_text(files.HOW2QA)
    first, second = read_how2qa_csv(path, localised=True)
    assert sorted(first.options) == ["1", "10", "12", "16"]
    assert first.source.startswith("How many, in all? Options: (A) ")
    assert (first.targets, first.span, first.visuals) == (("1",), (7.2, 18.0), ("vid1",))
    assert second.where.endswith("how2qa.csv, line 2")
    assert next(read_how2qa_csv(path, localised=True)) == first
    many = "".join(f"vid{n},[1.0:2.0],a,b,c,What {n}?,right\n" for n in range(400))
    path.write_text(many)
    places = [row.options.index("right") for row in read_how2qa_csv(path)]
    assert all(70 < places.count(place) < 130 for place in range(4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vid,[1:2],a,b,c,What?\n", "line 1: must have seven columns, none empty; got 6"),
        ("vid,[1:2],a,,c,What?,d\n", "line 1: must have seven columns"),
        ("vid,[2:1],a,b,c,What?,d\n", "line 1: 'ts' must be two times in seconds"),
        ('vid,[1:2],a,b,c,What?,"d\n', r"line 1: is not CSV \(unexpected end of data\)"),
    ],
)
def test_broken_csv_is_named_by_line(tmp_path, text, message):
    path = tmp_path / "how2qa.csv"
    path.write_text(text)
    with pytest.raises(DoraError, match=message):
        list(read_how2qa_csv(path, localised=True))
    with pytest.raises(DoraError, match=r"none\.csv: cannot be read"):
        list(read_how2qa_csv(tmp_path / "none.csv"))


@pytest.mark.parametrize("task", ["tvc", "yc2c"])
def test_clip_captions_are_of_a_moment(tmp_path, task):
    said = read_subtitles(write(tmp_path / "sub.jsonl", files.SUBTITLES))
    path = write(tmp_path / "tvc.jsonl", files.CLIP_CAPTIONS)
    (row,) = read_clip_captions(path, task, said, each_caption=False)
    assert source_text(row) == f"{task}: Ben : Ho. Ann : Bye."
    assert row.references == ("Ben waves.", "Ben greets Ann.")
    assert (row.id, row.visuals, row.span) == ("86", ("s01e01_clip_02",), (1.5, 4.0))
    rows = list(read_clip_captions(path, task, each_caption=True))
    assert [r.targets for r in rows] == [("Ben waves.",), ("Ben greets Ann.",)]
    hidden = {k: v for k, v in files.CLIP_CAPTIONS[0].items() if k != "descs"}
    write(path, [hidden])
    assert [r.targets for r in read_clip_captions(path, task, each_caption=False)] == [()]
    with pytest.raises(DoraError, match="line 1: 'descs' must be captions to train on"):
        list(read_clip_captions(path, task, each_caption=True))


@pytest.mark.parametrize(
    ("given", "expected"),
    [("1.5-4", (1.5, 4)), ("[0:2.5]", (0, 2.5)), ([3, 3], (3, 3)), ("nan-nan", None)],
)
def test_moments_as_they_are_written(given, expected):
    assert span_of(given, "here") == expected


@pytest.mark.parametrize("given", ["4-1", "1", [1], None, "a-b", [-1, 2], [0, float("inf")]])
def test_other_moments_are_refused(given):
    with pytest.raises(DoraError, match="here: 'ts' must be two times in seconds, from and to"):
        span_of(given, "here")


def test_broken_lines_are_named(tmp_path):
    path = tmp_path / "sub.jsonl"
    path.write_text('{"vid_name": "a", "sub": []}\n{"vid_name" "b"}\n')
    with pytest.raises(DoraError, match=r"sub\.jsonl, line 2, column 13: is not JSON"):
        read_subtitles(path)
    write(path, [{"vid_name": "a", "sub": []}, {"vid_name": "b", "sub": []}] * 2)
    with pytest.raises(DoraError, match=r"sub\.jsonl, line 3: has clip 'a' again; keep one row"):
        read_subtitles(path)
    write(path, [{"vid_name": "a", "sub": [{"text": "x", "start": "0", "end": 1}]}])
    with pytest.raises(DoraError, match="line 1, 'sub', row 1: 'start' must be a number of sec"):
        read_subtitles(path)


def test_rows_are_checked():
    with pytest.raises(ValueError, match=r"task must be one of .*; got 'vqa2' \(did you mean"):
        VLRow("vqa2", "1", "", ())
    with pytest.raises(ValueError, match="2 weights of 1 targets"):
        VLRow("vqa", "1", "", ("a",), (1.0, 1.0))
    with pytest.raises(ValueError, match="weights must be positive"):
        VLRow("vqa", "1", "", ("a",), (0.0,))
    assert VLRow("vqa", "1", "", ("a", "b")).weights == (1.0, 1.0)


def test_each_task_has_its_prompt():
    shown = [source_text(VLRow(task, "1", "Text.", ())) for task in TASKS]
    assert shown[:2] == ["vqa: Text.", "gqa: Text."]
    assert len(set(shown)) == 8
    assert choice_source("Q?", ["x"]) == "Q? Options: (A) x"
