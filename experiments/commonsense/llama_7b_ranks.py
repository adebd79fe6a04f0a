"""The paper's rank robustness (Figure 4, Table 15): LLaMA-7B, LoRA and DoRA at ranks 4 to 64.

All but rank and rate is as in `llama_7b.py`. Published rates are LoRA's 3e-4 at rank 32, and DoRA's
2e-4 at rank 16 and 1e-4 at rank 32. Assumed: at its other ranks LoRA has 3e-4 too, and DoRA the
rate of the nearest published rank, 2e-4 at 4 and 8, 1e-4 at 64. Since a rate goes with each rank
these are variants and no grid, all of which are compared: p-values are corrected for 45 pairs.

Others' reruns of DoRA at rank 16 lie 15 to 24 points below the published figure (NVlabs/DoRA#14,
#26): give several seeds (`--seeds 0 1 2`).
"""

from paper import LORA_RATE, experiment, variant
from published import RANKS_7B, published_ranks

RATES = {
    "LoRA": dict.fromkeys(RANKS_7B["LoRA"], LORA_RATE),
    "DoRA": {4: 2e-4, 8: 2e-4, 16: 2e-4, 32: 1e-4, 64: 1e-4},
}
config = experiment(
    "commonsense-llama-7b-ranks",
    "huggyllama/llama-7b",
    variants={
        f"{label} r={rank}": variant(label.lower(), rank, rate)
        for label, rates in RATES.items()
        for rank, rate in rates.items()
    },
    published=published_ranks(),
)
