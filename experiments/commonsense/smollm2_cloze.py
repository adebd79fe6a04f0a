"""SmolLM2-135M, cloze form: LoRA and DoRA at two ranks, magnitudes alone, full fine-tuning."""

from smollm2 import at_two_ranks

config = at_two_ranks("commonsense-smollm2-cloze", "cloze")
