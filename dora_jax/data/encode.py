"""Examples to token ids; what does not fit is treated by a named policy and counted."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple

from dora_jax.data.examples import Example, Metric, TooLong
from dora_jax.data.formats import LeftOut
from dora_jax.data.prompts import PromptTemplate
from dora_jax.data.row_images import OTHER_NUMBER
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.data.vision import ImageFile, Sight, Vision
from dora_jax.data.vl.visuals import FeatureVision
from dora_jax.errors import DoraError

# Policies beside those of `TooLong`: of scored rows of encoder-decoders, and of rows whose prompt
# is learned as well as their answer.
SOURCE_ALONE: Final = "truncate_source"
WHOLE_TEXT: Final = "truncate_text"
Policy = TooLong | Literal["truncate_source", "truncate_text"]
REFUSED = "that the chat template refuses, or whose earlier answers it rewrites"


class Target(NamedTuple):
    """One of several answers that may be trained on: its ids, its text, and how good it is."""

    ids: tuple[int, ...]
    text: str
    weight: float


@dataclass(frozen=True)
class EncodedRow:
    """An example as token ids.

    Attributes:
        prompt: everything before the answer.
        answer: the answer, without the token that ends it.
        options: the options in the example's order, `answer` among them; empty if it is free.
        correct: index of the answer in `options`, 0 where there are none.
        text: the answer's text.
        option_texts: the options' texts.
        task: the example's.
        earlier: parts (first, end) of the prompt that are answers too, to be trained on.
        is_cut: whether the answer's end was cut off, so that no end token is to be learned.
        source: the example's.
        where: the example's.
        images: the example's; in `prompt` each is as many tokens as the model sees it by.
        start: of an encoder-decoder the token that its texts begin behind: the encoder reads the
            prompt, and the answer is a text of its own. None where it goes on after the prompt.
        metric: the example's.
        references: the example's.
        targets: the example's, as ids too.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    correct: int
    text: str
    option_texts: tuple[str, ...]
    task: str
    # Not in the repr, which names rows of one question as it always did: see `digest_rows`.
    earlier: tuple[tuple[int, int], ...] = field(default=(), repr=False)
    is_cut: bool = field(default=False, repr=False)
    source: int = field(default=0, repr=False)
    where: str = field(default="", repr=False, compare=False)
    images: tuple[ImageFile, ...] = field(default=(), repr=False)
    start: int | None = field(default=None, repr=False)
    metric: Metric | None = field(default=None, repr=False)
    references: tuple[str, ...] = field(default=(), repr=False)
    targets: tuple[Target, ...] = field(default=(), repr=False)

    @property
    def target_texts(self) -> tuple[tuple[str, float], ...]:
        """The targets' texts and weights."""
        return tuple((target.text, target.weight) for target in self.targets)


@dataclass(frozen=True)
class Encoded:
    """The rows of a split, and what became of the examples that are not as they were.

    Attributes:
        rows: in the examples' order.
        left_out: number of examples left out, by reason.
        cut: number of rows that were cut, by reason.
    """

    rows: list[EncodedRow]
    left_out: dict[str, int]
    cut: dict[str, int]


def encode_all(
    examples: Sequence[Example],
    template: PromptTemplate,
    tokenizer: Tokenizer,
    max_length: int,
    too_long: Policy = "drop",
    vision: Sight | None = None,
    start: int | None = None,
    bound: str = "data.max_length",
    written: int = 0,
) -> Encoded:
    """Encode examples.

    Args:
        examples: to encode.
        template: how they become text.
        tokenizer: the model's.
        max_length: tokens of a row at most: its prompt, its longest answer and the end token.
        too_long: what happens to longer rows: `drop`; `truncate_left`, which takes tokens from the
            prompt's beginning; `truncate_right`, from the answer's end, and of a conversation from
            all that is behind the last answer that fits, in part or whole; `truncate_text`, from
            the end of both; `error`. Dropped are also rows that a cut would leave without any
            answer (but for `truncate_text`), without one of their options, or, where they have
            images, without a part of one, or of what stands before it.
        vision: the model's, where it sees.
        start: see `EncodedRow`; prompt and answer then have `max_length` tokens each.
        bound: what `max_length` is, for people.
        written: tokens that may be written after the prompt, which `max_length` must hold too.

    Raises:
        DoraError: for a row that is too long, under `error`; rows with images for a model that
            reads text alone; conversations for an encoder-decoder.
    """
    if any(e.turns for e in examples) and template.is_chat:
        tokenizer.require_chat_template()
    if vision is None and (seeing := next((e for e in examples if e.images), None)):
        raise DoraError(
            f"{seeing.where or 'a row'}: has images, and this model reads text alone: name one "
            "that sees (--model.name), for a VL-BART their features (--data.features), or leave "
            "the images out (--data.images leave_out)"
        )
    if start is not None:
        _require_questions(examples)
    rows: list[EncodedRow] = []
    left_out: Counter[str] = Counter()
    cut: Counter[str] = Counter()
    longer = f"longer than {bound} ({max_length} tokens)"
    # Options repeat from row to row.
    ids_of: dict[str, tuple[int, ...]] = {}
    for number, example in enumerate(examples, 1):
        try:
            row = _encode(example, template, tokenizer, ids_of)
            row = _with_images(row, example, vision)
            if start is not None:
                row = _apart(row, tokenizer, start)
        except DoraError:
            if not example.turns:
                raise
            left_out[REFUSED] += 1
            continue
        except LeftOut as reason:
            left_out[str(reason)] += 1
            continue
        length, most = _length(row), max_length - max(0, written - _longest_answer(row))
        if length > most:
            if too_long == "error":
                flag = bound.split()[0].replace("_", "-")
                way = f"raise --{flag}" if "." in flag else "shorten it"
                raise DoraError(
                    f"{example.where or f'row {number}'}: is {length} tokens long, more than "
                    f"{bound} ({max_length}): {way}, or let --data.too-long drop or truncate "
                    "such rows (it begins "
                    f"{(example.prompt or example.answer)[:60]!r})"
                )
            ends = (len(tokenizer.start_ids), len(tokenizer.final_ids))
            shorter = _CUTS[too_long](row, most, *ends)
            # Of features no token stands in the prompt.
            if shorter is not None and isinstance(vision, Vision):
                shorter = _with_whole_images(shorter, row, vision)
            if shorter is None:
                left_out[longer] += 1
                continue
            row = shorter
            cut[longer] += 1
        rows.append(row)
    return Encoded(rows, dict(left_out), dict(cut))


def _encode(
    example: Example,
    template: PromptTemplate,
    tokenizer: Tokenizer,
    ids_of: dict[str, tuple[int, ...]],
) -> EncodedRow:
    kept = (example.answer, example.options, example.task)
    origin: dict[str, Any] = {"source": example.source, "where": example.where}
    if example.is_text:
        ids = [*tokenizer.start_ids, *tokenizer.encode(example.answer)]
        # The first token is predicted from nothing.
        return EncodedRow((ids[0],), tuple(ids[1:]), (), 0, *kept, **origin)
    for text in (example.answer, *example.options, *(text for text, _ in example.targets)):
        if text not in ids_of:
            shown = text if template.is_verbatim else text.strip()
            ids_of[text] = tuple(template.encode_answer(shown, tokenizer))
    earlier: Sequence[tuple[int, int]] = ()
    if example.turns:
        prompt, earlier = template.encode_turns(example.turns, tokenizer)
    else:
        asked = example.prompt if template.is_verbatim else example.prompt.strip()
        prompt = template.encode_prompt(asked, tokenizer)
    correct = example.options.index(example.answer) if example.options else 0
    return EncodedRow(
        tuple(prompt),
        ids_of[example.answer],
        tuple(ids_of[text] for text in example.options),
        correct,
        *kept,
        earlier=tuple(earlier),
        metric=example.metric,
        references=example.references,
        targets=tuple(Target(ids_of[text], text, weight) for text, weight in example.targets),
        **origin,
    )


def _with_images(row: EncodedRow, example: Example, vision: Sight | None) -> EncodedRow:
    """Return a row in which each image is as many tokens as the model sees it by."""
    if not isinstance(vision, Vision):
        most = vision.config.max_images if isinstance(vision, FeatureVision) else 0
        if len(example.images) > most:
            raise DoraError(
                f"{example.where or 'a row'}: has {len(example.images)} images; the model takes "
                f"{most}"
            )
        return replace(row, images=example.images)
    others = (row.answer, *row.options)
    if vision.count(row.prompt) != len(example.images) or any(map(vision.count, others)):
        raise LeftOut(OTHER_NUMBER)
    prompt, earlier = vision.expand(row.prompt, row.earlier)
    return replace(row, prompt=tuple(prompt), earlier=tuple(earlier), images=example.images)


def _with_whole_images(shorter: EncodedRow, row: EncodedRow, vision: Vision) -> EncodedRow | None:
    """Return a row that was cut with the images that it has yet; None where one is not whole.

    Args:
        shorter: the row after the cut.
        row: the row before it.
        vision: the model's.
    """
    begins = shorter.prompt == row.prompt[: len(shorter.prompt)]
    whole, rest = divmod(vision.count(shorter.prompt), vision.tokens)
    if row.images and (rest or not begins):
        return None
    return replace(shorter, images=row.images[:whole])


def _require_questions(examples: Sequence[Example]) -> None:
    """Check that each row is one text and its answer.

    Raises:
        DoraError: naming the first that is not.
    """
    for number, example in enumerate(examples, 1):
        if example.turns or example.is_text:
            what = "a conversation" if example.turns else "plain text, without a question"
            raise DoraError(
                f"{example.where or f'row {number}'}: is {what}, and an encoder-decoder writes one "
                "answer to one text: give rows with an instruction and an output"
            )


def _apart(row: EncodedRow, tokenizer: Tokenizer, start: int) -> EncodedRow:
    """Return a row whose prompt and answers are whole texts, each with its beginning and end."""
    before = tuple(tokenizer.start_ids)
    return replace(
        row,
        prompt=(*row.prompt, *tokenizer.final_ids),
        answer=(*before, *row.answer),
        options=tuple((*before, *ids) for ids in row.options),
        targets=tuple(t._replace(ids=(*before, *t.ids)) for t in row.targets),
        start=start,
    )


def _length(row: EncodedRow) -> int:
    answer = _longest_answer(row)
    return len(row.prompt) + answer if row.start is None else max(len(row.prompt), answer)


def _longest_answer(row: EncodedRow) -> int:
    """Return the tokens of the longest answer, with the one that ends it."""
    return max(map(len, (row.answer, *row.options, *(t.ids for t in row.targets)))) + 1


def _drop(row: EncodedRow, max_length: int, start: int, final: int) -> EncodedRow | None:
    return None


def _cut_left(row: EncodedRow, max_length: int, start: int, final: int) -> EncodedRow | None:
    """Take tokens from the prompt's beginning, behind the `start` tokens that begin every text."""
    answer = _longest_answer(row)
    spare = len(row.prompt) + (answer if row.start is None else 0) - max_length
    if len(row.prompt) - start - spare < 1 or answer > max_length:
        return None
    moved = [(max(start, a - spare), b - spare) for a, b in row.earlier]
    return replace(
        row,
        prompt=row.prompt[:start] + row.prompt[start + spare :],
        earlier=tuple((a, b) for a, b in moved if b > a),
    )


def _cut_right(row: EncodedRow, max_length: int, start: int, final: int) -> EncodedRow | None:
    """Take tokens from the answer's end, and the end token with them; from a source's end too.

    Where no token of the last answer fits, a conversation keeps the earlier ones that do.
    """
    if row.start is not None:
        row = _cut_source(row, max_length, start, final)
        if _length(row) <= max_length:
            return row
    # As many tokens are fed as of a row that just fits, whose end token is predicted only.
    left = max_length - 1 - (len(row.prompt) if row.start is None else 0)
    if row.options:
        return None
    if left < 1:
        shorter = _cut_text(row, max_length, start, final)
        if shorter is None or not shorter.earlier:
            return None
        # What is behind the last answer teaches nothing.
        return replace(shorter, prompt=shorter.prompt[: max(b for _, b in shorter.earlier)])
    # What is left of the others would be taken for whole.
    return replace(row, answer=row.answer[:left], is_cut=True, targets=())


def _cut_text(row: EncodedRow, max_length: int, start: int, final: int) -> EncodedRow | None:
    """Take tokens from the text's end, answer and prompt alike: all that is left is learned."""
    whole = (*row.prompt, *row.answer)
    kept = whole[: max_length - 1]
    if len(kept) < 2:
        return None
    end = len(row.prompt)
    return replace(
        row,
        prompt=kept[:end],
        answer=kept[end:],
        options=(),
        option_texts=(),
        correct=0,
        earlier=tuple((a, min(b, len(kept))) for a, b in row.earlier if a < len(kept)),
        is_cut=len(kept) < len(whole),
        targets=(),
    )


def _cut_source(row: EncodedRow, max_length: int, start: int, final: int) -> EncodedRow:
    """Take tokens from the end of what an encoder reads, before the `final` ones that end it."""
    if len(row.prompt) <= max_length:
        return row
    kept, end = row.prompt[: max_length - final], row.prompt[len(row.prompt) - final :]
    return replace(row, prompt=(*kept, *end))


def _cut_source_alone(
    row: EncodedRow, max_length: int, start: int, final: int
) -> EncodedRow | None:
    """Take tokens from a source's end: what is scored must have its whole answer."""
    shorter = _cut_source(row, max_length, start, final)
    return shorter if _length(shorter) <= max_length else None


_CUTS = {
    "drop": _drop,
    "truncate_left": _cut_left,
    "truncate_right": _cut_right,
    SOURCE_ALONE: _cut_source_alone,
    WHOLE_TEXT: _cut_text,
}


def digest_rows(rows: Sequence[EncodedRow]) -> str:
    """Return 16 hexadecimal digits that name the rows, order included."""
    named = hashlib.sha256(repr(rows).encode())
    more = [(n, r.earlier, r.is_cut, r.source) for n, r in enumerate(rows)]
    if any(earlier or is_cut or source for _, earlier, is_cut, source in more):
        named.update(repr(more).encode())
    judged = [(n, r.metric, r.references, r.targets) for n, r in enumerate(rows) if r.metric]
    if judged:
        named.update(repr(judged).encode())
    # Wherever their folder is.
    seen: list[tuple[Any, ...]] = [
        (n, image.name, image.size, *(image.span or ()))
        for n, row in enumerate(rows)
        for image in row.images
    ]
    if seen:
        named.update(repr(seen).encode())
    return named.hexdigest()[:16]
