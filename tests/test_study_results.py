"""docs/commonsense.md says what the committed results say."""

import re
from pathlib import Path

import pytest

from dora_jax.analysis.results import ComparisonResults
from dora_jax.analysis.summary import summarize

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "commonsense" / "results"
PAGE = (ROOT / "docs" / "commonsense.md").read_text()
ARMS = {
    "LoRA, rank 4": "lora-rank4",
    "DoRA, rank 4": "dora-rank4",
    "LoRA, rank 8": "lora-rank8",
    "DoRA, rank 8": "dora-rank8",
    "magnitudes alone": "magnitude-only",
    "full fine-tuning": "full-fine-tuning",
}
TASKS = {
    "BoolQ": "boolq",
    "PIQA": "piqa",
    "SIQA": "social_i_qa",
    "WinoG": "winogrande",
    "ARC-e": "ARC-Easy",
    "ARC-c": "ARC-Challenge",
    "OBQA": "openbookqa",
}


def tables(heading):
    """Return a section's two tables: rows of cells by their first one."""
    text = PAGE.split(f"## What came out of {heading}\n")[1].split("\n## ")[0]
    found = [
        {(cells := [c.strip() for c in line.strip("|").split("|")])[0]: cells[1:] for line in block}
        for block in (part.splitlines() for part in re.findall(r"(?:^\|.*\n)+", text, re.M))
    ]
    assert len(found) == 2
    return (*found, text)


@pytest.mark.parametrize(("heading", "folder"), [("cloze", "cloze"), ("labels", "index")])
def test_tables_are_those_of_the_results(heading, folder):
    whole, by_task, text = tables(heading)
    results = ComparisonResults.from_json(RESULTS / folder / "results.json")
    summary = summarize(results)
    methods = {m.method: m for m in summary.methods}
    base, held = results.base, summary.base_interval

    def percents(*values):
        return [f"{100 * value:.1f}" for value in values]

    def numbers(cell):
        return re.findall(r"\d+\.\d+", cell)

    assert set(whole) >= {"untuned", *ARMS}
    assert numbers(whole["untuned"][2]) == percents(base.accuracy, held.low, held.high)
    assert whole["untuned"][4] == f"{base.loss:.2f}"
    for label, name in ARMS.items():
        method, (trained, rate, accuracy, seeds, loss) = methods[name], whole[label]
        interval = method.interval
        assert trained == f"{method.trainable_parameters / 1e6:.{1 if name[0] == 'f' else 2}f} M"
        assert float(rate) == method.runs[0].learning_rate
        assert numbers(accuracy) == percents(method.accuracy, interval.low, interval.high)
        assert numbers(seeds) == percents(*(run.accuracy for run in method.runs))
        assert loss == f"{method.loss:.2f}"

    tasks = {task.task: task for task in summary.tasks}
    header = by_task[""]
    assert header == [*TASKS, "average"]
    ordered = [*(tasks[TASKS[name]] for name in header[:-1]), summary.average]
    assert by_task["untuned"] == percents(*(task.base for task in ordered))
    for label, name in ARMS.items():
        assert by_task[label] == percents(*(task.accuracies[name] for task in ordered))
    rows = ", ".join(str(task.rows) for task in ordered[:-1])
    assert f"(rows: {rows})" in text
    assert f"Chance is {100 * results.data.chance:.1f} %" in text
