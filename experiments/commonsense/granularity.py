"""Granularity (the paper's Table 6): which modules get a direction, which a magnitude only.

`qkv-dora` trains magnitude and direction of q, k and v and the magnitudes alone of o, gate, up and
down. The modules that a variant does not name are frozen.
"""

from smollm2 import study


def _variant(method: str, modules: str) -> dict[str, object]:
    return {"train.method": method, "adapter.modules": modules}


config = study(
    "commonsense-granularity",
    "cloze",
    variants={
        "LoRA on q k v up down": _variant("lora", "paper"),
        "DoRA on q k v up down": _variant("dora", "paper"),
        "DoRA on all linear": _variant("dora", "all-linear"),
        "QKV DoRA, magnitudes elsewhere": _variant("dora", "qkv-dora"),
        "DoRA on q k v alone": _variant("dora", "(q|k|v)_proj"),
        "Magnitudes of all linear": _variant("magnitude", "all-linear"),
    },
)
