"""What a comparison compares: methods, or named variants, at every point of a grid.

An arm is a config of its own, in which nothing is left to vary but the seed. Two arms that would
train alike are one: `magnitude` has no rank, so a grid over ranks holds it once.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from dora_jax.analysis.grid_words import point_text, value_text
from dora_jax.analysis.results import METHOD_LABELS
from dora_jax.errors import DoraError
from dora_jax.training.checks import of_kind
from dora_jax.training.config import AdapterConfig, ExperimentConfig, GridAxis, RunMethod

_LOW_RANK = ("rank", "alpha", "scaling", "dropout", "dropout_style", "init")
_NORM = ("norm_axis", "detach_norm")
_ALL = tuple(field.name for field in dataclasses.fields(AdapterConfig))
# Fields of `adapter` that say nothing to a method.
_IGNORED: dict[str, tuple[str, ...]] = {
    "lora": (*_NORM, "dropout_style"),
    "dora": (),
    "magnitude": _LOW_RANK,
    "full": (*_LOW_RANK, *_NORM),
    "bitfit": _ALL,
    "norms": _ALL,
}


@dataclass(frozen=True)
class ArmPlan:
    """An arm, and how it is run.

    Attributes:
        name: a plain file name.
        label: for people.
        method: what it tunes by.
        point: its values on the grid's axes, by the axis's first field.
        start: the method or variant that it is at this point of the grid.
        config: the experiment with the arm's values and nothing else to compare.
    """

    name: str
    label: str
    method: RunMethod
    point: dict[str, Any]
    start: str
    config: ExperimentConfig

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates that are tried for it; without a search the one that is given."""
        compare, given = self.config.compare, self.config.optim.learning_rate
        return compare.learning_rates if compare.search_steps else (given,)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that it is run with."""
        return self.config.seeds[: self.config.compare.first_seeds or None]

    @property
    def baseline(self) -> bool:
        """Whether it is shown beside the others and compared with none of them."""
        return self.config.compare.baseline

    def settings(self) -> dict[str, Any]:
        """Return what its result depends on but seed and rate, as plain JSON.

        What its method ignores is left out.
        """
        settings = self.config.settings()
        for name in ("name", "compare", "grid", "variants", "seeds"):
            settings.pop(name)
        settings["optim"].pop("learning_rate")
        for name in _IGNORED[self.method]:
            settings["adapter"].pop(name)
        return settings


def make_arms(config: ExperimentConfig) -> tuple[ArmPlan, ...]:
    """Return the arms of an experiment, in the order in which they are run.

    Raises:
        DoraError: for a field of the grid or of a variant that is unknown, cannot vary, or refuses
            its value; where all variants are baselines, or a pair that is asked for has one.
    """
    starts = _variants(config) if config.variants else _methods(config)
    points = list(itertools.product(*(axis.values for axis in config.grid)))
    found: dict[str, ArmPlan] = {}
    for name, label, base in starts:
        for values in points:
            arm = _arm(name, label, base, dict(zip(config.grid, values, strict=True)))
            # The first of those that train alike stands for all.
            identity = [arm.settings(), arm.rates, arm.seeds, arm.baseline]
            found.setdefault(json.dumps(identity, sort_keys=True), arm)
    arms = tuple(found.values())
    names = [arm.name for arm in arms]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise DoraError(f"two arms would be called {min(repeated)!r}: rename a variant")
    if len({len(arm.rates) for arm in arms}) > 1:
        raise DoraError(
            "compare.learning_rates must be as many for every variant: each has the same search"
        )
    baselines = [arm.name for arm in arms if arm.baseline]
    if baselines == names:
        raise DoraError(
            "compare.baseline: every arm is a baseline, and nothing is compared: set it for some "
            "of the variants, not for all"
        )
    for pair in config.compare.pairs:
        for name in pair:
            if name not in names:
                raise DoraError(f"compare.pairs names {name!r}; the arms are {', '.join(names)}")
            if name in baselines:
                raise DoraError(
                    f"compare.pairs names {name!r}, a baseline, which is in no pair: leave its "
                    "compare.baseline out, or the pair"
                )
    return arms


def _alone(config: ExperimentConfig, method: RunMethod) -> ExperimentConfig:
    return dataclasses.replace(
        config,
        grid=(),
        variants=(),
        train=dataclasses.replace(config.train, method=method),
        compare=dataclasses.replace(config.compare, methods=(method,), pairs=()),
    )


def _methods(config: ExperimentConfig) -> list[tuple[str, str, ExperimentConfig]]:
    return [
        (method, METHOD_LABELS.get(method, method), _alone(config, method))
        for method in config.compare.methods
    ]


def _variants(config: ExperimentConfig) -> list[tuple[str, str, ExperimentConfig]]:
    found = []
    for label, fields in config.variants:
        changed = config
        for path, value in fields:
            changed = _replaced(changed, path, value, f"variant {label!r}")
        found.append((_file_name(label), label, _alone(changed, changed.train.method)))
    return found


def _arm(
    name: str, label: str, config: ExperimentConfig, point: Mapping[GridAxis, tuple[Any, ...]]
) -> ArmPlan:
    start = name
    ignored = [f"adapter.{field}" for field in _IGNORED[config.train.method]]
    shown: dict[str, Any] = {}
    for axis, values in point.items():
        for path, value in zip(axis.fields, values, strict=True):
            config = _replaced(config, path, value, "grid")
        if not all(path in ignored for path in axis.fields):
            shown[axis.fields[0]] = values[0]
    for path, value in shown.items():
        name += f"-{path.rsplit('.', 1)[-1]}{_file_name(value_text(value))}"
    label += point_text(shown)
    return ArmPlan(name, label, config.train.method, shown, start, config)


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-").lower()


def _replaced(config: ExperimentConfig, path: str, value: Any, where: str) -> ExperimentConfig:
    """Return a config with one dotted field replaced."""
    section, name = path.split(".")
    given = getattr(config, section)
    try:
        value = of_kind(path, value, get_type_hints(type(given))[name])
        inner = dataclasses.replace(given, **{name: value})
        return dataclasses.replace(config, **{section: inner})
    except (TypeError, ValueError) as error:
        raise DoraError(f"{where}: {path} {value!r} is refused: {error}") from None
    except DoraError as error:
        raise DoraError(f"{where}: {error}") from None
