"""Every answer of a conversation is trained on, and nothing that others said."""

import pytest

from dora_jax.data.encode import REFUSED, encode_all
from dora_jax.data.examples import Example, Turn
from dora_jax.data.prompts import get_template
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.data.train_rows import train_row
from dora_jax.errors import DoraError
from tests.checkpoint.tiny_model import tokenizer as tiny_tokenizer
from tests.data.chat_templates import ENDS, TEMPLATES
from tests.golden.make_chat_golden import backend

TURNS = (
    Turn("user", "Who wrote it?"),
    Turn("assistant", "Ada did.", trains=True),
    Turn("user", "Ada did. Sure?"),
    Turn("assistant", "Quite sure.", trains=True),
    Turn("user", "And when?"),
)
CHAT = Example("And when?", "In 1843.", turns=TURNS)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{% generation %}"
    "{{ m.content | upper }}</s>{% endgeneration %}\n{% else %}<|user|>{{ m.content }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
REWRITES = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{{ m.content if loop.last else m.content | reverse }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def with_template(source, bos=None, eos="</s>"):
    config = {"bos_token": bos, "eos_token": eos, "chat_template": source}
    return Tokenizer(backend(), {k: v for k, v in config.items() if v is not None}, "tiny")


def encode(example, tokenizer, template="chat", **options):
    return encode_all([example], get_template(template), tokenizer, 2000, **options)


def learned(row, tokenizer):
    """Return the runs of labels in a row as texts, and what is before each."""
    made = train_row(row, tokenizer.eos_id)
    ids = [*made.tokens, made.targets[-1]]
    runs = []
    for position in made.positions + 1:
        if runs and runs[-1][-1] == position - 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    texts = [tokenizer.decode([ids[i] for i in run], skip_special_tokens=False) for run in runs]
    return texts, tokenizer.decode(row.prompt, skip_special_tokens=False)


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_of_real_templates(name):
    source, bos, eos = TEMPLATES[name]
    tokenizer = with_template(source, bos, eos)
    (row,) = encode(CHAT, tokenizer).rows
    messages = [{"role": turn.role, "content": turn.text} for turn in TURNS]
    texts, prompt = learned(row, tokenizer)
    assert prompt == tokenizer.apply_chat_template(messages, True)  # as it is asked for an answer
    ends = ENDS.get(name, (eos,))
    for said, text in zip(["Ada did.", "Quite sure."], texts[:2], strict=True):
        assert text.strip().startswith(said)
        assert text.strip().removeprefix(said).strip() in ends
    assert texts[2:] == ["In 1843." + eos]


def test_answers_that_the_template_marks():
    tokenizer = with_template(MARKED)
    (row,) = encode(CHAT, tokenizer).rows
    # It writes them in capitals: only the marks can tell where they are.
    assert learned(row, tokenizer)[0] == ["ADA DID.</s>", "QUITE SURE.</s>", "In 1843.</s>"]


def test_marks_find_what_the_template_rewrites():
    source = REWRITES.replace("{{ m.content if", "{% generation %}{{ m.content if").replace(
        "</s>{% endfor %}", "</s>{% endgeneration %}{% endfor %}"
    )
    found = encode(CHAT, with_template(source))
    # Users' messages are marked too, so the marks are not one for each answer.
    assert found.left_out == {REFUSED: 1}
    only = source.replace("{% generation %}", "{% if m.role == 'assistant' %}{% generation %}")
    only = only.replace(
        "</s>{% endgeneration %}", "</s>{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}"
    )
    tokenizer = with_template(only)
    (row,) = encode(CHAT, tokenizer).rows
    assert learned(row, tokenizer)[0][:2] == [
        "Ada did."[::-1] + "</s>",
        "Quite sure."[::-1] + "</s>",
    ]


def test_an_answer_that_is_not_to_be_trained_on_is_not():
    quiet = Example(
        "And when?", "In 1843.", turns=(TURNS[0], Turn("assistant", "Ada did."), *TURNS[2:])
    )
    for source in (MARKED, TEMPLATES["smollm2"][0]):
        tokenizer = with_template(source)
        (row,) = encode(quiet, tokenizer).rows
        assert [text.lower()[:5] for text in learned(row, tokenizer)[0]] == ["quite", "in 18"]


def test_conversations_that_the_template_refuses_or_rewrites_are_counted():
    refuses = "{{ raise_exception('no') if messages | length > 1 }}{{ messages[0].content }}"
    for source in (REWRITES, refuses):
        found = encode_all([CHAT, CHAT], get_template("chat"), with_template(source), 2000)
        assert (found.rows, found.left_out) == ([], {REFUSED: 2})
    without = with_template(None)
    with pytest.raises(DoraError, match="has no chat template"):
        encode(CHAT, without)


def test_templates_without_roles_put_questions_and_answers_behind_each_other():
    tokenizer = with_template(None)
    turns = (Turn("system", "Be brief."), *TURNS)
    (row,) = encode(Example("And when?", "In 1843.", turns=turns), tokenizer, "plain").rows
    texts, prompt = learned(row, tokenizer)
    assert texts == [" Ada did.</s>", " Quite sure.</s>", " In 1843.</s>"]
    assert prompt.startswith(
        "Question: Be brief.\n\nWho wrote it?\nAnswer: Ada did.</s>Question: Ada"
    )
    assert prompt.endswith("</s>Question: And when?\nAnswer:")


def test_prompt_and_completion_stand_as_they_are_and_text_is_all_learned():
    tokenizer = tiny_tokenizer()
    pair = Example("hello ", "wor\n")
    (row,) = encode(pair, tokenizer, "none").rows
    assert tokenizer.decode(row.prompt + row.answer) == "hello wor\n"
    (stripped,) = encode(pair, tokenizer, "plain").rows
    assert tokenizer.decode(stripped.prompt + stripped.answer) == "Question: hello\nAnswer: wor"
    text = Example("", "hello hello wor", is_text=True)
    (row,) = encode(text, tokenizer, "plain").rows
    made = train_row(row, tokenizer.eos_id)
    assert tokenizer.decode(made.tokens) == "hello hello wor"
    assert [*made.targets] == [*made.tokens[1:], tokenizer.eos_id]
    tokenizer.start_ids = [tokenizer.bos_id]
    (row,) = encode(text, tokenizer, "plain").rows
    begun = train_row(row, tokenizer.eos_id)
    assert [*begun.tokens] == [tokenizer.bos_id, *made.tokens]
    assert len(begun.targets) == len(made.targets) + 1


def cut(example, policy, max_length, tokenizer):
    return encode_all([example], get_template("none"), tokenizer, max_length, policy)


def test_rows_that_are_too_long():
    tokenizer = tiny_tokenizer()
    tokenizer.start_ids = [tokenizer.bos_id]
    example = Example("abcdef", "xyz")
    ids = [tokenizer.encode(c)[0] for c in "abcdefxyz"]
    start = tokenizer.bos_id
    reason = "longer than data.max_length (8 tokens)"
    assert cut(example, "drop", 11, tokenizer).cut == {}
    found = cut(example, "drop", 8, tokenizer)
    assert (found.rows, found.left_out, found.cut) == ([], {reason: 1}, {})
    found = cut(example, "truncate_left", 8, tokenizer)
    assert (found.left_out, found.cut) == ({}, {reason: 1})
    assert found.rows[0].prompt == (start, *ids[3:6])
    assert found.rows[0].answer == (*ids[6:],)
    found = cut(Example("abcd", "wxyz"), "truncate_right", 8, tokenizer)
    assert found.cut == {reason: 1}
    made = train_row(found.rows[0], tokenizer.eos_id)
    # As many tokens are fed as of a row that just fits; the end is not learned.
    assert len(made.tokens) == 7
    assert [*made.targets] == [tokenizer.encode(c)[0] for c in "wx"]
    with pytest.raises(DoraError, match=r"row 1: is 11 tokens long, more .* begins 'abcdef'"):
        cut(example, "error", 8, tokenizer)


LETTERS = (
    Turn("user", "ab"),
    Turn("assistant", "cdef", trains=True),
    Turn("user", "gh"),
    Turn("assistant", "ijk"),  # which is not trained on
    Turn("user", "lm"),
)


@pytest.mark.parametrize(
    ("most", "fed", "said"),
    [
        (18, "abcdef</s>ghijk</s>lmno", ["cdef</s>", "no</s>"]),
        (17, "abcdef</s>ghijk</s>lmn", ["cdef</s>", "n"]),
        # Nothing of the last answer: what is behind the answer before it goes too.
        (16, "abcdef</s>", ["cdef</s>"]),
        (9, "abcdef</s>", ["cdef</s>"]),
        (7, "abcdef", ["cdef"]),
        (4, "abc", ["c"]),
        (3, None, None),
    ],
)
def test_a_conversation_is_cut_at_its_end_and_keeps_the_answers_that_fit(most, fed, said):
    tokenizer = tiny_tokenizer()
    found = cut(Example("lm", "no", turns=LETTERS), "truncate_right", most, tokenizer)
    if fed is None:
        assert (found.rows, sum(found.left_out.values())) == ([], 1)
        return
    assert found.left_out == {}
    assert sum(found.cut.values()) == (most < 18)
    made = train_row(found.rows[0], tokenizer.eos_id)
    assert len(made.tokens) < most
    assert tokenizer.decode(made.tokens, skip_special_tokens=False) == fed
    targets = tokenizer.decode(made.targets, skip_special_tokens=False)
    assert targets == "".join(said)


def test_every_long_row_is_counted():
    long = [Example("abcdef", "xyz"), Example("a", "x"), Example("abcdef", "xy")]
    reason = "longer than data.max_length (6 tokens)"
    for policy, names in (("drop", "left_out"), ("truncate_left", "cut")):
        found = encode_all(long, get_template("none"), tiny_tokenizer(), 6, policy)
        assert getattr(found, names) == {reason: 2}
        assert len(found.rows) == (1 if policy == "drop" else 3)


def test_a_cut_that_would_leave_no_answer_or_no_question_drops_the_row():
    tokenizer = tiny_tokenizer()
    for policy, example in (
        ("truncate_left", Example("a", "wxyzabcde")),
        ("truncate_right", Example("abcdefgh", "x")),
        ("truncate_right", Example("abcd", "wxyz", ("wxyz", "w"))),
    ):
        found = cut(example, policy, 8, tokenizer)
        assert (found.rows, found.cut) == ([], {})
        assert found.left_out == {"longer than data.max_length (8 tokens)": 1}


def test_one_token_of_the_question_is_enough_and_none_is_not():
    tokenizer = tiny_tokenizer()
    tokenizer.start_ids = [tokenizer.bos_id]
    (row,) = cut(Example("ab", "wxyz"), "truncate_left", 7, tokenizer).rows
    assert row.prompt == (tokenizer.bos_id, *tokenizer.encode("b"))
    assert cut(Example("ab", "wxyz"), "truncate_left", 6, tokenizer).rows == []
    (row,) = cut(Example("ab", "wxyz"), "truncate_right", 5, tokenizer).rows
    assert row.answer == (*tokenizer.encode("w"),)
    assert cut(Example("ab", "wxyz"), "truncate_right", 4, tokenizer).rows == []


def test_the_tokens_that_begin_every_text_are_no_part_of_an_answer_that_is_cut():
    tokenizer = tiny_tokenizer()
    tokenizer.start_ids = [tokenizer.bos_id] * 2
    turns = (Turn("user", "ab"), Turn("assistant", "cdef", trains=True), Turn("user", "x"))
    (row,) = cut(Example("x", "yz", turns=turns), "truncate_left", 9, tokenizer).rows
    assert learned(row, tokenizer) == (["ef</s>", "yz</s>"], "<s><s>ef</s>x")


def test_answers_move_with_what_is_cut_before_them():
    tokenizer = with_template(TEMPLATES["smollm2"][0], eos="<|im_end|>")
    (whole,) = encode(CHAT, tokenizer).rows
    length = len(whole.prompt) + len(whole.answer) + 1
    for spare in range(0, length, 7):
        found = encode_all([CHAT], get_template("chat"), tokenizer, length - spare, "truncate_left")
        for row in found.rows:
            texts = learned(row, tokenizer)[0]
            expected = learned(whole, tokenizer)[0]
            kept = zip(texts[::-1], expected[::-1], strict=False)
            assert all(full.endswith(text) for text, full in kept)
            assert texts[-1] == "In 1843.<|im_end|>"


V1 = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. "
)


def test_llavas_v1_says_once_what_the_conversation_is():
    tokenizer = tiny_tokenizer()
    (row,) = encode_all([CHAT], get_template("vicuna"), tokenizer, 600).rows
    assert tokenizer.decode(row.prompt, skip_special_tokens=False) == (
        f"{V1}USER: Who wrote it? ASSISTANT: Ada did.</s>"
        "USER: Ada did. Sure? ASSISTANT: Quite sure.</s>USER: And when? ASSISTANT:"
    )
    assert tokenizer.decode(row.answer) == " In 1843."
    said = [tokenizer.decode(row.prompt[a:b], skip_special_tokens=False) for a, b in row.earlier]
    assert said == [" Ada did.</s>", " Quite sure.</s>"]
    one = get_template("vicuna").encode_prompt("Who?", tokenizer)
    assert tokenizer.decode(one) == f"{V1}USER: Who? ASSISTANT:"


def test_a_system_message_takes_the_place_of_v1s_own():
    tokenizer = tiny_tokenizer()
    turns = (Turn("system", "Be brief."), Turn("user", "Who?"))
    (row,) = encode_all(
        [Example("Who?", "Ada", turns=turns)], get_template("vicuna"), tokenizer, 600
    ).rows
    assert tokenizer.decode(row.prompt) == "Be brief. USER: Who? ASSISTANT:"


def test_llavas_first_stage_shows_the_images_alone():
    tokenizer, token = tiny_tokenizer().with_special_token("<image>")
    prompt = get_template("llava-plain").encode_prompt("<image>\nDescribe it.", tokenizer)
    assert prompt == [*tokenizer.start_ids, token]
