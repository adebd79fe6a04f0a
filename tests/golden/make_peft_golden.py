"""Write `peft/`: adapters that PEFT trained and saved, with losses, logits and merged weights.

For each case of `tests/checkpoint/peft_cases.py`: PEFT's folder after 20 steps of torch's AdamW
(no dropout), and in `peft/outputs.json` the loss of each step, logits of a few positions, and
entries of every merged weight. The factors start from values that their names tell.

Run in the parity environment: python -m tests.golden.make_peft_golden
"""

import shutil
import warnings
from typing import Any

import numpy as np

from tests.checkpoint.peft_cases import BATCHES, CASES, DECAY, GOLDEN, RATE, initial
from tests.golden.make_families_golden import peer
from tests.golden.writing import write_by_name
from tests.models.families import SEEN, TOKENS

ENTRIES = 12  # of each merged weight, evenly spread


def adapted(name: str) -> Any:
    """Return PEFT's model of a case, untrained."""
    import peft
    import torch

    family, fields = CASES[name]
    model = peft.get_peft_model(peer(family), peft.LoraConfig(task_type="CAUSAL_LM", **fields))
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


def train(model: Any) -> list[float]:
    """Train by AdamW on `BATCHES`; return the losses."""
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
    losses = []
    for batch in BATCHES:
        ids = torch.from_numpy(batch)
        loss = model(ids, labels=ids).loss
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

    with torch.no_grad():
        logits = model(torch.from_numpy(TOKENS)).logits.numpy()[:, list(SEEN)]
    before = dict(peer(family).named_parameters())
    weights = {
        name: entries(p.detach().numpy())
        for name, p in model.merge_and_unload().named_parameters()
        if name not in before or not torch.equal(p, before[name])
    }
    rounded = [[[round(float(x), 7) for x in row] for row in rows] for rows in logits]
    return {"logits": rounded, "merged": weights}


def main() -> None:
    """Train every case and write the folders."""
    warnings.simplefilter("ignore")
    found = {}
    for name in CASES:
        model = adapted(name)
        losses = train(model)
        shutil.rmtree(GOLDEN / name, ignore_errors=True)
        model.save_pretrained(GOLDEN / name)
        (GOLDEN / name / "README.md").unlink()
        found[name] = {"losses": losses, **outputs(model, CASES[name][0])}
        print(f"{name}: loss {losses[0]:.4f} to {losses[-1]:.4f}")
    write_by_name(GOLDEN / "outputs.json", found)


if __name__ == "__main__":
    main()
