"""LoRA against DoRA on SmolLM2-135M-Instruct, on world knowledge: the README's first command.

Both methods share the data order, the initial A, rank, alpha, schedule and steps. The learning
rate of each is chosen by the same search: three rates, a shorter run of each, the one of least
validation loss. Evaluation is on questions about cities and countries that no training question
is about.
"""

from dora_jax.training.config import (
    AdapterConfig,
    CompareConfig,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)

config = ExperimentConfig(
    name="quickstart",
    model=ModelConfig(name="smollm2-135m-instruct"),
    # Nearly all questions are shorter: padding to the longest few would cost a third of the time.
    data=DataConfig(train_rows=1600, validation_rows=96, eval_rows=400, max_length=25),
    adapter=AdapterConfig(rank=16, alpha=32.0, modules="paper"),
    optim=OptimConfig(schedule="linear", warmup_ratio=0.1),
    train=TrainConfig(steps=60, batch_size=16),
    compare=CompareConfig(
        methods=("lora", "dora"), learning_rates=(1e-3, 3e-3, 1e-2), search_steps=12
    ),
    seeds=(0,),
)
