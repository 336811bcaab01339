"""The identities that hold for whole nets, numbered as `refl verify` numbers them: all but 2, which
has its own file (test_surrogate.py).

The scale of every comparison is `rounding_bound(e)`: 8 u times the sum over all sites of the
|terms| their rules added up, which the audited ledger holds. An attribution is a chain of such
sums, so nothing finer than this is decided by float arithmetic. Two runs whose matrix products
round differently (a batch and its members) come within an eighth of it, all others within a
hundredth.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import numpy as np
import pytest
from checkpoints import checkpoint
from surrogate_truth import close, text, turnover, u

import refl
from refl.explanation import Explanation
from refl.model import Model
from refl.nets.batch import Batch
from refl.rules.composites import Rule
from refl.rules.published import ATTNLRP, METHODS
from refl.seeds import KINDS, Seed
from refl.trace import QUERIES, Trace
from refl.verification.definitions import surrogate
from refl.verification.identities import small_nets
from refl.verification.identities.conditioning import rounding_bound
from refl.verification.identities.graph import Graph
from refl.verification.identities.methods import WITHOUT_EPS, configured_methods
from refl.verification.identities.reparametrized import CHANGES
from refl.verification.identities.rows import WorstDeviation
from refl.verification.identities.runs import tiles_of
from refl.verification.identities.small_traces import sweep_from
from refl.verification.random_models import GPT2, LLAMA, random_model, with_weights

RANDOM = {
    "llama": LLAMA,
    "llama with biases": LLAMA | {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
    "gpt2": GPT2,
}
CHECKPOINTS = ("shipped", "stories260K", "babyllama105", "capp_gpt2", "nano_sort_gpt2")
NETS = (*RANDOM, *CHECKPOINTS)
BIAS_FREE = ("llama", "shipped", "stories260K", "babyllama105")


@cache
def net(name: str, dtype: str = "float64") -> Model:
    if name in RANDOM:
        return random_model(RANDOM[name], 5, dtype)
    return refl.load(None if name == "shipped" else checkpoint(name), dtype=dtype)


# -- 1 and 3: the conservation ledger --------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETS)
def test_1_every_site_balances(name: str, dtype: str) -> None:
    """Received = passed on + absorbed at every operation, within 8 u sum|terms|, plain and fast
    attention. Measured at most 2.7.
    """
    model = net(name, dtype)
    ids = text(model, 7)
    for method, how in configured_methods():
        for keep in ("*", ()):
            for entry in model.explain(ids, method, keep=keep, audit=True, **how).ledger:
                assert entry.rounding_scale is not None
                assert abs(entry.conservation_error) <= 8 * u(dtype) * entry.rounding_scale, (
                    f"{method} {how}: {entry.site} ({entry.operation})"
                )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETS)
def test_3_the_account_closes(name: str, dtype: str) -> None:
    """What is explained = sum of tokens + everything absorbed, to 1e-12 (float32: 1e-5) of what is
    explained.

    Measured 8e-16 and 9e-7. The unsigned stabilizer of `lxt-explicit` divides by next to nothing
    where z is near -eps: at eps = 1e-2 ten billion logits are absorbed and given back on a real
    net. Its account is held against all that it absorbed anywhere.
    """
    model = net(name, dtype)
    ids = text(model, 7)
    for method, how in configured_methods():
        ledger = model.explain(ids, method, **how).ledger
        scale = turnover(ledger) if method == "lxt-explicit" else abs(ledger.explained)
        assert (
            abs(ledger.conservation_error) <= {"float32": 1e-5, "float64": 1e-12}[dtype] * scale
        ), f"{method} {how}"


@pytest.mark.parametrize("seed", KINDS)
@pytest.mark.parametrize("name", ["llama with biases", "gpt2", "shipped"])
def test_3_the_account_closes_for_every_seed(name: str, seed: str) -> None:
    """Relative to the relevance of the seed without signs:
    the softmax-weighted one sums to nothing.
    """
    model = net(name)
    for method in set(METHODS) - {"lxt-explicit"}:
        e = model.explain(text(model, 7), method, seed=seed)
        z = model.logits(text(model, 7))[-1]
        assert (
            abs(e.ledger.conservation_error)
            <= 1e-12 * np.abs(Seed(seed, e.target_id).relevance(z)).sum()
        )


@pytest.mark.parametrize("name", NETS)
def test_3_explained_is_the_logit_and_tokens_are_the_explanation(name: str) -> None:
    model = net(name)
    ids = text(model, 7)
    for method in set(METHODS) - {"gradient"}:  # whose scores are lengths
        e = model.explain(ids, method, audit=True)
        assert e.explained == pytest.approx(model.logits(ids)[-1, e.target_id], rel=1e-13)
        assert abs(e.relevance.sum() - e.ledger.tokens) <= rounding_bound(e)


@pytest.mark.parametrize("name", BIAS_FREE)
def test_cp_lrp_without_biases_conserves(name: str) -> None:
    """Sum of relevance = logit (Ali et al. 2022): nothing absorbs but attention, and that passes on
    in full. Measured 1e-15.
    """
    e = net(name).explain(text(net(name), 8), "cp-lrp")
    assert abs(e.relevance.sum() - e.logit) <= 1e-12 * abs(e.logit)


# -- small nets, measured by verification/identities/small_nets.py ---------------------------------


@pytest.mark.parametrize(
    ("small_net", "compared", "bound"),
    [
        (small_nets.small_relu_net, 3, 1e-12),
        (small_nets.small_product, 6, 1e-15),
        (small_nets.small_linear_model, 3, 1e-14),
        (small_nets.small_attention, 1, 1e-13),
        (small_nets.small_triple_products, 2, 1e-15),
        (small_nets.small_norms, 6, 1e-13),
    ],
    ids=[
        "4_relu_net_equals_gradient_times_input",
        "5_product",
        "6_linear_model",
        "6_one_attention_layer",
        "10_triple_product",
        "12_norms",
    ],
)
def test_rules_on_small_nets(small_net: Any, compared: int, bound: float) -> None:
    worst = WorstDeviation()
    small_net(worst)
    assert worst.count == compared
    assert worst.measured <= min(bound, worst.bound)


# -- 7: invariances --------------------------------------------------------------------------------


C_ATTN, MLP, NORM = "attn.c_attn", "mlp.c_fc", "ln_1"
REWRITTEN = {
    "gpt2": {
        "key_bias": C_ATTN,
        "query_key": C_ATTN,
        "value_out": "attn.c_proj",
        "heads": "attn.c_proj",
        "neurons": MLP,
        "norms": NORM,
    },
    "llama": {
        "query_key": "k_proj",
        "value_out": "o_proj",
        "heads": "o_proj",
        "neurons": "up_proj",
        "norms": "input_layernorm",
    },
}
"""Net -> the changes there is a place for -> one of the tensors that have to be written to."""


def changed(model: Model, change: str, ids: list[int]) -> Model:
    """The same function, written with other weights."""
    other = CHANGES[change](model, Graph(model.trace([ids])[0].records))
    assert other is not None
    return other


@pytest.mark.parametrize("method", WITHOUT_EPS)
@pytest.mark.parametrize(
    ("name", "change"),
    [(name, change) for name, changes in REWRITTEN.items() for change in changes],
)
def test_7_invariance(name: str, change: str, method: str) -> None:
    """The same function written with other weights has the same relevance, at the tokens and after
    each block. Measured 1e-14.
    """
    model = net(name)
    ids = text(model, 8)
    other = changed(model, change, ids)
    assert any(
        REWRITTEN[name][change] in tensor
        and not np.allclose(other.weights[tensor], model.weights[tensor])
        for tensor in model.weights
    )
    one, two = (m.explain(ids, method, target=3, audit=True) for m in (model, other))
    bound = rounding_bound(one, two)
    assert one.logit == pytest.approx(two.logit, rel=1e-12)
    close(one.relevance, two.relevance, bound)
    for site in (embedded(model), "transformer.h.0" if name == "gpt2" else "model.layers.0"):
        close(one[site], two[site], bound)


def test_7_a_change_without_a_place_is_none() -> None:
    """Rotary positions on every feature leave no key bias that all queries feel alike."""
    model = net("llama with biases")
    assert CHANGES["key_bias"](model, Graph(model.trace([[1, 2]])[0].records)) is None


@pytest.mark.parametrize("method", ["lrp-0", "attnlrp-gradient"])
def test_7_constant_on_logits_moves_relevance_but_not_its_sum(method: str) -> None:
    """At the softmax itself: element by element R changes (by c g_i, and sum g_i = 0), row by row
    its sum does not.
    """
    model = net("gpt2")
    ids = text(model, 8)
    one, other = (
        m.explain(ids, method, target=3, audit=True)
        for m in (model, changed(model, "key_bias", ids))
    )
    a, b = (e["transformer.h.1.attn.scores"] for e in (one, other))
    assert np.abs(a - b).max() > 1e-3 * np.abs(a).max()
    close(a.sum(axis=-1), b.sum(axis=-1), rounding_bound(one, other))


def test_7_needs_eps_to_vanish() -> None:
    """The comparison is sharp: at eps = 1e-2 a change of basis does move relevance (by 3e-3 to
    1.7e-2 on one block).
    """
    model = net("gpt2")
    one, other = (
        m.explain(text(model, 8), "attnlrp", eps=1e-2, target=3)
        for m in (model, changed(model, "query_key", text(model, 8)))
    )
    assert np.abs(one.relevance - other.relevance).max() > 1e-5 * np.abs(one.relevance).max()


# -- 8: linearity in the seed ----------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama with biases", "gpt2", "shipped"])
def test_8_contrast_is_a_difference(name: str, method: str) -> None:
    """R(z_a - z_b) = R(z_a) - R(z_b) at every site."""
    model = net(name)
    ids = text(model, 6)
    both = model.explain(ids, method, contrast=(3, 11), audit=True)
    a, b = (model.explain(ids, method, target=t, audit=True) for t in (3, 11))
    bound = rounding_bound(both, a, b)
    for site in both:
        close(both[site], a[site] - b[site], bound)


@pytest.mark.parametrize("method", METHODS)
def test_8_any_vector(method: str) -> None:
    """R(2 s - 3 t) = 2 R(s) - 3 R(t) for seeds that are any vectors,
    from a site in the middle of the net too.
    """
    model = net("gpt2")
    t, logits = model.trace([text(model, 6)])
    random = np.random.default_rng(6)
    for at in (logits, t.values["transformer.h.0.mlp.act"]):
        one, two = (random.standard_normal(at.array.shape) for _ in "st")
        runs = [sweep_from(t, at, seed, METHODS[method]) for seed in (one, two, 2 * one - 3 * two)]
        bound = (
            runs[2].ledger.roundoff
            * 5
            * max(sum(float(e.rounding_scale[0]) for e in s.ledger) for s in runs)
        )
        for site in ("transformer.wte", "transformer.wpe"):
            r, s, both = (run.propagated[site] for run in runs)
            close(both, 2 * r - 3 * s, bound)


# -- 9: order, batches, and the faster ways --------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "shipped"])
def test_9_no_relevance_after_the_explained_position(name: str, method: str) -> None:
    """Explaining position 3 of 8 leaves exactly nothing at positions 4 to 7, and is the explanation
    of the first four tokens.
    """
    model = net(name)
    ids, t = text(model, 8), Trace(model.weights)
    logits = model.net.forward(t, model.config, Batch(np.asarray([ids]), rows=(3,)))
    one = model.explain(ids[:4], method, audit=True)
    seed = np.zeros_like(logits.array)
    seed[..., one.target_id] = (
        1.0
        if METHODS[method].formulation == "gradient_x_input"
        else logits.array[0, 0, one.target_id]
    )
    s = sweep_from(t, logits, seed, METHODS[method])
    for site in one:
        if s.propagated[site].ndim == 3 and site != "lm_head" and s.propagated[site].shape[1] == 8:
            assert not s.propagated[site][:, 4:].any(), site
            got = s.propagated[site][0, :4] * (
                s.activations[site][0, :4]
                if METHODS[method].formulation == "gradient_x_input"
                else 1
            )
            close(got, one[site], rounding_bound(one))


@pytest.mark.parametrize("keep", ["*", ()])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama with biases", "gpt2", "shipped"])
def test_9_a_padded_batch_is_its_members(name: str, method: str, keep: Any) -> None:
    """Texts of 7, 3, 1 and 5 tokens together give what each gives alone;
    padding holds no relevance at all.
    """
    model = net(name)
    texts = [text(model, length, seed=length) for length in (7, 3, 1, 5)]
    for ids, e in zip(texts, model.explain(texts, method, keep=keep, audit=True), strict=True):
        alone = model.explain(ids, method, keep=keep, audit=True)
        assert e.target_id == alone.target_id and e.tokens == alone.tokens
        close(e.relevance, alone.relevance, rounding_bound(alone))
        for site in (s for s in e if e[s].ndim == 2 and e[s].shape[0] == 7):
            assert not e[site][len(ids) :].any(), site
            close(e[site][: len(ids)], alone[site], rounding_bound(alone))
        for got, want in zip(e.ledger, alone.ledger, strict=True):
            assert got.site == want.site and abs(got.received - want.received) <= rounding_bound(
                alone
            )


def test_9_grouped_queries_are_repeated_keys_and_values() -> None:
    """A net whose key and value matrices are written out once per query head has the same relevance
    everywhere else.
    """
    grouped = net("llama with biases")
    c, w = grouped.config, {}
    for name, array in grouped.weights.items():
        if ".k_proj." in name or ".v_proj." in name:
            per_head = np.reshape(array, (c.kv_heads, c.width, -1))
            array = np.repeat(per_head, c.num_attention_heads // c.kv_heads, axis=0).reshape(
                -1, *array.shape[1:]
            )
        w[name] = array
    config = RANDOM["llama with biases"] | {"num_key_value_heads": c.num_attention_heads}
    repeated = with_weights(random_model(config, 0), **w)
    ids = text(grouped, 7)
    for method in METHODS:
        a, b = (m.explain(ids, method, target=2, audit=True) for m in (grouped, repeated))
        close(a.relevance, b.relevance, rounding_bound(a, b))
        for site in (
            s
            for s in a
            if s in set(b)
            and "key" not in s
            and "value" not in s
            and not s.endswith(("k_proj", "v_proj"))
        ):
            close(a[site], b[site], rounding_bound(a, b))
        per_copy = b["model.layers.0.self_attn.value"]  # (4, T, d): two copies of each of two heads
        close(
            a["model.layers.0.self_attn.value"],
            per_copy.reshape(2, 2, *per_copy.shape[1:]).sum(axis=1),
            rounding_bound(a, b),
        )


@pytest.mark.parametrize("keep", ["*", ()])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama with biases", "gpt2", "shipped"])
def test_9_recomputing_changes_no_bit(name: str, method: str, keep: Any) -> None:
    """Every site kept, every activation and the conservation ledger: the same bits, block by block
    or all at once, in a batch too.
    """
    model = net(name, "float32")
    texts = [text(model, 6), text(model, 4)]
    for full, less in zip(
        *(model.explain(texts, method, keep=keep, recompute=r) for r in (False, True)), strict=True
    ):
        assert set(full) == set(less)
        assert np.array_equal(full.relevance, less.relevance)
        for site in full:
            assert np.array_equal(full[site], less[site]) and np.array_equal(
                full.activation(site), less.activation(site)
            ), site
        assert full.ledger.as_dict() == less.ledger.as_dict()


def test_9_names_survive_recomputing() -> None:
    """A module's input and its other names lead to the same site
    whether or not blocks are run again.
    """
    model = net("shipped")
    full, less = (model.explain([5, 6, 7], recompute=r) for r in (False, True))
    assert full.sites.aliases == less.sites.aliases


def test_9_rules_for_sites_survive_recomputing() -> None:
    """A table's line for a site holds under each of its names:
    a block's output is the next block's input.
    """
    line = Rule("add", "epsilon", "model.layers.1.input", (("eps", 1.0),))
    plain = net("llama").explain([1, 2, 3], "attnlrp")
    full, less = (
        net("llama").explain([1, 2, 3], ATTNLRP.override(line), recompute=r) for r in (False, True)
    )
    assert not np.array_equal(plain.relevance, full.relevance)
    assert np.array_equal(full.relevance, less.relevance)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "pattern",
    ["*attn*", "model.layers.0*", "*.scores", "*.key*", "*.input", "*.input_layernorm.input", "*"],
)
def test_9_what_is_kept_is_what_the_pattern_names(pattern: str, recompute: bool) -> None:
    """Whichever way it is run: every site that has a name the pattern fits, and the embeddings,
    which are always kept.
    """
    model = net("llama")
    full = model.explain([1, 2, 3])
    named = {site for site in full if fnmatchcase(site, pattern)} | {
        s for name, s in full.sites.aliases.items() if fnmatchcase(name, pattern)
    }
    assert set(model.explain([1, 2, 3], keep=pattern, recompute=recompute)) == named | {
        "model.embed_tokens"
    }


@pytest.mark.parametrize("name", ["llama with biases", "gpt2"])
def test_9_the_forward_does_not_depend_on_the_method(name: str) -> None:
    """Bit by bit the same activations whichever composite follows."""
    model = net(name)
    runs = [model.explain(text(model, 6), method) for method in METHODS]
    for site in runs[0]:
        assert all(
            np.array_equal(runs[0].activation(site), other.activation(site)) for other in runs[1:]
        ), site


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_9_several_targets_from_one_forward(method: str, recompute: bool) -> None:
    """The records survive all sweeps but the last, and no sweep changes what the next one finds."""
    model = net("gpt2")
    ids = text(model, 6)
    for target, e in zip(
        (4, 9, 4), model.explain_each(ids, (4, 9, 4), method, recompute=recompute), strict=True
    ):
        alone = model.explain(ids, method, target=target)
        assert np.array_equal(e.relevance, alone.relevance)
        assert all(np.array_equal(e[site], alone[site]) for site in alone)


@pytest.mark.parametrize("length", [QUERIES - 1, QUERIES, QUERIES + 1, 300])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_9_fast_attention_is_plain_attention(name: str, length: int) -> None:
    """Blocks of queries, where the sweep is audited, and tiles, with boundaries inside and at the
    end of the text and with padding: the same relevance and ledger.
    """
    model = random_model(RANDOM[name], 7)
    texts = [text(model, n, seed=n) for n in (length, length - 5, 3)]
    for method in METHODS if length == QUERIES + 1 else ("attnlrp", "attnlrp-gradient", "cp-lrp"):
        plain = model.explain(texts, method, keep="*", audit=True)
        fast = model.explain(texts, method, keep=(), audit=True)
        with tiles_of(QUERIES // 2):
            fast += model.explain(texts, method, keep=())
        for p, f in zip([*plain, *plain], fast, strict=True):
            close(f.relevance, p.relevance, rounding_bound(p))
            entries = {entry.site: entry for entry in p.ledger}
            for entry in f.ledger:
                assert abs(entry.received - entries[entry.site].received) <= rounding_bound(p), (
                    entry.site
                )
                assert entry.absorbed.keys() == entries[entry.site].absorbed.keys()
                assert all(
                    abs(entry.absorbed[c] - entries[entry.site].absorbed[c]) <= rounding_bound(p)
                    for c in entry.absorbed
                ), entry.site


# -- 11: the other way round -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_11_forward_decomposition_is_cp_lrp(name: str) -> None:
    """With attention, norms, gates and activation ratios frozen the net is affine in the
    embeddings: each token's part of the logit, computed forwards as f(that token alone) - f(none),
    is its CP-LRP relevance. Measured 2e-14.
    """
    model = net(name)
    ids = text(model, 8)
    around, logits = surrogate.record(model, ids)
    alone = np.concatenate([np.eye(8), np.zeros((1, 8))])[:, :, None]  # token kept, and none
    z = surrogate.logits(
        model, ids, around, variant="cp-lrp", edits={embedded(model): lambda x: alone * x}
    )[:, int(logits.argmax())]
    e = model.explain(ids, "cp-lrp", audit=True)
    close(e.relevance, z[:8] - z[8], rounding_bound(e))


def embedded(model: Model) -> str:
    return "transformer.wte" if model.net.MODEL_TYPE == "gpt2" else "model.embed_tokens"


@pytest.mark.parametrize("name", ["llama", "shipped", "stories260K"])
def test_11_forward_decomposition_in_plain_arithmetic(name: str) -> None:
    """The same for a Llama without the engine's net: NumPy, the equations of the paper, attention
    and scales as recorded.
    """
    model = net(name)
    c, ids = model.config, text(model, 7)
    e = model.explain(ids, "cp-lrp", audit=True)
    w = {key: np.asarray(model.weights[key]) for key in model.weights}
    part = (
        np.eye(7)[:, :, None] * w["model.embed_tokens.weight"][ids]
    )  # (S, T, D): what token S contributes at position T
    for i in range(c.num_hidden_layers):
        part = decomposed_block(
            part,
            {k.removeprefix(f"model.layers.{i}."): v for k, v in w.items() if f".layers.{i}." in k},
            e,
            i,
            c,
        )
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])[e.target_id]
    close(
        e.relevance,
        normed(part, e, "model.norm", w["model.norm.weight"], c)[:, -1] @ head,
        rounding_bound(e),
    )


def normed(part: Any, e: Explanation, site: str, w: Any, c: Any) -> Any:
    x = e.activation(f"{site}.input")
    return part * w / np.sqrt((x * x).mean(axis=-1, keepdims=True) + c.rms_norm_eps)


def decomposed_block(part: Any, w: dict[str, Any], e: Explanation, i: int, c: Any) -> Any:
    site = f"model.layers.{i}"
    v = (
        normed(part, e, f"{site}.input_layernorm", w["input_layernorm.weight"], c)
        @ w["self_attn.v_proj.weight"].T
    )
    v = v.reshape(*v.shape[:2], c.kv_heads, c.width).repeat(
        c.num_attention_heads // c.kv_heads, axis=2
    )  # (S, T, H, d)
    context = np.einsum("hji,sihd->sjhd", e.activation(f"{site}.self_attn.probabilities"), v)
    part = part + context.reshape(*part.shape[:2], -1) @ w["self_attn.o_proj.weight"].T
    n = normed(part, e, f"{site}.post_attention_layernorm", w["post_attention_layernorm.weight"], c)
    return (
        part
        + (e.activation(f"{site}.mlp.act_fn") * (n @ w["mlp.up_proj.weight"].T))
        @ w["mlp.down_proj.weight"].T
    )
