"""VQA's normalisation, rule by rule: each case would come out otherwise without its rule."""

import pytest

from dora_jax.evaluation.benchmarks.normalise import evalai, normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Red", "red"),
        ("a dog and the cat or an eel", "dog and cat or eel"),
        ("another theme", "another theme"),  # no articles
        ("none of two", "0 of 2"),
        ("zero three four five six seven eight nine ten one", "0 3 4 5 6 7 8 9 10 1"),
        ("Eleven", "eleven"),
        ("twos", "twos"),
        # A number word is none beside a mark until the mark is gone.
        ("two!", "2"),
        # Line breaks and tabs are spaces.
        ("  a\nb\tc ", "b c"),
    ],
)
def test_words(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dont", "don't"),
        ("Dont know", "don't know"),
        ("wheres", "where's"),
        ("couldnt've", "couldn't've"),  # one of two apostrophes is there already
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),  # both left out: not in the table
        ("'ows'at", "'ow's'at"),
        ("twas", "'twas"),
        ("somebody'd", "somebodyd"),  # the table's own slip
        ("lets", "lets"),
        ("shes", "shes"),
        ("im", "im"),  # the table has "Im", which no text is after lower case
        ("it's", "it's"),
    ],
)
def test_contractions(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Beside a space a mark goes; elsewhere it becomes one.
        ("yes, sir", "yes sir"),
        ("red/blue", "red blue"),
        ("red /blue", "red blue"),
        ("x-y- z", "xy z"),
        ("x-y -z", "xy z"),
        ("a-b - c-d", "ab cd"),  # of that kind once beside a space: all of them go
        ("x;-y-z", "x y z"),  # beside a space in the text itself, not in what became of it
        ("x[1]{2}(3)", "x 1 2 3"),
        ('"quoted"', "quoted"),
        ("a_b=c+d\\e<f>g@h`i?j!k;l", "b c d e f g h i j k l"),
        # A comma between digits makes all marks go.
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),
        ("red/blue 1,000", "redblue 1000"),
        ("red,blue", "red blue"),
        # A period stays before a digit only.
        ("3.5", "3.5"),
        ("3.", "3"),
        ("a.b.", "ab"),
        (".5", ".5"),
        ("u.s.a", "usa"),
        # Others stay.
        ("10:30", "10:30"),
        ("$5 & 10%", "$5 & 10%"),
        ("dog's", "dog's"),
        # No more than 32 periods are looked at.
        ("." * 33, "."),
    ],
)
def test_punctuation(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dog's", "dog 's"),
        ("It's", "it 's"),
        ("1,000-2,000", "1000 2000"),  # without its commas a number is no rule's case
        ("red,blue", "redblue"),
        ("red?blue", "redblue"),
        ("The two Dogs!", "2 dogs"),
        ("dont", "don't"),
        ("Nous\nles\tgosses.", "nous les gosses"),
    ],
)
def test_evalai_drops_commas_and_question_marks_and_parts_possessives(text, expected):
    assert evalai(text) == expected
