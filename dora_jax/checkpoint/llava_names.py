"""The tensors of LLaVA, and the ways in which files have spelt them.

- `SAVED`, as `LlavaForConditionalGeneration` is written: `vision_tower`, `multi_modal_projector`,
  `language_model.model`, `language_model.lm_head`;
- `LIVE`, as its modules are called and PEFT's adapters have them: `model.vision_tower`,
  `model.multi_modal_projector`, `model.language_model`, `lm_head` (in older versions they are
  called as they are saved);
- `ORIGINAL`, in the authors' own code: `model.mm_projector`, and the language model as if it were
  alone.

A tower's own names are older or newer (`vision.PREFIXES`).
"""

from collections.abc import Iterable
from typing import NamedTuple

from dora_jax.checkpoint.names import Tensor, tensors
from dora_jax.checkpoint.vision import PREFIXES, find_prefix, vision_tensors
from dora_jax.models.llava import LlavaConfig


class Spelling(NamedTuple):
    """How names begin.

    Attributes:
        tower: before the tower's.
        projector: before the projector's.
        trunk: in place of the language model's `model.`.
        head: in place of its `lm_head.`.
        linear: the projector's two layers.
    """

    tower: str
    projector: str
    trunk: str
    head: str
    linear: tuple[str, str] = ("linear_1", "linear_2")


# What is written, which every version of transformers reads.
SAVED = Spelling(
    "vision_tower.", "multi_modal_projector.", "language_model.model.", "language_model.lm_head."
)
LIVE = Spelling(
    "model.vision_tower.", "model.multi_modal_projector.", "model.language_model.", "lm_head."
)
ORIGINAL = Spelling(
    "model.vision_tower.vision_tower.vision_model.",
    "model.mm_projector.",
    "model.",
    "lm_head.",
    ("0", "2"),
)
_OF_FOLDERS = tuple(
    layout._replace(tower=layout.tower + prefix) for layout in (SAVED, LIVE) for prefix in PREFIXES
)
# Of modules, and so of adapters: first as they are now.
SPELLINGS = (LIVE, *(spelling for spelling in _OF_FOLDERS if spelling != LIVE), ORIGINAL)


def folder_spelling(names: Iterable[str]) -> Spelling:
    """Return how a folder's tensors are spelt; as they are written now where that is not told."""
    by_tower = {spelling.tower: spelling for spelling in _OF_FOLDERS}
    return by_tower[find_prefix(names, by_tower)]


def llava_tensors(config: LlavaConfig, spelling: Spelling = SAVED) -> list[Tensor]:
    """Return every kind of tensor of a model, as a file spells it."""
    c = config
    wide, narrow = len(c.feature_layers) * c.vision.hidden_size, c.text.hidden_size
    projector = []
    for ours, name, size in zip(LIVE.linear, spelling.linear, (wide, narrow), strict=True):
        path, hf = f"multi_modal_projector/{ours}", f"{spelling.projector}{name}"
        projector.append(Tensor(f"{path}/kernel", f"{hf}.weight", "", (size, narrow)))
        if c.projector_bias:
            projector.append(Tensor(f"{path}/bias", f"{hf}.bias", "", (narrow,)))
    return [
        *vision_tensors(c.vision, "vision_tower/", spelling.tower),
        *projector,
        *(_of_text(tensor, spelling) for tensor in tensors(c.text)),
    ]


def _of_text(tensor: Tensor, spelling: Spelling) -> Tensor:
    if tensor.hf.startswith("lm_head."):
        name = spelling.head + tensor.hf.removeprefix("lm_head.")
    else:
        name = spelling.trunk + tensor.hf.removeprefix("model.")
    return tensor._replace(path=f"language_model/{tensor.path}", hf=name)
