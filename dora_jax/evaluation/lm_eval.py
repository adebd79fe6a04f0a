r"""EleutherAI's lm-eval drives our models: base, adapter or merged, GGUF too.

    python -m dora_jax.evaluation.lm_eval run --tasks arc_easy \
        --model_args pretrained=smollm2-135m-instruct,adapter=runs/x/seed-0/dora

is lm-eval's own command with our models in it, as `dora_jax`; see docs/lm_eval.md. Prompts that
several continuations share are computed once, and requests of like length together.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dora_jax.checkpoint.adapter import load_model
from dora_jax.errors import DoraError
from dora_jax.generation import Sampling, generate
from dora_jax.mesh import MeshConfig
from dora_jax.models.build import SHARDING, build_model
from dora_jax.scoring import Request, score_tokens
from dora_jax.sharding import run_mesh
from dora_jax.spec import nearest
from dora_jax.training.placement import weight_sharding

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise DoraError("this needs lm-eval: pip install 'dora-jax[lm-eval]'") from error

NAME = "dora_jax"
_MAX_NEW_TOKENS = 256  # where a task says nothing, as lm-eval's own models take it
_IGNORED = ("pretty", "trust_remote_code", "device", "max_batch_size")
_SAMPLING = {"top_k", "top_p", "min_p", "repetition_penalty", "num_beams", "length_penalty"}


@register_model(NAME)
class DoraLM(TemplateLM):
    """A model of ours, as lm-eval asks it.

    Args:
        pretrained: a known name, a Hugging Face folder or a GGUF file; with an adapter, empty takes
            the model that it was trained on.
        adapter: an adapter's folder, or the part of a run that holds one; merged in memory.
        dtype: of weights and computation: float32 or bfloat16.
        batch_size: requests at once.
        max_length: longest text in tokens; by default the model's context.
        data: of the mesh: parts of a batch; -1 takes all devices that are left.
        fsdp: of the mesh: parts of each weight.
        tensor: of the mesh: parts of each product.

    Raises:
        DoraError: for an unknown argument, or a model or adapter that cannot be loaded.
    """

    def __init__(
        self,
        pretrained: str = "",
        adapter: str = "",
        dtype: str = "float32",
        batch_size: int | str = 16,
        max_length: int | None = None,
        data: int = -1,
        fsdp: int = 1,
        tensor: int = 1,
        **others: Any,
    ):
        super().__init__()
        allowed = ("pretrained", "adapter", "dtype", "batch_size", "max_length", "data", "fsdp")
        for name in others:
            if name not in _IGNORED:
                raise DoraError(
                    f"--model_args {name}: {NAME} knows no such argument{nearest(name, allowed)}; "
                    f"there are {', '.join((*allowed, 'tensor'))}"
                )
        if not pretrained and not adapter:
            raise DoraError("--model_args must give pretrained=MODEL, adapter=FOLDER, or both")
        if str(batch_size).startswith("auto"):
            batch_size = 16
        self.batch_size = int(batch_size)
        self._mesh = MeshConfig(data=int(data), fsdp=int(fsdp), tensor=int(tensor)).build()
        with jax.set_mesh(self._mesh):
            where = weight_sharding(run_mesh(), SHARDING)
            loaded = load_model(pretrained or None, Path(adapter) if adapter else None, where)
            kind = jnp.dtype(dtype)
            self._params = jax.tree.map(lambda x: x.astype(kind), loaded.merged())
        self._model = build_model(loaded.pretrained.config, dtype=kind)
        self._tokenizer = loaded.pretrained.tokenizer
        self._stop_ids = loaded.pretrained.stop_ids
        self._name = f"{loaded.pretrained.source} {adapter}".strip()
        context = loaded.pretrained.config.text.context_length
        self.max_length = min(int(max_length), context) if max_length else context

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context: the token that begins texts, if any does."""
        start = self._tokenizer.start_ids
        return start[0] if start else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm-eval's cache of requests."""
        return self._name.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Return a text's ids, with what begins texts unless told otherwise or it is there."""
        ids = self._tokenizer.encode(string)
        start = list(self._tokenizer.start_ids)
        if add_special_tokens is False or ids[: len(start)] == start:
            return ids
        return [*start, *ids]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as the model's chat template writes it."""
        return self._tokenizer.apply_chat_template(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the model's chat template, which names it in lm-eval's results."""
        return self._tokenizer.chat_template if chat_template else None

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **others: Any,
    ) -> list[tuple[float, bool]]:
        # Continuations of one context are scored behind it, all at once.
        groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        cut = 0
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for number, (_, context, continuation) in enumerate(requests):
            if not continuation:
                continue  # nothing to score: certain, as an empty text is
            room = self.max_length - len(continuation)
            if room < 1:
                raise DoraError(
                    f"a continuation of {len(continuation)} tokens does not fit into the "
                    f"{self.max_length} tokens that the model reads"
                )
            cut += len(context) > room
            groups.setdefault(tuple(context[-room:]), []).append((number, continuation))
        if cut:
            print(
                f"{cut} contexts are longer than the model's {self.max_length} tokens: their "
                "beginnings are cut off",
                file=sys.stderr,
            )
        asked = [Request(context, [ids for _, ids in own]) for context, own in groups.items()]
        with jax.set_mesh(self._mesh):
            scores = score_tokens(self._model, {"params": self._params}, asked, self.batch_size)
        for own, results in zip(groups.values(), scores, strict=True):
            for (number, _), tokens in zip(own, results, strict=True):
                found[number] = (float(tokens.log_probs.sum()), bool(tokens.is_greedy.all()))
        for (texts, _, _), answer in zip(requests, found, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, in windows of the model's length."""
        windows: list[tuple[Any, list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            (text,) = request.args
            ids = self.tok_encode(text, add_special_tokens=False)
            # One less than is read: `make_disjoint_window` puts the prefix before the first.
            pairs = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length - 1, 1)
            for context, continuation in map(make_disjoint_window, pairs):
                windows.append((None, context, continuation))
                owners.append(number)
        sums = [0.0] * len(requests)
        for number, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[number] += value
        for request, value in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return sums

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes after each context, until one of its stop strings."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        asked = [(request.args[0], dict(request.args[1])) for request in requests]
        for number, (_, given) in enumerate(asked):
            groups.setdefault(_frozen(given), []).append(number)
        texts = [""] * len(requests)
        for numbers in groups.values():
            sampling, stop = self._sampling(asked[numbers[0]][1])
            room = self.max_length - sampling.max_new_tokens
            if room < 1:
                raise DoraError(
                    f"max_gen_toks {sampling.max_new_tokens} leaves no room for a prompt in the "
                    f"model's {self.max_length} tokens: lower it (--gen_kwargs max_gen_toks=N)"
                )
            prompts = [self.tok_encode(asked[n][0])[-room:] for n in numbers]
            with jax.set_mesh(self._mesh):
                done = generate(
                    self._model,
                    self._params,
                    prompts,
                    sampling,
                    tokenizer=self._tokenizer,
                    stop=stop,
                    stop_ids=self._stop_ids,
                    batch_size=self.batch_size,
                )
            for number, completion in zip(numbers, done, strict=True):
                texts[number] = completion.text
                self.cache_hook.add_partial(
                    "generate_until", requests[number].args, completion.text
                )
        return texts

    def _sampling(self, arguments: dict[str, Any]) -> tuple[Sampling, tuple[str, ...]]:
        """Return how lm-eval's generation arguments have the model write.

        Raises:
            DoraError: for an argument that is not known, by name.
        """
        given = {name: value for name, value in arguments.items() if value is not None}
        until = given.pop("until", ())
        stop = (until,) if isinstance(until, str) else tuple(until)
        samples = given.pop("do_sample", "temperature" in given)
        temperature = float(given.pop("temperature", 1.0))
        lengths = [given.pop(n) for n in ("max_gen_toks", "max_new_tokens") if n in given]
        seed = int(given.pop("seed", 0))
        unknown = [name for name in given if name not in _SAMPLING]
        if unknown:
            known = (
                "until",
                "do_sample",
                "temperature",
                "max_gen_toks",
                "seed",
                *sorted(_SAMPLING),
            )
            raise DoraError(
                f"gen_kwargs {unknown[0]!r} is not known{nearest(unknown[0], known)}; there are "
                f"{', '.join(known)}"
            )
        return (
            Sampling(
                max_new_tokens=int(lengths[0]) if lengths else _MAX_NEW_TOKENS,
                temperature=temperature if samples else 0.0,
                seed=seed,
                **given,
            ),
            tuple(text for text in stop if text),
        )


def _frozen(arguments: dict[str, Any]) -> tuple[Any, ...]:
    """Return what requests that can be generated together have in common."""
    return tuple(sorted((name, repr(value)) for name, value in arguments.items()))


def with_our_model(argv: Iterable[str]) -> list[str]:
    """Return lm-eval's arguments, with our model named where none is."""
    words = list(argv)
    named = any(word == "-M" or word.split("=")[0] == "--model" for word in words)
    if named or words[:1] in ([], ["ls"], ["validate"]):
        return words
    place = 1 if words[0] == "run" else 0
    return [*words[:place], "--model", NAME, *words[place:]]


def main() -> None:
    """Hand over to lm-eval's own command."""
    from lm_eval.__main__ import cli_evaluate

    sys.argv[1:] = with_our_model(sys.argv[1:])
    try:
        cli_evaluate()
    except DoraError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    # Run as a module this file is `__main__`: lm-eval gets the one that others import.
    from dora_jax.evaluation import lm_eval

    lm_eval.main()
