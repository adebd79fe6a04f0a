"""Rows to token ids: what the encoder reads, and what may be written."""

from collections.abc import Iterable
from dataclasses import dataclass

from dora_jax.data.tokenizer import Tokenizer
from dora_jax.data.vl.row import VLRow, source_text
from dora_jax.errors import DoraError


@dataclass(frozen=True)
class VLEncodedRow:
    """A row as token ids.

    Attributes:
        row: as it was read.
        source: what the encoder reads, the task's prompt first; what `generate` takes.
        targets: of each target what is to be written, the token that ends it included, but where
            the target was cut.
    """

    row: VLRow
    source: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class VLEncoded:
    """Encoded rows, and what became of those that are not as they were.

    Attributes:
        rows: in their order.
        cut_sources: rows whose source was cut at its end.
        cut_targets: rows of which a target was cut at its end.
    """

    rows: tuple[VLEncodedRow, ...]
    cut_sources: int
    cut_targets: int

    @property
    def trainable(self) -> tuple[VLEncodedRow, ...]:
        """The rows that have a target: those of a test split, and VQA's unlabelled, have none."""
        return tuple(row for row in self.rows if row.targets)


def encode_rows(
    rows: Iterable[VLRow], tokenizer: Tokenizer, max_source: int, max_target: int
) -> VLEncoded:
    """Encode rows; what is longer is cut at its end.

    Source and targets have what the tokenizer puts around a text (`<s>`, `</s>` for BART's), as the
    published training has it; a target ends with the end token in any case.

    Args:
        rows: to encode.
        tokenizer: the model's.
        max_source: tokens of a source at most, those around it included.
        max_target: tokens of a target at most, likewise.

    Raises:
        DoraError: when no token of a text would be left.
    """
    start, final = tuple(tokenizer.start_ids), tuple(tokenizer.final_ids)
    around = len(start) + len(final)
    for name, most in (("max_source", max_source), ("max_target", max_target)):
        if most <= around:
            raise DoraError(f"{name} must be more than the {around} tokens around a text: {most}")
    end = final or (tokenizer.eos_id,)
    found: list[VLEncodedRow] = []
    cut_sources = cut_targets = 0
    ids_of: dict[str, tuple[int, ...]] = {}  # answers repeat from row to row
    for row in rows:
        text = tokenizer.encode(source_text(row))
        cut_sources += len(text) + around > max_source
        source = (*start, *text[: max_source - around], *final)
        for target in row.targets:
            if target not in ids_of:
                ids_of[target] = (*start, *tokenizer.encode(target), *end)
        whole = [ids_of[target] for target in row.targets]
        cut_targets += any(len(ids) > max_target for ids in whole)
        found.append(VLEncodedRow(row, source, tuple(ids[:max_target] for ids in whole)))
    return VLEncoded(tuple(found), cut_sources, cut_targets)
