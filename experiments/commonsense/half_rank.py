"""Is half of LoRA's rank enough for DoRA? DoRA at ranks 16 and 32 against LoRA at 32."""

from smollm2 import study

config = study(
    "commonsense-half-rank",
    "cloze",
    variants={
        "LoRA r=32": {"train.method": "lora", "adapter.rank": 32, "adapter.alpha": 64.0},
        "DoRA r=16": {"train.method": "dora", "adapter.rank": 16, "adapter.alpha": 32.0},
        "DoRA r=32": {"train.method": "dora", "adapter.rank": 32, "adapter.alpha": 64.0},
    },
)
