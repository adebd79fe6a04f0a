"""What docs/scenes.md says of commands, kinds, words and knobs."""

import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

pytest.importorskip("sklearn", reason="the scenes extra is not installed")
pytest.importorskip("PIL", reason="the scenes extra is not installed")

from dora_jax.data.scenes import __main__ as command
from dora_jax.data.scenes.families import FAMILY_A, FAMILY_B, ClipKind, Kind
from dora_jax.data.scenes.pairs import PAIR_KINDS
from dora_jax.data.scenes.wordings import WORDINGS

TEXT = (Path(__file__).parents[3] / "docs" / "scenes.md").read_text()


def table(header):
    lines = TEXT[TEXT.index(header) :].splitlines()[2:]
    end = next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:end]]


def test_its_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```bash\n(.*?)\n```", TEXT, re.DOTALL)
    for line in block.splitlines():
        arguments = shlex.split(line)
        assert arguments[:3] == ["python", "-m", "dora_jax.data.scenes"]
        command.main([*arguments[3:], "--rows", "2"])
    found = {str(path) for path in Path().rglob("*.json*")}
    assert found == {"scenes/train.json", "scenes/test.jsonl", "orange/train.json"}


def test_every_kind_of_question_is_there_in_the_words_of_both_families():
    rows = table("| kind | family A's words")
    assert tuple(row[0].strip("`") for row in rows) == get_args(Kind)
    for kind, *examples in (row[:3] for row in rows):
        for wording, example in zip(("plain", "other"), examples, strict=True):
            forms = [
                re.sub(r"\\\{\w+\\\}", ".+", re.escape(question))
                for question in WORDINGS[wording][kind.strip("`")].questions
            ]
            assert any(re.fullmatch(form, example) for form in forms), example


def test_kinds_of_pairs_and_of_clips_are_all_there():
    assert tuple(re.findall(r"`(pair-\w+)`", TEXT)) == PAIR_KINDS
    rows = table("| kind | without a subtitle")
    assert {row[0].strip("`") for row in rows} == set(get_args(ClipKind))


def test_knobs_are_those_of_the_families():
    rows = table("| knob | family A")
    names = [re.match(r"`(\w+)`", row[0])[1] for row in rows]
    assert names == [field.name for field in fields(FAMILY_A) if field.name != "name"]
    numbers = {"nine": 9, "twelve": 12, "four": 4, "six": 6}
    for name, (_, *said) in zip(names, rows, strict=True):
        for family, words in zip((FAMILY_A, FAMILY_B), said, strict=True):
            value = getattr(family, name)
            if words in numbers:
                assert len(value) == numbers[words]
            elif isinstance(value, bool):
                assert words == ("yes" if value else "no")
            else:
                assert words.split() == [
                    str(v) for v in (value if isinstance(value, tuple) else (value,))
                ]
