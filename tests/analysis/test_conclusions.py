import dataclasses
import math

import pytest

from dora_jax.analysis.conclusions import cautions, conclude
from dora_jax.analysis.results import Arm, ComparisonResults, HistoryPoint, SearchTrial
from dora_jax.analysis.summary import summarize
from tests.analysis import sample

WORSE, BETTER = sample.first(16), sample.first(32)


def words(results: ComparisonResults) -> str:
    return sample.plain(str(conclude(summarize(results))))


def warned(results: ComparisonResults) -> str:
    return sample.plain("\n".join(c.text for c in cautions(summarize(results))))


def test_one_seed_is_never_a_verdict_on_the_method():
    text = words(sample.results({"lora": [WORSE], "dora": [BETTER]}))
    assert text.startswith("DoRA scored higher than LoRA in this one pair of runs.")
    assert "DoRA 80.0 %, LoRA 40.0 %: a difference of 40.0 points" in text
    assert "One seed cannot separate the method from the luck of the seed" in text
    assert "--seeds" in text
    assert "was better" not in text


def test_several_seeds_may_show_a_difference():
    shaken = [BETTER, sample.first(31), sample.first(33)]
    text = words(sample.results({"lora": [WORSE] * 3, "dora": shaken}))
    assert text.startswith("DoRA was better than LoRA.")
    assert "3 seeds, 40 rows" in text
    assert "luck of the seed" not in text


def test_no_difference_says_what_could_have_been_missed():
    scores = {"lora": [sample.first(24)] * 3, "dora": [sample.first(c) for c in (23, 25, 26)]}
    results = sample.results(scores)
    text = words(results)
    comparison = summarize(results).pairs[0].comparison
    assert text.startswith("No difference between DoRA and LoRA could be shown.")
    high = f"{100 * comparison.interval.high:.1f}"
    low = f"{-100 * comparison.interval.low:.1f}"
    assert (
        f"up to {high} points in favour of DoRA or of up to {low} points in favour of LoRA "
        "could have been missed." in text
    )


@pytest.mark.parametrize(
    ("lora", "dora"),
    [
        ([WORSE], [BETTER]),
        ([WORSE] * 3, [BETTER, sample.first(31), sample.first(33)]),
        ([sample.first(24)] * 3, [sample.first(c) for c in (23, 25, 26)]),
        ([sample.first(24)], [sample.first(25)]),
        ([sample.first(24)], [sample.first(24)]),
    ],
)
def test_the_words_favour_no_method(lora, dora):
    """Exchanging the scores exchanges the names, and nothing else."""

    def verdict(results):
        summary = summarize(results)
        plain = conclude(summary).sentences[: 2 if len(lora) > 1 else 3]
        return " ".join((conclude(summary).headline, *plain))

    there = verdict(sample.results({"lora": lora, "dora": dora}))
    back = verdict(sample.results({"lora": dora, "dora": lora}))
    exchanged = there.replace("DoRA", "#").replace("LoRA", "DoRA").replace("#", "LoRA")
    if lora == dora:
        assert back == there
    else:
        assert cut(back) == cut(exchanged)


def cut(text: str) -> str:
    """Without the sentences that name both methods in the order of display."""
    return text.split(" Points above")[0]


def test_base_and_cost_are_told():
    text = words(sample.results())
    assert "the untuned model's 20.0 %: LoRA +40.0 (" in text
    assert (
        "DoRA took 1.10 times the step time, 1.10 times the temporary memory and 1.20 times "
        "the trained parameters of LoRA." in text
    )


def test_costs_not_measured_are_not_told():
    runs = [
        sample.run(method, 0, sample.first(20), step_time_s=None, temp_bytes=None)
        for method in ("lora", "dora")
    ]
    text = words(sample.results(runs=runs))
    assert "DoRA took 1.20 times the trained parameters of LoRA." in text
    assert "step time" not in text


def test_three_methods_are_all_told_and_corrected():
    text = words(
        sample.results({"lora": [BETTER], "dora": [sample.first(33)], "magnitude": [WORSE]})
    )
    assert text.startswith("No difference between DoRA and LoRA could be shown.")
    assert "LoRA scored higher than Magnitude only (40.0 points, p < 0.001)" in text
    assert "corrected for 3 comparisons (Holm)" in text


def test_one_method_is_no_comparison():
    text = words(sample.results({"dora": [BETTER]}))
    assert text.startswith("Only DoRA was run: there is nothing to compare.")


def test_no_shared_seed_is_no_comparison():
    runs = [sample.run("lora", 0, WORSE), sample.run("dora", 1, BETTER)]
    results = sample.results(runs=runs)
    assert "no two methods were run with the same seed" in words(results)
    assert "Not the same seeds (LoRA 0; DoRA 1)" in warned(results)


FLAT = tuple(HistoryPoint(step, 1.0 / (step + 1), magnitude_drift=0.0) for step in range(4))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"magnitude_parameters": 0}, "DoRA, seed 0 has no magnitude parameters"),
        ({"history": FLAT}, "drift is never above zero"),
        ({"history": (HistoryPoint(1, 1.0, magnitude_drift=math.nan),)}, "never above zero"),
    ],
)
def test_dora_that_was_not_on_voids_the_comparison(changes, reason):
    runs = [sample.run("lora", 0, WORSE), sample.run("dora", 0, BETTER, **changes)]
    results = sample.results(runs=runs)
    conclusion = conclude(summarize(results))
    assert conclusion.void
    assert conclusion.headline == "DoRA was NOT on: this comparison is void."
    assert "higher" not in str(conclusion)
    worst = cautions(summarize(results))[0]
    assert worst.grave
    assert worst.text.startswith("NOT ON: ")
    assert reason in worst.text


def test_another_method_that_was_off_warns_but_does_not_void():
    runs = [
        sample.run("lora", 0, WORSE),
        sample.run("dora", 0, BETTER),
        sample.run("magnitude", 0, WORSE, magnitude_parameters=0),
    ]
    results = sample.results(runs=runs)
    assert not conclude(summarize(results)).void
    assert "NOT ON: Magnitude only, seed 0" in warned(results)


def test_a_switch_without_effect_is_found():
    history = sample.history(0.01)
    runs = [
        sample.run("lora", 0, WORSE, history=sample.history(None)),
        sample.run("dora", 0, WORSE, history=history),
    ]
    assert "the same loss at every step" in warned(sample.results(runs=runs))
    one = dataclasses.replace(history[-1], loss=9.0)
    runs[1] = sample.run("dora", 0, WORSE, history=(*history[:-1], one))
    assert "the same loss" not in warned(sample.results(runs=runs))


def test_drift_not_recorded_is_said():
    runs = [
        sample.run("lora", 0, WORSE),
        sample.run("dora", 0, BETTER, history=sample.history(None)),
    ]
    assert "DoRA, seed 0: no magnitude drift was recorded" in warned(sample.results(runs=runs))


def test_a_clean_comparison_has_no_cautions():
    assert warned(sample.results()) == ""


def test_gains_not_shown_and_guessing_are_said():
    scores = {"lora": [sample.first(9)], "dora": [sample.first(26)]}
    text = warned(sample.results(scores))
    assert "No gain over the untuned model is shown for LoRA:" in text
    assert "LoRA: not distinguishable from guessing (12.5 %)." in text


def test_a_ceiling_is_said():
    scores = {"lora": [sample.first(39)], "dora": [sample.first(40)]}
    assert "too easy" in warned(sample.results(scores))
    assert "too easy" not in warned(sample.results({**scores, "full": [sample.first(30)]}))


@pytest.mark.parametrize(("chosen", "end"), [(1e-4, "lowest"), (1e-2, "highest"), (1e-3, None)])
def test_a_rate_at_the_edge_of_the_search_is_said(chosen, end):
    search = [SearchTrial("dora", rate, 5, rate == chosen) for rate in (1e-4, 1e-3, 1e-2)]
    search += [SearchTrial("lora", rate, 5, rate == 1e-3) for rate in (1e-4, 1e-3, 1e-2)]
    text = warned(sample.results(search=search))
    if end is None:
        assert text == ""
    else:
        assert f"chosen for DoRA, {chosen:g}, is the {end} of those tried" in text
        assert "chosen for LoRA" not in text


def test_unequal_care_is_said():
    search = [SearchTrial("dora", rate, 5, rate == 1e-3) for rate in (1e-4, 1e-3, 1e-2)]
    text = warned(sample.results(search=[*search, SearchTrial("lora", 1e-3, 5, True)]))
    assert "Not the same number of learning rates was tried: LoRA 1 and DoRA 3." in text


def test_divergence_two_seeds_and_rows_left_out_are_said():
    broken = sample.run("lora", 0, WORSE, history=(HistoryPoint(1, math.nan),))
    data = dataclasses.replace(sample.results().data, skipped={"evaluation": {"too long": 4}})
    runs = [broken, sample.run("dora", 0, WORSE)]
    text = warned(sample.results(runs=runs, data=data))
    assert "LoRA, seed 0: the training loss was not finite" in text
    assert "4 rows were left out of the evaluation (too long)." in text
    assert "Two seeds" in warned(sample.results({"lora": [WORSE] * 2, "dora": [BETTER] * 2}))


@pytest.mark.parametrize(
    ("settings", "count", "said"),
    [
        ({}, 1, "1 row was left out of the evaluation (too long)."),
        # Fewer than were asked for: some may have been lost of those that were drawn.
        ({"data": {"eval_rows": 50}}, 2, "2 rows were left out of the evaluation (too long)."),
        (
            {"data": {"eval_rows": 40}},
            1,
            "1 row of the evaluation data was left out before drawing 40 rows (too long).",
        ),
        ({"data": "a name"}, 1, "1 row was left out of the evaluation (too long)."),
    ],
)
def test_rows_left_out_are_counted_before_or_after_the_draw(settings, count, said):
    data = dataclasses.replace(sample.results().data, skipped={"evaluation": {"too long": count}})
    assert said in warned(sample.results(data=data, settings=settings))


def test_images_that_training_could_not_read_are_said():
    def told(*counts):
        runs = [
            sample.run(method, 0, WORSE, broken_images=count)
            for method, count in zip(("lora", "dora"), counts, strict=True)
        ]
        return warned(sample.results(runs=runs))

    assert "could not be read" not in told(0, 0)
    assert "1 image could not be read in training: nothing of its row was trained on." in told(1, 1)
    assert "3 images could not be read in training: nothing of their rows was" in told(3, 3)
    assert "not the same number in all runs" in told(3, 0)
    assert "(LoRA, seed 0: 3; DoRA, seed 0: 0)." in told(3, 0)


def test_scores_are_told_in_points():
    tasks = ("gqa",) * 20 + ("caption",) * 20
    worse, better = (0.2,) * 20 + (0.8,) * 20, (0.4,) * 20 + (1.6,) * 20
    results = sample.scored({"lora": [worse] * 3, "dora": [better] * 3}, tasks, base=(0.1,) * 40)
    text = words(results)
    assert text.startswith("DoRA was better than LoRA.")
    assert "DoRA 100.0, LoRA 50.0: a difference of 50.0 points" in text
    assert "Points above the untuned model's 10.0: LoRA +40.0 (" in text
    assert "%" not in text.replace("95 % interval", "")


def test_more_than_a_full_mark_is_no_ceiling():
    full = (1.0,) * 40
    tasks = ("caption",) * 40
    results = sample.scored({"lora": [full], "dora": [full]}, tasks, base=(0.1,) * 40)
    assert "too easy" not in warned(results)
    guessing = dataclasses.replace(results.data, chance=1.0)
    text = warned(dataclasses.replace(results, data=guessing))
    assert "LoRA and DoRA: not distinguishable from guessing (100.0)." in text


LORA, DORA = Arm("lora", "LoRA", "lora"), Arm("dora", "DoRA", "dora")
BLIND = Arm("blind", "LoRA, blind", "lora", baseline=True)


def test_baselines_are_told_and_not_cautioned_of():
    """One seed, no gain, no better than guessing: all that is expected of a baseline."""
    near = {"lora": [sample.first(24)] * 3, "dora": [sample.first(c) for c in (25, 24, 26)]}
    scores = {"blind": [sample.first(5)], **near}
    text = words(sample.results(scores, arms=(BLIND, LORA, DORA)))
    assert text.startswith("No difference between DoRA and LoRA could be shown.")
    assert '"LoRA, blind" is a baseline, in no pair.' in text
    assert "and LoRA, blind -7.5 (" in text
    assert "Holm" not in text
    assert warned(sample.results(scores, arms=(BLIND, LORA, DORA))) == ""
    plain = dataclasses.replace(BLIND, baseline=False)
    text = warned(sample.results(scores, arms=(plain, LORA, DORA)))
    assert "No gain over the untuned model is shown for LoRA, blind" in text
    assert "Not the same seeds" in text


def test_a_low_baseline_does_not_hide_a_ceiling():
    scores = {"blind": [WORSE], "lora": [sample.first(39)], "dora": [sample.first(40)]}
    assert "too easy" in warned(sample.results(scores, arms=(BLIND, LORA, DORA)))


def test_one_method_beside_baselines_is_no_comparison():
    scores = {"blind": [WORSE], "dora": [BETTER]}
    text = words(sample.results(scores, arms=(BLIND, DORA)))
    assert text.startswith("Only DoRA was run beside baselines: there is nothing to compare.")
    text = words(sample.results({"blind": [WORSE]}, arms=(BLIND, LORA)))
    assert text.startswith("Only LoRA, blind was run: there is nothing to compare.")
