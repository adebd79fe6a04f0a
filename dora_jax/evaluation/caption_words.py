"""A caption's words as coco-caption's evaluation counts them.

That is the tokens of the Penn Treebank, in lower case and without punctuation. The reference runs
Stanford's tokenizer in Java; here are its rules for what captions hold. Its oddities are kept: "?!"
and brackets are words, these under names such as "-lrb-".
"""

import re

_TOKEN = re.compile(
    r"""
    \w+?(?=n't\b) | n't\b                            # "is" and "n't"
  | '(?:[smd]|re|ve|ll)\b | 't(?=is\b|was\b)         # "it" and "'s"; "'t" and "is"
  | (?:can(?=not\b) | g(?:on(?=na\b)|ot(?=ta\b)|im(?=me\b)) | wan(?=na\b) | lem(?=me\b))
  | o'\w+ | ma'am\b | y'(?=all\b) | 'n\b'?
  | (?:[a-z]\.)+(?:[a-z]\.)                          # "u.s."
  | (?:mr|mrs|ms|dr|st|jr|sr|ft|co|vs|mt|ave|inc)\.(?!\w) | no\.(?=\s*\d)
  | (?<!\S)[-+.]\d+(?:[.,:/-]\d+)*
  | \w+(?:(?:[-&/.@]|(?<=\d)[,:](?=\d))\w+)*         # "t-shirt", "10:30", "1,000"
  | \.{2,} | [?!]+ | -+
  | \S
    """,
    re.VERBOSE,
)
_DROPPED = re.compile(r"[?!,:;'\"`]|\.+|--?|''|``")
_ALIKE = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "–": "--", "—": "--", "…": "..."}  # noqa: RUF001
)
_NAMES = {
    "£": "#",
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
}


def caption_words(caption: str) -> list[str]:
    """Return a caption's words.

    Example:
        >>> caption_words("A man isn't wearing the dog's T-shirt.")
        ['a', 'man', 'is', "n't", 'wearing', 'the', 'dog', "'s", 't-shirt']
    """
    tokens = _TOKEN.findall(caption.lower().translate(_ALIKE))
    return [_NAMES.get(token, token) for token in tokens if not _DROPPED.fullmatch(token)]
