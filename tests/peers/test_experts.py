"""Mixtral and Qwen 3 MoE against transformers, in float64: every option of config.json that their
nets read, lengths, padding, refusals.

`wide` lifts transformers' float32 islands, the router's softmax among them. Routers get random
weights like everything else, so that tokens spread over the experts; two probabilities are never
equal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_forward import BOUND, ROPE, agree, draw, reference, same_forward
from transformers_models import EXPERTS, Make, random_model

import refl
from refl.errors import ReflError

pytestmark = pytest.mark.peers


MIXTRAL: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "one-key-value-head": {"num_key_value_heads": 1, "head_dim": 10},
    "no-groups": {"num_key_value_heads": 4, "rms_norm_eps": 1e-2},
    "one-expert": {"num_experts_per_tok": 1},
    "every-expert": {"num_experts_per_tok": 5},
    "many-experts": {"num_local_experts": 16, "num_experts_per_tok": 3, "hidden_act": "gelu"},
    "window": {"sliding_window": 5},
    "window-of-one": {"sliding_window": 1, "num_hidden_layers": 1},
    "theta": {"rope_theta": 500.0, "hidden_act": "relu"},
    "linear-rope": {"rope_scaling": ROPE["linear"]},
    "llama3-rope": {"rope_scaling": ROPE["llama3"]},
    "training-options": {
        "output_router_logits": True,
        "router_aux_loss_coef": 0.5,
        "router_jitter_noise": 0.1,
    },
}


@pytest.mark.parametrize("options", MIXTRAL.values(), ids=MIXTRAL)
def test_mixtral_options(make: Make, options: dict[str, Any]) -> None:
    same_forward(make("mixtral", **options))


QWEN3_MOE: dict[str, dict[str, Any]] = {
    "plain": {},
    "renormalized": {"norm_topk_prob": True},
    "tied": {"tie_word_embeddings": True, "norm_topk_prob": True},
    "biases": {"attention_bias": True, "num_key_value_heads": 1},
    "no-groups": {"num_key_value_heads": 4},
    "wide-heads": {"head_dim": 10},
    "one-expert": {"num_experts_per_tok": 1},
    "every-expert": {
        "num_experts_per_tok": 7,
        "norm_topk_prob": True,
        "hidden_act": "gelu_pytorch_tanh",
    },
    "second-blocks": {"decoder_sparse_step": 2, "num_hidden_layers": 3},
    "some-dense": {"mlp_only_layers": [0, 2], "num_hidden_layers": 4, "intermediate_size": 30},
    "all-dense": {"mlp_only_layers": [0, 1]},
    "window": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
    "window-unused": {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 1},
    "yarn": {"rope_scaling": ROPE["yarn"], "rope_theta": 100.0},
    "norm-eps": {"rms_norm_eps": 1e-2, "rope_theta": 1e6},
    "training-options": {"output_router_logits": True, "router_aux_loss_coef": 0.5},
}


@pytest.mark.parametrize("options", QWEN3_MOE.values(), ids=QWEN3_MOE)
def test_qwen3_moe_options(make: Make, options: dict[str, Any]) -> None:
    same_forward(make("qwen3_moe", **options))


def test_head_dim_left_out(make: Make) -> None:
    """Older files have none: it is hidden_size over heads."""
    folder = make("qwen3_moe", head_dim=6)
    config = json.loads((folder / "config.json").read_text())
    del config["head_dim"]
    (folder / "config.json").write_text(json.dumps(config))
    same_forward(folder)


@pytest.mark.parametrize("kind", EXPERTS)
def test_padded_batch(make: Make, kind: str) -> None:
    """transformers sends padding to experts too, refl does not:
    what is read of the logits is the same.
    """
    folder = make(kind)
    texts = [draw(5), draw(13), draw(1)]
    padded = [text + [0] * (13 - len(text)) for text in texts]
    theirs = reference(folder, padded, [[i < len(text) for i in range(13)] for text in texts])
    model = refl.load(folder, dtype="float64")
    _, logits = model.trace(texts)
    agree(logits.array[:, 0], np.stack([theirs[b, len(text) - 1] for b, text in enumerate(texts)]))
    for item, one in zip(texts, model.explain(texts, keep=()), strict=True):
        assert one.logit == pytest.approx(model.logits(item)[-1].max(), rel=BOUND)


@pytest.mark.parametrize("kind", EXPERTS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_stored_dtype(tmp_path: Path, kind: str, dtype: str) -> None:
    import torch

    random_model(kind).to(getattr(torch, dtype)).save_pretrained(tmp_path)
    agree(refl.load(tmp_path, dtype="float64").logits(draw(13)), reference(tmp_path, [draw(13)])[0])


@pytest.mark.parametrize("kind", EXPERTS)
def test_shards(make: Make, kind: str) -> None:
    folder = make(kind, save={"max_shard_size": "8KB"})
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    same_forward(folder, lengths=(3,))


@pytest.mark.parametrize(
    ("kind", "module"), [("mixtral", "block_sparse_moe"), ("qwen3_moe", "mlp")]
)
def test_what_hooks_see(make: Make, kind: str, module: str) -> None:
    """An expert's input and output, row for row, and the router's logits,
    beside transformers' forward hooks.
    """
    import torch
    import transformers

    from refl.verification.peers.lxt import wide, widened

    folder, ids, seen = make(kind), draw(11), {}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with wide(), torch.no_grad():
        model = widened(loaded)
        for name, part in model.named_modules():
            part.register_forward_hook(
                lambda _, x, y, name=name: seen.update({name: (x[0].numpy() if x else None, y)})
            )
        model(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            use_cache=False,
        )
    e = refl.load(folder, dtype="float64").explain(ids)
    assert e.experts()
    for site in e.experts():
        x, y = seen[site]
        assert np.abs(e.activation(f"{site}.input") - x).max() < 1e-12
        assert np.abs(e.activation(site) - y.numpy()).max() < 1e-12
    at = f"model.layers.1.{module}"
    assert np.abs(e.activation(f"{at}.gate") - seen[f"{at}.gate"][1].numpy()).max() < 1e-12
    assert np.abs(e.activation(at) - seen[at][1][0][0].numpy()).max() < 1e-12


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("mixtral", {"num_experts_per_tok": 6}, "num_experts_per_tok = 6, but only 5 experts"),
    ("mixtral", {"num_local_experts": 4}, "experts.4|num_local_experts"),
    ("mixtral", {"num_local_experts": 0}, "num_local_experts"),
    ("mixtral", {"attention_bias": True}, "attention_bias"),
    ("mixtral", {"hidden_act": "gelu_10"}, "gelu_10"),
    ("mixtral", {"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantization_config"),
    ("mixtral", {"rope_scaling": {"rope_type": "su", "factor": 2.0}}, "'su'"),
    ("qwen3_moe", {"num_experts": 0}, "num_experts"),
    ("qwen3_moe", {"num_experts_per_tok": 8}, "num_experts_per_tok = 8, but only 7 experts"),
    ("qwen3_moe", {"moe_intermediate_size": 11}, "moe_intermediate_size|intermediate_size"),
    ("qwen3_moe", {"mlp_only_layers": [0]}, "model.layers.0.mlp"),
    ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step"),
    ("qwen3_moe", {"shared_expert_intermediate_size": 12}, "shared_expert_intermediate_size"),
    ("qwen3_moe", {"scoring_func": "sigmoid"}, "scoring_func"),
]


@pytest.mark.parametrize(
    ("kind", "options", "named"), REFUSED, ids=[f"{kind}-{next(iter(o))}" for kind, o, _ in REFUSED]
)
def test_refused_by_name(make: Make, kind: str, options: dict[str, Any], named: str) -> None:
    folder = make(kind)
    refl.load(folder)
    config = json.loads((folder / "config.json").read_text()) | options
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ReflError, match=named):
        refl.load(folder)
