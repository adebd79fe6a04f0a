"""What a training step costs, by formula: floating-point operations of each method, by part.

For T tokens a step, P of them labelled, a kernel of (in, out) and rank r:

    forward of a kernel          2 T in out
    gradient of its input        2 T in out        frozen kernels have no other
    gradient of a kernel         2 T in out        method "full" alone
    low-rank path                6 T r (in + out)  forward, gradient of its input, of A and B
    attention                    6 T S H F         S tokens a row; the causal half, forward and
                                                   twice that backward
    head                         4 P hidden V      forward and gradient of its input
    encoder and decoder          likewise: see `dora_jax.encoder_decoder_cost`
    vision tower, projector      likewise, for the positions of each image; where nothing of the
                                 tower is trained, forward alone; its attention sees both ways
    DoRA: norms                  2 in out r + ...  once a step, whatever T: see `norm_flops`
    DoRA: scaling                6 T out           c z; then g c and the sum of g y / c

A product of (a, b) and (b, c) counts 2 a b c. Other elementwise work, the optimizer, adapters on
embeddings and what rematerialisation repeats do not count: this is the model's own arithmetic,
against which a step's speed is measured ("model FLOP utilisation").
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp

from dora_jax.factored_norm import cheaper_path, norm_flops
from dora_jax.models.build import Decoder
from dora_jax.models.llama import param_shapes
from dora_jax.models.llava import LlavaConfig
from dora_jax.partition import Params, iter_modules, module_specs
from dora_jax.spec import FROZEN, AdapterRules, AdapterSpec


@dataclass(frozen=True)
class StepCost:
    """Floating-point operations of one training step, by part; see the module's docstring."""

    kernels: float
    kernel_gradients: float
    low_rank: float
    attention: float
    head: float
    norms: float
    scaling: float

    @property
    def total(self) -> float:
        """All of them."""
        return sum(dataclasses.astuple(self))

    @property
    def dora_overhead(self) -> float:
        """DoRA's own share, relative to the same step without norms and scaling."""
        extra = self.norms + self.scaling
        return extra / (self.total - extra)


def step_cost(
    model: Decoder, batch: int, seq: int, labels: int | None = None, images: int = 0
) -> StepCost:
    """Count the operations of a step.

    Args:
        model: with its adapters.
        batch: rows.
        seq: tokens a row.
        labels: labelled positions over all rows; all by default.
        images: places for images over all rows, of a model that sees.
    """
    config, rules = model.config.text, model.adapters or AdapterRules([])
    tokens = batch * seq
    labels = tokens if labels is None else labels
    sight = _Sight(model.config, images) if isinstance(model.config, LlavaConfig) else None
    shapes = param_shapes(model)
    specs = module_specs(shapes, rules)

    def use(path: str) -> Use:
        if path.endswith("lm_head"):
            return Use(labels, 0)  # counted as the head
        if sight is not None and (seen := sight.positions(path)) is not None:
            return Use(seen, 4 if sight.learns(path, specs) else 2)
        return Use(tokens, 4)

    width = config.num_attention_heads * config.head_dim
    attention = 6.0 * config.num_hidden_layers * tokens * seq * width
    if sight is not None:
        attention += sight.attention(specs)
    head = 4.0 * labels * config.hidden_size * config.vocab_size
    return StepCost(**modules_cost(shapes, specs, use), attention=attention, head=head)


class Use(NamedTuple):
    """How a step uses a kernel.

    Attributes:
        positions: that it is applied to, over all rows.
        passes: operations of an element of the kernel at each of them: 4, where a gradient goes on
            to its input, else 2.
    """

    positions: int
    passes: int


def modules_cost(
    shapes: Params, specs: Mapping[str, AdapterSpec], use: Callable[[str], Use]
) -> dict[str, float]:
    """Count the operations of all kernels and their adapters.

    Args:
        shapes: the adapted model's parameters, or their shapes.
        specs: of its modules, by path.
        use: of the module at a path.

    Returns:
        The parts of `StepCost` that are of kernels, by name.
    """
    kernels = full = low_rank = norms = scaling = 0.0
    for path, leaves in iter_modules(shapes):
        if "kernel" not in leaves:
            continue
        spec, (positions, passes) = specs[path], use(path)
        *stack, rows, columns = leaves["kernel"].shape
        layers = math.prod(stack)
        kernels += float(passes) * layers * positions * rows * columns
        if spec.method == "full":
            full += 2.0 * layers * positions * rows * columns
        if spec.has_low_rank:
            low_rank += 6.0 * layers * positions * spec.rank * (rows + columns)
        summed, kept = (rows, columns) if spec.norm_axis == "out" else (columns, rows)
        if spec.has_magnitude:
            scaling += 6.0 * layers * positions * kept
        if spec.method == "dora":
            narrow = jnp.finfo(leaves["kernel"].dtype).bits < 32
            way = cheaper_path(summed, kept, spec.rank, narrow=narrow)
            # A norm that is differentiated has its product with W twice.
            times = 1 if spec.detach_norm else 2
            norms += times * layers * norm_flops(summed, kept, spec.rank, narrow=narrow)[way]
    return {
        "kernels": kernels,
        "kernel_gradients": full,
        "low_rank": low_rank,
        "norms": norms,
        "scaling": scaling,
    }


@dataclass(frozen=True)
class _Sight:
    """What the images of a step cost."""

    config: LlavaConfig
    images: int

    def positions(self, path: str) -> int | None:
        """Return the positions that a module of tower or projector is applied to."""
        vision = self.config.vision
        if path.startswith("vision_tower/embeddings/"):
            return self.images * vision.patches
        if path.startswith("vision_tower/"):
            return self.images * vision.positions
        if path.startswith("multi_modal_projector/"):
            return self.images * self.config.image_tokens
        return None

    def learns(self, path: str, specs: Mapping[str, AdapterSpec]) -> bool:
        """Whether a gradient comes as far back as a module."""
        part = path.split("/")[0]
        parts = ("vision_tower",) if part == "vision_tower" else (part, "vision_tower")
        return any(spec != FROZEN for p, spec in specs.items() if p.startswith(parts))

    def attention(self, specs: Mapping[str, AdapterSpec]) -> float:
        """Return the tower's: every patch sees all, twice as much backward as forward."""
        vision = self.config.vision
        pairs = self.images * vision.positions**2
        passes = 12.0 if self.learns("vision_tower", specs) else 4.0
        return passes * vision.num_hidden_layers * pairs * vision.hidden_size


def tokens_for_overhead(model: Decoder, seq: int, share: float = 0.01) -> int:
    """Return the number of tokens a step from which DoRA's own operations are below a share.

    Raises:
        ValueError: when the scaling alone, which grows with the tokens, is more than that.
    """
    one, two = step_cost(model, 1, seq), step_cost(model, 2, seq)
    scaling = one.scaling
    rest = two.total - one.total - scaling
    if scaling >= share * rest:
        raise ValueError(f"the scaling alone is {scaling / rest:.2%} of the step")
    return math.ceil(seq * one.norms / (share * rest - scaling))
