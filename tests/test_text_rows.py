"""The texts with gaps that the base of VL-BART's miniature reads."""

import json

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the scenes extra is not installed")

from dora_jax.data.scenes.families import FAMILY_A, FAMILY_B
from experiments.vlbart.scene_rows import TASKS, scene_row
from experiments.vlbart.text_rows import GAP, texts_of, with_gaps, write_texts


@pytest.mark.parametrize("seed", range(5))
def test_gaps_stand_for_words_and_the_others_stay_in_order(seed):
    text = " ".join(f"w{n}" for n in range(40))
    found = with_gaps(text, np.random.default_rng(seed)).split()
    kept = [int(word[1:]) for word in found if word != GAP]
    assert kept == sorted(kept)
    assert 0.5 * 40 < len(kept) <= 0.7 * 40
    for before, word, after in zip(found, found[1:], found[2:], strict=False):
        if word == GAP:
            assert GAP not in (before, after)
            assert int(after[1:]) - int(before[1:]) > 1


def test_a_single_word_is_a_gap():
    assert with_gaps("one", np.random.default_rng(0)) == GAP


@pytest.mark.parametrize("subject", TASKS)
def test_texts_are_of_rows_that_are_not_learned_otherwise(subject):
    texts = list(texts_of(subject, 7, 2))
    assert len(texts) == 2 * len(TASKS[subject]) * 2
    task = TASKS[subject][0]
    for place, family in ((0, FAMILY_A), (len(texts) // 2, FAMILY_B)):
        row = scene_row(task, family, "train", 7)
        assert texts[place] == f"{row.source} {row.targets[0]}"


def test_rows_have_no_pictures_and_gaps_of_their_own(tmp_path):
    write_texts(tmp_path / "text.jsonl", ["a b c d e f g h"] * 20)
    rows = [json.loads(line) for line in (tmp_path / "text.jsonl").read_text().splitlines()]
    assert {row["output"] for row in rows} == {"a b c d e f g h"}
    assert not any("images" in row for row in rows)
    assert all(row["instruction"].startswith("text: ") for row in rows)
    assert len({row["instruction"] for row in rows}) > 10
