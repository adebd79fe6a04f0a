"""Write `towers.json`: configs, tensor names and features of tiny vision towers, by `transformers`.

Run in the parity environment: python -m tests.golden.make_towers_golden
"""

import json
from typing import Any

from tests.golden.writing import write_by_name
from tests.models.families import weight
from tests.models.towers import GOLDEN, IMAGES, LAYERS, SEEN, SIZES, TOWERS


def peer(tower: str) -> Any:
    """Return transformers' tower, with our weights."""
    import torch
    import transformers

    kind, settings = TOWERS[tower]
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **settings})
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(torch.from_numpy(weight(name, tuple(tensor.shape))))
    return model


def features(model: Any) -> dict[str, Any]:
    """Return the hidden states of `LAYERS` at `SEEN` tokens, and the pooled vectors."""
    import torch

    pixels = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        found = model(pixels, output_hidden_states=True)
    layers = [found.hidden_states[n][:, list(SEEN)].numpy() for n in LAYERS]
    pooled = found.pooler_output
    return {
        "layers": [layer.round(6).tolist() for layer in layers],
        "pooled": None if pooled is None else pooled.numpy().round(6).tolist(),
    }


def main() -> None:
    """Write the golden file."""
    found = {}
    for tower in TOWERS:
        model = peer(tower)
        config = json.loads(model.config.to_json_string(use_diff=False))
        kept = json.loads(model.config.to_json_string(use_diff=True)) | {
            name: config[name] for name in (*SIZES, "hidden_act", "layer_norm_eps")
        }
        kept["architectures"] = [type(model).__name__]
        kept.pop("transformers_version", None)
        shapes = {name: list(p.shape) for name, p in model.named_parameters()}
        found[tower] = {"config": kept, "tensors": shapes, **features(model)}
    write_by_name(GOLDEN, found)


if __name__ == "__main__":
    main()
