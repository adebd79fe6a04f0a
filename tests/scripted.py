"""An answerer without a model: what it answers follows from the prompt alone."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from dora_jax.answer import Answerer
from dora_jax.checkpoint.pretrained import Pretrained
from dora_jax.data.prompts import get_template
from dora_jax.generation import Completion
from dora_jax.models.llama import Llama
from tests.checkpoint.tiny_model import CONFIG, tokenizer


@dataclasses.dataclass(frozen=True)
class Scripted(Answerer):
    """Answers by `reply`, a piece at a time; remembers what it was asked."""

    reply: Callable[[str, int], list[str]] = lambda text, seed: [" ans", "wer "]
    asked: list[str] = dataclasses.field(default_factory=list)
    calls: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def generate(self, prompts, sampling, *, stop=(), batch_size=32, on_text=None, images=None):
        self.calls.append({"sampling": sampling, "stop": stop, "batch_size": batch_size})
        found = []
        for number, ids in enumerate(prompts):
            text = self.tokenizer.decode(ids, skip_special_tokens=False)
            self.asked.append(text)
            for sample in range(sampling.num_samples):
                pieces = self.reply(text, sampling.seed + sample)
                for piece in pieces if on_text else []:
                    on_text(len(found), piece)
                kept = tuple(self.tokenizer.encode("".join(pieces)))
                reason = "length" if len(kept) >= sampling.max_new_tokens else "stop"
                log_probs = (-0.5,) * len(kept)
                found.append(
                    Completion(number, sample, "".join(pieces), kept, log_probs, reason, -9.0)
                )
        return found


def scripted(template="chat", context=CONFIG.max_position_embeddings, name="base", **fields):
    config = dataclasses.replace(CONFIG, max_position_embeddings=context)
    shape = get_template(template)
    params = {"kernel": json.dumps(name).encode()}
    base = Pretrained(config, params, tokenizer(), "made up", "base")
    return Scripted(Llama(config), params, base.tokenizer, shape, base, name, **fields)
