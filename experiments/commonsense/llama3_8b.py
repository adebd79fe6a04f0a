"""The paper's LLaMA3-8B rows (Table 1): see `paper.py`."""

from paper import study

config = study(
    "commonsense-llama3-8b", "meta-llama/Meta-Llama-3-8B", "LLaMA3-8B", rate_16=1e-4, rate_32=1e-4
)
