"""Lengths are rounded up, so that few shapes are compiled."""


def round_up(n: int, multiple: int) -> int:
    """Return the least multiple that is not below n."""
    return -(-n // multiple) * multiple
