"""The commands that make text: `dora-jax generate` and `dora-jax chat`."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from dora_jax.errors import DoraError


@dataclass(frozen=True)
class GenerateArgs:
    """Answer a prompt, or a file of prompts, with the base model or an adapter."""

    prompt: str | None = None
    """What to answer."""
    image: tuple[Path, ...] = ()
    """Images that the prompt is about, for a model that sees."""
    prompts: Path | None = None
    """Or a JSONL file: rows with `prompt`, or with `messages`, a conversation; with `image` or
    `images`, names of files, for a model that sees."""
    image_folder: Path | None = None
    """With --prompts: where these images are; none is the folder of the prompts."""
    out: Path | None = None
    """With --prompts: the JSONL file to write. The same command again continues it."""
    adapter: Path | None = None
    """An adapter's folder, or the part of a run that holds one; none takes the base model."""
    model: str | None = None
    """The base model; by default the adapter's own, or else smollm2-135m-instruct."""
    template: str | None = None
    """plain, chat, alpaca, vicuna and more (docs/data.md); by default the adapter's own, or chat
    for a base model."""
    max_new_tokens: int = 64
    """Tokens to generate, at most."""
    temperature: float = 0.0
    """0 is greedy; higher values sample."""
    top_k: int | None = None
    """Sample from the k likeliest tokens."""
    top_p: float | None = None
    """Sample from the likeliest tokens whose probabilities reach p together."""
    min_p: float | None = None
    """Sample from the tokens at least p times as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Over 1, tokens that were there already become less likely."""
    num_beams: int = 1
    """Over 1: beam search."""
    length_penalty: float = 1.0
    """Beams are ranked by log-probability / length ** length_penalty."""
    num_samples: int = 1
    """Answers to each prompt."""
    seed: int = 0
    """Of the sampling."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, and are not part of it."""
    batch_size: int = 16
    """With --prompts: rows at once, and between two writes."""
    stream: bool = field(default_factory=lambda: sys.stdout.isatty())
    """Show the answer as it comes; on a terminal the default."""


@dataclass(frozen=True)
class ChatArgs:
    """Talk with the base model or with adapters, in the terminal. /help lists its commands."""

    model: str | None = None
    """The base model; by default the first adapter's own, or else smollm2-135m-instruct."""
    adapter: tuple[Path, ...] = ()
    """Adapters' folders, or parts of runs that hold one; /adapter switches between them."""
    system: str | None = None
    """A message that tells the model how to behave."""
    template: str | None = None
    """plain, chat, alpaca, vicuna and more (docs/data.md); by default the adapter's own, or chat
    for a base model."""
    max_new_tokens: int = 512
    """Tokens of an answer, at most."""
    temperature: float = 0.7
    """0 is greedy; higher values sample."""
    top_k: int | None = None
    """Sample from the k likeliest tokens."""
    top_p: float | None = 0.9
    """Sample from the likeliest tokens whose probabilities reach p together."""
    min_p: float | None = None
    """Sample from the tokens at least p times as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Over 1, tokens that were there already become less likely."""
    seed: int = 0
    """Of the sampling."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, and are not part of it."""


def _sampling(args: Any) -> Any:
    from dora_jax.generation import Sampling

    names = {f.name for f in dataclasses.fields(Sampling)} & set(vars(args))
    return Sampling(**{name: getattr(args, name) for name in names})


def generate_command(argv: Sequence[str]) -> None:
    """Run `dora-jax generate`."""
    args = tyro.cli(GenerateArgs, args=list(argv), prog="dora-jax generate")
    if args.image and args.prompt is None:
        raise DoraError("--image goes with --prompt; rows of a file name their own images")
    if args.image_folder is not None and args.prompts is None:
        raise DoraError("--image-folder goes with --prompts; beside --prompt give --image FILE")
    if args.prompts is not None and args.out is not None and args.prompt is None:
        _answer_file(args, args.prompts, args.out)
    elif args.prompt is not None and args.prompts is None and args.out is None:
        _answer_one(args, args.prompt)
    else:
        raise DoraError(
            "give --prompt TEXT, or --prompts FILE.jsonl together with --out FILE.jsonl: one of "
            "the two"
        )


def _answer_file(args: GenerateArgs, prompts: Path, out: Path) -> None:
    sampling = _sampling(args)
    from dora_jax.generate_file import generate_file

    written = generate_file(
        prompts,
        out,
        sampling,
        model=args.model,
        adapter=args.adapter,
        template=args.template,
        stop=args.stop,
        batch_size=args.batch_size,
        image_folder=args.image_folder,
    )
    print(f"{written} lines written to {out}" if written else f"{out} is complete already")


def _answer_one(args: GenerateArgs, prompt: str) -> None:
    sampling = _sampling(args)
    from dora_jax.answer import answers

    streams = args.stream and sampling.num_samples == 1

    def show(piece: str) -> None:
        print(piece, end="", flush=True)

    found = answers(
        prompt,
        sampling,
        model=args.model,
        adapter=args.adapter,
        template=args.template,
        stop=args.stop,
        images=args.image,
        on_text=show if streams else None,
    )
    if streams:
        print()
    elif len(found) == 1:
        print(found[0])
    else:
        for number, text in enumerate(found, 1):
            print(f"[{number}] {text}")


def chat_command(argv: Sequence[str]) -> None:
    """Run `dora-jax chat`."""
    args = tyro.cli(ChatArgs, args=list(argv), prog="dora-jax chat")
    sampling = _sampling(args)
    from dora_jax.answer import check_text, load_answerer
    from dora_jax.chat import Chat, name_adapters
    from dora_jax.chat_terminal import run

    if args.system is not None:
        check_text(args.system, "the system message")
    adapters = name_adapters(args.adapter)
    base: Any = args.model

    def load(adapter: Path | None) -> Any:
        nonlocal base
        ready = load_answerer(base, adapter, args.template)
        # The conversation stays with one base model, whatever adapter comes; it is read once.
        base = ready.base
        return ready

    run(
        lambda write, say: Chat(
            load,
            sampling,
            adapters=adapters,
            stop=args.stop,
            system=args.system,
            write=write,
            say=say,
        )
    )
