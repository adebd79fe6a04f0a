"""What the training loop makes of batches: of several shapes, made ahead, interrupted, broken."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dora_jax.data.buckets import BucketedBatches
from dora_jax.data.read_ahead import ReadAhead
from dora_jax.errors import DoraError
from dora_jax.training.metrics import METRICS_FILE
from tests.data.rows import random_row
from tests.training.test_loop import interrupt_at, logged, run
from tests.training.word_model import VOCABULARY

ROWS = [
    replace(random_row(n, 1 + n, [1 + n % 3], VOCABULARY), where=f"a.jsonl, line {n + 1}")
    for n in range(20)
]


class Broken(BucketedBatches):
    def batch(self, step):
        batch = super().batch(step)
        batch.label_weights[:] *= np.nan if step == 3 else 1
        return batch


def test_a_run_over_buckets_goes_on_with_other_workers_where_it_stopped(tmp_path):
    batches = BucketedBatches(ROWS, 3, 4, 0, 2)
    whole = run(tmp_path / "whole", batches=ReadAhead(batches, 0))
    assert len({row["tokens"] for row in logged(tmp_path / "whole")}) > 1
    with ReadAhead(batches, 2) as ahead, pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", batches=ahead, on_row=interrupt_at(5))
    with ReadAhead(batches, 1, workers=1) as ahead:
        parts = run(tmp_path / "parts", batches=ahead)
    assert parts.history == whole.history
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


def test_a_step_that_is_not_finite_names_the_rows_of_its_batch(tmp_path):
    batches = Broken(ROWS, 3, 4, 0, 2)
    with ReadAhead(batches, 2) as ahead, pytest.raises(DoraError) as refused:
        run(tmp_path, batches=ahead, bad_steps=1)
    assert f"up to step 4; its batch: {batches.row_ids(3)}" in str(refused.value)
    (*_, row) = map(json.loads, (tmp_path / METRICS_FILE).read_text().splitlines())
    assert row["rows"] == batches.row_ids(3)
    assert len(row["rows"]) == 4
    assert all(name.startswith("a.jsonl, line ") for name in row["rows"])
    assert row["wait_s"] > 0
