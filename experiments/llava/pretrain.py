"""LLaVA-1.5-7B, stage 1: see `paper.py`. `dora-jax train`, then `dora-jax merge`."""

from paper import alignment

config = alignment()
