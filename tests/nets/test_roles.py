"""Records say what they are in the architecture's own terms: which operation has which role, in
every net, whatever the checkpoint calls it. (Expected roles are written down by hand, from the
papers and the checkpoints' own names.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refl.nets import NETS
from refl.nets.roles import ROLES
from refl.trace import Record
from refl.verification.random_models import (
    ALBERT,
    ARCHITECTURES,
    BERT,
    CLIP,
    COHERE,
    DINOV2,
    FLAN,
    GEMMA2,
    GPT2,
    GPT_NEOX,
    LLAMA,
    MAMBA,
    MIXTRAL,
    NEWER,
    OLMO2,
    PHI,
    PHI3,
    QWEN3_MOE,
    REGISTERS,
    ROBERTA,
    T5,
    VIT,
    WHISPER,
    random_model,
)

SHARED_NETS = {"xlm-roberta", "camembert", "dinov2_with_registers", "mt5"}
"""Further model types of a net that is tested under another."""

VARIANTS: dict[str, dict[str, Any]] = (ARCHITECTURES | NEWER) | {
    "distilbert, classes": NEWER["distilbert"]
    | {"architectures": ["DistilBertForSequenceClassification"]},
    "modernbert, mean": NEWER["modernbert"]
    | {"architectures": ["ModernBertForSequenceClassification"], "classifier_pooling": "mean"},
    "bert, classes": BERT | {"architectures": ["BertForSequenceClassification"]},
    "bert, features": BERT | {"architectures": ["BertModel"]},
    "roberta, classes": ROBERTA | {"architectures": ["RobertaForSequenceClassification"]},
    "albert, classes": ALBERT | {"architectures": ["AlbertForSequenceClassification"]},
    "flan": T5 | FLAN,
    "vit, features": VIT | {"architectures": ["ViTModel"]},
    "clip": CLIP,
    "clip, classes": CLIP | {"architectures": ["CLIPForImageClassification"]},
    "dinov2": DINOV2,
    "dinov2, registers, gated": DINOV2 | REGISTERS,
    "phi, normed queries": PHI | {"qk_layernorm": True},
    "phi3": PHI3,
    "whisper": WHISPER,
}

WITHOUT = {"movement", "scale", "rotary", "gather"}
"""Operations that only rearrange, rotate or scale."""


def records(config: dict[str, Any], **how: Any) -> list[Record]:
    model = random_model(config, 5)
    item: Any = [3, 14, 1, 5, 9]
    if model.takes_images or model.compares:
        picture = np.ones((3, *model.config.image))
        item = (item, picture) if model.compares else picture
    item = np.ones(model.config.image) if model.takes_features else item
    how |= {"position": 1} if model.task == "masked-token" else {}
    how |= {"decoder": [[0, 4]]} if model.task == "sequence-to-sequence" else {}
    return model.trace([item], **how)[0].records


def roles(config: dict[str, Any], path: str) -> dict[str, str]:
    """Role by site, below a path."""
    return {
        r.output.site.removeprefix(path): r.role
        for r in records(config)
        if r.output.site.startswith(path) and r.role
    }


def test_there_is_a_small_model_of_every_net() -> None:
    assert set(ARCHITECTURES | NEWER) == set(NETS) - SHARED_NETS


@pytest.mark.parametrize("name", VARIANTS)
def test_every_operation_that_is_more_than_a_move_has_a_role(name: str) -> None:
    for r in records(VARIANTS[name]):
        assert (r.role in ROLES) != (r.operation in WITHOUT), (r.output.site, r.operation, r.role)


def test_every_role_of_the_table_is_some_net_s() -> None:
    """Those of an adapter come with an adapter (tests/refl/test_adapters.py)."""
    found = {r.role for c in VARIANTS.values() for r in records(c)} - {""}
    assert found == {role for role in ROLES if not role.startswith("adapter.")}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_role_is_always_the_same_operation(name: str) -> None:
    operations = {
        "linear": "attention.query attention.key attention.value attention.query_key_value "
        "attention.output mlp.gate mlp.up mlp.gate_up mlp.down router.logits patch_embedding "
        "embedding.projection head head.transform pooler convolution "
        "mixer.in mixer.parameters mixer.step mixer.out",
        "activation": "mlp.activation pooler.activation head.activation attention.cap head.cap "
        "convolution.activation mixer.activation mixer.step_size mixer.gate",
        "add": "residual embedding.sum attention.bias head.sum mixer.sum",
        "causal_convolution": "mixer.convolution mixer.skip",
        "scan": "mixer.scan",
        "softmax": "attention.probabilities router.probabilities",
        "matmul": "attention.scores attention.context head.similarity",
        "multiply": "mlp.product expert.weighted mixer.product layer_scale",
        "pooling": "head.mean",
    }
    for r in records(VARIANTS[name]):
        if r.operation in operations:
            assert r.role in operations[r.operation].split(), r.output.site


GATED = {
    "gate_proj": "mlp.gate",
    "act_fn": "mlp.activation",
    "up_proj": "mlp.up",
    "gated": "mlp.product",
    "down_proj": "mlp.down",
}
ATTENTION = {
    "q_proj": "attention.query",
    "k_proj": "attention.key",
    "v_proj": "attention.value",
    "scores": "attention.scores",
    "probabilities": "attention.probabilities",
    "context": "attention.context",
    "o_proj": "attention.output",
}
DECODER = {
    "input_layernorm": "norm",
    **{f"self_attn.{site}": role for site, role in ATTENTION.items()},
    "residual": "residual",
    "post_attention_layernorm": "norm",
    **{f"mlp.{site}": role for site, role in GATED.items()},
}
BLOCKS: dict[str, tuple[dict[str, Any], str, dict[str, str]]] = {
    "llama": (LLAMA, "model.layers.1.", DECODER),
    "olmo2": (
        OLMO2,
        "model.layers.1.",
        {site: role for site, role in DECODER.items() if site != "input_layernorm"}
        | dict.fromkeys(("self_attn.q_norm", "self_attn.k_norm"), "norm")
        | {"post_feedforward_layernorm": "norm"},
    ),
    "phi3": (
        PHI3,
        "model.layers.1.",
        {s: role for s, role in DECODER.items() if "proj" not in s and "act" not in s}
        | {
            "self_attn.qkv_proj": "attention.query_key_value",
            "self_attn.o_proj": "attention.output",
            "mlp.gate_up_proj": "mlp.gate_up",
            "mlp.activation_fn": "mlp.activation",
            "mlp.down_proj": "mlp.down",
        },
    ),
    "gpt_neox": (
        GPT_NEOX,
        "gpt_neox.layers.1.",
        {
            "input_layernorm": "norm",
            "attention.query_key_value": "attention.query_key_value",
            "attention.scores": "attention.scores",
            "attention.probabilities": "attention.probabilities",
            "attention.context": "attention.context",
            "attention.dense": "attention.output",
            "post_attention_layernorm": "norm",
            "mlp.dense_h_to_4h": "mlp.up",
            "mlp.act": "mlp.activation",
            "mlp.dense_4h_to_h": "mlp.down",
            "both": "residual",
        },
    ),
    "cohere": (
        COHERE,
        "model.layers.1.",
        {
            site: role
            for site, role in DECODER.items()
            if site not in ("residual", "post_attention_layernorm")
        }
        | dict.fromkeys(("self_attn.q_norm", "self_attn.k_norm"), "norm")
        | {"both": "residual"},
    ),
    "gemma2": (
        GEMMA2,
        "model.layers.1.",
        DECODER
        | {
            "self_attn.scores.tanh": "attention.cap",
            "pre_feedforward_layernorm": "norm",
            "post_feedforward_layernorm": "norm",
        },
    ),
    "gpt2": (
        GPT2,
        "transformer.h.1.",
        {
            "ln_1": "norm",
            "attn.c_attn": "attention.query_key_value",
            "attn.scores": "attention.scores",
            "attn.probabilities": "attention.probabilities",
            "attn.context": "attention.context",
            "attn.c_proj": "attention.output",
            "residual": "residual",
            "ln_2": "norm",
            "mlp.c_fc": "mlp.up",
            "mlp.act": "mlp.activation",
            "mlp.c_proj": "mlp.down",
        },
    ),
    "mamba": (
        MAMBA,
        "backbone.layers.1.",
        {
            "norm": "norm",
            "mixer.in_proj": "mixer.in",
            "mixer.conv1d": "mixer.convolution",
            "mixer.convolved": "mixer.activation",
            "mixer.x_proj": "mixer.parameters",
            "mixer.dt_proj": "mixer.step",
            "mixer.step_size": "mixer.step_size",
            "mixer.scan": "mixer.scan",
            "mixer.skip": "mixer.skip",
            "mixer.scanned": "mixer.sum",
            "mixer.gate": "mixer.gate",
            "mixer.gated": "mixer.product",
            "mixer.out_proj": "mixer.out",
        },
    ),
    "phi": (
        PHI,
        "model.layers.1.",
        {"input_layernorm": "norm", "both": "residual"}
        | {f"self_attn.{s}": role for s, role in ATTENTION.items() if s != "o_proj"}
        | {
            "self_attn.dense": "attention.output",
            "mlp.fc1": "mlp.up",
            "mlp.activation_fn": "mlp.activation",
            "mlp.fc2": "mlp.down",
        },
    ),
    "bert": (
        BERT,
        "bert.encoder.layer.1.",
        {
            "attention.self.query": "attention.query",
            "attention.self.key": "attention.key",
            "attention.self.value": "attention.value",
            "attention.self.scores": "attention.scores",
            "attention.self.probabilities": "attention.probabilities",
            "attention.self.context": "attention.context",
            "attention.output.dense": "attention.output",
            "attention.output.residual": "residual",
            "attention.output.LayerNorm": "norm",
            "intermediate.dense": "mlp.up",
            "intermediate.intermediate_act_fn": "mlp.activation",
            "output.dense": "mlp.down",
            "output.residual": "residual",
            "output.LayerNorm": "norm",
        },
    ),
    "vit": (
        VIT,
        "vit.encoder.layer.1.",
        {
            "layernorm_before": "norm",
            "attention.attention.query": "attention.query",
            "attention.attention.key": "attention.key",
            "attention.attention.value": "attention.value",
            "attention.attention.scores": "attention.scores",
            "attention.attention.probabilities": "attention.probabilities",
            "attention.attention.context": "attention.context",
            "attention.output.dense": "attention.output",
            "residual": "residual",
            "layernorm_after": "norm",
            "intermediate.dense": "mlp.up",
            "intermediate.intermediate_act_fn": "mlp.activation",
            "output.dense": "mlp.down",
            "output": "residual",
        },
    ),
    "t5, decoder, cross-attention": (
        T5,
        "decoder.block.1.layer.1.",
        {
            "layer_norm": "norm",
            "EncDecAttention.q": "attention.query",
            "EncDecAttention.k": "attention.key",
            "EncDecAttention.v": "attention.value",
            "EncDecAttention.scores": "attention.scores",
            "EncDecAttention.probabilities": "attention.probabilities",
            "EncDecAttention.context": "attention.context",
            "EncDecAttention.o": "attention.output",
        },
    ),
    "t5, mlp": (
        T5,
        "encoder.block.1.layer.1.DenseReluDense.",
        {"wi": "mlp.up", "act": "mlp.activation", "wo": "mlp.down"},
    ),
    "flan, mlp": (
        T5 | FLAN,
        "encoder.block.1.layer.1.DenseReluDense.",
        {
            "wi_0": "mlp.gate",
            "act": "mlp.activation",
            "wi_1": "mlp.up",
            "gated": "mlp.product",
            "wo": "mlp.down",
        },
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_the_roles_of_a_block(name: str) -> None:
    config, path, expected = BLOCKS[name]
    assert roles(config, path) == expected


@pytest.mark.parametrize(
    ("config", "path", "expert"),
    [
        (QWEN3_MOE, "model.layers.0.mlp.", GATED),
        (
            MIXTRAL,
            "model.layers.0.block_sparse_moe.",
            {"w1": "mlp.gate", "act_fn": "mlp.activation", "w3": "mlp.up", "gated": "mlp.product"}
            | {"w2": "mlp.down"},
        ),
    ],
    ids=["qwen3_moe", "mixtral"],
)
def test_the_roles_of_a_mixture(config: dict[str, Any], path: str, expert: dict[str, str]) -> None:
    found = roles(config, path)
    router = {site: role for site, role in found.items() if not site.startswith("experts.")}
    assert router == {
        "gate": "router.logits",
        "probabilities": "router.probabilities",
        "chosen": "router.choice",
        "routing_weights": "router.weights",
    }
    numbers = {site.split(".")[1] for site in found if site.startswith("experts.")}
    assert numbers
    assert found == router | {
        f"experts.{e}.{site}": role
        for e in numbers
        for site, role in {**expert, "weighted": "expert.weighted"}.items()
    }
    assert roles(config, path[:-1])[""] == "expert.sum"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", {"model.embed_tokens": "tokens", "model.norm": "norm", "lm_head": "head"}),
        (
            "gpt2",
            {
                "transformer.wte": "tokens",
                "transformer.wpe": "position",
                "transformer.drop": "embedding.sum",
                "lm_head": "head",
            },
        ),
        ("gemma2", {"lm_head": "head", "lm_head.tanh": "head.cap"}),
        (
            "bert",
            {
                "bert.embeddings.word_embeddings": "tokens",
                "bert.embeddings.token_type_embeddings": "token_type",
                "bert.embeddings.position_embeddings": "position",
                "bert.embeddings.typed": "embedding.sum",
                "bert.embeddings.placed": "embedding.sum",
                "cls.predictions.transform.dense": "head.transform",
                "cls.predictions.transform.transform_act_fn": "head.activation",
                "cls.predictions.decoder": "head",
            },
        ),
        (
            "bert, classes",
            {
                "bert.pooler.dense": "pooler",
                "bert.pooler.activation": "pooler.activation",
                "classifier": "head",
            },
        ),
        ("roberta", {"lm_head.dense": "head.transform", "lm_head.decoder": "head"}),
        (
            "roberta, classes",
            {"classifier.dense": "head.transform", "classifier.out_proj": "head"},
        ),
        (
            "albert",
            {
                "albert.encoder.embedding_hidden_mapping_in": "embedding.projection",
                "predictions.dense": "head.transform",
                "predictions.decoder": "head",
            },
        ),
        (
            "deit",
            {
                "pixel_values": "pixels",
                "deit.embeddings.patch_embeddings.projection": "patch_embedding",
                "deit.embeddings.cls_token": "class_token",
                "deit.embeddings.distillation_token": "distillation_token",
                "deit.embeddings.position_embeddings": "position",
                "cls_classifier": "head",
                "distillation_classifier": "head",
                "logits.sum": "head.sum",
            },
        ),
        ("vit, features", {"vit.pooler.dense": "pooler"}),
        (
            "t5",
            {
                "encoder.embed_tokens": "tokens",
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias": "position",
                "encoder.block.1.layer.0.SelfAttention.scores.biased": "attention.bias",
                "lm_head": "head",
            },
        ),
    ],
)
def test_roles_before_and_after_the_blocks(name: str, expected: dict[str, str]) -> None:
    found = roles(VARIANTS[name], "")
    assert {site: found.get(site) for site in expected} == expected


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_roles_are_the_same_where_blocks_are_computed_again(name: str) -> None:
    """What a block records, when the sweep runs it again, has the roles of the first run."""
    again: dict[str, str] = {}
    for record in records(ARCHITECTURES[name], recompute=True):
        inner = record.parts[0].run()[0].records if record.parts else [record]
        again |= {r.output.site: r.role for r in inner}
    assert again == {r.output.site: r.role for r in records(ARCHITECTURES[name])}
