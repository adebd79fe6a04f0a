"""Time ||W + s A B|| by its two ways, factored and direct, for shapes and ranks: JSON lines.

python -m benchmarks.norms --shapes 576x1536 4096x4096 --ranks 16 128 512; each line has the times,
the operations that `norm_flops` counts, and whether `cheaper_path` chooses the faster one.
"""

import argparse
import functools
import json
import statistics
from collections.abc import Callable
from typing import get_args

import jax
import jax.numpy as jnp

from benchmarks.training_step import device, time_alternately
from dora_jax import factored_norm
from dora_jax.decomposition import column_sq_norm
from dora_jax.factored_norm import NormPath, cheaper_path, norm_flops
from dora_jax.kernel_layout import KernelLayout


def time_both(
    rows: int, columns: int, rank: int, stack: int, dtype: str, rounds: int
) -> dict[str, float]:
    """Return the median seconds of either way, timed in turn."""
    keys = jax.random.split(jax.random.key(0), 3)
    kernel = jax.random.normal(keys[0], (stack, rows, columns), jnp.dtype(dtype))
    a = jax.random.normal(keys[1], (stack, rows, rank)) / rows
    b = jax.random.normal(keys[2], (stack, rank, columns))
    base = column_sq_norm(kernel, in_ndim=1, stack_ndim=1)

    def run_of(path: NormPath) -> Callable[[], object]:
        over = factored_norm._SumOver(path, KernelLayout(1, 1), "out", True)
        norm = jax.jit(functools.partial(factored_norm._sq_norm, over))
        return lambda: jax.block_until_ready(norm(kernel, a, b, base))

    paths = get_args(NormPath)
    times = time_alternately([run_of(path) for path in paths], rounds)
    return {p: statistics.median(t) for p, t in zip(paths, times, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=("576x576", "576x1536", "2048x2048"))
    parser.add_argument("--ranks", nargs="+", type=int, default=(16, 64, 128, 256, 512))
    parser.add_argument("--stack", type=int, default=4, help="kernels at once, as scanned layers")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=7)
    args = parser.parse_args()
    narrow = args.dtype != "float32"
    for shape in args.shapes:
        rows, columns = map(int, shape.split("x"))
        for rank in args.ranks:
            seconds = time_both(rows, columns, rank, args.stack, args.dtype, args.steps)
            chosen = cheaper_path(rows, columns, rank, narrow=narrow)
            row = {
                "shape": shape,
                "rank": rank,
                "seconds": seconds,
                "flops": norm_flops(rows, columns, rank, narrow=narrow),
                "chosen": chosen,
                "to_the_faster": seconds[chosen] / min(seconds.values()),
            }
            print(json.dumps(row | device()), flush=True)


if __name__ == "__main__":
    main()
