"""What is special in the newer decoders: blocks without rotary positions, scalars, slices of one
matrix's output, neighboring features that turn together, rotary positions that change with the
length of a text.

(What they compute is held against transformers in tests/peers/test_newer_decoders.py, relevance
against the surrogate in test_newer.py.) Expected values are those of a net whose weights are
rearranged by hand, of complex numbers, or of a formula.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from refl.errors import ReflError
from refl.model import Model, architecture
from refl.nets import NETS, NOT_HERE, cohere2, gpt_neox, llama, opt, phi3, smollm3
from refl.nets.config import parse
from refl.verification.identities.graph import Graph
from refl.verification.identities.reparametrized import CHANGES
from refl.verification.random_models import (
    COHERE,
    COHERE2,
    GPT_NEOX,
    GRANITE,
    LLAMA,
    NEWER,
    OPT,
    PHI3,
    SMOLLM3,
    STABLELM,
    STARCODER2,
    random_model,
    with_weights,
)

NEW = (PHI3, SMOLLM3, GRANITE, COHERE, COHERE2)
TEXT = [3, 14, 1, 5, 9, 2, 6]
U = 2.0**-53


def close(a: Any, b: Any, units: float = 1e4) -> None:
    """To rounding: sums of tens of terms, a few layers deep."""
    assert np.shape(a) == np.shape(b)
    assert np.abs(np.asarray(a) - b).max() <= units * U * max(np.abs(b).max(), 1.0)


# -- no rotary positions ---------------------------------------------------------------------------


def sites(config: dict[str, Any]) -> set[str]:
    return set(random_model(config, 1).sites())


def test_blocks_without_rotary_positions_have_none() -> None:
    for config, block in ((SMOLLM3, 1), (COHERE2, 1)):
        found = {site for site in sites(config) if site.endswith(".rotated")}
        blocks = {int(site.split(".")[2]) for site in found}
        assert blocks == set(range(random_model(config, 1).config.num_hidden_layers)) - {block}


@pytest.mark.parametrize(
    ("config", "blind"),
    [
        (SMOLLM3 | {"no_rope_layers": [0], "use_sliding_window": False}, True),
        (SMOLLM3 | {"no_rope_layers": [1], "use_sliding_window": False}, False),
        (COHERE2 | {"sliding_window_pattern": 1}, True),
        (COHERE2 | {"sliding_window": 99}, False),
    ],
)
def test_without_positions_an_order_is_not_known(config: dict[str, Any], blind: bool) -> None:
    """In one block without rotary positions the last token attends to a set."""
    model = random_model(config | {"num_hidden_layers": 1}, 3)
    one, other = (model.logits([*ids, 7])[-1] for ids in ([3, 14, 1, 5], [5, 1, 3, 14]))
    assert (np.abs(one - other).max() < 1e-12) == blind


# -- scalars ---------------------------------------------------------------------------------------


def test_the_scalars_of_granite_are_a_llama_with_other_weights() -> None:
    """Each scalar multiplied into the matrix before it."""
    granite = random_model(GRANITE, 4)
    c, w = granite.config, {}
    like = parse(llama.Config, LLAMA | {k: GRANITE[k] for k in ("vocab_size", "hidden_size")})
    for name, stored in granite.weights.items():
        factor = 1.0
        if name == "model.embed_tokens.weight":
            factor = c.embedding_multiplier
        elif name.endswith("q_proj.weight"):
            factor = c.attention_multiplier * like.width**0.5
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            factor = c.residual_multiplier
        elif name == "lm_head.weight":
            factor = 1 / c.logits_scaling
        w[name] = stored * factor
    plain = random_model(LLAMA | {"rms_norm_eps": c.rms_norm_eps}, 4)
    close(granite.logits(TEXT), with_weights(plain, **w).logits(TEXT))
    one, other = (m.explain(TEXT, "cp-lrp") for m in (granite, with_weights(plain, **w)))
    close(one.relevance, other.relevance)


@pytest.mark.parametrize("config", [GRANITE, COHERE, COHERE2, PHI3, SMOLLM3])
def test_relevance_sums_to_the_logit_where_there_is_no_bias(config: dict[str, Any]) -> None:
    """CP-LRP: a scale hands on all of it."""
    e = random_model(config, 5).explain(TEXT, "cp-lrp", keep="*")
    assert e.relevance.sum() == pytest.approx(e.logit, rel=1e-12)
    scaled = [entry for entry in e.ledger if entry.operation == "scale"]
    assert bool(scaled) == (config["model_type"] in ("granite", "cohere", "cohere2"))
    for entry in scaled:
        (passed,) = entry.passed.values()
        assert not entry.absorbed
        assert passed == pytest.approx(entry.received, rel=1e-12)


@pytest.mark.parametrize("config", [GRANITE, COHERE, COHERE2])
def test_logits_are_scaled(config: dict[str, Any]) -> None:
    e = random_model(config, 5).explain(TEXT, keep="*")
    factor = config["logit_scale"] if "logit_scale" in config else 1 / config["logits_scaling"]
    assert np.array_equal(e.activation("lm_head.scaled"), e.activation("lm_head") * factor)


# -- slices ----------------------------------------------------------------------------------------


def split(model: Model) -> dict[str, Any]:
    """The matrices of Phi-3 cut into those of a Llama."""
    c, found = model.config, {}
    q, kv = c.num_attention_heads * c.width, c.kv_heads * c.width
    ends = {"qkv_proj": [q, q + kv], "gate_up_proj": [c.intermediate_size]}
    names = {"qkv_proj": llama.ATTENTION[:3], "gate_up_proj": llama.MLP[:2]}
    for name, w in model.weights.items():
        path, _, last = name.removesuffix(".weight").rpartition(".")
        if last not in ends:
            found[name] = w
            continue
        for one, part in zip(names[last], np.split(w, ends[last]), strict=True):
            found[f"{path}.{one}.weight"] = part
    return found


def test_phi3_is_a_llama_in_larger_matrices() -> None:
    """Logits, relevance at the embeddings and at every slice."""
    whole = {"partial_rotary_factor": 1.0, "sliding_window": None}
    model = random_model(PHI3 | whole, 6)
    plain = random_model(LLAMA | {"head_dim": 6}, 6)
    assert set(split(model)) == set(plain.weights)
    cut = with_weights(plain, **split(model))
    close(model.logits(TEXT), cut.logits(TEXT))
    same = {"self_attn.query.flat": "self_attn.q_proj", "self_attn.key.flat": "self_attn.k_proj"}
    same |= {"self_attn.value.flat": "self_attn.v_proj", "mlp.gate": "mlp.gate_proj"}
    same |= {"mlp.up": "mlp.up_proj"}
    for method in ("attnlrp", "attnlrp-gradient", "cp-lrp"):
        one, other = (m.explain(TEXT, method, keep="*") for m in (model, cut))
        close(one.relevance, other.relevance, 1e6)
        for ours, theirs in same.items():
            block = "model.layers.1"
            close(one[f"{block}.{ours}"], other[f"{block}.{theirs}"], 1e6)
        parts = [one[f"model.layers.0.self_attn.{n}.flat"] for n in ("query", "key", "value")]
        whole_output = one["model.layers.0.self_attn.qkv_proj"]
        assert np.array_equal(whole_output, np.concatenate(parts, axis=-1))


def test_gpt_neox_has_the_three_of_each_head_beside_one_another() -> None:
    model, d = random_model(GPT_NEOX, 6), 6
    e = model.explain(TEXT, keep="*")
    at = "gpt_neox.layers.1.attention"
    for array in (e.activation, e.__getitem__):
        whole = array(f"{at}.query_key_value")
        for i, name in enumerate(("query", "key", "value")):
            for head in range(4):
                start = (3 * head + i) * d
                assert np.array_equal(array(f"{at}.{name}")[head], whole[:, start : start + d])
    attention = model.components.attentions[1]
    assert (attention.query, attention.key) == (f"{at}.query", f"{at}.key")


# -- neighbors that turn together ------------------------------------------------------------------


@pytest.mark.parametrize("config", [COHERE, COHERE2])
def test_scores_of_neighbors_that_turn_together(config: dict[str, Any]) -> None:
    """Features 2i and 2i + 1 are a complex number that is turned by t f_i: q and conj(k) multiply
    to the score.
    """
    model = random_model(config | {"head_dim": 6, "rope_theta": 50.0}, 8)
    e = model.explain(TEXT, keep="*")
    at = "model.layers.0.self_attn"
    q, k = (e.activation(f"{at}.{name}") for name in ("query", "key"))
    turn = np.exp(1j * np.outer(np.arange(len(TEXT)), [50.0 ** (-i / 3) for i in range(3)]))
    q, k = ((x[..., ::2] + 1j * x[..., 1::2]) * turn for x in (q, k))
    k = np.repeat(k, 2, axis=0)
    expected = (q @ k.conj().transpose(0, 2, 1)).real * 6**-0.5
    seen = np.tril(np.ones((len(TEXT), len(TEXT)), dtype=bool))
    close(e.activation(f"{at}.scores")[:, seen], expected[:, seen])


def test_norms_have_weights_of_each_head() -> None:
    """z / w has mean 0 and mean square 1 over the features of every head, each with its own w."""
    model = random_model(COHERE | {"layer_norm_eps": 1e-12}, 8)
    e = model.explain(TEXT, keep="*")
    for name in ("q_norm", "k_norm"):
        at = f"model.layers.0.self_attn.{name}"
        w = model.weights[f"{at}.weight"]
        unit = e.activation(at) / w
        assert w.shape == (model.config.num_attention_heads // (1 + (name[0] == "k")), 4)
        assert not np.array_equal(w[0], w[1])
        close(unit.mean(axis=-1), np.zeros(unit.shape[:-1]), 1e6)
        close((unit**2).mean(axis=-1), np.ones(unit.shape[:-1]), 1e6)


# -- OPT -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False])
def test_positions_of_opt_begin_at_two(before: bool) -> None:
    """And embeddings of another width are projected before positions are added to them."""
    narrow = {"word_embed_proj_dim": 10, "do_layer_norm_before": before}
    model = random_model(OPT | narrow, 8)
    w = {name.removeprefix("model.decoder."): w for name, w in model.weights.items()}
    e = model.explain(TEXT, keep="*")
    words = w["embed_tokens.weight"][TEXT] @ w["project_in.weight"].T
    places = w["embed_positions.weight"][2 : 2 + len(TEXT)]
    close(e.activation("model.decoder.embedded"), words + places)
    last = e.activation("model.decoder.layers.1")
    ends = "model.decoder.layers.1.final_layer_norm" if not before else "model.decoder.layers.1"
    assert e.sites.canonical("model.decoder.layers.1") == ends
    assert last.shape == (len(TEXT), 16)


# -- the same function with other weights ----------------------------------------------------------


@pytest.mark.parametrize("config", [PHI3, COHERE, COHERE2, GPT_NEOX, OPT])
def test_other_weights_give_the_same_logits(config: dict[str, Any]) -> None:
    """Bases, orders and norms moved as identity 7 moves them: it knows which rows of one matrix are
    whose, and which features turn together.
    """
    model = random_model(config, 10)
    trace, logits = model.trace([TEXT], plain=True)
    graph = Graph(trace.records, logits)
    moved = {name: change(model, graph) for name, change in CHANGES.items()}
    assert {"query_key", "value_out", "heads", "norms"} - {n for n, m in moved.items() if m} <= (
        {"query_key"} if config is COHERE else set()
    )
    for changed in filter(None, moved.values()):
        close(changed.logits(TEXT), model.logits(TEXT))


# -- longrope --------------------------------------------------------------------------------------

LONGROPE: dict[str, Any] = {
    "max_position_embeddings": 20,
    "original_max_position_embeddings": 5,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.5],
        "long_factor": [2.0, 7.0],
    },
}


def test_longrope_by_its_formula() -> None:
    rope = parse(llama.Config, LLAMA | LONGROPE).rope
    assert rope.frequencies(5) == [1.0, 0.01 / 1.5]
    assert rope.frequencies(6) == [0.5, 0.01 / 7.0]
    assert rope.gain == pytest.approx(math.sqrt(1 + math.log(4) / math.log(5)), rel=1e-15)
    assert rope.longest == 20 and rope.trained == 5
    assert [rope.batch_dependent(n) for n in (5, 6)] == [False, True]
    changes = [rope.change(*lengths) for lengths in ((4, 5), (5, 6), (6, 7))]
    assert changes == [False, True, False]


def test_longrope_without_the_original_length() -> None:
    """Scaling begins at max_position_embeddings, and `factor` says by how much."""
    scaling = LONGROPE["rope_scaling"] | {"factor": 3.0}
    said = {"max_position_embeddings": 5, "rope_scaling": scaling}
    rope = parse(llama.Config, LLAMA | said).rope
    assert (rope.longest, rope.trained) == (15, 5)
    assert rope.frequencies(6) == [0.5, 0.01 / 7.0]
    assert rope.gain == pytest.approx(math.sqrt(1 + math.log(3) / math.log(5)), rel=1e-15)


@pytest.mark.parametrize("config", [LLAMA | LONGROPE, PHI3 | {"head_dim": 4} | LONGROPE])
def test_a_text_is_explained_by_its_own_length(config: dict[str, Any]) -> None:
    """In a list too, and each beginning of a text by its own."""
    config = config | ({"partial_rotary_factor": 1.0} if config["model_type"] == "phi3" else {})
    model = random_model(config, 9)
    texts = [TEXT, TEXT[:3], TEXT[:5], TEXT[:6]]
    for text, e in zip(texts, model.explain(texts, "cp-lrp"), strict=True):
        alone = model.explain(text, "cp-lrp")
        close(e.relevance, alone.relevance)
        assert e.logit == pytest.approx(model.logits(text)[-1].max(), rel=1e-13)
    ids = model.generate(TEXT[:3], 9)
    for n in range(3, 12):
        assert ids[n] == model.logits(ids[:n])[-1].argmax()


# -- what is refused -------------------------------------------------------------------------------

SCALING = LONGROPE["rope_scaling"]
SLIDES = ["sliding_attention"] * 2
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (PHI3, {"attention_bias": True}, "attention_bias"),
    (PHI3, {"rope_scaling": {"type": "linear"}}, "without its option factor"),
    (PHI3, LONGROPE | {"partial_rotary_factor": 1.0}, "2 numbers in short_factor: expected 3"),
    (PHI3, {"partial_rotary_factor": 1.2}, "partial_rotary_factor = 1.2"),
    (LLAMA, LONGROPE | {"rope_scaling": SCALING | {"long_factor": 2.0}}, "expected a list of"),
    (LLAMA, LONGROPE | {"rope_scaling": SCALING | {"long_factor": [1.0, "2"]}}, "a number"),
    (LLAMA, LONGROPE | {"rope_scaling": SCALING | {"factor": 3.0}}, "factor = 3 .* and 4 is"),
    (
        LLAMA,
        LONGROPE | {"rope_scaling": SCALING | {"original_max_position_embeddings": 6}},
        "original_max_position_embeddings = 5, and 6 for rope_type 'longrope'",
    ),
    (LLAMA, {"rope_scaling": SCALING}, "without its option factor"),
    (LLAMA, {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "without .*long_factor"),
    (
        LLAMA,
        {"original_max_position_embeddings": 6, "rope_scaling": {"type": "yarn", "factor": 2.0}},
        "original_max_position_embeddings = 6, and None for rope_type 'yarn'",
    ),
    (SMOLLM3, {"no_rope_layers": [1, 0]}, "no_rope_layers = .*expected 3 times"),
    (SMOLLM3, {"no_rope_layers": [1, 0, 2]}, "no_rope_layers"),
    (
        SMOLLM3,
        {"use_sliding_window": False, "layer_types": [*SLIDES, "full_attention"]},
        "no sliding_window in use",
    ),
    (GRANITE, {"residual_multiplier": 0}, "residual_multiplier = 0"),
    (GRANITE, {"sliding_window": 3}, "sliding_window"),
    (GRANITE, {"architectures": ["GraniteForSequenceClassification"]}, "GraniteForCausalLM"),
    (COHERE, {"mlp_bias": True}, "mlp_bias"),
    (COHERE, {"sliding_window": 3}, "sliding_window"),
    (COHERE2, {"use_qk_norm": True}, "use_qk_norm"),
    (COHERE2, {"sliding_window": None}, "sliding_window null"),
    (COHERE2, {"layer_switch": 3}, "layer_switch = 3"),
    (COHERE2, {"rotary_pct": 0.5}, "rotary_pct = 0.5"),
    (COHERE2, {"use_parallel_block": False}, "use_parallel_block = False"),
    (COHERE2, {"layer_types": SLIDES[:1]}, "1 layer_types"),
    (GPT_NEOX, {"rope_theta": 500.0}, "rotary_emb_base = 10000.0 and rope_theta = 500.0"),
    (GPT_NEOX, {"rotary_pct": 0.0}, "rotary_pct = 0"),
    (GPT_NEOX, {"rotary_pct": 0.5}, "even head_dim"),
    (GPT_NEOX, {"num_key_value_heads": 2}, "num_key_value_heads = 2"),
    (STABLELM, {"qk_layernorm": True}, "qk_layernorm"),
    (STARCODER2, {"rms_norm_eps": 1e-5}, "rms_norm_eps"),
    (OPT, {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine"),
    (OPT, {"num_attention_heads": 3}, "num_attention_heads = 3"),
    (OPT, {"do_sample": True, "is_encoder_decoder": True}, "is_encoder_decoder"),
]


@pytest.mark.parametrize(("config", "options", "named"), REFUSED)
def test_refused_by_name(config: dict[str, Any], options: dict[str, Any], named: str) -> None:
    parse(architecture(config).Config, config)
    with pytest.raises(ReflError, match=named):
        parse(architecture(config).Config, config | options)


def test_what_was_left_out_is_refused_with_the_reason() -> None:
    assert not set(NOT_HERE) & set(NETS)
    for kind, why in NOT_HERE.items():
        with pytest.raises(
            ReflError, match=f"{kind}', which is not .* \\({re.escape(why)}\\): refl"
        ):
            architecture({"model_type": kind})
    with pytest.raises(ReflError, match="model_type 'nothing': refl knows llama"):
        architecture({"model_type": "nothing"})


# -- config.json of known checkpoints --------------------------------------------------------------

PUBLISHED: dict[str, tuple[Any, dict[str, Any]]] = {
    "Phi-4-mini": (
        phi3.Config,
        {
            "architectures": ["Phi3ForCausalLM"],
            "attention_bias": False,
            "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
            "embd_pdrop": 0.0,
            "full_attn_mod": 1,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "interpolate_factor": 1,
            "lm_head_bias": False,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "phi3",
            "num_attention_heads": 24,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 0.75,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0] * 48,
                "long_factor": [2.5] * 48,
            },
            "rope_theta": 10000.0,
            "sliding_window": 262144,
            "tie_word_embeddings": True,
            "vocab_size": 200064,
        },
    ),
    "SmolLM3-3B": (
        smollm3.Config,
        {
            "architectures": ["SmolLM3ForCausalLM"],
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "layer_types": ["full_attention"] * 36,
            "max_position_embeddings": 65536,
            "max_window_layers": 28,
            "model_type": "smollm3",
            "no_rope_layer_interval": 4,
            "no_rope_layers": [1, 1, 1, 0] * 9,
            "num_attention_heads": 16,
            "num_hidden_layers": 36,
            "num_key_value_heads": 4,
            "pretraining_tp": 2,
            "rope_scaling": None,
            "rope_theta": 5000000.0,
            "sliding_window": None,
            "use_sliding_window": False,
            "vocab_size": 128256,
        },
    ),
    "Command R7B": (
        cohere2.Config,
        {
            "architectures": ["Cohere2ForCausalLM"],
            "cache_implementation": "hybrid",
            "head_dim": 128,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "layer_switch": 4,
            "logit_scale": 0.25,
            "model_type": "cohere2",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "order_of_interleaved_layers": "local_attn_first",
            "position_embedding_type": "rope_gptj",
            "rope_scaling": None,
            "rope_theta": 50000,
            "rotary_pct": 1.0,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
            "use_embedding_sharing": True,
            "use_gated_activation": True,
            "use_parallel_block": True,
            "use_parallel_embedding": False,
            "vocab_size": 256000,
        },
    ),
    "OPT-350M": (
        opt.Config,
        {
            "_remove_final_layer_norm": False,
            "activation_dropout": 0.0,
            "activation_function": "relu",
            "architectures": ["OPTForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 2,
            "do_layer_norm_before": False,
            "dropout": 0.1,
            "eos_token_id": 2,
            "ffn_dim": 4096,
            "hidden_size": 1024,
            "init_std": 0.02,
            "layerdrop": 0.0,
            "max_position_embeddings": 2048,
            "model_type": "opt",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "pad_token_id": 1,
            "prefix": "</s>",
            "use_cache": True,
            "vocab_size": 50272,
            "word_embed_proj_dim": 512,
        },
    ),
    "Pythia 160M": (
        gpt_neox.Config,
        {
            "architectures": ["GPTNeoXForCausalLM"],
            "hidden_act": "gelu",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "max_position_embeddings": 2048,
            "model_type": "gpt_neox",
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "rotary_emb_base": 10000,
            "rotary_pct": 0.25,
            "use_parallel_residual": True,
            "vocab_size": 50304,
        },
    ),
}
"""Their structure, by hand; values that change nothing here are left out."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_read(name: str) -> None:
    config, said = PUBLISHED[name]
    c = parse(config, said)
    if name == "Phi-4-mini":
        assert c.rope.width == 96 and c.windows == (262144,) * 32
    if name == "SmolLM3-3B":
        assert [i for i, rotary in enumerate(c.rotary) if not rotary] == list(range(3, 36, 4))
    if name == "Command R7B":
        assert c.windows == (4096, 4096, 4096, None) * 8
    if name == "Pythia 160M":
        assert c.rope.width == 16
    if name == "OPT-350M":
        assert not c.norm_at_end and c.embedded == 512


def test_every_newer_decoder_is_tried_here() -> None:
    """(This file's nets are among those of test_newer.py.)"""
    ours = {c["model_type"] for c in (*NEW, GPT_NEOX, STARCODER2, STABLELM, OPT)}
    assert ours <= set(NEWER)
