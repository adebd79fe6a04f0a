"""How VQA's official evaluation makes answers alike before it compares them.

In this order: punctuation, lower case, number words, articles, contractions. The rules are those of
VQA's published evaluation to the letter, its oddities with them: numbers are comparable only then.
"""

import re

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# Of a text's periods the published rule looks at so many only.
_MOST_PERIODS = 32
_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_COUNTED)} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
# Each stands for what it becomes with one of its apostrophes left out: "dont", "couldntve".
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED.split()
    for place, letter in enumerate(word)
    if letter == "'"
    # The published table has this one the other way round.
} | {"somebody'd": "somebodyd"}


def normalise(text: str) -> str:
    """Return an answer as VQA's evaluation compares it.

    A punctuation mark is left out where one of its kind stands beside a space, or where the text
    has a comma between two digits ("1,000"); elsewhere a space takes its place. A period stays only
    before a digit. Apostrophes, colons and other marks stay.

    Example:
        >>> normalise("The two dogs, dont!")
        "2 dogs don't"
    """
    return _words(_without_punctuation(single_line(text)))


def evalai(text: str) -> str:
    """Return an answer as EvalAI's processor, that of TextVQA's (M4C's) evaluation, makes it.

    Commas and question marks go first, and a possessive "'s" becomes a word; then as `normalise`.

    Example:
        >>> evalai("The dog's, 1,000?")
        "dog 's 1000"
    """
    lowered = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalise(lowered)


def single_line(text: str) -> str:
    """Return a text with spaces for its line breaks and tabs, and none around it."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str) -> str:
    in_number = _COMMA_IN_NUMBER.search(text) is not None
    found = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside_space or in_number else " ")
    return _PERIOD.sub("", found, count=_MOST_PERIODS)


def _words(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
