"""The shape of a BART, by the names of Hugging Face's `config.json`."""

from dataclasses import dataclass

SIZES = (
    "vocab_size",
    "d_model",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_layers",
    "decoder_attention_heads",
    "decoder_ffn_dim",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class BartConfig:
    """Sizes and constants of one model; the defaults are those of BART-base.

    Names and meanings are those of `transformers`.

    Attributes:
        max_position_embeddings: the longest source, and the longest text with its start token.
        scale_embedding: whether embeddings are multiplied by sqrt(d_model).
        decoder_start_token_id: what the decoder's text begins with.
        eos_token_id: all tokens that end a text.

    Raises:
        ValueError: when the sizes cannot describe a model.
    """

    vocab_size: int = 50265
    d_model: int = 768
    encoder_layers: int = 6
    encoder_attention_heads: int = 12
    encoder_ffn_dim: int = 3072
    decoder_layers: int = 6
    decoder_attention_heads: int = 12
    decoder_ffn_dim: int = 3072
    max_position_embeddings: int = 1024
    scale_embedding: bool = False
    bos_token_id: int | None = 0
    pad_token_id: int | None = 1
    eos_token_id: tuple[int, ...] = (2,)
    decoder_start_token_id: int = 2

    def __post_init__(self) -> None:
        for name in SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for part in ("encoder", "decoder"):
            heads = getattr(self, f"{part}_attention_heads")
            if self.d_model % heads:
                raise ValueError(
                    f"d_model ({self.d_model}) must be a multiple of {part}_attention_heads "
                    f"({heads})"
                )
        if not 0 <= self.decoder_start_token_id < self.vocab_size:
            raise ValueError(
                f"decoder_start_token_id ({self.decoder_start_token_id}) must be one of the "
                f"{self.vocab_size} tokens"
            )

    @property
    def text(self) -> "BartConfig":
        """The language model's shape: itself. A model that sees has one among others."""
        return self

    @property
    def context_length(self) -> int:
        """The longest source, and the longest text with its start token."""
        return self.max_position_embeddings
