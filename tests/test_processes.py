import jax
import pytest

from dora_jax import processes
from dora_jax.errors import DoraError
from dora_jax.processes import connect, first_decides

SLURM = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "node[1-2]"}
ADDRESS = {
    "JAX_COORDINATOR_ADDRESS": "host0:1234",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}


@pytest.fixture
def connected(monkeypatch):
    """Return a function of an environment that says how `connect` would join the others."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given: calls.append(given))

    def connect_in(**environment):
        calls.clear()
        monkeypatch.setattr(processes.os, "environ", environment)
        connect()
        return calls

    return connect_in


@pytest.mark.parametrize(
    "environment",
    [
        SLURM,
        {"OMPI_COMM_WORLD_SIZE": "4"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
        {"DORA_JAX_DISTRIBUTED": "on"},
    ],
    ids=["slurm", "open mpi", "kubernetes", "asked for"],
)
def test_a_cluster_is_asked_for_the_others(connected, environment):
    assert connected(**environment) == [()]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        # The shell of an allocation, where one process runs; and a step of one task.
        {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"},
        SLURM | {"SLURM_NTASKS": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        SLURM | {"DORA_JAX_DISTRIBUTED": "off"},
        ADDRESS | {"DORA_JAX_DISTRIBUTED": "off"},
    ],
)
def test_a_process_alone_asks_nobody(connected, environment):
    assert connected(**environment) == []


def test_processes_may_be_named_by_address(connected):
    assert connected(**ADDRESS) == [("host0:1234", 2, 1)]
    assert connected(**(ADDRESS | SLURM)) == [("host0:1234", 2, 1)]


def test_half_an_address_is_refused(connected):
    del (half := dict(ADDRESS))["JAX_PROCESS_ID"]
    with pytest.raises(DoraError, match="is set without JAX_PROCESS_ID: set all three"):
        connected(**half)
    with pytest.raises(DoraError, match="DORA_JAX_DISTRIBUTED must be one of auto, on, off"):
        connected(DORA_JAX_DISTRIBUTED="yes")


def test_what_goes_wrong_says_what_to_set(connected, monkeypatch):
    def fail(*given):
        raise RuntimeError("deadline exceeded")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(DoraError, match=r"did not find each other \(deadline exceeded\); set JAX"):
        connected(**ADDRESS)
    with pytest.raises(DoraError, match="did not find each other"):
        connected(**(ADDRESS | {"JAX_NUM_PROCESSES": "two"}))


def test_a_process_alone_decides_by_itself():
    assert first_decides(lambda: {"a": (1, 2)}) == {"a": (1, 2)}
    with pytest.raises(DoraError, match="no"):
        first_decides(lambda: (_ for _ in ()).throw(DoraError("no")))
