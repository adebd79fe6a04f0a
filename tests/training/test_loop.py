import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from dora_jax.errors import DoraError
from dora_jax.partition import partition, trainable_mask
from dora_jax.training.config import TrainConfig
from dora_jax.training.loop import CHECKPOINTS, fit
from dora_jax.training.metrics import MEASURED, METRICS_FILE, device_peak
from dora_jax.training.preemption import Preempted, listening
from dora_jax.training.reporting import Watching
from dora_jax.training.step import labelled_loss
from tests.training.word_model import RandomBatches, word_model

STEPS, EVERY = 7, 2
SCHEDULE = optax.linear_schedule(0.1, 0.0, STEPS)


@pytest.fixture(scope="module", autouse=True)
def _compilations_are_kept(tmp_path_factory):
    """Every `fit` compiles its step; here the same step is compiled once, to save half the time."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}

    def configure(values):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    configure(options)
    yield
    configure(before)


def interrupt_at(step):
    def on_row(row):
        if row["step"] == step:
            raise KeyboardInterrupt

    return on_row


def run(
    folder,
    method="dora",
    dropout=0.0,
    batches=None,
    change=lambda params: params,
    on_row=lambda row: None,
    **options,
):
    model, rules, params = word_model(method, dropout=dropout)
    own = ("checkpoint_every", "micro_batches", "validate_every", "patience", "bad_steps", "select")
    fields = {"checkpoint_every": EVERY} | {n: options.pop(n) for n in own if n in options}
    return fit(
        model,
        rules,
        change(params),
        batches or RandomBatches(),
        optax.adam(SCHEDULE),
        SCHEDULE,
        TrainConfig(**fields),
        folder=folder,
        noise=dropout > 0,
        watching=Watching(on_row=on_row),
        **({"steps": STEPS, "seed": 3} | options),
    )


def logged(folder):
    """Return the rows of the metrics file, without what no two runs share."""
    rows = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in rows]


@functools.cache
def uninterrupted(method="dora", dropout=0.0):
    """Return (result, metrics)."""
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), method, dropout), logged(Path(folder))


def assert_same_as_uninterrupted(result, folder, *settings):
    expected, metrics = uninterrupted(*settings)
    jax.tree.map(np.testing.assert_array_equal, result.params, expected.params)
    assert result.history == expected.history
    assert logged(folder) == metrics


def assert_times_are_those_of_all_steps(result, folder):
    lines = (folder / METRICS_FILE).read_text().splitlines()
    times = [json.loads(line)["step_time_s"] for line in lines]
    assert min(times) > 0
    assert result.train_seconds == pytest.approx(sum(times))
    assert result.step_time_s == sorted(times)[STEPS // 2]
    assert result.compile_s > 0
    assert result.peak_memory_bytes > 10**7


def stopped_at(folder, step, *settings, **options):
    with pytest.raises(KeyboardInterrupt):
        run(folder, *settings, on_row=interrupt_at(step), **options)


@pytest.fixture(scope="module")
def interrupted_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    stopped_at(folder, 5)
    return folder


@pytest.fixture
def interrupted(interrupted_once, tmp_path):
    """The folder of a run that was interrupted at step 5, so that it continues from step 4."""
    return shutil.copytree(interrupted_once, tmp_path / "run")


@pytest.mark.parametrize("settings", [("dora", 0.5), ("lora", 0.0), ("full", 0.0)], ids=str)
def test_an_interrupted_run_continues_to_the_same_numbers(tmp_path, settings):
    stopped_at(tmp_path, 5, *settings)
    batches = RandomBatches()
    result = run(tmp_path, *settings, batches=batches)
    assert set(batches.asked) == {4, 5, 6}
    assert_same_as_uninterrupted(result, tmp_path, *settings)
    assert_times_are_those_of_all_steps(result, tmp_path)


def test_a_run_interrupted_again_and_again_continues_to_the_same_numbers(tmp_path):
    for step in (1, 3, 7):  # before the first checkpoint, between two, after the last
        stopped_at(tmp_path, step)
    assert_same_as_uninterrupted(run(tmp_path), tmp_path)


def test_a_killed_process_continues_to_the_same_numbers(tmp_path):
    # While the checkpoint of step 4 is being written, or shortly after.
    program = f"""
import jax, os, signal
from pathlib import Path
jax.config.update("jax_num_cpu_devices", {jax.device_count()})
from tests.training.test_loop import run

def kill(row):
    if row["step"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)

run(Path({str(tmp_path)!r}), "dora", 0.5, on_row=kill)
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert [row["step"] for row in logged(tmp_path)] == [1, 2, 3, 4, 5]
    assert_same_as_uninterrupted(run(tmp_path, "dora", 0.5), tmp_path, "dora", 0.5)


def test_dropout_and_its_seed_change_the_numbers(tmp_path):
    plain, dropped = uninterrupted()[1], uninterrupted("dora", 0.5)[1]
    run(tmp_path, "dora", 0.5, seed=4)
    # At the first step lora_b is zero: what is dropped does not show yet.
    losses = [[row["loss"] for row in rows[1:]] for rows in (plain, dropped, logged(tmp_path))]
    assert not set(losses[0]) & set(losses[1])
    assert not set(losses[1]) & set(losses[2])


def test_a_torn_last_line_of_the_metrics_is_dropped(interrupted):
    metrics = interrupted / METRICS_FILE
    metrics.write_bytes(metrics.read_bytes()[:-20] + b"\xff\x00")
    assert_same_as_uninterrupted(run(interrupted), interrupted)


@pytest.mark.parametrize("lost", [slice(0, 1), slice(2, 3), slice(3, None), slice(0, None)])
def test_lost_metrics_of_steps_before_the_checkpoint_are_refused(interrupted, lost):
    metrics = interrupted / METRICS_FILE
    lines = metrics.read_text().splitlines(keepends=True)
    del lines[lost]
    metrics.write_text("".join(lines))
    with pytest.raises(DoraError) as caught:
        run(interrupted)
    assert f"{metrics}: does not hold the steps 1 to 4 of its checkpoint" in str(caught.value)
    assert f"delete {interrupted} to train this part again from its start" in str(caught.value)
    metrics.unlink()
    with pytest.raises(DoraError, match="does not hold the steps 1 to 4"):
        run(interrupted)


def test_a_run_of_more_steps_is_refused(interrupted):
    with pytest.raises(DoraError, match=r"holds a run of 4 steps or more, not one of 3; delete"):
        run(interrupted, steps=3)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(interrupted):
    (interrupted / CHECKPOINTS / "4" / "state" / "_METADATA").write_text("{")
    batches = RandomBatches()
    result = run(interrupted, batches=batches)
    assert min(batches.asked) == 2
    assert_same_as_uninterrupted(result, interrupted)


def test_a_checkpoint_of_another_run_is_refused(interrupted):
    with pytest.raises(DoraError, match=r"not a checkpoint of this run \(seed is 3 there and 4"):
        run(interrupted, seed=4)
    with pytest.raises(DoraError, match=r"weights is None there and 'abc' here"):
        run(interrupted, identity={"weights": "abc"})
    with pytest.raises(DoraError, match=r"rules is .*'lora'.* there|rules is .* here"):
        run(interrupted, "lora")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_leaves_a_checkpoint(tmp_path, number):
    def tell(row):
        if row["step"] == 3:
            os.kill(os.getpid(), number)

    with pytest.raises(Preempted, match=r"stopped after step 4 of 7"), listening():
        run(tmp_path, on_row=tell, checkpoint_every=100)
    batches = RandomBatches()
    result = run(tmp_path, batches=batches, checkpoint_every=100)
    assert min(batches.asked) == 4
    assert_same_as_uninterrupted(result, tmp_path)


def test_a_second_interrupt_ends_a_run_at_once(tmp_path):
    def tell(row):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    # Started in the background, a shell has the tests ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), listening():
            run(tmp_path, on_row=tell)
        # What the signals did before, they do again.
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_where_nothing_is_trained_a_stop_is_at_once():
    with pytest.raises(Preempted, match="told to stop"), listening():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_best_checkpoint_is_what_a_run_may_end_with(tmp_path):
    seen = {}

    def validate(params):
        number = len(seen) + 1
        seen[number] = np.asarray(params["mix"]["lora_b"])
        return {"validation_loss": [9.0, 2.0, 4.0, 5.0, 7.0, 6.0, 8.0][number - 1]}

    options = {"validate_every": 1, "select": "best", "validate": validate}
    result = run(tmp_path, **options)
    assert result.best_step == 2
    np.testing.assert_array_equal(result.params["mix"]["lora_b"], seen[2])
    again = run(tmp_path, **options)
    assert again.best_step == 2
    np.testing.assert_array_equal(again.params["mix"]["lora_b"], seen[2])


class BrokenFrom(RandomBatches):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def batch(self, step):
        batch = super().batch(step)
        if step + 1 >= self.step:
            batch.label_weights[:] = np.nan
        return batch


def test_a_run_that_is_no_more_finite_gives_up_and_names_the_way_out(tmp_path):
    batches = BrokenFrom(4)
    batches.row_ids = lambda step: [10 * step, 10 * step + 1]
    with pytest.raises(DoraError) as caught:
        run(tmp_path, batches=batches, bad_steps=2)
    assert f"{tmp_path}: loss or gradient were not finite for 2 steps in a row" in str(caught.value)
    assert "up to step 5; its batch: [40, 41]; try a lower learning rate" in str(caught.value)
    rows = logged(tmp_path)
    assert rows[:3] == uninterrupted()[1][:3]
    assert [(row["step"], row["loss"], row["skipped"], row["rows"]) for row in rows[3:]] == [
        (4, None, True, [30, 31]),
        (5, None, True, [40, 41]),
    ]
    # It does not get further by being started again.
    with pytest.raises(DoraError, match="2 steps in a row"):
        run(tmp_path, batches=batches, bad_steps=2)


class BrokenAt(RandomBatches):
    def __init__(self, *steps):
        super().__init__()
        self.steps = steps

    def batch(self, step):
        batch = super().batch(step)
        if step in self.steps:
            batch.label_weights[:] = np.inf
        return batch


def test_a_step_that_is_not_finite_is_left_out(tmp_path):
    result = run(tmp_path / "a", batches=BrokenAt(2, 4), bad_steps=2)
    assert [row["step"] for row in logged(tmp_path / "a") if "skipped" in row] == [3, 5]

    class Without(RandomBatches):
        """The batches of the sound steps alone."""

        def batch(self, step):
            return super().batch([0, 1, 3, 5, 6][step])

    expected = run(tmp_path / "b", batches=Without(), steps=5)
    jax.tree.map(np.testing.assert_array_equal, result.params, expected.params)
    names = ("loss", "grad_norm", "learning_rate", "magnitude_drift")
    taken = [row for row in logged(tmp_path / "a") if "skipped" not in row]
    for row, other in zip(taken, logged(tmp_path / "b"), strict=True):
        assert [row[name] for name in names] == [other[name] for name in names]


def test_a_gradient_that_overflows_is_divergence_though_the_loss_is_finite(tmp_path):
    def blow_up(params):
        return params | {"embed": {"embedding": params["embed"]["embedding"] * 1e21}}

    with pytest.raises(DoraError, match="not finite for 3 steps in a row, up to step 3"):
        run(tmp_path, change=blow_up, bad_steps=3)
    assert logged(tmp_path)[0]["loss"] > 0
    assert logged(tmp_path)[0]["grad_norm"] is None


def test_a_run_is_validated_and_stops_early(tmp_path):
    losses = iter([3.0, 2.0, 2.5, 2.0, 9.0])
    seen = []

    def validate(params):
        seen.append(float(params["mix"]["magnitude"][0]))
        return {"validation_loss": next(losses), "validation_accuracy": 0.5}

    options = {"steps": 6, "validate_every": 1, "patience": 2, "checkpoint_every": 5}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, validate=validate, on_row=interrupt_at(3), **options)
    losses = iter([2.5, 2.0, 9.0])  # goes on behind the checkpoint of step 2
    result = run(tmp_path, validate=validate, **options)
    # Neither the measurement of step 3 nor that of step 4 is better than that of step 2.
    assert [row["validation_loss"] for row in logged(tmp_path)] == [3.0, 2.0, 2.5, 2.0]
    assert len(result.history) == 4
    assert len(set(seen)) == 4
    again = run(tmp_path, validate=validate, **options)
    assert len(again.history) == 4


def test_batches_of_several_shapes_are_compiled_once_each(tmp_path):
    class Growing(RandomBatches):
        def batch(self, step):
            self.length = 6 + step % 2
            return super().batch(step)

    result = run(tmp_path, batches=Growing())
    assert [row["tokens"] for row in logged(tmp_path)] == [8 * (6 + n % 2) for n in range(STEPS)]
    assert np.isfinite([point.loss for point in result.history]).all()


def test_speed_and_memory_are_in_the_metrics(tmp_path):
    model, rules, params = word_model()
    watching = Watching(flops=lambda batch: 1e6 * batch.tokens.size * batch.label_targets.size)
    batches = RandomBatches()
    fit(
        model,
        rules,
        params,
        batches,
        optax.adam(SCHEDULE),
        SCHEDULE,
        TrainConfig(),
        steps=3,
        seed=0,
        folder=tmp_path,
        watching=watching,
    )
    for line in (tmp_path / METRICS_FILE).read_text().splitlines():
        row = json.loads(line)
        took = row["step_time_s"]
        assert row["tokens_per_s"] == pytest.approx(8 * 6 / took)
        assert row["rows_per_s"] == pytest.approx(8 / took)
        assert row["flops_per_s"] == pytest.approx(1e6 * 8 * 6 * 8 * 3 / took)
        assert row["mfu"] is None  # of a CPU no peak is known
        assert row["memory_bytes"] > 1e7
        assert 0 <= row["wait_s"] < 10


def test_device_peaks_are_told_by_the_kind_s_beginning():
    assert device_peak("NVIDIA H100 80GB HBM3") == 989e12
    assert device_peak("TPU v5 lite") == 197e12
    assert device_peak("TPU v5") == 459e12
    assert device_peak("cpu") is None
    assert device_peak("NVIDIA L40S") is None


@pytest.mark.parametrize("method", ["dora", "lora"])
def test_frozen_leaves_keep_every_bit_and_the_callers_arrays_live_on(tmp_path, method):
    given = []

    def keep(params):
        # A -0.0, which a careless zero update would turn.
        kernel = params["mix"]["kernel"].at[0, 0].set(-0.0)
        given.append(params | {"mix": params["mix"] | {"kernel": kernel}})
        return given[0]

    before = jax.tree.map(np.array, keep(word_model(method)[2]))
    result = run(tmp_path, method, change=lambda _: given[0])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), b), given[0], before)
    mask = trainable_mask(before, word_model(method)[1])
    trained, frozen = partition(result.params, mask)
    was_trained, was_frozen = partition(before, mask)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: np.asarray(a).tobytes() == b.tobytes(), frozen, was_frozen)
    )
    assert not jax.tree.leaves(jax.tree.map(np.array_equal, trained, was_trained)).count(True)


def test_a_run_is_the_steps_of_the_training_step(tmp_path):
    """The first loss is that of the initial parameters; learning rates are the schedule's."""
    model, _, params = word_model()
    batch = RandomBatches().batch(0)
    loss = (
        labelled_loss(model, params, jax.tree.map(lambda _: None, params), batch)
        / batch.label_weights.sum()
    )
    result, metrics = uninterrupted()
    assert [point.step for point in result.history] == list(range(1, STEPS + 1))
    assert result.history[0].loss == pytest.approx(float(loss), rel=1e-5)
    rates = [point.learning_rate for point in result.history]
    assert rates == pytest.approx([0.1 * (1 - step / STEPS) for step in range(STEPS)])
    assert all(row["tokens"] == 8 * 6 for row in metrics)
    # Through two routes to the same steps: one after another, and split.
    split = run(tmp_path, micro_batches=2)
    np.testing.assert_allclose(
        [p.loss for p in split.history], [p.loss for p in result.history], rtol=1e-4
    )


def test_magnitudes_are_counted_and_their_drift_recorded():
    result, metrics = uninterrupted("dora")
    m0 = word_model("dora")[2]["mix"]["magnitude"]
    m = result.params["mix"]["magnitude"]
    drift = float(np.mean(np.abs(np.asarray(m) / np.asarray(m0) - 1)))
    assert result.history[-1].magnitude_drift == pytest.approx(drift, rel=1e-4)
    assert drift > 0.01
    assert result.magnitude_parameters == 8
    assert result.trainable_parameters == 8 * 2 + 2 * 8 + 8
    assert metrics[-1]["magnitude_drift"] == result.history[-1].magnitude_drift


def test_lora_has_no_magnitudes():
    result, _ = uninterrupted("lora")
    assert {point.magnitude_drift for point in result.history} == {None}
    assert result.magnitude_parameters == 0
    assert result.trainable_parameters == 8 * 2 + 2 * 8


def test_a_finished_run_run_again_does_nothing_more(tmp_path):
    first = run(tmp_path)
    before = (tmp_path / METRICS_FILE).read_bytes()
    seen = []
    batches = RandomBatches()
    again = run(tmp_path, batches=batches, on_row=lambda *_: seen.append(1))
    assert not seen
    assert batches.asked == []
    assert (tmp_path / METRICS_FILE).read_bytes() == before
    assert again.history == first.history
    assert (again.step_time_s, again.train_seconds) == (first.step_time_s, first.train_seconds)
    jax.tree.map(np.testing.assert_array_equal, again.params, first.params)
