"""Parts on a Ray cluster: the one around, one by address, or one started on this machine.

The comparison's folder, and the data and models that the config names, must be at the same path on
every node.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dora_jax.comparison.executors import settle, to_do, work
from dora_jax.comparison.parts import Part
from dora_jax.errors import DoraError
from dora_jax.training.config import ExecuteConfig


class OnRay:
    """Carries parts out as Ray tasks.

    Args:
        folder: the comparison's.
        config: address, CPU cores and GPUs of a part.
        say: tells of parts that end.

    Raises:
        DoraError: when Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, folder: Path, config: ExecuteConfig, say: Callable[[str], None]):
        try:
            import ray
        except ImportError as error:
            raise DoraError(
                "execute.executor ray needs Ray: pip install 'dora-jax[ray]'"
            ) from error
        self._ray: Any = ray
        self._folder, self._config, self._say = folder, config, say
        if ray.is_initialized():
            return
        try:
            # Without an address: $RAY_ADDRESS, or a cluster of this machine's own.
            ray.init(address=config.address or None, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise DoraError(
                f"the Ray cluster {config.address or 'on this machine'} cannot be reached "
                f"({error}); check --execute.address"
            ) from error

    def run(self, parts: Sequence[Part]) -> None:
        ray, config = self._ray, self._config
        task = ray.remote(
            num_cpus=config.cpus_per_run, num_gpus=config.gpus_per_run, max_retries=0
        )(work)
        running = {task.remote(self._folder, part): part for part in to_do(self._folder, parts)}
        try:
            while running:
                (done,), _ = ray.wait(list(running), num_returns=1)
                part = running.pop(done)
                ended = "its task left nothing"
                try:
                    ray.get(done)
                except ray.exceptions.RayError as error:
                    ended = f"its Ray task failed: {str(error).strip().splitlines()[-1]}"
                self._say(settle(self._folder, part, ended))
        finally:
            for left in running:
                ray.cancel(left)
