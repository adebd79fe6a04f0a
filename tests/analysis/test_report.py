import csv
import dataclasses
import re
from html.parser import HTMLParser

import pytest

from dora_jax.analysis.report import render_report, write_report
from dora_jax.analysis.results import (
    Arm,
    ComparisonResults,
    EvalRow,
    HistoryPoint,
    ModelInfo,
    ProtocolResult,
    Published,
    Sample,
    SearchTrial,
)
from dora_jax.analysis.summary import summarize
from tests.analysis import sample

VOID = {"meta", "br", "link", "img", "hr", "input", "path", "use"}
ONE = {"lora": [sample.first(24)], "dora": [sample.first(26)]}
THREE = {"lora": [sample.first(c) for c in (22, 24, 23)], "dora": [sample.first(25)] * 3}
METHODS = {**THREE, "magnitude": [sample.first(15)] * 3}


class Page(HTMLParser):
    """Checks nesting, and collects tables, text, attributes and ids."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text.append(data)
        if any(tag in self.open for tag in ("td", "th")):
            self.tables[-1][-1][-1] += (" " if "small" in self.open else "") + data

    def row(self, table: int, name: str) -> list[str]:
        found = [row for row in self.tables[table] if row and row[0].strip() == name]
        assert len(found) == 1, f"{len(found)} rows named {name!r}"
        return [" ".join(cell.split()) for cell in found[0]]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def values(row: list[str]) -> list[str]:
    """A row's name and figures, without units and small print."""
    return [row[0], *(cell.split()[0] for cell in row[1:])]


def by_two(results: ComparisonResults) -> ComparisonResults:
    """The results with another protocol, by which the rows in reverse are right."""

    def other(result):
        found = ProtocolResult(result.accuracy, result.correct[::-1], 2)
        return dataclasses.replace(result, other={"generate": found})

    return dataclasses.replace(
        results,
        base=other(results.base),
        runs=tuple(map(other, results.runs)),
        protocol="likelihood",
    )


@pytest.mark.parametrize("scores", [ONE, THREE, METHODS, {"dora": [sample.first(20)]}])
def test_well_formed_and_self_contained(scores):
    html = render_report(sample.results(scores))
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert "://" not in html
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
    for _, name, value in page.attributes:
        assert name not in ("src", "srcset", "action")
        assert not name.startswith("on")
        if name in ("href", "xlink:href"):
            assert value is not None
            assert value.startswith("#")
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    images = [
        (tag, value) for tag, name, value in page.attributes if (name, value) == ("role", "img")
    ]
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("div", "aria-label")]
    assert len(images) == len(labels) == page.tags.count("svg") > 0
    assert all(labels)


def test_figures_of_the_table_are_those_of_the_results():
    page = Page(sample.plain(render_report(sample.results(ONE))))
    base, lora, dora = (page.row(0, name) for name in ("Base model", "LoRA", "DoRA"))
    assert base[1].startswith("20.0 % 10.5 to 34.8 %")  # Wilson, 8 of 40
    assert base[3] == "2.500"
    assert lora[1].startswith("60.0 %")
    assert dora[1].startswith("65.0 %")
    assert lora[2].startswith("+40.0")
    assert dora[2].startswith("+45.0")
    assert dora[3] == "0.750"
    assert lora[4:] == [
        "1,000 1.00 % of model",
        "0",
        "500 ms x1.00",
        "2.00 MB x1.00",
        "3 min 20 s",
        "~",
    ]
    assert dora[4:] == [
        "1,200 1.20 % of model",
        "200",
        "550 ms x1.10",
        "2.20 MB x1.10",
        "3 min 20 s",
        "~",
    ]


def test_evidence_statistics_tasks_runs_and_search_are_there():
    page = Page(sample.plain(render_report(sample.results(THREE))))
    evidence, statistics, tasks, runs, search, skipped = page.tables[1:]
    assert [row[1:] for row in evidence[1:]] == [["200", "0.400 %", "yes"]] * 3
    assert statistics[1][0] == "DoRA - LoRA"
    assert statistics[1][1].startswith("+5.0")
    assert statistics[1][3] == "t test over rows and seeds 3 seeds"
    assert "6 : 0" in statistics[1][5]
    assert [values(row)[:5] for row in tasks[1:]] == [
        ["even", "20", "20.0", "58.3", "65.0"],
        ["odd", "20", "20.0", "56.7", "60.0"],
        ["Average of the tasks", "40", "20.0", "57.5", "62.5"],
    ]
    assert tasks[1][2] == "20.0 % 8.1 to 41.6"  # Wilson, 4 of 20
    assert [row[0] for row in runs[1:]] == [
        f"{method}, seed {seed}" for method in ("LoRA", "DoRA") for seed in range(3)
    ]
    assert [row[2] for row in runs[1:]][:3] == ["55.0 %", "60.0 %", "57.5 %"]
    assert [row[5] for row in search[1:4]] == ["", "chosen", ""]
    assert skipped[1:] == [["train", "long", "3"]]
    for text in ("optim.steps", "0.0001, 0.001, 0.01", "0.10.2", "cpu:0", "a local folder"):
        assert text in page.words
    assert "dora-jax compare experiments/sample.py" in page.words
    assert "2026-01-02 03:04 UTC" in page.words


def test_conclusions_and_the_limits_of_one_seed_are_told():
    page = Page(sample.plain(render_report(sample.results(ONE))))
    assert "No difference between DoRA and LoRA could be shown." in page.words
    assert "One seed cannot separate the method from the luck of the seed" in page.words
    assert "exact McNemar test" in page.words
    assert "sign flips" not in page.words
    page = Page(sample.plain(render_report(sample.results(THREE))))
    assert "with 3 seeds sign flips cannot go below p = 0.25" in page.words


def test_three_methods_are_compared_in_pairs():
    page = Page(sample.plain(render_report(sample.results(METHODS))))
    pairs = [row[0] for row in page.tables[2][1:]]
    assert pairs == ["DoRA - LoRA", "Magnitude only - LoRA", "Magnitude only - DoRA"]
    assert "corrected for 3 comparisons by Holm's method" in page.words


def test_each_pair_is_told_with_its_own_test_and_interval():
    """A method that was run once is compared by other means than those with three seeds."""
    page = Page(sample.plain(render_report(sample.results({**THREE, "full": [sample.first(30)]}))))
    assert [row[3] for row in page.tables[2][1:]] == [
        "t test over rows and seeds 3 seeds",
        "exact McNemar test 1 seed",
        "exact McNemar test 1 seed",
    ]
    intervals = (
        "for pairs with 3 seeds: t with variance over rows and 3 seeds, paired by both; "
        "for pairs with 1 seed: Bonett-Price, paired by row"
    )
    for text in (
        "(for pairs with 3 seeds: t test over rows and seeds; for pairs with 1 seed: exact McNemar",
        f"({intervals}; not corrected)",
        f"Bars: 95 % intervals, {intervals}. A bar",  # of the plot
        "for methods with 3 seeds: Wilson with the effective number of rows, over rows and 3 "
        "seeds; for methods with 1 seed and the base model: Wilson, over rows.",
        "with 3 seeds sign flips cannot go below p = 0.25.",
        "Of a pair with one seed both speak about this one pair of runs",
    ):
        assert text in page.words
    # A single pair's plot has its seeds too, each by the means of one.
    page = Page(sample.plain(render_report(sample.results(THREE))))
    assert "for single seeds: Bonett-Price, paired by row. A bar" in page.words
    assert "on the interval under the difference (t with variance over rows and 3" in page.words
    page = Page(sample.plain(render_report(sample.results(ONE))))
    assert "Bars: 95 % intervals, Wilson, over rows." in page.words
    assert "Both speak about this one pair of runs" in page.words


def test_tasks_are_told_by_every_protocol(tmp_path):
    results = by_two(sample.results(ONE))
    path = write_report(results, tmp_path / "report.html")
    page = Page(sample.plain(path.read_text(encoding="utf-8")))
    main, other = (table for table in page.tables if table[0][0] == "Task")
    assert [values(row)[:5] for row in main[1:3]] == [
        ["even", "20", "20.0", "60.0", "65.0"],
        ["odd", "20", "20.0", "60.0", "65.0"],
    ]
    # In reverse the rows 14 to 39 are right with DoRA, 16 to 39 with LoRA.
    assert [row[4].split(" % ")[0] for row in other[1:]] == ["65.0", "65.0", "65.0"]
    summaries = {p: summarize(results.by_protocol(p)) for p in ("likelihood", "generate")}
    with open(tmp_path / "plots" / "by_task.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 3
    for row in rows:
        summary = summaries[row["protocol"]]
        tasks = {task.task: task for task in (*summary.tasks, summary.average)}
        task, arm = tasks[row["task"]], row["arm"]
        interval = task.base_interval if arm == "base" else task.intervals[arm]
        mean = task.base if arm == "base" else task.accuracies[arm]
        assert int(row["rows"]) == task.rows
        assert (float(row["low"]), float(row["accuracy"]), float(row["high"])) == (
            interval.low,
            mean,
            interval.high,
        )
    seen = [table for table in page.tables if "Average ofthe tasks" in table[0]]
    average = summaries["generate"].average.intervals["dora"]
    assert f"{100 * average.low:.1f} to {100 * average.high:.1f} %" in seen[0][-1][3]


def test_one_task_is_no_table_of_tasks(tmp_path):
    results = sample.results(eval_rows=[EvalRow()] * sample.ROWS)
    path = write_report(by_two(results), tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    assert "By task" not in page
    assert "by_task" not in page
    assert not (tmp_path / "plots" / "by_task.csv").exists()


def test_a_task_with_most_of_the_rows_is_named():
    rows = [EvalRow("large")] * 30 + [EvalRow("small")] * 10
    said = "75 % of them are of large: it weighs more there than all other tasks."
    assert said in Page(sample.plain(render_report(sample.results(eval_rows=rows)))).words
    assert "weighs more" not in render_report(sample.results())


@pytest.mark.parametrize(
    "changes",
    [
        {"magnitude_parameters": 0},
        {"history": tuple(HistoryPoint(s, 1 / (s + 1), magnitude_drift=0.0) for s in range(5))},
    ],
)
def test_dora_that_was_not_on_is_said_loudly(changes):
    runs = [
        sample.run("lora", 0, sample.first(9)),
        sample.run("dora", 0, sample.first(20), **changes),
    ]
    html = sample.plain(render_report(sample.results(runs=runs)))
    page = Page(html)
    assert '<p class="headline off">DoRA was NOT on: this comparison is void.' in html
    assert '<li class="grave">NOT ON: DoRA, seed 0' in html
    assert page.row(1, "DoRA, seed 0")[3] == "NO"
    assert "NOT on" not in render_report(sample.results())


HOSTILE = """<script>alert("x")</script>&'"--></style>$\\frac{1}{2}$ [red]漢字\x07"""


def test_hostile_names_are_text():
    plain_results = sample.results()
    runs = [
        sample.run(HOSTILE if run.method == "lora" else run.method, 0, run.correct)
        for run in plain_results.runs
    ]
    search = [dataclasses.replace(trial, method=HOSTILE) for trial in plain_results.search[:3]]
    results = sample.results(
        runs=runs,
        search=search,
        name=HOSTILE,
        command=HOSTILE,
        finished=HOSTILE,
        model=ModelInfo(HOSTILE, HOSTILE, 10),
        data=dataclasses.replace(plain_results.data, task=HOSTILE, skipped={HOSTILE: {HOSTILE: 1}}),
        eval_rows=[EvalRow(HOSTILE + str(i % 2)) for i in range(sample.ROWS)],
        settings={HOSTILE: {HOSTILE: [HOSTILE]}},
        environment={HOSTILE: HOSTILE},
    )
    html = render_report(results)
    page = Page(html)
    assert page.tags.count("style") == 1
    assert "script" not in page.tags
    assert "<script" not in html
    assert page.text.count(HOSTILE) >= 8
    assert any(HOSTILE in cell for row in page.tables[0] for cell in row)


def test_what_was_not_measured_is_a_dash():
    bare = {
        name: None
        for name in (
            "loss",
            "step_time_s",
            "temp_bytes",
            "peak_rss_bytes",
            "compile_s",
            "train_seconds",
        )
    }
    runs = [
        sample.run(method, 0, sample.first(20), history=(), **bare) for method in ("lora", "dora")
    ]
    results = sample.results(runs=runs, search=[], settings={}, environment={})
    data = dataclasses.replace(results.data, chance=None, skipped={})
    page = Page(sample.plain(render_report(dataclasses.replace(results, data=data))))
    row = page.row(0, "DoRA")
    assert [row[3], *row[6:]] == ["~"] * 5
    assert "No training history was recorded." in page.words
    assert "No row was left out or shortened." in page.words
    assert "not shown" in page.words
    assert "None" not in page.words
    assert "nan" not in page.words


def test_shortened_rows_are_told():
    results = sample.results()
    data = dataclasses.replace(results.data, skipped={}, cut={"train": {"long": 7}})
    page = Page(sample.plain(render_report(dataclasses.replace(results, data=data))))
    assert page.tables[-1][1:] == [["train", "long", "7"]]
    assert "Rows shortened" in page.words
    assert "left out" not in page.words


def test_rendering_is_deterministic_and_the_file_complete(tmp_path):
    results = sample.results(THREE)
    path = write_report(results, tmp_path / "out" / "report.html")
    assert path.read_text(encoding="utf-8") == render_report(results)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["plots", "report.html"]


def test_scores_are_reported_in_points_and_each_task_by_its_metric():
    tasks = ("vqa", "gqa", "caption", "nlvr") * 10
    scores = {
        "lora": [(0.3, 1, 1.1, 0) * 10, (0.6, 1, 1.1, 0) * 10, (0.6, 1, 1.4, 0) * 10],
        "dora": [(0.6, 1, 1.2, 1) * 10, (0.9, 1, 1.1, 1) * 10, (0.9, 1, 1.3, 1) * 10],
    }
    results = sample.scored(
        scores,
        tasks,
        base=(0, 0, 0.4, 0) * 10,
        samples=(Sample("What colour?", "red", 0), Sample("Describe.", "a dog", 2)),
        published=(
            Published(
                "DoRA, VL-BART",
                "the paper",
                {"vqa": 65.8, "gqa": 54.7, "nlvr": 73.1, "caption": 115.9},
                77.4,
                "dora",
            ),
        ),
    )
    answers = ("blue", "a cat")
    results = dataclasses.replace(
        results,
        base=dataclasses.replace(results.base, answers=answers),
        runs=tuple(dataclasses.replace(run, answers=answers) for run in results.runs),
    )
    page = Page(sample.plain(render_report(results)))
    assert page.tables[0][0][1] == "Score (points)"
    # DoRA: vqa (60 + 90 + 90) / 3 = 80, gqa 100, caption (120 + 110 + 130) / 3 = 120, nlvr 100.
    assert page.row(0, "DoRA")[1].startswith("100.0 ")
    assert page.row(0, "DoRA")[2].startswith("+90.0")
    published, _, statistics, by_task = page.tables[1:5]
    assert published[1][2:] == ["65.8", "54.7", "73.1", "115.9", "77.4"]
    assert published[2][2:] == ["80.0", "100.0", "100.0", "120.0", "100.0"]
    assert "Higher score(first : second)" in statistics[0]
    assert not any("Cohen" in cell for cell in statistics[0])
    assert [row[0] for row in by_task[1:-1]] == [
        "vqa VQA accuracy",
        "gqa exact match",
        "caption CIDEr-D",
        "nlvr exact match",
    ]
    assert [values(row)[1:5] for row in by_task[1:]] == [
        ["10", "0.0", "50.0", "80.0"],
        ["10", "0.0", "100.0", "100.0"],
        ["10", "40.0", "120.0", "120.0"],
        ["10", "0.0", "0.0", "100.0"],
        ["40", "10.0", "67.5", "100.0"],
    ]
    # The average is the score itself here.
    assert by_task[-1][4] == page.row(0, "DoRA")[1]
    for text in (
        "LoRA: blue (30.0 points)",
        "DoRA: a cat (120.0 points)",
        "Points; the average is over tasks",
        "rows within tasks and 3 seeds",
        "score (points): VQA accuracy (vqa), exact match (gqa)",
        "A full mark is 100 points",
    ):
        assert text in page.words
    for text in ("Accuracy", "percentage", "Percent", "Cohen", "Right alone", "\N{CHECK MARK}"):
        assert text not in page.words


def test_baselines_are_marked_and_in_no_table_of_pairs():
    arms = (Arm("blind", "Blind", "lora", baseline=True), Arm("lora", "LoRA", "lora"))
    arms = (*arms, Arm("dora", "DoRA", "dora"))
    page = Page(render_report(sample.results({**ONE, "blind": [sample.first(9)]}, arms=arms)))
    marked = [row[0] for row in page.tables[0] if "baseline, in no pair" in row[0]]
    assert marked == ["Blind baseline, in no pair"]
    assert not any("Blind" in row[0] and "LoRA" in row[0] for table in page.tables for row in table)


def test_trials_without_answers_have_a_loss_and_no_score():
    losses = {"even": 1.0, "odd": 2.0}
    search = [SearchTrial("lora", rate, 5, rate == 1e-3, None, 1.5, losses) for rate in (1e-3, 1.0)]
    page = Page(render_report(sample.results(ONE, search=search)))
    (table,) = (table for table in page.tables if table[0][-1] == "Chosen")
    assert [row[1:] for row in table] == [
        ["Learning rate", "Steps", "Validation loss", "Chosen"],
        ["0.001", "5", "1.500", "chosen"],
        ["1", "5", "1.500", ""],
    ]
