"""`python -m dora_jax.data.scenes`: write a data set of rendered scenes to a folder."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from dora_jax.errors import DoraError

try:
    import tyro

    from dora_jax.data.scenes.dataset import write
    from dora_jax.data.scenes.families import FAMILIES, FAMILY_A, Family
    from dora_jax.data.scenes.rows import Task
    from dora_jax.data.scenes.scene import Split
except (ImportError, DoraError) as error:
    raise SystemExit(
        f"scenes need their extra: pip install 'dora-jax[scenes]' ({error})"
    ) from error


@dataclass(frozen=True)
class Arguments:
    """Write rendered scenes with questions: PNG pictures and JSON; see docs/scenes.md."""

    out: Path
    """The folder to write to."""
    family: Literal["A", "B"] = "A"
    """What scenes are drawn from; each of its knobs can be set by itself."""
    split: Split = "train"
    """Which scenes and handwritten digits; none is in two splits."""
    rows: int = 2000
    """How many."""
    seed: int = 0
    """Of the draws."""
    task: Task = "conversations"
    """What is asked."""
    knobs: Annotated[Family, tyro.conf.arg(name="")] = FAMILY_A


def main(argv: Sequence[str] | None = None) -> None:
    """Write what the command line asks for, and say where."""
    # The knobs start as those of the family that is named.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--family", default="A")
    name = first.parse_known_args(argv)[0].family
    start = Arguments(tyro.MISSING, knobs=FAMILIES.get(name, FAMILY_A))
    try:
        given = tyro.cli(Arguments, default=start, args=argv, prog="python -m dora_jax.data.scenes")
        path = write(given.out, given.knobs, given.split, given.rows, given.seed, given.task)
    except DoraError as error:
        raise SystemExit(f"error: {error}") from error
    print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
