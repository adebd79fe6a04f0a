"""Time one training step of one method; prints one JSON line.

python -m benchmarks.step_time --model smollm2-135m --method dora --batch 4 --seq 256 --rank 16
"""

import argparse
import json

from benchmarks.shapes import SHAPES
from benchmarks.training_step import METHODS, build_step, describe, time_alternately


def add_shape_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what both step-time benchmarks take."""
    parser.add_argument("--model", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--batch", type=int, default=4, help="rows a step")
    parser.add_argument("--seq", type=int, default=256, help="tokens a row")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after one warm-up")
    parser.add_argument(
        "--labelled", type=float, default=1.0, help="share of tokens that carry a label"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_shape_arguments(parser)
    parser.add_argument("--method", choices=(*METHODS, "magnitude"), default="dora")
    args = parser.parse_args()
    step = build_step(args.model, args.method, args.batch, args.seq, args.rank, args.labelled)
    times = time_alternately([step], args.steps)[args.method]
    print(json.dumps(vars(args) | describe(step, times, args.batch, args.seq)))


if __name__ == "__main__":
    main()
