"""Each case is what Stanford's PTBTokenizer 3.4.1, lower-cased, makes of it, less punctuation."""

import pytest

from dora_jax.evaluation.caption_words import caption_words


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man isn't wearing the dog's hat.", "a man is n't wearing the dog 's hat"),
        ("They're here; he can't go, I'm sure", "they 're here he ca n't go i 'm sure"),
        ("we cannot, wanna, gonna", "we can not wan na gon na"),
        ('A close-up of a t-shirt: "STOP" -- it\'s so', "a close-up of a t-shirt stop it 's so"),
        ("10:30 a.m. in the U.S.", "10:30 a.m. in the u.s."),
        ("1,000 for $5.50 (or 10%)!", "1,000 for $ 5.50 -lrb- or 10 % -rrb-"),
        ("a toilet,sink", "a toilet sink"),
        ("a black/white cat & a R&B singer", "a black/white cat & a r&b singer"),
        ("Mr. Smith on Main St.", "mr. smith on main st."),
        ("at bat; No. 7, or no.", "at bat no. 7 or no"),
        ("a plate [of] {food}", "a plate -lsb- of -rsb- -lcb- food -rcb-"),
        ("the girls' bikes 'quoted' `so`", "the girls bikes quoted so"),
        ("eating?! Wow... - hm", "eating ?! wow hm"),
        ("don’t – really — “ok”…", "do n't really ok"),  # noqa: RUF001
        ("an image of -10 degrees", "an image of -10 degrees"),
        ("o'clock, y'all", "o'clock y' all"),
        ("'tis £3", "'t is # 3"),
        ("", ""),
    ],
)
def test_words(caption, words):
    assert caption_words(caption) == words.split()
