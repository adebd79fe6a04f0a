"""What of a clip a model that reads features is given: the moment, thinned, and nothing else."""

import dataclasses
import json

import numpy as np
import pytest

from dora_jax.data.splits import read_examples
from dora_jax.data.vision import ImageFile
from dora_jax.data.vl.captions import read_clip_captions
from dora_jax.data.vl.feature_files import NumpyFeatures
from dora_jax.data.vl.rows_file import write_rows
from dora_jax.data.vl.visuals import FeatureVision
from dora_jax.errors import DoraError
from dora_jax.training.config import DataConfig
from tests.data.vl import files
from tests.data.vl.tiny import CONFIG

SECONDS = 1.5  # as the VALUE benchmark's features have it
CLIPS = dataclasses.replace(CONFIG, layout="frames", image_tokens=16)


@pytest.fixture
def folder(tmp_path):
    """Features of a clip of a minute: each frame's first number is its place."""
    frames = np.zeros((40, CLIPS.feature_size), np.float32)
    frames[:, 0] = np.arange(40)
    np.savez(tmp_path / "s01e01_clip_02.npz", features=frames)
    return tmp_path


def frames_of(folder, span, config=CLIPS, seconds=SECONDS):
    vision = FeatureVision(NumpyFeatures(folder), config, seconds)
    (seen,) = vision.pictures([ImageFile("s01e01_clip_02", "", span=span)])
    return seen.features[:, 0].astype(int).tolist()


@pytest.mark.parametrize(
    ("span", "frames"),
    [
        # Each frame stands for a second and a half: number 5 for 7.5 to 9.
        ((8.6, 16.1), [5, 6, 7, 8, 9, 10]),
        ((7.5, 9.0), [5]),
        ((7.5, 9.1), [5, 6]),
        ((0.0, 1.4), [0]),
        ((3.0, 3.0), [2]),
        ((57.2, 61.5), [38, 39]),  # longer than the clip by rounding
        ((75.0, 80.0), [39]),
    ],
)
def test_of_a_moment_every_frame_is_seen_that_it_touches(folder, span, frames):
    assert frames_of(folder, span) == frames


def test_a_long_clip_or_moment_is_thinned_evenly_to_the_model_s_tokens(folder):
    four = dataclasses.replace(CLIPS, image_tokens=4)
    assert frames_of(folder, None, four) == [5, 15, 25, 35]
    # Of the eight frames from 15 to 27 seconds.
    assert frames_of(folder, (15.0, 27.0), four) == [11, 13, 15, 17]
    assert frames_of(folder, (15.0, 18.0), four) == [10, 11]


@pytest.mark.parametrize(
    ("config", "seconds", "message"),
    [
        (CLIPS, None, r"'s01e01_clip_02': .* say how many seconds .*data\.frame_seconds"),
        (CONFIG, SECONDS, "'s01e01_clip_02': .* the model reads grid, not frames"),
    ],
)
def test_a_moment_is_cut_out_or_refused(folder, config, seconds, message):
    with pytest.raises(DoraError, match=message):
        frames_of(folder, (8.6, 16.1), config, seconds)


def test_the_moments_of_a_published_file_need_the_seconds_of_a_feature(folder):
    """From the published row to what the model is given."""
    published = [
        {**files.CLIP_CAPTIONS[0], "clip_id": n, "ts": [start, start + 7.5]}
        for n, start in enumerate((8.6, 20.0, 30.0, 40.0))
    ]
    path = files.write(folder / "tvc.jsonl", published)
    for use, part in (("train", published[:3]), ("eval", published[3:])):
        files.write(path, part)
        write_rows(folder / f"{use}.jsonl", read_clip_captions(path, "tvc", each_caption=False))
    data = DataConfig(
        train=folder / "train.jsonl",
        eval=folder / "eval.jsonl",
        features=folder,
        validation_rows=0,
        prompt="none",
    )
    with pytest.raises(DoraError, match=r"eval\.jsonl, line 1: 'span' .* data\.frame_seconds \(1"):
        read_examples(data)
    found = read_examples(dataclasses.replace(data, frame_seconds=SECONDS)).splits["train"]
    spans = {example.images[0].span for example in found}
    assert spans == {(8.6, 16.1), (20.0, 27.5), (30.0, 37.5)}
    # Where clips are not looked at, nothing is to be cut.
    blind = read_examples(dataclasses.replace(data, images="leave_out"))
    assert [example.images for example in blind.splits["train"]] == [(), (), ()]
    whole = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    for number, row in enumerate(whole):
        del row["span"]
        row["instruction"] = f"tvc: {number}"
    files.write(folder / "train.jsonl", whole[1:])
    files.write(folder / "eval.jsonl", whole[:1])
    (row, _) = read_examples(data).splits["train"]
    assert row.images[0].span is None


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("grid", r"'s01e01_clip_02', image 1: its 40 features are no square; the model takes the"),
        (
            "regions",
            r"image 1: has 40 regions; the model takes 4 \(image_tokens\): keep the best 4",
        ),
    ],
)
def test_features_that_the_model_does_not_take_name_file_and_image(folder, layout, message):
    config = dataclasses.replace(CONFIG, layout=layout)
    with pytest.raises(DoraError, match=f"{folder.name}.*{message}"):
        frames_of(folder, None, config)
