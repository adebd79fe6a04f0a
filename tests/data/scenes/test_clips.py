"""Clips against what their frames show, read lane by lane."""

import itertools
import re
from collections import Counter, defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("sklearn", reason="the scenes extra is not installed")

from dora_jax.data.scenes import digits
from dora_jax.data.scenes.clips import EFFECTS, draw_clip
from dora_jax.data.scenes.families import FAMILY_A, FAMILY_B, ClipKind
from dora_jax.data.scenes.render import render
from dora_jax.data.scenes.rows import row
from dora_jax.errors import DoraError
from tests.data.scenes.truth import pixel_components

KINDS = get_args(ClipKind)
FAMILIES = [replace(FAMILY_A, clip_kinds=KINDS), FAMILY_B]
BOTH_FAMILIES = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def called(o):
    return f"{o.colour} {o.kind if o.digit is None else o.digit}"


def shown(frames):
    """Who does what, by the frames: (acts in order of time, hits in order of time)."""
    lanes = sorted({o.y for frame in frames for o in frame.objects})
    tracks = [[[o for o in f.objects if o.y == lane] for f in frames] for lane in lanes]
    hits = [found for track in tracks if max(map(len, track)) == 2 for found in [hit(track)]]
    acts = [act([o[0] if o else None for o in t]) for t in tracks if max(map(len, t)) == 1]
    return sorted(acts, key=lambda a: a.frame), sorted(hits, key=lambda h: h.frame)


def act(track):
    """What one object does, and the first frame that shows it."""
    there = [o is not None for o in track]
    seen = [o for o in track if o is not None]
    looks = [called(o) for o in seen]
    if not there[0]:
        return SimpleNamespace(who=looks[0], does="appears", frame=there.index(True), moved=0.0)
    if not there[-1]:
        return SimpleNamespace(who=looks[0], does="disappears", frame=len(seen), moved=0.0)
    if looks[0] != looks[-1]:
        frame = looks.index(looks[-1])
        does = "changes its colour"
        return SimpleNamespace(who=looks[0], does=does, frame=frame, moved=0.0, becomes=looks[-1])
    xs = [o.x for o in seen]
    frame = next(i for i, x in enumerate(xs) if x != xs[0])
    way = "left" if xs[-1] < xs[0] else "right"
    moved = abs(xs[-1] - xs[0])
    return SimpleNamespace(who=looks[0], does=f"moves to the {way}", frame=frame, moved=moved)


def hit(track):
    """Who runs into whom, and what comes of it."""
    first, second = sorted(track[0], key=lambda o: o.x)
    moves = sorted(track[1], key=lambda o: o.x)[0].x != first.x
    hitter, target = (first, second) if moves else (second, first)
    after = [o for o in track[-1] if called(o) != called(hitter) or o.kind != hitter.kind]
    if not after:
        effect, becomes = "it disappears", None
    else:
        (end,) = after
        becomes = called(end)
        effect = "nothing"
        if abs(end.x - target.x) > 0.1:
            effect = "it moves away"
        elif end.colour != target.colour:
            effect = "it changes its colour"
        elif end.kind != target.kind:
            effect = "it turns into something else"
    # The frame before it is the first in which the hitter stands still for good.
    xs = [next(o.x for o in f if called(o) == called(hitter)) for f in track]
    frame = next(i for i, x in enumerate(xs) if x == xs[-1]) + 1
    names = called(hitter), called(target)
    return SimpleNamespace(who=names[0], whom=names[1], effect=effect, frame=frame, becomes=becomes)


DOES = {
    "move": ("moves to the left", "moves to the right"),
    "appear": ("appears",),
    "disappear": ("disappears",),
    "change their colour": ("changes its colour",),
}


def true_answer(question, frames):
    """The answer by the frames, with the subtitle read as its own lines."""
    acts, hits = shown(frames)
    text, subtitle = question.question, question.subtitle
    owns = dict(re.findall(r"(\w+): (?:I own )?[Tt]he (.*?)(?: is mine)?\.", subtitle))
    likes = dict(re.findall(r"(\w+): (?:I like|My favourite is) the (.*?)\.", subtitle))
    counts = dict(re.findall(r"(\w+): I (?:count the|look out for) objects that (.*?)\.", subtitle))
    kind = question.kind
    if kind in ("clip-action", "clip-effect"):
        person = [likes[name] for name in likes if re.search(rf"\b{name}\b", text)]
        named = person or [re.search(r"the (\w+ \w+) (?:do|when|after)", text)[1]]
        if kind == "clip-action":
            return next(a.does for a in acts if a.who == named[0])
        return next(h.effect for h in hits if h.whom == named[0])
    if kind == "clip-count":
        what = next((w for name, w in counts.items() if name in text), None)
        what = what or re.search(r"objects (?:that )?(.*)[?.]", text)[1]
        return str(sum(a.does in DOES[what] for a in acts))
    if kind == "clip-order":
        right = acts[0 if "first" in text else -1].who
    if kind == "clip-speed":
        right = sorted(acts, key=lambda a: a.moved)[0 if "slowest" in text else -1].who
    if kind == "clip-cause":
        whom = re.search(r"the (\w+ \w+) (?:move|disappear|change|turn)", text)[1]
        right = next(h.who for h in hits if h.whom == whom)
    if owns:
        return next(person for person, what in owns.items() if what == right)
    return f"the {right}"


@BOTH_FAMILIES
def test_answers_are_those_that_the_frames_show(family):
    asked = Counter()
    for index in range(240):
        r = row("clip-questions", family, "train", index)
        (question,) = r.questions
        assert question.answer == true_answer(question, r.scenes), question
        assert len(set(question.options)) == 5
        assert question.answer in question.options
        asked[question.kind, bool(question.subtitle)] += 1
    assert asked == {(kind, said): 20 for kind in KINDS for said in (True, False)}


@BOTH_FAMILIES
def test_a_subtitle_says_what_the_question_leaves_out(family):
    for index in range(120):
        (question,) = row("clip-questions", family, "test", index).questions
        speaks = set(re.findall(r"\b[A-Z][a-z]+(?=:)", question.subtitle))
        asked = " ".join([question.question, *question.options])
        if not question.subtitle:
            continue
        # The answer, or who is spoken of, is one of several persons ...
        assert any(re.search(rf"\b{name}\b", asked) for name in speaks)
        assert len(speaks) in (2, 5)
        # ... and the object itself is not named: of the cause, what is hit still is.
        if question.kind != "clip-cause":
            assert not re.search(r"the (red|blue|green|yellow|orange|purple|cyan|pink) ", asked)


@BOTH_FAMILIES
def test_a_guess_without_pictures_stays_near_chance(family):
    questions = {
        split: [row("clip-questions", family, split, i).questions[0] for i in range(count)]
        for split, count in (("train", 1200), ("test", 720))
    }
    # What is asked, without the names of objects and persons.
    template = lambda q: re.sub(r"the \w+ \w+ |\b[A-Z]\w+\b", "_ ", q.question)  # noqa: E731
    for key in (lambda q: (q.question, q.subtitle), template):
        fitted, right, kinds = defaultdict(Counter), Counter(), Counter()
        places = defaultdict(Counter)
        for q in questions["train"]:
            fitted[q.kind, key(q)][q.answer] += 1
            places[q.kind][q.options.index(q.answer)] += 1
        for q in questions["test"]:
            known = [a for a, _ in fitted[q.kind, key(q)].most_common() if a in q.options]
            guess = known[0] if known else q.options[places[q.kind].most_common(1)[0][0]]
            right[q.kind] += guess == q.answer
            kinds[q.kind] += 1
        for kind, count in kinds.items():
            assert right[kind] / count < 0.2 + 3 * (0.16 / count) ** 0.5, kind
        assert sum(right.values()) / sum(kinds.values()) < 0.24


@BOTH_FAMILIES
@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_their_places_come_equally_often(family, kind):
    one = replace(family, clip_kinds=(kind,))
    places, said, answers = Counter(), Counter(), Counter()
    for index in range(1000):
        (q,) = row("clip-questions", one, "train", index).questions
        places[q.options.index(q.answer)] += 1
        answers[q.answer] += 1
        if q.answer in q.subtitle:
            said[re.findall(r"(\w+):", q.subtitle).index(q.answer)] += 1
    counts = [[places[place] for place in range(5)]] if kind != "clip-count" else []
    if kind in ("clip-action", "clip-effect", "clip-count"):
        assert len(answers) == 5
        counts.append(list(answers.values()))
    else:
        counts.append([said[place] for place in range(5)])
    for observed in counts:
        assert stats.chisquare(observed).pvalue > 1e-3, observed


@BOTH_FAMILIES
def test_frames_hold_what_they_can(family):
    for index in range(48):
        scenes = row("clip-questions", family, "train", index).scenes
        assert len(scenes) == family.frames
        for scene in scenes:
            for o in scene.objects:
                assert min(o.x, o.y) - o.radius > -0.03
                assert max(o.x, o.y) + o.radius < 1.03
            for a, b in itertools.combinations(scene.objects, 2):
                away = np.hypot(a.x - b.x, a.y - b.y)
                # Who collides touches, and never more.
                assert away > (a.radius + b.radius) * 0.99 or a.y != b.y


def test_counts_are_those_of_the_pixels():
    family = replace(FAMILY_B, digits=False, styles=("filled",), kinds=("count",))
    family = replace(family, clip_kinds=("clip-count",))
    for index in range(0, 40):
        r = row("clip-questions", family, "test", index)
        (question,) = r.questions
        lanes = defaultdict(list)
        for scene in (r.scenes[0], r.scenes[-1]):
            parts = pixel_components(render(scene), scene.background)
            by_lane = {int(y // 16): (colour, x) for colour, x, y, _ in parts}
            for lane in range(4):
                lanes[lane].append(by_lane.get(lane))
        does = Counter()
        for before, after in lanes.values():
            if before is None or after is None:
                does["appear" if before is None else "disappear"] += 1
            else:
                does["change their colour" if before[0] != after[0] else "move"] += 1
        what = re.search(r"objects that (.*)\.", question.question)
        if what:
            assert question.answer == str(does[what[1]])


def test_any_clip_can_be_drawn_alone():
    clips = [row("clip-questions", FAMILY_B, "train", index) for index in range(12)]
    again = [row("clip-questions", FAMILY_B, "train", index) for index in reversed(range(12))]
    assert again[::-1] == clips
    assert row("clip-questions", FAMILY_B, "train", 0, seed=1) != clips[0]


def test_no_clip_and_no_handwritten_digit_is_in_two_splits():
    small = replace(
        FAMILY_A,
        shapes=("circle", "square"),
        colours=("red", "green", "blue", "yellow", "orange", "purple"),
        digits=False,
        backgrounds=("black",),
        kinds=("count",),
        clip_kinds=("clip-speed",),
    )

    def contents(split, seed):
        rows = [row("clip-questions", small, split, index, seed) for index in range(300)]
        return {
            tuple(sorted((a.who, a.does, round(a.moved, 3)) for a in shown(r.scenes)[0]))
            for r in rows
        }

    train, test = contents("train", 0), contents("test", 1)
    assert len(test) > 200
    assert not train & test
    for split in ("train", "test"):
        for index in range(40):
            for scene in row("clip-questions", FAMILY_B, split, index).scenes:
                for o in scene.objects:
                    assert o.digit is None or o.instance in digits.instances(split)[o.digit]


SAID = {
    "plain": {
        r"The (.*) moves to the (left|right)": lambda a, m: a.does == f"moves to the {m[2]}",
        r"The (.*) appears": lambda a, m: a.does == "appears",
        r"The (.*) disappears": lambda a, m: a.does == "disappears",
        r"The (.*) turns (\w+)": lambda a, m: a.becomes.startswith(f"{m[2]} "),
    },
    "other": {
        r"The (.*) goes (left|right)wards": lambda a, m: a.does == f"moves to the {m[2]}",
        r"The (.*) shows up": lambda a, m: a.does == "appears",
        r"The (.*) vanishes": lambda a, m: a.does == "disappears",
        r"The (.*) is now (\w+)": lambda a, m: a.becomes.startswith(f"{m[2]} "),
    },
}
CAME = {
    r"moves away|is driven off": "it moves away",
    r"disappears|vanishes": "it disappears",
    r"turns into an? (?P<to>\w+)|is now an? (?P<to2>\w+)": "it turns into something else",
    r"turns (?P<to>\w+)|is now (?P<to2>\w+)": "it changes its colour",
    r"stays as it is|does not change": "nothing",
}


def check_steps(steps, frames, wording):
    acts, hits = shown(frames)
    assert len(steps) == len(acts) + len(hits)
    for step, event in zip(steps, acts or hits, strict=True):
        if acts:
            matches = [(re.fullmatch(p, step), holds) for p, holds in SAID[wording].items()]
            ((match, holds),) = [(m, holds) for m, holds in matches if m]
            assert match[1] == event.who
            assert holds(event, match)
            continue
        pattern = r"The (.*) (?:hits|runs into) the (.*), (?:which|and that one) (.*)"
        who, whom, effect = re.fullmatch(pattern, step).groups()
        assert (who, whom) == (event.who, event.whom)
        match, came = next((m, c) for p, c in CAME.items() if (m := re.fullmatch(p, effect)))
        assert came == event.effect
        becomes = [word for word in match.groups() if word]
        assert all(word in event.becomes.split() for word in becomes)


@BOTH_FAMILIES
def test_captions_tell_what_the_frames_show(family):
    scripts = Counter()
    for index in range(60):
        r = row("clip-steps", family, "train", index)
        steps = r.questions[0].answer.rstrip(".").split(". ")
        check_steps(steps, r.scenes, family.wording)
        r = row("clip-captions", family, "train", index)
        told = re.split(r", then |; next ", r.questions[0].answer.rstrip("."))
        steps = [step[0].upper() + step[1:] for step in told]
        check_steps(steps, r.scenes, family.wording)
        scripts[len(steps)] += 1
    assert set(scripts) == {2, 4}


def test_a_family_too_small_for_a_cast_is_refused():
    small = replace(FAMILY_A, colours=("red", "blue"), digits=False, kinds=("count",))
    with pytest.raises(DoraError, match=r"clips need 12 pairs .* make 10: add some"):
        row("clip-questions", small, "train", 0)


def in_lane(scene, hitter):
    """Return who hits, and who else is in the same lane, if anyone."""
    (own,) = [o for o in scene.objects if called(o) == called(hitter)]
    others = [o for o in scene.objects if o.y == own.y and o is not own]
    return own, next(iter(others), None)


def test_what_comes_of_a_hit_is_seen_after_the_contact_and_not_before():
    seen = Counter()
    for seed in range(30):
        clip = draw_clip(FAMILY_B, "train", "collision", np.random.default_rng(seed))
        for event in clip.events:
            hitter, target = clip.cast[event.actor], clip.cast[event.other]
            frames = [in_lane(scene, hitter) for scene in clip.scenes]
            before, after = frames[: event.frame], frames[event.frame][1]
            place = before[0][1].x
            assert {(called(o), o.x) for _, o in before} == {(called(target), place)}
            distances = [abs(own.x - place) for own, _ in before]
            touching = hitter.radius + target.radius
            # They touch in the last frame that does not yet show what comes of it.
            assert distances[-1] == pytest.approx(touching)
            assert min(distances[:-1]) > touching + 0.01
            changed = after is None or (called(after), after.x) != (called(target), place)
            assert changed == (event.effect != "nothing")
            seen[event.effect] += 1
    assert seen.keys() == set(EFFECTS)
