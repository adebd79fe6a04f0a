"""Stage 2 of the miniature alone, at CPU sizes: see `miniature.py`, which makes what it needs."""

from miniature import CPU, tuning

config = tuning(CPU)
