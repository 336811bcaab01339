"""Patching, attribution patching and RelP beside transformers: exact effects by forward hooks that
put a row in place, coefficients by autograd, for RelP with norms, slopes and gates changed as its
paper has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
from transformers_models import Make

import refl
from refl import anatomy
from refl.evaluation import patching
from refl.evaluation.patching import Pair
from refl.rules.published import GRADIENT, RELP
from refl.verification.peers.lxt import wide, widened

pytestmark = pytest.mark.peers
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")

CLEAN, CORRUPTED, ANSWER, AGAINST = [3, 11, 7, 20, 5], [3, 14, 7, 20, 5], 9, 2


def layer_norm(self: Any, x: Any) -> Any:
    """LN-rule: the scale is a constant."""
    centered = x - x.mean(-1, keepdim=True)
    scale = (x.var(-1, unbiased=False, keepdim=True) + self.eps).sqrt().detach()
    return centered / scale * self.weight + self.bias


def rms_norm(self: Any, x: Any) -> Any:
    scale = (x.square().mean(-1, keepdim=True) + self.variance_epsilon).sqrt().detach()
    return x / scale * self.weight


class Slope(torch.nn.Module):
    """Identity-rule: f(x)/x is a constant."""

    def __init__(self, f: Any) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Any) -> Any:
        return x * (self.f(x) / x).detach()


def gated(self: Any, x: Any) -> Any:
    """Half-rule: either factor hands on half of the derivative."""
    z = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
    return self.down_proj(z / 2 + (z / 2).detach())


@contextmanager
def relp(model: Any) -> Iterator[None]:
    """The same forward, whose derivatives are RelP's coefficients."""
    with ExitStack() as stack:
        patch = pytest.MonkeyPatch()
        stack.callback(patch.undo)
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                patch.setattr(module, "forward", layer_norm.__get__(module))
            if hasattr(module, "variance_epsilon"):
                patch.setattr(module, "forward", rms_norm.__get__(module))
            if hasattr(module, "gate_proj"):
                patch.setattr(module, "forward", gated.__get__(module))
            for name in ("act", "act_fn"):
                if isinstance(getattr(module, name, None), torch.nn.Module):
                    patch.setattr(module, name, Slope(getattr(module, name)))
        yield


def metric(model: Any, ids: list[int], **hooks: Any) -> Any:
    """Logit of the answer less that of the other, and what the sites held; with `put`: (site, row,
    activation) in place.
    """
    held: dict[str, Any] = {}
    put = hooks.get("put")

    def hook(site: str) -> Any:
        def noted(_: Any, inputs: Any, output: Any) -> Any:
            x = output[0] if isinstance(output, tuple) else output
            if put is not None and put[0] == site:
                x = x.clone()
                x[0, put[1]] = put[2]
            elif x.requires_grad:
                x.retain_grad()
            held[site] = x
            return (x, *output[1:]) if isinstance(output, tuple) else x

        return noted

    modules = dict(model.named_modules())
    handles = [modules[site].register_forward_hook(hook(site)) for site in hooks["sites"]]
    tokens = torch.tensor([ids])
    z = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
    for handle in handles:
        handle.remove()
    return z[0, -1, ANSWER] - z[0, -1, AGAINST], held


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_exact_effects_and_both_approximations(kind: str, make: Make) -> None:
    folder = make(kind)
    ours = refl.load(folder, dtype="float64")
    pair = Pair.read(ours, CLEAN, CORRUPTED, ANSWER, AGAINST)
    sites = [site for k in anatomy.KINDS for site in anatomy.sites(ours, k)]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto")
    with wide():
        theirs = widened(loaded)
        _, clean = metric(theirs, CLEAN, sites=sites)
        before, _ = metric(theirs, CORRUPTED, sites=sites)
        exact = patching.exact(pair, sites)
        for site in (sites[0], sites[-1], sites[len(sites) // 2]):
            for t in range(len(CLEAN)):
                put = (site, t, clean[site][0, t].detach())
                after, _ = metric(theirs, CORRUPTED, sites=sites, put=put)
                assert exact[site][t] == pytest.approx((after - before).item(), abs=1e-10)
        same(patching.approximate(pair, sites, GRADIENT), by_autograd(theirs, sites, clean))
        with relp(theirs):
            expected = by_autograd(theirs, sites, clean)
        same(patching.approximate(pair, sites, RELP), expected)


def by_autograd(model: Any, sites: list[str], clean: dict[str, Any]) -> dict[str, Any]:
    m, held = metric(model, CORRUPTED, sites=sites)
    m.backward()
    return {
        site: ((clean[site] - x) * x.grad)[0].sum(-1).detach().numpy() for site, x in held.items()
    }


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    size = max(float(np.abs(row).max()) for row in expected.values())
    for site, row in expected.items():
        assert np.abs(found[site] - row).max() <= 1e-9 * size, site
