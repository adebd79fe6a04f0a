"""Parts as SLURM jobs, one array for those that do not wait for each other, by submitit.

The comparison's folder, and the data and models that the config names, must be on a file system
that the nodes share.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dora_jax.comparison.executors import settle, to_do, work
from dora_jax.comparison.parts import Part
from dora_jax.errors import DoraError
from dora_jax.training.config import ExecuteConfig

CLUSTER = "slurm"
_POLL_S = 5.0


class OnSlurm:
    """Carries parts out as jobs; scripts and logs are in the folder's `slurm`.

    Args:
        folder: the comparison's.
        config: partition, time limit, cores and GPUs of a job, and how many run at once.
        say: tells of jobs that end.

    Raises:
        DoraError: when submitit is not installed, or there is no SLURM.
    """

    def __init__(self, folder: Path, config: ExecuteConfig, say: Callable[[str], None]):
        try:
            import submitit
        except ImportError as error:
            raise DoraError(
                "execute.executor slurm needs submitit: pip install 'dora-jax[slurm]'"
            ) from error
        self._folder, self._say = folder, say
        try:
            self._jobs: Any = submitit.AutoExecutor(folder=folder / "slurm", cluster=CLUSTER)
        except RuntimeError as error:
            raise DoraError(
                f"execute.executor slurm: there is no SLURM here ({error}); run this where srun "
                "is, or give --execute.executor processes"
            ) from error
        self._jobs.update_parameters(
            name="dora-jax",
            timeout_min=config.minutes,
            cpus_per_task=config.cpus_per_run,
            gpus_per_node=config.gpus_per_run,
            slurm_array_parallelism=config.workers,
            **({"slurm_partition": config.partition} if config.partition else {}),
        )

    def run(self, parts: Sequence[Part]) -> None:
        waiting = to_do(self._folder, parts)
        if not waiting:
            return
        with self._jobs.batch():
            jobs = [self._jobs.submit(work, self._folder, part) for part in waiting]
        running = dict(zip(jobs, waiting, strict=True))
        try:
            while running:
                for job in [job for job in running if job.done()]:
                    part = running.pop(job)
                    ended = f"job {job.job_id} failed: see {job.paths.stderr}"
                    self._say(settle(self._folder, part, ended))
                if running:
                    time.sleep(_POLL_S)
        finally:
            for job in running:
                job.cancel()
