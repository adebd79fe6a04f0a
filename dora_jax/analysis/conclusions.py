"""What a comparison shows, in plain words that follow from its figures and favour no method.

Every sentence is written from the side of whichever method scored higher, so that exchanging the
methods' names exchanges them in the words and changes nothing else.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dora_jax.analysis import formatting as say
from dora_jax.analysis.dominance import dominance
from dora_jax.analysis.results import METHOD_LABELS, Arm, ComparisonResults
from dora_jax.analysis.statistics import SIGNIFICANCE
from dora_jax.analysis.summary import MethodSummary, PairSummary, Summary

CEILING = 0.97  # above it, rows are too easy to tell two methods apart


@dataclass(frozen=True)
class Conclusion:
    """The headline, and the sentences that give its figures and limits."""

    headline: str
    sentences: tuple[str, ...]
    void: bool = False  # the compared method was not on, so that nothing was compared

    def __str__(self) -> str:
        return " ".join((self.headline, *self.sentences))


@dataclass(frozen=True)
class Caution:
    """Something to know before believing the figures; `grave` when it makes them worthless."""

    text: str
    grave: bool = False


def conclude(summary: Summary) -> Conclusion:
    """Say what the figures show about the headline pair, the other pairs, the base and the cost."""
    off = _switched_off(summary)
    if off:
        return Conclusion(
            f"{say.listed(off)} {'was' if len(off) == 1 else 'were'} NOT on: "
            "this comparison is void.",
            (
                "A run of it trained no magnitude, so that nothing can be concluded about it here.",
                *_against_base(summary),
            ),
            void=True,
        )
    if summary.headline is None:
        return Conclusion(_no_pair(summary), tuple(_against_base(summary)))
    heads = summary.headlines
    words = summary.words
    if len(heads) == 1:
        headline, *figures = _pair(heads[0], words)
    else:
        headline, *figures = _along_the_grid(heads, words)
    others = [pair for pair in summary.pairs if pair not in heads]
    return Conclusion(
        headline,
        (
            *figures,
            *_other_pairs(others, len(summary.pairs)),
            *_baselines(summary),
            *_against_base(summary),
            *_cost(heads[0]),
        ),
    )


def _no_pair(summary: Summary) -> str:
    """Why there is nothing to compare."""
    compared = [method.label for method in summary.compared]
    if len(compared) > 1:
        return "No comparison can be made: no two methods were run with the same seed."
    beside = " beside baselines" if compared and summary.baselines else ""
    only = compared[0] if compared else say.listed([m.label for m in summary.baselines])
    return f"Only {only} was run{beside}: there is nothing to compare."


def _baselines(summary: Summary) -> list[str]:
    if not summary.baselines:
        return []
    names = [f'"{method.label}"' for method in summary.baselines]
    are = "is a baseline" if len(names) == 1 else "are baselines"
    return [f"{say.listed(names)} {are}, in no pair."]


def cautions(summary: Summary) -> tuple[Caution, ...]:
    """Return what a reader must know before believing the figures, the gravest first."""
    found = _magnitude_cautions(summary) + _twin_cautions(summary)
    milder = (
        *_divergence_cautions(summary),
        *_seed_cautions(summary),
        *_range_cautions(summary),
        *_dominance_cautions(summary),
        *_search_cautions(summary),
        *_skipped_cautions(summary),
        *_broken_cautions(summary),
    )
    found += [Caution(text) for text in milder]
    return tuple(sorted(found, key=lambda caution: not caution.grave))


def is_shown(pair: PairSummary) -> bool:
    """Whether the pair's difference is beyond chance, after the correction for several pairs."""
    return pair.p_value < SIGNIFICANCE


def _switched_off(summary: Summary) -> list[str]:
    """Labels of the compared methods of which a run did not train its magnitudes."""
    heads = summary.headlines
    compared = [m for p in heads for m in (p.first, p.second)] or list(summary.methods)
    off = {evidence.run.method for evidence in summary.magnitudes if evidence.off}
    return list(dict.fromkeys(m.label for m in compared if m.method in off))


def _pair(pair: PairSummary, words: say.MetricWords) -> list[str]:
    """The headline and the figures of one pair, from the side of the higher score."""
    leader, other, gain, low, high = _from_the_leader(pair)
    comparison = pair.comparison
    extent = f"{say.plural(comparison.seeds, 'seed')}, {say.plural(comparison.rows, 'row')}"
    figures = (
        f"95{say.NBSP}% interval {say.points(low)} to {say.points(high)}; "
        f"{say.p_value(pair.p_value)}; {extent}"
    )
    scores = _scores(pair, words)
    difference = f"a difference of {say.points(gain).lstrip('+')} points ({figures})."
    one_seed = comparison.seeds == 1
    luck = "One seed cannot separate the method from the luck of the seed: "
    if is_shown(pair):
        if one_seed:
            return [
                f"{leader.label} scored higher than {other.label} in this one pair of runs.",
                f"{scores}: {difference}",
                luck + "several (--seeds) are needed to say that the method is better.",
            ]
        return [
            f"{leader.label} was better than {other.label}.",
            f"{scores}: {difference}",
        ]
    sentences = [
        f"No difference between {leader.label} and {other.label} could be shown.",
        f"{scores}: {difference}",
        _missable(leader, other, low, high),
    ]
    if one_seed:
        sentences.append(luck + "several (--seeds) would tell more.")
    return sentences


def _along_the_grid(pairs: Sequence[PairSummary], words: say.MetricWords) -> list[str]:
    """The headline and the figures of two methods that are compared at several points of a grid."""
    sides = [(pair.first.arm, pair.second.arm) for pair in pairs]
    first, second = (_side([pair[n] for pair in sides]) for n in (0, 1))
    wins = {first: 0, second: 0}
    for pair in pairs:
        if is_shown(pair):
            wins[first if pair.comparison.difference > 0 else second] += 1
    verb = "scored higher" if pairs[0].comparison.seeds == 1 else "was better"
    leader, other = sorted(wins, key=lambda name: (-wins[name], name))
    total = len(pairs)
    if not wins[leader]:
        names = " and ".join(sorted(wins))
        headline = f"No difference between {names} could be shown at any of {total} settings."
    elif not wins[other]:
        rest = "" if wins[leader] == total else "; no difference could be shown at the others"
        headline = f"{leader} {verb} than {other} at {wins[leader]} of {total} settings{rest}."
    else:
        headline = (
            f"{leader} {verb} than {other} at {wins[leader]} of {total} settings, and {other} than "
            f"{leader} at {wins[other]}."
        )
    return [headline, *(_figures(pair, words) for pair in pairs)]


def _side(arms: Sequence[Arm]) -> str:
    """Return the name of what stands on one side of all pairs: several variants by their method."""
    names = dict.fromkeys(arm.start_label for arm in arms)
    return METHOD_LABELS[arms[0].method] if len(names) > 1 else next(iter(names))


def _figures(pair: PairSummary, words: say.MetricWords) -> str:
    *_, gain, low, high = _from_the_leader(pair)
    return (
        f"{_scores(pair, words)}: {say.points(gain)} points "
        f"({say.points(low)} to {say.points(high)}; {say.p_value(pair.p_value)}; "
        f"{say.plural(pair.comparison.seeds, 'seed')})."
    )


def _scores(pair: PairSummary, words: say.MetricWords) -> str:
    """Both scores, the leader's first."""
    leader, other, *_ = _from_the_leader(pair)
    worst, best = sorted((pair.comparison.first_accuracy, pair.comparison.second_accuracy))
    return f"{leader.label} {words.value(best)}, {other.label} {words.value(worst)}"


def _missable(leader: MethodSummary, other: MethodSummary, low: float, high: float) -> str:
    """How large a difference, either way, these data could have missed."""
    sides = [f"of up to {say.points(high).lstrip('+')} points in favour of {leader.label}"]
    if low < 0:
        sides.append(f"of up to {say.points(-low).lstrip('+')} points in favour of {other.label}")
    return f"A true difference {' or '.join(sides)} could have been missed."


def _from_the_leader(
    pair: PairSummary,
) -> tuple[MethodSummary, MethodSummary, float, float, float]:
    comparison = pair.comparison
    gain, low, high = comparison.difference, comparison.interval.low, comparison.interval.high
    # At a tie the order of the names decides, so that exchanging the two changes nothing.
    if gain > 0 or (gain == 0 and pair.first.label < pair.second.label):
        return pair.first, pair.second, gain, low, high
    return pair.second, pair.first, -gain, -high, -low


def _other_pairs(pairs: list[PairSummary], total: int) -> list[str]:
    """Sentences for all pairs but the headline's; `total` pairs were compared."""
    if not pairs:
        return [_corrected(total)] if total > 1 else []
    shown, hidden = [], []
    for pair in pairs:
        leader, other, gain, *_ = _from_the_leader(pair)
        if is_shown(pair):
            size = f"{say.points(gain).lstrip('+')} points, {say.p_value(pair.p_value)}"
            shown.append(f"{leader.label} scored higher than {other.label} ({size})")
        else:
            hidden.append(f"{leader.label} against {other.label} ({say.p_value(pair.p_value)})")
    sentences = []
    if shown:
        sentences.append(f"Of the other pairs, {say.listed(shown)}.")
    if hidden:
        sentences.append(f"No difference could be shown for {say.listed(hidden)}.")
    return [*sentences, _corrected(total)]


def _corrected(total: int) -> str:
    return f"All p-values are corrected for {total} comparisons (Holm)."


def _against_base(summary: Summary) -> list[str]:
    base = summary.words.value(summary.results.base.accuracy)
    parts = [
        f"{method.label} {say.points(method.over_base.difference)} "
        f"({say.points_interval(method.over_base.interval)})"
        for method in summary.methods
    ]
    return [f"Points above the untuned model's {base}: {say.listed(parts)}."]


def _cost(pair: PairSummary) -> list[str]:
    """What the first method costs beside the second; only what was measured."""
    first, second = pair.first, pair.second
    parts = []
    if first.step_time_s is not None and second.step_time_s:
        parts.append(f"{first.step_time_s / second.step_time_s:.2f} times the step time")
    if first.temp_bytes is not None and second.temp_bytes:
        parts.append(f"{first.temp_bytes / second.temp_bytes:.2f} times the temporary memory")
    if second.trainable_parameters:
        times = first.trainable_parameters / second.trainable_parameters
        parts.append(f"{times:.2f} times the trained parameters")
    if not parts:
        return []
    cost = f"{first.label} took {say.listed(parts)} of {second.label}."
    if first.step_time_s is None or not second.step_time_s:
        return [cost]
    return [
        cost,
        "The step times are of runs one after the other, so whatever else the machine did counts: "
        "python -m benchmarks.compare_step_time lets the methods take turns.",
    ]


def _magnitude_cautions(summary: Summary) -> list[Caution]:
    found = []
    for evidence in summary.magnitudes:
        run = f"{summary.label(evidence.run.method)}, seed {evidence.run.seed}"
        if evidence.parameters == 0:
            text = f"NOT ON: {run} has no magnitude parameters: there was nothing to train."
        elif evidence.moved is False:
            text = (
                f"NOT ON: {run} has {evidence.parameters:,} magnitude parameters, but their "
                "recorded drift is never above zero: they were not trained."
            )
        elif evidence.moved is None:
            text = f"{run}: no magnitude drift was recorded, so it is not shown to be on."
        else:
            continue
        found.append(Caution(text, grave=evidence.off))
    return found


def _twin_cautions(summary: Summary) -> list[Caution]:
    """Methods whose losses agree to the last bit are one method: a switch without effect."""
    found = []
    for pair in summary.pairs:
        losses = {run.seed: [point.loss for point in run.history] for run in pair.second.runs}
        for run in pair.first.runs:
            own = [point.loss for point in run.history]
            if len(own) > 1 and own == losses.get(run.seed):
                text = (
                    f"NOT ON: {pair.first.label} and {pair.second.label} with seed {run.seed} have "
                    "the same loss at every step: the choice of method had no effect."
                )
                found.append(Caution(text, grave=True))
    return found


def _divergence_cautions(summary: Summary) -> list[str]:
    lost = [
        f"{summary.label(failure.method)}, seed {failure.seed}, "
        f"{'diverged' if failure.diverged else 'failed'} and has no score: {failure.message}"
        for failure in summary.results.failures
    ]
    return lost + [
        f"{method.label}, seed {run.seed}: the training loss was not finite; the run diverged."
        for method in summary.methods
        for run in method.runs
        if any(not math.isfinite(point.loss) for point in run.history)
    ]


def _seed_cautions(summary: Summary) -> list[str]:
    found = []
    if len({method.seeds for method in summary.compared}) > 1:
        parts = [f"{m.label} {say.listed([str(s) for s in m.seeds])}" for m in summary.compared]
        found.append(f"Not the same seeds ({'; '.join(parts)}): only shared ones are compared.")
    if summary.headline is not None and summary.headline.comparison.seeds == 2:
        found.append("Two seeds say little about the luck of the seed: take three or more.")
    return found


def _range_cautions(summary: Summary) -> list[str]:
    # Baselines are there to gain little.
    found, compared = [], summary.compared
    chance = summary.results.data.chance
    stuck = [m.label for m in compared if m.over_base.interval.low <= 0]
    if stuck:
        found.append(
            f"No gain over the untuned model is shown for {say.listed(stuck)}: such a comparison "
            "says little about the methods. Train longer, or try other rates or another task."
        )
    guessing = [m.label for m in compared if chance is not None and chance in m.interval]
    if guessing:
        found.append(
            f"{say.listed(guessing)}: not distinguishable from guessing "
            f"({summary.words.value(chance)})."
        )
    # A score above it is no sign of ease where a metric may give more than a full mark.
    if summary.words.binary and min((m.accuracy for m in compared), default=0.0) > CEILING:
        found.append(f"Every method is above {100 * CEILING:.0f} %: the task is too easy to tell.")
    return found


def _dominance_cautions(summary: Summary) -> list[str]:
    found = dominance(summary)
    if found is None:
        return []
    what = "average difference" if found.of_difference else "average"
    task = f"{found.task.task or '(unnamed)'} ({found.task.metric})"
    return [
        f"{task} holds {say.percent(found.share, 0)} of the variance of the {what} of "
        f"{len(summary.tasks)} tasks: the conclusion rests more on it than on all the others. The "
        "report has the tasks one by one."
    ]


def _search_cautions(summary: Summary) -> list[str]:
    found = []
    counts = {}
    for method in summary.methods:
        trials = [t for t in summary.results.search if t.method == method.method]
        counts[method.label] = len(trials)
        rates = sorted(trial.learning_rate for trial in trials)
        for trial in trials:
            if trial.chosen and len(rates) > 1 and trial.learning_rate in (rates[0], rates[-1]):
                end = "lowest" if trial.learning_rate == rates[0] else "highest"
                found.append(
                    f"The learning rate chosen for {method.label}, "
                    f"{say.learning_rate(trial.learning_rate)}, is the {end} of those tried: a "
                    "better one may lie beyond."
                )
    if not any(counts.values()):
        found.append("No learning rate was searched for: one that suits a method more may decide.")
    if len(set(counts.values())) > 1:
        parts = [f"{label} {number}" for label, number in counts.items()]
        found.append(f"Not the same number of learning rates was tried: {say.listed(parts)}.")
    return found


def _skipped_cautions(summary: Summary) -> list[str]:
    """Rows missing from the evaluation change what is measured; those of other splits do not."""
    results, found = summary.results, []
    for split, reasons in results.data.skipped.items():
        count = sum(reasons.values())
        if not split.startswith("eval") or not count:
            continue
        rows, were = say.plural(count, "row"), "was" if count == 1 else "were"
        if _has_all_rows_asked_for(results):
            # None was lost after the draw, so that the count is of all that it was made from.
            drawn = say.plural(len(results.eval_rows), "row")
            what = f"{rows} of the evaluation data {were} left out before drawing {drawn}"
        else:
            what = f"{rows} {were} left out of the evaluation"
        found.append(f"{what} ({', '.join(reasons)}).")
    return found


def _broken_cautions(summary: Summary) -> list[str]:
    """Images that training could not read: of these rows less was learned than the counts say."""
    runs = summary.results.runs
    counts = {run.broken_images for run in runs}
    if not any(counts):
        return []
    if len(counts) == 1:
        (count,) = counts
        images, their = say.plural(count, "image"), "its row" if count == 1 else "their rows"
        return [f"{images} could not be read in training: nothing of {their} was trained on."]
    by_run = [f"{summary.label(run.method)}, seed {run.seed}: {run.broken_images}" for run in runs]
    return [
        "Images could not be read in training, not the same number in all runs, and nothing of "
        f"their rows was trained on ({'; '.join(by_run)})."
    ]


def _has_all_rows_asked_for(results: ComparisonResults) -> bool:
    """Whether as many rows were evaluated as `data.eval_rows` of the settings asks for."""
    data = results.settings.get("data")
    return isinstance(data, Mapping) and data.get("eval_rows") == len(results.eval_rows)
