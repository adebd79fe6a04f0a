"""The accuracies that the paper published (arXiv 2402.09353v6), in percent.

Table 1, and Table 15's averages by rank. The LLaMA-7B row of LoRA is quoted there from earlier
work; the authors' own rerun, in their repository, is given beside it.
"""

from dora_jax.analysis.results import Published

TASKS = (
    "boolq",
    "piqa",
    "social_i_qa",
    "hellaswag",
    "winogrande",
    "ARC-Easy",
    "ARC-Challenge",
    "openbookqa",
)
_TABLE_1: dict[str, dict[str, tuple[float, ...]]] = {
    "LLaMA-7B": {
        "LoRA r=32": (68.9, 80.7, 77.4, 78.1, 78.8, 77.8, 61.3, 74.8, 74.7),
        "DoRA r=16": (70.0, 82.6, 79.7, 83.2, 80.6, 80.6, 65.4, 77.6, 77.5),
        "DoRA r=32": (69.7, 83.4, 78.6, 87.2, 81.0, 81.9, 66.2, 79.2, 78.4),
    },
    "LLaMA-13B": {
        "LoRA r=32": (72.1, 83.5, 80.5, 90.5, 83.7, 82.8, 68.3, 82.4, 80.5),
        "DoRA r=16": (72.5, 85.3, 79.9, 90.1, 82.9, 82.7, 69.7, 83.6, 80.8),
        "DoRA r=32": (72.4, 84.9, 81.5, 92.4, 84.2, 84.2, 69.6, 82.8, 81.5),
    },
    "LLaMA2-7B": {
        "LoRA r=32": (69.8, 79.9, 79.5, 83.6, 82.6, 79.8, 64.7, 81.0, 77.6),
        "DoRA r=16": (72.0, 83.1, 79.9, 89.1, 83.0, 84.5, 71.0, 81.2, 80.5),
        "DoRA r=32": (71.8, 83.7, 76.0, 89.1, 82.6, 83.7, 68.2, 82.4, 79.7),
    },
    "LLaMA3-8B": {
        "LoRA r=32": (70.8, 85.2, 79.9, 91.7, 84.3, 84.2, 71.2, 79.0, 80.8),
        "DoRA r=16": (74.5, 88.8, 80.3, 95.5, 84.7, 90.1, 79.1, 87.2, 85.0),
        "DoRA r=32": (74.6, 89.3, 79.9, 95.5, 85.6, 90.5, 80.4, 85.8, 85.2),
    },
}
_RERUN = (67.5, 80.8, 78.2, 83.4, 80.4, 78.0, 62.6, 79.1, 76.3)
# Table 6: averages alone.
_GRANULARITY = {"LLaMA-7B": 77.5, "LLaMA-13B": 81.3}
RANKS_7B = {  # Table 15, averages
    "LoRA": {4: 39.5, 8: 40.7, 16: 70.9, 32: 74.7, 64: 65.8},
    "DoRA": {4: 61.9, 8: 77.9, 16: 77.5, 32: 78.4, 64: 72.1},
}


def _row(model: str, variant: str, figures: tuple[float, ...], source: str) -> Published:
    *scores, average = figures
    by_task = dict(zip(TASKS, scores, strict=True))
    return Published(f"{model}, {variant}", source, by_task, average, variant)


def published(model: str) -> tuple[Published, ...]:
    """Return the published rows of a model; each names the variant that it is to stand beside."""
    table = _TABLE_1[model]
    rows = [_row(model, variant, figures, "Table 1") for variant, figures in table.items()]
    if model == "LLaMA-7B":
        rows.insert(1, _row(model, "LoRA r=32", _RERUN, "the authors' repository"))
    if model in _GRANULARITY:
        label = "QKV DoRA, magnitudes elsewhere"
        rows.append(Published(f"{model}, {label}", "Table 6", {}, _GRANULARITY[model], label))
    return tuple(rows)


def published_ranks() -> tuple[Published, ...]:
    """Return Table 15: LLaMA-7B's averages by rank, beside the variants of `llama_7b_ranks.py`."""
    return tuple(
        Published(f"LLaMA-7B, {method} r={rank}", "Table 15", {}, average, f"{method} r={rank}")
        for method, averages in RANKS_7B.items()
        for rank, average in averages.items()
    )
