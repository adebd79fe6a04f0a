"""The README's examples run as they stand."""

import re
from pathlib import Path

import jax

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_three_examples_run_one_after_another():
    examples = blocks("python")
    assert len(examples) == 3
    names = {}
    exec("\n".join(examples), names)
    moved = names["trainable"]
    start = names["dora_jax"].partition(names["params"], names["mask"])[0]
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), moved, start)
    assert changed["up"]["lora_b"]
    assert changed["up"]["magnitude"]
    assert changed["down"] == {"bias": None, "kernel": None, "magnitude": True}


def test_what_it_links_to_is_there():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (Path(__file__).parent.parent / target).exists(), target


def test_its_commands_parse():
    from dora_jax import cli

    commands = [
        line.split()[1:]
        for block in blocks("bash")
        for line in block.splitlines()
        if line.startswith("dora-jax")
    ]
    assert {argv[0] for argv in commands} == set(cli._COMMANDS)
    for argv in commands:
        if argv[0] in ("compare", "train"):
            cli._parse_experiment(argv[0], argv[1:])
