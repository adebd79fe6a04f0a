"""Time one training step of one method; prints one JSON line.

python -m benchmarks.step_time --model smollm2-135m --method dora --batch 4 --seq 256 --rank 16
"""

import argparse
import json

from benchmarks.arguments import add_setting, setting_of
from benchmarks.training_step import build_step, describe, time_with_peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_setting(parser)
    args = parser.parse_args()
    step = build_step(setting_of(args))
    (times,), peak = time_with_peak([step], args.steps, args.dtype)
    print(json.dumps(describe(step, times, peak)))


if __name__ == "__main__":
    main()
