"""Write `llavas.json`: configs, tensor names, logits and texts of tiny LLaVAs, by `transformers`.

Run in the parity environment: python -m tests.golden.make_llavas_golden
"""

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from tests.golden.writing import write_by_name
from tests.models.families import FAMILIES, weight
from tests.models.llavas import (
    GOLDEN,
    IMAGE,
    IMAGE_TOKENS,
    IMAGES,
    LLAVAS,
    NEW_TOKENS,
    OF_ROWS,
    SEEN,
    SELECTIONS,
    sizes,
    tokens,
)
from tests.models.towers import TOWERS


def peer(name: str) -> Any:
    """Return transformers' model; its weights are told by their names in files."""
    import transformers

    family, tower, settings = (LLAVAS | SELECTIONS)[name]
    text, vision = sizes(name)
    config = transformers.LlavaConfig(
        text_config=getattr(transformers, f"{FAMILIES[family][0]}Config")(**text),
        vision_config=getattr(transformers, f"{TOWERS[tower][0]}Config")(**vision),
        image_token_id=IMAGE,
        tie_word_embeddings=text.get("tie_word_embeddings", False),
        **settings,
    )
    config._attn_implementation = "eager"
    model = transformers.LlavaForConditionalGeneration(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with safe_open(f"{folder}/model.safetensors", "np") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in list(file.keys())}
        import safetensors.numpy

        own = {key: weight(key, shape) for key, shape in shapes.items()}
        safetensors.numpy.save_file(own, f"{folder}/model.safetensors", {"format": "pt"})
        model = transformers.LlavaForConditionalGeneration.from_pretrained(
            folder, attn_implementation="eager"
        ).eval()
        saved = json.loads((Path(folder) / "config.json").read_text())
    saved.pop("transformers_version", None)
    return model, saved, shapes


def main() -> None:
    """Write the golden file."""
    import torch

    warnings.simplefilter("ignore")
    found = {}
    for name in LLAVAS | SELECTIONS:
        model, config, shapes = peer(name)
        logits, greedy = [], []
        for row, count in enumerate(OF_ROWS):
            ids = torch.from_numpy(tokens(IMAGE_TOKENS[name])[row : row + 1])
            pixels = torch.from_numpy(IMAGES[row, :count].transpose(0, 3, 1, 2).copy())
            given = {"pixel_values": pixels} if count else {}
            with torch.no_grad():
                logits.append(model(ids, **given).logits[0, list(SEEN)].numpy())
                out = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=NEW_TOKENS,
                    eos_token_id=[],
                    do_sample=False,
                    **given,
                )
            greedy.append(out[0, ids.shape[1] :].tolist())
        found[name] = {
            "config": config,
            "tensors": {key: list(shape) for key, shape in shapes.items()},
            "logits": np.round(np.stack(logits), 5).tolist(),
            "greedy": greedy,
        }
    write_by_name(GOLDEN, found)


if __name__ == "__main__":
    main()
