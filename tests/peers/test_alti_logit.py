"""ALTI-Logit against its equations in torch, on what hooks find in transformers' own GPT-2 and
Llama: all o_t<-s of a block at once, (T, T, D).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers_models import Make

import refl
from refl.verification.peers.lxt import wide, widened

pytestmark = pytest.mark.peers
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")

IDS = [3, 1, 4, 1, 5, 9, 2, 6]


class Hooked:
    """A model and what went into and came out of its modules, by path."""

    def __init__(self, folder: Any) -> None:
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            folder, torch_dtype="auto", attn_implementation="eager"
        )
        self.into: dict[str, Any] = {}
        self.out: dict[str, Any] = {}
        with wide(), torch.no_grad():
            self.model = widened(loaded)
            for path, module in self.model.named_modules():
                module.register_forward_hook(self._keeps(path))
            found = self.model(
                input_ids=torch.tensor([IDS]),
                attention_mask=torch.ones(1, len(IDS), dtype=torch.long),
                use_cache=False,
                output_attentions=True,
            )
        self.logits, self.attentions = found.logits[0], [a[0] for a in found.attentions]

    def _keeps(self, path: str) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            self.into[path] = arguments[0][0] if arguments else None
            self.out[path] = (output[0] if isinstance(output, tuple) else output)[0]

        return hook


def layer_norm(module: Any, x: Any, at: Any) -> Any:
    """Without its bias, at the scale that it has for `at`."""
    scale = (at.var(-1, keepdim=True, unbiased=False) + module.eps).rsqrt()
    return (x - x.mean(-1, keepdim=True)) * scale * module.weight


def rms_norm(module: Any, x: Any, at: Any) -> Any:
    return x * (at.pow(2).mean(-1, keepdim=True) + module.variance_epsilon).rsqrt() * module.weight


def gpt2(found: Hooked, biased: bool) -> tuple[list[Any], Any]:
    """Of each block (x, attention's output, from each source to each head's output: (S, H, D));
    and the last norm as a matrix, at the last token.
    """
    blocks, heads = [], found.model.config.n_head
    for i in range(found.model.config.n_layer):
        h = found.model.transformer.h[i]
        x = found.into[f"transformer.h.{i}.ln_1"]
        n, width = layer_norm(h.ln_1, x, x), x.shape[-1]
        v = n @ h.attn.c_attn.weight[:, 2 * width :]
        if biased:
            v = v + h.ln_1.bias @ h.attn.c_attn.weight[:, 2 * width :]
            v = v + h.attn.c_attn.bias[2 * width :]
        w_o = h.attn.c_proj.weight.reshape(heads, width // heads, width)
        each = torch.einsum("shd,hdo->sho", v.reshape(len(IDS), heads, -1), w_o)
        blocks.append((x, found.out[f"transformer.h.{i}.attn.c_proj"], each))
    last = found.into["transformer.ln_f"]
    return blocks, layer_norm(found.model.transformer.ln_f, torch.eye(last.shape[-1]), last[-1])


def llama(found: Hooked, biased: bool) -> tuple[list[Any], Any]:
    blocks, c = [], found.model.config
    heads, groups = c.num_attention_heads, c.num_attention_heads // c.num_key_value_heads
    for i, layer in enumerate(found.model.model.layers):
        x = found.into[f"model.layers.{i}.input_layernorm"]
        v = rms_norm(layer.input_layernorm, x, x) @ layer.self_attn.v_proj.weight.T
        if biased:
            v = v + layer.self_attn.v_proj.bias
        v = v.reshape(len(IDS), heads // groups, -1).repeat_interleave(groups, dim=1)
        w_o = layer.self_attn.o_proj.weight.T.reshape(heads, -1, x.shape[-1])
        each = torch.einsum("shd,hdo->sho", v, w_o)
        blocks.append((x, found.out[f"model.layers.{i}.self_attn.o_proj"], each))
    last = found.into["model.norm"]
    return blocks, rms_norm(found.model.model.norm, torch.eye(last.shape[-1]), last[-1])


def alti_logit(found: Hooked, parts: Any, target: int, against: int, biased: bool) -> Any:
    blocks, last_norm = parts(found, biased)
    head = found.model.get_output_embeddings().weight
    u = last_norm @ (head[target] - head[against])  # of a basis: the map's transpose times U
    scores, mixed = 0, torch.eye(len(IDS))
    for (x, out, each), attention in zip(blocks, found.attentions, strict=True):
        o = torch.einsum("hts,shd->tsd", attention, each)
        scores = scores + (o[-1] @ u) @ mixed
        y = x + out
        own = torch.eye(len(IDS))[:, :, None] * x[None]
        far = (o + own - y[:, None]).abs().sum(-1)
        c = (y.abs().sum(-1, keepdim=True) - far).clamp(min=0)
        mixed = c / c.sum(-1, keepdim=True) @ mixed
    return scores.detach().numpy()


@pytest.mark.parametrize(
    ("kind", "parts", "options", "biased"),
    [
        ("gpt2", gpt2, {}, False),
        ("gpt2", gpt2, {}, True),
        ("llama", llama, {"num_key_value_heads": 2, "attention_bias": True}, False),
        ("llama", llama, {"num_key_value_heads": 2, "attention_bias": True}, True),
        ("llama", llama, {"num_hidden_layers": 3}, False),
    ],
    ids=["gpt2", "gpt2-sources", "llama-biased", "llama-biased-sources", "llama"],
)
def test_scores(make: Make, kind: str, parts: Any, options: dict[str, Any], biased: bool) -> None:
    folder = make(kind, **options)
    model = refl.load(folder, dtype="float64")
    e = model.explain(IDS, method="alti-logit", contrast=(7, 20), options={"value_biases": biased})
    found = Hooked(folder)
    with torch.no_grad(), _Double():
        wanted = alti_logit(found, parts, 7, 20, biased)
    assert abs(e.explained - float(found.logits[-1, 7] - found.logits[-1, 20])) <= 1e-11
    assert abs(e.relevance - wanted).max() <= 1e-11 * np.abs(wanted).sum()


class _Double:
    """torch.eye in float64."""

    def __enter__(self) -> None:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self.before)
