"""The sections of an experiment that say how one thing is trained and scored."""

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dora_jax.data.examples import BadImages, Form, Images, Packing, Texts, TooLong, TrainOn
from dora_jax.errors import DoraError
from dora_jax.models.attention import AttentionKernel
from dora_jax.models.remat import Remat
from dora_jax.spec import (
    GRANULAR_PRESET,
    PRESETS,
    AdapterRules,
    AdapterSpec,
    DropoutStyle,
    Init,
    NormAxis,
    Scaling,
    nearest,
)
from dora_jax.training.checks import (
    require,
    require_choice,
    require_count,
    require_pattern,
    require_seed,
)

Dtype = Literal["float32", "bfloat16"]
Protocol = Literal["likelihood", "generate"]
Bias = Literal["none", "all", "lora_only"]
# What a run tunes by: a module's methods, and two that have no adapters.
RunMethod = Literal["frozen", "full", "lora", "dora", "magnitude", "bitfit", "norms"]
Schedule = Literal["linear", "cosine", "constant", "wsd"]
OptimizerName = Literal["adamw", "nadamw", "lion", "adafactor", "muon", "sgd"]
_BETAS: dict[str, tuple[str, ...]] = {
    "adamw": ("beta1", "beta2"),
    "nadamw": ("beta1", "beta2"),
    "lion": ("beta1", "beta2"),
    "adafactor": (),
    "muon": ("beta1",),
    "sgd": ("beta1",),
}


@dataclass(frozen=True)
class ModelConfig:
    """Which model is tuned."""

    name: str = "smollm2-135m-instruct"
    """A name that `dora-jax models` lists, a Hugging Face folder, or a GGUF file."""
    dtype: Dtype = "float32"
    """Compute dtype of the forward and backward passes; adapters and norms stay float32."""
    remat: Remat = "dots"
    """What the backward pass recomputes: none, dots (all but products with weights), or full: see
    docs/cost.md. dots takes a third of none's memory, and is no slower."""

    attention: AttentionKernel = "xla"
    """How training's attention is computed: xla, or cudnn (flash; NVIDIA GPUs and bfloat16)."""

    def __post_init__(self) -> None:
        if self.dtype == "float16":
            raise DoraError(
                "model.dtype 'float16' is refused: its small gradients become zero without a loss "
                "scale; bfloat16 costs the same and has float32's range"
            )
        require_choice("model.dtype", self.dtype, Dtype)
        require_choice("model.remat", self.remat, Remat)
        require_choice("model.attention", self.attention, AttentionKernel)
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise DoraError("model.attention 'cudnn' needs model.dtype 'bfloat16'")


@dataclass(frozen=True)
class DataConfig:
    """What is learned: the embedded world-knowledge task, or your own rows."""

    train: Path | None = None
    """Rows to train on: JSONL (.gz too), JSON, Parquet, a folder or a pattern of such files, what
    `datasets` saved, or hub:OWNER/NAME; none takes the embedded task."""
    mix: tuple[tuple[str, float], ...] = ()
    """Several sources by weight, in place of train: --data.mix a.jsonl 3 b.jsonl 1. An experiment
    file may give a dict."""
    eval: Path | None = None
    """Rows to evaluate on, from the same kinds of sources; required with train and mix."""
    form: Form = "as_given"
    """as_given, or cloze: rows that list their options under labels (answer1, answer2, ...) are
    asked without the list, and the answer is the option's own text."""
    relations: tuple[str, ...] = ()
    """Relations of the embedded task; none takes its default mix."""
    train_rows: int = 3000
    """Rows to train on, at most."""
    validation_rows: int = 120
    """Rows for choosing learning rates: from train with JSONL, of other entities if embedded. May
    be 0 where nothing is searched for."""
    eval_rows: int = 600
    """Rows to evaluate on, at most."""
    seed: int = 0
    """Of the choice of entities and rows (not of training)."""
    prompt: str = "plain"
    """Prompt template: plain, chat, alpaca (the paper's, clean), alpaca-indented (as its authors'
    code wrote it), vicuna (LLaVA-1.5's v1), llava-plain (images alone: LLaVA's first stage), or
    none (prompt and completion as they stand)."""
    train_on: TrainOn = "answers"
    """What carries a label: answers (all of a conversation's) or all."""
    max_length: int = 256
    """Longest row to train on in tokens, and the length of packed rows."""
    too_long: TooLong = "drop"
    """What happens to longer rows, which are counted and reported in any case: drop, truncate_left
    (the prompt's beginning goes), truncate_right (the answer's end goes, of a conversation whole
    turns; with train_on all the text's, prompt included) or error."""
    packing: Packing = "none"
    """How rows become batches: none pads all to the longest; pack puts several into a row of
    max_length, none of which sees another; bucket pads rows of like length to a few lengths."""
    buckets: int = 4
    """Lengths of packing bucket, at most: each one is compiled."""
    eval_batch_size: int = 16
    """Rows scored at once."""
    image_folder: Path | None = None
    """Where the rows' images are; none is the folder of the rows' file."""
    features: Path | None = None
    """Of models that read features of images (VL-BART): where they are, see docs/vl_data.md; the
    rows' images are names in it."""
    frame_seconds: float | None = None
    """Seconds of a clip that one of its features stands for (VALUE's: 1.5), so that a row's `span`
    is cut out of it; rows that have one are refused without it."""
    images: Images = "use"
    """use, or leave_out: what text alone tells, for a model that sees or one that does not."""
    texts: Texts = "use"
    """use, or leave_out: what images alone tell. Of each prompt its first word is left, such as
    VL-BART's vqa:, which says what is wanted."""
    bad_images: BadImages = "skip"
    """What happens to rows whose image is missing or broken, which are counted and reported in any
    case: skip or error."""
    read_ahead: int = 2
    """Batches made before the step asks for them; 0 makes each when it does. Same batches."""
    workers: int = 0
    """Processes that make batches; 0: threads of this one. Same batches."""

    def __post_init__(self) -> None:
        for name in ("train", "eval", "image_folder", "features"):
            if isinstance(getattr(self, name), str):  # as experiment files write it
                object.__setattr__(self, name, Path(getattr(self, name)))
        mix: Any = self.mix
        given_mix = mix.items() if isinstance(mix, dict) else mix
        object.__setattr__(self, "mix", tuple((str(name), float(w)) for name, w in given_mix))
        for name in ("train_rows", "eval_rows", "max_length", "eval_batch_size", "buckets"):
            require_count(f"data.{name}", getattr(self, name))
        for name in ("read_ahead", "workers", "validation_rows"):
            require_count(f"data.{name}", getattr(self, name), least=0)
        for name, choices in (
            ("form", Form),
            ("train_on", TrainOn),
            ("too_long", TooLong),
            ("packing", Packing),
            ("images", Images),
            ("texts", Texts),
            ("bad_images", BadImages),
        ):
            require_choice(f"data.{name}", getattr(self, name), choices)
        require_seed("data.seed", self.seed)
        seconds = self.frame_seconds
        if seconds is not None:
            require(0 < seconds < math.inf, "data.frame_seconds", seconds, "positive and finite")
        if self.workers and not self.read_ahead:
            raise DoraError("data.workers make batches ahead: data.read_ahead must not be 0")
        self._check_sources()

    def _check_sources(self) -> None:
        if self.mix:
            names = [name for name, _ in self.mix]
            if self.train is not None:
                raise DoraError("data.train and data.mix are both given: give one of them")
            if len(set(names)) < len(names):
                raise DoraError(f"data.mix must be without repeats; got {', '.join(names)}")
            for name, weight in self.mix:
                allowed = "positive and finite"
                require(0 < weight < math.inf, f"data.mix, weight of {name}", weight, allowed)
        trains = "mix" if self.mix else "train" if self.train else None
        if (trains is None) != (self.eval is None):
            given, other = (trains, "eval") if trains else ("eval", "train")
            raise DoraError(f"data.{given} is given without data.{other}: give both files")
        if trains and self.relations:
            raise DoraError(
                f"data.relations belongs to the embedded task; data.{trains} replaces it"
            )

    def sources(self) -> tuple[tuple[str, float], ...]:
        """Return the sources to train on with their weights; none for the embedded task."""
        return self.mix if self.train is None else ((str(self.train), 1.0),)


@dataclass(frozen=True)
class EvaluationConfig:
    """How rows with options are scored; free answers are written and matched word for word."""

    protocols: tuple[Protocol, ...] = ("likelihood",)
    """likelihood (the likeliest option, per byte) and generate (the first option named in what the
    model writes, as in the paper); the first one is what methods are judged by."""
    beams: int = 4
    """Beams of generate."""
    new_tokens: int = 32
    """Tokens that generate writes, at most."""
    max_length: int | None = None
    """Longest evaluated row in tokens, with its answer or what may be written; none is what the
    model's context holds. (Of encoder-decoders data.max_length bounds evaluated texts too.)"""
    samples: int = 0
    """Rows that the report shows, with their images and what each method said."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "protocols", tuple(self.protocols))
        name, given = "evaluation.protocols", self.protocols
        require(len(given) > 0, name, given, "at least one protocol")
        for protocol in given:
            require_choice(name, protocol, Protocol)
        require(len(set(given)) == len(given), name, given, "without repeats")
        for name, least in (("beams", 1), ("new_tokens", 1), ("samples", 0)):
            require_count(f"evaluation.{name}", getattr(self, name), least)
        if self.max_length is not None:
            require_count("evaluation.max_length", self.max_length, 1)


@dataclass(frozen=True)
class AdapterConfig:
    """The adapter, the same for every method that has the part in question."""

    rank: int = 16
    """Width of the low-rank factors."""
    alpha: float = 32.0
    """Numerator of the low-rank scale."""
    modules: str = "paper"
    """Preset (paper: q k v up down; all-linear, attention, qv, qkv-dora) or a regex of paths."""
    scaling: Scaling = "standard"
    """standard: alpha / r; rslora: alpha / sqrt(r); alpha: alpha itself."""
    dropout: float = 0.0
    """On the low-rank path's input."""
    dropout_style: DropoutStyle = "low_rank"
    """low_rank, or peft (drops the input of the base path's correction as well)."""
    norm_axis: NormAxis = "out"
    """One magnitude per output feature (out, as the authors and PEFT) or per input feature (in)."""
    detach_norm: bool = True
    """Treat the norm as a constant in the backward pass (the paper, section 4.3)."""
    init: Init | str = "kaiming"
    """Of the low-rank factors: kaiming, gaussian, normal, normal_b, orthogonal, or one that takes
    directions out of the weights: pissa, pissa_niter_K (K iterations, faster), olora."""
    bias: Bias = "none"
    """Biases that train beside the adapters: none, lora_only (of the adapted modules) or all."""
    modules_to_save: tuple[str, ...] = ()
    """Modules that train in full beside the adapters, by the end of their path: lm_head, norm."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules_to_save", tuple(self.modules_to_save))  # JSON's lists
        require_choice("adapter.bias", self.bias, Bias)
        for pattern in self.modules_to_save:
            require_pattern("adapter.modules_to_save", pattern)
        self.rules("dora")

    def rules(self, method: RunMethod) -> AdapterRules:
        """Return the rules that tune the chosen modules by `method`, and what trains beside them.

        Two methods have no adapters: `bitfit` trains all biases, `norms` all norms.
        """
        full, biases = AdapterSpec("full"), AdapterSpec("frozen", train_bias=True)
        if method == "bitfit":
            return AdapterRules([(".*", biases)])
        if method == "norms":
            return AdapterRules([("scale", full)])
        fields = dataclasses.asdict(self)
        modules, bias, saved = (fields.pop(n) for n in ("modules", "bias", "modules_to_save"))
        try:
            spec = AdapterSpec(method=method, train_bias=bias != "none", **fields)
            chosen = self._chosen(modules, spec)
        except ValueError as error:
            text = re.sub("^rule ", "adapter.modules: ", str(error))
            raise DoraError(text.replace("AdapterSpec.", "adapter.")) from None
        rest = [(".*", biases)] if bias == "all" else []
        return AdapterRules([*((pattern, full) for pattern in saved), *chosen, *rest])

    def _chosen(self, modules: str, spec: AdapterSpec) -> Sequence[tuple[str, AdapterSpec]]:
        presets = [*PRESETS, GRANULAR_PRESET]
        if modules in presets:
            return AdapterRules.preset(modules, spec).rules
        hint = nearest(modules, presets)
        if hint and re.fullmatch(r"[\w-]+", modules) and not modules.endswith("_proj"):
            raise ValueError(f"adapter.modules: unknown preset {modules!r}{hint}")
        return AdapterRules([(modules, spec)]).rules


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule, the same for every method."""

    optimizer: OptimizerName = "adamw"
    """adamw, nadamw, lion, adafactor, muon (matrices by Muon, the rest by Adam) or sgd."""
    learning_rate: float = 1e-3
    """Peak rate of `train`; `compare` searches over compare.learning_rates instead."""
    schedule: Schedule = "linear"
    """After the warm-up: linear or cosine to zero, constant, or wsd (constant, then to zero)."""
    warmup_ratio: float = 0.1
    """Share of the steps over which the rate rises from zero."""
    decay_ratio: float = 0.1
    """Share of the steps over which wsd falls to zero, at the end."""
    rate_ratios: tuple[tuple[str, float], ...] = ()
    """Leaves by the end of their path, and how many times the rate they get; the first that
    matches counts. LoRA+: --optim.rate-ratios lora_b 16. An experiment file may give a dict."""
    weight_decay: float = 0.0
    """Decoupled weight decay, times the learning rate."""
    no_decay: tuple[str, ...] = ("magnitude", "bias", "scale")
    """Leaves without decay, by the end of their path."""
    clip_norm: float = 1.0
    """Global norm to which gradients are clipped."""
    beta1: float | None = None
    """First decay; momentum for sgd, muon. None is the optimizer's own (adamw: 0.9; sgd: none)."""
    beta2: float | None = None
    """Second decay. None is the optimizer's own (adamw: 0.999, lion: 0.99)."""
    ema: float = 0.0
    """Decay of the mean over steps of what is trained, which then is validated, scored and saved
    in its place; 0 keeps none."""

    def __post_init__(self) -> None:
        require_choice("optim.optimizer", self.optimizer, OptimizerName)
        rate = self.learning_rate
        require(math.isfinite(rate) and rate > 0, "optim.learning_rate", rate, "positive")
        require_choice("optim.schedule", self.schedule, Schedule)
        for name in ("warmup_ratio", "decay_ratio"):
            share = getattr(self, name)
            require(0 <= share <= 1, f"optim.{name}", share, "in [0, 1]")
        ratios: Any = self.rate_ratios
        given = ratios.items() if isinstance(ratios, dict) else ratios
        object.__setattr__(self, "rate_ratios", tuple((str(p), float(r)) for p, r in given))
        for pattern, ratio in self.rate_ratios:
            allowed = "finite and at least 0"
            require(0 <= ratio < math.inf, f"optim.rate_ratios of {pattern}", ratio, allowed)
        for pattern in (*self.no_decay, *(pattern for pattern, _ in self.rate_ratios)):
            require_pattern("optim", pattern)
        decay = self.weight_decay
        require(0 <= decay < math.inf, "optim.weight_decay", decay, "finite and at least 0")
        require(self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "positive")
        for name in ("beta1", "beta2", "ema"):
            value = getattr(self, name)
            require(value is None or 0 <= value < 1, f"optim.{name}", value, "in [0, 1)")
        unused = [name for name in ("beta1", "beta2") if name not in _BETAS[self.optimizer]]
        for name in unused:
            if getattr(self, name) is not None:
                raise DoraError(f"optim.{name} means nothing to {self.optimizer}: leave it out")

    def betas(self) -> dict[str, float]:
        """Return the decays that are given, as optax's Adam and Lion name them."""
        given = {"b1": self.beta1, "b2": self.beta2}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class TrainConfig:
    """How long, and in what batches."""

    method: RunMethod = "dora"
    """What `train` tunes; `compare` runs compare.methods instead."""
    steps: int = 100
    """Optimizer steps."""
    batch_size: int = 16
    """Rows an optimizer step."""
    micro_batches: int = 1
    """Parts that a batch is split into, one after another, to save memory; same gradients."""
    label_smoothing: float = 0.0
    """Share of each label that all tokens have alike; in training, not in what is reported."""
    neftune_alpha: float = 0.0
    """Size of the noise on embeddings in training (NEFTune; 5 is usual); 0 is none."""
    checkpoint_every: int = 25
    """Steps between checkpoints from which an interrupted run continues."""
    validate_every: int = 0
    """Steps between measurements of the validation rows' loss, without which 0 goes on."""
    patience: int = 0
    """Measurements without a better one after which training stops early; 0 never does."""
    select: Literal["last", "best"] = "last"
    """Which parameters a run ends with: those of its last step, or of its best measurement."""
    bad_steps: int = 10
    """Steps in a row whose loss or gradient may be not finite, before the run gives up. Each of
    them is skipped, counted, and its batch named in the metrics."""

    def __post_init__(self) -> None:
        require_choice("train.method", self.method, RunMethod)
        require(self.method != "frozen", "train.method", self.method, "a method that trains")
        for name in ("steps", "batch_size", "micro_batches", "checkpoint_every", "bad_steps"):
            require_count(f"train.{name}", getattr(self, name))
        smoothing, alpha = self.label_smoothing, self.neftune_alpha
        require(0 <= smoothing < 1, "train.label_smoothing", smoothing, "in [0, 1)")
        require(0 <= alpha < math.inf, "train.neftune_alpha", alpha, "finite and at least 0")
        for name in ("validate_every", "patience"):
            require_count(f"train.{name}", getattr(self, name), least=0)
        require_choice("train.select", self.select, Literal["last", "best"])
        for name, given in (("patience", self.patience), ("select", self.select == "best")):
            if given and not self.validate_every:
                raise DoraError(f"train.{name} needs train.validate_every: nothing is measured")
        if self.batch_size % self.micro_batches:
            raise DoraError(
                f"train.batch_size ({self.batch_size}) must be a multiple of train.micro_batches "
                f"({self.micro_batches})"
            )
