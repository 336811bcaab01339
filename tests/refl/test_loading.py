"""Nothing loads as what it is not: heads, tensors that no operation reads, options that contradict
the tensors, sizes that no file holds.
"""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_folders import arrays_of, checkpoint_of
from safetensors.numpy import save_file

import refl
from refl.cli import main
from refl.errors import ReflError
from refl.nets import NETS
from refl.show import terminal
from refl.verification.random_models import (
    ALBERT,
    ARCHITECTURES,
    BERT,
    DEIT,
    GEMMA2,
    GPT2,
    GPT_NEOX,
    LLAMA,
    MISTRAL,
    MIXTRAL,
    PHI,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    ROBERTA,
    T5,
    VIT,
    random_model,
)

DECODERS = {
    "LlamaForSequenceClassification": LLAMA,
    "GPT2ForSequenceClassification": GPT2,
    "MistralForSequenceClassification": MISTRAL,
    "MixtralForSequenceClassification": MIXTRAL,
    "Qwen2ForSequenceClassification": QWEN2,
    "Qwen3ForSequenceClassification": QWEN3,
    "Qwen3MoeForSequenceClassification": QWEN3_MOE,
    "PhiForSequenceClassification": PHI,
    "Gemma2ForSequenceClassification": GEMMA2,
}


def refused(folder: Path, **how: Any) -> str:
    """The sentence with which a folder is refused."""
    with pytest.raises(ReflError) as caught:
        refl.load(folder, **how)
    text = str(caught.value)
    assert text.isprintable() and len(text) < 1000
    return text


# -- heads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
def test_a_classifier_is_score_on_the_last_token(name: str) -> None:
    """By definition: what a language model whose head is `score` says there."""
    config = DECODERS[name] | {"architectures": [name], "num_labels": 5, "pad_token_id": 3}
    model = random_model(config, 7)
    head = next(k for k in model.config.classes(None) if not k.endswith("Classification"))
    plain = {"architectures": [head], "tie_word_embeddings": False, "final_logit_softcapping": None}
    language = random_model(DECODERS[name] | plain, 7)
    rows = np.zeros((17, model.weights["score.weight"].shape[1]))
    rows[:5] = model.weights["score.weight"]
    weights = {k: np.zeros(17) if k == "lm_head.bias" else w for k, w in language.weights.items()}
    language.weights = weights | dict(model.weights) | {"lm_head.weight": rows}
    for ids, last in (([1, 2, 4], 2), ([1, 4, 3, 3], 1), ([3, 5, 3], 1), ([3, 3], 0), ([6], 0)):
        expected = language.logits(ids)[last, :5]
        assert np.abs(model.logits(ids)[0] - expected).max() <= 1e-12 * np.abs(expected).max()
    both = model.explain([[1, 2, 4], [1, 4, 3, 3, 3]], "cp-lrp", target="LABEL_2")
    for e, ids, last in zip(both, ([1, 2, 4], [1, 4, 3, 3, 3]), (2, 1), strict=True):
        assert abs(e.logit - language.logits(ids)[last, 2]) <= 1e-12 * abs(e.logit)
        assert not e.relevance[last + 1 :].any()
        assert e.target == "LABEL_2" and e.about["task"] == "class"


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_a_class_that_is_not_computed_is_refused(tmp_path: Path, kind: str) -> None:
    folder = checkpoint_of(tmp_path, ARCHITECTURES[kind])
    for said in (["BartModel"], ["X", "Y"], "LlamaForCausalLM", [["LlamaForCausalLM"]], [1], {}):
        config = ARCHITECTURES[kind] | {"architectures": said}
        (folder / "config.json").write_text(json.dumps(config))
        assert "architectures" in refused(folder)


@pytest.mark.parametrize(
    ("config", "architectures"),
    [
        (LLAMA, ["MistralForCausalLM"]),  # another model_type's
        (LLAMA, ["LlamaModel"]),  # no head
        (LLAMA, ["LlamaForMultipleChoice"]),
        (LLAMA, ["LlamaForCausalLM", "LlamaForSequenceClassification"]),
        (GPT2, ["GPT2DoubleHeadsModel"]),
        (ROBERTA, ["CamembertForMaskedLM"]),
        (BERT, ["BertForMaskedLM", "BertModel"]),
        (VIT, ["DeiTForImageClassification"]),
        (T5, ["T5Model"]),
    ],
)
def test_a_class_that_contradicts_is_refused(
    tmp_path: Path, config: dict[str, Any], architectures: list[str]
) -> None:
    folder = checkpoint_of(tmp_path, config)
    (folder / "config.json").write_text(json.dumps(config | {"architectures": architectures}))
    assert architectures[-1] in refused(folder)


CLASSIFIERS = DECODERS | {
    "BertForSequenceClassification": BERT,
    "RobertaForSequenceClassification": ROBERTA,
    "AlbertForSequenceClassification": ALBERT,
    "DeiTForImageClassificationWithTeacher": DEIT,
    "ViTForImageClassification": VIT,
    "ViTModel": VIT,
    "BertModel": BERT,
    "BertForMaskedLM": BERT,
    "RobertaForMaskedLM": ROBERTA,
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_without_architectures_the_tensors_show_the_head(tmp_path: Path, name: str) -> None:
    config = CLASSIFIERS[name] | {"architectures": [name]}
    folder = checkpoint_of(tmp_path, config)
    before = refl.load(folder)
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    after = refl.load(folder)
    assert after.task == before.task and after.config.architectures == [name]


def test_a_classifier_passes_for_no_language_model(tmp_path: Path) -> None:
    """A tied file of a classifier holds all that a language model needs."""
    for name, config in DECODERS.items():
        tied = config | {"tie_word_embeddings": True}
        folder = checkpoint_of(tmp_path, tied | {"architectures": [name], "num_labels": 2})
        (folder / "config.json").write_text(json.dumps(tied))
        assert refl.load(folder).task == "class"
        head = next(iter(refl.load(folder).config.classes(None)))
        (folder / "config.json").write_text(json.dumps(tied | {"architectures": [head]}))
        assert "score.weight" in refused(folder) or "lm_head" in refused(folder)


def test_two_heads_and_no_architectures(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path, LLAMA, **{"score.weight": np.ones((2, 16), dtype="f4")})
    assert "LlamaForCausalLM and LlamaForSequenceClassification" in refused(folder)


# -- tensors that nothing reads --------------------------------------------------------------------

STRANGERS = {
    "{block}.self_attn.q_norm.weight": (4,),
    "{block}.self_attn.q_proj.lora_A.weight": (2, 16),
    "{block}.weight_scale": (),
    "score.weight": (2, 16),
    "classifier.bias": (3,),
    "extra": (1,),
    "v_head.summary.weight": (1, 16),
    "lm_head.scale": (1,),
}


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_a_tensor_that_nothing_reads_is_named(tmp_path: Path, kind: str) -> None:
    config = ARCHITECTURES[kind]
    classes = NETS[kind].Config.classes(kind)
    config = config | {"architectures": config.get("architectures", list(classes)[:1])}
    arrays = arrays_of(json.dumps(config))
    block = next(name for name in arrays if ".0." in name).partition(".0.")[0]
    for name, shape in STRANGERS.items():
        stranger = name.format(block=f"{block}.0")
        stranger += "_2" if stranger in arrays else ""
        folder = checkpoint_of(tmp_path, config, **{stranger: np.ones(shape, dtype="f4")})
        text = refused(folder)
        assert stranger in text and "--ignore-tensors" in text
        assert refl.load(folder, ignore_tensors=[stranger]).ignored == {"ignored tensors": stranger}


@pytest.mark.parametrize("kind", sorted(set(ARCHITECTURES) - {"albert"}))
def test_a_block_too_many_is_named(tmp_path: Path, kind: str) -> None:
    config = ARCHITECTURES[kind]
    (option,) = [o for o in ("num_hidden_layers", "n_layer", "num_layers") if o in config]
    deep = config | {option: config[option] + 1, "layer_types": None}
    deep |= {"mlp_only_layers": [1]} if kind == "qwen3_moe" else {}
    folder = checkpoint_of(tmp_path, deep)
    (folder / "config.json").write_text(json.dumps(config))
    assert "which config.json does not ask for" in refused(folder)


def test_what_was_ignored_is_said_wherever_the_model_is(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path, LLAMA, extra=np.ones(2, dtype="f4"))
    (folder / "config.json").write_text(json.dumps(LLAMA | {"mystery": 4}))
    model = refl.load(folder, ignore=["mystery"], ignore_tensors=["ext*"])
    e = model.explain([1, 2])
    said = {"ignored options": "mystery", "ignored tensors": "extra"}
    assert model.ignored == said and said.items() <= e.provenance.items()
    e.save(tmp_path / "oracle.safetensors")
    back = refl.Explanation.load(tmp_path / "oracle.safetensors")
    assert said.items() <= back.provenance.items()
    assert "ignored tensors: extra" in terminal.text(e)
    ours = str(tmp_path / "oracle.safetensors")
    assert main(["compare", ours, ours, "--model", str(folder)]) == 0
    plain = refl.load(checkpoint_of(tmp_path / "plain", LLAMA)).explain([1, 2])
    assert not any(key.startswith("ignored") for key in plain.provenance)


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("nothing", "matches no tensor"),
        ("*q_proj*", "only tensors that the net reads"),
        ("", "no tensor"),
    ],
)
def test_a_pattern_that_ignores_nothing(tmp_path: Path, pattern: str, says: str) -> None:
    folder = checkpoint_of(tmp_path, LLAMA)
    assert says in refused(folder, ignore_tensors=[pattern])
    assert "expected a list" in refused(folder, ignore_tensors="extra")
    assert "expected a list" in refused(folder, ignore_tensors=[1])


def test_an_option_that_cannot_be_ignored(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path, LLAMA)
    assert "no option mystery" in refused(folder, ignore=["mystery"])
    assert "cannot be ignored" in refused(folder, ignore=["rms_norm_eps"])


def test_ignore_tensors_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint_of(tmp_path, LLAMA, extra=np.ones(2, dtype="f4"))
    ask = ["explain", "--ids", "1", "2", "--model", str(folder), "--json"]
    assert main(ask) == 2
    assert "--ignore-tensors extra" in capsys.readouterr().err
    assert main([*ask, "--ignore-tensors", "extra"]) == 0
    assert "ignored tensors" in capsys.readouterr().out


# -- second names, and tables that a net makes itself ----------------------------------------------


def rows(config: dict[str, Any], name: str) -> Any:
    return arrays_of(json.dumps(config))[name]


TIED = LLAMA | {"tie_word_embeddings": True}
TRIANGLE = np.tri(9, dtype="f4")[None, None]
FREQUENCIES = np.asarray([1.0, 0.01], dtype="f4")
POSITIONS = np.arange(512)[None]
HARMLESS: list[tuple[dict[str, Any], str, Any, Any]] = [
    # config, tensor, what it may hold, what it may not
    (TIED, "lm_head.weight", rows(TIED, "model.embed_tokens.weight"), np.float32(1e-3)),
    (GPT2, "lm_head.weight", rows(GPT2, "transformer.wte.weight"), np.float32(1e-3)),
    (BERT, "cls.predictions.decoder.bias", rows(BERT, "cls.predictions.bias"), np.float32(1)),
    (
        BERT,
        "cls.predictions.decoder.weight",
        rows(BERT, "bert.embeddings.word_embeddings.weight"),
        np.float32(1),
    ),
    (ROBERTA, "lm_head.decoder.bias", rows(ROBERTA, "lm_head.bias"), np.float32(1)),
    (T5, "encoder.embed_tokens.weight", rows(T5, "shared.weight"), np.float32(1)),
    (T5, "lm_head.weight", rows(T5, "shared.weight"), np.float32(1)),
    (LLAMA, "model.layers.1.self_attn.rotary_emb.inv_freq", FREQUENCIES, np.float32(0.02)),
    (LLAMA, "model.layers.0.self_attn.rotary_emb.inv_freq", FREQUENCIES, np.float32(1e-6)),
    (
        LLAMA,
        "model.layers.1.self_attn.rotary_emb.inv_freq",
        FREQUENCIES.astype("f2"),
        np.float16(0.02),
    ),
    (GPT2, "transformer.h.0.attn.bias", TRIANGLE, np.ones_like(TRIANGLE)),
    (GPT2, "transformer.h.0.attn.bias", TRIANGLE.astype(bool), np.ones_like(TRIANGLE)),
    (GPT2, "transformer.h.1.attn.bias", TRIANGLE.astype("u1"), np.ones_like(TRIANGLE)),
    (GPT2, "transformer.h.0.attn.masked_bias", np.float32(-1e4), np.float32(10)),
    (GPT_NEOX, "gpt_neox.layers.0.attention.bias", TRIANGLE, np.ones_like(TRIANGLE)),
    (GPT_NEOX, "gpt_neox.layers.1.attention.bias", TRIANGLE.astype(bool), np.ones_like(TRIANGLE)),
    (GPT_NEOX, "gpt_neox.layers.1.attention.masked_bias", np.float32(-1e4), np.float32(10)),
    (
        GPT_NEOX,
        "gpt_neox.layers.1.attention.rotary_emb.inv_freq",
        np.asarray([1.0, 1e-2]),
        np.float32(0.02),
    ),
    (BERT, "bert.embeddings.position_ids", POSITIONS, np.int64(1)),
    (ROBERTA, "roberta.embeddings.position_ids", POSITIONS, np.int64(1)),
]


def test_a_second_name_is_looked_at(tmp_path: Path) -> None:
    head = rows(TIED, "model.embed_tokens.weight")
    checkpoint_of(tmp_path, TIED, **{"lm_head.weight": head + 1})
    assert "lm_head.weight, which differs from model.embed_tokens.weight" in refused(tmp_path)


@pytest.mark.parametrize(("config", "name", "agreeing", "off"), HARMLESS)
def test_a_second_name_and_a_table_are_looked_at(
    tmp_path: Path, config: dict[str, Any], name: str, agreeing: Any, off: Any
) -> None:
    refl.load(checkpoint_of(tmp_path / "a", config, **{name: np.asarray(agreeing)}))
    wrong = checkpoint_of(tmp_path / "b", config, **{name: np.asarray(agreeing + off)})
    assert name in refused(wrong)
    assert refl.load(wrong, ignore_tensors=[name]).ignored == {"ignored tensors": name}


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (BERT, ["bert.pooler.dense.weight", "cls.seq_relationship.bias"]),
        (ROBERTA, ["roberta.pooler.dense.weight"]),
        (
            ROBERTA | {"architectures": ["RobertaForSequenceClassification"]},
            ["roberta.pooler.dense.bias"],
        ),
        (ALBERT, ["albert.pooler.weight", "sop_classifier.classifier.bias"]),
        (VIT, ["vit.pooler.dense.weight", "vit.embeddings.mask_token"]),
        (DEIT, ["deit.pooler.dense.weight", "deit.embeddings.mask_token"]),
        (T5, ["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"]),
    ],
)
def test_what_a_head_does_without(tmp_path: Path, config: dict[str, Any], names: list[str]) -> None:
    spare = {name: np.ones(3, dtype="f4") for name in names}
    assert refl.load(checkpoint_of(tmp_path, config, **spare)).ignored == {}


# -- tensors that are read -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["i1", "u1", "i4", "i8", "?"])
def test_whole_numbers_are_no_weights(tmp_path: Path, dtype: str) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    text = refused(checkpoint_of(tmp_path, LLAMA, **{name: np.ones((20, 16), dtype=dtype)}))
    assert name in text and "expected one of F64, F32, F16, BF16" in text


@pytest.mark.parametrize("tag", ["F8_E8M0", "C64"])
def test_formats_that_are_not_read(tmp_path: Path, tag: str) -> None:
    """Refused when the checkpoint is opened, not when a block is reached."""
    folder = checkpoint_of(tmp_path, LLAMA)
    raw = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    entry = header["model.norm.weight"]
    size = {"F8_E8M0": 1, "C64": 8}[tag]
    start = len(raw) - 8 - length
    header["model.norm.weight"] = {
        "dtype": tag,
        "shape": entry["shape"],
        "data_offsets": [start, start + 16 * size],
    }
    hole = entry["data_offsets"]
    header["filling"] = {"dtype": "U8", "shape": [hole[1] - hole[0]], "data_offsets": hole}
    text = json.dumps(header).encode()
    body = raw[8 + length :] + bytes(16 * size)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    text_of = refused(folder)
    assert tag in text_of or "not a readable safetensors file" in text_of


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_a_tensor_is_missing_or_of_another_shape(tmp_path: Path, kind: str) -> None:
    config = ARCHITECTURES[kind]
    names = list(arrays_of(json.dumps(config)))
    for name in (names[0], names[len(names) // 2], names[-1]):
        assert refused(checkpoint_of(tmp_path, config, **{name: None}))
        short = arrays_of(json.dumps(config))[name][:-1]
        assert "shape" in refused(checkpoint_of(tmp_path, config, **{name: short}))


def shards(folder: Path, moved: dict[str, Any], unnamed: tuple[str, ...] = ()) -> Path:
    """The checkpoint in two shards, the second of which holds `moved`."""
    checkpoint_of(folder, LLAMA)
    arrays = arrays_of(json.dumps(LLAMA))
    (folder / "model.safetensors").unlink()
    save_file(arrays, folder / "model-00001-of-00002.safetensors")
    save_file(moved, folder / "model-00002-of-00002.safetensors")
    places = {name: "model-00001-of-00002.safetensors" for name in arrays}
    places |= {n: "model-00002-of-00002.safetensors" for n in moved if n not in (*arrays, *unnamed)}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places | {"x": "model-00002-of-00002.safetensors"}}))
    return folder


def test_what_an_index_does_not_name_is_not_overlooked(tmp_path: Path) -> None:
    one = {"x": np.ones(1, dtype="f4")}
    folder = shards(tmp_path / "a", one | {"extra": np.ones(1, dtype="f4")}, ("extra",))
    assert "holds x (and 1 more" in refused(folder)
    assert refl.load(folder, ignore_tensors=["x", "extra"])
    twice = one | {"model.norm.weight": np.ones(16, dtype="f4")}
    assert "expected each tensor once" in refused(shards(tmp_path / "b", twice))


def test_an_adapter_is_not_overlooked(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path, LLAMA)
    (folder / "adapter_config.json").write_text("{}")
    assert "adapter" in refused(folder)


# -- what config.json may not say ------------------------------------------------------------------

HUGE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (config, {option: value})
    for config in ARCHITECTURES.values()
    for option, value in [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 10**12),
        ("num_labels", 10**8),
        ("vocab_size", 10**9),
        ("hidden_size", 2**30),
        ("intermediate_size", 2**30),
        ("num_attention_heads", 2**20),
        ("head_dim", 2**16),
        ("n_layer", 10**9),
        ("n_embd", 2**30),
        ("n_head", 2**20),
        ("num_layers", 10**9),
        ("num_decoder_layers", 10**9),
        ("d_model", 2**30),
        ("relative_attention_num_buckets", 2**30),
        ("num_experts", 10**9),
        ("num_local_experts", 10**4),
        ("image_size", 2**30),
        ("num_hidden_groups", 10**9),
        ("n_positions", 2**30),
    ]
    if option in config
]


@pytest.mark.parametrize(("config", "huge"), HUGE)
def test_sizes_are_compared_with_the_file_before_anything_is_built(
    tmp_path: Path, config: dict[str, Any], huge: dict[str, Any]
) -> None:
    folder = checkpoint_of(tmp_path, config)
    (folder / "config.json").write_text(json.dumps(config | huge))
    before = time.process_time()
    refused(folder)
    assert time.process_time() - before < 0.5


def test_a_language_model_makes_no_labels(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path, LLAMA)
    (folder / "config.json").write_text(json.dumps(LLAMA | {"num_labels": 10**8}))
    before = time.process_time()
    assert not refl.load(folder).labels
    assert time.process_time() - before < 0.5


@pytest.mark.parametrize("keys", [["0", "2"], ["a", "b"], ["1", "2"], ["0", "٣"], ["0", "00"]])
def test_labels_are_numbered(tmp_path: Path, keys: list[str]) -> None:
    config = BERT | {"architectures": ["BertForSequenceClassification"]}
    folder = checkpoint_of(tmp_path, config)
    (folder / "config.json").write_text(json.dumps(config | {"id2label": dict.fromkeys(keys, "x")}))
    assert "id2label" in refused(folder)


@pytest.mark.parametrize(
    "said",
    [
        {"eos_token_id": "2"},
        {"eos_token_id": [True]},
        {"eos_token_id": [[1]]},
        {"eos_token_id": 1.5},
        {"decoder_start_token_id": "0"},
        {"decoder_start_token_id": 10**400},
        {"pad_token_id": "0", "decoder_start_token_id": None},
        {"model_type": ["t5"]},
        {"model_type": {}},
        {"model_type": None},
        {"model_type": 10**400},
    ],
)
def test_ids_and_names_are_of_their_kind(tmp_path: Path, said: dict[str, Any]) -> None:
    folder = checkpoint_of(tmp_path, T5)
    (folder / "config.json").write_text(json.dumps(T5 | said))
    assert next(iter(said)) in refused(folder)


def test_code_of_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    own = {"AutoConfig": "c.C", "AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}
    folder = checkpoint_of(tmp_path, LLAMA)
    (folder / "config.json").write_text(json.dumps(LLAMA | {"auto_map": own}))
    refl.load(folder)
    own["AutoModelForCausalLM"] = "modeling_mine.MyLlama"
    (folder / "config.json").write_text(json.dumps(LLAMA | {"auto_map": own}))
    assert "MyLlama" in refused(folder)
    assert refl.load(folder, ignore=["auto_map"]).ignored == {"ignored options": "auto_map"}


def test_an_option_given_twice(tmp_path: Path) -> None:
    folder = checkpoint_of(tmp_path, LLAMA)
    text = json.dumps(LLAMA)
    (folder / "config.json").write_text(text[:-1] + ', "rope_theta": 5.0}')
    assert "rope_theta is given twice" in refused(folder)


# -- what the numbers of a classifier are ----------------------------------------------------------

CLASSIFIER = BERT | {"architectures": ["BertForSequenceClassification"], "num_labels": 3}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, lambda z: np.exp(z) / np.exp(z).sum()),
        ({"problem_type": "single_label_classification"}, lambda z: np.exp(z) / np.exp(z).sum()),
        ({"problem_type": "multi_label_classification"}, lambda z: 1 / (1 + np.exp(-z))),
        ({"problem_type": "regression"}, lambda z: np.full(3, np.nan)),
        ({"num_labels": 1}, lambda z: np.full(1, np.nan)),
    ],
)
def test_the_probability_of_a_class_is_what_problem_type_makes_of_its_logit(
    tmp_path: Path, options: dict[str, Any], expected: Any
) -> None:
    """A softmax is right where one class is; one number alone would have the probability 1."""
    model = refl.load(checkpoint_of(tmp_path / "model", CLASSIFIER | options), dtype="float64")
    e = model.explain([1, 2, 4])
    p = expected(model.logits([1, 2, 4])[0])
    assert e.probability == pytest.approx(p[e.target_id], rel=1e-12, nan_ok=True)
    for c in e.candidates:
        assert c.probability == pytest.approx(p[c.id], rel=1e-12, nan_ok=True)
    said = json.loads(json.dumps(e.as_dict(), allow_nan=False))
    assert (said["probability"] is None) == np.isnan(p[e.target_id])
    shown = str(e)
    assert "nan%" not in shown + e.html() and ("probability" in shown) == (not np.isnan(p).all())
    e.save(tmp_path / "e.safetensors")
    assert refl.Explanation.load(tmp_path / "e.safetensors").as_dict() == said


@pytest.mark.parametrize("kind", ["probability", "log-probability"])
def test_seeds_of_a_softmax_are_refused_where_there_is_none(tmp_path: Path, kind: str) -> None:
    for number, problem in enumerate(("multi_label_classification", "regression")):
        folder = checkpoint_of(tmp_path / str(number), CLASSIFIER | {"problem_type": problem})
        with pytest.raises(ReflError, match=f"'{kind}' is that of a softmax"):
            refl.load(folder).explain([1, 2, 4], seed=kind)
    assert "expected single_label" in refused(
        checkpoint_of(tmp_path / "other", CLASSIFIER | {"problem_type": "ranking"})
    )


def test_classes_that_do_not_exclude_each_other_have_a_sigmoid_each_in_a_contrast(
    tmp_path: Path,
) -> None:
    many = CLASSIFIER | {"num_labels": 9, "problem_type": "multi_label_classification"}
    model = refl.load(checkpoint_of(tmp_path, many), dtype="float64")
    z = model.logits([1, 2, 4])[0]
    best, worst = int(z.argmax()), int(z.argmin())
    shown = str(model.explain([1, 2, 4], contrast=(best, worst)))
    assert f"{1 / (1 + np.exp(-z[worst])):.2%}" in shown and f"{z[worst]:.4f}" in shown


def test_features_have_no_probability(tmp_path: Path) -> None:
    e = refl.load(checkpoint_of(tmp_path, VIT | {"architectures": ["ViTModel"]})).explain(
        np.linspace(-1, 1, 288).reshape(3, 8, 12)
    )
    assert np.isnan(e.probability) and "probability" not in str(e)


def test_a_model_without_a_softmax_is_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Conservation then speaks of the logit's seed alone."""
    one = {"num_labels": 1, "num_hidden_layers": 1, "architectures": CLASSIFIER["architectures"]}
    folder = str(checkpoint_of(tmp_path / "model", BERT | one))
    assert main(["verify", "--model", folder, "--ids", "1", "2", "4", "--only", "3"]) == 0
    assert "hold" in capsys.readouterr().out
