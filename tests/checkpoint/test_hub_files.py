"""Fetching from a hub on this machine, by the command and the hub's own library."""

import hashlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from dora_jax.checkpoint import hub_files
from dora_jax.checkpoint.hf import read_hf_folder, write_hf_folder
from dora_jax.checkpoint.hub_files import LargeFile, fetch_large_files, large_files
from dora_jax.checkpoint.pretrained import load_pretrained
from dora_jax.errors import DoraError
from dora_jax.models.config import LlamaConfig
from tests.checkpoint.tiny_model import CONFIG, hf_weights, our_params, tokenizer
from tests.checkpoint.web import Site, serve

REPO, COMMIT = "owner/Tiny", "0123456789abcdef0123456789abcdef01234567"
# Its weights are over the size from which a file is fetched here.
LARGE = LlamaConfig(**{**vars(CONFIG), "intermediate_size": 8192})
WEIGHTS = f"/{REPO}/resolve/{COMMIT}/model.safetensors"


def hub_of(folder):
    """Return a site that answers as the hub does for one repository."""
    site = Site()
    siblings = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        size = {"rfilename": path.name, "size": len(content)}
        if path.suffix == ".safetensors":
            size["lfs"] = {"size": len(content), "sha256": digest, "pointerSize": 100}
        siblings.append(size)
        for revision in (COMMIT, "main"):
            address = f"/{REPO}/resolve/{revision}/{path.name}"
            site.files[address] = content
            site.headers[address] = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}
    info = {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings}
    for address in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/main"):
        site.files[address] = json.dumps(info).encode()
    tree = [
        {"type": "file", "path": s["rfilename"], "size": s["size"], "oid": "0" * 40}
        for s in siblings
    ]
    site.files[f"/api/models/{REPO}/tree/{COMMIT}"] = json.dumps(tree).encode()
    return site


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "tiny"
    params = our_params(hf_weights(LARGE), LARGE)
    write_hf_folder(path, LARGE, params, tokenizer(), generation={"eos_token_id": [2, 7]})
    assert (path / "model.safetensors").stat().st_size > hub_files._LARGE_BYTES
    return path


def models(site, home, *argv):
    """Run `dora-jax models` with nothing but this hub."""
    variables = {"HF_ENDPOINT": site.url, "HF_HOME": str(home), "DORA_JAX_SOURCES": "hub"}
    return subprocess.run(
        [sys.executable, "-m", "dora_jax.cli", "models", *argv],
        env={**os.environ, **variables, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_pull_that_was_interrupted_continues(folder, tmp_path):
    with serve(hub_of(folder)) as site:
        size = len(site.files[WEIGHTS])
        content = site.files.pop(WEIGHTS)
        first = models(site, tmp_path, "pull", REPO)
        assert first.returncode == 1
        assert (
            f"{REPO} is no folder or .gguf file here, is not cached and could not" in first.stderr
        )
        # As an interrupted process leaves it.
        blobs = tmp_path / "hub" / "models--owner--Tiny" / "blobs"
        digest = hashlib.sha256(content).hexdigest()
        (blobs / f"{digest}.part").write_bytes(content[: size // 3])
        site.files[WEIGHTS] = content
        site.requests.clear()
        second = models(site, tmp_path, "pull", REPO)
        assert second.returncode == 0, second.stderr
        # The rest of the weights was read, once, by us and not again by the library.
        asked = [request for request in site.requests if request[0].endswith(".safetensors")]
        assert asked == [(WEIGHTS, size // 3)]
        place = blobs.parent / "snapshots" / COMMIT
        assert second.stdout.strip().endswith(f"MB: {place}")
        assert "downloading model.safetensors" in second.stderr
        site.requests.clear()
        third = models(site, tmp_path, "pull", REPO)
        assert (third.returncode, site.requests) == (0, [])
        assert f"{REPO}  {REPO} at commit" in models(site, tmp_path).stdout
    expected = read_hf_folder(folder)
    found = load_pretrained(place)
    assert found.config == expected[0]
    assert found.stop_ids == (2, 7)
    np.testing.assert_array_equal(found.params["norm"]["scale"], expected[1]["norm"]["scale"])
    assert sorted(path.name for path in blobs.iterdir() if path.suffix) == []


def test_a_wrong_file_is_deleted_and_named(folder, tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    content = b"x" * 1000
    file = LargeFile("model.safetensors", len(content), hashlib.sha256(b"y").hexdigest())
    with serve(Site(files={"/m": content})) as site:
        meta = SimpleNamespace(location=f"{site.url}/m")
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: meta)
        with pytest.raises(DoraError, match=r"model\.safetensors: wrong checksum.*run the same"):
            fetch_large_files(REPO, COMMIT, [file])
    assert [path.name for path in (tmp_path / "models--owner--Tiny" / "blobs").iterdir()] == []


def test_only_large_files_that_git_does_not_keep_are_ours():
    def sibling(name, size, lfs=True):
        kept = SimpleNamespace(size=size, sha256="0" * 64) if lfs else None
        return SimpleNamespace(rfilename=name, size=size, lfs=kept)

    found = large_files([sibling("a", 10**9), sibling("b", 10), sibling("c", 10**9, lfs=False)])
    assert [file.name for file in found] == ["a"]
