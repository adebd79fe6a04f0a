"""The paper's image-text study: see `paper.py`. `dora-jax compare`."""

from paper import comparison

config = comparison("image")
