"""Processes of their own: each measures what is its alone."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def json_lines_of(
    module: str,
    arguments: Sequence[str],
    *,
    timeout_s: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Run a module in a fresh process and yield each JSON line that it prints, as it comes.

    Args:
        module: such as `benchmarks.gpu`.
        arguments: of its command line.
        timeout_s: after which it is killed; None waits.
        environment: variables to set where they are not set.

    Raises:
        RuntimeError: when it fails, with the end of what it wrote to stderr.
    """
    command = [sys.executable, "-m", module, *arguments]
    variables = {**(environment or {}), **os.environ}
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdout is not None
        timer = threading.Timer(timeout_s or threading.TIMEOUT_MAX, process.kill)
        timer.daemon = True
        timer.start()
        try:
            for line in process.stdout:
                yield json.loads(line)
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()
        if code:
            log.seek(0)
            raise RuntimeError(f"{module} ended with {code}: {log.read()[-2000:].strip()}")


_STATUS = Path("/proc/self/status")


def _memory(field: str) -> int:
    """Return a field of Linux's process status, in bytes."""
    (line,) = (s for s in _STATUS.read_text().splitlines() if s.startswith(field))
    return int(line.split()[1]) * 1024


def peak_rss_bytes() -> int:
    """Return this program's highest resident memory so far.

    On Linux not `ru_maxrss`, which in a child starts from its parent's.
    """
    if _STATUS.exists():
        return _memory("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure_peak_from_here() -> int | None:
    """Forget the highest resident memory so far, and return the present one.

    What `peak_rss_bytes` returns is then the peak since. None where that cannot be done: it takes
    Linux, and a system that lets a process forget its own peak.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _memory("VmRSS")
