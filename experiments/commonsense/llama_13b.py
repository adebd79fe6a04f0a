"""The paper's LLaMA-13B rows (Table 1): see `paper.py`."""

from paper import study

config = study(
    "commonsense-llama-13b", "huggyllama/llama-13b", "LLaMA-13B", rate_16=3e-4, rate_32=2e-4
)
