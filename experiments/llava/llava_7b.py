"""The paper's LLaVA-1.5-7B rows: see `paper.py`. `dora-jax compare`."""

from paper import tuning

config = tuning()
