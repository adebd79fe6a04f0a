"""Time one training step of one method; prints one JSON line.

python -m benchmarks.step_time --model smollm2-135m --method dora --batch 4 --seq 256 --rank 16
"""

import argparse
import json

from benchmarks.arguments import add_setting, setting_of
from benchmarks.training_step import build_step, describe, matmul_peak, time_alternately


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_setting(parser)
    args = parser.parse_args()
    step = build_step(setting_of(args))
    (times,) = time_alternately([step.run], args.steps)
    print(json.dumps(describe(step, times, matmul_peak(args.dtype))))


if __name__ == "__main__":
    main()
