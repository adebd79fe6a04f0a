"""Time PEFT with transformers and this library on one model shape, in turn within one process.

python -m benchmarks.against_peft --batch 4 --seq 256 --memory; prints one JSON line: the training
step of LoRA and DoRA by both, DoRA's forward at inference, and with --memory each one's peak, in
a process of its own. Needs the parity extra. Both train the same modules at the same rank, alpha
and thread count, on random weights; with --remat full PEFT recomputes whole layers too, the only
policy it has; else it keeps everything, as by default.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import psutil

from benchmarks.arguments import add_setting, setting_of
from benchmarks.processes import json_lines_of, peak_rss_bytes
from benchmarks.shapes import SHAPES
from benchmarks.training_step import (
    StepSetting,
    build_step,
    device,
    random_base,
    time_alternately,
)
from dora_jax.adapters import column_norms, init_adapters, merge_params
from dora_jax.checkpoint.hf_config import to_json
from dora_jax.layers import NORMS
from dora_jax.models.llama import param_shapes

_METHODS = ("lora", "dora")
_TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
_MEMORY_STEPS = 3


def torch_device() -> str:
    """Return where torch runs; checks the optional packages and sets the threads."""
    try:
        import peft  # noqa: F401
        import torch
        import transformers
    except ImportError as error:
        raise SystemExit(
            f"against_peft needs the parity extra: pip install 'dora-jax[parity]' ({error})"
        ) from error
    torch.set_num_threads(os.cpu_count() or 1)
    transformers.logging.set_verbosity_error()
    return "cuda" if torch.cuda.is_available() else "cpu"


def peft_model(setting: StepSetting, where: str) -> Any:
    """Return transformers' LLaMA of the same shape with PEFT's adapters, random weights."""
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    fields = json.loads(to_json(SHAPES[setting.model], setting.dtype))
    config = transformers.LlamaConfig.from_dict({**fields, "use_cache": False})
    with torch.device(where):
        model = transformers.LlamaForCausalLM._from_config(
            config, dtype=getattr(torch, setting.dtype)
        )
    if setting.remat == "full":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    adapter = peft.LoraConfig(
        r=setting.rank,
        lora_alpha=2 * setting.rank,
        target_modules=_TARGETS,
        use_dora=setting.method == "dora",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, adapter)


def wait(where: str) -> None:
    """Wait for torch's device."""
    import torch

    if where == "cuda":
        torch.cuda.synchronize()


def peft_tokens(setting: StepSetting, where: str) -> Any:
    """Return the tokens of `StepSetting.random_batch` as a tensor, drawn without JAX."""
    import torch

    shape = (setting.batch, setting.seq)
    drawn = np.random.default_rng(0).integers(0, SHAPES[setting.model].vocab_size, shape)
    return torch.from_numpy(drawn).to(where)


def peft_step(model: Any, setting: StepSetting, where: str) -> Callable[[], None]:
    """Return one whole training step of PEFT: forward, backward, clipping, AdamW."""
    import torch

    model.train()
    tokens = peft_tokens(setting, where)
    labels = tokens.clone()
    labels[:, : setting.seq - setting.labels] = -100
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)

    def run() -> None:
        model(input_ids=tokens, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait(where)

    return run


def our_forwards(setting: StepSetting, base: Any) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield our forwards with DoRA: unmerged, with norms computed once, merged."""
    adapted, plain = setting.adapted(), setting.plain()
    rules = adapted.adapters
    assert rules is not None
    params = init_adapters(base, param_shapes(adapted), rules, jax.random.key(0))
    tokens = setting.random_batch().tokens

    def forward(model: Any, variables: dict[str, Any]) -> Callable[[], object]:
        apply = jax.jit(model.apply)
        return lambda: jax.block_until_ready(apply(variables, tokens))

    yield "unmerged", forward(adapted, {"params": params})
    norms = jax.jit(lambda p: column_norms(p, rules))(params)
    yield "cached", forward(adapted, {"params": params, NORMS: norms})
    merged = jax.jit(lambda p: merge_params(p, rules))(params)
    yield "merged", forward(plain, {"params": merged})


def peft_forward(model: Any, tokens: Any, where: str) -> Callable[[], None]:
    """Return PEFT's forward at inference."""
    import torch

    def run() -> None:
        with torch.inference_mode():
            model(input_ids=tokens)
        wait(where)

    return run


def figures(times: Sequence[float]) -> dict[str, float]:
    return {"median_s": statistics.median(times), "min_s": min(times)}


def ratio(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {name.removesuffix("_s"): one[name] / other[name] for name in one}


def compare_steps(
    settings: dict[str, StepSetting], base: Any, models: dict[str, Any], where: str, rounds: int
) -> dict[str, Any]:
    """Time the four training steps in turn."""
    ours = [build_step(settings[m], base).run for m in _METHODS]
    theirs = [peft_step(models[m], settings[m], where) for m in _METHODS]
    times = [figures(t) for t in time_alternately([*ours, *theirs], rounds)]
    of = {
        "ours": dict(zip(_METHODS, times[:2], strict=True)),
        "peft": dict(zip(_METHODS, times[2:], strict=True)),
    }
    return {
        "steps": of,
        "ours_to_peft": {m: ratio(of["ours"][m], of["peft"][m]) for m in _METHODS},
        "dora_to_lora": {name: ratio(own["dora"], own["lora"]) for name, own in of.items()},
    }


def compare_forwards(
    setting: StepSetting, base: Any, model: Any, where: str, rounds: int
) -> dict[str, Any]:
    """Time the forward with DoRA of both, pair by pair; the model is merged on the way.

    What is cached: ours keeps the norms, PEFT (`DoraCaching`) the norms and the products A B.
    """
    from peft.helpers import DoraCaching

    tokens = peft_tokens(setting, where)
    model.eval()
    found: dict[str, Any] = {}
    try:
        for name, run in our_forwards(setting, base):
            if name == "merged":
                model = model.merge_and_unload()
            # Pairs, because PEFT's uncached forward empties the cache.
            with DoraCaching() if name == "cached" else contextlib.nullcontext():
                pair = time_alternately([run, peft_forward(model, tokens, where)], rounds)
            own, theirs = map(figures, pair)
            found[name] = {"ours": own, "peft": theirs, "ours_to_peft": ratio(own, theirs)}
    except RuntimeError as error:
        # Both libraries' out-of-memory errors: what was measured before is worth keeping.
        found["error"] = str(error)[:2000]
    return {"forward": found}


def our_peak(setting: StepSetting) -> dict[str, Any]:
    """Take some of our training steps in this process; return its peaks."""
    imported = psutil.Process().memory_info().rss
    run = build_step(setting).run
    for _ in range(_MEMORY_STEPS):
        run()
    stats = jax.devices()[0].memory_stats() or {}
    return _peaks(imported) | {"device_peak_bytes": stats.get("peak_bytes_in_use")}


def peft_peak(setting: StepSetting) -> dict[str, Any]:
    """Take some of PEFT's training steps in this process; return its peaks.

    The resident peak is less what this program's own imports (JAX and ours) took. JAX is not used:
    on an accelerator it would take most of the memory.
    """
    foreign = psutil.Process().memory_info().rss
    where = torch_device()
    import torch

    imported = psutil.Process().memory_info().rss
    run = peft_step(peft_model(setting, where), setting, where)
    for _ in range(_MEMORY_STEPS):
        run()
    on_device = torch.cuda.max_memory_allocated() if where == "cuda" else None
    return _peaks(imported, foreign) | {"device_peak_bytes": on_device}


def _peaks(imported: int, foreign: int = 0) -> dict[str, int]:
    peak = peak_rss_bytes()
    return {"peak_rss_bytes": peak - foreign, "growth_bytes": peak - imported}


def compare_memory() -> dict[str, Any]:
    """Run each library's steps in a process of its own; return the peaks and their ratios."""
    found: dict[str, Any] = {}
    for library in ("ours", "peft"):
        found[library] = {}
        for method in _METHODS:
            own = [*sys.argv[1:], "--alone", library, method]
            (found[library][method],) = json_lines_of("benchmarks.against_peft", own)

    def to_peft(method: str) -> dict[str, float]:
        own, theirs = found["ours"][method], found["peft"][method]
        return {name: own[name] / theirs[name] for name in own if own[name] and theirs[name]}

    return {"memory": found | {"ours_to_peft": {m: to_peft(m) for m in _METHODS}}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_setting(parser, without=("method", "norm_axis", "micro_batches", "modules"))
    parser.add_argument("--memory", action="store_true", help="peak memory too, in own processes")
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        library, method = args.alone
        peak = our_peak if library == "ours" else peft_peak
        print(json.dumps(peak(setting_of(args, method=method))))
        return
    where = torch_device()
    found = {name: value for name, value in vars(args).items() if name != "alone"}
    found["torch_device"] = where
    found["threads"] = os.cpu_count()
    found["versions"] = {
        name: importlib.metadata.version(name) for name in ("jax", "torch", "transformers", "peft")
    }
    if args.memory:
        # Before this process takes the device's memory.
        found |= compare_memory()
    found |= device()
    if (where == "cpu") != (found["platform"] == "cpu"):
        lacking = "torch" if where == "cpu" else "JAX"
        print(json.dumps(found | {"not_compared": f"{lacking} sees no device"}))
        return
    settings = {method: setting_of(args, method=method) for method in _METHODS}
    base = random_base(settings["dora"])
    models = {method: peft_model(settings[method], where) for method in _METHODS}
    found |= compare_steps(settings, base, models, where, args.steps)
    tuned = models.pop("dora")
    models.clear()  # on an accelerator the forwards need the memory
    found |= compare_forwards(settings["dora"], base, tuned, where, args.steps)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
