"""SmolLM2-135M on the paper's option labels: LoRA and DoRA at two ranks, magnitudes, all."""

from smollm2 import LOW_RANK_RATES, RANKS, VARIANTS, study

from dora_jax.training.config import CompareConfig

config = study(
    "commonsense-smollm2-index",
    "as_given",
    variants=VARIANTS,
    grid=RANKS,
    compare=CompareConfig(
        learning_rates=LOW_RANK_RATES,
        search_steps=15,
        pairs=(("dora-rank4", "lora-rank8"),),  # is half the rank enough?
    ),
)
