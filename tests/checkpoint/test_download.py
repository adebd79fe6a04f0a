import numpy as np
import pytest

from dora_jax.checkpoint.download import DownloadFailed, resume_download
from dora_jax.errors import DoraError
from tests.checkpoint.web import Site, serve

CONTENT = np.random.default_rng(0).bytes(1_000_003)
SIZE = len(CONTENT)


@pytest.fixture
def site():
    with serve(Site(files={"/file": CONTENT})) as site:
        yield site


def fetch(site, part, size=SIZE, steps=None):
    advance = (lambda n: None) if steps is None else steps.append
    resume_download(f"{site.url}/file", part, size, advance, pause_s=0)


def starts(site):
    return [start for _, start in site.requests]


def test_whole(site, tmp_path):
    steps = []
    fetch(site, tmp_path / "part", steps=steps)
    assert (tmp_path / "part").read_bytes() == CONTENT
    assert sum(steps) == SIZE
    assert len(steps) > 3
    assert starts(site) == [0]


def test_a_broken_connection_is_taken_up_where_it_broke(site, tmp_path):
    # However often it breaks, as long as something comes in between.
    site.cuts = [400_000, 0, 0, 0, 100_000, 0, 0, 0, 100_000]
    steps = []
    fetch(site, tmp_path / "part", steps=steps)
    assert (tmp_path / "part").read_bytes() == CONTENT
    assert starts(site) == [0, *[400_000] * 4, *[500_000] * 4, 600_000]
    assert sum(steps) == SIZE


def test_an_interrupt_leaves_what_came_for_the_next_call(site, tmp_path):
    came = []

    def interrupt(count):
        came.append(count)
        if len(came) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resume_download(f"{site.url}/file", tmp_path / "part", SIZE, interrupt)
    kept = (tmp_path / "part").stat().st_size
    assert kept == sum(came) > 0
    steps = []
    fetch(site, tmp_path / "part", steps=steps)
    assert (tmp_path / "part").read_bytes() == CONTENT
    assert starts(site) == [0, kept]
    assert sum(steps) == SIZE - kept


def test_a_server_without_ranges_starts_again(site, tmp_path, caplog):
    site.knows_ranges = False
    (tmp_path / "part").write_bytes(b"x" * 1000)
    steps = []
    fetch(site, tmp_path / "part", steps=steps)
    assert (tmp_path / "part").read_bytes() == CONTENT
    assert steps[0] == -1000
    assert "cannot continue" in caplog.text


def test_nothing_is_asked_for_what_is_there(site, tmp_path):
    (tmp_path / "part").write_bytes(CONTENT)
    fetch(site, tmp_path / "part")
    assert site.requests == []


def test_a_part_that_is_too_long_is_begun_again(site, tmp_path):
    (tmp_path / "part").write_bytes(CONTENT + b"more")
    fetch(site, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == CONTENT
    assert starts(site) == [0]


def test_no_more_than_expected_is_read(site, tmp_path):
    fetch(site, tmp_path / "part", size=1000)
    assert (tmp_path / "part").read_bytes() == CONTENT[:1000]


def test_a_refusal_is_final(site, tmp_path):
    site.status = 403
    (tmp_path / "part").write_bytes(b"kept")
    with pytest.raises(DownloadFailed, match="HTTP 403"):
        fetch(site, tmp_path / "part")
    assert len(site.requests) == 1
    assert (tmp_path / "part").read_bytes() == b"kept"


@pytest.mark.parametrize("status", [None, 503])
def test_it_gives_up_when_nothing_comes_any_more(site, tmp_path, status):
    (tmp_path / "part").write_bytes(CONTENT[:1000])
    site.status = status
    site.cuts = [0] * 10
    with pytest.raises(DownloadFailed, match="HTTP 503" if status else "closed early"):
        fetch(site, tmp_path / "part")
    assert len(site.requests) == 4
    assert (tmp_path / "part").read_bytes() == CONTENT[:1000]


def test_no_server(tmp_path):
    with serve(Site()) as site:
        pass
    with pytest.raises(DownloadFailed, match="refused"):
        fetch(site, tmp_path / "part")


def test_a_full_disk(site, tmp_path):
    (tmp_path / "part").symlink_to("/dev/full")
    with pytest.raises(DoraError, match=r"the disk is full; .* the download continues"):
        fetch(site, tmp_path / "part")
    assert len(site.requests) == 1
