"""A model's modules by PEFT's names, and PEFT's names of their tensors.

PEFT calls a module by its path in the torch model, one for each layer; our tree stacks layers. Both
ways come from the model's one table (`dora_jax.checkpoint.names`).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from dora_jax.checkpoint.llava_names import LIVE, Spelling, llava_tensors
from dora_jax.checkpoint.names import Tensor, names_in_file, tensors
from dora_jax.models.build import DecoderConfig
from dora_jax.models.llava import LlavaConfig
from dora_jax.partition import WEIGHT_LEAVES

PREFIX = "base_model.model."
_LINEAR = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
_EMBEDDING = {"lora_a": "lora_embedding_A", "lora_b": "lora_embedding_B"}
_MAGNITUDE = {"magnitude": "lora_magnitude_vector"}
# Live modules and older files put the adapter's name, and a suffix, behind these.
_ADAPTER = re.compile(
    r"(?P<module>.+?)\.(?P<leaf>lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))"
    r"(?:\.(?!weight$)[^.]+)?(?:\.weight)?"
)
_SAVED = re.compile(r"(?P<module>.+?)\.modules_to_save(?:\.[^.]+)?\.(?P<leaf>weight|bias)")


@dataclass(frozen=True)
class Module:
    """One module of our tree.

    Attributes:
        path: in our tree.
        weight: the name of its weight leaf.
        leaves: its tensors, by leaf.
        names: in the torch model: one for each layer, or the one.
    """

    path: str
    weight: str
    leaves: dict[str, Tensor] = field(compare=False)
    names: tuple[str, ...]

    @property
    def is_stacked(self) -> bool:
        """Whether its leaves have a leading axis of layers."""
        return self.leaves[self.weight].is_stacked

    @property
    def takes_adapter(self) -> bool:
        """Whether it multiplies by its weight, a matrix."""
        is_matrix = len(self.leaves[self.weight].shape) == 2
        return self.weight in ("kernel", "embedding") and is_matrix

    @property
    def is_linear(self) -> bool:
        """Whether PEFT's `all-linear` means it, were it not the head."""
        return self.weight == "kernel" and self.takes_adapter

    @property
    def is_head(self) -> bool:
        """Whether it is the output head."""
        return self.path.rsplit("/", 1)[-1] == "lm_head"

    @property
    def is_embedding(self) -> bool:
        """Whether it is the embedding of tokens."""
        return self.weight == "embedding"

    @property
    def is_of_vocabulary(self) -> bool:
        """Whether PEFT saves its own weight beside an adapter: a vocabulary may have grown."""
        return self.is_embedding or self.is_head

    def adapter_name(self, name: str, leaf: str) -> str:
        """Return PEFT's name of an adapter's tensor.

        Args:
            name: one of `names`.
            leaf: `lora_a`, `lora_b` or `magnitude`.
        """
        factors = _EMBEDDING if self.weight == "embedding" else _LINEAR
        return f"{PREFIX}{name}.{(factors | _MAGNITUDE)[leaf]}"

    def file_shape(self, leaf: str, rank: int) -> tuple[int, ...]:
        """Return the shape of a tensor in PEFT's files; arguments as `adapter_name`."""
        inputs, outputs = self.leaves[self.weight].shape
        return {"lora_a": (rank, inputs), "lora_b": (outputs, rank), "magnitude": (outputs,)}[leaf]


def modules(config: DecoderConfig, spelling: Spelling = LIVE) -> list[Module]:
    """Return every module of a model that has a weight, in the table's order.

    (A vision tower has parameters that are no module's weight: its class token and positions.)

    Args:
        config: the model's shape.
        spelling: of the modules' names in a LLaVA.
    """
    table = llava_tensors(config, spelling) if isinstance(config, LlavaConfig) else tensors(config)
    found: dict[str, dict[str, Tensor]] = {}
    for tensor in table:
        path, leaf = tensor.path.rsplit("/", 1)
        if leaf in (*WEIGHT_LEAVES, "bias") and tensor.hf.endswith((".weight", ".bias")):
            found.setdefault(path, {})[leaf] = tensor
    result = []
    for path, leaves in found.items():
        weight = next(name for name in WEIGHT_LEAVES if name in leaves)
        names = names_in_file(leaves[weight], leaves[weight].hf)
        result.append(Module(path, weight, leaves, tuple(n.removesuffix(".weight") for n in names)))
    return result


def current_name(name: str) -> str:
    """Return the current spelling of a tensor's name in an adapter's file, whatever its age.

    Example:
        >>> current_name("model.norm.modules_to_save.default.weight")
        'base_model.model.model.norm.weight'
    """
    name = name.removeprefix(PREFIX)
    if found := _ADAPTER.fullmatch(name):
        suffix = ".weight" if found["leaf"] in ("lora_A", "lora_B") else ""
        name = f"{found['module']}.{found['leaf']}{suffix}"
    elif found := _SAVED.fullmatch(name):
        name = f"{found['module']}.{found['leaf']}"
    return PREFIX + name


def torch_paths(modules: Iterable[Module]) -> list[str]:
    """Return the paths of all modules of the torch model, those that only hold others too."""
    paths: dict[str, None] = {}
    for module in modules:
        for name in module.names:
            parts = name.split(".")
            paths |= dict.fromkeys(".".join(parts[:n]) for n in range(1, len(parts) + 1))
    return list(paths)


def has_head(params: dict) -> bool:
    """Whether the head has weights of its own."""
    return "lm_head" in params.get("language_model", params)


def untie(params: dict) -> dict:
    """Return parameters in which the head has a copy of the embedding of its own."""
    if "language_model" in params:
        return {**params, "language_model": untie(params["language_model"])}
    return {**params, "lm_head": {"kernel": params["embed_tokens"]["embedding"].T}}
