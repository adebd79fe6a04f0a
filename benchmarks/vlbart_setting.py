"""What of VL-BART is measured: the paper's two families on random weights."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shapes import VLBART_SHAPES
from dora_jax.cost import StepCost
from dora_jax.encoder_decoder_cost import encoder_decoder_cost
from dora_jax.models.source import Source, Visual
from dora_jax.models.vlbart import VLBart, VLBartConfig
from dora_jax.spec import AdapterRules, AdapterSpec
from dora_jax.training.step import Batch
from experiments.vlbart.tuned import CONFIGS, Family, tuned

METHODS = ("lora", "dora", "dora-exact", "full")
# Features of an image as they are kept, before pooling: CLIP-ResNet's 7 x 7; frames of a clip.
_FEATURES: dict[Family, int] = {"image": 49, "video": 64}
_EVERYTHING = AdapterRules([(".*", AdapterSpec("full"))])


@dataclass(frozen=True)
class VLBartSetting:
    """What is timed; the defaults are an image-text batch that two CPU cores take.

    Attributes:
        family: image or video, by the paper's rules for it.
        shape: a name in `VLBART_SHAPES`.
        method: one of `METHODS`; dora-exact differentiates the norm, full trains all parameters.
        batch: rows a step.
        prompt: tokens of text that the encoder reads a row.
        target: tokens that the decoder writes a row, all of them labels.
        images: of a row.
        rank: of the low-rank factors; alpha is the same.
        remat: none, dots or full.
        micro_batches: parts of the batch, one after another.
        dtype: of the computation and of the frozen weights.
    """

    family: Family = "image"
    shape: str = "bart-base"
    method: str = "dora"
    batch: int = 16
    prompt: int = 20
    target: int = 10
    images: int = 1
    rank: int = 128
    remat: str = "dots"
    micro_batches: int = 1
    dtype: str = "float32"

    @property
    def config(self) -> VLBartConfig:
        """The model's shape."""
        return dataclasses.replace(CONFIGS[self.family], **VLBART_SHAPES[self.shape])

    @property
    def visual(self) -> int:
        """Positions of a row that its images become."""
        return self.images * min(self.config.image_tokens, _FEATURES[self.family])

    @property
    def tokens(self) -> int:
        """Positions a step, of encoder and decoder."""
        return self.batch * (self.prompt + self.visual + self.target)

    def rules(self) -> AdapterRules:
        """Return what is tuned."""
        if self.method == "full":
            return _EVERYTHING
        method: Literal["lora", "dora"] = "lora" if self.method == "lora" else "dora"
        own: Any = {"rank": self.rank, "alpha": float(self.rank)}
        if method == "dora":
            own["detach_norm"] = self.method != "dora-exact"
        return AdapterRules(
            [
                (pattern, dataclasses.replace(spec, **own) if spec.has_low_rank else spec)
                for pattern, spec in tuned(method, self.family).rules
            ]
        )

    def adapted(self) -> VLBart:
        """Return the model with its adapters."""
        how: Any = {"remat": self.remat}
        return VLBart(self.config, self.rules(), **self._dtypes(), **how)

    def plain(self) -> VLBart:
        """Return the model without adapters."""
        return VLBart(self.config, **self._dtypes())

    def _dtypes(self) -> dict[str, Any]:
        dtype = jnp.dtype(self.dtype)
        return {"dtype": dtype, "param_dtype": dtype}

    def random_features(self, rows: int) -> np.ndarray:
        """Return features (rows, images, cells or frames, size)."""
        shape = (rows, self.images, _FEATURES[self.family], self.config.feature_size)
        return np.random.default_rng(1).standard_normal(shape, np.float32)

    def random_tokens(self, rows: int, length: int) -> np.ndarray:
        """Return token ids (rows, length)."""
        drawn = np.random.default_rng(0).integers(3, self.config.vocab_size, (rows, length))
        return drawn.astype(np.int32)

    def random_batch(self) -> Batch:
        """Return one batch of random rows."""
        features = self.random_features(self.batch)
        is_real = np.ones(features.shape[:3], bool)
        source = Source(
            self.random_tokens(self.batch, self.prompt),
            np.ones((self.batch, self.prompt), bool),
            Visual(features, np.zeros((*is_real.shape, 4), np.float32), is_real),
        )
        tokens = self.random_tokens(self.batch, self.target)
        positions = np.broadcast_to(np.arange(self.target, dtype=np.int32), tokens.shape)
        weights = np.ones(tokens.shape, np.float32)
        batch = Batch(tokens, positions, tokens, weights, source=source)
        return jax.tree.map(jnp.asarray, batch)

    def cost(self) -> StepCost:
        """Return the operations of a step."""
        return encoder_decoder_cost(
            self.adapted(),
            self.batch,
            self.prompt,
            self.target,
            self.batch * self.target,
            self.visual,
        )
