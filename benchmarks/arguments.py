"""Command-line arguments that the step benchmarks share: one for each field of a setting."""

import argparse
import dataclasses
from typing import Any

from benchmarks.shapes import SHAPES, VLBART_SHAPES
from benchmarks.training_step import METHODS, StepSetting

_CHOICES: dict[str, Any] = {
    "model": SHAPES,
    "method": METHODS,
    "norm_axis": ("out", "in"),
    "remat": ("none", "dots", "full"),
    "dtype": ("float32", "bfloat16"),
    "attention": ("xla", "cudnn"),
    "family": ("image", "video"),
    "shape": VLBART_SHAPES,
}


def add_setting(
    parser: argparse.ArgumentParser, without: tuple[str, ...] = (), kind: type = StepSetting
) -> None:
    """Add an argument for each field of a kind of setting, with its default."""
    for field in dataclasses.fields(kind):
        if field.name not in without:
            parser.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=type(field.default),
                default=field.default,
                choices=_CHOICES.get(field.name),
            )
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after one warm-up")


def setting_of(args: argparse.Namespace, kind: type = StepSetting, **fields: Any) -> Any:
    """Return the setting that was given, with some fields replaced."""
    names = {field.name for field in dataclasses.fields(kind)}
    given = {name: value for name, value in vars(args).items() if name in names}
    return kind(**given | fields)
