"""What the encoder of an encoder-decoder reads, as arrays of a batch."""

from typing import Any, NamedTuple


class Visual(NamedTuple):
    """Features of images or of clips, made beforehand by a frozen network.

    Attributes:
        features: (B, M, K, F): M images of a row at most, of each K cells of a grid, regions or
            frames, in order.
        boxes: (B, M, K, 4) where each one lies, (left, right, top, bottom) as shares of the
            image; zeros where that says nothing.
        is_real: (B, M, K) False for what only fills up: absent images, regions that there are not.
    """

    features: Any
    boxes: Any
    is_real: Any


class Source(NamedTuple):
    """What the encoder reads.

    Attributes:
        tokens: (B, S) token ids, padded right.
        is_real: (B, S) False for padding.
        visual: what it sees beside the text; None where no row has any.
    """

    tokens: Any
    is_real: Any
    visual: Visual | None = None
