"""A JSONL file of prompts answered into another: in order, batch by batch, and resumable.

Beside `OUT` stands `OUT.settings.json`, which says what the answers belong to; a run of other
prompts, settings or weights is refused. Images of rows that are not answered yet may change. Lines
are only ever appended, a batch at a time.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from dora_jax.analysis.atomic import write_text
from dora_jax.answer import Answerer, load_answerer
from dora_jax.checkpoint.pretrained import fingerprint
from dora_jax.data.vision import IMAGE, ImageFile, with_marks
from dora_jax.errors import DoraError
from dora_jax.generation import Completion, Sampling
from dora_jax.prompt_rows import Row, find_images, read_rows
from dora_jax.training.progress import WorkProgress

SETTINGS_SUFFIX = ".settings.json"
_IMAGES = "images"


def _encode(
    rows: Sequence[Row], images: Sequence[Sequence[ImageFile]], ready: Answerer, new_tokens: int
) -> list[list[int]]:
    encoded = []
    for row, own in zip(rows, images, strict=True):
        try:
            ready.check_images(len(own))
            if "prompt" in row.fields:
                ids = ready.encode_prompt(with_marks(row.fields["prompt"], len(own)))
            else:
                ids = ready.encode_messages(_marked(row.fields["messages"], len(own)))
            ready.check_marks(ids, len(own))
        except DoraError as error:
            raise DoraError(f"{row.where}: {error}") from None
        if len(ids) + new_tokens > ready.context:
            raise DoraError(
                f"{row.where}: {len(ids)} tokens; with {new_tokens} new ones they exceed the "
                f"model's context of {ready.context}: shorten it, or lower --max-new-tokens"
            )
        encoded.append(ids)
    return encoded


def _marked(messages: list[dict[str, Any]], images: int) -> list[dict[str, Any]]:
    """Return messages in which images stand before the first question, if none says where."""
    shown = json.dumps([message.get("content") for message in messages])
    if not images or IMAGE in shown or '"type": "image"' in shown:
        return messages
    first = next((n for n, m in enumerate(messages) if m["role"] == "user"), None)
    if first is None:
        raise DoraError("has images, and no question of a user that they could stand in")
    content = messages[first]["content"]
    parts = [{"type": "image"}] * images
    marked = with_marks(content, images) if isinstance(content, str) else [*parts, *content]
    asked = {**messages[first], "content": marked}
    return [*messages[:first], asked, *messages[first + 1 :]]


def _lines(row: Row, completions: Sequence[Completion]) -> list[str]:
    """Return the lines of one row, one of each sample."""
    lines = []
    for completion in completions:
        fields = {
            **row.fields,
            "completion": completion.text.strip(),
            "finish_reason": completion.finish_reason,
            "log_prob": round(sum(completion.log_probs), 6),
            "tokens": len(completion.token_ids),
        }
        if len(completions) > 1:
            fields["sample"] = completion.sample
        lines.append(json.dumps(fields, ensure_ascii=False) + "\n")
    return lines


def _settings(
    rows: Sequence[Row],
    ready: Answerer,
    sampling: Sampling,
    stop: Sequence[str],
    batch_size: int,
    images: Sequence[Sequence[ImageFile]],
) -> dict[str, Any]:
    asked = json.dumps([row.fields for row in rows], sort_keys=True).encode()
    # Wherever they are: the rows have their names, and these are their sizes in bytes.
    sizes = [[image.size for image in own] for own in images]
    seen = {_IMAGES: sizes} if any(images) else {}
    return {
        "prompts": f"{len(rows)} rows, {hashlib.sha256(asked).hexdigest()[:16]}",
        "model": ready.name,
        "weights": fingerprint(ready.params),
        "template": ready.template.name,
        "stop": list(stop),
        # Of what is sampled, each batch has its own random numbers.
        "batch_size": batch_size,
        **seen,
        **dataclasses.asdict(sampling),
    }


def _settings_path(out: Path) -> Path:
    return out.with_name(out.name + SETTINGS_SUFFIX)


def _check_out(prompts: Path, out: Path) -> None:
    """Refuse, before anything is loaded, what cannot become the output."""
    if out.exists() and prompts.exists() and out.samefile(prompts):
        raise DoraError(f"{out}: is the file of prompts; choose another --out")
    if out.is_dir():
        raise DoraError(f"{out}: is a folder; give a file with --out")
    if out.exists() and out.stat().st_size and not _settings_path(out).is_file():
        raise DoraError(
            f"{out}: exists, but nothing says what it belongs to ({_settings_path(out).name} is "
            "missing); choose another --out, or delete it"
        )


def _check_settings(out: Path, settings: dict[str, Any], answered: int) -> None:
    """Check that answers belong to these settings, and note the images of the rows to come.

    Raises:
        DoraError: naming what differs. Of the images only those of the `answered` rows count.
    """
    path, way_out = _settings_path(out), f"choose another --out, or delete {out}"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        names = [name for name in settings if stored.get(name) != settings[name]]
    except (OSError, ValueError, AttributeError) as error:
        raise DoraError(f"{path}: cannot be read ({error}); {way_out}") from None
    if "weights" not in names:
        names = [name for name in names if name != "model"]  # the same one from another place
    differ = [
        f"{name} is {stored.get(name)!r} there and {settings[name]!r} here"
        for name in names
        if name != _IMAGES
    ]
    if _IMAGES in names:
        differ += _other_images(stored.get(_IMAGES), settings[_IMAGES][:answered])
    if differ:
        raise DoraError(f"{out}: holds answers of another run ({'; '.join(differ)}); {way_out}")
    if _IMAGES in names:
        _write_settings(out, stored | {_IMAGES: settings[_IMAGES]})


def _other_images(stored: Any, given: Sequence[Any]) -> list[str]:
    """Return in words which of the first rows had other images, by their sizes; one is enough."""
    there = [*stored] if isinstance(stored, list) else []
    there += [None] * (len(given) - len(there))
    return [
        f"the images of row {number} have {old} bytes there and {new} here"
        for number, (old, new) in enumerate(zip(there, given, strict=False), 1)
        if old != new
    ][:1]


def _write_settings(out: Path, settings: dict[str, Any]) -> None:
    write_text(_settings_path(out), json.dumps(settings, indent=1) + "\n")


def _answered(content: bytes, samples: int) -> int:
    """Return the number of rows that have answers in an output, the last of them maybe not all."""
    return -(-content.count(b"\n") // samples)


def _content(out: Path) -> bytes:
    try:
        return out.read_bytes()
    except OSError:  # not there; else `_claim` says what is wrong with it
        return b""


@contextlib.contextmanager
def _claim(
    out: Path, settings: dict[str, Any], rows: int, samples: int
) -> Iterator[tuple[BinaryIO, int]]:
    """Open the output of rows, with a line for each sample; say how many lines are there already.

    Raises:
        DoraError: when it belongs to other settings, is in use, is broken or cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        file = open(out, "a+b")  # noqa: SIM115 - held, with its lock, until the run ends
    except OSError as error:
        raise DoraError(
            f"{out}: cannot be written ({error.strerror}); choose another --out"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DoraError(
                f"{out}: another process is writing it; wait for it, or choose another --out"
            ) from None
        file.seek(0)
        content = file.read()
        if content:
            _check_settings(out, settings, _answered(content, samples))
        else:
            _write_settings(out, settings)
        # A killed process may have left half a line.
        whole = content.rfind(b"\n") + 1
        file.truncate(whole)
        lines = content[:whole].splitlines()
        for number, line in enumerate(lines, 1):
            try:
                json.loads(line)
            except ValueError:
                raise DoraError(
                    f"{out}, line {number}: is not JSON; delete {out} to start again"
                ) from None
        if len(lines) > rows * samples:
            raise DoraError(
                f"{out}: has {len(lines)} lines where {rows * samples} are due; delete it to start "
                "again"
            )
        yield file, len(lines)


def _seed(seed: int, batch: int) -> int:
    """Return the seed of a batch: prompts are numbered anew in each, and must not share draws."""
    digest = hashlib.sha256(f"{seed} {batch}".encode()).digest()
    return seed if batch == 0 else int.from_bytes(digest[:4], "big")


def generate_file(
    prompts: Path,
    out: Path,
    sampling: Sampling,
    *,
    model: str | None = None,
    adapter: Path | None = None,
    template: str | None = None,
    stop: Sequence[str] = (),
    batch_size: int = 16,
    progress: WorkProgress | None = None,
    image_folder: Path | None = None,
) -> int:
    """Answer every row of a file, or those that an interrupted run left.

    An output line is the row with `completion` (without the space around it), `finish_reason`,
    `log_prob` (the sum over its tokens, by the model itself) and `tokens` (their number); with
    `num_samples` over 1 there is a line for each, with its number as `sample`. The answers do not
    depend on whether the run was interrupted.

    Args:
        prompts: see `read_rows`.
        out: written; continued where it holds lines of the same prompts, settings and weights.
        sampling: see `Sampling`.
        model: see `load_answerer`.
        adapter: see `load_answerer`.
        template: see `load_answerer`.
        stop: strings that end an answer.
        batch_size: rows at once, and between two writes.
        progress: where to show it; standard error by default.
        image_folder: where the images are that rows name as `image` or `images`; None is the
            folder of the prompts.

    Returns:
        The number of lines written now.

    Raises:
        DoraError: before any work, for a bad row or one that exceeds the model's context (with its
            line), a model that cannot be loaded, or an output that belongs to something else.
    """
    if batch_size < 1:
        raise DoraError(f"--batch-size must be at least 1; got {batch_size}")
    rows = read_rows(prompts)
    _check_out(prompts, out)
    samples = sampling.num_samples
    first = _answered(_content(out), samples)
    images = find_images(rows, image_folder or prompts.parent, first)
    ready = load_answerer(model, adapter, template)
    ids = _encode(rows, images, ready, sampling.max_new_tokens)
    width = max(samples, sampling.num_beams)
    settings = _settings(rows, ready, sampling, stop, batch_size, images)
    written = 0
    with _claim(out, settings, len(rows), samples) as (file, done):
        if done == len(rows) * samples:
            return 0
        work = [float(len(row) + sampling.max_new_tokens) for row in ids]
        with progress or WorkProgress(sum(work)) as shown:
            shown.skip(sum(work[: done // samples]))
            shown.part(f"{out.name}")
            if done:
                shown.say(f"{out}: goes on after {done} of {len(rows) * samples} lines")
            # Whole batches, whatever is there of them: the same ones as without the interruption.
            for start in range(done // samples // batch_size * batch_size, len(rows), batch_size):
                end = min(start + batch_size, len(rows))
                seeded = dataclasses.replace(
                    sampling, seed=_seed(sampling.seed, start // batch_size)
                )
                completions = ready.generate(
                    ids[start:end],
                    seeded,
                    stop=stop,
                    batch_size=batch_size * width,
                    images=[[image.path for image in own] for own in images[start:end]],
                )
                lines = [
                    line
                    for place, row in enumerate(rows[start:end])
                    for line in _lines(row, completions[place * samples : (place + 1) * samples])
                ]
                new = lines[max(0, done - start * samples) :]
                file.write("".join(new).encode())
                file.flush()
                os.fsync(file.fileno())
                written += len(new)
                shown.advance(sum(work[max(start, done // samples) : end]), f"{end} of {len(rows)}")
    return written
