"""A checkpoint's size, how long a step waits for it, and how long it takes to come back.

python -m benchmarks.checkpoint; prints JSON. `stall_s` is the time until `save` returns and the
next step may begin; `written_s` until all is on the disk, which a synchronous save would wait for.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax

from benchmarks.arguments import add_setting, setting_of
from benchmarks.training_step import device, random_base, step_inputs
from dora_jax.checkpoint.store import CheckpointStore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_setting(parser)
    parser.add_argument("--saves", type=int, default=5)
    args = parser.parse_args()
    setting = setting_of(args, method="dora")
    state = jax.block_until_ready(step_inputs(setting, random_base(setting)).state)
    stalls, written = [], []
    with tempfile.TemporaryDirectory() as folder:
        with CheckpointStore(Path(folder)) as store:
            # The first save compiles the checksums.
            for step in range(args.saves + 1):
                started = time.perf_counter()
                store.save(step, state)
                stalls.append(time.perf_counter() - started)
                store.wait()
                written.append(time.perf_counter() - started)
        newest = Path(folder) / str(args.saves)
        on_disk = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
        with CheckpointStore(Path(folder)) as store:
            started = time.perf_counter()
            jax.block_until_ready(store.restore(state))
            restored = time.perf_counter() - started
    result = device() | {
        "model": setting.model,
        "rank": setting.rank,
        "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
        "bytes_on_disk": on_disk,
        "stall_s": statistics.median(stalls[1:]),
        "written_s": statistics.median(written[1:]),
        "restore_s": restored,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
