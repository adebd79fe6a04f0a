import pytest

from dora_jax.generation.text import GrowingText


class Bytes:
    """A token is a byte."""

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


def grow(text, stop=(), by=1):
    """Return the growing text at its end, and the pieces that were given out."""
    growing, pieces = GrowingText(Bytes(), stop), []
    ids = list(text.encode())
    for start in range(0, len(ids), by):
        growing.extend(ids[start : start + by])
        pieces.append(growing.news(is_last=start + by >= len(ids)))
    return growing, [piece for piece in pieces if piece]


@pytest.mark.parametrize("by", [1, 2, 3, 7])
def test_pieces_are_whole_characters_and_make_up_the_text(by):
    text = "naïve € 🦀!"
    growing, pieces = grow(text, by=by)
    assert "".join(pieces) == growing.text == text
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("by", [1, 2, 5, 100])
def test_a_stop_string_over_several_tokens_cuts_the_text(by):
    growing, pieces = grow("one\n\ntwo\n\nthree", ["\n\nth", "two"], by)
    assert growing.is_stopped
    assert "".join(pieces) == growing.text == "one\n\n"
    assert bytes(growing.ids) == b"one\n\ntwo"


def test_what_may_become_a_stop_string_is_held_back_until_it_does_not():
    growing = GrowingText(Bytes(), ["STOP"])
    growing.extend(b"a ST")
    assert growing.news(False) == "a "
    growing.extend(b"A")
    assert growing.news(False) == "STA"
    growing.extend(b"S")
    assert growing.news(False) == ""
    assert growing.news(True) == "S"


def test_broken_bytes_at_the_end_are_given_out_in_the_end():
    growing = GrowingText(Bytes(), [])
    growing.extend(b"a\xf0\x9f")
    assert growing.news(False) == "a"
    assert growing.news(True) == "\ufffd"
