"""What a training step of an encoder-decoder costs, by the formulas of `dora_jax.cost`.

For B rows, each of S positions that the encoder reads (text, and what images become) and L tokens
that the decoder writes, at size D:

    encoder                      its kernels at B S positions, attention 12 B S^2 D a layer: all
                                 see all, forward and twice that backward
    decoder                      its kernels at B L positions, attention 6 B L^2 D a layer (the
                                 causal half) and to the source 12 B S L D
    keys, values of the source   the decoder's kernels, at B S positions
    visual embedding             at the images' positions; no gradient goes on to the features

Where nothing of the encoder is trained, nor of what it reads, it runs forward alone.
"""

from dora_jax.cost import StepCost, Use, modules_cost
from dora_jax.models.bart import Bart
from dora_jax.models.llama import param_shapes
from dora_jax.partition import module_specs
from dora_jax.spec import FROZEN, AdapterRules

_READ = ("shared", "encoder/", "visual_embedding/")
_OF_SOURCE = ("encoder_attn/k_proj", "encoder_attn/v_proj")


def encoder_decoder_cost(
    model: Bart, batch: int, source: int, target: int, labels: int | None = None, visual: int = 0
) -> StepCost:
    """Count the operations of a step.

    Args:
        model: with its adapters.
        batch: rows.
        source: tokens of text that the encoder reads a row.
        target: tokens a row of the decoder, its start token among them.
        labels: labelled positions over all rows; all by default.
        visual: positions a row that the images become.
    """
    config, rules = model.config, model.adapters or AdapterRules([])
    labels = batch * target if labels is None else labels
    shapes = param_shapes(model)
    specs = module_specs(shapes, rules)
    read = source + visual
    learns = any(spec != FROZEN for path, spec in specs.items() if path.startswith(_READ))

    def use(path: str) -> Use:
        if path.startswith("visual_embedding/"):
            return Use(batch * visual, 2)
        if path.startswith("encoder/") or path.endswith(_OF_SOURCE):
            return Use(batch * read, 4 if learns else 2)
        return Use(batch * target, 4)

    # Of one layer and one row, at size 1; forward and backward.
    own, across = 6.0 * target**2, 12.0 * read * target
    encoder = (12.0 if learns else 4.0) * read**2
    head_passes = 6.0 if specs["shared"].method == "full" else 4.0
    return StepCost(
        **modules_cost(shapes, specs, use),
        attention=batch
        * config.d_model
        * (config.encoder_layers * encoder + config.decoder_layers * (own + across)),
        head=head_passes * labels * config.d_model * config.vocab_size,
    )
