import contextlib
import os

import jax
import pytest
from hypothesis import settings

# Eight host devices, for the tests of sharding and pmap: settable only before the first use of JAX.
# (Not by XLA_FLAGS: the processes that tests start would inherit it.)
jax.config.update("jax_num_cpu_devices", 8)

# The same few examples on every run and machine, whatever its speed.
settings.register_profile("stable", derandomize=True, deadline=None, max_examples=12, database=None)
settings.load_profile("stable")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Let LLVM compile in haste, a third of all time: most tests run a tiny program once.

    XLA's own passes, which tests of programs look at, are the same. The real model's programs run
    long, so they are compiled as for a user. Processes that a test starts compile as it does: their
    numbers are compared bit for bit.
    """
    in_haste = item.get_closest_marker("model") is None
    jax.config.update("jax_disable_most_optimizations", in_haste)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(in_haste))


@pytest.fixture(scope="module", autouse=True)
def _programs_are_dropped():
    """Free a file's compiled programs at its end: a process comes to hold gigabytes of them."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Run the test with float64 on."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def precision():
    """A context for arrays of a dtype: float64 needs its switch."""
    return lambda dtype: jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()
