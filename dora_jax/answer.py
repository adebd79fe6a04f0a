"""A model that answers: what `dora-jax generate` and `dora-jax chat` share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from dora_jax.checkpoint.adapter import load_model
from dora_jax.checkpoint.pretrained import Pretrained
from dora_jax.data.examples import Turn
from dora_jax.data.images import open_image
from dora_jax.data.prompts import PromptTemplate, get_template
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.data.vision import IMAGE, Picture, Vision, with_marks
from dora_jax.errors import DoraError
from dora_jax.generation import Completion, Sampling, generate
from dora_jax.models.build import Writer, build_model
from dora_jax.models.vlbart import VLBartConfig

DEFAULT_MODEL = "smollm2-135m-instruct"


def check_text(text: str, where: str) -> None:
    """Check that a text can be asked.

    Raises:
        DoraError: when it is blank, or holds half a character.
    """
    if not text.strip():
        raise DoraError(f"{where} is empty: give some text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DoraError(f"{where} is not text: {error}; give it in UTF-8") from None


def trimmed(on_text: Callable[[str], None]) -> Callable[[str], None]:
    """Return what takes pieces of a text and passes them on without the space around it."""
    begun, held = False, ""

    def take(piece: str) -> None:
        nonlocal begun, held
        text = held + piece if begun else piece.lstrip()
        kept = text.rstrip()
        begun, held = begun or bool(kept), text[len(kept) :]
        if kept:
            on_text(kept)

    return take


@dataclass(frozen=True)
class Answerer:
    """A plain model, adapters merged, with all that it takes to answer.

    Attributes:
        model: its shape.
        params: its parameters, on the devices.
        tokenizer: with its chat template.
        template: how questions are put.
        base: the base model, as it was loaded.
        name: of the model, and of the adapter in it, for people.
        vision: what the model takes for an image, where it sees.
    """

    model: Writer
    params: Any
    tokenizer: Tokenizer
    template: PromptTemplate
    base: Pretrained
    name: str
    vision: Vision | None = None

    @property
    def context(self) -> int:
        """The tokens that prompt and answer may have together."""
        return self.model.config.text.context_length

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return the ids of one question, each image in it as many tokens as it is."""
        ids = self._seen(self.template.encode_prompt(prompt, self.tokenizer))
        # What an encoder reads is a whole text.
        return ids if self.base.start_token is None else [*ids, *self.tokenizer.final_ids]

    def _seen(self, ids: list[int]) -> list[int]:
        return ids if self.vision is None else self.vision.expand(ids)[0]

    def check_images(self, count: int) -> None:
        """Check that the model sees, where there are images.

        Raises:
            DoraError: when it reads text alone, or features in place of images.
        """
        if count and isinstance(self.base.config, VLBartConfig):
            raise DoraError(
                f"{self.name} reads features of images and not files: ask it from Python, by "
                "dora_jax.generate with images= (docs/vlbart.md)"
            )
        if count and self.vision is None:
            raise DoraError(f"{self.name} reads text alone; name a model that sees with --model")

    def check_marks(self, ids: Sequence[int], images: int) -> None:
        """Check that a text says `<image>` as often as it has images.

        Raises:
            DoraError: when it does not.
        """
        if self.vision is None:
            return
        marks = self.vision.count(ids) // self.vision.tokens
        if marks != images:
            raise DoraError(
                f"the text says {IMAGE} {marks} times, and there are {images} images: each stands "
                "where the text says so, or, where it says nothing, before it"
            )

    def encode_messages(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the ids of a conversation, up to where the answer begins.

        A template that is not the model's own writes question after question in its shape, a
        system message before them all.

        Raises:
            DoraError: when the model has no chat template, or it refuses the messages.
        """
        if self.template.is_chat:
            return self._seen(self.tokenizer.encode_chat(messages))
        parts = []
        for number, message in enumerate(messages, 1):
            role, content = message.get("role"), message.get("content")
            if not isinstance(content, str):
                raise DoraError(f"chat message {number} must have a text as its content")
            if role == "user":
                parts.append(self.template.prefix(content, self.tokenizer))
            elif role == "assistant":
                answer = self.template.before_answer + content
                parts.append(parts.pop() + answer if parts else answer)
            elif role == "system":
                parts.append(content)
            else:
                raise DoraError(
                    f"chat message {number} is of role {role!r}; the prompt template "
                    f"{self.template.name!r} knows system, user and assistant"
                )
        if self.template.opening:
            turns = [Turn(message["role"], message["content"]) for message in messages]
            return self._seen(self.template.encode_turns(turns, self.tokenizer)[0])
        return self._seen(self.template.encode_text("\n\n".join(parts), self.tokenizer))

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """What ends an answer in a conversation: a model without turns asks itself on."""
        if self.template.is_chat:
            return ()
        opening = self.template.prefix("\0", self.tokenizer).split("\0")[0]
        return ("\n" + opening.splitlines()[0].rstrip(),)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        stop: Sequence[str] = (),
        batch_size: int = 32,
        on_text: Callable[[int, str], None] | None = None,
        images: Sequence[Sequence[str | Path]] | None = None,
    ) -> list[Completion]:
        """Continue prompts of ids, with the image files of each: see `generate`."""
        seen = None
        if self.vision is not None and images is not None:
            seen = [[Picture(self.vision, Path(path)) for path in own] for own in images]
        return generate(
            self.model,
            self.params,
            prompts,
            sampling,
            tokenizer=self.tokenizer,
            stop=stop,
            stop_ids=self.base.stop_ids,
            batch_size=batch_size,
            on_text=on_text,
            images=seen,
        )


def load_answerer(
    model: str | Pretrained | None = None,
    adapter: Path | None = None,
    template: str | None = None,
) -> Answerer:
    """Load a model that answers.

    Args:
        model: the base model, by name or loaded; None takes the adapter's own, or else
            `DEFAULT_MODEL`.
        adapter: an adapter's folder, or the part of a run that holds one; merged.
        template: prompt template; by default the adapter's own, of a base model its chat template,
            or LLaVA-1.5's where a model that sees has none.

    Raises:
        DoraError: for an unknown template, anything that cannot be loaded, or a model without a
            chat template that is to use it.
    """
    if template is not None:
        get_template(template)
    if model is None and adapter is None:
        model = DEFAULT_MODEL
    loaded = load_model(model, adapter)
    tokenizer = loaded.pretrained.tokenizer
    trained_with = None if loaded.info is None else loaded.info.prompt
    usual = loaded.pretrained.usual_template
    shape = get_template(template or trained_with or usual or "chat")
    if shape.is_chat:
        tokenizer.require_chat_template()
    base = loaded.original
    name = base.name if adapter is None else f"{base.name} with {adapter}"
    plain = build_model(loaded.pretrained.config)
    params = jax.device_put(loaded.merged())  # without a copy on CPUs
    return Answerer(plain, params, tokenizer, shape, base, name, loaded.pretrained.vision)


def answer(
    prompt: str,
    *,
    adapter: Path | None = None,
    model: str | None = None,
    template: str | None = None,
    stop: Sequence[str] = (),
    images: Sequence[str | Path] = (),
    on_text: Callable[[str], None] | None = None,
    **sampling: Any,
) -> str:
    """Return the model's answer to a prompt.

    Args:
        prompt: what is asked.
        adapter: see `load_answerer`.
        model: see `load_answerer`.
        template: see `load_answerer`.
        stop: strings that end the answer, and are not part of it.
        images: files to look at. Where the prompt does not say by `<image>` where they stand, they
            come before it.
        on_text: told of each piece of the answer as it comes; together they are what is returned.
        **sampling: fields of `Sampling`. Of several samples, or beams, the first is returned.

    Raises:
        DoraError: for an empty prompt, an unknown template, anything that cannot be loaded, or
            images for a model that does not read them.
    """
    return answers(
        prompt,
        Sampling(**sampling),
        adapter=adapter,
        model=model,
        template=template,
        stop=stop,
        images=images,
        on_text=on_text,
    )[0]


def answers(
    prompt: str,
    sampling: Sampling,
    *,
    adapter: Path | None = None,
    model: str | None = None,
    template: str | None = None,
    stop: Sequence[str] = (),
    images: Sequence[str | Path] = (),
    on_text: Callable[[str], None] | None = None,
) -> list[str]:
    """Return all `num_samples` answers to a prompt, without the space around them.

    Args and raises: see `answer`; only a single answer is told to `on_text`.
    """
    check_text(prompt, "the prompt")
    for path in images:
        open_image(path)  # before minutes of loading
    ready = load_answerer(model, adapter, template)
    ready.check_images(len(images))
    ids = ready.encode_prompt(with_marks(prompt, len(images)))
    ready.check_marks(ids, len(images))
    told = None if on_text is None or sampling.num_samples > 1 else trimmed(on_text)
    completions = ready.generate(
        [ids],
        sampling,
        stop=stop,
        images=[images],
        on_text=None if told is None else lambda _, piece: told(piece),
    )
    return [completion.text.strip() for completion in completions]
