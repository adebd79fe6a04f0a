"""The paper's LLaMA-7B rows (Table 1): see `paper.py`."""

from paper import study

config = study(
    "commonsense-llama-7b", "huggyllama/llama-7b", "LLaMA-7B", rate_16=2e-4, rate_32=1e-4
)
