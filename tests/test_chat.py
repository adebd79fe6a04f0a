import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from dora_jax import chat_terminal
from dora_jax.answer import load_answerer, trimmed
from dora_jax.chat import Chat, name_adapters
from dora_jax.errors import DoraError
from dora_jax.generation import Sampling
from tests.checkpoint.tiny_adapter import adapter_info, write_adapter, write_base
from tests.scripted import scripted


class Talk:
    """A conversation, with what came out of it."""

    def __init__(self, ready=None, adapters=None, max_new_tokens=8, load=None, **fields):
        self.loaded = []
        self.made = ready or scripted()
        self.written, self.said = "", []

        def load_default(path):
            self.loaded.append(path)
            if path is not None and path.name == "broken":
                raise DoraError(f"{path}: holds no finished adapter")
            return dataclasses.replace(self.made, name=f"base with {path}" if path else "base")

        self.chat = Chat(
            load or load_default,
            Sampling(max_new_tokens),
            adapters=adapters,
            write=self.write,
            say=self.said.append,
            **fields,
        )

    def write(self, piece):
        self.written += piece

    def __call__(self, *lines):
        """Feed lines; return what was said to the last one."""
        for line in lines:
            self.said.clear()
            assert self.chat.feed(line)
        return " ".join(self.said)

    @property
    def asked(self):
        return self.made.asked


def roles(talk):
    return [message["role"] for message in talk.chat.messages]


def test_answers_come_as_they_are_made_and_are_remembered():
    talk = Talk()
    talk("hello", "", "  again  ")
    assert talk.written == "ans" + "wer" + "\n" + "ans" + "wer" + "\n"
    assert talk.chat.messages == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "answer"},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": "answer"},
    ]
    assert talk.asked[1] == (
        "<s>user: hello</s>\n<s>assistant: answer</s>\n<s>user: again</s>\n<s>assistant: "
    )
    # Asked again, the same question need not get the same answer.
    assert [call["sampling"].seed for call in talk.made.calls] == [0, 1]


def test_pieces_are_passed_on_without_the_space_around_them():
    found = []
    take = trimmed(found.append)
    for piece in (" ", "\n a", " ", "b\n", "\n", "c ", "  "):
        take(piece)
    assert found == ["a", " b", "\n\nc"]


def test_a_system_message_stands_before_everything():
    talk = Talk(system="be kind")
    talk("hello")
    assert talk.asked[-1].startswith("<s>system: be kind</s>\n<s>user: hello")
    assert "set" in talk("/system be short")
    talk("again")
    assert talk.asked[-1].startswith("<s>system: be short</s>\n<s>user: hello")
    assert "no system message" in talk("/system")
    talk("/reset", "new")
    assert talk.asked[-1] == "<s>user: new</s>\n<s>assistant: "


def test_undo_takes_back_one_turn_at_a_time():
    talk = Talk()
    talk("one", "two " * 18)
    assert talk("/undo") == "taken back: " + ("two " * 18)[:57] + "..."
    assert roles(talk) == ["user", "assistant"]
    assert talk("/undo") == "taken back: one"
    assert talk("/undo") == "there is nothing to take back"


def test_temperature():
    talk = Talk()
    assert talk("/temperature 0.5") == "temperature is 0.5"
    talk("a")
    assert talk.made.calls[-1]["sampling"].temperature == 0.5
    assert talk("/temperature") == "/temperature needs a number, such as 0.7; it is 0.5 now"
    assert "got 'hot'" in talk("/temperature hot")
    assert "at least 0" in talk("/temperature -1")
    assert talk.chat.sampling.temperature == 0.5


def test_saving(tmp_path):
    talk = Talk(system="s")
    talk("hello é")
    path = tmp_path / "chat.jsonl"
    assert talk(f"/save {path}") == f"3 messages written to {path}"
    saved = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert saved == [{"role": "system", "content": "s"}, *talk.chat.messages]
    assert "exists; choose another name" in talk(f"/save {path}")
    assert "needs a file" in talk("/save")
    assert "could not be written" in talk(f"/save {path}/below")


def test_adapters_are_switched_by_name_and_path(tmp_path):
    names = ("one", "two", "broken", "else")
    paths = {name: tmp_path / name for name in names}
    for path in paths.values():
        path.mkdir()
    talk = Talk(adapters={name: paths[name] for name in names[:3]})
    assert talk.loaded == [paths["one"]]
    assert talk("/adapter") == "now one; there are one, two, broken, none, and any path"
    talk("hello")
    assert talk("/adapter two") == f"now two: base with {paths['two']}"
    assert talk("/adapter none") == "now none: base"
    assert "base with" in talk(f"/adapter {paths['else']}")
    assert talk.loaded == [paths["one"], paths["two"], None, paths["else"]]
    ready = talk.chat.ready
    assert "no finished adapter" in talk("/adapter broken")
    assert "no adapter 'tow' (did you mean 'two'?)" in talk("/adapter tow")
    assert talk.chat.ready is ready
    assert talk.chat.adapter == str(paths["else"])
    assert roles(talk) == ["user", "assistant"]  # what was said stays


def test_unknown_commands_get_the_nearest_one():
    talk = Talk()
    assert talk("/rest") == (
        "unknown command '/rest' (did you mean '/reset'?); /help lists them, and // begins a "
        "message with a slash"
    )
    assert talk.chat.messages == []
    talk("//rest is good")
    assert talk.chat.messages[0]["content"] == "/rest is good"
    told = talk("/help")
    for command in ("/exit", "/reset", "/system", "/adapter", "/save", "/temperature", "/undo"):
        assert command in told
    assert talk.chat.feed("/exit") is False


def test_the_oldest_turns_give_way_to_the_context():
    talk = Talk(context := scripted(context=100), max_new_tokens=20)
    assert context.context == 100
    assert talk("one", "two") == ""
    assert "the oldest turn is left out from now on" in talk("three")
    assert talk.asked[-1].startswith("<s>user: two</s>")
    assert "the oldest turn is" in talk("four")
    assert "exceeds the model's context of 100 tokens: the oldest 2 turns" in talk("five " * 10)
    assert talk.asked[-1].startswith("<s>user: five five")
    assert len(talk.chat.messages) == 10  # and are kept, to be saved
    asked = len(talk.asked)
    assert "that is too long: 131 tokens, and the model's context of 100 holds 80" in talk(
        "x" * 110
    )
    assert len(talk.asked) == asked
    assert len(talk.chat.messages) == 10


@pytest.mark.parametrize("command", ["/reset", "/undo"])
def test_what_was_left_out_does_not_count_after_forgetting(command):
    talk = Talk(scripted(context=100), max_new_tokens=20)
    talk("one", "two", "three", "four " * 10)
    for _ in range(4):
        talk(command)
    assert talk.chat.messages == []
    talk("five", "six")
    assert "user: five</s>" in talk.asked[-2]
    assert "user: five</s>" in talk.asked[-1]


def test_what_the_template_refuses_was_not_said():
    talk = Talk(scripted("plain"))
    talk.chat.messages.append({"role": "critic", "content": "x"})
    assert "is of role 'critic'" in talk("hello")
    assert roles(talk) == ["critic"]
    assert "is not text" in talk("\udcff")


def test_a_template_without_turns_writes_questions_one_after_another():
    talk = Talk(scripted("plain"), system="Facts.")
    talk("one?", "two?")
    assert talk.asked[-1] == ("Facts.\n\nQuestion: one?\nAnswer: answer\n\nQuestion: two?\nAnswer:")
    # The model would ask itself on.
    assert talk.made.calls[-1]["stop"] == ["\nQuestion:"]
    alpaca = scripted("alpaca")
    assert alpaca.stop_texts[0].startswith("\nBelow is an instruction")


def test_a_cut_answer_says_so():
    talk = Talk(max_new_tokens=3)
    assert "(cut after 3 tokens; --max-new-tokens allows more)" in talk("hello")


def interrupted_after(pieces):
    def reply(text, seed):
        yield from pieces
        raise KeyboardInterrupt

    return reply


def test_an_interrupt_stops_the_answer_and_keeps_what_there_is():
    talk = Talk(scripted(reply=interrupted_after(["half an", " ans"])))
    assert talk("hello") == "(stopped)"
    assert talk.chat.messages[-1] == {"role": "assistant", "content": "half an ans"}
    assert talk.written == "half an ans\n"
    talk = Talk(scripted(reply=interrupted_after([])))
    with pytest.raises(KeyboardInterrupt):
        talk.chat.feed("hello")
    assert talk.chat.messages == []


def test_adapters_get_the_shortest_names_that_tell_them_apart():
    paths = [Path("/r/a/seed-0/dora"), Path("/r/a/seed-1/dora"), Path("/r/a/seed-0/dora")]
    assert name_adapters(paths) == {"seed-0/dora": paths[0], "seed-1/dora": paths[1]}
    assert name_adapters([Path("/r/lora"), Path("/r/dora")]) == {
        "lora": Path("/r/lora"),
        "dora": Path("/r/dora"),
    }
    assert name_adapters([]) == {}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(stdin, ready=None):
    console = Console(file=io.StringIO(), width=200)

    def make(write, say):
        return Chat(lambda path: ready or scripted(), Sampling(12), write=write, say=say)

    chat_terminal.run(make, stdin, console)
    return console.file.getvalue()


def test_piped_lines_are_answered_until_they_end():
    shown = run(io.StringIO("hello\n/undo\n"))
    assert shown.splitlines() == [
        "base. /help lists commands; Ctrl-C stops an answer, Ctrl-D leaves.",
        "answer",
        "taken back: hello",
    ]
    assert len(run(io.StringIO("/exit\nhello\n")).splitlines()) == 1


def test_at_the_terminal_ctrl_d_leaves_and_ctrl_c_does_not(monkeypatch):
    events = iter([KeyboardInterrupt, "hello", EOFError])

    def ask(prompt):
        event = next(events)
        if isinstance(event, str):
            return event
        raise event

    monkeypatch.setattr("builtins.input", ask)
    shown = run(Terminal(), scripted(reply=interrupted_after(["half"])))
    assert shown.splitlines()[1:] == ["", "(Ctrl-D leaves)", "half", "(stopped)", ""]
    assert list(events) == []


def test_a_model_talks_and_changes_its_adapter(tmp_path):
    base = write_base(tmp_path / "base")
    write_adapter(tmp_path / "run" / "adapter", adapter_info(base))
    talk = Talk(
        adapters={"mine": tmp_path / "run"},
        load=lambda path: load_answerer(str(base), path),
        max_new_tokens=4,
    )
    assert talk.chat.ready.template.name == "alpaca"  # the adapter's own
    talk("/adapter none")
    assert talk.chat.ready.template.name == "chat"
    talk("hello")
    first = talk.chat.messages[-1]["content"]
    assert talk.written == first + "\n"
    assert talk.chat.ready.base.stop_ids == (2,)
