"""Which option a text names, by the letters of a multiple choice."""

import re
from collections.abc import Sequence
from string import ascii_uppercase

_MARKS = str.maketrans({mark: " " for mark in ".()[],:;!*#{}"})
_MOST_WORDS_WITH_A = 3


def scienceqa_letter(text: str) -> str | None:
    """Return the letter that a text answers with, by LLaVA's rule for ScienceQA.

    A letter of A to E alone; or at the beginning, with a full stop and a space behind it; or, once
    only, in "The answer is X", with any sign behind it. Any other text says no letter, "B." too.
    """
    found = re.fullmatch("[A-E]", text) or re.match(r"[A-E](?=\. )", text)
    if found:
        return found.group()
    said = re.findall("The answer is ([A-Z]).", text)
    return said[0] if len(said) == 1 else None


def option_letter(text: str, options: Sequence[str]) -> str | None:
    """Return the letter of the option that a text names, by rules like MMBench's.

    The one option letter that stands in the text as a word, punctuation aside; "A" counts in a text
    of up to three words only, where it is no article. Else the one option whose text is in the
    text, whatever the case, unless that is over twice as long as all options together. (MMBench
    asks ChatGPT where its rules find none: that is left out.)
    """
    letters = ascii_uppercase[: len(options)]
    words = text.translate(_MARKS).split()
    named = [letter for letter in letters if letter in words]
    if len(named) == 1 and (named != ["A"] or len(words) <= _MOST_WORDS_WITH_A):
        return named[0]
    lowered = text.lower()
    if len(lowered) > 2 * sum(map(len, options)):
        return None
    held = [x for x, o in zip(letters, options, strict=True) if o.lower() in lowered]
    return held[0] if len(held) == 1 else None
