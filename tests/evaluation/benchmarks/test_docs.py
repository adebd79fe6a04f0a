"""The commands and the example that docs/benchmarks.md shows."""

import re
from pathlib import Path

import pytest

from dora_jax.evaluation.benchmarks.__main__ import _BENCHMARKS, main
from tests.evaluation.benchmarks.published import lines

TEXT = (Path(__file__).parents[3] / "docs" / "benchmarks.md").read_text()
COMMANDS = re.findall(r"```bash\n(.*?)\n```", TEXT, re.DOTALL)[1].splitlines()


def test_there_is_one_of_each():
    assert [command.split()[3] for command in COMMANDS] == list(_BENCHMARKS)


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_get_as_far_as_the_files(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="cannot be read"):
        main(command.split()[3:])


def test_its_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"question_id": 1, "image": "i.jpg", "text": "Is there a cat?", "label": "no"}
    lines(tmp_path / "coco_pope_random.json", [row])
    (example,) = re.findall(r"```python\n(.*?)\n```", TEXT, re.DOTALL)
    names = {"Path": Path}
    exec(example, names)
    assert names["questions"][0].image == Path("val2014/i.jpg")
