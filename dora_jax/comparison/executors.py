"""Who carries out the parts of a comparison: this process, others on this machine, or a cluster.

An executor gets parts that do not depend on each other, and returns when each has left its outcome
in the comparison's folder: see `parts`. They differ in nothing else.
"""

import multiprocessing
import multiprocessing.connection
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

import jax
from rich.console import Console

from dora_jax.analysis.results import Failure
from dora_jax.comparison.parts import Failed, Part, do_part, is_final, leave_failure, outcome
from dora_jax.comparison.workbench import Workbenches
from dora_jax.errors import DoraError
from dora_jax.training.config import ExecuteConfig
from dora_jax.training.preemption import EXIT_CODE, Preempted, listening
from dora_jax.training.progress import WorkProgress

LOG_FILE = "log.txt"


class Executor(Protocol):
    """Carries out parts."""

    def run(self, parts: Sequence[Part]) -> None:
        """Return when each part has left its outcome.

        Raises:
            DoraError: when parts cannot be carried out at all.
            KeyboardInterrupt, Preempted: when told to stop; what has begun goes on next time.
        """


class Here:
    """One part after another, in this process."""

    def __init__(self, folder: Path, benches: Workbenches, progress: WorkProgress):
        self._folder, self._benches, self._progress = folder, benches, progress

    def run(self, parts: Sequence[Part]) -> None:
        for part in parts:
            do_part(self._folder, part, self._benches.of(part.arm), self._progress)


def work(folder: Path, part: Part) -> None:
    """Carry out one part in a process of its own: what every other executor calls, somewhere."""
    with jax.set_mesh(part.arm.config.mesh.build()), listening():
        benches = Workbenches((part.arm,))
        bench = benches.of(part.arm)
        with WorkProgress(part.work(bench), Console(file=sys.stderr)) as progress:
            do_part(folder, part, bench, progress)


def to_do(folder: Path, parts: Sequence[Part]) -> list[Part]:
    """Return the parts that are to be carried out."""
    return [part for part in parts if not is_final(outcome(folder, part))]


def settle(folder: Path, part: Part, ended: str) -> str:
    """See that a part whose process has ended left an outcome; else `ended` is its failure.

    Returns:
        What became of it, for people.
    """
    if outcome(folder, part) is None:
        leave_failure(folder / part.path, Failed(False, ended))
    found = outcome(folder, part)
    became = f"failed: {found.message}" if isinstance(found, Failure) else "done"
    return f"{part.label}: {became}"


class Processes:
    """Parts side by side on this machine, each in a process with a share of its devices.

    Args:
        folder: the comparison's.
        config: how many, and which GPUs are theirs; without any they share out the CPU cores.
        say: tells of parts that begin and end.
    """

    def __init__(self, folder: Path, config: ExecuteConfig, say: Callable[[str], None]):
        self._folder, self._say = folder, say
        self._places = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in config.gpus]
        self._cores: list[list[int]] = [[] for _ in config.gpus]
        if not config.gpus:
            cores = sorted(os.sched_getaffinity(0))
            workers = min(config.workers, len(cores))
            self._cores = [cores[n::workers] for n in range(workers)]
            self._places = [{} for _ in range(workers)]

    def run(self, parts: Sequence[Part]) -> None:
        waiting = deque(to_do(self._folder, parts))
        free = list(range(len(self._places)))
        running: dict[BaseProcess, tuple[Part, int]] = {}
        try:
            while waiting or running:
                while waiting and free:
                    part, place = waiting.popleft(), free.pop(0)
                    running[self._start(part, place)] = (part, place)
                multiprocessing.connection.wait([process.sentinel for process in running])
                for process in [p for p in running if not p.is_alive()]:
                    part, place = running.pop(process)
                    free.append(place)
                    self._ended(process, part)
        finally:
            # Told to stop: they leave a checkpoint and end.
            for process in running:
                process.terminate()
            for process in running:
                process.join()

    def _start(self, part: Part, place: int) -> BaseProcess:
        context = multiprocessing.get_context("spawn")
        arguments = (self._folder, part, self._places[place], self._cores[place])
        process = context.Process(target=_in_process, args=arguments, name=part.path)
        process.start()
        self._say(f"{part.label}: begun, see {self._folder / part.path / LOG_FILE}")
        return process

    def _ended(self, process: BaseProcess, part: Part) -> None:
        process.join()
        code = process.exitcode
        if code == EXIT_CODE:
            raise Preempted(f"{part.label} was told to stop")
        log = self._folder / part.path / LOG_FILE
        by_signal = code is not None and code < 0
        why = f"signal {-code} (9: out of memory?)" if by_signal else f"exit code {code}"  # type: ignore[operator]
        self._say(settle(self._folder, part, f"its process ended by {why}: see {log}"))


def _in_process(folder: Path, part: Part, environment: dict[str, str], cores: list[int]) -> None:
    os.environ.update(environment)  # before JAX looks for devices
    if cores:
        os.sched_setaffinity(0, cores)
    log = folder / part.path / LOG_FILE
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", buffering=1, encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            work(folder, part)
        except Preempted:
            raise SystemExit(EXIT_CODE) from None
        except DoraError as error:
            leave_failure(folder / part.path, Failed(False, str(error)))


def make_executor(
    config: ExecuteConfig,
    folder: Path,
    benches: Workbenches,
    progress: WorkProgress,
) -> Executor:
    """Return the executor that a config asks for."""
    if config.executor == "here":
        return Here(folder, benches, progress)
    folder = folder.absolute()  # a worker may begin elsewhere
    if config.executor == "processes":
        return Processes(folder, config, progress.say)
    if config.executor == "ray":
        from dora_jax.comparison.on_ray import OnRay

        return OnRay(folder, config, progress.say)
    from dora_jax.comparison.on_slurm import OnSlurm

    return OnSlurm(folder, config, progress.say)
