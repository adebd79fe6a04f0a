"""Adapters of Hugging Face PEFT, read and written: see docs/peft.md.

Example:
    >>> from dora_jax.checkpoint import peft
    >>> adapter = peft.load("peft-folder", base)
    >>> params = adapter.params(base.params)
    >>> peft.save("out", adapter.config, adapter.rules, params, base.params, "owner/base-model")
"""

from pathlib import Path

from dora_jax.checkpoint.peft_load import PeftAdapter, load_peft
from dora_jax.checkpoint.peft_save import save_peft
from dora_jax.checkpoint.pretrained import Pretrained
from dora_jax.models.build import as_decoder

__all__ = ["PeftAdapter", "load", "save"]
save = save_peft


def load(folder: str | Path, model: Pretrained) -> PeftAdapter:
    """Read an adapter's folder for the base model that it was made for.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        model: the base model, as `load_pretrained` returns it.

    Raises:
        DoraError: as `load_peft`: for files that are missing, damaged or pickled, settings that
            cannot be honoured, and tensors that do not fit the model.
    """
    return load_peft(folder, as_decoder(model.config), model.params)
