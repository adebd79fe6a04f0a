"""Write `barts.json`: configs, tensor names, logits and texts of tiny BARTs, by `transformers`.

Run in the parity environment: python -m tests.golden.make_barts_golden
"""

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tests.golden.writing import write_by_name
from tests.models.barts import (
    BARTS,
    BEAMS,
    EOS,
    GOLDEN,
    NEW_TOKENS,
    PAD,
    SEEN,
    SETTINGS,
    SIZES,
    STOP_IDS,
    TOKENS,
    source,
    value,
)


def peer(name: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Return transformers' model, its config, and its tensors' shapes.

    The weights are told by their names in files.
    """
    import transformers

    config = transformers.BartConfig(**SIZES, **BARTS[name])
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/model.safetensors"
        transformers.BartForConditionalGeneration(config).save_pretrained(folder)
        shapes = {key: a.shape for key, a in safetensors.numpy.load_file(file).items()}
        own = {key: value(key, shape) for key, shape in shapes.items()}
        safetensors.numpy.save_file(own, file, {"format": "pt"})
        model = transformers.BartForConditionalGeneration.from_pretrained(
            folder, attn_implementation="eager"
        ).eval()
        saved = json.loads((Path(folder) / "config.json").read_text())
    saved.pop("transformers_version", None)
    return model, saved, shapes


def write_texts(model: Any, beams: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the texts of each prompt without start and stop tokens; of beams with their scores."""
    import torch

    given = source()
    with torch.no_grad():
        out = model.generate(
            torch.from_numpy(given.tokens),
            attention_mask=torch.from_numpy(given.is_real.astype(int)),
            max_new_tokens=NEW_TOKENS,
            num_beams=beams,
            num_return_sequences=beams,
            do_sample=False,
            eos_token_id=list(STOP_IDS),
            pad_token_id=PAD,
            decoder_start_token_id=EOS,
            return_dict_in_generate=True,
            output_scores=True,
            **settings,
        )
    texts = []
    for row in out.sequences[:, 1:].tolist():
        end = next((i for i, token in enumerate(row) if token in STOP_IDS), len(row))
        texts.append(row[:end])
    scores = [] if beams == 1 else out.sequences_scores.numpy().round(5).tolist()
    return {"texts": texts, "scores": scores}


def main() -> None:
    """Write the golden file."""
    import torch

    warnings.simplefilter("ignore")
    found = {}
    for name in BARTS:
        model, config, shapes = peer(name)
        given = source()
        with torch.no_grad():
            logits = model(
                input_ids=torch.from_numpy(given.tokens),
                attention_mask=torch.from_numpy(given.is_real.astype(int)),
                decoder_input_ids=torch.from_numpy(TOKENS),
            ).logits
        found[name] = {
            "config": config,
            "tensors": {key: list(shape) for key, shape in shapes.items()},
            "logits": np.round(logits[:, list(SEEN)].numpy(), 5).tolist(),
            "greedy": {key: write_texts(model, 1, own) for key, own in SETTINGS.items()},
            "beams": {key: write_texts(model, BEAMS, own) for key, own in SETTINGS.items()},
        }
        for kind in ("greedy", "beams"):
            for key, texts in found[name][kind].items():
                print(name, kind, key, [len(text) for text in texts["texts"]])
    write_by_name(GOLDEN, found)


if __name__ == "__main__":
    main()
