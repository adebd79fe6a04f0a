"""The paper's VL-BART studies: their settings, what they tune, where they start."""

from pathlib import Path

import jax
import numpy as np
import pytest

from dora_jax.answer import load_answerer
from dora_jax.checkpoint.bart import read_bart_folder
from dora_jax.checkpoint.pretrained import load_pretrained
from dora_jax.cli import load_experiment
from dora_jax.comparison.arms import make_arms
from dora_jax.errors import DoraError
from dora_jax.generation import Sampling, generate
from dora_jax.models.llama import param_shapes
from dora_jax.models.vlbart import VLBart
from dora_jax.partition import trainable_mask
from dora_jax.spec import AdapterRules, AdapterSpec
from experiments.vlbart.start import main, write_start
from experiments.vlbart.tuned import CONFIGS, tuned
from tests.models.barts import write_folder

FOLDER = Path(__file__).parents[1] / "experiments" / "vlbart"


@pytest.mark.parametrize(
    ("family", "rate", "batch", "epochs", "rows"),
    [("image", 1e-3, 300, 20, 2_201_222), ("video", 3e-4, 40, 7, 340_939)],
)
def test_the_paper_s_settings(family, rate, batch, epochs, rows):
    config = load_experiment(str(FOLDER / f"{family}.py"))
    full, lora, dora = make_arms(config)
    assert [arm.label for arm in (full, lora, dora)] == ["Full fine-tuning", "LoRA", "DoRA"]
    for arm in (lora, dora):
        adapter, optim = arm.config.adapter, arm.config.optim
        assert (adapter.rank, adapter.alpha, adapter.dropout) == (128, 128, 0)
        assert (optim.learning_rate, optim.weight_decay) == (rate, 0)
        assert rate in arm.rates
    assert full.rates != lora.rates == dora.rates
    assert config.train.batch_size == batch
    # Of each epoch four batches are not full.
    assert 0 <= config.train.steps * batch - epochs * rows < epochs * 4 * batch
    optim = config.optim
    assert (optim.optimizer, optim.schedule, optim.warmup_ratio) == ("adamw", "linear", 0.1)
    assert (optim.clip_norm, config.evaluation.beams) == (5, 5)
    assert config.compare.search_steps == 0
    # One of the VALUE benchmark's features stands for a second and a half.
    assert config.data.frame_seconds == {"image": None, "video": 1.5}[family]
    for row in config.published:
        assert len(row.scores) == 4
        assert sum(row.scores.values()) / 4 == pytest.approx(row.average, abs=0.051)


@pytest.mark.parametrize("family", ["image", "video"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_the_config_tunes_what_the_paper_lists(family, method):
    """Of BART-base's shape, leaf by leaf."""
    own = AdapterSpec(method, rank=128, alpha=128.0, train_bias=True)
    bias, full = AdapterSpec("frozen", train_bias=True), AdapterSpec("full")
    listed = AdapterRules(
        [
            (r"visual_embedding/.*", full),
            (r"(?:encoder|decoder)/layers/.*/(?:q|v)_proj", own),
            (r"(?:encoder|decoder)/.*norm.*", full if family == "image" else bias),
            (r"(?:encoder|decoder)/layers/.*", bias),
        ]
    )
    shapes = param_shapes(VLBart(CONFIGS[family], listed))
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(
        np.shape, param_shapes(VLBart(CONFIGS[family], tuned(method, family)))
    )
    assert trainable_mask(shapes, listed) == trainable_mask(shapes, tuned(method, family))


def test_full_fine_tuning_leaves_nothing_frozen():
    config = load_experiment(str(FOLDER / "image.py"))
    full = make_arms(config)[0].config
    rules = full.adapter.rules("full")
    shapes = param_shapes(VLBart(CONFIGS["image"], rules))
    frozen = [
        jax.tree_util.keystr(path)
        for path, trains in jax.tree_util.tree_leaves_with_path(trainable_mask(shapes, rules))
        if not trains
    ]
    assert frozen == ["['final_logits_bias']['buffer']"]  # zeros, never trained


@pytest.mark.parametrize(("family", "size"), [("image", 2048), ("video", 512)])
def test_a_start_is_the_bart_and_more(family, size, tmp_path, capsys):
    write_folder(tmp_path / "bart", "bart")
    main([family, "--bart", str(tmp_path / "bart"), "--out", str(tmp_path / "start")])
    assert f"of size {size}, its visual embedding new" in capsys.readouterr().out
    bart, start = read_bart_folder(tmp_path / "bart"), load_pretrained(tmp_path / "start")
    assert start.config.vocab_size == bart.config.vocab_size + 200
    assert start.config.feature_size == size
    jax.tree.map(np.testing.assert_array_equal, start.params["encoder"], bart.params["encoder"])
    seen = np.ones((CONFIGS[family].image_tokens, size), np.float32)
    (written,) = generate(
        VLBart(start.config),
        start.params,
        ["hello"],
        Sampling(4),
        tokenizer=start.tokenizer,
        images=[[seen]],
    )
    assert isinstance(written.text, str)


def test_what_sees_already_is_no_start(tmp_path):
    write_folder(tmp_path / "bart", "bart")
    write_start("image", tmp_path / "bart", tmp_path / "start")
    with pytest.raises(DoraError, match="start: sees already"):
        write_start("image", tmp_path / "start", tmp_path / "again")


def test_asked_about_a_file_of_an_image_it_says_what_it_reads(tmp_path):
    write_folder(tmp_path / "bart", "bart")
    write_start("image", tmp_path / "bart", tmp_path / "start")
    ready = load_answerer(str(tmp_path / "start"))
    ready.check_images(0)
    with pytest.raises(DoraError, match=r"start reads features of images .* from Python"):
        ready.check_images(1)
    with pytest.raises(DoraError, match="bart reads text alone; name a model that sees"):
        load_answerer(str(tmp_path / "bart")).check_images(1)
