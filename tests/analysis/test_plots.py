import math
import re

import numpy as np
import pytest

from dora_jax.analysis import plots
from dora_jax.analysis.results import HistoryPoint, SearchTrial
from dora_jax.analysis.summary import summarize
from tests.analysis import sample

ALL = (
    plots.accuracy_plot,
    plots.difference_plot,
    plots.loss_plot,
    plots.gradient_plot,
    plots.drift_plot,
    plots.direction_plot,
    plots.search_plot,
)
THREE = {"lora": [sample.first(20)] * 3, "dora": [sample.first(c) for c in (19, 22, 24)]}


def test_the_centred_average_keeps_level_and_ends():
    assert plots.smoothed(np.full(50, 3.0), 0.2) == pytest.approx(np.full(50, 3.0))
    # 20 values, share 0.2: two neighbours on each side, fewer at the ends.
    line = plots.smoothed(np.arange(20.0), 0.2)
    assert line[10] == pytest.approx(10.0)
    assert line[0] == pytest.approx((0 + 1 + 2) / 3)
    assert line[19] == pytest.approx((17 + 18 + 19) / 3)
    assert plots.smoothed(np.array([1.0, 5.0])) == pytest.approx([1.0, 5.0])


def test_a_plot_takes_all_its_colours_from_the_page():
    summary = summarize(sample.results({**THREE, "full": [sample.first(30)] * 3}))
    for draw in ALL:
        plot = draw(summary)
        if draw is plots.direction_plot:  # none was recorded
            assert plot is None
            continue
        assert plot is not None
        assert not re.search(r"#[0-9a-fA-F]{6}\b", plot.svg)
        assert "var(--" in plot.svg
        assert "<style" not in plot.svg


def test_ids_differ_between_plots_and_references_resolve():
    summary = summarize(sample.results(THREE))
    drawn = [plot for draw in ALL if (plot := draw(summary)) is not None]
    ids = [name for plot in drawn for name in re.findall(r'\bid="([^"]+)"', plot.svg)]
    assert len(ids) == len(set(ids))
    for plot in drawn:
        for name in re.findall(r'(?:href="#|url\(#)([^")]+)', plot.svg):
            assert f'id="{name}"' in plot.svg


def test_drawing_is_deterministic():
    summary = summarize(sample.results(THREE))
    assert plots.loss_plot(summary) == plots.loss_plot(summary)


def test_words_for_those_who_cannot_see():
    summary = summarize(sample.results(THREE))
    assert "base model 20.0" in plots.accuracy_plot(summary).alt
    difference = plots.difference_plot(summary)
    assert difference is not None
    for part in ("DoRA - LoRA +4.2", "seed 0 -2.5", "seed 2 +10.0"):
        assert part in sample.plain(difference.alt)
    drift = plots.drift_plot(summary)
    assert drift is not None
    assert "DoRA ends at 0.4 %" in drift.alt
    assert drift.methods == ("dora",)
    search = plots.search_plot(summary)
    assert search is not None
    assert "Chosen: LoRA 0.001, DoRA 0.001" in search.alt


def test_a_known_method_keeps_its_colour():
    both = plots.page_colours(summarize(sample.results()))
    alone = plots.page_colours(summarize(sample.results({"dora": [sample.first(9)]})))
    assert alone["dora"] == both["dora"] != both["lora"]
    names = {f"method {i}": [sample.first(9)] for i in range(9)}
    assert plots.page_colours(summarize(sample.results(names)))["method 8"].startswith("--")


def test_nothing_to_draw_is_none():
    runs = [sample.run("lora", 0, sample.first(9), history=())]
    summary = summarize(sample.results(runs=runs, search=[]))
    for draw in ALL[1:]:
        assert draw(summary) is None
    diverged = sample.run("lora", 0, sample.first(9), history=(HistoryPoint(1, math.nan),))
    search = [SearchTrial("lora", 1e-3, 5, True, None, math.nan)]
    summary = summarize(sample.results(runs=[diverged], search=search))
    assert plots.loss_plot(summary) is None
    assert plots.search_plot(summary) is None


def test_a_run_that_diverges_midway_is_drawn_as_far_as_it_went():
    points = (*sample.history(None), HistoryPoint(21, math.inf))
    runs = [sample.run("lora", 0, sample.first(9), history=points)]
    plot = plots.loss_plot(summarize(sample.results(runs=runs)))
    assert plot is not None
    assert "LoRA ends near 0.1" in plot.alt


def test_a_long_history_is_thinned():
    points = sample.history(None, steps=5000)
    runs = [sample.run("lora", 0, sample.first(9), history=points)]
    plot = plots.loss_plot(summarize(sample.results(runs=runs)))
    assert plot is not None
    assert len(plot.svg) < 60_000


def test_scores_are_drawn_in_points():
    results = sample.scored()
    summary = summarize(results)
    score = plots.accuracy_plot(summary)
    assert score.name == score.table.header[1] == "score"
    assert "Score (points): base model" in score.alt
    assert ">points<" in score.svg
    difference = plots.difference_plot(summary)
    assert difference is not None
    assert "differences in points with" in difference.alt
    assert "percentage" not in difference.svg
    by_seed = [row[1] for row in difference.table.rows[1:]]
    lora, dora = ([r.accuracy for r in results.runs if r.method == m] for m in ("lora", "dora"))
    assert by_seed == pytest.approx([d - r for d, r in zip(dora, lora, strict=True)])
    search = plots.search_plot(summary)
    assert search is not None
    assert ">validation score, points<" in search.svg
    for plot in (score, search):
        assert not re.search(r">[^<]*\d ?%<", plot.svg)
