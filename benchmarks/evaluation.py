"""How much of an evaluation is the model and how much is Python; prints one JSON object.

python -m benchmarks.evaluation --data eval.jsonl --rows 64

The rows are scored by both protocols (likelihood, and generate with beams) by a model of random
weights. Every call of a compiled program is timed until its result is there; what is left of the
whole is the host's: laying out batches, fetching, decoding, matching. `host_ms_a_row` is what a
larger model would have to hide; a first, untimed pass compiles.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from benchmarks.shapes import SHAPES
from benchmarks.training_step import StepSetting, device, random_base
from dora_jax import scoring
from dora_jax.checkpoint.pretrained import load_pretrained
from dora_jax.data.encode import encode_all
from dora_jax.data.prompts import get_template
from dora_jax.data.sources import read_source
from dora_jax.evaluation.task import Task
from dora_jax.generation import beams
from dora_jax.models.llama import Llama
from dora_jax.training.config import EvaluationConfig

PROGRAMS = ((scoring, "_log_probs"), (beams, "search"))


@contextlib.contextmanager
def timed_programs() -> Iterator[list[float]]:
    """Time every call of the compiled programs, to the end of its work, inside the context."""
    times: list[float] = []

    def timing(program: Any) -> Any:
        def call(*args: Any, **fields: Any) -> Any:
            start = time.perf_counter()
            found = jax.block_until_ready(program(*args, **fields))
            times.append(time.perf_counter() - start)
            return found

        return call

    with contextlib.ExitStack() as stack:
        for module, name in PROGRAMS:
            patch = mock.patch.object(module, name, timing(getattr(module, name)))
            stack.enter_context(patch)
        yield times


def measure(task: Task, model: Llama, params: Any) -> dict[str, Any]:
    """Return the times of one evaluation, after one that compiles."""
    task.score(model, params)
    with timed_programs() as times:
        start = time.perf_counter()
        task.score(model, params)
        whole = time.perf_counter() - start
    rows = len(task.rows["evaluation"])
    host = whole - sum(times)
    return {
        "rows": rows,
        "calls": len(times),
        "whole_s": whole,
        "model_s": sum(times),
        "host_ms_a_row": 1000 * host / rows,
        "host_share": host / whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m", choices=SHAPES)
    parser.add_argument("--tokenizer", default="smollm2-135m-instruct", help="a model's name")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    tokenizer = load_pretrained(args.tokenizer).tokenizer
    examples, _ = read_source(args.data)
    encoded = encode_all(examples[: args.rows], get_template("alpaca"), tokenizer, args.max_length)
    setting = StepSetting(model=args.model, dtype=args.dtype)
    params, model = random_base(setting), setting.plain()
    found = {}
    for protocol in ("likelihood", "generate"):
        how = EvaluationConfig(protocols=(protocol,))  # type: ignore[arg-type]
        rows = {"evaluation": tuple(encoded.rows)}
        task = Task("rows", rows, tokenizer, args.batch, {}, evaluation=how)  # type: ignore[arg-type]
        found[protocol] = measure(task, model, params)
    print(json.dumps({"model": args.model, "batch": args.batch, **found, **device()}))


if __name__ == "__main__":
    main()
