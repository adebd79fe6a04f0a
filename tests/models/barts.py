"""Tiny BARTs whose weights need no file: their names tell the values."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from dora_jax.models.source import Source
from tests.checkpoint import tiny_model
from tests.models.families import weight

GOLDEN = Path(__file__).parents[1] / "golden" / "barts.json"
PAD, BOS, EOS = 0, 1, 2
SIZES = {
    "vocab_size": len(tiny_model.TOKENS),
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_layers": 3,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 48,
    "bos_token_id": BOS,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "forced_eos_token_id": None,
    "decoder_start_token_id": EOS,
}
BARTS: dict[str, dict[str, Any]] = {"bart": {}, "scaled": {"scale_embedding": True}}

LENGTHS = (20, 7, 13)
_RNG = np.random.default_rng(21)
PROMPTS = [[BOS, *_RNG.integers(3, SIZES["vocab_size"], n - 2).tolist(), EOS] for n in LENGTHS]
TOKENS = np.concatenate(
    [np.full((3, 1), EOS), _RNG.integers(3, SIZES["vocab_size"], (3, 11))], axis=1
)
SEEN = (0, 5, 11)  # positions whose logits the golden file keeps

NEW_TOKENS = 20
BEAMS = 5
# A tenth of a tiny model's tokens, so that texts do end.
STOP_IDS = (EOS, *range(3, SIZES["vocab_size"], 11))
# What BART-base's own generation config says.
OWN = {"forced_bos_token_id": BOS, "forced_eos_token_id": EOS, "no_repeat_ngram_size": 3}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "own": {**OWN, "early_stopping": True},
    "bigrams": {"no_repeat_ngram_size": 2, "length_penalty": 2.0},
    "penalty": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 1},
}


def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a tensor, told by its name, such that texts differ by source, place and beam.

    Norms' biases are about zero: of 1 each, the head would always prefer the same tokens.
    """
    told = weight(name, shape)
    if name.endswith(("norm.bias", "layernorm_embedding.bias")):
        return told - 1
    if len(shape) == 1 or shape[0] == 1:
        return told
    is_strong = any(
        part in name for part in ("shared", "decoder.embed_positions", "self_attn", "fc")
    )
    return told * (4 if is_strong else 1)


def source() -> Source:
    """Return the prompts, padded right."""
    tokens = np.full((len(PROMPTS), max(LENGTHS)), PAD)
    for row, prompt in enumerate(PROMPTS):
        tokens[row, : len(prompt)] = prompt
    return Source(tokens, np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None])


def golden(name: str) -> dict[str, Any]:
    """Return what `transformers` makes of a model."""
    found: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))[name]
    return found


def write_folder(folder: Path, name: str, rename: Any = lambda key: key) -> dict[str, np.ndarray]:
    """Write a model's folder, its tensors' names changed; return the tensors."""
    expected = golden(name)
    found = {key: value(key, tuple(shape)) for key, shape in expected["tensors"].items()}
    folder.mkdir(parents=True)
    named = {rename(key): array for key, array in found.items()}
    safetensors.numpy.save_file(named, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(expected["config"]))
    tiny_model.tokenizer().save(folder)
    return found
