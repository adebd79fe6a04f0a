"""A model's own generation settings, as Hugging Face's `generation_config.json` gives them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dora_jax.errors import DoraError
from dora_jax.generation.sampling import Sampling

_SAMPLED = ("temperature", "top_k", "top_p", "min_p")  # where `do_sample` is true
_SAME = (
    "repetition_penalty",
    "no_repeat_ngram_size",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "max_new_tokens",
)
# What would change the texts and is not supported, with the values that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "min_length": (0,),
    "min_new_tokens": (0,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "penalty_alpha": (0.0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "top_h": (),
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "constraints": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_decoder_ids": ([],),
    "sequence_bias": ({},),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0,),
}


def sampling_of(generation: Mapping[str, Any], **changes: Any) -> Sampling:
    """Return how a model's texts are continued by its own generation config.

    `max_length` is not among it: the length is asked for here as `max_new_tokens`.

    Args:
        generation: the settings, by their names there.
        changes: fields of `Sampling` that are others.

    Raises:
        DoraError: naming a setting that would change the texts and is not supported.

    Example:
        >>> sampling_of({"num_beams": 4, "no_repeat_ngram_size": 3}, max_new_tokens=20).num_beams
        4
    """
    given = {name: value for name, value in generation.items() if value is not None}
    for name, neutral in _NEUTRAL.items():
        if name in given and given[name] not in neutral:
            raise DoraError(
                f"generation config: {name} {given[name]!r} is not supported; take it out, and the "
                "texts will be others"
            )
    fields = {name: given[name] for name in _SAME if name in given}
    if given.get("do_sample"):
        fields |= {"temperature": 1.0} | {name: given[name] for name in _SAMPLED if name in given}
        if fields.get("top_k") == 0:  # there, all tokens
            del fields["top_k"]
    return dataclasses.replace(Sampling(), **fields | changes)
