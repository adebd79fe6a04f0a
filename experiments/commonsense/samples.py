"""Sample count (the paper's Figure 5): one epoch of 1,000 to 10,000 rows, LoRA and DoRA."""

from smollm2 import study

# Questions of the cloze form that share an optimizer step: 4 packed rows of 256 tokens.
_ROWS_A_STEP = 44
config = study(
    "commonsense-samples",
    "cloze",
    grid={
        "data.train_rows+train.steps": [
            (rows, round(rows / _ROWS_A_STEP)) for rows in (1000, 4000, 7000, 10_000)
        ]
    },
)
