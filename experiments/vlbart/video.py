"""The paper's video-text study: see `paper.py`. `dora-jax compare`."""

from paper import comparison

config = comparison("video")
