"""How near captions come to people's: CIDEr-D and BLEU-4, as coco-caption's evaluation has them.

Counts of n-grams are over the words of `caption_words`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dora_jax.errors import DoraError
from dora_jax.evaluation.caption_words import caption_words

_ORDERS = (1, 2, 3, 4)
_SIGMA = 6.0
MOST = 10.0  # CIDEr-D of a caption that is the only reference

Ngram = tuple[str, ...]


@dataclass(frozen=True)
class Cider:
    """CIDEr-D of captions.

    Attributes:
        mean: over the images. Papers print 100 times this.
        each: of each image, from 0 to 10.
    """

    mean: float
    each: tuple[float, ...]


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Cider:
    """Return CIDEr-D, n-grams up to 4 and sigma 6 (Vedantam et al. 2015, sections 5 and 6).

    For each order and reference: the cosine between the n-grams' counts, each weighted by
    log(images / images whose references have it), where a caption's weights are cut to the
    reference's; times exp(-(difference of lengths)^2 / (2 sigma^2)). The mean over orders and
    references, times `MOST`. The weights are of all references given: of a whole set, as published
    figures are; of a single image they are all zero.

    Args:
        captions: one an image.
        references: people's captions of each image.

    Raises:
        DoraError: when the two are not of the same images, or an image has no reference.
    """
    cooked = _cooked(captions, references)
    documents = Counter(n for _, people in cooked for n in set().union(*map(_ngrams, people)))
    whole = math.log(len(cooked))

    def weighted(words: Sequence[str]) -> list[dict[Ngram, float]]:
        counts = _ngrams(words)
        weights = {n: c * (whole - math.log(max(1, documents[n]))) for n, c in counts.items()}
        return [{n: w for n, w in weights.items() if len(n) == order} for order in _ORDERS]

    each = []
    for words, people in cooked:
        own = weighted(words)
        total = 0.0
        for person in people:
            penalty = math.exp(-((len(words) - len(person)) ** 2) / (2 * _SIGMA**2))
            total += penalty * sum(map(_clipped_cosine, own, weighted(person)))
        each.append(MOST * total / (len(people) * len(_ORDERS)))
    return Cider(sum(each) / len(each), tuple(each))


def _clipped_cosine(own: dict[Ngram, float], reference: dict[Ngram, float]) -> float:
    norms = math.hypot(*own.values()) * math.hypot(*reference.values())
    shared = sum(min(own[n], weight) * weight for n, weight in reference.items() if n in own)
    return shared / norms if norms else 0.0


def bleu_4(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return BLEU-4 of all captions together, from 0 to 1 (Papineni et al. 2002).

    The geometric mean of the clipped precisions of 1- to 4-grams, summed over the images before
    they are divided, times exp(1 - r / c) where all captions' words c are fewer than r: the
    lengths of the references that are nearest to each caption's, the shorter of two. It is 0
    without any 4-gram in common, where coco-caption's evaluation gives some 0.0001.

    Args:
        captions: one an image.
        references: people's captions of each image.

    Raises:
        DoraError: as `cider_d`.
    """
    matched, written = Counter[int](), Counter[int]()
    length = nearest = 0
    for words, people in _cooked(captions, references):
        length += len(words)
        nearest += min((abs(len(person) - len(words)), len(person)) for person in people)[1]
        most: Counter[Ngram] = Counter()
        for person in people:
            most |= _ngrams(person)
        own = _ngrams(words)
        for ngram, count in own.items():
            written[len(ngram)] += count
            matched[len(ngram)] += min(count, most[ngram])
    if not all(matched[order] for order in _ORDERS):
        return 0.0
    logs = sum(math.log(matched[order] / written[order]) for order in _ORDERS)
    return math.exp(logs / len(_ORDERS) + min(0.0, 1 - nearest / length))


def _cooked(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> list[tuple[list[str], list[list[str]]]]:
    """Return the words of each image's caption and of its references."""
    if not captions or len(captions) != len(references):
        raise DoraError(
            f"{len(captions)} captions, and references of {len(references)} images: give one "
            "caption for each image, and at least one"
        )
    for place, people in enumerate(references):
        if not people:
            raise DoraError(f"the image at {place} (from 0) has no reference; give at least one")
    return [
        (caption_words(caption), [caption_words(person) for person in people])
        for caption, people in zip(captions, references, strict=True)
    ]


def _ngrams(words: Sequence[str]) -> Counter[Ngram]:
    """Return how often each sequence of one to four words is there."""
    return Counter(_slices(words))


def _slices(words: Sequence[str]) -> Iterable[Ngram]:
    for order in _ORDERS:
        for start in range(len(words) - order + 1):
            yield tuple(words[start : start + order])
