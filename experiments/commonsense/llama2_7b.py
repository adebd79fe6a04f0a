"""The paper's LLaMA2-7B rows (Table 1): see `paper.py`."""

from paper import study

config = study(
    "commonsense-llama2-7b", "meta-llama/Llama-2-7b-hf", "LLaMA2-7B", rate_16=2e-4, rate_32=2e-4
)
