"""Everything on one accelerator in under eight minutes, as one JSON.

python -m benchmarks.gpu; writes benchmarks/results/DEVICE.json anew after each case, so that a run
cut short keeps what it measured, and prints a Markdown table. Each model's cases run in a fresh
process, which leaves no memory behind; ours against PEFT in another. What fails is recorded, and so
is what no time was left for. `--model toy --quick` tries the first case anywhere.
"""

import argparse
import functools
import gc
import json
import re
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from benchmarks.processes import json_lines_of
from benchmarks.shapes import SHAPES
from benchmarks.training_step import (
    StepSetting,
    add_ratios,
    build_step,
    describe,
    device,
    random_base,
    time_with_peak,
)

_RESULTS = Path(__file__).parent / "results"
# Shares of the time: a model's own cases, then the comparison with PEFT.
_SHARES = {"steps": 3, "peft": 1}
_GRACE_S = 30
# The share of the memory that JAX takes at its start; PEFT needs the rest beside it.
_MEMORY = {"steps": "0.92", "peft": "0.45"}


@dataclass(frozen=True)
class Case:
    """What is timed in turn: some methods of one setting."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] = ("lora", "dora")


def sizes(quick: bool) -> dict[str, int]:
    """Return the batch of the headline case: 8k tokens."""
    return {"batch": 2, "seq": 32} if quick else {"batch": 4, "seq": 2048}


def cases(quick: bool) -> list[Case]:
    """Return the cases, the most telling ones first: time may run out."""
    headline = sizes(quick)
    seq = headline["seq"]
    listed = [
        Case("headline", methods=("lora", "dora", "dora-exact")),
        Case("remat full", {"remat": "full"}),
        Case("attention by XLA", {"attention": "xla"}),
        Case("rank 64", {"rank": 64}),
        Case("labelled 0.1", {"labelled": 0.1}),
        Case("rank 512", {"rank": 512}),
        *(Case(f"{batch * seq} tokens", {"batch": batch}) for batch in (1, 8, 2)),
        Case("rank 128", {"rank": 128}),
        Case(f"{8 * seq} tokens, remat full", {"batch": 8, "remat": "full"}),
        Case(f"{seq} tokens, rank 64", {"batch": 1, "rank": 64}),
    ]
    listed = listed[:1] if quick else listed
    return [Case(c.name, headline | {"remat": "dots"} | c.fields, c.methods) for c in listed]


def attention() -> str:
    """Return the kernel that a user of this machine would choose.

    Not by asking JAX: the parent of the measuring processes must not take the device's memory.
    """
    return "cudnn" if shutil.which("nvidia-smi") else "xla"


def measure(case: Case, model: str, base: Any, rounds: int) -> dict[str, Any]:
    """Return the rows of a case by method."""
    fields = {"attention": attention()} | case.fields | {"model": model, "dtype": "bfloat16"}
    settings = [StepSetting(**fields, method=method) for method in case.methods]
    steps = [build_step(setting, base) for setting in settings]
    times, peak = time_with_peak(steps, rounds, "bfloat16")
    rows = {s.setting.method: describe(s, t, peak) for s, t in zip(steps, times, strict=True)}
    add_ratios(list(rows.values()), rows["lora"])
    return rows


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what the work returns, or its error as text."""
    try:
        return {"rows": work()}
    except Exception as error:
        return {"error": "".join(traceback.format_exception_only(error)).strip()[:2000]}


def run_cases(model: str, quick: bool, until: float) -> None:
    """Print one JSON line for each case."""
    rounds = 1 if quick else 5
    base = random_base(StepSetting(model=model, dtype="bfloat16"))
    for case in cases(quick):
        if time.time() > until:
            found: dict[str, Any] = {"skipped": "no time was left"}
        else:
            found = attempt(functools.partial(measure, case, model, base, rounds))
        print(json.dumps({"case": case.name} | device() | found), flush=True)
        # The steps and their executables: the next case needs their memory.
        gc.collect()
        jax.clear_caches()


def part_command(part: str, model: str, quick: bool, until: float) -> tuple[str, list[str]]:
    """Return module and arguments of a part's process."""
    if part == "steps":
        own = ["--model", model, "--until", repr(until)]
        return "benchmarks.gpu", own + ["--quick"] * quick
    fields = sizes(quick) | {"model": model, "dtype": "bfloat16", "remat": "full"}
    fields["attention"] = attention()
    fields["steps"] = 1 if quick else 3
    return "benchmarks.against_peft", [f"--{name}={value}" for name, value in fields.items()]


def run_all(args: argparse.Namespace) -> dict[str, Any]:
    """Run every part in a process of its own; write the results after each line of each."""
    started = time.time()
    share = args.seconds / (len(args.model) * sum(_SHARES[part] for part in args.parts))
    found: dict[str, Any] = {"models": {}}
    until = started
    for model in args.model:
        own: dict[str, Any] = {part: [] for part in args.parts}
        found["models"][model] = own
        for part in args.parts:
            until += _SHARES[part] * share
            module, arguments = part_command(part, model, args.quick, until)
            lines = json_lines_of(
                module,
                arguments,
                timeout_s=until + _GRACE_S - time.time(),
                environment={"XLA_PYTHON_CLIENT_MEM_FRACTION": _MEMORY[part]},
            )
            try:
                for line in lines:
                    found["device"] = line["device"]
                    own[part].append(line)
                    write(found, args.out)
            except (RuntimeError, ValueError) as error:
                own[part].append({"error": str(error)})
            found["seconds"] = time.time() - started
            write(found, args.out)
    return found


def write(found: dict[str, Any], out: Path | None) -> None:
    """Write the results so far, by default under the device's name."""
    slug = re.sub(r"[^a-z0-9]+", "-", found.get("device", "unknown device").lower()).strip("-")
    path = out or _RESULTS / f"{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def table(found: dict[str, Any]) -> str:
    """Return the cases as a Markdown table."""
    lines = [
        "| model | case | method | step, s | to LoRA's | temporary memory | utilisation |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, parts in found["models"].items():
        for case in parts.get("steps", []):
            name = f"| {model} | {case.get('case', '')} |"
            if "rows" not in case:
                text = case.get("skipped") or case["error"].splitlines()[0]
                lines.append(f"{name} {text[:60].replace('|', '/')} | | | | |")
            for method, row in case.get("rows", {}).items():
                ratios = {"temp_bytes": float("nan")} | row["ratio_to_lora"]
                lines.append(
                    f"{name} {method} | {row['step_time_min_s']:.4f} | "
                    f"{ratios['step_time_min_s']:.3f} | {ratios['temp_bytes']:.3f} | "
                    f"{row['model_flop_utilisation']:.3f} |"
                )
        for line in parts.get("peft", []):
            for method, ratio in line.get("ours_to_peft", {}).items():
                name = f"| {model} | {method}, ours to PEFT's: {ratio['min']:.3f} |"
                seconds = line["steps"]["ours"][method]["min_s"]
                lines.append(f"{name} {method} | {seconds:.4f} | | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", choices=SHAPES, default=["llama-7b", "llama-1b"])
    parser.add_argument("--parts", nargs="+", choices=_SHARES, default=list(_SHARES))
    parser.add_argument("--quick", action="store_true", help="tiny batches, one round: a trial")
    parser.add_argument("--seconds", type=float, default=440, help="for all parts together")
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/DEVICE.json")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.until is not None:
        run_cases(args.model[0], args.quick, args.until)
    else:
        print(table(run_all(args)))


if __name__ == "__main__":
    main()
