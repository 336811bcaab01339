"""BERT, RoBERTa and ALBERT: masked tokens and classes, on random models and on a real checkpoint.
(transformers stands beside them in tests/peers/test_encoders.py.)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import Backend
from checkpoints import checkpoint
from surrogate_truth import EXACT, VARIANT, Truth, apart

import refl
from refl.cli import main
from refl.errors import ReflError
from refl.io.safetensors import write_safetensors
from refl.model import Model, architecture
from refl.nets.config import parse
from refl.show.page import html
from refl.trace import Trace
from refl.verification.definitions import surrogate
from refl.verification.random_models import (
    ALBERT,
    BERT,
    LLAMA,
    ROBERTA,
    moved,
    random_model,
    with_weights,
)

MASK = 4
"""Id of the mask token of the random models."""

CLASSES = {"id2label": {"0": "no", "1": "yes", "2": "maybe"}}


def classifier(config: dict[str, Any]) -> dict[str, Any]:
    return (
        config
        | CLASSES
        | {
            "architectures": [
                config["architectures"][0].replace("ForMaskedLM", "ForSequenceClassification")
            ]
        }
    )


NETS: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "bert, untied, relu": BERT
    | {"tie_word_embeddings": False, "hidden_act": "relu", "num_attention_heads": 1},
    "bert, classes": classifier(BERT),
    "roberta": ROBERTA,
    "roberta, untied, silu": ROBERTA
    | {"tie_word_embeddings": False, "hidden_act": "silu", "pad_token_id": 3},
    "roberta, classes": classifier(ROBERTA),
    "albert": ALBERT,
    "albert, one group, erf": ALBERT
    | {"num_hidden_groups": 1, "inner_group_num": 1, "hidden_act": "gelu", "embedding_size": 20},
    "albert, classes": classifier(ALBERT),
}

TEXT = [2, 7, MASK, 1, 7, 3]
"""With a token twice, and RoBERTa's padding token among the others."""


def model_of(name: str, seed: int = 3, dtype: str = "float64") -> Model:
    return replace(random_model(NETS[name], seed, dtype), mask_id=MASK)


# -- a real checkpoint -----------------------------------------------------------------------------


def test_rxnmapper_gives_its_golden_outputs() -> None:
    """Logits, what leaves each of the twelve layers, and every attention weight:
    float64 of transformers.
    """
    folder = checkpoint("rxnmapper_albert")
    with np.load(folder / "golden.npz") as stored:
        ids, logits, hidden, attention = (
            stored[name] for name in ("input_ids", "logits", "hidden", "attn")
        )
    model = refl.load(folder, dtype="float64")
    assert model.task == "masked-token"
    assert apart(model.logits(ids[0]), logits[0]) < 1e-10
    e = model.explain(ids[0], position=3, keep="albert.encoder.layer.*")
    for i, (states, weights) in enumerate(zip(hidden, attention, strict=True)):
        assert apart(e.activation(f"albert.encoder.layer.{i}"), states[0]) < 1e-10
        assert (
            apart(
                e.activation(f"albert.encoder.layer.{i}.albert_layers.0.attention.probabilities"),
                weights[0],
            )
            < 1e-10
        )


def test_rxnmapper_guesses_a_masked_atom() -> None:
    """Text with the mask token as it is written;
    the account closes on all twelve runs of the one layer.
    """
    model = refl.load(checkpoint("rxnmapper_albert"), dtype="float64")
    e = model.explain("CC(=O)O[MASK]C>>CCO", "attnlrp", keep=(), audit=True)
    assert e.tokens[model.encode("CC(=O)O[MASK]C>>CCO").index(model.mask_id)] == "[MASK]"
    assert e.target == e.candidates[0].token == "C"
    closes(e)


# -- relevance against the surrogate ---------------------------------------------------------------


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("name", NETS)
def test_relevance_is_activation_times_surrogate_gradient(name: str, method: str) -> None:
    """At every operation: the embeddings, each block, scores and probabilities."""
    assert deviation(model_of(name), lambda site: True, method) < 1e-12


@pytest.mark.parametrize("name", NETS)
def test_attnlrp_tends_to_the_surrogate(name: str) -> None:
    """The paper's form at eps = 1e-14, at the embeddings and at every block."""
    assert deviation(model_of(name), is_stage, "attnlrp", eps=1e-14) < 1e-9


def is_stage(site: str) -> bool:
    return site.endswith(
        (
            "_embeddings",
            "embeddings.LayerNorm",
            "mapping_in",
            ".output.LayerNorm",
            "full_layer_layer_norm",
        )
    )


def deviation(model: Model, wanted: Callable[[str], bool], method: str, **how: Any) -> float:
    """The largest over the sites of |R - activation * gradient| / max |...|."""
    truth = Truth(model, TEXT)
    unmoved = surrogate.logits(model, TEXT, truth.around, variant=VARIANT[method])[0]
    assert apart(unmoved.real, truth.logits) < 1e-12
    assert len(truth.sites(wanted)) >= 5
    return truth.deviation(method, wanted, **how)


# -- the conservation ledger -----------------------------------------------------------------------


def closes(e: Any) -> None:
    """Every entry, and the whole account, to 8 units of roundoff of what was added up."""
    u, terms = e.ledger.roundoff, 0.0
    for entry in e.ledger:
        assert abs(entry.conservation_error) <= 8 * u * entry.rounding_scale, entry.site
        terms += float(entry.rounding_scale)
    assert abs(e.ledger.conservation_error) <= 8 * u * terms
    if e.seed == "logit" and e.against is None:
        assert e.explained == pytest.approx(e.logit)
    assert e.relevance.sum() == pytest.approx(
        e.ledger.tokens, rel=1e-4 if u > 1e-10 else 1e-9, abs=8 * u * terms
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "method", ["attnlrp", "attnlrp-gradient", "cp-lrp", "lrp-0", "input-x-gradient"]
)
@pytest.mark.parametrize("name", NETS)
def test_the_ledger_closes(name: str, method: str, dtype: str) -> None:
    model = model_of(name, seed=5, dtype=dtype)
    for keep in ((), "*"):
        closes(model.explain(TEXT, method, keep=keep, audit=True))


@pytest.mark.parametrize("name", NETS)
def test_what_positions_and_token_types_absorb_is_recorded_by_name(name: str) -> None:
    e = model_of(name).explain(TEXT)
    for role in ("position", "token_type"):
        entry = next(entry for entry in e.ledger if entry.site.endswith(f"{role}_embeddings"))
        assert set(entry.absorbed) == {role}
        assert e.ledger.absorbed[role] == entry.absorbed[role]
        assert abs(e.ledger.absorbed[role]) > 1e-3


@pytest.mark.parametrize("name", [name for name in NETS if "classes" in name])
def test_without_biases_positions_and_types_cp_lrp_gives_the_tokens_everything(name: str) -> None:
    """What is left to absorb are norms' scales, which cp-lrp takes as constants:
    the logit arrives whole.
    """
    model = model_of(name)
    off = [
        tensor
        for tensor in model.weights
        if tensor.endswith(("bias", "position_embeddings.weight", "token_type_embeddings.weight"))
    ]
    model = with_weights(model, **{tensor: np.zeros_like(model.weights[tensor]) for tensor in off})
    e = model.explain(TEXT, "cp-lrp", keep=())
    assert e.relevance.sum() == pytest.approx(e.logit, rel=1e-12)


# -- other ways to the same numbers ----------------------------------------------------------------


@pytest.mark.parametrize("method", ["attnlrp", "cp-lrp"])
@pytest.mark.parametrize("name", NETS)
def test_fast_attention_and_recomputation(name: str, method: str) -> None:
    """In blocks of queries (two of them here), and one layer at a time."""
    model = model_of(name)
    ids = [2, MASK, *np.random.default_rng(0).integers(5, 17, 150).tolist()]
    plain, fast, again = (
        model.explain(ids, method, eps=None, **how)
        for how in ({}, {"keep": ()}, {"recompute": True})
    )
    assert apart(fast.relevance, plain.relevance) < 1e-10
    assert np.array_equal(again.relevance, plain.relevance)
    assert set(again) == set(plain)
    for site in plain:
        assert np.array_equal(again[site], plain[site]), site


@pytest.mark.parametrize("keep", [(), "*"], ids=["fast", "plain"])
@pytest.mark.parametrize("name", NETS)
def test_padding_changes_nothing(name: str, keep: Any) -> None:
    """Each text of a padded batch as it is alone, whatever stands in the padding."""
    model = model_of(name)
    texts = [[2, MASK], TEXT, [MASK]]
    for one, item in zip(model.explain(texts, keep=keep), texts, strict=True):
        alone = model.explain(item, keep=keep)
        assert one.target_id == alone.target_id
        assert one.logit == pytest.approx(alone.logit, rel=1e-12)
        assert one.relevance.shape == (len(item),)
        assert np.abs(one.relevance - alone.relevance).max() < 1e-9 * max(
            1.0, np.abs(alone.relevance).max()
        )


@pytest.mark.parametrize("name", NETS)
def test_names_of_modules_are_sites(name: str) -> None:
    """Every module of the checkpoint's layers has its output and its input among the sites; shared
    layers are named by the run.
    """
    model = model_of(name)
    sites = model.sites() if "classes" in name else replace(model, mask_id=0).sites()
    for tensor in model.weights:
        module = (
            tensor.rpartition(".")[0]
            .replace("albert_layer_groups.0", "layer.0")
            .replace("albert_layer_groups.1", "layer.2")
        )
        if module.rpartition(".")[2] not in ("predictions", "lm_head") or tensor.endswith("weight"):
            assert module in sites, module
            assert module.endswith("_embeddings") or f"{module}.input" in sites


def test_albert_runs_its_groups_in_order() -> None:
    """Layers 0 and 1 of three share the weights of group 0;
    untied copies of them give the same numbers.
    """
    model = model_of("albert")
    alone = replace(model, config=parse(model.net.Config, ALBERT | {"num_hidden_groups": 3}))
    copies = {
        name.replace("groups.1", "groups.2"): w
        for name, w in model.weights.items()
        if "groups.1" in name
    }
    copies |= {
        name.replace("groups.0", "groups.1"): w
        for name, w in model.weights.items()
        if "groups.0" in name
    }
    alone = with_weights(alone, **copies)
    assert np.array_equal(alone.logits(TEXT), model.logits(TEXT))
    assert np.array_equal(alone.explain(TEXT).relevance, model.explain(TEXT).relevance)


def test_token_types_are_read() -> None:
    model = model_of("bert")
    batch = model.batch([TEXT])
    typed = replace(batch, types=np.asarray([[0, 0, 0, 1, 1, 1]]))
    one, other = (
        model.net.forward(Trace(model.weights), model.config, b).array for b in (batch, typed)
    )
    assert np.abs(one - other).max() > 1e-3


# -- the face --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NETS if "classes" in name])
def test_a_class_by_name_or_number(name: str) -> None:
    model = model_of(name)
    assert model.task == "class"
    by_name, by_number = model.explain(TEXT, target="maybe"), model.explain(TEXT, target=2)
    assert by_name.target == by_number.target == "maybe"
    assert np.array_equal(by_name.relevance, by_number.relevance)
    assert {c.token for c in by_name.candidates} == {"no", "yes", "maybe"}
    assert model.explain(TEXT, contrast=("yes", "no")).explained == pytest.approx(
        model.explain(TEXT, target="yes").logit - model.explain(TEXT, target="no").logit
    )
    each = model.explain_each(TEXT, ["no", "yes", "maybe"])
    assert np.array_equal(each[2].relevance, by_name.relevance)
    if model.config.type_vocab_size > 1:
        types = [i % 2 for i in range(len(TEXT))]
        (of_types,) = model.explain_each(TEXT, ["maybe"], types=types)
        alone = model.explain(TEXT, target="maybe", types=types)
        assert np.array_equal(of_types.relevance, alone.relevance)
        assert not np.array_equal(of_types.relevance, by_name.relevance)
    with pytest.raises(ReflError, match="at= says what is explained"):
        model.explain_each(TEXT, ["maybe"], at=(next(iter(by_name)), 0))
    with pytest.raises(ReflError, match="unknown class 'perhaps': the model has no, yes, maybe"):
        model.explain(TEXT, target="perhaps")


@pytest.mark.parametrize("name", [name for name in NETS if "classes" not in name])
def test_position_of_the_mask(name: str) -> None:
    """One mask says where to look; none, or two, and the position has to be given."""
    model = model_of(name)
    assert model.task == "masked-token"
    assert np.array_equal(
        model.explain(TEXT).relevance, model.explain(TEXT, position=TEXT.index(MASK)).relevance
    )
    assert model.explain(TEXT, position=-1).logit == pytest.approx(model.logits(TEXT)[-1].max())
    for ids in ([2, 7, 3], [MASK, 7, MASK]):
        with pytest.raises(
            ReflError, match=f"expected one mask token in the input, found {ids.count(MASK)}"
        ):
            model.explain(ids)
        assert model.explain(ids, position=1).relevance.shape == (3,)


@pytest.mark.parametrize("config", [BERT, ROBERTA, ALBERT], ids=lambda c: c["model_type"])
def test_longest_input(config: dict[str, Any]) -> None:
    """RoBERTa's table of positions begins behind its padding token's."""
    model = random_model(config | {"max_position_embeddings": 8}, 0)
    longest = 6 if config is ROBERTA else 8
    assert model.config.longest == longest
    assert model.logits([5] * longest).shape == (longest, 17)
    with pytest.raises(
        ReflError, match=f"{longest + 1} tokens, the model has positions for {longest}"
    ):
        model.logits([5] * (longest + 1))


REFUSED: list[tuple[dict[str, Any], str]] = [
    (BERT | {"position_embedding_type": "relative_key"}, "relative_key"),
    (ALBERT | {"position_embedding_type": "relative_key_query"}, "relative_key_query"),
    (ROBERTA | {"is_decoder": True}, "is_decoder"),
    (BERT | {"add_cross_attention": True}, "add_cross_attention"),
    (BERT | {"pruned_heads": {"0": [1]}}, "pruned_heads"),
    (BERT | {"hidden_act": "mish"}, "mish"),
    (BERT | {"num_attention_heads": 3}, "num_attention_heads"),
    (BERT | {"architectures": ["BertForMultipleChoice"]}, "BertForMultipleChoice"),
    (BERT | {"architectures": ["BertLMHeadModel"]}, "BertLMHeadModel"),
    (BERT | {"architectures": None}, "expected one of BertForMaskedLM"),
    (
        ROBERTA | {"architectures": ["RobertaForMultipleChoice"]},
        "RobertaForMultipleChoice",
    ),
    (ROBERTA | {"pad_token_id": -1}, "pad_token_id"),
    (BERT | {"rotary": True}, "rotary"),
]


@pytest.mark.parametrize(("config", "named"), REFUSED, ids=[named for _, named in REFUSED])
def test_refused_by_name(config: dict[str, Any], named: str) -> None:
    with pytest.raises(ReflError, match=named):
        parse(architecture(config).Config, config)


# -- how files name things -------------------------------------------------------------------------


def save(
    folder: Path, config: dict[str, Any], rename: Callable[[str], str | None] = lambda name: name
) -> Model:
    """The random model of this config in a folder, its tensors renamed (None drops one)."""
    model = random_model(config, 7)
    tensors = {
        new: model.weights[name] for name in model.weights if (new := rename(name)) is not None
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tensors, {})
    return model


@pytest.mark.parametrize("config", [BERT, ROBERTA, ALBERT], ids=lambda c: c["model_type"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_older_names(tmp_path: Path, config: dict[str, Any], tied: bool) -> None:
    """gamma and beta for the norms, and the head's bias in its decoder."""

    def older(name: str) -> str:
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        )
        return name.replace("predictions.bias", "predictions.decoder.bias").replace(
            "lm_head.bias", "lm_head.decoder.bias"
        )

    model = save(tmp_path, config | {"tie_word_embeddings": tied}, older)
    assert np.array_equal(refl.load(tmp_path, dtype="float64").logits(TEXT), model.logits(TEXT))


@pytest.mark.parametrize("config", [BERT, ALBERT], ids=lambda c: c["model_type"])
def test_missing_bias_is_named(tmp_path: Path, config: dict[str, Any]) -> None:
    save(tmp_path, config, lambda name: None if name.endswith("predictions.bias") else name)
    with pytest.raises(ReflError, match=r"predictions\.bias"):
        refl.load(tmp_path)


# -- neurons ---------------------------------------------------------------------------------------


def test_a_neuron_of_the_output_is_the_logit() -> None:
    """Token 5 at position 2 is one of the decoder's neurons."""
    model = model_of("bert")
    neuron, logit = (
        model.explain(TEXT, at=("cls.predictions.decoder", (2, 5))),
        model.explain(TEXT, target=5, position=2),
    )
    assert neuron.explained == pytest.approx(logit.explained, rel=1e-12)
    assert np.abs(neuron.relevance - logit.relevance).max() < 1e-9
    assert (neuron.target, neuron.seed, neuron.candidates) == (
        "cls.predictions.decoder[2, 5]",
        "activation",
        [],
    )
    assert neuron.what == "activation of 'cls.predictions.decoder[2, 5]'"


@pytest.mark.parametrize("keep", [(), "*"], ids=["fast", "plain"])
@pytest.mark.parametrize(
    ("name", "site", "index"),
    [
        ("bert", "bert.encoder.layer.1.output", (2, 5)),
        ("bert, classes", "bert.pooler", (0, 3)),
        ("roberta", "roberta.encoder.layer.0.attention.self.probabilities", (1, -2, 3)),
        ("albert", "albert.encoder.layer.2.albert_layers.1.ffn", (-1, 20)),
    ],
)
@pytest.mark.parametrize("method", ["attnlrp", "attnlrp-gradient", "cp-lrp"])
def test_the_account_of_a_neuron_closes(
    name: str, site: str, index: tuple[int, ...], method: str, keep: Any
) -> None:
    model = model_of(name)
    e = model.explain(TEXT, method, at=(site, index), keep=keep, audit=True)
    closes(e)
    whole = model.explain(TEXT, position=None if "classes" in name else 2, keep=site)
    assert e.explained == pytest.approx(whole.activation(site)[index], rel=1e-12)


def test_a_neuron_against_the_surrogate() -> None:
    """Its activation is a logit of a shorter net:
    with a decoder that reads it alone, all below must agree.
    """
    model = model_of("bert, classes")
    weight = np.zeros_like(model.weights["classifier.weight"])
    weight[1, 3] = 1.0
    reading = with_weights(model, **{"classifier.weight": weight, "classifier.bias": np.zeros(3)})
    e, logit = (
        model.explain(TEXT, "attnlrp-gradient", at=("bert.pooler", (0, 3))),
        reading.explain(TEXT, "attnlrp-gradient", target=1),
    )
    assert apart(e.relevance, logit.relevance) < 1e-12


def test_neurons_of_a_batch_and_of_recomputed_blocks() -> None:
    model = model_of("bert")
    texts = [TEXT, TEXT[::-1]]
    at = ("bert.encoder.layer.1", (2, 5))
    for one, item in zip(model.explain(texts, at=at), texts, strict=True):
        assert np.abs(one.relevance - model.explain(item, at=at).relevance).max() < 1e-12
    assert np.array_equal(
        model.explain(TEXT, at=at, recompute=True).relevance, model.explain(TEXT, at=at).relevance
    )


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"at": ("bert.encoder.layer.7", (0, 0))}, "bert.encoder.layer.7', which is no site"),
        (
            {"at": ("bert.encoder.layer.1.attention", (0, 0)), "recompute": True},
            "none with recompute",
        ),
        (
            {"at": ("bert.encoder.layer.1", (0,))},
            r"index \(0,\) at bert.encoder.layer.1, whose shape is \(6, 16\)",
        ),
        ({"at": ("bert.encoder.layer.1", (6, 0))}, "whose shape is"),
        ({"at": ("bert.encoder.layer.1", (0, 0)), "target": 3}, "leave target"),
    ],
)
def test_neurons_there_are_none_of(how: dict[str, Any], named: str) -> None:
    with pytest.raises(ReflError, match=named):
        model_of("bert").explain(TEXT, **how)


@pytest.mark.parametrize("config", [BERT, ROBERTA, ALBERT], ids=lambda c: c["model_type"])
def test_a_checkpoint_without_head(config: dict[str, Any]) -> None:
    """Its output is the features of its last layer;
    there is nothing it says, so a neuron has to be named.
    """
    model = random_model(
        config | {"architectures": [config["architectures"][0].replace("ForMaskedLM", "Model")]}, 2
    )
    assert model.task == "features"
    assert model.logits(TEXT).shape == (6, 16)
    with pytest.raises(ReflError, match="without a head"):
        model.explain(TEXT)
    pooler = "pooler_activation" if config is ALBERT else "pooler"
    closes(model.explain(TEXT, at=(f"{config['model_type']}.{pooler}", (0, 7)), audit=True))


# -- token types -----------------------------------------------------------------------------------


def test_token_types_of_an_explanation() -> None:
    model = model_of("bert")
    types = [0, 0, 0, 1, 1, 1]
    plain, typed = model.explain(TEXT), model.explain(TEXT, types=types, audit=True)
    closes(typed)
    assert np.array_equal(model.explain(TEXT, types=[0] * 6).relevance, plain.relevance)
    assert typed.logit != plain.logit
    both = model.explain([TEXT, TEXT[:3]], types=[types, [1, 1, 0]])
    assert np.abs(both[0].relevance - typed.relevance).max() < 1e-9
    assert (
        np.abs(both[1].relevance - model.explain(TEXT[:3], types=[1, 1, 0]).relevance).max() < 1e-9
    )


@pytest.mark.parametrize("types", [[0, 0], [0, 0, 0, 0, 0, 2], [0, 0, 0, 0, 0, -1]])
def test_token_types_that_do_not_fit(types: list[int]) -> None:
    with pytest.raises(ReflError, match="a number from 0 to 1"):
        model_of("bert").explain(TEXT, types=types)


def test_a_model_without_token_types() -> None:
    with pytest.raises(ReflError, match="has no token types"):
        random_model(LLAMA, 0).explain([1, 2], types=[0, 1])


# -- elsewhere -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_the_same_under_the_array_standard(name: str, backend: Backend) -> None:
    """Nothing beyond the standard is called, and no host array slips in:
    single, padded, fast, recomputed.
    """
    home = model_of(name)
    away = moved(home, backend.place)
    for how in ({}, {"keep": ()}, {"recompute": True}):
        for method in ("attnlrp", "cp-lrp"):
            for here, there in zip(
                home.explain([TEXT, [MASK]], method, **how),
                away.explain([TEXT, [MASK]], method, **how),
                strict=True,
            ):
                assert np.abs(here.relevance - there.relevance).max() < 1e-9
    types = home.explain(TEXT, types=[0] * 6).relevance
    assert np.abs(away.explain(TEXT, types=[0] * 6).relevance - types).max() < 1e-9


# -- the command -----------------------------------------------------------------------------------


def command(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    status = main(list(args))
    out, err = capsys.readouterr()
    return status, out, err


def test_explain_a_class_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, classifier(BERT))
    for target in ("maybe", "2"):
        status, out, _ = command(
            capsys, "explain", "--ids", "2", "7", "3", "--model", str(tmp_path), "--target", target
        )
        assert status == 0
        assert "logit of 'maybe'" in out and "class" in out
        assert all(name in out for name in ("no", "yes", "token type embeddings"))
    status, _, err = command(
        capsys, "explain", "--ids", "2", "7", "--model", str(tmp_path), "--target", "perhaps"
    )
    assert (status, err) == (2, "refl: unknown class 'perhaps': the model has no, yes, maybe\n")


def test_explain_a_position_and_a_neuron_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, BERT)
    given = ("--ids", "2", "7", "3", "--model", str(tmp_path))
    status, _, err = command(capsys, "explain", *given)
    assert status == 2 and "expected one mask token" in err
    status, out, _ = command(
        capsys,
        "explain",
        *given,
        "--position",
        "1",
        "--types",
        "0",
        "1",
        "1",
        "--keep",
        "*.layer.1",
    )
    assert status == 0 and "masked token" in out and "bert.encoder.layer.1" in out
    status, out, _ = command(capsys, "trace", *given, "--position", "1")
    assert status == 0 and "cls.predictions.decoder" in out
    for verb in ("explain", "trace"):
        status, out, _ = command(capsys, verb, *given, "--at", "bert.encoder.layer.1", "-1", "4")
        assert (
            status == 0
            and "activation of 'bert.encoder.layer.1[-1, 4]'" in out
            and "nan" not in out
        )
    status, out, _ = command(
        capsys, "explain", *given, "--at", "bert.encoder.layer.1", "0", "4", "--json"
    )
    assert json.loads(out)["probability"] is None
    status, _, err = command(capsys, "explain", *given, "--at", "bert.encoder.layer.1", "last")
    assert status == 2 and "expected a site and the neuron's index" in err


def test_a_page_about_a_neuron(tmp_path: Path) -> None:
    e = model_of("bert").explain(TEXT, at=("bert.encoder.layer.0", (1, 2)))
    page = html(e)
    assert "nan" not in page.lower().replace("nano", "")
    e.save(tmp_path / "neuron.safetensors")
    assert "NaN" not in (tmp_path / "neuron.safetensors").read_bytes().decode("latin-1")
