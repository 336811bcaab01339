"""LoRA adapters: what is merged is W + s B A, what is kept apart computes the same and has entries
of its own; what does not fit is refused.

(peft itself is beside it in tests/peers/test_adapters.py.)
"""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_folders import arrays_of, checkpoint_of
from safetensors.numpy import save_file

import refl
from refl.cli import main
from refl.latent.projection import project
from refl.model import architecture
from refl.nets.config import parse
from refl.verification.identities.conditioning import rounding_bound
from refl.verification.random_models import (
    ALBERT,
    ARCHITECTURES,
    BERT,
    GPT2,
    LLAMA,
    NEWER,
    random_model,
)

OTHERS = ("embed", "wte", "wpe", "shared", "relative_attention_bias", "norm")
BIASED = LLAMA | {"attention_bias": True}


def layers_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every linear layer of a net -> the shape of its weight as it is stored."""
    net = architecture(config)
    return {
        name.removesuffix(".weight"): shape
        for name, shape, _ in net.shapes(parse(net.Config, config))
        if name.endswith(".weight") and len(shape) == 2
        if not any(other in name.rpartition(".")[0].rpartition(".")[2] for other in OTHERS)
    }


def is_conv1d(config: dict[str, Any], path: str) -> bool:
    return path.rpartition(".")[2] in getattr(architecture(config), "CONV1D", ())


def low_rank(config: dict[str, Any], rank: int = 3) -> dict[str, tuple[Any, Any]]:
    """A (r, I) and B (O, r) for every linear layer."""
    random, found = np.random.default_rng(3), {}
    for path, shape in layers_of(config).items():
        out, into = reversed(shape) if is_conv1d(config, path) else shape
        a, b = random.standard_normal((rank, into)), random.standard_normal((out, rank)) / 4
        found[path] = a.astype("f4"), b.astype("f4")
    return found


def adapter_of(
    folder: Path, lows: dict[str, tuple[Any, Any]], whole: dict[str, Any] | None = None, **said: Any
) -> Path:
    """As peft saves it; `said` goes into adapter_config.json."""
    folder.mkdir(exist_ok=True)
    tensors = {
        f"base_model.model.{path}.lora_{part}.weight": low
        for path, both in lows.items()
        for part, low in zip("AB", both, strict=True)
    }
    tensors |= {f"base_model.model.{name}": np.asarray(w) for name, w in (whole or {}).items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    options = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "task_type": None} | said
    (folder / "adapter_config.json").write_text(json.dumps(options))
    return folder


def by_hand(config: dict[str, Any], lows: dict[str, Any], scale: float) -> refl.Model:
    """The base with every W + s B A in float64."""
    model = random_model(config, 3, "float32")
    weights = {name: np.asarray(w, dtype="f8") for name, w in model.weights.items()}
    for path, (a, b) in lows.items():
        change = scale * (b.astype("f8") @ a.astype("f8"))
        weights[f"{path}.weight"] += change.T if is_conv1d(config, path) else change
    return refl.Model(**(vars(model) | {"weights": weights, "dtype": "float64"}))


def item_of(model: refl.Model) -> Any:
    if model.takes_images:
        c = model.config
        return np.random.default_rng(0).standard_normal((c.num_channels, *c.image))
    return [3, 1, 2, 5, 4]


def asked(model: refl.Model) -> dict[str, Any]:
    if model.task == "sequence-to-sequence":
        return {"decoder": [0, 3]}
    return {"position": 1} if model.task == "masked-token" else {}


METHOD = "attnlrp-gradient"
"""Without a stabilizer, and every layer has relevance."""

ADAPTED = ("gpt2", "llama", "mixtral", "phi", "bert", "albert", "t5", "vit")


@pytest.mark.parametrize("name", [*ADAPTED, *sorted(NEWER.keys() - {"clip", "whisper"})])
def test_every_linear_layer_merged_or_apart_is_the_sum(tmp_path: Path, name: str) -> None:
    """Logits and relevance without a stabilizer are those of the model with W + s B A, and apart
    both ways in: what the base layer and the adapter have make up what their sum has.
    """
    config = (ARCHITECTURES | NEWER)[name]
    lows = low_rank(config)
    beside = adapter_of(tmp_path / "adapter", lows)
    base, expected = checkpoint_of(tmp_path / "base", config), by_hand(config, lows, 6 / 3)
    how = asked(expected)
    want = expected.explain(item_of(expected), METHOD, keep="*", audit=True, **how)
    for merge in (True, False):
        model = refl.load(base, dtype="float64", adapter=beside, merge=merge)
        e = model.explain(item_of(model), METHOD, keep="*", audit=True, **how)
        bound = 64 * rounding_bound(want)
        assert abs(e.logit - want.logit) <= bound
        assert np.abs(e.relevance - want.relevance).max() <= bound
        assert abs(e.ledger.conservation_error) <= rounding_bound(e)
        ran = [site.removesuffix(".adapter") for site in e if site.endswith(".adapter")]
        assert merge == (not ran)
        for path in ran:
            parts = e[f"{path}.base_layer"] + e[f"{path}.adapter"]
            assert np.abs(parts - e[path]).max() <= bound
            assert f"{path}.lora_A.default" in e
            held = ".experts." in path or ".mixer." in path  # some, by the method or the router
            assert e[f"{path}.adapter"].any() or held, path
    assert len(ran) >= len(lows) // 2
    assert e.about["adapter"] == "adapter, kept apart"


def test_relevance_through_the_adapter_has_entries_of_its_own(tmp_path: Path) -> None:
    base = checkpoint_of(tmp_path / "base", LLAMA)
    model = refl.load(base, adapter=adapter_of(tmp_path / "a", low_rank(LLAMA)), merge=False)
    e = model.explain([1, 2, 3], "attnlrp", keep="*", audit=True)
    path = "model.layers.1.mlp.down_proj"
    entries = {entry.site: entry for entry in e.ledger}
    total = entries[path].received
    through = entries[f"{path}.adapter"].received
    assert 0 < abs(through) < abs(total) * 10
    absorbed = sum(map(float, entries[path].absorbed.values()))
    parts = through + entries[f"{path}.base_layer"].received + absorbed
    assert abs(parts - total) <= rounding_bound(e)
    assert "adapter: a, kept apart" in str(e)


@pytest.mark.parametrize(
    ("said", "scale"),
    [
        ({"lora_alpha": 5}, 5 / 3),
        ({"lora_alpha": 5, "use_rslora": True}, 5 / math.sqrt(3)),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 7}}, 7 / 3),
        ({"alpha_pattern": {"q_proj|v_proj": 7}}, 7 / 3),
        ({"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 7}}, 7 / 3),
        ({"alpha_pattern": {"^layers.0.self_attn.q_proj": 7}}, 6 / 3),
        ({"alpha_pattern": {"proj": 7}}, 6 / 3),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 7}}, 6 / 3),
        ({"r": 8, "rank_pattern": {"q_proj": 3}}, 6 / 3),
        ({"bias": "none", "lora_dropout": 0.1, "target_modules": ["q_proj"], "revision": None}, 2),
    ],
    ids=["alpha", "root", *("pattern",) * 6, "rank", "harmless"],
)
def test_scales(tmp_path: Path, said: dict[str, Any], scale: float) -> None:
    """As peft 0.15 has them: LoraConfig, get_pattern_key."""
    path = "model.layers.0.self_attn.q_proj"
    lows = {path: low_rank(LLAMA)[path]}
    base, beside = checkpoint_of(tmp_path / "b", LLAMA), adapter_of(tmp_path / "a", lows, **said)
    model = refl.load(base, dtype="float64", adapter=beside)
    want = by_hand(LLAMA, lows, scale).weights[f"{path}.weight"]
    assert np.abs(model.weights[f"{path}.weight"] - want).max() <= 1e-15 * np.abs(want).max() * 8


def test_merged_in_float64_and_rounded_once(tmp_path: Path) -> None:
    lows = low_rank(LLAMA)
    model = refl.load(
        checkpoint_of(tmp_path / "b", LLAMA), adapter=adapter_of(tmp_path / "a", lows)
    )
    want = by_hand(LLAMA, lows, 2)
    for path in lows:
        name = f"{path}.weight"
        assert np.array_equal(model.weights[name], want.weights[name].astype("f4"))


def test_a_table_of_words(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    a, b = (
        random.standard_normal((3, 17)).astype("f4"),
        random.standard_normal((16, 3)).astype("f4"),
    )
    beside = adapter_of(tmp_path / "a", {})
    tensors = {"lora_embedding_A": a, "lora_embedding_B": b}
    save_file(
        {f"base_model.model.model.embed_tokens.{k}": w for k, w in tensors.items()},
        beside / "adapter_model.safetensors",
    )
    base = checkpoint_of(tmp_path / "b", LLAMA)
    model = refl.load(base, dtype="float64", adapter=beside)
    table = arrays_of(json.dumps(LLAMA))["model.embed_tokens.weight"].astype("f8")
    want = table + 2 * (b.astype("f8") @ a.astype("f8")).T
    assert np.abs(model.weights["model.embed_tokens.weight"] - want).max() <= 1e-14
    with pytest.raises(refl.ReflError, match="merge it"):
        refl.load(base, adapter=beside, merge=False)
    tied = checkpoint_of(tmp_path / "tied", LLAMA | {"tie_word_embeddings": True})
    with pytest.raises(refl.ReflError, match="which the head shares"):
        refl.load(tied, adapter=beside)


def test_a_tied_head(tmp_path: Path) -> None:
    """Kept apart it adds to the logits alone; merged it would change the embeddings too."""
    tied = LLAMA | {"tie_word_embeddings": True}
    lows = {"lm_head": low_rank(LLAMA)["lm_head"]}
    base, beside = checkpoint_of(tmp_path / "b", tied), adapter_of(tmp_path / "a", lows)
    model = refl.load(base, dtype="float64", adapter=beside, merge=False)
    table = arrays_of(json.dumps(tied))["model.embed_tokens.weight"].astype("f8")
    plain = random_model(LLAMA, 0)
    change = 2 * (lows["lm_head"][1].astype("f8") @ lows["lm_head"][0].astype("f8"))
    weights = dict(refl.load(base, dtype="float64").weights) | {"lm_head.weight": table + change}
    want = refl.Model(**(vars(plain) | {"weights": weights})).logits([1, 2, 3])
    assert np.abs(model.logits([1, 2, 3]) - want).max() <= 1e-13 * np.abs(want).max()
    with pytest.raises(refl.ReflError, match=r"shares its weights with the embeddings.*apart"):
        refl.load(base, adapter=beside)


def test_trained_biases_take_the_place_of_the_bases(tmp_path: Path) -> None:
    names = [f"model.layers.0.self_attn.{p}" for p in ("q_proj", "o_proj")]
    whole = {f"{names[0]}.base_layer.bias": np.arange(16, dtype="f4")}
    whole[f"{names[1]}.bias"] = np.arange(16, dtype="f4") + 1
    lows = {names[0]: low_rank(BIASED)[names[0]]}
    base, beside = (
        checkpoint_of(tmp_path / "b", BIASED),
        adapter_of(tmp_path / "a", lows, whole, bias="all"),
    )
    for merge in (True, False):
        model = refl.load(base, adapter=beside, merge=merge)
        assert model.weights[f"{names[0]}.bias"].tolist() == list(range(16))
        assert model.weights[f"{names[1]}.bias"].tolist() == list(range(1, 17))


@pytest.mark.parametrize(
    ("config", "head", "width"),
    [(LLAMA, "score.weight", 16), (GPT2, "score.weight", 16), (BERT, "classifier.weight", 16)],
)
def test_an_adapter_brings_its_own_head(
    tmp_path: Path, config: dict[str, Any], head: str, width: int
) -> None:
    """A classifier of three classes on a base that has none."""
    whole: dict[str, Any] = {head: np.ones((3, width), dtype="f4")}
    if config is BERT:
        pooler = {"bert.pooler.dense.weight": (16, 16), "bert.pooler.dense.bias": (16,)}
        whole |= {"classifier.bias": np.zeros(3, dtype="f4")}
        whole |= {name: np.ones(shape, dtype="f4") for name, shape in pooler.items()}
    said = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]}
    beside = adapter_of(tmp_path / "a", {}, whole, **said)
    model = refl.load(checkpoint_of(tmp_path / "b", config), adapter=beside)
    assert model.task == "class" and model.config.labels == 3
    logits = model.logits([1, 2, 3])[0]
    assert logits.shape == (3,) and np.ptp(logits) < 1e-6 < abs(logits[0])
    assert model.explain([1, 2, 3], target="LABEL_2", contrast=None).target == "LABEL_2"


def test_parts_are_where_they_are_without_an_adapter(tmp_path: Path) -> None:
    """A neuron, a head and what they write to have the sites of the merged model; what is switched
    off is switched off for the base layer and for the adapter.
    """
    for config, name in ((LLAMA, "L1.N3"), (LLAMA, "L0.H2"), (GPT2, "L0.N5"), (ALBERT, "L1.1.N2")):
        base, beside = checkpoint_of(tmp_path / "b", config), tmp_path / "a"
        adapter_of(beside, low_rank(config))
        merged, apart = (
            refl.load(base, dtype="float64", adapter=beside, merge=m) for m in (True, False)
        )
        assert str(apart.components) == str(merged.components)
        off = [m.with_edits({name: refl.off}).logits([1, 2, 3]) for m in (merged, apart)]
        assert np.abs(off[0] - off[1]).max() <= 1e-12 * np.abs(off[0]).max()
        assert np.abs(off[0] - merged.logits([1, 2, 3])).max() > 1e-6


def test_names_of_the_bare_model(tmp_path: Path) -> None:
    path = "layers.0.self_attn.q_proj"
    lows = {path: low_rank(LLAMA)[f"model.{path}"]}
    base, beside = checkpoint_of(tmp_path / "b", LLAMA), adapter_of(tmp_path / "a", lows)
    model = refl.load(base, adapter=beside, merge=False)
    assert f"model.{path}.adapter" in model.explain([1, 2], keep="*")


@pytest.mark.parametrize("task", ["QUESTION_ANS", "TOKEN_CLS", "FEATURE_EXTRACTION"])
@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_the_head_of_a_base_that_guesses_words_is_left_behind(
    tmp_path: Path, name: str, task: str
) -> None:
    """Whole, whether the adapter brings another head in its place or none."""
    config = (ARCHITECTURES | NEWER)[name]
    lows = low_rank(config)
    path = next(path for path in lows if "layer.0" in path)
    head = {"QUESTION_ANS": "qa_outputs", "TOKEN_CLS": "classifier"}.get(task)
    whole = {} if head is None else {f"{head}.weight": np.ones((2, 16), "f4"),
                                     f"{head}.bias": np.zeros(2, "f4")}  # fmt: skip
    beside = adapter_of(tmp_path / "a", {path: lows[path]}, whole, task_type=task)
    model = refl.load(checkpoint_of(tmp_path / "b", config), adapter=beside)
    wanted = {"QUESTION_ANS": "answer-span", "TOKEN_CLS": "token-class"}.get(task, "features")
    assert model.task == wanted


@pytest.mark.parametrize(
    ("config", "path"),
    [(NEWER["gpt_neox"], "embed_out"), (ALBERT, "albert.encoder.embedding_hidden_mapping_in")],
)
def test_layers_that_sound_like_tables(tmp_path: Path, config: dict[str, Any], path: str) -> None:
    """Are linear layers: merged and apart are the same."""
    weight = np.asarray(random_model(config, 3, "float32").weights[f"{path}.weight"])
    random = np.random.default_rng(5)
    low = tuple(random.standard_normal(n).astype("f4") for n in ((3, weight.shape[1]),
                                                                 (weight.shape[0], 3)))  # fmt: skip
    base = checkpoint_of(tmp_path / "b", config)
    beside = adapter_of(tmp_path / "a", {path: (low[0], low[1])})
    merged, apart = (
        refl.load(base, dtype="float64", adapter=beside, merge=m) for m in (True, False)
    )
    assert np.allclose(merged.weights[f"{path}.weight"], weight + 2.0 * low[1] @ low[0], atol=1e-5)
    ids = [1, 2, 3]
    one, other = (m.explain(ids, position=1, target=4) for m in (merged, apart))
    assert one.logit == pytest.approx(other.logit, rel=1e-12)


# -- what does not fit -----------------------------------------------------------------------------

Q = "model.layers.0.self_attn.q_proj"
A, B = low_rank(LLAMA)[Q]

REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another kind": ({"peft_type": "IA3"}, {}, "peft_type = 'IA3': expected 'LORA'"),
    "no kind": ({"peft_type": None}, {}, "peft_type = None"),
    "DoRA": ({"use_dora": True}, {}, "use_dora = True, which is not implemented"),
    "biases of B": ({"lora_bias": True}, {}, "lora_bias"),
    "layers twice": ({"layer_replication": [[0, 2]]}, {}, "layer_replication"),
    "an option of tomorrow": ({"use_magic": 1}, {}, "use_magic"),
    "a changed base": ({"init_lora_weights": "pissa"}, {}, "others change the base first"),
    "a task of tomorrow": ({"task_type": "SING"}, {}, "task_type = 'SING'"),
    "a task without a head": ({"task_type": "SEQ_2_SEQ_LM"}, {}, "sequence-to-sequence"),
    "no alpha": ({"lora_alpha": 0}, {}, "lora_alpha = 0: expected a number above 0"),
    "nan": ({"lora_alpha": math.nan}, {}, "lora_alpha = nan"),
    "a text": ({"r": "3"}, {}, "r = '3'"),
    "a flag that is none": ({"use_rslora": "yes"}, {}, "use_rslora = 'yes'"),
    "an endless pattern": ({"alpha_pattern": {"(a+)+b": 3}}, {}, "alpha_pattern"),
    "half a pattern": ({"alpha_pattern": {"(q_proj": 3}}, {}, "alpha_pattern"),
    "patterns in a list": ({"rank_pattern": [3]}, {}, "rank_pattern = [3]: expected an object"),
    "another rank": ({"r": 4}, {}, "of rank 3"),
    "one of two": ({}, {f"{Q}.lora_B.weight": None}, "expected both of lora_A and lora_B"),
    "ranks apart": ({}, {f"{Q}.lora_B.weight": np.ones((16, 2), "f4")}, "(r, I) and (O, r)"),
    "a convolution": ({}, {f"{Q}.lora_A.weight": np.ones((3, 16, 1), "f4")}, "a convolution"),
    "another width": ({}, {f"{Q}.lora_A.weight": np.ones((3, 8), "f4")}, "made for another model"),
    "no such module": ({}, {"model.nowhere.lora_A.weight": A, "model.nowhere.lora_B.weight": B},
                       "changes model.nowhere.weight, which the base does not have"),
    "no such tensor": ({}, {"model.extra.weight": A}, "model.extra.weight, which the base does"),
    "a head too wide": ({}, {"model.norm.weight": np.ones(3, "f4")}, "has shape (3,)"),
    "a magnitude": ({}, {f"{Q}.lora_magnitude_vector": np.ones(16, "f4")}, "lora_magnitude_vector"),
    "a second adapter": ({}, {f"{Q}.lora_A.other.weight": A}, "lora_A.other"),
    "a table as a layer": ({}, {"model.embed_tokens.lora_A.weight": A,
                                "model.embed_tokens.lora_B.weight": np.ones((17, 3), "f4")},
                           "which is no linear layer"),
    "no number": ({}, {f"{Q}.lora_A.weight": A * math.nan}, "NaN"),
    "whole numbers": ({}, {f"{Q}.lora_A.weight": A.astype("i4")}, "I32"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path: Path, case: str) -> None:
    said, tensors, named = REFUSED[case]
    base = checkpoint_of(tmp_path / "b", LLAMA)
    beside = adapter_of(tmp_path / "a", {Q: (A, B)}, **said)
    stored = {f"base_model.model.{Q}.lora_{p}.weight": w for p, w in (("A", A), ("B", B))}
    stored |= {f"base_model.model.{name}": w for name, w in tensors.items()}
    present = {name: w for name, w in stored.items() if w is not None}
    save_file(present, beside / "adapter_model.safetensors")
    for merge in (True, False):
        with pytest.raises(refl.ReflError) as caught:
            refl.load(base, adapter=beside, merge=merge).logits([1, 2])
        assert named in str(caught.value) and str(caught.value).isprintable()


def test_names_that_peft_does_not_save(tmp_path: Path) -> None:
    beside = adapter_of(tmp_path / "a", {})
    save_file({f"{Q}.lora_A.weight": A}, beside / "adapter_model.safetensors")
    with pytest.raises(refl.ReflError, match=r"begin with base_model\.model"):
        refl.load(checkpoint_of(tmp_path / "b", LLAMA), adapter=beside)


@pytest.mark.parametrize("gone", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_that_is_no_adapter(tmp_path: Path, gone: str) -> None:
    base, beside = checkpoint_of(tmp_path / "b", LLAMA), adapter_of(tmp_path / "a", {Q: (A, B)})
    (beside / gone).unlink()
    with pytest.raises(refl.ReflError, match=gone):
        refl.load(base, adapter=beside)
    with pytest.raises(refl.ReflError, match="merge"):
        beside = adapter_of(tmp_path / "a", {Q: (A, B)})
        refl.load(base, adapter=beside, merge="no")  # type: ignore[arg-type]


def test_an_adapter_in_the_folder_of_the_base(tmp_path: Path) -> None:
    base = adapter_of(checkpoint_of(tmp_path / "b", LLAMA), {Q: (A, B)})
    with pytest.raises(refl.ReflError, match=r"a folder of its own .*--adapter"):
        refl.load(base)


# -- the files, and the command line ---------------------------------------------------------------


def test_pickled_and_changed(tmp_path: Path) -> None:
    base, beside = checkpoint_of(tmp_path / "b", LLAMA), adapter_of(tmp_path / "a", {Q: (A, B)})
    plain = refl.load(base)
    for merge in (True, False):
        model = refl.load(base, adapter=beside, merge=merge)
        again = pickle.loads(pickle.dumps(model))
        assert np.array_equal(again.logits([1, 2, 3]), model.logits([1, 2, 3]))
        assert model.fingerprint() == again.fingerprint() != plain.fingerprint()
        assert model.fingerprint().startswith(plain.fingerprint())
    adapter_of(tmp_path / "a", {Q: (A, 2 * B)})
    with pytest.raises(refl.ReflError, match="has changed"):
        model.logits([1, 2, 3])


def test_projections_ask_for_one_matrix(tmp_path: Path) -> None:
    base, beside = checkpoint_of(tmp_path / "b", LLAMA), adapter_of(tmp_path / "a", {Q: (A, B)})
    assert project(refl.load(base, adapter=beside), "L0.N1")
    with pytest.raises(refl.ReflError, match="load it merged"):
        project(refl.load(base, adapter=beside, merge=False), "L0.N1")


@pytest.mark.parametrize("how", [["--apart"], []])
def test_command_line(tmp_path: Path, how: list[str], capsys: Any) -> None:
    base, beside = checkpoint_of(tmp_path / "b", LLAMA), adapter_of(tmp_path / "a", {Q: (A, B)})
    words = ["--ids", "1", "2", "3", "--model", str(base), "--adapter", str(beside), *how]
    saved = str(tmp_path / "out.safetensors")
    assert main(["explain", *words, "--json", "--save", saved]) == 0
    said = json.loads(capsys.readouterr().out)["about"]["adapter"]
    assert said == ("a, kept apart" if how else "a, merged")
    back = refl.Explanation.load(saved)
    assert back.provenance["adapter"] == said and "+" in back.provenance["fingerprint"]
    assert main(["trace", *words]) == 0
    assert ("q_proj.adapter" in capsys.readouterr().out) == bool(how)


def test_apart_asks_for_an_adapter(capsys: Any) -> None:
    assert main(["explain", "the keys", "--apart"]) == 2
    assert "--adapter" in capsys.readouterr().err
