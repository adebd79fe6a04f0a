"""Text from a model: `generate`, and `Sampling`, which says how."""

from dora_jax.generation.adapter_bank import AdapterBank as AdapterBank
from dora_jax.generation.api import Completion as Completion
from dora_jax.generation.api import generate as generate
from dora_jax.generation.api import generate_ids as generate_ids
from dora_jax.generation.sampling import Sampling as Sampling
