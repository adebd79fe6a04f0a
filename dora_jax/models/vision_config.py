"""The shape of a vision tower, read from the vision part of Hugging Face's `config.json`."""

from dataclasses import dataclass
from typing import Literal, get_args

from dora_jax.models.kinds import check_kinds
from dora_jax.spec import nearest

VisionActivation = Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"]
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
)


@dataclass(frozen=True)
class VisionConfig:
    """Sizes and constants of one tower; the defaults are those of CLIP ViT-B/32.

    Names and meanings are those of `transformers` where it has one; CLIP and SigLIP are choices of
    these fields.

    Attributes:
        model_type: the family, which decides nothing but how a `config.json` is written.
        class_token: whether a learned token stands before the patches (CLIP).
        pre_norm: whether the embeddings are normalised before the first layer (CLIP).
        patch_bias: whether the patches' projection has a bias (SigLIP).
        pooling_head: whether attention of a learned probe makes one vector of an image (SigLIP);
            CLIP takes its class token.

    Raises:
        ValueError: for a value of another kind, or when the sizes cannot describe a tower.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    layer_norm_eps: float = 1e-5
    hidden_act: VisionActivation = "quick_gelu"
    model_type: str = "clip_vision_model"
    class_token: bool = True
    pre_norm: bool = True
    patch_bias: bool = False
    pooling_head: bool = False

    def __post_init__(self) -> None:
        check_kinds(self)
        for name in SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})"
            )
        if self.patch_size > self.image_size:
            raise ValueError(
                f"patch_size ({self.patch_size}) must not be more than image_size "
                f"({self.image_size})"
            )
        if self.hidden_act not in get_args(VisionActivation):
            raise ValueError(
                f"hidden_act must be one of {', '.join(get_args(VisionActivation))}; got "
                f"{self.hidden_act!r}{nearest(self.hidden_act, get_args(VisionActivation))}"
            )

    @property
    def patches(self) -> int:
        """The number of patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def positions(self) -> int:
        """The number of tokens of an image: its patches, and the class token where there is one."""
        return self.patches + int(self.class_token)
