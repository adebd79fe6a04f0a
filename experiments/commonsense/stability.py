"""Training stability: LoRA and DoRA over two decades of learning rates, nothing searched for.

The report shows accuracy by learning rate, the spread over rates and seeds, and what diverged.
"""

from smollm2 import study

from dora_jax.training.config import CompareConfig

config = study(
    "commonsense-stability",
    "cloze",
    grid={"optim.learning_rate": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)},
    compare=CompareConfig(methods=("lora", "dora"), search_steps=0),
)
