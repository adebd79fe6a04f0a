"""Sizes rounded up to few, so that a new prompt length or batch seldom needs a new compilation."""

from dora_jax.models.bart_config import BartConfig
from dora_jax.models.config import LlamaConfig

_LEAST_WIDTH = 32
_LEAST_ROOM = 16


def bucket(n: int, least: int = 1) -> int:
    """Return the least size that is not below n, of least * (1, 1.5, 2, 3, 4, 6, 8, ...).

    At most a third of it is unused, beyond the least.

    Example:
        >>> [bucket(n, 32) for n in (1, 32, 33, 49, 65, 97)]
        [32, 32, 48, 64, 96, 128]
    """
    size = least
    while size < n:
        if size % 2 == 0 and size * 3 // 2 >= n:
            return size * 3 // 2
        size *= 2
    return size


def prompt_width(longest: int) -> int:
    """Return to how many tokens prompts are padded."""
    return bucket(longest, _LEAST_WIDTH)


def room_for(new_tokens: int) -> int:
    """Return how many new tokens there is room for."""
    return bucket(new_tokens, _LEAST_ROOM)


def row_count(rows: int, devices: int) -> int:
    """Return how many rows a batch is filled to: equally many on every device."""
    return devices * bucket(-(-rows // devices))


def cache_slots(config: LlamaConfig | BartConfig, width: int, room: int) -> int:
    """Return the slots of a cache that goes round, for one text a row.

    Where every kind of layer has a window, the slots of tokens that no layer sees any more are
    written over; the prompt must fit at once.
    """
    if isinstance(config, BartConfig):
        return width + room
    windows = [kind.window for kind in config.layer_kinds()[0]]
    widest = max((window or width + room for window in windows), default=width + room)
    return min(width + room, max(width, widest))
