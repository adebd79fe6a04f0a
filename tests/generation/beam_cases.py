"""Beam searches that are compared with transformers' own."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.models.families import SIZES

FAMILIES = ("llama", "mistral", "gemma3", "qwen2")
BEAMS = 4
NEW_TOKENS = 32
# A tenth of a tiny model's tokens, so that texts do end.
STOP_IDS = tuple(range(3, SIZES["vocab_size"], 11))
PAD_ID = 2
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "early": {"early_stopping": True},
    "never": {"early_stopping": "never"},
    "long": {"length_penalty": 2.0},
    "short": {"length_penalty": -0.5, "early_stopping": "never"},
    "penalty": {"repetition_penalty": 1.3, "length_penalty": 0.7},
    "endless": {"stop_ids": ()},
}
CASES = [("llama", name) for name in SETTINGS]
CASES += [(f, name) for f in FAMILIES[1:] for name in ("plain", "long", "early", "penalty")]

# Every prompt has the padding's token: transformers' repetition penalty counts padding as text.
_RNG = np.random.default_rng(3)
PROMPTS = [[PAD_ID, *_RNG.integers(3, SIZES["vocab_size"], n).tolist()] for n in (18, 4, 10)]


def golden() -> dict[str, Any]:
    path = Path(__file__).parents[1] / "golden" / "beams.json"
    return json.loads(path.read_text(encoding="utf-8"))


def padded() -> tuple[np.ndarray, np.ndarray]:
    """Return the prompts padded left, and which tokens are real."""
    width = max(map(len, PROMPTS))
    ids = np.full((len(PROMPTS), width), PAD_ID)
    for row, prompt in enumerate(PROMPTS):
        ids[row, width - len(prompt) :] = prompt
    real = np.arange(width) >= np.array([[width - len(prompt)] for prompt in PROMPTS])
    return ids, real.astype(int)


def peer_search(model: Any, settings: dict[str, Any]) -> tuple[list[list[list[int]]], np.ndarray]:
    """Return transformers' beams of each prompt, best first, without stop tokens, and scores."""
    import torch

    fields = {"stop_ids": STOP_IDS, **settings}
    stop_ids = list(fields.pop("stop_ids"))
    ids, real = padded()
    with torch.no_grad():
        out = model.generate(
            torch.from_numpy(ids),
            attention_mask=torch.from_numpy(real),
            max_new_tokens=NEW_TOKENS,
            num_beams=BEAMS,
            num_return_sequences=BEAMS,
            do_sample=False,
            eos_token_id=stop_ids,
            pad_token_id=PAD_ID,
            return_dict_in_generate=True,
            output_scores=True,
            **fields,
        )
    rows = []
    for row in out.sequences[:, ids.shape[1] :].tolist():
        end = next((i for i, token in enumerate(row) if token in stop_ids), len(row))
        rows.append(row[:end])
    grouped = [rows[i : i + BEAMS] for i in range(0, len(rows), BEAMS)]
    return grouped, out.sequences_scores.numpy().reshape(-1, BEAMS)
