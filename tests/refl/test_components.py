"""The names of neurons, heads and blocks, and where the net has them, on every architecture."""

from __future__ import annotations

import json
import pickle
import re
from typing import Any

import pytest

from refl import anatomy
from refl.components import Components, labels_of, names_of, site_of, size
from refl.errors import ReflError
from refl.verification.random_models import ALBERT, ARCHITECTURES, T5, VIT, random_model
from tests.support.parts import asked, item_of, model_of

on_every_net = pytest.mark.parametrize("name", ARCHITECTURES)

LABELS = {
    "t5": ["encoder.L0", "encoder.L1", "decoder.L0", "decoder.L1", "decoder.L2"],
    "albert": ["L0", "L1", "L2"],
    "qwen3_moe": ["L0", "L1", "L2"],
}
"""Where they are not L0 and L1."""


def activations(name: str) -> dict[str, Any]:
    """Site -> the activation of one example, by every name."""
    model = model_of(name)
    how = asked(model)
    trace = model.trace([item_of(model)], how["position"], how["decoder"])[0]
    return {site: value.array[0] for site, value in trace.values.items()}


@on_every_net
def test_every_part_is_a_site_of_its_size(name: str) -> None:
    parts, arrays = model_of(name).components, activations(name)
    for block in parts.blocks:
        width = arrays[block.site].shape[-1]
        rows = arrays[block.site].shape[0]
        for mlp in parts.neurons_of(block.label):
            if mlp.tokens is None or mlp.tokens in arrays:
                rows_ = rows if mlp.tokens is None else arrays[mlp.tokens].shape[0]
                assert arrays[mlp.neurons].shape == (rows_, mlp.width)
                assert arrays[mlp.output].shape == (rows_, width)
        for a in parts.attentions:
            if a.block == block.label:
                assert arrays[a.context].shape[:2] == (a.heads, rows)
                assert arrays[a.output].shape == (rows, width)
                assert a.heads * arrays[a.context].shape[2] == arrays[a.query].shape[-1]
                assert arrays[a.key].shape == arrays[a.value].shape


@on_every_net
def test_what_is_counted(name: str) -> None:
    """By config.json, which the net was made from."""
    config, parts = ARCHITECTURES[name], model_of(name).components
    labels = LABELS.get(name, ["L0", "L1"])
    assert [b.label for b in parts.blocks] == labels
    heads = config.get("num_attention_heads") or config.get("n_head") or config["num_heads"]
    assert {a.heads for a in parts.attentions} == {heads}
    experts = config.get("num_local_experts") or config.get("num_experts")
    if experts is None:
        width = next(
            config[key] for key in ("intermediate_size", "n_inner", "d_ff") if config.get(key)
        )
        assert {m.width for m in parts.mlps} == {width}
    else:
        dense = config.get("mlp_only_layers", [])
        wanted = sum(1 if i in dense else experts for i in range(len(labels)))
        assert len(parts.mlps) == wanted
        assert len([m for m in parts.mlps if m.tokens]) == wanted - len(dense)


@on_every_net
def test_names_round_trip(name: str) -> None:
    parts = model_of(name).components
    for owner in (*parts.mlps, *parts.attentions):
        names = list(names_of(owner))
        assert len(names) == size(owner)
        for number, one in enumerate(names):
            part = parts.part(one)
            assert (part.name, part.number, part.block) == (one, number, owner.block)
            assert part.site == site_of(owner)
            assert part.kind == ("neuron" if ".N" in one else "head")
    for block in parts.blocks:
        part = parts.part(block.label)
        assert (part.kind, part.site, part.number) == ("block", block.site, None)
    names = [one for owner in (*parts.mlps, *parts.attentions) for one in names_of(owner)]
    assert len(set(names)) == len(names)


@on_every_net
def test_written_and_read(name: str) -> None:
    parts = model_of(name).components
    assert Components.from_dict(json.loads(json.dumps(parts.as_dict()))) == parts
    with pytest.raises((TypeError, KeyError)):
        Components.from_dict({"blocks": [{"label": "L0"}], "mlps": [], "attentions": []})


def test_a_pickled_explanation_has_them() -> None:
    model = model_of("llama")
    e = pickle.loads(pickle.dumps(model.explain([3, 1, 4], keep=())))
    assert e.components == model.components


@pytest.mark.parametrize("name", ["gpt2", "qwen3_moe", "t5", "vit"])
def test_an_index_is_that_of_the_activation(name: str) -> None:
    parts, arrays = model_of(name).components, activations(name)
    neuron = parts.part(f"{parts.mlps[0].label}.N3") if name != "qwen3_moe" else None
    if neuron is not None:
        z = arrays[neuron.site]
        assert (z[neuron.index] == z[:, 3]).all() and z[neuron.index].shape == z.shape[:1]
    head = parts.part(f"{parts.attentions[-1].label}.H1")
    z = arrays[head.site]
    assert (z[head.index] == z[1]).all()
    block = parts.part(parts.blocks[0].label)
    z = arrays[block.site]
    assert z[block.index].shape == z.shape


# -- strange nets ----------------------------------------------------------------------------------


def test_experts_that_no_token_chooses_have_names_too() -> None:
    parts = model_of("mixtral").components
    assert [m.label for m in parts.mlps] == [f"L{i}.E{e}" for i in (0, 1) for e in range(6)]
    one = parts.part("L1.E5.N11")
    assert one.site == "model.layers.1.block_sparse_moe.experts.5.w2.input"
    moe = model_of("qwen3_moe").components
    assert [m.label for m in moe.neurons_of("L1")] == ["L1"]  # config.json: mlp_only_layers
    assert [m.label for m in moe.neurons_of("L2")] == [f"L2.E{e}" for e in range(7)]
    assert moe.neurons_of("L9") == []


def test_an_encoder_decoder() -> None:
    parts = model_of("t5").components
    labels = [a.label for a in parts.attentions]
    assert labels == [
        *["encoder.L0", "encoder.L1"],
        *(f"decoder.L{i}{cross}" for i in range(3) for cross in ("", ".cross")),
    ]
    assert [a.cross for a in parts.attentions] == [label.endswith("cross") for label in labels]
    cross = next(a for a in parts.attentions if a.label == "decoder.L1.cross")
    path = "decoder.block.1.layer.1.EncDecAttention"
    assert (cross.query, cross.key, cross.value) == (f"{path}.q", f"{path}.k", f"{path}.v")
    assert parts.part("decoder.L1.cross.H2").site == f"{path}.context"
    assert parts.part("decoder.L1.H2").site == "decoder.block.1.layer.0.SelfAttention.context"
    one = random_model(T5 | {"num_layers": 1, "num_decoder_layers": 1}, 0).components
    assert [b.label for b in one.blocks] == ["encoder.L0", "decoder.L0"]


def test_several_layers_in_a_block() -> None:
    parts = model_of("albert").components
    assert [m.label for m in parts.mlps] == [f"L{i}.{j}" for i in range(3) for j in range(2)]
    assert [a.label for a in parts.attentions] == [m.label for m in parts.mlps]
    site = parts.part("L2.1.N5").site
    assert site == "albert.encoder.layer.2.albert_layers.1.ffn_output.input"
    with pytest.raises(ReflError, match="names no neuron, head or block"):
        parts.part("L2.N5")
    single = random_model(ALBERT | {"inner_group_num": 1}, 0).components
    assert [m.label for m in single.mlps] == ["L0", "L1", "L2"]


def test_a_linear_layer_that_makes_all_three() -> None:
    a = model_of("gpt2").components.attentions[1]
    path = "transformer.h.1.attn"
    assert (a.query, a.key, a.value) == tuple(
        f"{path}.{one}.flat" for one in ("query", "key", "value")
    )
    assert (a.output, a.cross) == (f"{path}.c_proj", False)


def test_a_picture_of_many_patches_has_heads() -> None:
    """Attention of so many pairs is not held where it runs by itself."""
    parts = random_model(VIT | {"image_size": [40, 40], "patch_size": [4, 4]}, 0).components
    assert [(a.label, a.heads) for a in parts.attentions] == [("L0", 4), ("L1", 4)]


@pytest.mark.parametrize("name", ["llama", "bert", "vit"])
def test_one_block_and_one_head(name: str) -> None:
    changed = {"num_hidden_layers": 1, "num_attention_heads": 1}
    changed |= {"num_key_value_heads": 1} if name == "llama" else {}
    parts = random_model(ARCHITECTURES[name] | changed, 0).components
    assert [b.label for b in parts.blocks] == ["L0"]
    assert list(names_of(parts.attentions[0])) == ["L0.H0"]


def test_labels_of_paths() -> None:
    assert labels_of(["a.0", "a.3"]) == {"a.0": "L0", "a.3": "L1"}
    both = ["encoder.block.0", "decoder.block.0", "decoder.block.1"]
    assert list(labels_of(both).values()) == ["encoder.L0", "decoder.L0", "decoder.L1"]
    assert labels_of(["encoder.layer.0"]) == {"encoder.layer.0": "L0"}


def test_kinds_of_sites() -> None:
    """What anatomy.sites has is what components have."""
    for name in ARCHITECTURES:
        model = model_of(name)
        parts = model.components
        assert anatomy.sites(model, "residual") == [b.site for b in parts.blocks]
        assert anatomy.sites(model, "attention") == [a.output for a in parts.attentions]
        tops = [m.tokens.partition(".experts.")[0] if m.tokens else m.output for m in parts.mlps]
        assert anatomy.sites(model, "mlp") == list(dict.fromkeys(tops))
    with pytest.raises(ReflError, match="unknown kind of component 'head': expected residual"):
        anatomy.sites(model_of("llama"), "head")


def test_they_are_asked_once_and_whatever_the_edits() -> None:
    model = random_model(ARCHITECTURES["llama"], 5)
    assert model.components is model.components
    edited = model.with_edits({"L0.N1": lambda z: 0 * z})
    assert edited.components == model.components


# -- strange names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("L1.N20", "L1.N20 is not there: L1 has 20 neurons, L1.N0 to L1.N19"),
        ("L0.H4", "L0.H4 is not there: L0 has 4 heads, L0.H0 to L0.H3"),
        ("L2", "names no neuron, head or block .* expected one such as L1.N0, L1.H0, L1"),
        ("L2.N0", "nearest: L1.N0"),
        ("l1.n3", "names no neuron"),
        ("L1.N-1", "names no neuron"),
        ("L1.N1.5", "names no neuron"),
        ("L1.N", "names no neuron"),
        ("L01.N1", "names no neuron"),
        ("N3", "names no neuron"),
        ("", "^'' names no neuron"),
        (" ", "^' ' names no neuron"),
        ("L1.N1234567890", "names no neuron"),
        ("L1.E0.N1", "names no neuron"),
        ("decoder.L1.N1", "names no neuron"),
        ("model.layers.1", "names no neuron"),
        ("L1.N\x1b[31m3", r"names no neuron"),
        ("L1.N٣", "names no neuron"),
        ("L1.N3\n", "names no neuron"),
        (3, "3 names no neuron"),
        (None, "None names no neuron"),
    ],
)
def test_strange_names(name: Any, sentence: str) -> None:
    with pytest.raises(ReflError, match=sentence) as reason:
        model_of("llama").components.part(name)
    assert str(reason.value).isprintable() and len(str(reason.value)) < 400


def test_a_name_of_another_spelling_is_another_name() -> None:
    """L1.N03 would be neuron 3 under two names, and a ranking could not be looked up by them."""
    with pytest.raises(ReflError, match="names no neuron"):
        model_of("llama").components.part("L1.N03")
    assert re.fullmatch(r"L1\.N3", model_of("llama").components.part("L1.N3").name)


def test_an_empty_name_is_quoted() -> None:
    with pytest.raises(ReflError, match=r"^'' names no neuron"):
        random_model(ARCHITECTURES["llama"], 0).components.part("")
