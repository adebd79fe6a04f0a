"""What a row says of how its written answer is scored, and which answers may be trained on."""

import math
from collections.abc import Mapping
from typing import Any, get_args

from dora_jax.data.examples import Metric
from dora_jax.errors import DoraError
from dora_jax.spec import nearest

METRICS = get_args(Metric)
_BESIDE = ("references", "targets")


def judged_fields(row: Mapping[str, Any], output: str, where: str) -> dict[str, Any]:
    """Return the fields of an `Example` that a row's `metric` brings; none where it has none.

    `references` is a list of texts, of which people wrote each; `targets` are answers with their
    weights, {"dog": 1.0, "puppy": 0.3}, the output among the heaviest.

    Args:
        row: the row.
        output: its answer.
        where: file and line, named in errors.

    Raises:
        DoraError: for another metric, or fields that are not such.
    """
    metric = row.get("metric")
    if metric is None:
        lonely = [name for name in _BESIDE if row.get(name) is not None]
        if lonely:
            raise DoraError(f"{where}: has {lonely[0]!r}, and no 'metric' that would read it")
        return {}
    if metric not in METRICS:
        raise DoraError(
            f"{where}: 'metric' must be one of {', '.join(METRICS)}; got {metric!r}"
            f"{nearest(str(metric), METRICS)}"
        )
    references: Any = row.get("references") or []
    if not isinstance(references, list) or not all(isinstance(r, str) for r in references):
        raise DoraError(f"{where}: 'references' must be a list of texts; got {references!r:.80}")
    targets = _targets(row, output, where)
    return {"metric": metric, "references": tuple(references), "targets": targets}


def _targets(row: Mapping[str, Any], output: str, where: str) -> tuple[tuple[str, float], ...]:
    given: Any = row.get("targets")
    if given is None:
        return ()
    if not isinstance(given, dict) or not all(_is_weight(weight) for weight in given.values()):
        raise DoraError(
            f"{where}: 'targets' must be an object of answers with positive weights; got "
            f"{given!r:.80}"
        )
    if given.get(output) != max(given.values(), default=None):
        raise DoraError(
            f"{where}: the output {output!r} must be among 'targets', and no other heavier; got "
            f"{given!r:.80}"
        )
    return tuple((text, float(weight)) for text, weight in given.items())


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0
