"""Kill a training run again and again; it must end with the very bits of one that was left alone.

python -m tests.torture.kill_resume [--kills 20] [--seed 0]; prints JSON, leaves with 1 where the
two runs differ. Some kills are at random moments, the others while a checkpoint is being written.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dora_jax.checkpoint.adapter import WEIGHTS, find_adapter
from dora_jax.checkpoint.state import flatten, load_tree
from dora_jax.training.metrics import MEASURED, METRICS_FILE
from tests.checkpoint.tiny_adapter import write_base

STEPS = 60
EXPERIMENT = """
from dora_jax.training.config import *
config = ExperimentConfig(
    execute=ExecuteConfig(reuse=False),
    name="mine",
    model=ModelConfig(name={base!r}),
    data=DataConfig(
        train={rows!r}, eval={tests!r}, validation_rows=4, eval_rows=4, eval_batch_size=4,
        max_length=60, packing="pack",
    ),
    adapter=AdapterConfig(rank=2, alpha=4.0, dropout=0.1),
    optim=OptimConfig(ema=0.9),
    train=TrainConfig(steps={steps}, batch_size=4, micro_batches=2, checkpoint_every=1),
)
"""
PART = Path("seed-0") / "dora"


def write_inputs(folder: Path, steps: int) -> Path:
    """Write a tiny model, rows and an experiment; return the experiment."""
    answers = ["hello", "wor", "low"]
    for name, numbers in (("rows", range(40)), ("tests", range(100, 104))):
        rows = (
            {"instruction": f"{n} gives?", "output": answers[n % 3], "options": answers}
            for n in numbers
        )
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = write_base(folder / "base")
    files = {name: str(folder / f"{name}.jsonl") for name in ("rows", "tests")}
    path = folder / "mine.py"
    path.write_text(EXPERIMENT.format(base=str(base), **files, steps=steps))
    return path


def start(experiment: Path, out: Path, cache: Path) -> subprocess.Popen:
    """Start the run, or go on with it."""
    return subprocess.Popen(
        [sys.executable, "-m", "dora_jax.cli", "train", str(experiment), "--out", str(out)],
        env=os.environ | {"DORA_JAX_COMPILATION_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def is_saving(out: Path) -> bool:
    """Whether a checkpoint is being written: orbax's temporary folder is there."""
    folder = out / PART / "checkpoints"
    try:
        return any("orbax-checkpoint-tmp" in path.name for path in folder.iterdir())
    except OSError:
        return False


def steps_done(out: Path) -> int:
    """Return the number of lines in the metrics."""
    try:
        return (out / PART / METRICS_FILE).read_bytes().count(b"\n")
    except OSError:
        return 0


def kill(process: subprocess.Popen, out: Path, chance: random.Random, in_save: bool) -> str | None:
    """Kill a run; return where it was hit, or None where it ended before.

    Args:
        process: the run.
        out: its folder.
        chance: says when.
        in_save: whether to wait for a checkpoint that is being written.
    """
    goal = steps_done(out) + chance.randint(1, 4) if in_save or chance.random() < 0.7 else 0
    until = time.monotonic() + chance.uniform(0.5, 8.0)
    while process.poll() is None:
        here = steps_done(out) >= goal if goal else time.monotonic() > until
        saving = is_saving(out)
        if here and (saving or not in_save):
            process.send_signal(signal.SIGKILL)
            process.wait()
            return "save" if saving else "training" if goal else "any moment"
        time.sleep(0.0005)
    return None


def learned(out: Path) -> dict[str, Any]:
    """Return what must be the same: metrics but for times, scores, and a digest of the weights."""
    part = out / PART
    rows = [json.loads(line) for line in (part / METRICS_FILE).read_text().splitlines()]
    results = json.loads((part / "results.json").read_text())
    digest = hashlib.sha256()
    for name, array in sorted(flatten(load_tree(find_adapter(part) / WEIGHTS)).items()):
        digest.update(name.encode() + array.tobytes())
    return {
        "metrics": [{k: v for k, v in row.items() if k not in MEASURED} for row in rows],
        "scores": {name: results[name] for name in ("accuracy", "correct", "loss", "history")},
        "weights": digest.hexdigest(),
    }


def torture(kills: int, seed: int, steps: int = STEPS) -> dict[str, Any]:
    """Run the experiment undisturbed, and killed; return what happened."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        experiment, cache = write_inputs(folder, steps), folder / "cache"
        alone = start(experiment, folder / "alone", cache)
        _, errors = alone.communicate()
        if alone.returncode:
            raise SystemExit(errors.decode()[-3000:])
        out = folder / "killed"
        hits: list[str] = []
        starts = 0
        while True:
            process = start(experiment, out, cache)
            starts += 1
            if len(hits) < kills:
                hit = kill(process, out, chance, in_save=len(hits) % 2 == 1)
                if hit is not None:
                    hits.append(hit)
                    continue
            _, errors = process.communicate()
            if process.returncode:
                raise SystemExit(errors.decode()[-3000:])
            break
        expected, found = learned(folder / "alone"), learned(out)
    return {
        "kills": len(hits),
        "kills_while_saving": hits.count("save"),
        "kills_while_training": hits.count("training"),
        "starts": starts,
        "steps": len(expected["metrics"]),
        "equal": {name: expected[name] == found[name] for name in expected},
    }


def main() -> None:
    """Run the torture and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    found = torture(args.kills, args.seed, args.steps)
    print(json.dumps(found))
    if not all(found["equal"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
