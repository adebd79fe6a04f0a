"""Where the paper's studies start: a BART with a new visual embedding, as a folder.

    python -m experiments.vlbart.start image --bart bart-base --out models/vl-bart-image

The tokens that places in an image need are added to the model alone: no text has them.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from dora_jax.checkpoint.bart import read_bart_folder, write_bart_folder
from dora_jax.checkpoint.folder import check_free_name
from dora_jax.errors import DoraError
from dora_jax.models.bart_config import BartConfig
from dora_jax.models.vlbart import VLBart, VLBartConfig, start_from_bart
from experiments.vlbart.tuned import CONFIGS, Family

# As many as the published models have.
PLACES = VLBartConfig().vocab_size - BartConfig().vocab_size


def write_start(family: Family, bart: Path, out: Path, seed: int = 0) -> VLBartConfig:
    """Write a model to start training from.

    Args:
        family: whose features it will read.
        bart: a folder of BART, of any size.
        out: the folder to write; must not exist, or be empty.
        seed: of what is new.

    Returns:
        The shape of what was written.

    Raises:
        DoraError: when the BART cannot be read or sees already, or the folder cannot be written.
    """
    check_free_name(out)
    found = read_bart_folder(bart)
    if isinstance(found.config, VLBartConfig):
        raise DoraError(f"{bart}: sees already; name a BART that reads text alone")
    sizes = dataclasses.asdict(found.config)
    sizes["vocab_size"] += PLACES
    config = dataclasses.replace(CONFIGS[family], **sizes)
    params = start_from_bart(VLBart(config), found.params, jax.random.key(seed))
    write_bart_folder(out, config, params, found.tokenizer, generation=found.generation)
    return config


def main(argv: Sequence[str] | None = None) -> None:
    """Write what the command line asks for, and say what it is."""
    parser = argparse.ArgumentParser(prog="python -m experiments.vlbart.start")
    parser.add_argument("family", choices=tuple(CONFIGS))
    parser.add_argument("--bart", type=Path, required=True, help="a folder of BART")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of what is new")
    given = parser.parse_args(argv)
    try:
        config = write_start(given.family, given.bart, given.out, given.seed)
    except DoraError as error:
        raise SystemExit(f"error: {error}") from error
    print(
        f"{given.out}: a BART of {config.encoder_layers} + {config.decoder_layers} layers that "
        f"reads {config.layout} of size {config.feature_size}, its visual embedding new"
    )


if __name__ == "__main__":
    main()
