"""The cloze form of a question with listed options: asked without the list, answered in words.

    Please choose the correct answer to the question: Which is hot?
                                                                        Which is hot?
    Answer1: ice Answer2: steam                                     ->  steam   (of: ice, steam)

    Answer format: answer1/answer2

A small model hardly binds a label to what it stands for; it may know which text is likelier.
"""

import re
from dataclasses import replace

from dora_jax.data.examples import Example

_FORMAT = re.compile(r"\s*Answer format:\s*(\S+)\s*$")
# The task's own words before the question; what follows the first colon is asked.
_TASK = re.compile(r"Please (?:answer|choose|complete)\b[^:\n]*:\s*")


def cloze(example: Example) -> Example | None:
    """Return an example in the cloze form; None where its text lists no options that can be read.

    An example without options is returned as it is; so is one whose options are words of their own,
    such as true and false, but for the words around the question.
    """
    if not example.options:
        return example
    listed = _FORMAT.search(example.prompt)
    if listed is None:
        return example
    labels = listed.group(1).split("/")
    asked = _TASK.sub("", example.prompt[: listed.start()], count=1)
    stems = [o.removesuffix(label) for o, label in zip(example.options, labels, strict=False)]
    if len(labels) != len(example.options) or len(set(stems)) != 1:
        return None
    chosen = example.options.index(example.answer)
    found = _texts(asked, labels)
    if found is None:
        # "true/false": the labels are the answers. Anything numbered has lost its list.
        if any(label[-1:].isdigit() for label in labels):
            return None
        asked = re.sub(r"^question:\s*", "", asked)
        return replace(example, prompt=asked, answer=labels[chosen], options=tuple(labels))
    question, texts = found
    if len(set(texts)) < len(texts):
        return None  # two options alike: neither can be told from the other
    return replace(example, prompt=question, answer=texts[chosen], options=tuple(texts))


def _texts(asked: str, labels: list[str]) -> tuple[str, list[str]] | None:
    """Return the question and the texts of its labels ("Answer1: ice Answer2: steam")."""
    places = []
    start = len(asked)
    # From the last label back: the question itself may speak of "Answer1:".
    for label in reversed(labels):
        marks = list(re.finditer(rf"(?:^|\s){re.escape(label.capitalize())}:", asked[:start]))
        if not marks:
            return None
        places.append((marks[-1].end(), start))
        start = marks[-1].start()
    question = asked[:start].strip()
    texts = [asked[a:b].strip() for a, b in reversed(places)]
    return (question, texts) if question and all(texts) else None
