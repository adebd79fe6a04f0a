"""Formats of rows, told by their fields: what people and the hub call Alpaca, ShareGPT and so on.

| format            | fields                                                                     |
|-------------------|----------------------------------------------------------------------------|
| Alpaca            | `instruction`, `output`; may have `input`, `system`, `task`, `options`     |
| chat messages     | `messages`: a list of `{"role": ..., "content": ...}`                      |
| ShareGPT          | `conversations`: a list of `{"from": ..., "value": ...}`; may have `system`|
| prompt/completion | two fields of `PAIRS`, texts, or lists of messages                         |
| plain text        | `text`                                                                     |
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dora_jax.data.examples import Example, Turn
from dora_jax.errors import DoraError

SAMPLE = '{"instruction": "What is the capital of France?", "output": "Paris"}'

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
NO_TEXT = "with a message that is not text alone (tool calls, images)"


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
    if not isinstance(row, Mapping):
        shown = json.dumps(row, ensure_ascii=False, default=str)[:60]
        raise DoraError(f"{where}: must be a JSON object such as {SAMPLE}; got {shown}")
    row = dict(row)
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise DoraError(f"{where}: holds half a character ({error.reason})") from None
    if "messages" in row:
        return _chat(row, _messages(row, "messages", where), where)
    if "conversations" in row:
        return _chat(row, _sharegpt(row, where), where)
    if "instruction" in row:
        return _alpaca(row, where)
    pairs = [pair for pair in PAIRS if all(name in row for name in pair)]
    if len({answer for _, answer in pairs}) > 1 or len({asked for asked, _ in pairs}) > 1:
        both = " or ".join(" and ".join(pair) for pair in pairs)
        raise DoraError(f"{where}: may mean {both}: rename or remove the fields that do not count")
    if pairs:
        return _pair(row, *pairs[0], where)
    if "text" in row:
        return Example("", _text(row, "text", where), task=_task(row, where), is_text=True)
    if "output" in row:
        return _alpaca(row, where)  # says that the instruction is missing
    given = ", ".join(map(repr, row)) or "none"
    raise DoraError(
        f"{where}: is of no known format: its fields are {given}, and known are {_KNOWN}"
    )


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    if name not in row:
        given = ", ".join(map(repr, row)) or "none"
        raise DoraError(f"{where}: has no field {name!r} (its fields: {given})")
    if not isinstance(row[name], str) or not row[name].strip():
        raise DoraError(f"{where}: {name!r} must be a text, not empty; got {row[name]!r}")
    text: str = row[name]
    return text


def _optional(row: Mapping[str, Any], name: str, where: str) -> str:
    text = row.get(name)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise DoraError(f"{where}: {name!r} must be a text; got {text!r}")
    return text


def _task(row: Mapping[str, Any], where: str) -> str:
    return _optional(row, "task", where)


def _alpaca(row: dict[str, Any], where: str) -> Example:
    prompt = _text(row, "instruction", where).strip()
    output = _text(row, "output", where).strip()
    more, task = _optional(row, "input", where).strip(), _task(row, where)
    if more:
        prompt += "\n\n" + more
    turns = _with_system(_optional(row, "system", where), prompt)
    return Example(prompt, output, _options(row, output, where), task, turns)


def _with_system(system: str, prompt: str) -> tuple[Turn, ...]:
    return (Turn("system", system.strip()), Turn("user", prompt)) if system.strip() else ()


def _options(row: dict[str, Any], output: str, where: str) -> tuple[str, ...]:
    if "options" in row:
        options = row["options"]
        if not isinstance(options, list) or not all(isinstance(o, str) for o in options):
            raise DoraError(f"{where}: 'options' must be a list of texts; got {options!r}")
        options = tuple(dict.fromkeys(o.strip() for o in options))
        if output not in options or len(options) < 2:
            raise DoraError(
                f"{where}: 'options' must be at least two, with the output {output!r} among them; "
                f"got {list(options)!r}"
            )
        return options
    listed = _ANSWER_FORMAT.search(row["instruction"])
    answer = str(row.get("answer", "")).strip()
    words = listed.group(1).split("/") if listed else []
    if not answer or answer not in words or not output.endswith(answer):
        return ()
    stem = output[: len(output) - len(answer)]
    return tuple(stem + word for word in dict.fromkeys(words))


def _pair(row: dict[str, Any], asked: str, answered: str, where: str) -> Example:
    if isinstance(row[asked], list) and isinstance(row[answered], list):
        before = [turn for turn, _ in _messages(row, asked, where)]
        after = [(turn, turn.role == "assistant") for turn, _ in _messages(row, answered, where)]
        return _chat(row, [*((turn, False) for turn in before), *after], where)
    prompt, answer = _text(row, asked, where), _text(row, answered, where)
    turns = _with_system(_optional(row, "system", where), prompt)
    # As they stand: template `none` puts one behind the other; the others strip them.
    return Example(prompt, answer, (), _task(row, where), turns)


def _messages(row: Mapping[str, Any], field: str, where: str) -> list[tuple[Turn, bool]]:
    """Return OpenAI's messages, each with whether it is trained on (`weight` 0 says no)."""
    return [
        (
            Turn(_text(message, "role", at), _content(message, "content", at)),
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
        found.append((Turn(role, _content(message, "value", at)), role == "assistant"))
    return found


def _objects(row: Mapping[str, Any], field: str, where: str) -> list[tuple[Mapping[str, Any], str]]:
    messages = row[field]
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise DoraError(f"{where}: {field!r} must be a list of messages; got {messages!r}")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise DoraError(f"{where}, message {number}: must be an object; got {message!r}")
    return [(message, f"{where}, message {number}") for number, message in enumerate(messages, 1)]


def _content(message: Mapping[str, Any], field: str, where: str) -> str:
    content = message.get(field)
    if message.get("tool_calls") or message.get("function_call"):
        raise LeftOut(NO_TEXT)
    if isinstance(content, list):
        if not all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
            raise LeftOut(NO_TEXT)
        return "".join(part["text"] for part in content)
    if field not in message or not isinstance(content, str):
        raise DoraError(f"{where}: {field!r} must be a text; got {content!r}")
    return content


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
