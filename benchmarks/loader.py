"""What the data pipeline costs and what packing saves, on a file of rows; prints one JSON object.

python -m benchmarks.loader --data train.jsonl.gz --steps 8

Rows are read, encoded by the model's tokenizer and made into batches in the three ways of
`data.packing`. Then the same model takes training steps on each: a way's cost is its time for a
token that is not padding, so the speed-up compares equal work. The ways take turns, several times
over, and the least time of each step counts: other work on the machine only ever adds to it. The
model's weights are random.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shapes import SHAPES
from benchmarks.training_step import StepSetting, device, jitted_step, random_base, step_inputs
from dora_jax.checkpoint.pretrained import load_pretrained
from dora_jax.data.batches import StepBatches
from dora_jax.data.encode import EncodedRow, encode_all
from dora_jax.data.order import ShuffledOrder
from dora_jax.data.packing import PackedBatches, first_fit
from dora_jax.data.prompts import get_template
from dora_jax.data.read_ahead import ReadAhead
from dora_jax.data.sources import read_source
from dora_jax.data.ways import make_batches
from dora_jax.training.config import DataConfig
from dora_jax.training.step import Batch

WAYS = ("none", "bucket", "pack")
AHEAD = (0, 2)  # read_ahead: each batch made when it is asked for, or before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m", choices=SHAPES)
    parser.add_argument("--tokenizer", default="smollm2-135m-instruct", help="a model's name")
    parser.add_argument("--prompt", default="alpaca")
    parser.add_argument("--rows", type=int, default=None, help="at most")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8, help="timed steps; 0 leaves them out")
    parser.add_argument("--rounds", type=int, default=3, help="times that each step is timed")
    args = parser.parse_args()
    tokenizer = load_pretrained(args.tokenizer).tokenizer

    started = time.perf_counter()
    examples, _ = read_source(args.data)
    examples = examples[: args.rows]
    read_s = time.perf_counter() - started
    started = time.perf_counter()
    encoded = encode_all(examples, get_template(args.prompt), tokenizer, args.max_length)
    encode_s = time.perf_counter() - started
    lengths = np.array([len(row.prompt) + len(row.answer) for row in encoded.rows])
    found: dict[str, Any] = {
        "rows": len(encoded.rows),
        "left_out": encoded.left_out,
        "mean_length": float(lengths.mean()),
        "longest": int(lengths.max()),
        "rows_read_per_s": len(examples) / read_s,
        "rows_encoded_per_s": len(encoded.rows) / encode_s,
        "tokens_encoded_per_s": float(lengths.sum() / encode_s),
    }
    found["efficiency"] = {
        f"max_length {length}": efficiencies(encoded.rows, length, tokenizer.eos_id)
        for length in (args.max_length, 2 * args.max_length, 4 * args.max_length)
    }
    batches = {way: ways_batches(way, encoded.rows, args, tokenizer.eos_id) for way in WAYS}
    found["making_a_batch_s"] = {way: making_time(made) for way, made in batches.items()}
    if args.steps:
        found["steps"] = time_steps(args, batches)
        setting = ("model", "batch", "max_length", "dtype", "rank", "steps", "rounds")
        found["setting"] = {name: getattr(args, name) for name in setting}
    print(json.dumps(found | device(), indent=2))


def ways_batches(
    way: Any, rows: list[EncodedRow], args: argparse.Namespace, eos_id: int
) -> StepBatches:
    config = DataConfig(packing=way, max_length=args.max_length)
    return make_batches(rows, config, args.batch, 0, eos_id)


def efficiencies(rows: list[EncodedRow], length: int, eos_id: int) -> dict[str, Any]:
    """Return the share of slots that hold a token, for each way and for other ways to pack."""
    found: dict[str, Any] = {}
    for way in WAYS:
        config = DataConfig(packing=way, max_length=length)  # type: ignore[arg-type]
        found[way] = make_batches(rows, config, 1, 0, eos_id).efficiency
    packed = PackedBatches(rows, length, 1, 0, eos_id)
    started = time.perf_counter()
    packed.plan(0)
    found["plan_s"] = time.perf_counter() - started
    found["labels_a_row"] = packed.labels
    order = ShuffledOrder(len(rows), 0).epoch(0)
    tokens = np.array([len(rows[i].prompt) + len(rows[i].answer) for i in order])
    longest_first = np.sort(tokens)[::-1]
    bins = {
        "first fit": len(first_fit(tokens[:, None], (length,))),
        "first fit, longest first": len(first_fit(longest_first[:, None], (length,))),
        "best fit": best_fit(tokens, length),
        "best fit, longest first": best_fit(longest_first, length),
    }
    # Without a bound on the labels.
    found["pack by"] = {name: float(tokens.sum() / n / length) for name, n in bins.items()}
    return found


def best_fit(sizes: np.ndarray, length: int) -> int:
    """Return the number of bins when each item goes where it leaves the least room."""
    bins = np.zeros(length + 1, np.int64)  # by the room that they have left
    for size in sizes:
        fits = np.flatnonzero(bins[size:])
        left = fits[0] if len(fits) else length - size
        bins[left + size] -= len(fits) > 0
        bins[left] += 1
    return int(bins.sum())


def making_time(batches: StepBatches, count: int = 200) -> float:
    """Return the mean time to make a batch, in one thread."""
    batches.batch(0)
    started = time.perf_counter()
    for step in range(count):
        batches.batch(step)
    return (time.perf_counter() - started) / count


def time_steps(args: argparse.Namespace, batches: dict[str, StepBatches]) -> dict[str, Any]:
    """Time steps of every way in turn, and how long each waited for its batch."""
    setting = StepSetting(
        args.model, "dora", args.batch, args.max_length, args.rank, dtype=args.dtype
    )
    step, inputs = jitted_step(setting), step_inputs(setting, random_base(setting))
    vocabulary = SHAPES[args.model].vocab_size
    rest = (inputs.frozen, inputs.sq_norms)
    state = inputs.state
    size = (args.rounds, len(AHEAD), args.steps)
    times, waits = ({way: np.empty(size) for way in WAYS} for _ in range(2))
    seen: set[tuple[int, ...]] = set()
    for round_, (a, ahead) in itertools.product(range(args.rounds), enumerate(AHEAD)):
        loaders = {way: ReadAhead(made, ahead) for way, made in batches.items()}
        for index, way in itertools.product(range(args.steps), WAYS):
            started = time.perf_counter()
            batch = loaders[way].batch(index)
            waits[way][round_, a, index] = time.perf_counter() - started
            placed = jax.tree.map(jnp.asarray, batch._replace(tokens=batch.tokens % vocabulary))
            if (shape := (*batch.tokens.shape, batch.label_targets.shape[1])) not in seen:
                state, _ = jax.block_until_ready(step(state, *rest, placed, inputs.key))
                seen.add(shape)
            started = time.perf_counter()
            state, _ = jax.block_until_ready(step(state, *rest, placed, inputs.key))
            times[way][round_, a, index] = time.perf_counter() - started
        for loader in loaders.values():
            loader.close()
    return summary(batches, times, waits)


def summary(
    batches: dict[str, StepBatches], times: dict[str, np.ndarray], waits: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Return what each way cost; times and waits by (round, read_ahead, step)."""
    found: dict[str, Any] = {}
    for way, made in batches.items():
        least = times[way].min(axis=(0, 1))
        steps = [made.batch(n) for n in range(len(least))]
        tokens = sum(map(filled, steps))
        # The first batch of a round is waited for in any case.
        wait_s = waits[way][:, :, 1:].min(axis=0).mean(axis=-1)
        step_s = float(least.mean())
        found[way] = {
            "step_time_s": step_s,
            "tokens_per_s": tokens / float(least.sum()),
            "filled": tokens / sum(np.size(batch.tokens) for batch in steps),
            "shapes": len({batch.tokens.shape for batch in steps}),
            "wait_s": {f"read_ahead {n}": w for n, w in zip(AHEAD, wait_s.tolist(), strict=True)},
            "loader_share": {
                f"read_ahead {n}": w / (w + step_s)
                for n, w in zip(AHEAD, wait_s.tolist(), strict=True)
            },
        }
    for row in found.values():
        row["speed_up"] = row["tokens_per_s"] / found["none"]["tokens_per_s"]
    return found


def filled(batch: Batch) -> float:
    """Return how many slots hold a token; without segments, up to a row's last label."""
    if batch.segments is not None:
        return float((np.asarray(batch.segments) > 0).sum())
    ends = (np.asarray(batch.label_positions) + 1) * np.asarray(batch.label_weights)
    return float(np.max(ends, axis=1).sum())


if __name__ == "__main__":
    main()
