"""Write `chat_templates.json`: what transformers makes of each template and conversation.

`null` stands for a conversation that the template, or transformers, refuses.

Run in the parity environment: python -m tests.golden.make_chat_golden
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import tokenizers

from tests.data.chat_templates import CASES, NOW, SPECIAL, TEMPLATES

TARGET = Path(__file__).with_name("chat_templates.json")


def backend() -> tokenizers.Tokenizer:
    """Return a tokenizer that knows the families' special tokens, and bytes."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={token: n for n, token in enumerate(alphabet)}, merges=[])
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    return made


@contextlib.contextmanager
def reference(name: str) -> Iterator[Any]:
    """A family's tokenizer in transformers, whose clock stands still."""
    import transformers
    from transformers.utils import chat_template_utils

    template, bos, eos = TEMPLATES[name]
    with mock.patch.object(chat_template_utils, "datetime") as clock:
        clock.now.return_value = NOW
        yield transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend(), bos_token=bos, eos_token=eos, chat_template=template
        )


def rendered_by_transformers(name: str) -> dict[str, str | None]:
    """Return the text of every case in one template, None where it is refused."""
    texts: dict[str, str | None] = {}
    with reference(name) as theirs:
        for case, (messages, options) in CASES.items():
            try:
                texts[case] = theirs.apply_chat_template(messages, tokenize=False, **options)
            except Exception:
                texts[case] = None
    return texts


def main() -> None:
    """Render everything with transformers and write the file."""
    import transformers

    golden = {"made_with": f"transformers {transformers.__version__}"}
    golden |= {"texts": {name: rendered_by_transformers(name) for name in TEMPLATES}}
    text = json.dumps(golden, ensure_ascii=False, indent=0)
    TARGET.write_text(text + "\n", encoding="utf-8")
    refused = sum(text is None for texts in golden["texts"].values() for text in texts.values())
    print(f"{len(TEMPLATES)} templates, {len(CASES)} cases, {refused} refused: {TARGET.name}")


if __name__ == "__main__":
    main()
