"""What the data pipeline costs and what packing saves, on a file of rows; prints one JSON object.

python -m benchmarks.loader --data ../shared/data/commonsense/train.jsonl.gz --steps 5

Rows are read, encoded by the model's tokenizer and made into batches in the three ways of
`data.packing`. Then the same model takes training steps on each: a way's cost is its time for a
token that is not padding, so the speed-up compares equal work. The model's weights are random.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shapes import SHAPES
from benchmarks.training_step import StepSetting, device, prepare_step, random_base
from dora_jax.checkpoint.pretrained import load_pretrained
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
    parser.add_argument("--steps", type=int, default=5, help="timed steps; 0 leaves them out")
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
    print(json.dumps(found | device(), indent=2))


def ways_batches(way: Any, rows: list[EncodedRow], args: argparse.Namespace, eos_id: int) -> Any:
    config = DataConfig(packing=way, max_length=args.max_length)
    return make_batches(rows, config, args.batch, 0, eos_id)


def efficiencies(rows: list[EncodedRow], length: int, eos_id: int) -> dict[str, float]:
    """Return the share of slots that hold a token, for each way and for a sorted first-fit."""
    found: dict[str, float] = {}
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
    longest_first = np.sort(tokens)[::-1][:, None]
    bins = first_fit(longest_first, (length,))
    found["pack, longest first, no bound on labels"] = float(tokens.sum() / len(bins) / length)
    bins = first_fit(tokens[:, None], (length,))
    found["pack, no bound on labels"] = float(tokens.sum() / len(bins) / length)
    return found


def making_time(batches: Any, count: int = 200) -> float:
    """Return the mean time to make a batch, in one thread."""
    batches.batch(0)
    started = time.perf_counter()
    for step in range(count):
        batches.batch(step)
    return (time.perf_counter() - started) / count


def time_steps(args: argparse.Namespace, batches: dict[str, Any]) -> dict[str, Any]:
    """Time steps of every way in turn, and how long each waited for its batch."""
    setting = StepSetting(
        args.model, "dora", args.batch, args.max_length, args.rank, dtype=args.dtype
    )
    step, inputs = prepare_step(setting, random_base(setting))
    vocabulary = SHAPES[args.model].vocab_size
    rest = (inputs.frozen, inputs.sq_norms)
    state = inputs.state
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    slots: dict[str, int] = dict.fromkeys(WAYS, 0)
    tokens: dict[str, float] = dict.fromkeys(WAYS, 0.0)
    ahead = {way: ReadAhead(made) for way, made in batches.items()}
    seen: set[tuple[int, ...]] = set()
    waits: dict[str, list[float]] = {way: [] for way in WAYS}
    for index in range(args.steps):
        for way in WAYS:
            batch = ahead[way].batch(index)
            if index:
                waits[way].append(ahead[way].wait_s)
            placed = jax.tree.map(jnp.asarray, batch._replace(tokens=batch.tokens % vocabulary))
            if (shape := (*batch.tokens.shape, batch.label_targets.shape[1])) not in seen:
                state, _ = jax.block_until_ready(step(state, *rest, placed, inputs.key))
                seen.add(shape)
            started = time.perf_counter()
            state, _ = jax.block_until_ready(step(state, *rest, placed, inputs.key))
            times[way].append(time.perf_counter() - started)
            slots[way] += int(np.size(batch.tokens))
            tokens[way] += filled(batch)
    for made in ahead.values():
        made.close()
    found: dict[str, Any] = {}
    for way in WAYS:
        step_s, wait_s = statistics.median(times[way]), statistics.median(waits[way] or [0.0])
        found[way] = {
            "step_time_s": step_s,
            "tokens_per_s": tokens[way] / sum(times[way]),
            "filled": tokens[way] / slots[way],
            "loader_wait_s": wait_s,
            "loader_share": wait_s / (wait_s + step_s),
        }
    for way in WAYS:
        found[way]["speed_up"] = found[way]["tokens_per_s"] / found["none"]["tokens_per_s"]
    return found


def filled(batch: Batch) -> float:
    """Return how many slots hold a token; without segments, up to a row's last label."""
    if batch.segments is not None:
        return float((np.asarray(batch.segments) > 0).sum())
    last = np.max(np.asarray(batch.label_positions) * np.asarray(batch.label_weights), axis=1)
    return float((last + 1).sum())


if __name__ == "__main__":
    main()
