"""Chat templates: jinja2 as Hugging Face runs it, in a sandbox, since they come with models."""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from dora_jax.errors import DoraError


class _Generation(jinja2.ext.Extension):
    """Accept `{% generation %}`: it marks what the assistant says and renders as its content."""

    tags = {"generation"}  # noqa: RUF012 - the name and type that jinja2 asks for

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    # jinja2's own filter escapes HTML characters.
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def compile_chat_template(source: str) -> jinja2.Template:
    """Compile a chat template.

    Raises:
        DoraError: when it is not valid jinja2.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise DoraError(
            f"the model's chat template is broken, line {error.lineno}: {error.message}"
        ) from error


def render_chat(
    template: jinja2.Template,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool,
    special_tokens: Mapping[str, str],
) -> str:
    """Return a conversation as the text that the model was trained on.

    Args:
        template: from `compile_chat_template`.
        messages: each with a `role` (system, user, assistant) and its `content`.
        add_generation_prompt: whether to end with the opening of the assistant's answer.
        special_tokens: texts such as `bos_token`, which a template may use.

    Raises:
        DoraError: when a message lacks a field, or the template refuses the conversation.
    """
    for number, message in enumerate(messages, 1):
        lacking = [field for field in ("role", "content") if field not in message]
        if lacking:
            raise DoraError(f"chat message {number} lacks {' and '.join(lacking)}: {dict(message)}")
    try:
        return template.render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **special_tokens,
        )
    except (jinja2.TemplateError, TypeError) as error:
        roles = ", ".join(str(message["role"]) for message in messages) or "none"
        raise DoraError(
            f"the model's chat template refuses messages of these roles: {roles} ({error})"
        ) from error
