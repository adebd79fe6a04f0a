"""The shape of a decoder of the LLaMA family, by the names of Hugging Face's `config.json`."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from dora_jax.models.rotary import Rotary
from dora_jax.spec import nearest

Activation = Literal["silu", "gelu_pytorch_tanh", "gelu"]
LayerType = Literal["full_attention", "sliding_attention"]

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


class LayerKind(NamedTuple):
    """What differs between layers, all else being equal.

    Attributes:
        window: a query sees so many latest keys, itself included; None is all of them.
        rope: how positions rotate; None is not at all.
    """

    window: int | None
    rope: Rotary | None


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes and constants of one model.

    The defaults are those of SmolLM2-135M. Names and meanings are those of `transformers` where it
    has one; a family of models is a choice of these fields, never its name.

    Attributes:
        model_type: the family, which decides nothing but how a `config.json` is written.
        rope: rotary positions.
        sliding_rope: those of layers with sliding attention, where they differ (Gemma 3).
        no_rope_layers: for each layer 1, or 0 where it has no rotary positions (SmolLM3); None is
            all ones.
        sliding_window: keys that a query sees in layers with sliding attention.
        layer_types: of each layer; None is sliding for all where there is a `sliding_window`.
        hidden_act: of the gate.
        qkv_bias: whether q, k and v have a bias.
        o_bias: whether the attention's output has one.
        mlp_bias: whether gate, up and down have one.
        qk_norm: whether each head's query and key are normalised before they are rotated.
        fused_projections: whether q, k, v are one projection, and gate and up another (Phi-3).
        sandwich_norms: whether attention and MLP have a norm behind them too (Gemma 2 and 3).
        unit_offset: whether norms scale by 1 + weight (Gemma).
        scale_embeddings: whether embeddings are multiplied by sqrt(hidden_size) (Gemma).
        query_pre_attn_scalar: attention divides by its root; None is `head_dim`.
        attn_logit_softcapping: bound of the attention's logits, by tanh; None is no bound.
        final_logit_softcapping: the same of the model's.
        eos_token_id: all tokens that end a text.

    Raises:
        ValueError: when the sizes cannot describe a model (heads that do not divide, and so on).
    """

    vocab_size: int = 49152
    hidden_size: int = 576
    intermediate_size: int = 1536
    num_hidden_layers: int = 30
    num_attention_heads: int = 9
    num_key_value_heads: int = 3
    head_dim: int = 64
    rope: Rotary = field(default_factory=lambda: Rotary(rope_theta=100000.0))
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    max_position_embeddings: int = 8192
    bos_token_id: int | None = 1
    eos_token_id: tuple[int, ...] = (2,)
    pad_token_id: int | None = None
    model_type: str = "llama"
    sliding_rope: Rotary | None = None
    no_rope_layers: tuple[int, ...] | None = None
    sliding_window: int | None = None
    layer_types: tuple[LayerType, ...] | None = None
    hidden_act: Activation = "silu"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    fused_projections: bool = False
    sandwich_norms: bool = False
    unit_offset: bool = False
    scale_embeddings: bool = False
    query_pre_attn_scalar: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None

    def __post_init__(self) -> None:
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embeddings, got {self.head_dim}")
        if self.hidden_act not in get_args(Activation):
            raise ValueError(
                f"hidden_act must be one of {', '.join(get_args(Activation))}; got "
                f"{self.hidden_act!r}{nearest(self.hidden_act, get_args(Activation))}"
            )
        for rope in filter(None, (self.rope, self.sliding_rope)):
            rope.check(self.head_dim)
            if rope.dim(self.head_dim) != self.rotary_dim:
                raise ValueError("partial_rotary_factor must be the same for all layers")
        self._check_layers()

    def _check_layers(self) -> None:
        for name in ("layer_types", "no_rope_layers"):
            given = getattr(self, name)
            if given is not None and len(given) != self.num_hidden_layers:
                raise ValueError(
                    f"{name} lists {len(given)} layers, num_hidden_layers is "
                    f"{self.num_hidden_layers}"
                )
        unknown = set(self.layer_types or ()) - set(get_args(LayerType))
        if unknown:
            raise ValueError(
                f"layer_types holds {', '.join(sorted(unknown))}; supported: "
                f"{', '.join(get_args(LayerType))}"
            )
        if "sliding_attention" in (self.layer_types or ()) and self.sliding_window is None:
            raise ValueError("layer_types has sliding_attention, but sliding_window is not given")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window must be at least 1, got {self.sliding_window}")

    @property
    def text(self) -> "LlamaConfig":
        """The language model's shape: itself. A model that sees has one among others."""
        return self

    @property
    def rotary_dim(self) -> int:
        """The number of a head's features that are rotated."""
        return self.rope.dim(self.head_dim)

    @property
    def context_length(self) -> int:
        """The longest sequence that the model is meant for.

        `linear` and `dynamic` stretch the context that the config gives, the other kinds are told
        the stretched one.
        """
        if self.rope.rope_type in ("linear", "dynamic") and self.sliding_rope is None:
            return int(self.max_position_embeddings * (self.rope.factor or 1))
        return self.max_position_embeddings

    @property
    def attention_scale(self) -> float:
        """By what the products of queries and keys are multiplied."""
        return (self.query_pre_attn_scalar or self.head_dim) ** -0.5

    def layer_kinds(self) -> tuple[tuple[LayerKind, ...], tuple[int, ...]]:
        """Return the different kinds of layers, and for each layer the index of its kind."""
        kinds: list[LayerKind] = []
        indices = []
        for n in range(self.num_hidden_layers):
            if self.layer_types is None:
                slides = self.sliding_window is not None
            else:
                slides = self.layer_types[n] == "sliding_attention"
            rope = self.sliding_rope if slides and self.sliding_rope is not None else self.rope
            turns = self.no_rope_layers is None or bool(self.no_rope_layers[n])
            kind = LayerKind(self.sliding_window if slides else None, rope if turns else None)
            if kind not in kinds:
                kinds.append(kind)
            indices.append(kinds.index(kind))
        return tuple(kinds), tuple(indices)
