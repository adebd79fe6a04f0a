"""Two processes of four devices each give what one process of eight gives."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dora_jax.checkpoint.adapter import WEIGHTS, find_adapter
from dora_jax.checkpoint.state import flatten, load_tree
from dora_jax.training.metrics import MEASURED
from tests.checkpoint.tiny_adapter import write_base

pytestmark = pytest.mark.slow

STEPS = 6
EXPERIMENT = """
from dora_jax.training.config import *
config = ExperimentConfig(
    execute=ExecuteConfig(reuse=False),
    name="mine",
    model=ModelConfig(name={base!r}),
    data=DataConfig(
        train={rows!r}, eval={tests!r}, eval_rows=6, eval_batch_size=8, max_length=100,
        packing={packing!r},
    ),
    adapter=AdapterConfig(rank=2, alpha=4.0, dropout=0.1),
    train=TrainConfig(steps={steps}, batch_size=16, micro_batches=2, checkpoint_every=2),
)
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    answers = ["hello", "wor", "low"]
    for name, numbers in (("rows", range(40)), ("tests", range(100, 106))):
        lines = [
            json.dumps({"instruction": f"{n} gives?", "output": answers[n % 3], "options": answers})
            for n in numbers
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    base = write_base(folder / "base")
    path = folder / "mine.py"
    files = {name: str(folder / f"{name}.jsonl") for name in ("rows", "tests")}
    path.write_text(EXPERIMENT.format(base=str(base), **files, packing="pack", steps=STEPS))
    return path


def start(experiment, out, mesh, processes=1, log=None):
    """Start a run's processes and return them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for number in range(processes):
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // processes}",
            "DORA_JAX_COMPILATION_CACHE": "off",
        }
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(number),
            }
        command = [sys.executable, "-m", "dora_jax.cli", "train", str(experiment)]
        command += ["--out", str(out)]
        command += [part for name, size in mesh.items() for part in (f"--mesh.{name}", str(size))]
        output = open(out.with_suffix(f".{number}.log"), "w")  # noqa: SIM115 - lives with it
        started.append(
            subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        )
    return started


def finish(processes, out):
    for number, process in enumerate(processes):
        process.wait(timeout=300)
        assert process.returncode == 0, out.with_suffix(f".{number}.log").read_text()[-3000:]


def learned(out: Path):
    """Return the metrics, without what no two runs share, and the adapter's arrays."""
    part = out / "seed-0" / "dora"
    rows = [json.loads(line) for line in (part / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if k not in MEASURED} for row in rows]
    return kept, flatten(load_tree(find_adapter(part) / WEIGHTS))


@pytest.fixture(scope="module")
def alone(experiment, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    finish(start(experiment, out, {}), out)
    return learned(out)


def assert_same(found, expected):
    for row, other in zip(found[0], expected[0], strict=True):
        assert row.keys() == other.keys()
        for name, value in other.items():
            assert row[name] == pytest.approx(value, rel=1e-4), name
    assert found[1].keys() == expected[1].keys()
    for name, array in expected[1].items():
        np.testing.assert_allclose(found[1][name], array, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "mesh",
    [{}, {"data": 1, "fsdp": 2, "tensor": 4}],
    ids=["data", "fsdp and tensor"],
)
def test_two_processes_give_what_one_gives(experiment, tmp_path, alone, mesh):
    out = tmp_path / "run"
    finish(start(experiment, out, mesh, 2), out)
    assert_same(learned(out), alone)
    # The first process alone speaks.
    assert "report:" in out.with_suffix(".0.log").read_text()
    assert "report:" not in out.with_suffix(".1.log").read_text()


def test_a_run_goes_on_with_another_number_of_processes_and_another_mesh(
    experiment, tmp_path, alone
):
    out = tmp_path / "run"
    started = start(experiment, out, {"data": 2, "fsdp": 4}, 2)
    checkpoint = out / "seed-0" / "dora" / "checkpoints" / "2"
    deadline = time.monotonic() + 240
    while not checkpoint.exists():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in started), out.with_suffix(
            ".0.log"
        ).read_text()[-3000:]
        time.sleep(0.02)
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.wait()
    finish(start(experiment, out, {"data": 4, "tensor": 2}), out)
    assert_same(learned(out), alone)
