"""Time all methods in turn within one process: their ratios are free of the machine's drift.

python -m benchmarks.compare_step_time --batch 4 --seq 256; prints one JSON line, with for each
method its figures, its model FLOP utilisation, and the ratio to LoRA of its median time, its least
time (steadier on a noisy machine) and its temporary memory.
"""

import argparse
import json

from benchmarks.arguments import add_setting, setting_of
from benchmarks.training_step import (
    METHODS,
    add_ratios,
    build_step,
    describe,
    random_base,
    time_with_peak,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_setting(parser, without=("method",))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=("lora", "dora", "full"))
    args = parser.parse_args()
    base = random_base(setting_of(args))
    steps = [build_step(setting_of(args, method=method), base) for method in args.methods]
    times, peak = time_with_peak(steps, args.steps, args.dtype)
    rows = {s.setting.method: describe(s, t, peak) for s, t in zip(steps, times, strict=True)}
    if "lora" in rows:
        add_ratios(list(rows.values()), rows["lora"])
    print(json.dumps(vars(args) | {"results": rows}))


if __name__ == "__main__":
    main()
