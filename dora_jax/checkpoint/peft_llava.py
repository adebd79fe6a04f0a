"""Adapters of LLaVA among PEFT's: how they spell its modules, and what the authors' own say.

PEFT takes the modules' names of the day, which transformers has changed (`llava_names`); the
patterns in an adapter's settings are of the same day as its tensors. The authors' code gives
adapters to the language model before there is a tower, whose modules the same patterns would match,
and saves what else it trained, the projector, in a file beside them.
"""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

from dora_jax.checkpoint.llava_names import LIVE, ORIGINAL, SAVED, SPELLINGS, Spelling
from dora_jax.checkpoint.peft_config import PeftConfig
from dora_jax.checkpoint.peft_files import BESIDE_FILE, AdapterFiles
from dora_jax.checkpoint.peft_modules import PREFIX, Module, modules
from dora_jax.errors import DoraError
from dora_jax.models.build import DecoderConfig
from dora_jax.models.llava import LlavaConfig

# What a tensor's name has behind its module's.
_ENDING = re.compile(r"\.(?:lora_.+|(?:base_layer\.)?(?:weight|bias))$")
_PARTS = tuple(part for s in (LIVE, SAVED) for part in (s.trunk, s.tower, s.projector))


def find_spelling(
    folder: Path, files: AdapterFiles, config: DecoderConfig, made_for: str
) -> Spelling:
    """Return how an adapter spells the modules of a LLaVA; of a language model there is one way.

    Args:
        folder: named in errors.
        files: the adapter's.
        config: of the base model.
        made_for: the base model's name, as the adapter has it.

    Raises:
        DoraError: when an adapter of LLaVA is put on a language model, or the other way round.
    """
    names = [name.removeprefix(PREFIX) for name in files.adapter]
    if not isinstance(config, LlavaConfig):
        seen = next((name for name in names if name.startswith(_PARTS)), None)
        if seen is not None or files.beside is not None:
            one = "a LLaVA of that language model" if seen is None else "that base model"
            raise DoraError(
                f"{folder}: is an adapter of LLaVA ({seen or BESIDE_FILE}), and the base model a "
                f"language model alone. It was made for {made_for}: name {one}"
            )
        return LIVE
    spelling = _most_known((_ENDING.sub("", name) for name in names), config)
    if spelling == ORIGINAL and files.beside is None:
        raise DoraError(
            f"{folder}: is an adapter of a language model ({names[0]}), and the base model a LLaVA."
            f" It was made for {made_for}: name that base model. (The authors' LLaVA spells its "
            f"language model so too, with {BESIDE_FILE} beside the adapter: it is missing here)"
        )
    return spelling


def _most_known(found: Iterable[str], config: LlavaConfig) -> Spelling:
    held = set(found)

    def known(spelling: Spelling) -> int:
        return len(held.intersection(n for m in modules(config, spelling) for n in m.names))

    return max(SPELLINGS, key=known)


def with_saved(peft: PeftConfig, files: AdapterFiles, whole: Iterable[Module]) -> PeftConfig:
    """Return settings whose `modules_to_save` have what the authors' LLaVA saved beside.

    Args:
        peft: the settings as they are read.
        files: the adapter's.
        whole: every module of the model.
    """
    saved = {_ENDING.sub("", name.removeprefix(PREFIX)) for name in files.beside or {}}
    names = [name for module in whole for name in module.names if name in saved]
    return dataclasses.replace(peft, modules_to_save=(*peft.modules_to_save, *names))


def reached(peft: PeftConfig, whole: list[Module], spelling: Spelling) -> list[Module]:
    """Return the modules to which an adapter's settings apply.

    Args:
        peft: the settings, `with_saved`.
        whole: every module of the model.
        spelling: of their names; the authors' adapts the language model alone.
    """
    if spelling != ORIGINAL:
        return whole
    return [
        module
        for module in whole
        if module.path.startswith("language_model/") or any(map(peft.saves, module.names))
    ]
