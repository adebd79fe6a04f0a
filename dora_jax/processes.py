"""Several processes that run one program together: who they are, and how they agree.

`jax.distributed` connects them: found by itself under SLURM, Open MPI, Kubernetes (with the package
`kubernetes`) and on Cloud TPU, or by address, process number and number of processes in the
environment. Every process runs the same command; the first one alone writes what is not sharded,
and what it reads there is what all go on with.
"""

import glob
import importlib.util
import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from dora_jax.errors import DoraError

T = TypeVar("T")

ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
MODE = "DORA_JAX_DISTRIBUTED"
MODES = ("auto", "on", "off")


def _in_cluster() -> bool:
    """Whether several processes were started by something that JAX can ask about the others."""

    def several(name: str) -> bool:
        value = os.environ.get(name, "")
        return value.isdigit() and int(value) > 1

    # SLURM_NTASKS stands in an allocation's own shell too, where one process runs.
    slurm = several("SLURM_NTASKS") and {"SLURM_PROCID", "SLURM_STEP_NODELIST"} <= set(os.environ)
    kubernetes = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(os.environ)
    # JAX itself asks Google's metadata server whether this TPU is a part of a pod.
    tpu = importlib.util.find_spec("libtpu") is not None and any(
        glob.glob(pattern) for pattern in ("/dev/accel*", "/dev/vfio/[0-9]*")
    )
    return slurm or kubernetes or tpu or several("OMPI_COMM_WORLD_SIZE")


def connect() -> None:
    """Join the other processes of this run, if there are any; before anything asks for devices.

    `$DORA_JAX_DISTRIBUTED`: `auto` (as above), `on` (ask JAX in any case), `off`.

    Raises:
        DoraError: when they cannot be reached, or the environment says only half of where they are.
    """
    mode = os.environ.get(MODE, "auto")
    if mode not in MODES:
        raise DoraError(f"{MODE} must be one of {', '.join(MODES)}; got {mode!r}")
    given = {name: os.environ[name] for name in (ADDRESS, COUNT, NUMBER) if name in os.environ}
    by_address = COUNT in given or NUMBER in given
    if mode == "off" or (mode == "auto" and not by_address and not _in_cluster()):
        return
    if by_address and len(given) < 3:
        missing = ", ".join(name for name in (ADDRESS, COUNT, NUMBER) if name not in given)
        raise DoraError(
            f"{', '.join(given)} is set without {missing}: set all three for each process of a "
            "run, or none of them"
        )
    try:
        if by_address:
            jax.distributed.initialize(given[ADDRESS], int(given[COUNT]), int(given[NUMBER]))
        else:
            jax.distributed.initialize()
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise DoraError(
            f"the processes of this run did not find each other ({error}); set {ADDRESS} "
            f"(host:port of process 0), {COUNT} and {NUMBER} for each of them, or {MODE}=off to "
            "run this one alone"
        ) from error


def is_first() -> bool:
    """Whether this is the process that writes, and speaks."""
    return jax.process_index() == 0


def all_arrive(where: str) -> None:
    """Go on when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def first_decides(decide: Callable[[], T]) -> T:
    """Return in every process what the first one finds; what it raises is raised in all.

    Args:
        decide: called in the first process alone; returns what JSON can hold.

    Raises:
        DoraError: what `decide` raised.
    """
    if jax.process_count() == 1:
        return decide()
    answer: dict[str, Any] = {}
    if is_first():
        try:
            answer = {"value": decide()}
        except DoraError as error:
            answer = {"error": str(error)}
    text = json.dumps(answer).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    buffer = np.frombuffer(text.ljust(size)[:size], np.uint8)
    answer = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes())
    if "error" in answer:
        raise DoraError(answer["error"])
    found: T = answer["value"]
    return found
