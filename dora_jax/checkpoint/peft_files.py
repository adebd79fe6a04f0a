"""The tensors in an adapter's folder, by the current spelling of their names."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dora_jax.checkpoint.peft_modules import current_name
from dora_jax.checkpoint.safetensors_file import DTYPES, SafetensorsFile, refuse_pickle
from dora_jax.errors import DoraError

WEIGHTS_FILE = "adapter_model.safetensors"
# The authors' LLaVA saves what it trained in full here.
BESIDE_FILE = "non_lora_trainables.safetensors"
_PICKLED = "adapter_model.bin"


class Part(NamedTuple):
    """A tensor where it lies.

    Attributes:
        file: that holds it.
        name: there.
    """

    file: SafetensorsFile
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        return self.file.tensors[self.name].shape

    @property
    def dtype(self) -> str:
        """By numpy's name."""
        return DTYPES[self.file.tensors[self.name].dtype]

    def read(self) -> np.ndarray:
        """Return a copy."""
        return np.array(self.file.rows(self.name, 0, self.shape[0]))


class AdapterFiles(NamedTuple):
    """What a folder holds.

    Attributes:
        adapter: tensors of `adapter_model.safetensors`.
        beside: those of `non_lora_trainables.safetensors`; None without one.
    """

    adapter: dict[str, Part]
    beside: dict[str, Part] | None


def open_adapter(folder: Path) -> AdapterFiles:
    """Open an adapter's files.

    Raises:
        DoraError: when they are missing, damaged or pickled, or hold tensors of another type.
    """
    path, beside = folder / WEIGHTS_FILE, folder / BESIDE_FILE
    if not path.is_file():
        if (folder / _PICKLED).is_file():
            raise DoraError(
                f"{folder / _PICKLED}: is pickled, and unpickling runs code. If you trust it, load "
                "it once with a newer PEFT and save it again (save_pretrained writes safetensors)"
            )
        raise DoraError(f"{folder}: holds no {WEIGHTS_FILE}; download or save the adapter again")
    refuse_pickle(beside)
    return AdapterFiles(_parts(path), _parts(beside) if beside.is_file() else None)


def _parts(path: Path) -> dict[str, Part]:
    file = SafetensorsFile(path)
    for name, stored in file.tensors.items():
        if stored.dtype not in DTYPES:
            raise DoraError(
                f"{path}: {name} is of type {stored.dtype}; supported: {', '.join(DTYPES)}. Save "
                "the adapter in one of them"
            )
    return {current_name(name): Part(file, name) for name in file.tensors}


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Return the tensors of an adapter's folder; errors as `open_adapter`."""
    files = open_adapter(folder)
    return {name: part.read() for name, part in {**files.adapter, **(files.beside or {})}.items()}
