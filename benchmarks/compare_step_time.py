"""Time all methods in turn within one process: their ratios are free of the machine's drift.

python -m benchmarks.compare_step_time --batch 4 --seq 256; prints one JSON line, with for each
method its figures, its model FLOP utilisation, and the ratio to LoRA of its median time, its least
time (steadier on a noisy machine) and its temporary memory.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from benchmarks.arguments import add_setting, setting_of
from benchmarks.training_step import (
    METHODS,
    Setting,
    add_ratios,
    build_step,
    describe,
    random_base,
    time_with_peak,
)


def compare(settings: Sequence[Setting], rounds: int, dtype: str) -> dict[str, dict[str, Any]]:
    """Return the row of each setting, by method; all start from the weights of the first."""
    base = random_base(settings[0])
    steps = [build_step(setting, base) for setting in settings]
    times, peak = time_with_peak(steps, rounds, dtype)
    rows = {s.setting.method: describe(s, t, peak) for s, t in zip(steps, times, strict=True)}
    if "lora" in rows:
        add_ratios(list(rows.values()), rows["lora"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_setting(parser, without=("method",))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=("lora", "dora", "full"))
    args = parser.parse_args()
    settings = [setting_of(args, method=method) for method in args.methods]
    print(json.dumps(vars(args) | {"results": compare(settings, args.steps, args.dtype)}))


if __name__ == "__main__":
    main()
