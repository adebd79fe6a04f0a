"""DoRA in JAX: weight-decomposed low-rank adaptation at LoRA's cost.

The mathematics is in `dora_jax.decomposition`, the Linen layers in `dora_jax.layers`; the rest of
the public API is here.
"""

from dora_jax import layers as layers
from dora_jax.adapters import column_norms as column_norms
from dora_jax.adapters import init_adapters as init_adapters
from dora_jax.adapters import kernel_sq_norms as kernel_sq_norms
from dora_jax.adapters import merge_params as merge_params
from dora_jax.decomposition import Decomposition as Decomposition
from dora_jax.decomposition import column_norm as column_norm
from dora_jax.decomposition import compose as compose
from dora_jax.decomposition import decompose as decompose
from dora_jax.decomposition import merge_kernel as merge_kernel
from dora_jax.errors import DoraError as DoraError
from dora_jax.factored_norm import adapted_norm as adapted_norm
from dora_jax.generation import AdapterBank as AdapterBank
from dora_jax.generation import Completion as Completion
from dora_jax.generation import Sampling as Sampling
from dora_jax.generation import generate as generate
from dora_jax.partition import combine as combine
from dora_jax.partition import masked_optimizer as masked_optimizer
from dora_jax.partition import partition as partition
from dora_jax.partition import trainable_mask as trainable_mask
from dora_jax.scoring import score as score
from dora_jax.scoring import score_tokens as score_tokens
from dora_jax.spec import AdapterRules as AdapterRules
from dora_jax.spec import AdapterSpec as AdapterSpec

__version__ = "0.1.0"
