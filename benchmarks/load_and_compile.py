"""Time and peak memory from the command to the first training step, each in a fresh process.

python -m benchmarks.load_and_compile --model FOLDER_OR_NAME --batch 1 --seq 128; without --model a
folder of random weights of --shape is written first. Prints one JSON line: the moments since the
command at which imports, device, weights on it, compiled step and first step were ready, with a
cold and with a warm compilation cache of JAX's defaults (the weights' pages may be cached both
times). `load_peak_to_weights` is how far this process's memory rose at most while the weights were
read straight to the device, over their size: 1 is nothing but the weights, on a CPU.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from benchmarks.arguments import add_setting, setting_of
from benchmarks.processes import json_lines_of, measure_peak_from_here, peak_rss_bytes
from benchmarks.shapes import SHAPES
from benchmarks.training_step import build_step, device, time_alternately
from dora_jax.checkpoint.hf import write_hf_folder
from dora_jax.checkpoint.names import tensors
from dora_jax.checkpoint.pretrained import load_pretrained
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.models.config import LlamaConfig


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer of single bytes: a folder needs one, the step does not."""
    names = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {name: number for number, name in enumerate(names)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"}, "random model")


def write_random_folder(folder: Path, config: LlamaConfig, dtype: str) -> None:
    """Write a Hugging Face folder of random weights; uses no device."""
    # One block repeated: loading does not look at values, and billions of draws take minutes.
    block = np.random.default_rng(0).standard_normal(1 << 20, np.float32) / 50
    flat = {}
    for tensor in tensors(config):
        flat[tensor.path] = np.resize(block, tensor.whole_shape)
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    write_hf_folder(folder, config, params, byte_tokenizer(), dtype)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Go from the command to the first step in this process; return the moments and the memory."""
    moments = {}

    def mark(name: str) -> None:
        moments[name] = time.time() - args.started

    mark("imported_s")
    jax.config.update("jax_compilation_cache_dir", str(args.cache))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    mark("device_s")
    before = measure_peak_from_here()
    pretrained = load_pretrained(args.model, dtype=args.dtype, sharding=sharding)
    base = jax.block_until_ready(pretrained.params)
    mark("on_device_s")
    rise = None if before is None else max(peak_rss_bytes() - before, 0)
    SHAPES["loaded"] = pretrained.config
    step = build_step(setting_of(args, model="loaded"), base)
    mark("compiled_s")
    step.run()
    mark("first_step_s")
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(base))
    peak = peak_rss_bytes()  # since the weights began to be read, where that can be told
    (times,) = time_alternately([step.run], args.steps)
    return {
        **moments,
        "compile_s": step.compile_s,
        "step_time_s": statistics.median(times),
        "peak_rss_bytes": peak,
        "weights_bytes": weights,
        "peak_to_weights": peak / weights,
        "load_peak_bytes": rise,
        "load_peak_to_weights": None if rise is None else rise / weights,
    } | device()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_setting(parser, without=("model",))
    parser.add_argument("--model", help="a name or a folder; by default random weights of --shape")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.started is not None:
        print(json.dumps(measure(args)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder, cache = Path(temporary) / "model", Path(temporary) / "cache"
        if args.model is None:
            write_random_folder(folder, SHAPES[args.shape], args.dtype)
            model = str(folder)
        else:
            given = Path(args.model).expanduser()
            model = str(given.absolute()) if given.exists() else args.model
        found: dict[str, Any] = {"model": args.model or f"random {args.shape}"}
        for name in ("cold", "warm"):
            own = ["--model", model, "--cache", str(cache), "--started", repr(time.time())]
            (row,) = json_lines_of("benchmarks.load_and_compile", [*sys.argv[1:], *own])
            found[name] = row | {"cached_files": sum(path.is_file() for path in cache.glob("*"))}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
