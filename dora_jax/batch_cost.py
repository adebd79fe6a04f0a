"""What a training step costs on a batch, whatever kind of model it is for."""

import math
from typing import Any

from dora_jax.cost import step_cost
from dora_jax.encoder_decoder_cost import encoder_decoder_cost
from dora_jax.models.bart import Bart
from dora_jax.models.build import Writer
from dora_jax.models.vlbart import VLBart


def batch_flops(model: Writer, batch: Any) -> float:
    """Return the floating-point operations of a step, see `StepCost`.

    Args:
        model: with its adapters.
        batch: a `Batch`, or what has its arrays' shapes.
    """
    rows, length = batch.tokens.shape
    labels = batch.label_targets.size
    if not isinstance(model, Bart):
        images = 0 if batch.images is None else math.prod(batch.images.shape[:2])
        return step_cost(model, rows, length, labels, images).total
    visual = 0
    if isinstance(model, VLBart) and batch.source.visual is not None:
        _, images, features, _ = batch.source.visual.features.shape
        visual = images * min(features, model.config.image_tokens)
    read = batch.source.tokens.shape[1]
    return encoder_decoder_cost(model, rows, read, length, labels, visual).total
