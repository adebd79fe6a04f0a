"""Generation against transformers' on the same shape: prefill and greedy decoding.

python -m benchmarks.against_transformers, with the parity extra; prints JSON. Random weights, the
same ids, the same threads, in turns within one run. A decoded token's time is what a longer text
takes more than a shorter one, so that the prefill does not count.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.against_peft import torch_device, wait
from benchmarks.shapes import SHAPES
from benchmarks.training_step import StepSetting, device, random_base, time_alternately
from dora_jax.checkpoint.hf_config import to_json
from dora_jax.generation import Sampling, generate_ids


def ours(setting: StepSetting, base: Any) -> Callable[[np.ndarray, int], Callable[[], object]]:
    """Return what makes a run of our greedy generation."""
    model, variables = setting.plain(), {"params": base}

    def prepare(ids: np.ndarray, new_tokens: int) -> Callable[[], object]:
        prompts = ids.tolist()
        return lambda: generate_ids(model, variables, prompts, Sampling(new_tokens), ())

    return prepare


def theirs(setting: StepSetting, where: str) -> Callable[[np.ndarray, int], Callable[[], object]]:
    """Return what makes a run of transformers' greedy generation."""
    import torch
    import transformers

    config = transformers.LlamaConfig.from_dict(
        json.loads(to_json(SHAPES[setting.model], setting.dtype))
    )
    with torch.device(where):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, setting.dtype)
        ).eval()

    def prepare(ids: np.ndarray, new_tokens: int) -> Callable[[], object]:
        tokens = torch.from_numpy(ids).to(where)
        mask = torch.ones_like(tokens)

        def run() -> None:
            with torch.inference_mode():
                model.generate(
                    tokens,
                    attention_mask=mask,
                    max_new_tokens=new_tokens,
                    eos_token_id=[],
                    pad_token_id=0,
                    do_sample=False,
                )
            wait(where)

        return run

    return prepare


def compare(
    pair: list[Callable[[np.ndarray, int], Callable[[], object]]],
    ids: np.ndarray,
    new_tokens: tuple[int, ...],
    rounds: int,
) -> dict[str, Any]:
    """Time both, and return seconds for the prompt, or for each token between two lengths."""
    runs = [prepare(ids, n) for n in new_tokens for prepare in pair]
    times = time_alternately(runs, rounds)
    steps = new_tokens[-1] - new_tokens[0] or 1

    def seconds(pick: Callable[[list[float]], float]) -> list[float]:
        picked = list(map(pick, times))
        before = picked[:2] if len(new_tokens) > 1 else [0.0, 0.0]
        return [(picked[i - 2] - before[i]) / steps for i in (0, 1)]

    medians, least = seconds(statistics.median), seconds(min)
    return {
        "rows": len(ids),
        "prompt_tokens": ids.shape[1],
        "ours_s": medians[0],
        "transformers_s": medians[1],
        "speed_to_transformers": medians[1] / medians[0],
        "speed_by_least_time": least[1] / least[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rows", type=int, nargs="+", default=(1, 16), help="decoded at once")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill")
    parser.add_argument("--tokens", type=int, default=32, help="decoded, beyond the first 4")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    setting = StepSetting(model=args.model, dtype=args.dtype)
    pair = [ours(setting, random_base(setting)), theirs(setting, torch_device())]
    rng = np.random.default_rng(0)

    def prompts(rows: int, length: int) -> np.ndarray:
        return rng.integers(3, SHAPES[args.model].vocab_size, (rows, length))

    found = {
        **device(),
        "model": args.model,
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "jax": jax.__version__,
        "torch": torch.__version__,
        "prefill": compare(pair, prompts(1, args.prompt), (1,), args.rounds),
        "decode": [
            compare(pair, prompts(rows, 16), (4, 4 + args.tokens), args.rounds)
            for rows in args.rows
        ],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
