"""Chat templates: jinja2 as Hugging Face runs it, in a sandbox, since they come with models."""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import jinja2.utils

from dora_jax.data.vision import IMAGE
from dora_jax.errors import DoraError

Message = Mapping[str, Any]

# Where a message was cut open: put behind its text, looked for in what is rendered.
_OPEN_END = "CONTINUE_FINAL_MESSAGE_TAG "
# Around what the assistant says, where it is asked for: characters that no text has.
SAID, SAID_END = "\U000f5a1d", "\U000f5a1e"
# The names under which a message's reasoning is passed; templates read the first.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class _Generation(jinja2.ext.Extension):
    """Accept `{% generation %}`: it marks what the assistant says and renders as its content."""

    tags = {"generation"}  # noqa: RUF012 - the name and type that jinja2 asks for

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        if not getattr(self.environment, "marks_said", False):
            return body

        def mark(text: str) -> jinja2.nodes.Node:
            return jinja2.nodes.Output([jinja2.nodes.TemplateData(text)], lineno=line)

        return [mark(SAID), *body, mark(SAID_END)]


class _Namespace(jinja2.utils.Namespace):
    """A template's own variables; names that could reach into Python are refused."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")
        super().__setitem__(name, value)


def _namespace(*args: Any, **fields: Any) -> jinja2.utils.Namespace:
    made = _Namespace()
    for name, value in dict(*args, **fields).items():
        made[name] = value
    return made


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    # jinja2's own filter escapes HTML characters.
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def compile_chat_template(source: str, marks_said: bool = False) -> jinja2.Template:
    """Compile a chat template.

    Args:
        source: of the template.
        marks_said: whether what `{% generation %}` holds is put between `SAID` and `SAID_END`.

    Raises:
        DoraError: when it is not valid jinja2.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.marks_said = marks_said  # type: ignore[attr-defined]
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _namespace
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise DoraError(
            f"the model's chat template is broken, line {error.lineno}: {error.message}"
        ) from error


def shows_images_in_parts(source: str) -> tuple[bool, bool]:
    """Whether a template takes a message as a list of parts, and whether as nothing else."""
    reads = re.search(r"""selectattr\(['"]type|\.type\b|\[['"]type['"]\]""", source) is not None
    return reads, reads and "is string" not in source


def in_parts(text: str) -> list[dict[str, str]]:
    r"""Return a message as the parts that templates of models that see take.

    Example:
        >>> in_parts("<image>\nWhat is it?")
        [{'type': 'image'}, {'type': 'text', 'text': 'What is it?'}]
    """
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(IMAGE)):
        if number:
            parts.append({"type": "image"})
            piece = piece.removeprefix("\n")
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def as_text(parts: Sequence[Any]) -> str | None:
    r"""Return a message with images as one text, for templates of texts; None for any other.

    Example:
        >>> as_text([{"type": "image"}, {"type": "text", "text": "What is it?"}])
        '<image>\nWhat is it?'
    """
    found = []
    for part in parts:
        if isinstance(part, Mapping) and part.get("type") == "image":
            found.append(f"{IMAGE}\n")
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            found.append(part["text"])
        else:
            return None
    return "".join(found) if any(IMAGE in text for text in found) else None


def plain_message(message: Message, number: int) -> dict[str, Any]:
    """Return a message as templates get it: without fields that are None, reasoning by its name.

    Args:
        message: has a `role`, and `content` (a text, or a list of parts such as
            `{"type": "text", "text": ...}`) or `tool_calls`.
        number: its place in the conversation, from 1; named in errors.

    Raises:
        DoraError: when one of them is missing.
    """
    if not isinstance(message, Mapping):
        raise DoraError(f"chat message {number} must have a role and content; got {message!r}")
    fields = {name: value for name, value in message.items() if value is not None}
    lacking = [name for name in ("role", "content") if name not in fields]
    # An assistant that calls a tool may say nothing.
    if "role" in lacking or (lacking and "tool_calls" not in fields):
        raise DoraError(f"chat message {number} lacks {' and '.join(lacking)}: {dict(message)}")
    reasoning = next((fields[name] for name in _REASONING if name in fields), None)
    if reasoning is not None:
        fields = {"thinking": reasoning, **fields, "reasoning_content": reasoning}
    return fields


def render_chat(
    template: jinja2.Template,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    special_tokens: Mapping[str, str],
    *,
    continue_final_message: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Return a conversation as the text that the model was trained on.

    Args:
        template: from `compile_chat_template`.
        messages: each with a `role` (system, user, assistant) and its `content`.
        add_generation_prompt: whether to end with the opening of the assistant's answer.
        special_tokens: texts such as `bos_token`, which a template may use.
        continue_final_message: whether to end inside the last message, for it to be continued.
        tools: JSON schemas of functions; a template that does not know tools ignores them.
        documents: texts to answer from; likewise.
        variables: more names for the template, such as `enable_thinking`; they come before
            `special_tokens`.

    Raises:
        DoraError: when a message lacks a field, or the template refuses the conversation.
    """
    if not messages:
        raise DoraError("a conversation needs at least one message")
    if continue_final_message and add_generation_prompt:
        raise DoraError(
            "continue_final_message goes on with the last message and add_generation_prompt "
            "begins a new one; choose one of them"
        )
    for tool in tools or ():
        if not isinstance(tool, Mapping):
            raise DoraError(f"a tool must be a JSON schema in a dict; got {tool!r}")
    chat = [plain_message(message, number) for number, message in enumerate(messages, 1)]
    final = _open_final(chat) if continue_final_message else ""
    try:
        text = template.render(
            messages=chat,
            tools=None if tools is None else [dict(tool) for tool in tools],
            documents=None if documents is None else [dict(one) for one in documents],
            add_generation_prompt=add_generation_prompt,
            **{**special_tokens, **(variables or {})},
        )
    except (jinja2.TemplateError, TypeError, AttributeError) as error:
        roles = ", ".join(str(message["role"]) for message in messages) or "none"
        raise DoraError(
            f"the model's chat template refuses messages of these roles: {roles} ({error})"
        ) from error
    return _cut_open(text, final) if continue_final_message else text


def _open_final(chat: list[dict[str, Any]]) -> str:
    """Mark the end of the last message's text, and return that text."""
    content = chat[-1].get("content", "")
    if isinstance(content, str):
        chat[-1]["content"] = content + _OPEN_END
        return content
    parts = [dict(part) for part in content]
    for part in reversed(parts):
        if "text" in part:
            chat[-1]["content"] = parts
            text = part["text"]
            part["text"] = text + _OPEN_END
            return text
    raise DoraError("the last message has no text to continue")


def _cut_open(text: str, final: str) -> str:
    mark = _OPEN_END.strip()
    if mark not in text or final.strip() not in text:
        raise DoraError(
            "the model's chat template changes the last message, so it cannot be continued; "
            "ask for a new answer instead"
        )
    end = text.rindex(mark)
    kept = text[:end]
    # A template that trims what messages end with would have trimmed this too.
    return kept if text[end:].startswith(_OPEN_END) else kept.rstrip()
