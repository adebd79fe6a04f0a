"""How step time, memory and compile time grow with tokens, rank, depth, width, and devices.

python -m benchmarks.scaling --out scaling.json; one JSON and a Markdown table, each row DoRA beside
LoRA, timed in turn. `--devices` also splits the batch over all local devices, and fails where the
loss is not one device's; without an accelerator these are eight host devices, which show that the
numbers are right and nothing of speed.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks.arguments import add_setting, setting_of
from benchmarks.overhead import measure
from benchmarks.shapes import SHAPES
from benchmarks.training_step import (
    StepSetting,
    device,
    jitted_step,
    random_base,
    step_inputs,
    time_alternately,
)
from dora_jax.sharding import replicate, split_rows

_TOKENS = ("1x128", "2x128", "4x128", "8x128")
_RANKS = (8, 32, 128)
_DEPTHS = (2, 8, 16, 30)
_WIDTHS = (192, 384, 576)
_HOST_DEVICES = 8
_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}


def with_depth(model: str, layers: int) -> str:
    """Register a shape with another number of layers; return its name."""
    name = f"{model}-depth-{layers}"
    SHAPES[name] = dataclasses.replace(SHAPES[model], num_hidden_layers=layers)
    return name


def with_width(model: str, hidden: int) -> str:
    """Register a shape of another hidden size, of as many heads a feature; return its name."""
    shape = SHAPES[model]
    kv_heads, rest = divmod(hidden * shape.num_key_value_heads, shape.hidden_size)
    if rest or not kv_heads:
        unit = shape.hidden_size // shape.num_key_value_heads
        raise SystemExit(f"--widths: {model}'s are multiples of {unit}; got {hidden}")
    name = f"{model}-width-{hidden}"
    SHAPES[name] = dataclasses.replace(
        shape,
        hidden_size=hidden,
        intermediate_size=shape.intermediate_size * hidden // shape.hidden_size,
        num_attention_heads=shape.num_attention_heads * kv_heads // shape.num_key_value_heads,
        num_key_value_heads=kv_heads,
    )
    return name


def sweeps(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Return the fields that each row of each sweep changes."""
    sizes = [tuple(map(int, size.split("x"))) for size in args.tokens]
    return {
        "tokens": [{"batch": batch, "seq": seq} for batch, seq in sizes],
        "rank": [{"rank": rank} for rank in args.ranks],
        "depth": [{"model": with_depth(args.model, layers)} for layers in args.depths],
        "width": [{"model": with_width(args.model, hidden)} for hidden in args.widths],
    }


def step_on(
    setting: StepSetting, base: Any, place: Callable[[Any], Any], split: Callable[[Any], Any]
) -> tuple[Callable[[], None], list[float]]:
    """Return a training step and the list that gets its losses.

    Args:
        setting: what is timed.
        base: the plain model's weights.
        place: puts state and frozen weights where they live.
        split: puts the rows there.
    """
    step, inputs = jitted_step(setting), step_inputs(setting, base)
    state, frozen, sq_norms = map(place, inputs[:3])
    rows, key = split(inputs.rows), inputs.key
    losses: list[float] = []

    def run() -> None:
        nonlocal state
        state, metrics = step(state, frozen, sq_norms, rows, key)
        losses.append(float(jax.block_until_ready((state, metrics))[1].loss))

    return run, losses


def over_devices(setting: StepSetting, rounds: int) -> dict[str, Any]:
    """Time the step on one device and, its batch divided, on all; compare the last losses."""
    count = jax.device_count()
    if setting.batch % count:
        raise SystemExit(f"--devices: --batch must be a multiple of {count}; got {setting.batch}")
    base = random_base(setting)
    one, one_losses = step_on(setting, base, lambda tree: tree, lambda rows: rows)
    every, every_losses = step_on(setting, base, replicate, split_rows)
    times = [min(own) for own in time_alternately([one, every], rounds)]
    # After several updates, so that gradients have been summed over devices.
    losses = one_losses[-1], every_losses[-1]
    return {
        "devices": count,
        "batch": setting.batch,
        "seq": setting.seq,
        "step_time_min_s": {"one": times[0], "all": times[1]},
        "speedup": times[0] / times[1],
        "loss": {"one": losses[0], "all": losses[1]},
        "loss_difference": abs(losses[1] / losses[0] - 1),
    }


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| sweep | layers | hidden | tokens a step | rank | LoRA, s | DoRA, s | least time, to "
        "LoRA's | temporary, MB | compiled in, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for sweep, rows in found.items():
        for row in rows:
            shape = SHAPES[row["model"]]
            lines.append(
                f"| {sweep} | {shape.num_hidden_layers} | {shape.hidden_size} | {row['batch']} x "
                f"{row['seq']} | {row['rank']} | {row['lora_step_time_s']:.4f} | "
                f"{row['step_time_s']:.4f} | {row['ratio_to_lora']['step_time_min_s']:.3f} | "
                f"{(row['temp_bytes'] or 0) / 1e6:.1f} | {row['compile_s']:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_setting(parser, without=("method",))
    parser.add_argument("--tokens", nargs="*", default=_TOKENS, help="BATCHxSEQ")
    parser.add_argument("--ranks", nargs="*", type=int, default=_RANKS)
    parser.add_argument("--depths", nargs="*", type=int, default=_DEPTHS, help="layers")
    parser.add_argument("--widths", nargs="*", type=int, default=_WIDTHS, help="hidden sizes")
    parser.add_argument("--devices", action="store_true", help="one device against all")
    parser.add_argument("--out", type=Path, help="where to write the JSON; else it is printed")
    args = parser.parse_args()
    # Possible only before the first use of JAX; a number that is set already is kept.
    if args.devices and jax.config.jax_num_cpu_devices < 1:
        jax.config.update("jax_num_cpu_devices", _HOST_DEVICES)
    grown: dict[str, list[dict[str, Any]]] = {}
    found: dict[str, Any] = device()

    def keep() -> None:  # after every row: a long run that is killed loses one
        if args.out:
            args.out.write_text(json.dumps({**found, **grown}, indent=1) + "\n")

    for sweep, changes in sweeps(args).items():
        grown[sweep] = []
        for fields in changes:
            setting = setting_of(args, **fields)
            grown[sweep].append(measure(setting, random_base(setting), args.steps, "dora"))
            keep()
    if args.devices:
        found["over_devices"] = over_devices(setting_of(args, method="dora"), args.steps)
        keep()
    if not args.out:
        print(json.dumps({**found, **grown}))
    print(table(grown))
    if args.devices and found["over_devices"]["loss_difference"] > _TOLERANCE[args.dtype]:
        raise SystemExit(f"the loss on all devices is another: {found['over_devices']['loss']}")


if __name__ == "__main__":
    main()
