"""Stage 2 of the miniature alone, at GPU sizes: see `miniature.py`, which makes what it needs."""

from miniature import GPU, tuning

config = tuning(GPU)
