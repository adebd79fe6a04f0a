"""DoRA's overhead over LoRA against the tokens of a step and against the rank: table and plot.

python -m benchmarks.overhead --out overhead.json --plot overhead.svg; one JSON, with the measured
ratio of each setting beside the one that the cost model's operations give. `--from overhead.json`
makes table and plot of an earlier run.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from benchmarks.arguments import add_setting, setting_of
from benchmarks.training_step import (
    StepSetting,
    add_ratios,
    build_step,
    describe,
    device,
    random_base,
    time_alternately,
)

_TOKENS = ("1x32", "1x128", "2x128", "2x256", "4x256", "8x256")
_RANKS = (4, 8, 16, 32, 64, 128, 256, 512)


def measure(setting: StepSetting, base: Any, rounds: int, method: str) -> dict[str, Any]:
    """Return the row of one method with its ratios to LoRA, both timed in turn."""
    steps = [
        build_step(dataclasses.replace(setting, method=name), base) for name in ("lora", method)
    ]
    times = time_alternately([step.run for step in steps], rounds)
    lora, row = (describe(s, t, None) for s, t in zip(steps, times, strict=True))
    add_ratios([row], lora)
    return row | {"lora_step_time_s": lora["step_time_s"]}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| tokens a step | rank | time, to LoRA's | least time | by the cost model | memory |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = row["ratio_to_lora"]
        lines.append(
            f"| {row['batch']} x {row['seq']} | {row['rank']} | {ratio['step_time_s']:.3f} | "
            f"{ratio['step_time_min_s']:.3f} | {1 + row['predicted_overhead']:.3f} | "
            f"{ratio.get('temp_bytes', float('nan')):.3f} |"
        )
    return "\n".join(lines)


def plot(by_tokens: list[dict[str, Any]], by_rank: list[dict[str, Any]], path: Path) -> None:
    """Write the plot of both sweeps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    sweeps = [
        (by_tokens, lambda row: row["batch"] * row["seq"], "tokens a step"),
        (by_rank, lambda row: row["rank"], "rank"),
    ]
    for axis, (rows, x_of, label) in zip(axes, sweeps, strict=True):
        xs = [x_of(row) for row in rows]
        axis.plot(xs, [r["ratio_to_lora"]["step_time_min_s"] for r in rows], "o-", label="measured")
        axis.plot(xs, [1 + r["predicted_overhead"] for r in rows], "--", label="by the cost model")
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_xlabel(label)
    axes[0].set_ylabel("DoRA's step time / LoRA's")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_setting(parser)
    parser.add_argument("--tokens", nargs="*", default=_TOKENS, help="BATCHxSEQ, at --rank")
    parser.add_argument("--ranks", nargs="*", type=int, default=_RANKS, help="at --batch --seq")
    parser.add_argument("--out", type=Path, help="where to write the JSON; else it is printed")
    parser.add_argument("--plot", type=Path, help="where to write the plot (.svg or .png)")
    parser.add_argument("--from", dest="earlier", type=Path, help="an earlier run's JSON")
    args = parser.parse_args()
    if args.earlier:
        found = json.loads(args.earlier.read_text())
    else:
        base = random_base(setting_of(args))
        found = device() | {"by_tokens": [], "by_rank": []}
        for size in args.tokens:
            batch, seq = map(int, size.split("x"))
            setting = setting_of(args, batch=batch, seq=seq)
            found["by_tokens"].append(measure(setting, base, args.steps, args.method))
        for rank in args.ranks:
            setting = setting_of(args, rank=rank)
            found["by_rank"].append(measure(setting, base, args.steps, args.method))
        if args.out:
            args.out.write_text(json.dumps(found, indent=1) + "\n")
        else:
            print(json.dumps(found))
    if args.plot:
        plot(found["by_tokens"], found["by_rank"], args.plot)
    print(table(found["by_tokens"] + found["by_rank"]))


if __name__ == "__main__":
    main()
