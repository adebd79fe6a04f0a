"""Write `peft/`: adapters that PEFT trained and saved, with losses, logits and merged weights.

For each case of `tests/checkpoint/peft_cases.py`: PEFT's folder after 20 steps of torch's AdamW
(no dropout; a projector at a rate of its own), and in `peft/outputs.json` the loss of each step,
logits of a few positions, and entries of every merged weight. The factors start from values that
their names tell.

Run in the parity environment: python -m tests.golden.make_peft_golden [CASE ...]
"""

import json
import shutil
import sys
import warnings
from typing import Any

import numpy as np

from tests.checkpoint.peft_cases import (
    CASES,
    DECAY,
    GOLDEN,
    PROJECTOR_RATE,
    RATE,
    batches,
    initial,
    inputs,
    is_llava,
)
from tests.golden import make_families_golden, make_llavas_golden
from tests.golden.writing import write_by_name
from tests.models.llavas import IMAGE, OF_ROWS

ENTRIES = 12  # of each merged weight, evenly spread


def peer(family: str) -> Any:
    """Return transformers' model of a case's family."""
    if is_llava(family):
        model = make_llavas_golden.peer(family)[0]
        del model.name_or_path  # a folder that is gone
        return model
    return make_families_golden.peer(family)


def torch_inputs(tokens: np.ndarray, images: np.ndarray | None) -> dict[str, Any]:
    """Return what transformers' models take: of images those that are there, one by one."""
    import torch

    ids = {"input_ids": torch.from_numpy(tokens)}
    if images is None:
        return ids
    own = np.concatenate([row[:count] for row, count in zip(images, OF_ROWS, strict=True)])
    return {**ids, "pixel_values": torch.from_numpy(own.transpose(0, 3, 1, 2).copy())}


def adapted(name: str) -> Any:
    """Return PEFT's model of a case, untrained."""
    import peft
    import torch

    family, fields = CASES[name]
    task = None if is_llava(family) else "CAUSAL_LM"
    model = peft.get_peft_model(peer(family), peft.LoraConfig(task_type=task, **fields))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            start = initial(key.replace(".default", ""), tuple(parameter.shape))
            if start is not None:
                parameter.copy_(torch.from_numpy(start))
        for module in model.modules():
            if getattr(module, "lora_magnitude_vector", None):
                # The norm of what the factors are now: as a fresh adapter starts.
                embedding = "default" in module.lora_embedding_A
                a, b = (
                    (module.lora_embedding_A["default"], module.lora_embedding_B["default"])
                    if embedding
                    else (module.lora_A["default"].weight, module.lora_B["default"].weight)
                )
                w = module.get_base_layer().weight
                delta = module.scaling["default"] * (b @ a)
                v = w + (delta.T if embedding else delta)
                m = module.lora_magnitude_vector["default"].weight
                m.copy_(v.norm(dim=0 if embedding else 1) * 1.05)
    return model.eval()


def train(model: Any, family: str) -> list[float]:
    """Train by AdamW on `batches`; return the losses."""
    import torch

    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: dict[float, list[Any]] = {RATE: [], PROJECTOR_RATE: []}
    for name, parameter in trained:
        groups[PROJECTOR_RATE if "multi_modal_projector" in name else RATE].append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": own, "lr": rate} for rate, own in groups.items()], weight_decay=DECAY
    )
    losses = []
    tokens, images = batches(family)
    for n, batch in enumerate(tokens):
        given = torch_inputs(batch, None if images is None else images[n])
        labels = given["input_ids"]
        if images is not None:
            labels = labels.masked_fill(labels == IMAGE, -100)
        loss = model(**given, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def entries(array: np.ndarray) -> list[float]:
    """Return evenly spread entries of an array in torch's layout."""
    flat = array.reshape(-1)
    return [round(float(x), 8) for x in flat[:: max(1, flat.size // ENTRIES)]]


def outputs(model: Any, family: str) -> dict[str, Any]:
    """Return logits of a few positions, and entries of the merged weights."""
    import torch

    tokens, images, seen = inputs(family)
    with torch.no_grad():
        logits = model(**torch_inputs(tokens, images)).logits.numpy()[:, seen]
    before = dict(peer(family).named_parameters())
    weights = {
        name: entries(p.detach().numpy())
        for name, p in model.merge_and_unload().named_parameters()
        if name not in before or not torch.equal(p, before[name])
    }
    rounded = [[[round(float(x), 7) for x in row] for row in rows] for rows in logits]
    return {"logits": rounded, "merged": weights}


def main() -> None:
    """Train the named cases, or all, and write their folders."""
    warnings.simplefilter("ignore")
    path = GOLDEN / "outputs.json"
    found = json.loads(path.read_text(encoding="utf-8")) if sys.argv[1:] else {}
    for name in sys.argv[1:] or CASES:
        model = adapted(name)
        losses = train(model, CASES[name][0])
        shutil.rmtree(GOLDEN / name, ignore_errors=True)
        model.save_pretrained(GOLDEN / name)
        (GOLDEN / name / "README.md").unlink()
        found[name] = {"losses": losses, **outputs(model, CASES[name][0])}
        print(f"{name}: loss {losses[0]:.4f} to {losses[-1]:.4f}")
    write_by_name(path, found)


if __name__ == "__main__":
    main()
