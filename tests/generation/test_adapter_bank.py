import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax import AdapterRules, AdapterSpec, DoraError, Sampling, generate, merge_params
from dora_jax.generation import AdapterBank
from dora_jax.generation.row_adapters import row_adapters
from dora_jax.models.llama import Llama
from dora_jax.partition import partition, trainable_mask
from tests.tiny import CONFIG, adapted_params, base_params

TOKENS = np.random.default_rng(0).integers(3, CONFIG.vocab_size, (7, 12))
PLAIN = Llama(CONFIG)
LORA = AdapterSpec("lora", rank=2, alpha=3)
DORA = AdapterSpec("dora", rank=4, alpha=7, scaling="rslora", dropout=0.3)
MAGNITUDE = AdapterSpec("magnitude")
RULES = {
    "lora": AdapterRules.preset("all-linear", LORA),
    "dora": AdapterRules.preset("attention", DORA),
    "magnitude": AdapterRules([("(q|down)_proj", MAGNITUDE)]),
    "granular": AdapterRules.preset("qkv-dora", AdapterSpec("dora", rank=3, detach_norm=False)),
    "inputs": AdapterRules([("(up|v)_proj", AdapterSpec("dora", rank=1, norm_axis="in"))]),
}


def trained(name):
    """Return an adapter that is far from its start: model, parameters."""
    model, params = adapted_params(RULES[name])

    def move(path, leaf):
        leaf_name = path[-1].key
        rng = np.random.default_rng(len(name) + len(str(path)))
        noise = jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype)
        if leaf_name in ("lora_a", "lora_b"):
            return leaf + 0.3 * noise
        return leaf * (1 + 0.3 * noise) if leaf_name == "magnitude" else leaf

    return model, jax.tree_util.tree_map_with_path(move, params)


@pytest.fixture(scope="module")
def adapters():
    return {name: trained(name) for name in RULES}


@pytest.fixture(scope="module")
def bank(adapters):
    whole = [(RULES[name], params) for name, (_, params) in adapters.items()]
    return AdapterBank.build(base_params(), [*whole, None])


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, variables):
    with row_adapters():
        return model.apply(variables, TOKENS)


def test_each_row_has_the_logits_of_its_own_adapter(adapters, bank):
    adapter_of = [3, 0, 5, 1, 4, 2, 0]
    rows = bank.rows(np.array(adapter_of))
    found = np.asarray(logits_of(PLAIN, {"params": base_params(), "norms": rows}))
    base = np.asarray(logits_of(PLAIN, {"params": base_params()}))
    for row, number in enumerate(adapter_of):
        if number == 5:
            np.testing.assert_allclose(found[row], base[row], rtol=1e-5, atol=1e-5)
            continue
        name = list(RULES)[number]
        model, params = adapters[name]
        alone = logits_of(model, {"params": params})[row]
        merged = logits_of(PLAIN, {"params": merge_params(params, RULES[name])})[row]
        np.testing.assert_allclose(found[row], alone, rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(found[row], merged, rtol=1e-4, atol=1e-4)
        assert np.abs(found[row] - base[row]).max() > 0.05


@pytest.mark.parametrize(
    "asked",
    [Sampling(8), Sampling(8, num_beams=3), Sampling(8, temperature=1.0, num_samples=2)],
    ids=["greedy", "beams", "samples"],
)
def test_each_prompt_is_continued_by_its_own_adapter(adapters, bank, asked):
    prompts = [TOKENS[n, : n + 3].tolist() for n in range(6)]
    adapter_of = [1, 2, 5, 0, 3, 1]
    found = generate(
        PLAIN, base_params(), prompts, asked, stop_ids=[], adapters=bank, adapter_of=adapter_of
    )
    texts = [c.token_ids for c in found]
    for number in set(adapter_of):
        name = [*RULES, None][number]
        params = base_params() if name is None else merge_params(adapters[name][1], RULES[name])
        alone = generate(PLAIN, params, prompts, asked, stop_ids=[])
        for completion, own in zip(found, alone, strict=True):
            if adapter_of[completion.prompt] == number:
                assert completion.token_ids == own.token_ids
    base = generate(PLAIN, base_params(), prompts, asked, stop_ids=[])
    assert sum(a != b.token_ids for a, b in zip(texts, base, strict=True)) > len(texts) // 2


def test_the_trained_leaves_alone_make_the_same_bank(adapters, bank):
    def leaves_of(params, rules):
        return partition(params, trainable_mask(params, rules))[0]

    some = [(RULES[n], leaves_of(params, RULES[n])) for n, (_, params) in adapters.items()]
    again = AdapterBank.build(base_params(), [*some, None])
    assert bank.size == again.size == 6
    jax.tree.map(np.testing.assert_array_equal, bank, again)


def test_a_row_without_an_adapter_has_scales_of_one_and_factors_of_zero(bank):
    own = [leaf for path, leaf in bank.leaves.items() if "row_scale" in path[-1]]
    assert own
    assert all((leaf[:, 5] == 1).all() for leaf in own)
    low_rank = [leaf for path, leaf in bank.leaves.items() if "row_lora" in path[-1]]
    assert low_rank
    assert all((leaf[:, 5] == 0).all() for leaf in low_rank)


def test_another_choice_of_adapters_compiles_nothing_anew(bank):
    def ask(adapter_of):
        generate(
            PLAIN,
            base_params(),
            [[1, 2], [3]],
            Sampling(4),
            stop_ids=[],
            adapters=bank,
            adapter_of=adapter_of,
        )

    ask([0, 1])
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **about: compiled.append(about) if "backend_compile" in event else None
    )
    ask([5, 2])
    assert compiled == []


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("q_proj", AdapterSpec("full"))], "module 'layers/self_attn/q_proj': is tuned in full"),
        ([("embed_tokens", LORA)], "module 'embed_tokens': is no product with a kernel"),
        ([("q_proj", AdapterSpec("lora", train_bias=True))], "has a tuned bias"),
        ([("k_proj", LORA)], "has no lora_a, lora_b, which its method 'lora' needs"),
        ([("nothing", LORA)], "adapter 1: rule 'nothing' matches no module"),
    ],
)
def test_adapters_that_cannot_differ_by_row_are_refused(rules, message):
    with pytest.raises(DoraError, match=message):
        AdapterBank.build(base_params(), [None, (AdapterRules(rules), base_params())])


def test_an_adapter_of_another_shape_is_refused_by_module(adapters):
    _, params = adapters["dora"]
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x[:, :5] if path[-1].key == "lora_a" else x, params
    )
    with pytest.raises(
        DoraError, match="adapter 0, module 'layers/self_attn/k_proj': kernel of shape"
    ):
        AdapterBank.build(base_params(), [(RULES["dora"], params)])
    _, params = adapters["lora"]
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x[..., :5] if path[-1].key == "lora_b" else x, params
    )
    with pytest.raises(
        DoraError, match="adapter 0, module 'layers/mlp/down_proj': kernel of shape"
    ):
        AdapterBank.build(base_params(), [(RULES["lora"], params)])


def test_bad_choices_of_adapters_are_refused(adapters, bank):
    def refuse(match, model=PLAIN, **fields):
        with pytest.raises(DoraError, match=match):
            generate(model, base_params(), [[1], [2]], **fields)

    refuse("adapter_of chooses from adapters", adapter_of=[0, 0])
    refuse("one of 6 adapters for each of 2 prompts; it gives 0", adapters=bank)
    refuse("gives adapter 6 for prompt 2; there are 0 to 5", adapters=bank, adapter_of=[0, 6])
    refuse("need the plain model", model=adapters["lora"][0], adapters=bank, adapter_of=[0, 0])
