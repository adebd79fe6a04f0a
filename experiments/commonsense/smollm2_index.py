"""SmolLM2-135M on the paper's option labels: LoRA and DoRA at two ranks, magnitudes, all."""

from smollm2 import at_two_ranks

config = at_two_ranks("commonsense-smollm2-index", "as_given")
