"""What is done to each module: `AdapterSpec`, and the rules that give every module path its spec.

Plain frozen dataclasses: no arrays, no Flax. A spec is validated when it is built.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Method = Literal["frozen", "full", "lora", "dora", "magnitude"]
Scaling = Literal["standard", "rslora", "alpha"]
NormAxis = Literal["out", "in"]
Init = Literal[
    "kaiming", "gaussian", "normal", "normal_b", "embedding", "orthogonal", "olora", "pissa"
]
DropoutStyle = Literal["low_rank", "peft"]
FloatDtype = Literal["float32", "float64", "bfloat16", "float16"]


def nearest(given: object, allowed: Iterable[str]) -> str:
    """Return ' (did you mean ...?)' for the closest allowed word, or an empty string."""
    close = difflib.get_close_matches(str(given), list(allowed), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def takes_from_kernel(init: str) -> bool:
    """Whether fresh factors of this init are directions of the kernel, taken out of it."""
    return init.startswith(("pissa", "olora"))


def _check_choice(field: str, given: object, choices: Any) -> None:
    allowed = get_args(choices)
    if given not in allowed:
        raise ValueError(
            f"AdapterSpec.{field} must be one of {', '.join(map(repr, allowed))}; "
            f"got {given!r}{nearest(given, allowed)}"
        )


@dataclass(frozen=True)
class AdapterSpec:
    """How one module is tuned.

    Attributes:
        method: `frozen` (nothing trains), `full` (the module's own parameters train), `lora`,
            `dora`, or `magnitude` (DoRA's magnitude alone).
        rank: r, the width of `lora_a (in, r)` and `lora_b (r, out)`; at least 1.
        alpha: the numerator of the low-rank scale; positive.
        scaling: `standard` alpha / r; `rslora` alpha / sqrt(r); `alpha` alpha itself.
        dropout: probability with which the low-rank path's input is dropped, in [0, 1).
        dropout_style: `low_rank` drops the input of the low-rank path alone; `peft` drops that of
            the base path's correction too, y = xW + (c - 1) drop(x)W + s c drop(x)AB, at the price
            of a second product with W.
        norm_axis: `out`, one magnitude per output feature (the authors, PEFT); `in`, one per input
            feature (LyCORIS, some tutorials).
        detach_norm: treat the norm as a constant in the backward pass (the paper, section 4.3).
        init: of the low-rank factors, the other one being zero. `kaiming` A uniform in
            +-1/sqrt(in) (PEFT's default); `gaussian` A normal of deviation 1/r (PEFT's);
            `normal` A normal of variance 1/r; `normal_b` B normal of variance 1/r and A zero;
            `embedding` B normal of variance 1 and A zero (PEFT's of embeddings). Of these both
            factors start unequal to zero: `orthogonal` in orthogonal halves of an even rank, so
            that A B = 0; `olora`, `pissa` and `pissa_niter_K` (by K subspace iterations) in
            directions of W, which they take out of it: see `dora_jax.kernel_init`. Those need
            `init_adapters`; a model's own `init` draws them as `kaiming`.
        train_bias: train the module's bias as well.
        per_layer: (rank, alpha) of each of a stack's layers, None for a layer without an adapter,
            where they are not all alike. `rank` is then the largest: the factors of layers of lower
            rank are filled up with zeros, which stay zero in training.
        param_dtype: of lora_a and lora_b. The magnitude is float32 whatever this is (float64 for
            a float64 kernel): one rounded to bfloat16 would not start as ||W||.

    Raises:
        ValueError: naming the field, the value given and what is allowed.

    Example:
        >>> AdapterSpec(method="dora", rank=8, alpha=16).scale
        2.0
    """

    method: Method = "dora"
    rank: int = 16
    alpha: float = 32.0
    scaling: Scaling = "standard"
    dropout: float = 0.0
    dropout_style: DropoutStyle = "low_rank"
    norm_axis: NormAxis = "out"
    detach_norm: bool = True
    init: Init | str = "kaiming"
    train_bias: bool = False
    param_dtype: FloatDtype = "float32"
    per_layer: tuple[tuple[int, float] | None, ...] | None = None

    def __post_init__(self) -> None:
        _check_choice("method", self.method, Method)
        _check_choice("scaling", self.scaling, Scaling)
        _check_choice("norm_axis", self.norm_axis, NormAxis)
        if not re.fullmatch(r"pissa_niter_\d+", self.init):
            _check_choice("init", self.init, Init)
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError(f"AdapterSpec.init 'orthogonal' needs an even rank; got {self.rank}")
        _check_choice("dropout_style", self.dropout_style, DropoutStyle)
        _check_choice("param_dtype", self.param_dtype, FloatDtype)
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ValueError(
                f"AdapterSpec.rank must be a whole number of at least 1; got {self.rank!r} "
                "(to tune no low-rank factors, use method='magnitude' or 'frozen')"
            )
        if not (isinstance(self.alpha, int | float) and 0 < self.alpha < math.inf):
            raise ValueError(f"AdapterSpec.alpha must be positive and finite; got {self.alpha!r}")
        if not (isinstance(self.dropout, int | float) and 0 <= self.dropout < 1):
            raise ValueError(f"AdapterSpec.dropout must be in [0, 1); got {self.dropout!r}")
        self._check_layers()

    def _check_layers(self) -> None:
        if self.per_layer is None:
            return
        # Tuples whatever came (JSON has lists): a spec is hashable.
        layers = tuple(None if layer is None else (layer[0], layer[1]) for layer in self.per_layer)
        object.__setattr__(self, "per_layer", layers)
        if not self.has_low_rank:
            raise ValueError(
                f"AdapterSpec.per_layer gives ranks, which method {self.method!r} does not have"
            )
        for layer in filter(None, layers):
            dataclasses.replace(self, rank=layer[0], alpha=layer[1], per_layer=None)  # checks them
        if self.rank != max((layer[0] for layer in layers if layer is not None), default=None):
            raise ValueError(
                f"AdapterSpec.rank must be the largest of per_layer; got {self.rank!r} and {layers}"
            )

    @property
    def has_low_rank(self) -> bool:
        """Whether the module holds lora_a and lora_b."""
        return self.method in ("lora", "dora")

    @property
    def has_magnitude(self) -> bool:
        """Whether the module holds a magnitude."""
        return self.method in ("dora", "magnitude")

    @property
    def scale(self) -> float:
        """The factor s on the low-rank product A B."""
        return self._scale(self.rank, self.alpha)

    @property
    def layer_scales(self) -> tuple[float, ...] | None:
        """The factor s of each layer, 0 without an adapter; None where `scale` is that of all."""
        if self.per_layer is None:
            return None
        return tuple(0.0 if layer is None else self._scale(*layer) for layer in self.per_layer)

    def _scale(self, rank: int, alpha: float) -> float:
        if self.scaling == "standard":
            return alpha / rank
        if self.scaling == "rslora":
            return alpha / math.sqrt(rank)
        return alpha


FROZEN = AdapterSpec(method="frozen")


def snippet_dora(rank: int) -> AdapterSpec:
    """Return the spec of the simplest published DoRA snippet.

    That snippet works on PyTorch's (out, in) weights: `m = W.norm(p=2, dim=0)` (one magnitude per
    *input* feature), A (out, r) ~ N(0, 1/r), B (r, in) = 0, no alpha, gradient through the norm.
    In the kernel layout used here its A is `lora_b` transposed and its B is `lora_a` transposed.
    """
    return AdapterSpec(
        method="dora",
        rank=rank,
        alpha=1.0,
        scaling="alpha",
        norm_axis="in",
        detach_norm=False,
        init="normal_b",
    )


def snippet_lora(rank: int, alpha: float) -> AdapterSpec:
    """Return the spec of the LoRA beside it: A (in, r) ~ N(0, 1/r), B zero, factor alpha itself."""
    return AdapterSpec(method="lora", rank=rank, alpha=alpha, scaling="alpha", init="normal")


PRESETS: dict[str, tuple[str, ...]] = {
    # Every kernel but the head, as PEFT's "all-linear"; embeddings have no `kernel`.
    "all-linear": (r"(?:.*/)?(?<!\blm_head/)(?<!\bhead/)kernel",),
    # The modules of the paper's commonsense study.
    "paper": (r"(?:q|k|v|up|down)_proj",),
    "attention": (r"(?:q|k|v|o)_proj",),
    "qv": (r"(?:q|v)_proj",),
}
GRANULAR_PRESET = "qkv-dora"


@dataclass(frozen=True)
class AdapterRules:
    """Rules from module paths to specs: the first match wins, an unmatched module is frozen.

    A pattern is a regular expression that must match the whole slash-joined module path
    (`layers/self_attn/q_proj`), the path with its weight (`.../q_proj/kernel`), or one of their
    trailing parts (`q_proj`, `self_attn/q_proj`): so PEFT's `target_modules` names work as they
    are.

    Raises:
        ValueError: when a pattern is not a regular expression.

    Example:
        >>> rules = AdapterRules([("(q|k|v)_proj", AdapterSpec("dora"))])
        >>> rules.spec_for("layers/self_attn/k_proj").method
        'dora'
        >>> rules.spec_for("layers/mlp/up_proj").method
        'frozen'
    """

    rules: Sequence[tuple[str, AdapterSpec]]

    def __post_init__(self) -> None:
        # A tuple keeps the rules hashable: Linen modules that hold them are static jit arguments.
        object.__setattr__(self, "rules", tuple((str(p), s) for p, s in self.rules))
        for pattern, spec in self.rules:
            if not isinstance(spec, AdapterSpec):
                raise ValueError(f"rule {pattern!r} needs an AdapterSpec, got {spec!r}")
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"rule {pattern!r} is not a regular expression: {error}") from None

    @classmethod
    def preset(cls, name: str, spec: AdapterSpec) -> "AdapterRules":
        """Return a named choice of modules, all tuned by `spec`.

        `all-linear`, `paper` (q, k, v, up, down), `attention` (q, k, v, o), `qv`; and `qkv-dora`:
        `spec` on q, k, v and, where `spec` is DoRA, the magnitude alone on o, gate, up, down (the
        paper's granularity study, Table 6).

        Raises:
            ValueError: for an unknown name, with the nearest one.
        """
        if name == GRANULAR_PRESET:
            rules = [(r"(?:q|k|v)_proj", spec)]
            if spec.method == "dora":
                magnitude_only = dataclasses.replace(spec, method="magnitude")
                rules.append((r"(?:o|gate|up|down)_proj", magnitude_only))
            return cls(rules)
        if name not in PRESETS:
            allowed = [*PRESETS, GRANULAR_PRESET]
            raise ValueError(
                f"unknown module preset {name!r}{nearest(name, allowed)}; "
                f"there are {', '.join(allowed)}"
            )
        return cls([(pattern, spec) for pattern in PRESETS[name]])

    def spec_for(self, path: str, weight: str = "kernel") -> AdapterSpec:
        """Return the spec of the module at `path` whose weight leaf is called `weight`."""
        index = self._first_match(path, weight)
        return FROZEN if index is None else self.rules[index][1]

    def resolve(self, modules: Iterable[tuple[str, str]]) -> dict[str, AdapterSpec]:
        """Return the spec of each module, given as (path, name of its weight leaf).

        Raises:
            ValueError: when a rule matches no module at all; names the nearest paths. A rule
                that is merely shadowed by earlier ones is an error too.
        """
        modules = list(modules)
        matches = {path: self._first_match(path, weight) for path, weight in modules}
        used = set(matches.values())
        for index, (pattern, _) in enumerate(self.rules):
            if index not in used:
                raise ValueError(self._unused(index, pattern, modules))
        return {p: FROZEN if i is None else self.rules[i][1] for p, i in matches.items()}

    def _first_match(self, path: str, weight: str) -> int | None:
        for index, (pattern, _) in enumerate(self.rules):
            anchored = re.compile(rf"(?:.*/)?(?:{pattern})")
            if anchored.fullmatch(path) or anchored.fullmatch(f"{path}/{weight}"):
                return index
        return None

    def _unused(self, index: int, pattern: str, modules: list[tuple[str, str]]) -> str:
        shadowed = AdapterRules([self.rules[index]])
        if any(shadowed._first_match(p, w) is not None for p, w in modules):
            return f"rule {pattern!r} has no effect: earlier rules match all of its modules"
        paths = [path for path, _ in modules]
        tails = {path.rsplit("/", 1)[-1]: path for path in paths}
        words = re.findall(r"\w+", pattern)
        close = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.4)
        for word in words:
            close += [tails[t] for t in difflib.get_close_matches(word, tails, n=2, cutoff=0.6)]
        close = list(dict.fromkeys(close)) or paths[:5]
        return f"rule {pattern!r} matches no module; near misses: {', '.join(close) or 'none'}"
