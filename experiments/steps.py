"""What the miniatures are made of: steps that are each done once, and whole or not at all."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dora_jax.analysis.records import differences, encode
from dora_jax.checkpoint.merge import merge_to_hf
from dora_jax.comparison.compare import train
from dora_jax.errors import DoraError
from dora_jax.json_file import read_json
from dora_jax.training.config import ExperimentConfig

MADE_OF = "made_of.json"


def make_once(folder: Path, made_of: Mapping[str, Any], make: Callable[[Path], object]) -> None:
    """Make a folder, in one step: what is there is whole, and not made again.

    Args:
        folder: to make.
        made_of: the settings that it depends on, plain JSON; kept in it.
        make: makes it, in a folder that is given a name when it is done.

    Raises:
        DoraError: when a folder is there that was made of something else.
    """
    wanted = encode(made_of)
    if folder.exists():
        way_out = f"delete {folder} to make it again"
        path = folder / MADE_OF
        if not path.is_file():
            raise DoraError(f"{folder}: does not say what it was made of; {way_out}")
        found = differences(read_json(path, way_out), wanted)
        if found:
            raise DoraError(f"{folder}: was made of something else ({'; '.join(found)}); {way_out}")
        return
    print(f"{folder.name} ...", flush=True)
    fresh = folder.with_name(f".{folder.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    make(fresh)
    (fresh / MADE_OF).write_text(json.dumps(wanted, indent=1) + "\n")
    fresh.rename(folder)


def write_trained(config: ExperimentConfig, command: str, out: Path) -> None:
    """Train, and write the model with what was trained merged into it."""
    (result,) = train(config, command).runs
    merge_to_hf(config.run_folder() / f"seed-{result.seed}" / result.method, out)
