"""Write `families.json`: configs, tensor names and outputs of tiny models, by `transformers`.

For each family of `tests/models/families.py`: the `config.json` that transformers writes, the names
and shapes of its tensors, logits of a few positions and the greedy continuation, in float32.

Run in the parity environment: python -m tests.golden.make_families_golden
"""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.writing import write_by_name
from tests.models.families import FAMILIES, NEW_TOKENS, SEEN, SIZES, TOKENS, weight

TARGET = Path(__file__).with_name("families.json")


def peer(family: str) -> Any:
    """Return transformers' model of a family, with our weights."""
    import torch
    import transformers

    kind, settings = FAMILIES[family]
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **settings})
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(torch.from_numpy(weight(name, tuple(tensor.shape))))
    return model


def outputs(model: Any) -> dict[str, Any]:
    """Return logits and the greedy continuation of `TOKENS`."""
    import torch

    ids = torch.from_numpy(TOKENS)
    with torch.no_grad():
        logits = model(ids).logits.numpy()
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            eos_token_id=[],  # go on whatever comes
            do_sample=False,
        )
    return {
        "logits": [[[round(float(x), 5) for x in row[i]] for i in SEEN] for row in logits],
        "greedy": out[:, ids.shape[1] :].tolist(),
    }


def _config(model: Any) -> dict[str, Any]:
    fields = json.loads(model.config.to_json_string(use_diff=False))
    saved = json.loads(model.config.to_json_string(use_diff=True))
    kept = {name: fields[name] for name in saved if name in fields} | saved
    kept["architectures"] = [type(model).__name__]
    return {name: value for name, value in kept.items() if name != "transformers_version"}


def main() -> None:
    """Run the reference models and write the file."""
    warnings.simplefilter("ignore")
    found = {}
    for family in FAMILIES:
        model = peer(family)
        shapes = {name: list(p.shape) for name, p in model.named_parameters()}
        found[family] = {"config": _config(model), "shapes": shapes, **outputs(model)}
        largest = np.abs(found[family]["logits"]).max()
        print(f"{family}: largest logit {largest:.2f}")
    write_by_name(TARGET, found)


if __name__ == "__main__":
    main()
