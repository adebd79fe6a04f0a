"""The `dora-jax` command: thin; each command's work is elsewhere."""

import contextlib
import errno
import importlib.util
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from dora_jax.errors import DoraError
from dora_jax.spec import nearest

_MISSING = "dora-jax needs its command-line extra: pip install 'dora-jax[experiments]'"
try:
    import rich.console
    import tyro
except ImportError as error:
    raise SystemExit(f"{_MISSING} ({error})") from error

# Needs what is checked above.
from dora_jax.training.config import ExperimentConfig, GridAxis  # noqa: E402
from dora_jax.training.preemption import EXIT_CODE, Preempted  # noqa: E402

_USAGE = """dora-jax: fine-tune with DoRA and LoRA, and compare them honestly.

  dora-jax compare CONFIG.py [--FIELD VALUE ...]    train every method, evaluate, report
  dora-jax train CONFIG.py [--FIELD VALUE ...]      train one adapter
  dora-jax evaluate CONFIG.py [--adapter FOLDER]    score the base model, or an adapter
  dora-jax generate --prompt TEXT [--adapter FOLDER]
  dora-jax generate --prompts FILE.jsonl --out FILE.jsonl
  dora-jax chat [--model NAME] [--adapter FOLDER ...]
  dora-jax merge --adapter FOLDER --out FOLDER      a plain Hugging Face folder
  dora-jax import PEFT_FOLDER --out FOLDER          an adapter of Hugging Face PEFT
  dora-jax export FOLDER --out FOLDER [--as-lora]   an adapter for Hugging Face PEFT
  dora-jax adapters show FOLDER                     what an adapter of either kind holds
  dora-jax llava --vision FOLDER --model NAME --out FOLDER   a model that sees, of two parts
  dora-jax models                                   known models, and what is cached
  dora-jax models pull NAME                         fetch one; interrupted, it continues

Any of them takes --help. Runs go to runs/; the same command again continues an interrupted one."""


@dataclass(frozen=True)
class MergeArgs:
    """Write a plain Hugging Face folder with an adapter merged into the weights."""

    adapter: Path
    """An adapter's folder, or the part of a run that holds one."""
    out: Path
    """The folder to write; must not exist, or be empty."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the written weights; the arithmetic is float32 and rounded once."""
    model: str | None = None
    """Where the base weights are now, if not where they were in training."""


@dataclass(frozen=True)
class ImportArgs:
    """Make an adapter of Hugging Face PEFT one of ours, which every other command takes."""

    folder: tyro.conf.Positional[Path]
    """With adapter_config.json and adapter_model.safetensors."""
    out: Path
    """The folder to write; must not exist, or be empty."""
    model: str | None = None
    """The base model, if not the one that adapter_config.json names."""


@dataclass(frozen=True)
class ExportArgs:
    """Write an adapter as Hugging Face PEFT's, or as the closest plain LoRA."""

    folder: tyro.conf.Positional[Path]
    """An adapter's folder, or the part of a run that holds one."""
    out: Path
    """The folder to write; must not exist, or be empty."""
    model: str | None = None
    """Where the base weights are now, if not where they were in training."""
    as_lora: bool = False
    """Write the best plain LoRA of the merged weights' change: for servers without DoRA."""
    rank: int | None = None
    """With --as-lora: its rank."""
    error: float | None = None
    """With --as-lora: the share of each change's norm that may be lost; ranks follow from it."""


@dataclass(frozen=True)
class LlavaArgs:
    """Put a LLaVA together: a vision tower, a projector, a language model."""

    vision: Path
    """A folder with a vision tower: CLIP's, SigLIP's, or another LLaVA's."""
    model: str
    """The language model: a known name, a Hugging Face folder, or a GGUF file."""
    out: Path
    """The folder to write; must not exist, or be empty."""
    projector: Path | None = None
    """Safetensors of a trained projector; none makes a new one."""
    feature_layer: int = -2
    """Of the tower, whose output the projector gets; LLaVA's is the last but one."""
    pad: bool = True
    """Make images square by a margin, as LLaVA-1.5; else as the tower's own processor says."""
    seed: int = 0
    """Of a new projector."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the written weights."""


@dataclass(frozen=True)
class ShowArgs:
    """Print what an adapter holds, ours or PEFT's."""

    folder: tyro.conf.Positional[Path]
    """The adapter's folder."""


@dataclass(frozen=True)
class ModelsArgs:
    """List the known models, and what is cached. `dora-jax models pull NAME` fetches one."""


@dataclass(frozen=True)
class PullArgs:
    """Fetch a model into the cache. Interrupted, the same command goes on where it stopped."""

    name: tyro.conf.Positional[str]
    """A known name, or owner/name on the Hugging Face hub."""


@dataclass(frozen=True)
class EvaluateArgs:
    """Score the base model, or an adapter, on the evaluation rows of an experiment."""

    # Without a name its fields keep the names that `train` and `compare` give them.
    config: Annotated[ExperimentConfig, tyro.conf.arg(name="")]
    """The experiment whose data and model are used."""
    adapter: Path | None = None
    """An adapter's folder, or the part of a run that holds one; none takes the base model."""


_registry = tyro.constructors.ConstructorRegistry()


@_registry.primitive_rule
def _grid_axis(
    type_info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[GridAxis] | None:
    """An axis of the grid is one word of the command line: adapter.rank=4,8."""
    if type_info.type is not GridAxis:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FIELD=VALUE,...",
        instance_from_str=lambda words: GridAxis.parse(words[0]),
        is_instance=lambda value: isinstance(value, GridAxis),
        str_from_instance=lambda axis: [str(axis)],
    )


def load_experiment(path: str) -> ExperimentConfig:
    """Run an experiment file and return its `config`.

    Raises:
        DoraError: when the file is missing, fails, or sets no ExperimentConfig.
    """
    file = Path(path)
    if not file.is_file():
        folder = file.parent if file.parent.is_dir() else Path(".")
        others = [str(p) for p in sorted(folder.glob("*.py")) if p.name != "__init__.py"]
        hint = f"; in {folder} there are: {', '.join(others)}" if others else ""
        raise DoraError(f"{path}: no such experiment file{nearest(path, others)}{hint}")
    file = file.absolute()  # as tracebacks name it
    spec = importlib.util.spec_from_file_location("experiment", file)
    if spec is None or spec.loader is None:
        raise DoraError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        with _neighbours(file.parent):
            spec.loader.exec_module(module)
    except DoraError as error:
        raise DoraError(f"{path}: {error}") from None
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        where = f"{path}, line {frames[-1].lineno}" if frames else path
        raise DoraError(f"{where}: {type(error).__name__}: {error}") from error
    config = getattr(module, "config", None)
    if not isinstance(config, ExperimentConfig):
        raise DoraError(f"{path}: must set `config = ExperimentConfig(...)`")
    return config


@contextlib.contextmanager
def _neighbours(folder: Path) -> Iterator[None]:
    """Let an experiment file import the files beside it, and nothing of it remain."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            origin = getattr(sys.modules[name], "__file__", None)
            if origin and Path(origin).parent == folder:
                del sys.modules[name]


def _config_and_overrides(command: str, argv: Sequence[str]) -> tuple[ExperimentConfig, list[str]]:
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        raise DoraError(
            f"dora-jax {command} needs an experiment file first, such as "
            f"experiments/quickstart.py: dora-jax {command} CONFIG.py [--FIELD VALUE]"
        )
    if argv[0] in ("-h", "--help"):
        return ExperimentConfig(), ["--help"]
    return load_experiment(argv[0]), list(argv[1:])


def _parse_experiment(command: str, argv: Sequence[str]) -> ExperimentConfig:
    config, overrides = _config_and_overrides(command, argv)
    return tyro.cli(
        ExperimentConfig,
        default=config,
        args=overrides,
        prog=f"dora-jax {command} CONFIG.py",
        registry=_registry,
    )


def _compare(argv: Sequence[str]) -> None:
    config = _parse_experiment("compare", argv)
    from dora_jax.comparison.compare import compare

    compare(config, command=shlex.join(["dora-jax", "compare", *argv]))


def _train(argv: Sequence[str]) -> None:
    config = _parse_experiment("train", argv)
    from dora_jax.comparison.compare import train

    train(config, command=shlex.join(["dora-jax", "train", *argv]))


def _evaluate(argv: Sequence[str]) -> None:
    config, overrides = _config_and_overrides("evaluate", argv)
    args = tyro.cli(
        EvaluateArgs,
        default=EvaluateArgs(config),
        args=overrides,
        prog="dora-jax evaluate CONFIG.py",
        registry=_registry,
    )
    from dora_jax.comparison.evaluate import evaluate

    for line in evaluate(args.config, args.adapter):
        print(line)


def _generate(argv: Sequence[str]) -> None:
    from dora_jax.cli_text import generate_command

    generate_command(argv)


def _chat(argv: Sequence[str]) -> None:
    from dora_jax.cli_text import chat_command

    chat_command(argv)


def _merge(argv: Sequence[str]) -> None:
    args = tyro.cli(MergeArgs, args=list(argv), prog="dora-jax merge")
    from dora_jax.checkpoint.merge import merge_to_hf

    lost = merge_to_hf(args.adapter, args.out, args.dtype, args.model)
    print(f"merged model written to {args.out}")
    if lost is not None:
        print(lost)


def _import(argv: Sequence[str]) -> None:
    args = tyro.cli(ImportArgs, args=list(argv), prog="dora-jax import")
    from dora_jax.checkpoint.exchange import import_peft

    for line in import_peft(args.folder, args.out, args.model):
        print(line)


def _export(argv: Sequence[str]) -> None:
    args = tyro.cli(ExportArgs, args=list(argv), prog="dora-jax export")
    from dora_jax.checkpoint import exchange

    given = (args.rank, args.error)
    if args.as_lora != (given != (None, None)) or None not in given:
        raise DoraError("--as-lora goes with one of --rank R and --error E, and they with it")
    if args.as_lora:
        lines = exchange.export_as_lora(args.folder, args.out, *given, model=args.model)
    else:
        lines = exchange.export_peft(args.folder, args.out, args.model)
    for line in lines:
        print(line)


def _llava(argv: Sequence[str]) -> None:
    args = tyro.cli(LlavaArgs, args=list(argv), prog="dora-jax llava")
    from dora_jax.checkpoint.llava_parts import join_parts

    given = dict(vars(args))
    vision, model, out = (given.pop(name) for name in ("vision", "model", "out"))
    for line in join_parts(vision, model, out, **given):
        print(line)


def _adapters(argv: Sequence[str]) -> None:
    if argv[:1] not in (["show"], ["-h"], ["--help"]):
        raise DoraError("dora-jax adapters shows what one holds: dora-jax adapters show FOLDER")
    own = argv[1:] if argv[0] == "show" else argv
    args = tyro.cli(ShowArgs, args=list(own), prog="dora-jax adapters show")
    from dora_jax.checkpoint.exchange import describe

    for line in describe(args.folder):
        print(line)


def _models(argv: Sequence[str]) -> None:
    if argv and argv[0] != "pull" and not argv[0].startswith("-"):
        raise DoraError(
            f"dora-jax models knows no {argv[0]!r}{nearest(argv[0], ['pull'])}; it lists, or "
            "fetches: dora-jax models pull NAME"
        )
    pulled = None
    if argv[:1] == ["pull"]:
        pulled = tyro.cli(PullArgs, args=list(argv[1:]), prog="dora-jax models pull").name
    else:
        tyro.cli(ModelsArgs, args=list(argv), prog="dora-jax models")
    from dora_jax.checkpoint import hub

    if pulled is not None:
        found = hub.pull(pulled)
        print(hub.ModelStatus(pulled, (found,)))
        return
    for model in hub.list_models():
        print(model)


_COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "compare": _compare,
    "train": _train,
    "evaluate": _evaluate,
    "generate": _generate,
    "chat": _chat,
    "merge": _merge,
    "import": _import,
    "export": _export,
    "llava": _llava,
    "adapters": _adapters,
    "models": _models,
}


@contextlib.contextmanager
def errors_in_words(continues: bool) -> Iterator[None]:
    """Turn what a user can cause into one message and an exit code that is not zero.

    Args:
        continues: whether the same command, given again, goes on where it stopped.
    """
    again = "run the same command again" + (" to continue where it stopped" if continues else "")
    console = rich.console.Console(stderr=True)

    def fail(text: str, code: int) -> None:
        console.print("error:", style="bold red", end=" ")
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(code)

    try:
        yield
    except DoraError as error:
        fail(str(error), 1)
    except Preempted as stop:
        fail(f"{stop}; {again}", EXIT_CODE)
    except KeyboardInterrupt:
        fail(f"interrupted; {again}", 130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        place = f"{error.filename}: " if error.filename else ""
        fail(f"{place}{error.strerror}; mend that and {again}", 1)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; exits with 0, or with another code after one clear message."""
    argv = list(sys.argv[1:] if argv is None else argv)
    is_pull = argv[:2] == ["models", "pull"]
    continues = argv[:1] in (["compare"], ["train"]) or "--prompts" in argv or is_pull
    with errors_in_words(continues):
        if not argv or argv[0] in ("-h", "--help"):
            print(_USAGE)
            return
        if argv[0] not in _COMMANDS:
            raise DoraError(
                f"unknown command {argv[0]!r}{nearest(argv[0], _COMMANDS)}; "
                f"there are {', '.join(_COMMANDS)}"
            )
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        from dora_jax.compilation_cache import enable_compilation_cache

        enable_compilation_cache()
        from dora_jax.processes import connect

        connect()
        _COMMANDS[argv[0]](argv[1:])


if __name__ == "__main__":
    main()
