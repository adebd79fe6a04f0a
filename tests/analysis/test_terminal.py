import io

import pytest
from rich.console import Console

from dora_jax.analysis.terminal import print_comparison
from tests.analysis import sample


def printed(results, width: int = 80, file: io.TextIOBase | None = None) -> str:
    file = io.StringIO() if file is None else file
    print_comparison(results, Console(file=file, width=width))
    if isinstance(file, io.StringIO):
        return sample.plain(file.getvalue())
    file.flush()
    return file.buffer.getvalue().decode(file.encoding)


def cells(text: str, label: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(label))
    return line[len(label) :].split("  ")


def figures(text: str, label: str) -> list[str]:
    return [cell.strip() for cell in cells(text, label) if cell.strip()]


def test_figures_at_eighty_columns():
    text = printed(sample.results())
    assert all(len(line) <= 80 for line in text.splitlines())
    assert figures(text, "Accuracy") == ["20.0 %", "60.0 %", "65.0 %"]
    assert figures(text, "95 % interval") == ["10.5 to 34.8", "44.6 to 73.7", "49.5 to 77.9"]
    assert figures(text, "Over base") == ["~", "+40.0", "+45.0"]
    assert figures(text, "Loss") == ["2.500", "0.750", "0.750"]
    assert figures(text, "Parameters") == ["~", "1,000", "1,200"]
    assert figures(text, "  magnitudes") == ["~", "0", "200"]
    assert figures(text, "Median step") == ["~", "500 ms", "550 ms"]
    assert figures(text, "Temp. memory") == ["~", "2.00 MB", "2.20 MB"]
    assert figures(text, "Train time") == ["~", "3 min 20 s", "3 min 20 s"]
    assert figures(text, "Drift") == ["~", "~", "0.400 %"]
    assert text.count("x1.10") == 2
    flowing = " ".join(text.split())
    assert "No difference between DoRA and LoRA could be shown." in flowing
    assert "One seed cannot separate the method from the luck of the seed" in flowing


def test_scores_are_in_points():
    tasks = ("vqa", "caption") * 20
    scores = {"lora": [(0.3, 1.1) * 20], "dora": [(0.6, 1.3) * 20]}
    text = printed(sample.scored(scores, tasks, base=(0.3, 0.5) * 20))
    assert all(len(line) <= 80 for line in text.splitlines())
    assert figures(text, "Score (points)") == ["40.0", "70.0", "95.0"]
    assert figures(text, "Over base") == ["~", "+30.0", "+55.0"]
    assert "Accuracy" not in text


@pytest.mark.parametrize("count", [3, 4])
def test_more_methods_still_fit(count):
    names = ["lora", "dora", "magnitude", "full"][:count]
    text = printed(sample.results({name: [sample.first(20)] * 3 for name in names}))
    assert all(len(line) <= 80 for line in text.splitlines())
    assert len(figures(text, "Accuracy")) == count + 1


def test_dora_that_was_not_on_is_said():
    runs = [
        sample.run("lora", 0, sample.first(20)),
        sample.run("dora", 0, sample.first(30), magnitude_parameters=0),
    ]
    text = printed(sample.results(runs=runs))
    assert "DoRA was NOT on: this comparison is void." in text
    assert "! NOT ON: DoRA, seed 0" in text


def test_names_are_no_markup():
    text = printed(sample.results({"[bold]x[/]": [sample.first(20)], "dora": [sample.first(9)]}))
    assert "[bold]x[/]" in text


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_terminal_without_unicode(encoding):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    text = printed(
        sample.results({"漢字": [sample.first(9)], "dora": [sample.first(20)]}), file=file
    )
    assert "No difference" in text or "scored higher" in text
    assert "x1.00" in text
