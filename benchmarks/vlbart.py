"""Time VL-BART's training step of all methods in turn, as `compare_step_time` does of LLaMA's.

python -m benchmarks.vlbart --family image --batch 16; python -m benchmarks.vlbart --family video
--prompt 100 --batch 8. Prints one JSON line. With --compile-only nothing is timed: it tells each
method's temporary memory by the compiled program's own account, and what the operations give.
"""

import argparse
import json
from typing import Any

from benchmarks.arguments import add_setting, setting_of
from benchmarks.compare_step_time import compare
from benchmarks.training_step import compile_step, temporary_bytes
from benchmarks.vlbart_setting import METHODS, VLBartSetting


def by_compiling(settings: list[VLBartSetting]) -> dict[str, dict[str, Any]]:
    """Return what compiling tells of each setting, by method."""
    found = {}
    for setting in settings:
        cost = setting.cost()
        found[setting.method] = {
            "temp_bytes": temporary_bytes(compile_step(setting)),
            "flops": cost.total,
            "predicted_overhead": cost.dora_overhead,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_setting(parser, ("method",), VLBartSetting)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=("lora", "dora", "full"))
    parser.add_argument("--compile-only", action="store_true", help="memory and operations alone")
    args = parser.parse_args()
    settings = [setting_of(args, VLBartSetting, method=method) for method in args.methods]
    if args.compile_only:
        results = by_compiling(settings)
    else:
        results = compare(settings, args.steps, args.dtype)
    print(json.dumps(vars(args) | {"results": results}))


if __name__ == "__main__":
    main()
