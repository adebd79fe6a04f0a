"""Typed configs: everything that a run depends on, validated when built.

An experiment is a Python file that sets `config = ExperimentConfig(...)`; the command line can
override any field (`--optim.learning-rate 1e-4`). The docstring under a field is its help text.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from dora_jax.analysis.results import Published
from dora_jax.data.examples import Form, Packing, TooLong, TrainOn
from dora_jax.errors import DoraError
from dora_jax.mesh import MeshConfig
from dora_jax.models.llama import AttentionKernel, Remat
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
from dora_jax.training.trackers import TrackerName


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise DoraError(f"{name} must be {allowed}; got {value!r}")


def _require_choice(name: str, value: object, choices: Any) -> None:
    allowed = get_args(choices)
    words = f"one of {', '.join(map(repr, allowed))}"
    if value not in allowed:
        raise DoraError(f"{name} must be {words}; got {value!r}{nearest(value, allowed)}")


def _require_seed(name: str, seed: int) -> None:
    # What the random keys hold: larger seeds would repeat smaller ones.
    _require(0 <= seed < 2**32, name, seed, "at least 0 and below 2**32")


Dtype = Literal["float32", "bfloat16"]
Protocol = Literal["likelihood", "generate"]
Executor = Literal["here", "processes", "ray", "slurm"]
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
# Fields that change no result: where it is done and kept, and who looks on; of `data`, who makes
# the batches.
NO_RESULT = ("out", "mesh", "track", "profile", "execute", "published")
WORK_ALONE = ("read_ahead", "workers")


def _require_count(name: str, value: object) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    _require(whole and value >= 1, name, value, "a whole number of at least 1")  # type: ignore[operator]


def _require_pattern(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise DoraError(f"{name}: {pattern!r} is not a regular expression: {error}") from None


def _require_count_or_none(name: str, value: object) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    _require(whole and value >= 0, name, value, "a whole number of at least 0")  # type: ignore[operator]


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
        _require_choice("model.dtype", self.dtype, Dtype)
        _require_choice("model.remat", self.remat, Remat)
        _require_choice("model.attention", self.attention, AttentionKernel)
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
    code wrote it), or none (prompt and completion as they stand)."""
    train_on: TrainOn = "answers"
    """What carries a label: answers (all of a conversation's) or all."""
    max_length: int = 256
    """Longest row in tokens, and the length of packed rows."""
    too_long: TooLong = "drop"
    """What happens to longer rows, which are counted and reported in any case: drop, truncate_left
    (the prompt's beginning goes), truncate_right (the answer's end goes) or error."""
    packing: Packing = "none"
    """How rows become batches: none pads all to the longest; pack puts several into a row of
    max_length, none of which sees another; bucket pads rows of like length to a few lengths."""
    buckets: int = 4
    """Lengths of packing bucket, at most: each one is compiled."""
    eval_batch_size: int = 16
    """Rows scored at once."""
    read_ahead: int = 2
    """Batches made before the step asks for them; 0 makes each when it does. Same batches."""
    workers: int = 0
    """Processes that make batches; 0: threads of this one. Same batches."""

    def __post_init__(self) -> None:
        for name in ("train", "eval"):
            if isinstance(getattr(self, name), str):  # as experiment files write it
                object.__setattr__(self, name, Path(getattr(self, name)))
        mix: Any = self.mix
        given_mix = mix.items() if isinstance(mix, dict) else mix
        object.__setattr__(self, "mix", tuple((str(name), float(w)) for name, w in given_mix))
        for name in ("train_rows", "eval_rows", "max_length", "eval_batch_size", "buckets"):
            _require_count(f"data.{name}", getattr(self, name))
        for name in ("read_ahead", "workers", "validation_rows"):
            _require_count_or_none(f"data.{name}", getattr(self, name))
        for name, choices in (
            ("form", Form),
            ("train_on", TrainOn),
            ("too_long", TooLong),
            ("packing", Packing),
        ):
            _require_choice(f"data.{name}", getattr(self, name), choices)
        _require_seed("data.seed", self.seed)
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
                _require(0 < weight < math.inf, f"data.mix, weight of {name}", weight, allowed)
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "protocols", tuple(self.protocols))
        name, given = "evaluation.protocols", self.protocols
        _require(len(given) > 0, name, given, "at least one protocol")
        for protocol in given:
            _require_choice(name, protocol, Protocol)
        _require(len(set(given)) == len(given), name, given, "without repeats")
        for name in ("beams", "new_tokens"):
            _require_count(f"evaluation.{name}", getattr(self, name))


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
    init: Init = "kaiming"
    """Of the low-rank factors: kaiming, gaussian, normal or normal_b."""
    bias: Bias = "none"
    """Biases that train beside the adapters: none, lora_only (of the adapted modules) or all."""
    modules_to_save: tuple[str, ...] = ()
    """Modules that train in full beside the adapters, by the end of their path: lm_head, norm."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules_to_save", tuple(self.modules_to_save))  # JSON's lists
        _require_choice("adapter.bias", self.bias, Bias)
        for pattern in self.modules_to_save:
            _require_pattern("adapter.modules_to_save", pattern)
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
        _require_choice("optim.optimizer", self.optimizer, OptimizerName)
        rate = self.learning_rate
        _require(math.isfinite(rate) and rate > 0, "optim.learning_rate", rate, "positive")
        _require_choice("optim.schedule", self.schedule, Schedule)
        for name in ("warmup_ratio", "decay_ratio"):
            share = getattr(self, name)
            _require(0 <= share <= 1, f"optim.{name}", share, "in [0, 1]")
        ratios: Any = self.rate_ratios
        given = ratios.items() if isinstance(ratios, dict) else ratios
        object.__setattr__(self, "rate_ratios", tuple((str(p), float(r)) for p, r in given))
        for pattern, ratio in self.rate_ratios:
            allowed = "finite and at least 0"
            _require(0 <= ratio < math.inf, f"optim.rate_ratios of {pattern}", ratio, allowed)
        for pattern in (*self.no_decay, *(pattern for pattern, _ in self.rate_ratios)):
            _require_pattern("optim", pattern)
        decay = self.weight_decay
        _require(0 <= decay < math.inf, "optim.weight_decay", decay, "finite and at least 0")
        _require(self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "positive")
        for name in ("beta1", "beta2", "ema"):
            value = getattr(self, name)
            _require(value is None or 0 <= value < 1, f"optim.{name}", value, "in [0, 1)")
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
        _require_choice("train.method", self.method, RunMethod)
        _require(self.method != "frozen", "train.method", self.method, "a method that trains")
        for name in ("steps", "batch_size", "micro_batches", "checkpoint_every", "bad_steps"):
            _require_count(f"train.{name}", getattr(self, name))
        smoothing, alpha = self.label_smoothing, self.neftune_alpha
        _require(0 <= smoothing < 1, "train.label_smoothing", smoothing, "in [0, 1)")
        _require(0 <= alpha < math.inf, "train.neftune_alpha", alpha, "finite and at least 0")
        for name in ("validate_every", "patience"):
            _require_count_or_none(f"train.{name}", getattr(self, name))
        _require_choice("train.select", self.select, Literal["last", "best"])
        for name, given in (("patience", self.patience), ("select", self.select == "best")):
            if given and not self.validate_every:
                raise DoraError(f"train.{name} needs train.validate_every: nothing is measured")
        if self.batch_size % self.micro_batches:
            raise DoraError(
                f"train.batch_size ({self.batch_size}) must be a multiple of train.micro_batches "
                f"({self.micro_batches})"
            )


@dataclass(frozen=True)
class CompareConfig:
    """The comparison: every method gets the same search over the same rates, on validation rows."""

    methods: tuple[RunMethod, ...] = ("lora", "dora")
    """Methods to compare, at every point of the grid."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Rates tried for every method; the one of least validation loss is used."""
    search_steps: int = 30
    """Steps of each trial; 0 skips the search and uses optim.learning_rate for all."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Arms to hold against each other beside those of one point of the grid, by name:
    dora-rank8 lora-rank16."""

    def __post_init__(self) -> None:
        _require(len(self.methods) > 0, "compare.methods", self.methods, "at least one method")
        for method in self.methods:
            _require_choice("compare.methods", method, RunMethod)
        _require(
            len(set(self.methods)) == len(self.methods),
            "compare.methods",
            self.methods,
            "without repeats",
        )
        _require(
            "frozen" not in self.methods, "compare.methods", self.methods, "methods that train"
        )
        _require(
            len(self.learning_rates) > 0
            and all(math.isfinite(r) and r > 0 for r in self.learning_rates),
            "compare.learning_rates",
            self.learning_rates,
            "positive rates",
        )
        _require(
            # The trials' folders are named so.
            len({f"{rate:g}" for rate in self.learning_rates}) == len(self.learning_rates),
            "compare.learning_rates",
            self.learning_rates,
            "rates that differ in their first six digits",
        )
        _require(self.search_steps >= 0, "compare.search_steps", self.search_steps, "at least 0")


@dataclass(frozen=True)
class GridAxis:
    """One axis of a grid.

    Attributes:
        fields: what varies along it, by dotted path; several vary together.
        values: at each place, one value for each field.
    """

    fields: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]

    @classmethod
    def parse(cls, text: str) -> "GridAxis":
        """Read an axis from the command line: `adapter.rank=4,8`.

        Fields that vary together are joined by `+`, as are their values:
        `adapter.rank+adapter.alpha=4+8,8+16`. A value that holds a comma or plus is written in a
        JSON list of all values: `adapter.modules=["(q|k)_proj"]`.
        """
        names, equals, given = text.partition("=")
        fields = tuple(name.strip() for name in names.split("+"))
        if not equals or not given.strip():
            raise DoraError(f"grid {text!r}: give FIELD=VALUE,VALUE, such as adapter.rank=4,8")
        if given.lstrip().startswith("["):
            try:
                values = json.loads(given)
            except json.JSONDecodeError as error:
                raise DoraError(f"grid {text!r}: is not a JSON list ({error})") from None
        else:
            values = [
                [_json_or_text(part) for part in value.split("+")]
                if len(fields) > 1
                else _json_or_text(value)
                for value in given.split(",")
            ]
        return cls.of(fields, values)

    @classmethod
    def of(cls, fields: Sequence[str], values: Sequence[Any]) -> "GridAxis":
        """Make an axis of values, each a sequence where several fields vary together."""
        rows = [tuple(value) if len(fields) > 1 else (value,) for value in values]
        return cls(tuple(fields), tuple(rows))

    def __str__(self) -> str:
        values = [row if len(self.fields) > 1 else row[0] for row in self.values]
        return f"{'+'.join(self.fields)}={json.dumps(values)}"

    def __post_init__(self) -> None:
        name = "+".join(self.fields)
        for row in self.values:
            if len(row) != len(self.fields):
                raise DoraError(f"grid over {name}: {row!r} must give {len(self.fields)} values")
        if len({repr(row) for row in self.values}) < len(self.values) or not self.values:
            raise DoraError(f"grid over {name}: give each value once; got {self.values!r}")


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text.strip()


@dataclass(frozen=True)
class ExecuteConfig:
    """Where the runs of a comparison are carried out; their results are the same."""

    executor: Executor = "here"
    """here (one after another, in this process), processes (side by side on this machine), ray (on
    the cluster that is running, or on this machine) or slurm (as jobs)."""
    workers: int = 2
    """Runs at once, of processes and slurm."""
    gpus: tuple[str, ...] = ()
    """Of processes: GPUs to hand out, one a run, by CUDA number; none shares out the CPU cores."""
    gpus_per_run: int = 0
    """Of ray and slurm: GPUs of each run."""
    cpus_per_run: int = 1
    """Of ray and slurm: CPU cores of each run."""
    address: str = ""
    """Of ray: the cluster's address; empty takes the one around, or starts one on this machine."""
    partition: str = ""
    """Of slurm: the partition; empty takes the cluster's default."""
    minutes: int = 720
    """Of slurm: a job's time limit."""
    reuse: bool = True
    """Take finished runs of the same config, data and code from other comparisons beside this."""

    def __post_init__(self) -> None:
        _require_choice("execute.executor", self.executor, Executor)
        for name in ("workers", "cpus_per_run", "minutes"):
            _require_count(f"execute.{name}", getattr(self, name))
        _require_count_or_none("execute.gpus_per_run", self.gpus_per_run)
        object.__setattr__(self, "gpus", tuple(str(gpu) for gpu in self.gpus))


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment, for `dora-jax train`, `compare` and `evaluate` alike."""

    name: str = "experiment"
    """Names the run folder."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    grid: tuple[GridAxis, ...] = ()
    """Of `compare`: fields that vary, and their values: --grid adapter.rank=4,8 data.train_rows=
    1000,3000. An experiment file gives a dict: {"adapter.rank": (4, 8)}."""
    variants: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = ()
    """Of an experiment file, in place of compare.methods: names, and for each the fields in which
    it differs: {"DoRA, half rank": {"train.method": "dora", "adapter.rank": 8}}."""
    execute: ExecuteConfig = field(default_factory=ExecuteConfig)
    published: tuple[Published, ...] = ()
    """Published rows that the report shows beside its own; of an experiment file."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    track: tuple[TrackerName, ...] = ()
    """Where metrics go beside metrics.jsonl: tensorboard, wandb."""
    profile: int = 0
    """Steps of each run to write a profiler's trace of."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of initialisation, data order and dropout; methods share them."""
    out: Path | None = None
    """Run folder; by default runs/NAME-HASH, where the hash is of the config."""

    def __post_init__(self) -> None:
        _require(
            re.fullmatch(r"[\w.-]+", self.name) is not None, "name", self.name, "a plain file name"
        )
        if isinstance(self.out, str):
            object.__setattr__(self, "out", Path(self.out))
        self._check_varying()
        for name in self.track:
            _require_choice("track", name, TrackerName)
        _require_count_or_none("profile", self.profile)
        _require(len(self.seeds) > 0, "seeds", self.seeds, "at least one seed")
        for seed in self.seeds:
            _require_seed("seeds", seed)
        _require(len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "without repeats")

    def _check_varying(self) -> None:
        """Bring the grid and the variants into one shape, and check the fields that they name."""
        given: Any = self.grid
        if isinstance(given, dict):
            given = [GridAxis.of(name.split("+"), values) for name, values in given.items()]
        axes = tuple(GridAxis.parse(axis) if isinstance(axis, str) else axis for axis in given)
        object.__setattr__(self, "grid", axes)
        variants: Any = self.variants
        if isinstance(variants, dict):
            variants = [(name, fields.items()) for name, fields in variants.items()]
        variants = tuple((str(n), tuple((str(p), v) for p, v in f)) for n, f in variants)
        object.__setattr__(self, "variants", variants)
        paths = [path for axis in axes for path in axis.fields]
        for path in paths:
            _require_varies("grid", path)
            if path in SEARCHED and self.compare.search_steps:
                raise DoraError(
                    f"grid: {path} is searched for by each method: give --compare.search-steps 0 "
                    "to vary it in the grid instead"
                )
        if len(set(paths)) < len(paths):
            raise DoraError(f"grid: {', '.join(paths)}: each field may vary once")
        for name, fields in variants:
            for path, _ in fields:
                if path not in ("train.method", "compare.learning_rates"):
                    _require_varies(f"variant {name!r}", path)

    def settings(self) -> dict[str, Any]:
        """Return all that the results depend on, as plain JSON.

        A run may go on where there are other devices, and be looked at in other ways.
        """
        settings = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        for name in NO_RESULT:
            settings.pop(name)
        for name in WORK_ALONE:
            settings["data"].pop(name)
        return settings

    def run_folder(self) -> Path:
        """Return the folder of this run."""
        if self.out is not None:
            return self.out
        return Path("runs") / f"{self.name}-{digest(self.settings())}"


# The search's own field; and what a grid and a variant may not change, with the way out.
SEARCHED = ("optim.learning_rate",)
_FIXED = {
    "seeds": "give --seeds",
    "train.method": "give --compare.methods",
    "model.name": "a comparison has one model: run one for each",
    "data.eval": "all arms are scored on the same rows: run a comparison for each",
}
_SECTIONS: dict[str, Any] = {
    "model": ModelConfig,
    "data": DataConfig,
    "adapter": AdapterConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
}


def _require_varies(where: str, path: str) -> None:
    """Check that a grid or a variant may set a field."""
    if path in _FIXED:
        raise DoraError(f"{where}: {path} does not vary so: {_FIXED[path]}")
    allowed = [
        f"{section}.{item.name}"
        for section, kind in _SECTIONS.items()
        for item in dataclasses.fields(kind)
    ]
    if path not in allowed:
        raise DoraError(
            f"{where}: {path!r} is not a field that may vary{nearest(path, allowed)}; those are "
            f"the fields of {', '.join(_SECTIONS)}"
        )


def digest(settings: Any) -> str:
    """Return 8 hexadecimal digits that name a JSON value."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
