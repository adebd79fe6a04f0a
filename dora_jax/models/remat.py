"""What the backward pass of a stack of layers recomputes, to save memory."""

from typing import Any, Literal, get_args

import flax.linen as nn
import jax

from dora_jax.decomposition import LOW_RANK, PRODUCT
from dora_jax.spec import nearest

Remat = Literal["none", "dots", "full"]

_POLICIES = {
    # Keep the results of products with a weight and of attention, recompute the cheap rest.
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(PRODUCT, LOW_RANK),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def rematerialised(block: Any, remat: Remat, owner: str) -> Any:
    """Return the class of a layer that is scanned, with what its backward pass recomputes.

    Args:
        block: the layer.
        remat: `none`, `dots` (all but products with weights) or `full` (everything but the layer's
            input).
        owner: the model, named in the error.

    Raises:
        ValueError: for another `remat`.
    """
    allowed = get_args(Remat)
    if remat not in allowed:
        raise ValueError(
            f"{owner}.remat must be one of {', '.join(map(repr, allowed))}; got "
            f"{remat!r}{nearest(remat, allowed)}"
        )
    if remat == "none":
        return block
    return nn.remat(block, policy=_POLICIES[remat], prevent_cse=False)
