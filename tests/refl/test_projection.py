"""Vocabulary projection: small cases by hand in whole numbers; on every net with a direct way, what
the neurons of a block add up to, and its heads, against the block's own contribution written out in
NumPy from the checkpoint's tensors.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import refl
from refl.cli import main
from refl.errors import ReflError
from refl.latent.projection import project
from refl.verification.random_models import (
    ALBERT,
    ARCHITECTURES,
    BERT,
    DEIT,
    GEMMA2,
    GPT2,
    LLAMA,
    MIXTRAL,
    T5,
    VIT,
    random_model,
    with_weights,
)

IDS, PREFIX = [3, 1, 4, 1, 5], [0, 2, 7]

HEADS = {
    name: ("lm_head.weight", "model.norm")
    for name in ARCHITECTURES
    if name not in ("gpt2", "phi", "t5", "vit", "deit", "bert", "roberta", "albert")
} | {
    "gpt2": ("transformer.wte.weight", "transformer.ln_f"),
    "phi": ("lm_head.weight", "model.final_layernorm"),
    "t5": ("shared.weight", "decoder.final_layer_norm"),
    "vit": ("classifier.weight", "vit.layernorm"),
}
"""model_type -> its unembedding, and its final norm."""

TIED = ("gemma2", "gemma3_text")  # by default there
LAYER_NORMS = ("gpt2", "phi", "vit")
OFFSET = {"gemma2": 1.0, "gemma3_text": 1.0}


def picture(model: refl.Model) -> Any:
    shape = (model.config.num_channels, *model.config.image)
    return np.random.default_rng(1).standard_normal(shape)


def item(model: refl.Model) -> Any:
    return picture(model) if model.takes_images else IDS


class Run:
    """A recorded run in float64, and the norms of it in plain NumPy."""

    def __init__(self, name: str, model: refl.Model) -> None:
        self.name, self.model = name, model
        self.decoder = PREFIX if name == "t5" else None
        trace, _ = model.trace([item(model)], decoder=self.decoder)
        self.values = {site: np.asarray(v.array)[0] for site, v in trace.values.items()}
        self.records = {r.output.site: r for r in trace.records}
        self.row = 0 if model.takes_images else len(self.decoder or IDS) - 1

    def scale(self, norm: str) -> float:
        """1/std of a norm at the explained token."""
        x = self.values[f"{norm}.input"][self.row]
        if self.name in LAYER_NORMS:
            x = x - x.mean()
        eps = self.records[norm].attributes["norm_eps"]
        return float(1 / np.sqrt((x * x).mean() + eps))

    def weight(self, norm: str) -> Any:
        return OFFSET.get(self.name, 0.0) + self.model.weights[f"{norm}.weight"]

    def through_norm(self, norm: str, v: Any) -> Any:
        """As a linear map, scale and all."""
        if self.name in LAYER_NORMS:
            v = v - v.mean()
        return self.scale(norm) * self.weight(norm) * v

    def contribution(self, v: Any) -> Any:
        """What a vector on the residual stream adds to the logits, the scale of this run kept."""
        table, norm = HEADS[self.name]
        if self.name in TIED:
            table = "model.embed_tokens.weight"
        u = self.model.weights[table] * (16**-0.5 if self.name == "t5" else 1.0)
        return u @ self.through_norm(norm, v)

    def behind(self, site: str) -> str | None:
        """The norm behind a half-block."""
        if self.name not in ("olmo2", *TIED):
            return None
        kind = "feedforward" if ".mlp" in site else "attention"
        return f"{site.rpartition('.layers.')[0]}.layers.1.post_{kind}_layernorm"

    def added(self, site: str) -> tuple[Any, float]:
        """What a linear layer adds to the stream, its bias aside; and the scales on its way."""
        record, norm = self.records[site], self.behind(site)
        x = self.values[f"{site}.input"][self.row]
        v, scale = x @ record.operands[1].array.T, self.scale(HEADS[self.name][1])
        return (
            (v, scale) if norm is None else (self.through_norm(norm, v), scale * self.scale(norm))
        )


def agree(sums: Any, expected: Any, parts: Any) -> None:
    """To a few roundings of the sum of |terms|."""
    assert (
        np.abs(sums - expected).max() <= 200 * np.finfo(np.float64).eps * np.abs(parts).sum(0).max()
    )


@pytest.mark.parametrize("name", [n for n in HEADS if n not in ("mixtral", "qwen3_moe")])
def test_neurons_add_up_to_the_mlp(name: str) -> None:
    model = random_model(ARCHITECTURES[name], 3)
    run, mlp = Run(name, model), model.components.mlps[-1]
    v, scale = run.added(mlp.output)
    a = run.values[mlp.neurons][run.row]
    parts = np.stack(
        [scale * a[n] * project(model, f"{mlp.label}.N{n}").logits for n in range(mlp.width)]
    )
    agree(parts.sum(0), run.contribution(v), parts)


@pytest.mark.parametrize("name", HEADS)
def test_heads_add_up_to_the_attention(name: str) -> None:
    model = random_model(ARCHITECTURES[name], 4)
    run = Run(name, model)
    for attention in (
        model.components.attentions[-2:] if name == "t5" else model.components.attentions[-1:]
    ):
        v, scale = run.added(attention.output)
        parts = np.stack(
            [
                scale
                * project(
                    model, f"{attention.label}.H{h}", item=item(model), decoder=run.decoder
                ).logits
                for h in range(attention.heads)
            ]
        )
        agree(parts.sum(0), run.contribution(v), parts)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_neurons_of_experts_add_up(name: str) -> None:
    """With their routing weights, over the experts that the token chose."""
    model = random_model(ARCHITECTURES[name], 5)
    run, parts, expected = Run(name, model), [], 0.0
    scale = run.scale("model.norm")
    block = model.components.blocks[-1].label
    for mlp in model.components.neurons_of(block):
        path = mlp.tokens.removesuffix(".tokens") if mlp.tokens else ""
        if f"{path}.tokens" not in run.records:
            continue
        tokens = run.records[f"{path}.tokens"].attributes["index"][0]
        if run.row not in tokens:
            continue
        n = tokens.index(run.row)
        gate = run.values[f"{path}.routing_weight"][n, 0]
        expected = expected + run.contribution(gate * run.values[mlp.output][n])
        parts += [
            scale * gate * a * project(model, f"{mlp.label}.N{i}").logits
            for i, a in enumerate(run.values[mlp.neurons][n])
        ]
    assert len(parts) > 8
    agree(np.sum(parts, axis=0), expected, np.stack(parts))


def test_an_expert_that_no_token_of_the_plainest_input_chose() -> None:
    model = random_model(MIXTRAL, 6)
    u = model.weights["lm_head.weight"] * model.weights["model.norm.weight"]
    for e in range(6):
        w = model.weights[f"model.layers.0.block_sparse_moe.experts.{e}.w2.weight"]
        found = project(model, f"L0.E{e}.N2").logits
        np.testing.assert_allclose(found, u @ w[:, 2], rtol=0, atol=1e-13)


# -- by hand ---------------------------------------------------------------------------------------


def whole_numbers(
    config: dict[str, Any], names: dict[str, str]
) -> tuple[refl.Model, dict[str, Any]]:
    """A model in which these tensors hold small whole numbers; and the tensors as lists."""
    model, random = random_model(config, 0), np.random.default_rng(9)
    drawn = {
        short: random.integers(-4, 5, model.weights[name].shape) for short, name in names.items()
    }
    changed = {names[short]: w.astype(np.float64) for short, w in drawn.items()}
    return with_weights(model, **changed), {short: w.tolist() for short, w in drawn.items()}


def test_a_neuron_of_llama_by_hand() -> None:
    """Exactly: sums of whole numbers; of two equal ones the first comes first."""
    model, w = whole_numbers(
        LLAMA,
        {
            "u": "lm_head.weight",
            "n": "model.norm.weight",
            "d": "model.layers.0.mlp.down_proj.weight",
        },
    )
    p, raw = project(model, "L0.N5", k=3), project(model, "L0.N5", norm=False, k=99)
    exact = [
        sum(u * n * d[5] for u, n, d in zip(row, w["n"], w["d"], strict=True)) for row in w["u"]
    ]
    plain = [sum(u * d[5] for u, d in zip(row, w["d"], strict=True)) for row in w["u"]]
    assert p.logits.tolist() == exact
    assert raw.logits.tolist() == plain
    order = sorted(range(17), key=lambda i: (-exact[i], i))
    assert [(e.id, e.logit) for e in p.top] == [(i, exact[i]) for i in order[:3]]
    order = sorted(range(17), key=lambda i: (plain[i], i))
    assert [(e.id, e.logit) for e in raw.bottom] == [(i, plain[i]) for i in order]
    assert len(raw.top) == 17


def test_of_equal_ones_the_first_comes_first() -> None:
    model = random_model(LLAMA, 0)
    zeros = np.zeros_like(model.weights["lm_head.weight"])
    p = project(with_weights(model, **{"lm_head.weight": zeros}), "L0.N5", k=4)
    assert [e.id for e in p.top] == [e.id for e in p.bottom] == [0, 1, 2, 3]


def test_a_neuron_of_gpt2_by_hand() -> None:
    """Its weights are stored (I, O), its norm takes off the mean, and its table is tied."""
    model, w = whole_numbers(
        GPT2,
        {
            "u": "transformer.wte.weight",
            "n": "transformer.ln_f.weight",
            "d": "transformer.h.1.mlp.c_proj.weight",
        },
    )
    row = w["d"][7]  # (I, O)
    centered = [16 * v - sum(row) for v in row]  # 16 features: times 16 it is whole
    exact = [
        sum(u * n * v for u, n, v in zip(us, w["n"], centered, strict=True)) / 16 for us in w["u"]
    ]
    assert project(model, "L1.N7").logits.tolist() == exact
    plain = [float(sum(u * v for u, v in zip(us, row, strict=True))) for us in w["u"]]
    assert project(model, "L1.N7", norm=False).logits.tolist() == plain


def test_the_norm_behind_a_half_block_counts_with_the_final_norm_and_without() -> None:
    path = "model.layers.0"
    model, w = whole_numbers(
        GEMMA2,
        {
            "u": "model.embed_tokens.weight",
            "n": "model.norm.weight",
            "own": f"{path}.post_feedforward_layernorm.weight",
            "d": f"{path}.mlp.down_proj.weight",
        },
    )
    v = [(1 + own) * d[3] for own, d in zip(w["own"], w["d"], strict=True)]
    p, raw = project(model, "L0.N3"), project(model, "L0.N3", norm=False)
    assert raw.logits.tolist() == [sum(a * b for a, b in zip(us, v, strict=True)) for us in w["u"]]
    assert p.logits.tolist() == [
        sum(a * (1 + n) * b for a, n, b in zip(us, w["n"], v, strict=True)) for us in w["u"]
    ]
    assert any("post_feedforward_layernorm" in note for note in raw.notes)
    assert any("before the soft cap" in note for note in p.notes)
    assert not any(
        "before the soft cap" in note for note in project(random_model(LLAMA, 0), "L0.N3").notes
    )


def test_the_two_heads_of_deit_are_averaged() -> None:
    names = {
        "c": "cls_classifier.weight",
        "t": "distillation_classifier.weight",
        "n": "deit.layernorm.weight",
        "d": "deit.encoder.layer.1.output.dense.weight",
    }
    model, w = whole_numbers(DEIT, names)
    row = [d[2] for d in w["d"]]
    centered = [16 * v - sum(row) for v in row]
    both = [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(w["c"], w["t"], strict=True)]
    exact = [
        sum(u * n * v for u, n, v in zip(us, w["n"], centered, strict=True)) / 32 for us in both
    ]
    assert project(model, "L1.N2").logits.tolist() == exact


def test_outputs_at_every_token_ask_for_a_position() -> None:
    model = random_model(LLAMA | {"architectures": ["LlamaForQuestionAnswering"]}, 2)
    with pytest.raises(refl.ReflError, match="give position"):
        project(model, "L0.H1", item=IDS)
    assert project(model, "L0.H1", item=IDS, position=1).position == 1


def test_a_head_at_a_position() -> None:
    """From the recorded context and the tensors; grouped queries: head 3 has its own columns."""
    model = random_model(LLAMA, 2)
    trace, _ = model.trace([IDS])
    c = trace.values["model.layers.0.self_attn.context"].array[0, 3]
    w = model.weights["model.layers.0.self_attn.o_proj.weight"][:, 12:16]
    u = model.weights["lm_head.weight"] * model.weights["model.norm.weight"]
    for position, at in ((None, 4), (-1, 4), (0, 0), (-4, 1)):
        p = project(model, "L0.H3", item=IDS, position=position)
        np.testing.assert_allclose(p.logits, u @ (w @ c[at]), rtol=0, atol=1e-13)
        assert p.position == at
    assert p.token == "1"


ROTARY = sorted(set(HEADS) - {"gpt2", "t5", "vit"})
"""Values know no position there: of a text of one token the first block's context is its value."""


@pytest.mark.parametrize("name", [*ROTARY, "t5"])
def test_weights_alone_are_a_text_of_one_token(name: str) -> None:
    """But for the scale of the norm before the attention, and for biases."""
    model = random_model(ARCHITECTURES[name], 8)
    biases = {n: 0 * w for n, w in model.weights.items() if n.endswith(".bias")}
    model = with_weights(model, **biases)
    label = "decoder.L0" if name == "t5" else "L0"
    how = {"decoder": [7]} if name == "t5" else {}
    trace, _ = model.trace([[7]], decoder=[7] if name == "t5" else None)
    scale = 1.0
    if name != "olmo2":  # no norm there
        end = "decoder.block.0.layer.0.layer_norm" if name == "t5" else "layers.0.input_layernorm"
        norm = next(r for r in trace.records if r.output.site.endswith(end))
        x = np.asarray(norm.operands[0].array)[0, 0]
        x = x - x.mean() if name in LAYER_NORMS else x
        scale = 1 / np.sqrt((x * x).mean() + norm.attributes["norm_eps"])
    for h in range(model.components.attentions[0].heads):
        run_logits = project(model, f"{label}.H{h}", item=[7], **how).logits
        alone = project(model, f"{label}.H{h}", token=7)
        assert alone.alone and alone.token == "7" and alone.position is None
        np.testing.assert_allclose(scale * alone.logits, run_logits, rtol=0, atol=1e-12)


def test_weights_alone_in_gpt2_by_hand() -> None:
    """Its values are the last third of one layer; positions are left out."""
    names = {
        "e": "transformer.wte.weight",
        "n": "transformer.h.1.ln_1.weight",
        "qkv": "transformer.h.1.attn.c_attn.weight",
        "o": "transformer.h.1.attn.c_proj.weight",
    }
    model, w = whole_numbers(GPT2, names)
    e = w["e"][5]
    x = [n * (16 * v - sum(e)) for n, v in zip(w["n"], e, strict=True)]
    c = [sum(x[i] * w["qkv"][i][32 + 8 + d] for i in range(16)) for d in range(4)]
    v = [sum(c[d] * w["o"][8 + d][i] for d in range(4)) for i in range(16)]
    exact = [sum(u * o for u, o in zip(us, v, strict=True)) / 16 for us in w["e"]]
    assert project(model, "L1.H2", norm=False, token=5).logits.tolist() == exact


def test_a_head_of_an_edited_model() -> None:
    model = random_model(LLAMA, 2).with_edits({"L0.H3": refl.off, "L0.H1": refl.scale(2.0)})
    assert not project(model, "L0.H3", item=IDS).logits.any()
    twice = project(random_model(LLAMA, 2), "L0.H1", item=IDS).logits * 2
    np.testing.assert_array_equal(project(model, "L0.H1", item=IDS).logits, twice)


def test_a_dictionary_of_it() -> None:
    p = project(random_model(VIT | {"num_labels": 3}, 0), "L1.N3", k=2)
    said = p.as_dict()
    assert said["name"] == "L1.N3" and said["norm"] is True and len(said["top"]) == 2
    assert said["top"][0] == {"token": p.top[0].token, "id": p.top[0].id, "logit": p.top[0].logit}
    assert repr(p).startswith("<Projection of L1.N3 with norm: ")


# -- what has none ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "part", "words"),
    [
        (BERT, "L0.N1", "stands on the residual stream itself"),
        (BERT, "L1.H1", "stands on the residual stream itself"),
        (BERT, "L1.N1", "cls.predictions.transform.dense"),
        (BERT | {"architectures": ["BertForSequenceClassification"]}, "L1.N1", "bert.pooler.dense"),
        (BERT | {"architectures": ["BertModel"]}, "L1.N1", "has no head"),
        (VIT | {"architectures": ["ViTModel"]}, "L1.N1", "has no head"),
        (ALBERT, "L2.1.N1", "predictions.dense"),
        (ALBERT, "L0.0.N1", "stands on the residual stream itself"),
        (T5, "encoder.L1.N1", "EncDecAttention.k"),
        (T5, "encoder.L0.H1", "EncDecAttention.k"),
        (LLAMA, "L1", "is a block"),
        (LLAMA, "L2.N0", "names no neuron"),
        (LLAMA, "L1.N20", "L1 has 20 neurons"),
    ],
)
def test_what_has_no_projection(config: dict[str, Any], part: str, words: str) -> None:
    with pytest.raises(ReflError, match=words):
        project(random_model(config, 0), part, item=None if ".N" in part else IDS)


@pytest.mark.parametrize(
    ("part", "how", "words"),
    [
        ("L1.N1", {"item": IDS}, "leave item out"),
        ("L1.N1", {"position": 1}, "leave position out"),
        ("L1.N1", {"token": 1}, "leave token out"),
        ("L1.H1", {"token": 1, "item": IDS}, "leave item out"),
        ("L1.H1", {"token": 99}, "outside the vocabulary"),
        ("L1.H1", {}, "give item"),
        ("L1.H1", {"item": IDS, "position": 5}, "expected 0 to 4, or -5 to -1"),
        ("L1.H1", {"item": IDS, "position": "last"}, "a whole number"),
        ("L1.H1", {"item": [99]}, "outside the vocabulary"),
        ("L1.N1", {"k": 0}, "a whole number above 0"),
        ("L1.N1", {"norm": "no"}, "True or False"),
        (7, {}, "names no neuron"),
    ],
)
def test_bad_arguments(part: Any, how: dict[str, Any], words: str) -> None:
    with pytest.raises(ReflError, match=words):
        project(random_model(LLAMA, 0), part, **how)


# -- the command -----------------------------------------------------------------------------------


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """As the function says it, as a table and as JSON."""
    model, text = refl.load(), "the keys to the cabinet"
    assert (
        main(["project", "L3.H1", "--text", text, "--position", "1", "--top", "3", "--json"]) == 0
    )
    expected = project(model, "L3.H1", item=text, position=1, k=3).as_dict()
    assert json.loads(capsys.readouterr().out) == expected
    assert main(["project", "L2.N17", "--no-norm", "--top", "2"]) == 0
    said, p = capsys.readouterr().out, project(model, "L2.N17", norm=False, k=2)
    assert "without the weight of model.norm, the final norm" in said
    for entry in (*p.top, *p.bottom):
        assert f"{entry.logit:+.4f}" in said and entry.token in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["L3.H1"], "give --text"),
        (["L3.N1", "--text", "the"], "leave --text out"),
        (["L3.H1", "--text", "the keys", "--position", "7"], "--position 7 is outside"),
        (["L3.N1", "--top", "0"], "--top is 0"),
        (["L3.H1", "--token", "keys", "--text", "the"], "leave --text out"),
        (["L3.N1", "--token", "keys"], "leave --token out"),
        (["L9.N1"], "names no neuron"),
        (["\x1b[31m"], "names no neuron"),
    ],
)
def test_the_command_refuses(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["project", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and "\x1b" not in said


def test_a_token_is_none_of_a_picture_and_none_that_an_encoder_gives() -> None:
    with pytest.raises(ReflError, match="takes pictures"):
        project(random_model(VIT, 0), "L0.H1", token=1)
    with pytest.raises(ReflError, match="no token of the vocabulary stands"):
        project(random_model(T5, 0), "decoder.L0.cross.H1", token=1)
