"""Time all methods in turn within one process: their ratios are free of the machine's drift.

python -m benchmarks.compare_step_time --batch 4 --seq 256; prints one JSON line, with for each
method its figures and the ratio to LoRA of its median time, its least time (steadier on a noisy
machine) and its temporary memory.
"""

import argparse
import json

from benchmarks.step_time import add_shape_arguments
from benchmarks.training_step import METHODS, build_step, describe, time_alternately


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_shape_arguments(parser)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    args = parser.parse_args()
    steps = [
        build_step(args.model, method, args.batch, args.seq, args.rank, args.labelled)
        for method in args.methods
    ]
    times = time_alternately(steps, args.steps)
    rows = {s.method: describe(s, times[s.method], args.batch, args.seq) for s in steps}
    base = rows.get("lora")
    if base is not None:
        for row in rows.values():
            row["ratio_to_lora"] = {
                name: row[name] / base[name]
                for name in ("step_time_s", "step_time_min_s", "temp_bytes")
                if row[name] and base[name]
            }
    print(json.dumps(vars(args) | {"results": rows}))


if __name__ == "__main__":
    main()
