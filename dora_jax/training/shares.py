"""The rows of a batch over several processes: each one reads its own."""

from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dora_jax.data.batches import Share
from dora_jax.mesh import ROWS
from dora_jax.sharding import row_places, run_mesh, split_rows

T = TypeVar("T")


def _rows_sharding(mesh: Mesh, rows: int) -> NamedSharding:
    divides = rows % row_places(mesh) == 0
    return NamedSharding(mesh, PartitionSpec(ROWS) if divides else PartitionSpec())


def row_share(mesh: Mesh, rows: int) -> Share:
    """Return which of a batch's rows this process has to read.

    All of them, where the processes' rows are not equal runs of the batch.
    """
    if jax.process_count() == 1:
        return Share()
    spans: dict[int, list[int]] = {}
    places = _rows_sharding(mesh, rows).devices_indices_map((rows,))
    for place, (span,) in places.items():
        device: Any = place
        spans.setdefault(device.process_index, []).extend(range(rows)[span])
    runs = {process: sorted(set(numbers)) for process, numbers in spans.items()}
    found = sorted({tuple(run) for run in runs.values()})
    share = Share(found.index(tuple(runs[jax.process_index()])), len(found))
    equal = rows % len(found) == 0 and all(
        tuple(Share(number, len(found)).rows(rows)) == run for number, run in enumerate(found)
    )
    return share if equal else Share()


def join_rows(tree: T, rows: int, share: Share) -> T:
    """Put a batch together, of which each process has its share.

    Args:
        tree: of arrays whose leading axis is the share's rows.
        rows: of the whole batch.
        share: of `row_share`.
    """
    if share.processes == 1:
        return split_rows(tree)
    sharding = _rows_sharding(run_mesh(), rows)

    def place(x: Any) -> jax.Array:
        whole = (rows, *x.shape[1:])
        return jax.make_array_from_process_local_data(sharding, np.asarray(x), whole)

    return jax.tree.map(place, tree)
