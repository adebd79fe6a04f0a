"""LoRA, DoRA, magnitudes alone and full fine-tuning, each with rates of its own to search."""

from smollm2 import VARIANTS, study

config = study("commonsense-methods", "cloze", variants=VARIANTS)
