"""One prompt answered in text: what `dora-jax generate` does."""

from pathlib import Path

import jax
import jax.numpy as jnp

from dora_jax.checkpoint.adapter import load_model
from dora_jax.data.prompts import get_template
from dora_jax.errors import DoraError
from dora_jax.generation import Sampling, generate_ids
from dora_jax.models.llama import Llama

DEFAULT_MODEL = "smollm2-135m-instruct"


def answer(
    prompt: str,
    *,
    adapter: Path | None = None,
    model: str | None = None,
    template: str | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """Return the model's answer to a prompt.

    Args:
        prompt: what is asked.
        adapter: an adapter's folder, or the part of a run that holds one; merged before use.
        model: the base model; None takes the adapter's own, or else `DEFAULT_MODEL`.
        template: prompt template; the adapter's own by default, `chat` for a base model.
        max_new_tokens: see `Sampling`.
        temperature: see `Sampling`.
        seed: see `Sampling`.

    Raises:
        DoraError: for an empty prompt, an unknown template, or anything that cannot be loaded.
    """
    if not prompt.strip():
        raise DoraError("the prompt is empty: give some text with --prompt")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise DoraError(f"the prompt is not text: {error}; give it in UTF-8") from None
    if template is not None:
        get_template(template)
    sampling = Sampling(max_new_tokens, temperature, seed)
    if model is None and adapter is None:
        model = DEFAULT_MODEL
    loaded = load_model(model, adapter)
    tokenizer = loaded.pretrained.tokenizer
    trained_with = None if loaded.info is None else loaded.info.prompt
    shape = get_template(template or trained_with or "chat")
    variables = {"params": jax.tree.map(jnp.asarray, loaded.merged())}
    ids = [shape.encode_prompt(prompt, tokenizer)]
    stops = [tokenizer.eos_id]
    out = generate_ids(Llama(loaded.pretrained.config), variables, ids, sampling, stops)
    return tokenizer.decode(out[0]).strip()
