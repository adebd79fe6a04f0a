"""Comparisons on a grid: which pairs are compared, what is said, drawn and written."""

import csv
import dataclasses
import re
import xml.etree.ElementTree as ET

import pytest

from dora_jax.analysis.conclusions import cautions, conclude
from dora_jax.analysis.grid_plots import axis_plots, size_plot
from dora_jax.analysis.published import beside_published
from dora_jax.analysis.report import render_report, write_report
from dora_jax.analysis.results import (
    Arm,
    ComparisonResults,
    Failure,
    ProtocolResult,
    Published,
)
from dora_jax.analysis.spread import spreads
from dora_jax.analysis.summary import summarize
from tests.analysis import sample
from tests.analysis.test_terminal import printed

RANK = "adapter.rank"
ARMS = (
    Arm("lora-rank4", "LoRA, rank 4", "lora", {RANK: 4}, "lora"),
    Arm("lora-rank8", "LoRA, rank 8", "lora", {RANK: 8}, "lora"),
    Arm("dora-rank4", "DoRA, rank 4", "dora", {RANK: 4}, "dora"),
    Arm("dora-rank8", "DoRA, rank 8", "dora", {RANK: 8}, "dora"),
    Arm("magnitude", "Magnitude only", "magnitude"),
)
COUNTS = {
    "lora-rank4": (10, 11, 12),
    "lora-rank8": (20, 21, 22),
    "dora-rank4": (30, 31, 32),
    "dora-rank8": (20, 22, 21),
    "magnitude": (15, 15, 15),
}


def on_grid(counts=COUNTS, **changes) -> ComparisonResults:
    correct = {name: [sample.first(n) for n in values] for name, values in counts.items()}
    found = sample.results(correct)
    method = {arm.name: arm.method for arm in ARMS}
    runs = tuple(
        sample.run(method[r.method], r.seed, r.correct, trainable_parameters=1000 + 7 * n)
        for n, r in enumerate(found.runs)
    )
    named = tuple(
        dataclasses.replace(run, method=old.method)
        for run, old in zip(runs, found.runs, strict=True)
    )
    return dataclasses.replace(found, runs=named, arms=ARMS, **changes)


def pairs_of(results):
    return {(p.first.method, p.second.method) for p in summarize(results).pairs}


def test_methods_are_compared_at_each_point_and_what_has_no_rank_at_all():
    assert pairs_of(on_grid()) == {
        ("dora-rank4", "lora-rank4"),
        ("dora-rank8", "lora-rank8"),
        *(("magnitude", name) for name in COUNTS if name != "magnitude"),
    }


def test_a_pair_that_is_asked_for_is_compared_too():
    asked = on_grid(pairs=(("dora-rank4", "lora-rank8"),))
    assert pairs_of(asked) - pairs_of(on_grid()) == {("dora-rank4", "lora-rank8")}
    with pytest.raises(ValueError, match="names 'dora', which is not an arm"):
        on_grid(pairs=(("dora", "lora-rank8"),))


def test_one_method_on_a_grid_is_compared_with_itself():
    results = on_grid()
    lora = tuple(run for run in results.runs if run.method.startswith("lora"))
    alone = dataclasses.replace(results, runs=lora, arms=ARMS[:2])
    assert pairs_of(alone) == {("lora-rank8", "lora-rank4")}


def test_the_headline_counts_the_settings():
    found = conclude(summarize(on_grid()))
    assert found.headline == (
        "DoRA was better than LoRA at 1 of 2 settings; no difference could be shown at the others."
    )
    assert "corrected for 6 comparisons" in str(found)
    swapped = dict(
        zip(COUNTS, [COUNTS[n] for n in list(COUNTS)[2:4] + list(COUNTS)[:2]], strict=False)
    )
    swapped["magnitude"] = COUNTS["magnitude"]
    assert conclude(summarize(on_grid(swapped))).headline.startswith(
        "LoRA was better than DoRA at 1"
    )
    level = dict.fromkeys(COUNTS, (20, 21, 22))
    assert conclude(summarize(on_grid(level))).headline == (
        "No difference between DoRA and LoRA could be shown at any of 2 settings."
    )


def test_accuracy_is_drawn_along_the_axis_and_its_data_are_written(tmp_path):
    summary = summarize(on_grid())
    ((title, plot),) = axis_plots(summary)
    assert title == "Accuracy by rank"
    rows = {row[0]: row for row in plot.table.rows}
    assert rows["dora-rank4"][1:3] == (4, pytest.approx(31 / 40))
    assert rows["magnitude"][1:3] == (None, pytest.approx(15 / 40))
    # One key for each method, not for each point.
    assert plot.methods == ("lora-rank4", "dora-rank4", "magnitude")
    assert size_plot(summary) is not None
    write_report(on_grid(), tmp_path / "report.html")
    folder = tmp_path / "plots"
    names = {path.stem for path in folder.iterdir()} - {"by_task"}
    assert {"accuracy", "difference", "loss", "gradient", "drift", "search", "by-rank"} <= names
    for name in names:
        ET.parse(folder / f"{name}.svg")
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        svg = (folder / f"{name}.svg").read_text()
        # None of the page's stand-ins is left, and none of its variables.
        assert "#0601" not in svg
        assert "#010101" not in svg
        assert "var(" not in svg
        assert "math" not in svg  # numbers are written as numbers
    with open(folder / "by-rank.csv", newline="") as file:
        written = {row["arm"]: row for row in csv.DictReader(file)}
    assert float(written["lora-rank8"]["accuracy"]) == pytest.approx(21 / 40)
    assert written["lora-rank8"][RANK] == "8"


def test_how_steady_each_method_is():
    failures = (
        Failure("lora-rank8", 3, 0.1, True, "the loss is nan"),
        Failure("dora-rank4", 3, 0.1, False, "out of memory"),
    )
    summary = summarize(on_grid(failures=failures))
    lora, dora, magnitude = spreads(summary)
    assert (lora.points, lora.diverged) == (2, 1)
    assert (dora.points, dora.diverged) == (2, 0)
    assert (lora.worst, lora.best) == (pytest.approx(11 / 40), pytest.approx(21 / 40))
    assert lora.over_points == pytest.approx(0.25 / 2**0.5)
    assert lora.over_seeds == pytest.approx(1 / 40)
    assert (magnitude.over_points, magnitude.over_seeds) == (None, pytest.approx(0.0))
    told = " ".join(c.text for c in cautions(summary))
    assert "LoRA, rank 8, seed 3, diverged and has no score: the loss is nan" in told
    assert "DoRA, rank 4, seed 3, failed and has no score: out of memory" in told


def test_published_rows_stand_beside_our_own():
    published = (
        Published("LLaMA, DoRA", "Table 1", {"even": 70.0, "odd": 80.0}, 75.0, "dora-rank4"),
        Published("LLaMA, prefix", "Table 1", {"even": 60.0}, 60.0),
    )
    table = beside_published(summarize(on_grid(published=published)))
    assert table.tasks == ("even", "odd")
    theirs, ours, other = table.rows
    assert theirs == ("LLaMA, DoRA", "Table 1", (70.0, 80.0), 75.0)
    # Rows 0 to 29, 30, 31 right: of the 20 even and 20 odd ones.
    even, odd = 100 * (15 + 16 + 16) / 60, 100 * (15 + 15 + 16) / 60
    assert ours[2:] == (pytest.approx((even, odd)), pytest.approx((even + odd) / 2))
    assert other[2] == (60.0, None)
    assert beside_published(summarize(on_grid())) is None
    assert "Beside the published figures" in render_report(on_grid(published=published))


def test_an_average_over_other_tasks_than_the_published_one_is_not_shown():
    for scores, is_shown in (
        ({"even": 70.0, "odd": 80.0}, True),
        ({}, True),
        ({"even": 70.0}, False),
        ({"even": 70.0, "odd": 80.0, "prime": 90.0}, False),
    ):
        row = Published("LLaMA, DoRA", "Table 1", scores, 75.0, "dora-rank4")
        theirs, ours = beside_published(summarize(on_grid(published=(row,)))).rows
        assert theirs[3] == 75.0
        assert (ours[3] is not None) == is_shown
    assert render_report(on_grid(published=(row,)))


def test_what_stands_for_all_points_of_a_grid_is_called_without_one():
    """Variants as well as methods: in the headline, the table of spreads and the plots' keys."""
    variants = tuple(
        dataclasses.replace(arm, label=f"Our {arm.label}", start=f"our-{arm.start}") for arm in ARMS
    )
    assert [arm.start_label for arm in ARMS[:2]] == ["LoRA", "LoRA"]
    assert variants[2].start_label == "Our DoRA"
    many = Arm("a", "A, rank 4, norm axis in", "dora", {RANK: 4, "adapter.norm_axis": "in"})
    assert many.start_label == "A"
    results = dataclasses.replace(on_grid(), arms=variants)
    summary = summarize(results)
    assert conclude(summary).headline.startswith("Our DoRA was better than Our LoRA at 1 of 2")
    assert [s.label for s in spreads(summary)] == ["Our LoRA", "Our DoRA", "Our Magnitude only"]
    page = render_report(results)
    drawn = page[page.index("<h3>Accuracy by rank") :]
    key = re.findall(r"</span>([^<]+)</span>", drawn[: drawn.index('<div role="img"')])
    assert key == ["Our LoRA", "Our DoRA", "Our Magnitude only"]


def test_several_variants_of_a_method_are_named_by_it():
    """Half the rank and the whole of it, against one LoRA: neither has won at both settings."""
    arms = (
        Arm("lora-r32", "LoRA r=32", "lora"),
        Arm("dora-r16", "DoRA r=16", "dora"),
        Arm("dora-r32", "DoRA r=32", "dora"),
    )
    results = on_grid()
    counts = ("lora-rank8", "dora-rank8", "dora-rank4")
    renamed = dict(zip(counts, (arm.name for arm in arms), strict=True))
    runs = tuple(
        dataclasses.replace(run, method=renamed[run.method])
        for run in results.runs
        if run.method in renamed
    )
    found = conclude(summarize(dataclasses.replace(results, runs=runs, arms=arms)))
    assert found.headline == (
        "DoRA was better than LoRA r=32 at 1 of 2 settings; no difference could be shown at the "
        "others."
    )


def test_other_protocols_are_reported_beside_the_main_one():
    results = sample.results(protocol="likelihood")
    rows = len(results.eval_rows)

    def other(count, unanswered):
        return {"generate": ProtocolResult(count / rows, tuple(sample.first(count)), unanswered)}

    base = dataclasses.replace(results.base, other=other(2, 30))
    runs = tuple(
        dataclasses.replace(run, other=other(n, 5))
        for run, n in zip(results.runs, (9, 12), strict=True)
    )
    results = dataclasses.replace(results, base=base, runs=runs)
    assert results.protocols == ("likelihood", "generate")
    assert ComparisonResults.from_dict(results.to_dict()) == results
    seen = results.by_protocol("generate")
    assert [run.accuracy for run in seen.runs] == [9 / rows, 12 / rows]
    assert seen.base.accuracy == 2 / rows
    page = sample.plain(render_report(results))
    assert "By other ways of scoring" in page
    assert ">30<" in page
    assert "DoRA - LoRA: +7.5 points" in page


def test_unanswered_rows_of_the_main_protocol_are_told():
    results = sample.results(protocol="generate")
    base = dataclasses.replace(results.base, unanswered=1234)
    runs = tuple(dataclasses.replace(run, unanswered=17) for run in results.runs)
    results = dataclasses.replace(results, base=base, runs=runs)
    assert ComparisonResults.from_dict(results.to_dict()) == results
    page, terminal = sample.plain(render_report(results)), printed(results)
    assert ">1,234<" in page
    assert ">17<" in page
    assert re.search(r"Unanswered +1,234 +17 +17", terminal)
    chosen = dataclasses.replace(results, protocol="likelihood")
    assert "Unanswered" not in sample.plain(render_report(chosen)) + printed(chosen)


def test_a_grid_of_scores_is_drawn_in_points():
    named = {"even": "VQA accuracy", "odd": "CIDEr-D"}
    data = dataclasses.replace(sample.results().data, metric="score", task_metrics=named)
    summary = summarize(on_grid(data=data))
    ((title, plot),) = axis_plots(summary)
    size = size_plot(summary)
    assert size is not None
    assert title == "Score by rank"
    assert size.alt.startswith("Score by number of trained parameters: LoRA, rank 4 27.5 with")
    for drawn in (plot, size):
        assert drawn.table.header[2] == "score"
        assert ">score, points<" in drawn.svg
        assert not re.search(r">[^<]*\d ?%<", drawn.svg)
