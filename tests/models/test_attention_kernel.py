import jax
import jax.numpy as jnp
import pytest

from dora_jax.comparison import compare as comparison
from dora_jax.errors import DoraError
from dora_jax.models import llama
from dora_jax.training.config import ExperimentConfig, ModelConfig
from tests.tiny import CONFIG


@pytest.fixture
def kernels(monkeypatch):
    """Record what attention is asked for."""
    asked, attend = [], jax.nn.dot_product_attention

    def noted(*args, implementation, **options):
        asked.append(implementation)
        return attend(*args, **options)

    monkeypatch.setattr(llama.jax.nn, "dot_product_attention", noted)
    return asked


def test_plain_causal_attention_takes_the_chosen_kernel_and_segments_do_not(kernels):
    model = llama.Llama(CONFIG, attention="cudnn")
    tokens = jnp.zeros((1, 4), jnp.int32)
    params = llama.Llama(CONFIG).init(jax.random.key(0), tokens)
    assert kernels == []
    model.apply(params, tokens)
    assert set(kernels) == {"cudnn"}
    kernels.clear()
    model.apply(params, tokens, None, jnp.ones((1, 4), int))
    assert kernels == []


def test_cudnn_is_refused_where_it_cannot_run():
    with pytest.raises(DoraError, match=r"'cudnn' needs model\.dtype 'bfloat16'"):
        ModelConfig(attention="cudnn")
    config = ExperimentConfig(model=ModelConfig(attention="cudnn", dtype="bfloat16"))
    with pytest.raises(DoraError, match=r"needs an NVIDIA GPU, and JAX finds 'cpu'"):
        comparison.compare(config, "the command")
    with pytest.raises(ValueError, match=r"Llama\.attention must be one of .*did you mean 'cudnn'"):
        llama.Llama(CONFIG, attention="cuddn").init(jax.random.key(0), jnp.zeros((1, 2), int))
