"""From our rules to PEFT's settings, or a refusal of what PEFT cannot express."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dora_jax.checkpoint.names import shorten
from dora_jax.checkpoint.peft_config import PeftConfig
from dora_jax.checkpoint.peft_modules import Module, torch_paths
from dora_jax.errors import DoraError
from dora_jax.spec import AdapterSpec, takes_from_kernel

_WAY_OUT = "merge the adapter instead (dora-jax merge), or export its closest LoRA (--as-lora)"

Specs = Mapping[Module, AdapterSpec]


def _refuse(module: Module, problem: str) -> DoraError:
    return DoraError(f"module {module.path!r}: {problem}; {_WAY_OUT}")


def check_expressible(specs: Specs) -> None:
    """Check that PEFT can express the specs.

    Raises:
        DoraError: naming the first module that it cannot, the reason, and the way out.
    """
    adapted = {module: spec for module, spec in specs.items() if spec.has_low_rank}
    for module, spec in specs.items():
        if spec.method == "magnitude":
            raise _refuse(module, "PEFT has no magnitude without low-rank factors")
        if spec.method == "dora" and spec.norm_axis == "in":
            raise _refuse(module, "PEFT's magnitudes are one for each output, not for each input")
    if not adapted:
        raise DoraError(f"PEFT needs at least one module with low-rank factors; {_WAY_OUT}")
    first, *_ = adapted.values()
    for module, spec in adapted.items():
        if spec.method != first.method:
            raise _refuse(
                module,
                f"is tuned by {spec.method!r}, others by {first.method!r}: PEFT has one kind",
            )
    _check_dropout(adapted)


def _check_dropout(adapted: Specs) -> None:
    first, *_ = adapted.values()
    for module, spec in adapted.items():
        if spec.dropout != first.dropout:
            raise _refuse(
                module, f"has dropout {spec.dropout}, others {first.dropout}: PEFT has one"
            )


def peft_bias(specs: Specs) -> str:
    """Return PEFT's `bias` for the biases that train beside frozen weights.

    Raises:
        DoraError: when they are neither all biases nor those of the adapted modules.
    """
    with_bias = [m for m, s in specs.items() if "bias" in m.leaves and s.method != "full"]
    trained = {m.path for m in with_bias if specs[m].train_bias}
    adapted = {m.path for m in with_bias if specs[m].has_low_rank}
    if not trained:
        return "none"
    if trained == {m.path for m in with_bias}:
        return "all"
    if trained == adapted:
        return "lora_only"
    raise DoraError(
        f"the biases of {shorten(sorted(trained))} are trained, which PEFT cannot say: it knows "
        f"all biases, those of all adapted modules, and none; {_WAY_OUT}"
    )


def _short(names: Sequence[str], everywhere: Sequence[str]) -> list[str]:
    """Return the names, or for those that are all of their kind its last part, for each kind."""
    chosen = set(names)
    found = []
    for name in names:
        last = name.rsplit(".", 1)[-1]
        kind = {path for path in everywhere if path.rsplit(".", 1)[-1] == last}
        found.append(last if kind <= chosen else name)
    return sorted(set(found))


def _pattern(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """Return PEFT's pattern: what differs from the default, for a whole kind where it is alike."""
    kinds: dict[str, list[str]] = {}
    for name in values:
        kinds.setdefault(name.rsplit(".", 1)[-1], []).append(name)
    found: dict[str, Any] = {}
    for last, names in kinds.items():
        of_kind = {values[name] for name in names}
        if len(of_kind) == 1:
            found |= {last: of_kind.pop()}
        else:
            found |= {name: values[name] for name in names}
    return {name: value for name, value in found.items() if value != default}


def peft_config(
    specs: Specs, base_model: str | None = None, task_type: str | None = "CAUSAL_LM"
) -> PeftConfig:
    """Return the settings with which PEFT builds the same adapter.

    A spec whose init takes from the kernel is written as plain LoRA of twice its rank, which needs
    no changed base weights.

    Args:
        specs: of every module.
        base_model: its name, written beside them.
        task_type: PEFT's.

    Raises:
        DoraError: when PEFT cannot express them.
    """
    check_expressible(specs)
    adapted = {m: s for m, s in specs.items() if s.has_low_rank}
    everywhere = torch_paths(specs)
    is_rslora = all(spec.scaling == "rslora" for spec in adapted.values())
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for module, spec in adapted.items():
        layers = spec.per_layer or ((spec.rank, spec.alpha),) * len(module.names)
        scales = spec.layer_scales or (spec.scale,) * len(module.names)
        for name, layer, scale in zip(module.names, layers, scales, strict=True):
            if layer is None:
                continue
            rank = 2 * layer[0] if takes_from_kernel(spec.init) else layer[0]
            ranks[name] = rank
            own = rank == layer[0] and (spec.scaling == "rslora") == is_rslora
            if own and spec.scaling != "alpha":
                alphas[name] = _whole(layer[1])
            else:
                alphas[name] = _whole(scale * (rank**0.5 if is_rslora else rank))
    r = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    saved = [name for m, s in specs.items() if s.method == "full" for name in m.names]
    first = next(iter(adapted.values()))
    inits = {"gaussian": "gaussian", "orthogonal": "orthogonal"}
    return PeftConfig(
        r=r,
        lora_alpha=alpha,
        use_dora=first.method == "dora",
        use_rslora=is_rslora,
        target_modules=tuple(_short(list(ranks), everywhere)),
        rank_pattern=_pattern(ranks, r),
        alpha_pattern=_pattern(alphas, alpha),
        modules_to_save=tuple(_saved_names(saved, everywhere)),
        bias=peft_bias(specs),
        lora_dropout=first.dropout,
        init_lora_weights=inits.get(first.init, True),
        base_model_name_or_path=base_model,
        task_type=task_type,
    )


def _saved_names(saved: Sequence[str], everywhere: Sequence[str]) -> list[str]:
    """Return what PEFT's modules_to_save takes for exactly these names.

    It goes by plain ends of paths: `norm` would be `input_layernorm` too.
    """
    found = set()
    for name in saved:
        last = name.rsplit(".", 1)[-1]
        found.add(last if all(p in saved for p in everywhere if p.endswith(last)) else name)
    return sorted(found)


def _whole(value: float) -> float:
    """Return a number as JSON readers expect it: alpha is a whole number where it can be."""
    return int(value) if float(value).is_integer() else value
