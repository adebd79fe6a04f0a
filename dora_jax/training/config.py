"""Typed configs: everything that a run depends on, validated when built.

An experiment is a Python file that sets `config = ExperimentConfig(...)`; the command line can
override any field (`--optim.learning-rate 1e-4`). The docstring under a field is its help text.
"""

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dora_jax.analysis.results import Published
from dora_jax.errors import DoraError
from dora_jax.mesh import MeshConfig
from dora_jax.training.checks import (
    require,
    require_choice,
    require_count,
    require_seed,
)
from dora_jax.training.grid import SEARCHED, GridAxis, require_varies
from dora_jax.training.sections import (
    AdapterConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimConfig,
    Protocol,
    RunMethod,
    TrainConfig,
)
from dora_jax.training.trackers import TrackerName

__all__ = [
    "AdapterConfig",
    "CompareConfig",
    "DataConfig",
    "EvaluationConfig",
    "ExecuteConfig",
    "ExperimentConfig",
    "GridAxis",
    "ModelConfig",
    "OptimConfig",
    "Protocol",
    "RunMethod",
    "TrainConfig",
    "digest",
]

Executor = Literal["here", "processes", "ray", "slurm"]
# Fields that change no result: where it is done and kept, and who looks on; of `data`, who makes
# the batches, and where the images are (which are told by their names and sizes).
NO_RESULT = ("out", "mesh", "track", "profile", "execute", "published")
WORK_ALONE = ("read_ahead", "workers", "image_folder")
# What a variant may change beside what a grid may.
OF_A_VARIANT = (
    "train.method",
    "compare.learning_rates",
    "compare.first_seeds",
    "compare.baseline",
)


@dataclass(frozen=True)
class CompareConfig:
    """The comparison: every method gets the same search over the same rates, on validation rows."""

    methods: tuple[RunMethod, ...] = ("lora", "dora")
    """Methods to compare, at every point of the grid."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Rates tried for every method; the one of least validation loss is used, the mean over the
    tasks of the validation rows."""
    search_steps: int = 30
    """Steps of each trial; 0 skips the search and uses optim.learning_rate for all."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Arms to hold against each other beside those of one point of the grid, by name:
    dora-rank8 lora-rank16."""
    first_seeds: int = 0
    """Of a variant that is dear: run it with so many of the seeds alone, the first; 0 is all."""
    baseline: bool = False
    """Of a variant that is there to be far from the others, such as one without images: it is
    reported beside them with its interval, and is in no pair, so that it costs them no power."""

    def __post_init__(self) -> None:
        require(len(self.methods) > 0, "compare.methods", self.methods, "at least one method")
        for method in self.methods:
            require_choice("compare.methods", method, RunMethod)
        require(
            len(set(self.methods)) == len(self.methods),
            "compare.methods",
            self.methods,
            "without repeats",
        )
        require("frozen" not in self.methods, "compare.methods", self.methods, "methods that train")
        require(
            len(self.learning_rates) > 0
            and all(math.isfinite(r) and r > 0 for r in self.learning_rates),
            "compare.learning_rates",
            self.learning_rates,
            "positive rates",
        )
        require(
            # The trials' folders are named so.
            len({f"{rate:g}" for rate in self.learning_rates}) == len(self.learning_rates),
            "compare.learning_rates",
            self.learning_rates,
            "rates that differ in their first six digits",
        )
        require(self.search_steps >= 0, "compare.search_steps", self.search_steps, "at least 0")
        require_count("compare.first_seeds", self.first_seeds, least=0)


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
        require_choice("execute.executor", self.executor, Executor)
        for name in ("workers", "cpus_per_run", "minutes"):
            require_count(f"execute.{name}", getattr(self, name))
        require_count("execute.gpus_per_run", self.gpus_per_run, least=0)
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
        require(
            re.fullmatch(r"[\w.-]+", self.name) is not None, "name", self.name, "a plain file name"
        )
        if isinstance(self.out, str):
            object.__setattr__(self, "out", Path(self.out))
        self._check_varying()
        for name in self.track:
            require_choice("track", name, TrackerName)
        require_count("profile", self.profile, least=0)
        require(len(self.seeds) > 0, "seeds", self.seeds, "at least one seed")
        for seed in self.seeds:
            require_seed("seeds", seed)
        require(len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "without repeats")

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
            require_varies("grid", path)
            if path in SEARCHED and self.compare.search_steps:
                raise DoraError(
                    f"grid: {path} is searched for by each method: give --compare.search-steps 0 "
                    "to vary it in the grid instead"
                )
        if len(set(paths)) < len(paths):
            raise DoraError(f"grid: {', '.join(paths)}: each field may vary once")
        for name, fields in variants:
            for path, _ in fields:
                if path not in OF_A_VARIANT:
                    require_varies(f"variant {name!r}", path)

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


def digest(settings: Any) -> str:
    """Return 8 hexadecimal digits that name a JSON value."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
