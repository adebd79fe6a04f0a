import io

import pytest
from rich.console import Console

from dora_jax.training.progress import WorkProgress, describe_seconds


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def progress(total, clock, terminal=False):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    return WorkProgress(total, console, clock)


def lines(shown):
    return shown.console.file.getvalue().splitlines()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (100 * 3600, "100 h 0 min"),
    ],
)
def test_durations_in_words(seconds, words):
    assert describe_seconds(seconds) == words


def test_the_estimate_follows_the_speed_so_far(clock):
    with progress(100, clock) as shown:
        assert shown.seconds_left() is None
        clock.now += 30
        shown.advance(10, "a")
        assert shown.seconds_left() == pytest.approx(270)
        clock.now += 10
        shown.advance(30, "b")  # 40 in 40 s
        assert shown.seconds_left() == pytest.approx(60)
        shown.advance(60, "c")
        assert shown.seconds_left() == 0


def test_time_before_the_start_does_not_count(clock):
    shown = progress(100, clock)
    clock.now += 1000
    with shown:
        clock.now += 5
        shown.advance(50)
        assert shown.seconds_left() == pytest.approx(5)


def test_skipped_work_shortens_what_is_left_and_not_the_speed(clock):
    with progress(100, clock) as shown:
        shown.skip(60)
        assert shown.seconds_left() is None
        clock.now += 10
        shown.advance(10)
        assert shown.seconds_left() == pytest.approx(30)


def test_more_work_than_expected_leaves_nothing_below_zero(clock):
    with progress(10, clock) as shown:
        shown.skip(50)
        clock.now += 1
        shown.advance(20, "x")
        assert shown.seconds_left() == 0
        shown.part("last")
    assert lines(shown) == ["[100%, about 0 s left] last"]


def test_no_work_at_all(clock):
    with progress(0, clock) as shown:
        shown.part("nothing")
    assert lines(shown) == ["[  0%, estimating] nothing"]


def test_away_from_terminals_parts_and_every_ten_seconds_have_a_line(clock):
    with progress(1000, clock) as shown:
        shown.part("dora, seed 0")
        for step in range(1, 12):
            clock.now += 2
            shown.advance(10, f"step {step}/100, loss [red]")
        shown.part("dora, seed 1")
        clock.now += 9
        shown.advance(10, "step 1/100")
        shown.say("seed [red]: 50%")
    assert lines(shown) == [
        "[  0%, estimating] dora, seed 0",
        "[  6%, about 3 min 8 s left] dora, seed 0  step 6/100, loss [red]",
        "[ 11%, about 2 min 58 s left] dora, seed 1",
        "seed [red]: 50%",
    ]


def test_work_without_detail_has_no_more_lines_than_other_work(clock):
    with progress(1000, clock) as shown:
        shown.part("evaluation")
        for _ in range(50):
            clock.now += 0.5
            shown.advance(1)
    assert lines(shown) == [
        "[  0%, estimating] evaluation",
        "[  2%, about 8 min 10 s left] evaluation",
        "[  4%, about 7 min 59 s left] evaluation",
    ]


def test_on_a_terminal_a_bar_is_drawn_and_lines_that_are_said_stay(clock):
    with progress(200, clock, terminal=True) as shown:
        clock.now += 10
        shown.part("dora, seed 0")
        shown.advance(50, "step 1/4 [loss] 1.5")
        shown.say("base model [red]: 50%")
        shown._bar.refresh()
    text = shown.console.file.getvalue()
    assert " 25%" in text
    assert "about 30 s left" in text
    assert "dora, seed 0  step 1/4 [loss] 1.5" in text
    assert "base model [red]: 50%\n" in text
    assert not any(line.startswith("[ 25%") for line in text.splitlines())


def test_long_lines_are_not_broken(clock):
    shown = progress(1, clock)
    shown.say("word " * 40)
    assert lines(shown) == ["word " * 40]
