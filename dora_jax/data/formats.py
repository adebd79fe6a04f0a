"""Formats of rows, told by their fields: what people and the hub call Alpaca, ShareGPT and so on.

| format            | fields                                                                     |
|-------------------|----------------------------------------------------------------------------|
| Alpaca            | `instruction`, `output`; may have `input`, `system`, `task`, `options`, or |
|                   | `metric`, `references` and `targets`: see `judged_fields`                  |
| chat messages     | `messages`: a list of `{"role": ..., "content": ...}`                      |
| ShareGPT          | `conversations`: a list of `{"from": ..., "value": ...}`; may have `system`|
| prompt/completion | two fields of `PAIRS`, texts (may have `options`), or lists of messages     |
| plain text        | `text`                                                                     |

A field that is null counts as missing: tables fill up rows so.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from dora_jax.data.examples import Example, Turn
from dora_jax.data.judged import METRICS, judged_fields
from dora_jax.data.vision import IMAGE
from dora_jax.errors import DoraError

SAMPLE = '{"instruction": "What is the capital of France?", "output": "Paris"}'

Format = Literal["Alpaca", "chat messages", "ShareGPT", "prompt/completion", "plain text"]
# What is asked, and what is answered.
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("problem", "solution"),
)
_KNOWN = (
    "instruction and output; messages; conversations; "
    + "; ".join(" and ".join(pair) for pair in PAIRS)
    + "; text"
)
# How the paper's data lists what may be answered: "Answer format: answer1/answer2".
_ANSWER_FORMAT = re.compile(r"Answer format:\s*([^\s/]+(?:/[^\s/]+)+)\s*$")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
}
NO_ANSWER = "without an answer to train on"
NO_TEXT = "with a message that is not text and images alone (tool calls, sound)"
NO_IMAGE = "that shows an image which it does not name (in 'image' or 'images')"


class LeftOut(Exception):  # noqa: N818 - no error: a row that cannot be trained on, to be counted
    """A sound row that has nothing to train on; its argument is the reason."""


def read_row(row: Any, where: str) -> Example:
    """Return the example that a row holds.

    Args:
        row: a JSON object of one of the formats.
        where: file and line, named in errors.

    Raises:
        DoraError: for a row of no known format, or with a field that is not as it should be.
        LeftOut: when the row is sound and has no answer, or holds more than text.
    """
    found = row_format(row, where)
    if found != "Alpaca" and row.get("metric") in METRICS:
        raise DoraError(
            f"{where}: has a 'metric', which is for rows with an instruction and an output, and "
            f"this is {found}"
        )
    read = _READERS[found]
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise DoraError(
            f"{where}: holds half a character ({error.reason}): remove the lone \\ud800 to \\udfff"
        ) from None
    return read(row, where)


def row_format(row: Any, where: str) -> Format:
    """Return the format that a row is of, by its fields alone.

    Raises:
        DoraError: when it is of none, or of several.
    """
    if not isinstance(row, Mapping):
        raise DoraError(f"{where}: must be a JSON object such as {SAMPLE}; got {_shown(row)}")
    for field, name in _BY_ONE_FIELD.items():
        if row.get(field) is not None:
            return name
    if _pairs(row, where):
        return "prompt/completion"
    if row.get("text") is not None:
        return "plain text"
    if row.get("output") is not None:
        return "Alpaca"  # whose reader says that the instruction is missing
    raise DoraError(
        f"{where}: is of no known format: its fields are {_fields(row)}, and known are {_KNOWN}"
    )


def _pairs(row: Mapping[str, Any], where: str) -> tuple[str, str] | None:
    pairs = [pair for pair in PAIRS if all(row.get(name) is not None for name in pair)]
    if len(pairs) > 1:
        both = " or ".join(" and ".join(pair) for pair in pairs)
        raise DoraError(f"{where}: may mean {both}: rename or remove the fields that do not count")
    return pairs[0] if pairs else None


def _fields(row: Mapping[str, Any]) -> str:
    named = (f"{name!r}" + (" (null)" if value is None else "") for name, value in row.items())
    return ", ".join(named) or "none"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    text = row.get(name)
    if text is None:
        raise DoraError(f"{where}: has no field {name!r} (its fields: {_fields(row)})")
    if not isinstance(text, str) or not text.strip():
        raise DoraError(f"{where}: {name!r} must be a text, not empty; got {_shown(text)}")
    return text


def _optional(row: Mapping[str, Any], name: str, where: str) -> str:
    text = row.get(name)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise DoraError(f"{where}: {name!r} must be a text; got {_shown(text)}")
    return text


def _task(row: Mapping[str, Any], where: str) -> str:
    return _optional(row, "task", where)


def _alpaca(row: Mapping[str, Any], where: str) -> Example:
    prompt = _text(row, "instruction", where).strip()
    output = _text(row, "output", where).strip()
    more, task = _optional(row, "input", where).strip(), _task(row, where)
    if more:
        prompt += "\n\n" + more
    turns = _with_system(_optional(row, "system", where), prompt)
    judged = judged_fields(row, output, where)
    options = () if judged else _options(row, output, where)
    return Example(prompt, output, options, task, turns, **judged)


def _with_system(system: str, prompt: str) -> tuple[Turn, ...]:
    return (Turn("system", system.strip()), Turn("user", prompt)) if system.strip() else ()


def _listed(row: Mapping[str, Any], output: str, where: str) -> tuple[str, ...]:
    """Return the options that a row lists, none where it lists none."""
    options = row.get("options")
    if options is None:
        return ()
    if not isinstance(options, list) or not all(isinstance(o, str) for o in options):
        raise DoraError(f"{where}: 'options' must be a list of texts; got {_shown(options)}")
    options = tuple(dict.fromkeys(o.strip() for o in options))
    if output not in options or len(options) < 2:
        raise DoraError(
            f"{where}: 'options' must be at least two, with the output {output!r} among them; "
            f"got {_shown(list(options))}"
        )
    return options


def _options(row: Mapping[str, Any], output: str, where: str) -> tuple[str, ...]:
    if row.get("options") is not None:
        return _listed(row, output, where)
    listed = _ANSWER_FORMAT.search(row["instruction"])
    answer = str(row.get("answer", "")).strip()
    words = listed.group(1).split("/") if listed else []
    if not answer or answer not in words or not output.endswith(answer):
        return ()
    stem = output[: len(output) - len(answer)]
    return tuple(stem + word for word in dict.fromkeys(words))


def _pair(row: Mapping[str, Any], where: str) -> Example:
    asked, answered = _pairs(row, where) or PAIRS[0]
    if isinstance(row[asked], list) and isinstance(row[answered], list):
        before = [turn for turn, _ in _messages(row, asked, where)]
        after = [(turn, turn.role == "assistant") for turn, _ in _messages(row, answered, where)]
        return _chat(row, [*((turn, False) for turn in before), *after], where)
    prompt, answer = _text(row, asked, where), _text(row, answered, where)
    turns = _with_system(_optional(row, "system", where), prompt)
    options = _listed(row, answer.strip(), where)
    # As they stand: template `none` puts one behind the other; the others strip them.
    return Example(prompt, answer.strip() if options else answer, options, _task(row, where), turns)


def _messages(row: Mapping[str, Any], field: str, where: str) -> list[tuple[Turn, bool]]:
    """Return OpenAI's messages, each with whether it is trained on (`weight` 0 says no)."""
    return [
        (
            Turn(_text(message, "role", at), _content(row, message, "content", at)),
            message["role"] == "assistant" and message.get("weight") != 0,
        )
        for message, at in _objects(row, field, where)
    ]


def _sharegpt(row: Mapping[str, Any], where: str) -> list[tuple[Turn, bool]]:
    found = []
    system = _optional(row, "system", where)
    if system.strip():
        found.append((Turn("system", system), False))
    for message, at in _objects(row, "conversations", where):
        if "role" in message and "from" not in message:  # messages under ShareGPT's name
            return _messages(row, "conversations", where)
        given = _text(message, "from", at)
        if given not in _SHAREGPT_ROLES:
            raise LeftOut(NO_TEXT if "tool" in given or "function" in given else f"by {given!r}")
        role = _SHAREGPT_ROLES[given]
        found.append((Turn(role, _content(row, message, "value", at)), role == "assistant"))
    return found


def _objects(row: Mapping[str, Any], field: str, where: str) -> list[tuple[Mapping[str, Any], str]]:
    messages = row[field]
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise DoraError(f"{where}: {field!r} must be a list of messages; got {_shown(messages)}")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise DoraError(f"{where}, message {number}: must be an object; got {_shown(message)}")
    return [(message, f"{where}, message {number}") for number, message in enumerate(messages, 1)]


def _content(row: Mapping[str, Any], message: Mapping[str, Any], field: str, where: str) -> str:
    content = message.get(field)
    if message.get("tool_calls") or message.get("function_call"):
        raise LeftOut(NO_TEXT)
    if isinstance(content, list):
        return "".join(_part(row, part) for part in content)
    if field not in message or not isinstance(content, str):
        raise DoraError(f"{where}: {field!r} must be a text; got {_shown(content)}")
    return content


def _part(row: Mapping[str, Any], part: Any) -> str:
    """Return one part of a message as text; of an image where it stands."""
    if isinstance(part, Mapping) and part.get("type") == "image":
        if not row.get("image") and not row.get("images"):
            raise LeftOut(NO_IMAGE)
        return f"{IMAGE}\n"
    if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
        raise LeftOut(NO_TEXT)
    return str(part["text"])


def _openai(row: Mapping[str, Any], where: str) -> Example:
    return _chat(row, _messages(row, "messages", where), where)


def _conversation(row: Mapping[str, Any], where: str) -> Example:
    return _chat(row, _sharegpt(row, where), where)


def _plain(row: Mapping[str, Any], where: str) -> Example:
    return Example("", _text(row, "text", where), task=_task(row, where), is_text=True)


def _chat(row: Mapping[str, Any], said: Sequence[tuple[Turn, bool]], where: str) -> Example:
    """Return a conversation as far as its last answer that is trained on."""
    trained = [n for n, (turn, trains) in enumerate(said) if trains and turn.text.strip()]
    if not trained or trained[-1] == 0:
        raise LeftOut(NO_ANSWER)
    last = trained[-1]
    turns = tuple(Turn(t.role, t.text, trains=n in trained) for n, (t, _) in enumerate(said[:last]))
    prompt, answer = turns[-1].text, said[last][0].text
    task = _task(row, where)
    if len(turns) == 1 and turns[0].role == "user":
        return Example(prompt, answer, (), task)
    return Example(prompt, answer, (), task, turns)


# In this order: a row of messages may have a prompt beside them.
_BY_ONE_FIELD: dict[str, Format] = {
    "messages": "chat messages",
    "conversations": "ShareGPT",
    "instruction": "Alpaca",
}
_READERS: dict[Format, Callable[[Mapping[str, Any], str], Example]] = {
    "Alpaca": _alpaca,
    "chat messages": _openai,
    "ShareGPT": _conversation,
    "prompt/completion": _pair,
    "plain text": _plain,
}
