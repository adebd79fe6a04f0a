"""The rows of a config's data as text: read, told apart, and divided into three splits."""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dora_jax.data.cloze import cloze
from dora_jax.data.examples import Example, Split
from dora_jax.data.order import shares
from dora_jax.data.prompts import get_template
from dora_jax.data.row_images import RowImages
from dora_jax.data.sources import read_source
from dora_jax.data.vision import IMAGE
from dora_jax.data.vl.store import open_features
from dora_jax.errors import DoraError

if TYPE_CHECKING:
    from dora_jax.training.config import DataConfig


NOT_CLOZE = "whose options cannot be read or are alike"


@dataclass(frozen=True)
class Examples:
    """Examples of three splits as text, read before any model is loaded.

    Attributes:
        name: for reports.
        splits: the examples.
        left_out: as `Task.skipped`.
    """

    name: str
    splits: dict[Split, list[Example]]
    left_out: dict[str, dict[str, int]]


def read_examples(config: "DataConfig") -> Examples:
    """Read the data that a config names.

    Raises:
        DoraError: for an unreadable file (named, with line and field), an unknown template or
            relation, or too few rows.
    """
    get_template(config.prompt)
    folder = config.image_folder
    if folder is not None and not folder.is_dir():
        raise DoraError(f"data.image_folder {folder}: no such folder")
    found = _files(config) if config.sources() else _world(config)
    splits = {
        split: [_with_left_out(example, config) for example in examples]
        for split, examples in found.splits.items()
    }
    return dataclasses.replace(found, splits=splits)


def _with_left_out(example: Example, config: "DataConfig") -> Example:
    """Return an example without what the config leaves out of all rows.

    Of rows that are divided already: the arms of a comparison have the same ones, whatever each of
    them sees.
    """
    if config.images == "leave_out":
        example = dataclasses.replace(example, images=())
    if config.texts == "leave_out":
        if example.turns or example.prompt.startswith(IMAGE):
            raise DoraError(
                f"{example.where or 'a row'}: data.texts leave_out keeps a prompt's first word, "
                "and this row is a conversation or begins with an image: use the texts of such data"
            )
        named = example.prompt.split(maxsplit=1)[:1]
        example = dataclasses.replace(example, prompt="".join(named))
    return example


def _world(config: "DataConfig") -> Examples:
    from dora_jax.data.world import DEFAULT_RELATIONS, world_examples

    counts: dict[Split, int] = {
        "train": config.train_rows,
        "validation": config.validation_rows,
        "evaluation": config.eval_rows,
    }
    splits = {
        split: world_examples(config.relations, split, count, config.seed)
        for split, count in counts.items()
    }
    relations = ", ".join(config.relations or DEFAULT_RELATIONS)
    return Examples(f"world knowledge ({relations})", splits, {})


def _files(config: "DataConfig") -> Examples:
    """Read the sources; validation rows are taken from those to train on."""
    assert config.eval is not None, "DataConfig checks it"
    # What is scored in the end is looked at now, all of it.
    evaluation, eval_left_out = _read(config.eval, config, whole_images=True)
    # Of the whole file: a later evaluation may take more of its rows.
    asked = {example.asked for example in evaluation}
    sources = config.sources()
    left_out: Counter[str] = Counter()
    given: list[Example] = []
    for number, (name, _) in enumerate(sources):
        examples, reasons = _read(name, config)
        given += [dataclasses.replace(e, source=number) for e in examples] if number else examples
        left_out.update(reasons)
    # One row for each prompt, so that no validation prompt is trained on: the first.
    own = list({_once(e): e for e in reversed(given) if e.asked not in asked}.values())[::-1]
    evaluated = sum(example.asked in asked for example in given)
    what = ", ".join(name for name, _ in sources)
    if len(own) < 2:
        raise DoraError(
            f"{what}: has {len(own)} rows of its own, and needs at least two: one to "
            "train on and one to choose learning rates by"
        )
    validation_rows = min(config.validation_rows, len(own) // 2)
    chosen = _choose(own, validation_rows, config)
    validation = chosen[:validation_rows]
    kept_apart = {example.asked for example in validation}
    train = [e for e in chosen[validation_rows:] if e.asked not in kept_apart]
    left_out["in the validation rows too"] += len(chosen) - validation_rows - len(train)
    splits: dict[Split, list[Example]] = {
        "train": train,
        "validation": validation,
        "evaluation": _sample(evaluation, config.eval_rows, config.seed),
    }
    left_out["in the evaluation file too"] += evaluated
    left_out["with a prompt seen before"] += len(given) - len(own) - evaluated
    left_out["beyond data.train_rows"] += len(own) - len(chosen)
    reasons = {reason: count for reason, count in left_out.items() if count}
    names = " + ".join(Path(name).name for name, _ in sources)
    skipped = {"train": reasons} | ({"evaluation": eval_left_out} if eval_left_out else {})
    return Examples(f"{names}, evaluated on {config.eval.name}", splits, skipped)


def _once(example: Example) -> object:
    """What one row is kept of: a prompt; of scored answers each, as an image has many captions."""
    return example.asked if example.metric is None else (example.asked, example.answer)


def _read(
    source: str | Path, config: "DataConfig", whole_images: bool = False
) -> tuple[list[Example], dict[str, int]]:
    """Read a source in the form that is asked for."""
    images = RowImages(
        config.image_folder,
        config.images,
        config.bad_images,
        whole_images,
        features=None if config.features is None else open_features(config.features),
        frame_seconds=config.frame_seconds,
    )
    examples, left_out = read_source(source, images)
    if config.form == "as_given":
        return examples, left_out
    changed = [cloze(example) for example in examples]
    unread = sum(example is None for example in changed)
    if unread == len(examples):
        raise DoraError(
            f'{source}: no row lists its options under labels ("Answer1: ... Answer2: ... Answer '
            'format: answer1/answer2"): give --data.form as_given'
        )
    more = {NOT_CLOZE: unread} if unread else {}
    return [example for example in changed if example is not None], left_out | more


def _choose(own: list[Example], validation_rows: int, config: "DataConfig") -> list[Example]:
    """Return the rows of validation and then of training, at random up to the limits."""
    wanted = validation_rows + config.train_rows
    if len(config.mix) > 1:
        # A small source beside a large one keeps all the rows that its weight asks for.
        wishes = shares([weight for _, weight in config.mix], wanted)
        parts = [[e for e in own if e.source == n] for n in range(len(wishes))]
        pairs = zip(parts, wishes, strict=True)
        own = [e for part, wish in pairs for e in _sample(part, wish, config.seed)]
    return _sample(own, wanted, config.seed)


def _sample(examples: list[Example], count: int, seed: int) -> list[Example]:
    order = np.random.default_rng(seed).permutation(len(examples))
    return [examples[i] for i in order[:count]]
