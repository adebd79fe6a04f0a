"""Images in texts: as many tokens as they are, and opened when they are needed."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("PIL", reason="the vision extra is not installed")

from dora_jax.data.encode import digest_rows, encode_all
from dora_jax.data.examples import Example, Turn
from dora_jax.data.images import BrokenImageError, ImageProcessor
from dora_jax.data.prompts import get_template
from dora_jax.data.row_images import OTHER_NUMBER
from dora_jax.data.vision import ImageFile, Picture, expand, fill_up, with_marks
from dora_jax.errors import DoraError
from tests.data.pictures import VISION, draw, grey
from tests.models.llavas import PATCHES


def test_an_image_becomes_its_tokens_and_parts_move_with_it():
    ids, spans = expand([1, 5, 2, 3, 5, 4], 5, 3, [(0, 1), (2, 4), (3, 6)])
    assert ids == [1, 5, 5, 5, 2, 3, 5, 5, 5, 4]
    assert [ids[a:b] for a, b in spans] == [[1], [2, 3], [3, 5, 5, 5, 4]]


def test_marks_are_put_before_a_text_without_them():
    assert with_marks("What?", 2) == "<image>\n<image>\nWhat?"
    assert with_marks("This <image>?", 1) == "This <image>?"
    assert with_marks("What?", 0) == "What?"


def test_a_picture_is_an_array_when_it_is_needed(tmp_path):
    picture = Picture(VISION, tmp_path / "late.png")
    with pytest.raises(BrokenImageError, match=r"late\.png"):
        np.asarray(picture)
    draw(tmp_path / "late.png", 51)
    np.testing.assert_allclose(np.asarray(picture), grey(51), atol=1e-6)


def test_a_processor_of_another_size_than_the_tower_is_named(tmp_path):
    draw(tmp_path / "a.png", 1)
    small = dataclasses.replace(VISION, processor=ImageProcessor(size=8, crop=(8, 8)))
    with pytest.raises(DoraError, match=r"makes an image \(8, 8, 3\), and its vision tower takes"):
        small.pixels(tmp_path / "a.png")


def test_rows_with_fewer_images_are_filled_up(tmp_path):
    draw(tmp_path / "a.png", 255)
    found = fill_up([[grey(102), Picture(VISION, tmp_path / "a.png")], []], VISION.shape)
    assert found.shape == (2, 2, *VISION.shape)
    np.testing.assert_allclose(found[:, :, 0, 0, 0], [[0.4, 1.0], [0.0, 0.0]], atol=1e-6)


@pytest.fixture(scope="module")
def tokenizer():
    from tests.checkpoint import tiny_model

    tokenizer, token = tiny_model.tokenizer().with_special_token("<image>")
    assert token == len(tiny_model.TOKENS)
    assert tokenizer.encode("a<image>b") == [*tokenizer.encode("a"), token, *tokenizer.encode("b")]
    return tokenizer


@pytest.fixture(scope="module")
def vision(tokenizer):
    (token,) = tokenizer.encode("<image>")
    return VISION.__class__(VISION.processor, token, PATCHES, VISION.shape)


FILE = (ImageFile("a", "/a", 3),)
ASKED = Example("<image>\nWhat?", "x", images=FILE, where="rows, line 1")


def test_rows_are_encoded_with_their_images(tokenizer, vision):
    plain = get_template("plain")
    (row,) = encode_all([ASKED], plain, tokenizer, 60, vision=vision).rows
    before, behind = (tokenizer.encode(t) for t in ("Question: ", "\nWhat?\nAnswer:"))
    assert list(row.prompt) == [*before, *[vision.token_id] * PATCHES, *behind]
    assert row.images == FILE


def test_earlier_answers_stay_where_they_are(tokenizer, vision):
    turns = (
        Turn("user", "<image>\nWhat?"),
        Turn("assistant", "dot", trains=True),
        Turn("user", "Where?"),
    )
    example = Example("Where?", "here", turns=turns, images=FILE)
    (row,) = encode_all([example], get_template("plain"), tokenizer, 200, vision=vision).rows
    ((first, end),) = row.earlier
    assert tokenizer.decode(row.prompt[first:end]).strip() == "dot"


def test_what_does_not_fit_with_its_images_is_left_out_not_cut(tokenizer, vision):
    plain = get_template("plain")
    short, long = (
        encode_all([ASKED], plain, tokenizer, n, "truncate_left", vision) for n in (20, 60)
    )
    assert (len(short.rows), len(long.rows)) == (0, 1)
    assert long.cut == {}


PICTURES = (ImageFile("a", "/a", 3), ImageFile("b", "/b", 3))
SHOWN = Example(
    "And <image>?",
    "here",
    turns=(
        Turn("user", "<image>\nWhat?"),
        Turn("assistant", "dot", trains=True),
        Turn("user", "And <image>?"),
    ),
    images=PICTURES,
)


def test_a_conversation_that_is_cut_keeps_the_images_before_its_last_answer(tokenizer, vision):
    none = get_template("none")

    def cut(most):
        return encode_all([SHOWN], none, tokenizer, most, "truncate_right", vision)

    whole = cut(100)
    (row,) = whole.rows
    ((first, end),) = row.earlier
    assert whole.cut == {}
    (short,) = cut(len(row.prompt)).rows  # nothing of the last answer
    assert (short.prompt, short.answer, short.images) == (row.prompt[:end], (), PICTURES[:1])
    (inside,) = cut(len(row.prompt) - 3).rows  # which ends in the second image
    assert inside == short
    (less,) = cut(first + 2).rows
    assert (less.prompt, less.earlier) == (row.prompt[: first + 1], ((first, first + 1),))
    # Where all is learned, a text may not end in an image.
    learned = [
        encode_all([SHOWN], none, tokenizer, most, "truncate_text", vision)
        for most in (len(row.prompt) - 3, len(row.prompt))
    ]
    assert [len(found.rows) for found in learned] == [0, 1]
    assert learned[1].rows[0].images == PICTURES


def test_an_answer_about_an_image_is_cut_at_its_end(tokenizer, vision):
    long = dataclasses.replace(ASKED, answer="x" * 30)
    found = encode_all([long], get_template("plain"), tokenizer, 40, "truncate_right", vision)
    (row,) = found.rows
    assert row.is_cut
    assert row.images == FILE
    assert len(row.prompt) + len(row.answer) == 39


def test_a_text_that_says_image_without_one_is_counted(tokenizer, vision):
    answers = Example("<image>\nWhat?", "<image>", images=FILE)
    rows = [Example("What is <image>?", "x"), ASKED, answers]
    found = encode_all(rows, get_template("plain"), tokenizer, 90, vision=vision)
    assert len(found.rows) == 1
    assert found.left_out == {OTHER_NUMBER: 2}


def test_a_model_that_reads_text_alone_refuses_images(tokenizer):
    with pytest.raises(DoraError, match=r"rows, line 1: has images, and this model reads text"):
        encode_all([ASKED], get_template("plain"), tokenizer, 90)


def test_the_digest_knows_the_images(tokenizer, vision):
    def digest(name, path, size):
        example = Example("<image>\nWhat?", "x", images=(ImageFile(name, path, size),))
        return digest_rows(
            encode_all([example], get_template("plain"), tokenizer, 90, vision=vision).rows
        )

    assert digest("a", "/a", 3) == digest("a", "/elsewhere/a", 3)
    assert len({digest("a", "/a", 3), digest("b", "/a", 3), digest("a", "/a", 4)}) == 3


def test_the_digest_knows_which_row_an_image_is_of(tokenizer, vision):
    (row,) = encode_all([ASKED], get_template("plain"), tokenizer, 90, vision=vision).rows
    one, two = (dataclasses.replace(row, images=FILE * n) for n in (1, 2))
    assert digest_rows([one, two]) != digest_rows([two, one])
