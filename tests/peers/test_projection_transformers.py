"""Vocabulary projection against a few lines on transformers' own modules, in float64: its weights,
and the head outputs that its output layers read (by pre-hooks).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_models import random_model, random_t5, random_vision

import refl
from refl.latent.projection import project
from refl.verification.peers.lxt import wide

pytestmark = pytest.mark.peers
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")

IDS, PREFIX = [3, 14, 15, 9, 26, 5], [0, 7, 11]


def loaded(model: Any, folder: Path) -> tuple[Any, refl.Model]:
    """In transformers and here, both in float64: theirs made anew, for its angles to be so too."""
    model.save_pretrained(folder)
    with wide():
        twin = type(model)._from_config(
            model.config, torch_dtype=torch.float64, attn_implementation="eager"
        )
        twin.load_state_dict(model.state_dict())
    return twin.eval(), refl.load(folder, dtype="float64")


def read_by(module: Any, model: Any, **inputs: Any) -> Any:
    """What a module reads in a run: (T, I)."""
    found: list[Any] = []
    hook = module.register_forward_pre_hook(lambda _, values: found.append(values[0]))
    with wide(), torch.no_grad():
        model(**inputs)
    hook.remove()
    return found[-1][0]


def ids(numbers: list[int]) -> Any:
    return torch.tensor([numbers])


def agree(ours: Any, theirs: Any) -> None:
    theirs = theirs.detach().numpy()
    assert np.abs(ours - theirs).max() <= 1e-13 * np.abs(theirs).max()


def centered(v: Any) -> Any:
    return v - v.mean()


def test_llama(tmp_path: Path) -> None:
    model, ours = loaded(random_model("llama", num_key_value_heads=2), tmp_path)
    u, w, layer = model.lm_head.weight, model.model.norm.weight, model.model.layers[1]
    row = layer.mlp.down_proj.weight[:, 17]
    agree(project(ours, "L1.N17").logits, u @ (w * row))
    agree(project(ours, "L1.N17", norm=False).logits, u @ row)
    x = read_by(layer.self_attn.o_proj, model, input_ids=ids(IDS))
    d = x.shape[-1] // 4
    v = layer.self_attn.o_proj.weight[:, 2 * d : 3 * d] @ x[3, 2 * d : 3 * d]
    agree(project(ours, "L1.H2", item=IDS, position=3).logits, u @ (w * v))


def test_gpt2(tmp_path: Path) -> None:
    model, ours = loaded(random_model("gpt2"), tmp_path)
    u, w, block = model.lm_head.weight, model.transformer.ln_f.weight, model.transformer.h[0]
    row = block.mlp.c_proj.weight[11]  # Conv1D: (I, O)
    agree(project(ours, "L0.N11").logits, u @ (w * centered(row)))
    agree(project(ours, "L0.N11", norm=False).logits, u @ row)
    x = read_by(block.attn.c_proj, model, input_ids=ids(IDS))
    v = x[-1, 6:12] @ block.attn.c_proj.weight[6:12]
    agree(project(ours, "L0.H1", item=IDS).logits, u @ (w * centered(v)))


def test_gemma2(tmp_path: Path) -> None:
    """1 + weight, behind the MLP as well; before the cap."""
    model, ours = loaded(random_model("gemma2"), tmp_path)
    u, w, layer = model.lm_head.weight, 1 + model.model.norm.weight, model.model.layers[0]
    row = (1 + layer.post_feedforward_layernorm.weight) * layer.mlp.down_proj.weight[:, 4]
    agree(project(ours, "L0.N4").logits, u @ (w * row))
    agree(project(ours, "L0.N4", norm=False).logits, u @ row)
    x = read_by(layer.self_attn.o_proj, model, input_ids=ids(IDS))
    v = layer.self_attn.o_proj.weight[:, 6:12] @ x[2, 6:12]
    v = (1 + layer.post_attention_layernorm.weight) * v
    agree(project(ours, "L0.H1", item=IDS, position=2).logits, u @ (w * v))


def test_the_decoder_of_t5(tmp_path: Path) -> None:
    """Its table is tied, and scaled."""
    model, ours = loaded(random_t5(), tmp_path)
    u, w = model.shared.weight * model.config.d_model**-0.5, model.decoder.final_layer_norm.weight
    block = model.decoder.block[1]
    row = block.layer[2].DenseReluDense.wo.weight[:, 3]
    agree(project(ours, "decoder.L1.N3").logits, u @ (w * row))
    inputs = {"input_ids": ids(IDS), "decoder_input_ids": ids(PREFIX)}
    for name, layer in (
        ("H1", block.layer[0].SelfAttention),
        ("cross.H1", block.layer[1].EncDecAttention),
    ):
        x, d = read_by(layer.o, model, **inputs), model.config.d_kv
        v = layer.o.weight[:, d : 2 * d] @ x[1, d : 2 * d]
        p = project(ours, f"decoder.L1.{name}", item=IDS, decoder=PREFIX, position=1)
        agree(p.logits, u @ (w * v))


def test_vit(tmp_path: Path) -> None:
    model, ours = loaded(random_vision("vit", "ForImageClassification"), tmp_path)
    u, w, layer = model.classifier.weight, model.vit.layernorm.weight, model.vit.encoder.layer[2]
    row = layer.output.dense.weight[:, 5]
    agree(project(ours, "L2.N5").logits, u @ (w * centered(row)))
    x = np.random.default_rng(1).standard_normal((3, 12, 12))
    read = read_by(layer.attention.output.dense, model, pixel_values=torch.tensor(x[None]))
    v = layer.attention.output.dense.weight[:, 6:12] @ read[0, 6:12]
    agree(project(ours, "L2.H1", item=x).logits, u @ (w * centered(v)))
