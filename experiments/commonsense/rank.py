"""Rank robustness at a small size: LoRA and DoRA at ranks 4 to 64 on SmolLM2-135M.

A stand-in for the paper's Figure 4 and Table 15, which `llama_7b_ranks.py` is: those figures are
LLaMA-7B's, and not shown beside these. The pairs add the paper's half-rank question: DoRA at a
rank against LoRA at twice that.
"""

import dataclasses

from smollm2 import COMPARE, study

RANKS = (4, 8, 16, 32, 64)
config = study(
    "commonsense-rank",
    "cloze",
    grid={"adapter.rank+adapter.alpha": [(rank, 2.0 * rank) for rank in RANKS]},
    compare=dataclasses.replace(
        COMPARE, pairs=tuple((f"dora-rank{r}", f"lora-rank{2 * r}") for r in RANKS[:-1])
    ),
)
