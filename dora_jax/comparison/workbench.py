"""What the parts of a comparison work with: the model, the data, and how they are scored."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from dora_jax.checkpoint.pretrained import Pretrained, fingerprint, load_pretrained
from dora_jax.comparison.arms import ArmPlan
from dora_jax.data.splits import Examples, read_examples
from dora_jax.data.vision import Sight
from dora_jax.data.vl.store import open_features
from dora_jax.data.vl.visuals import FeatureVision
from dora_jax.errors import DoraError
from dora_jax.evaluation.task import Score, Task, encode_task
from dora_jax.evaluation.validation import Validation
from dora_jax.models.build import SHARDING, Writer, build_model
from dora_jax.models.llama import param_shapes
from dora_jax.models.vlbart import VLBartConfig
from dora_jax.partition import Params, trainable_mask
from dora_jax.sharding import run_mesh
from dora_jax.spec import AdapterRules
from dora_jax.training.config import DataConfig, ExperimentConfig, ModelConfig
from dora_jax.training.placement import weight_sharding


@dataclass(frozen=True)
class Workbench:
    """The model and the data of some arms.

    Attributes:
        config: of one of them.
        pretrained: the model, its weights in their place and of the compute dtype.
        weights: their fingerprint.
        task: the data.
    """

    config: ExperimentConfig
    pretrained: Pretrained
    weights: str
    task: Task

    @functools.cached_property
    def plain(self) -> Writer:
        """The model without adapters."""
        return build_model(self.pretrained.config, dtype=jnp.dtype(self.config.model.dtype))

    def adapted(self, rules: AdapterRules) -> Writer:
        """The model with adapters."""
        model = self.config.model
        return build_model(
            self.pretrained.config,
            rules,
            dtype=jnp.dtype(model.dtype),
            remat=model.remat,
            attention=model.attention,
            neftune_alpha=self.config.train.neftune_alpha,
        )

    def score(
        self, params: Params, advance: Callable[[float], None] = lambda tokens: None
    ) -> Score:
        """Score plain (merged) parameters on the rows to evaluate."""
        return self.task.score(self.plain, params, advance)

    def validate(
        self, params: Params, advance: Callable[[float], None] = lambda tokens: None
    ) -> Validation:
        """Return how plain (merged) parameters do on the validation rows."""
        return self.task.validate(self.plain, params, advance)


class Workbenches:
    """The workbench of each arm, made when it is asked for; models and data are read once.

    Args:
        arms: the arms; their data are read, and the fit of the data checked, at once.

    Raises:
        DoraError: for bad data.
    """

    def __init__(self, arms: tuple[ArmPlan, ...]):
        self._examples: dict[object, Examples] = {}
        for arm in arms:
            if arm.config.data not in self._examples:
                self._examples[arm.config.data] = read_examples(arm.config.data)
        self._models: dict[object, tuple[Pretrained, str]] = {}
        self._tasks: dict[object, Task] = {}

    def of(self, arm: ArmPlan) -> Workbench:
        """Return an arm's workbench.

        Raises:
            DoraError: for a model that cannot be read, or that the arm does not suit.
        """
        config = arm.config
        model = (config.model.name, config.model.dtype)
        if model not in self._models:
            self._models[model] = load_weights(config.model)
        pretrained, weights = self._models[model]
        key = (config.data, config.evaluation, config.model.name)
        if key not in self._tasks:
            self._tasks[key] = task_of(config, self._examples[config.data], pretrained)
        return Workbench(config, pretrained, weights, self._tasks[key])


def task_of(config: ExperimentConfig, examples: Examples, pretrained: Pretrained) -> Task:
    """Return what is trained and scored on, encoded for a model.

    Raises:
        DoraError: for rows that may be longer than its context; for data that it does not read.
    """
    _check_length(config, pretrained)
    return encode_task(
        examples,
        config.data,
        pretrained.tokenizer,
        config.evaluation,
        _sight_of(pretrained, config.data),
        pretrained.start_token,
        pretrained.config.text.context_length,
    )


def _sight_of(pretrained: Pretrained, data: DataConfig) -> Sight | None:
    """Return what a model takes for the images of the data; None where it reads text alone.

    Raises:
        DoraError: when the data have features and the model does not read them.
    """
    config = pretrained.config
    if data.features is None:
        return pretrained.vision
    if not isinstance(config, VLBartConfig):
        raise DoraError(
            f"data.features is for models that read features of images, and {pretrained.name} does "
            "not: leave it out, or name a VL-BART (--model.name)"
        )
    return FeatureVision(open_features(data.features), config, data.frame_seconds)


def load_weights(model: ModelConfig) -> tuple[Pretrained, str]:
    """Return the pre-trained model, each weight in its place on the mesh around, and its name.

    The weights are of the compute dtype; the fingerprint that names them is of the file's values.
    """
    where = weight_sharding(run_mesh(), SHARDING)
    pretrained = load_pretrained(model.name, sharding=where)
    name = fingerprint(pretrained.params)
    return dataclasses.replace(pretrained, params=rounded(pretrained.params, model)), name


def rounded(params: Params, model: ModelConfig) -> Params:
    """Return weights in the compute dtype, where they are."""
    dtype = jnp.dtype(model.dtype)
    return jax.tree.map(lambda x: x if x.dtype == dtype else x.astype(dtype), params)


def _check_length(config: ExperimentConfig, pretrained: Pretrained) -> None:
    """Find rows that may be longer than the model's context before any is.

    Raises:
        DoraError: when they may.
    """
    context = pretrained.config.text.context_length
    given = {"data": config.data.max_length, "evaluation": config.evaluation.max_length or 0}
    for section, length in given.items():
        if length > context:
            raise DoraError(
                f"{section}.max_length ({length}) is more than the model's context of {context} "
                f"tokens: lower --{section}.max-length"
            )


def check_modules(arm: ArmPlan, pretrained: Pretrained) -> None:
    """Find modules that the model does not have before anything is trained.

    Raises:
        DoraError: naming the arm and the modules.
    """
    rules = arm.config.adapter.rules(arm.method)
    shapes = param_shapes(build_model(pretrained.config, rules))
    try:
        mask = trainable_mask(shapes, rules)
    except ValueError as error:
        raise DoraError(f"adapter.modules: {error}") from None
    if not any(jax.tree.leaves(mask)):
        raise DoraError(f"method {arm.name!r} trains nothing: this model has no such parameters")
