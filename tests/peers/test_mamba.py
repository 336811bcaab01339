"""Mamba: the forward pass against transformers' own, in float64, with every option it reads; and
relevance against MambaLRP (Rezaei Jafari et al. 2024, arXiv 2406.07592, section 4), whose equations
are written here in torch once more: constants are detached, and autograd does the rest.

transformers computes A, the steps' product with B and norms in float32; `wide` lifts that. Its
softplus is x above 20, by torch's threshold; no step here comes near that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_forward import agree, draw, reference, same_forward
from transformers_models import _drawn

import refl
from refl.verification.peers.lxt import wide, widened

pytestmark = pytest.mark.peers
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")

LENGTHS = (1, 2, 3, 13)

SMALL: dict[str, Any] = {
    "vocab_size": 29,
    "hidden_size": 20,
    "state_size": 5,
    "num_hidden_layers": 2,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"use_bias": True, "conv_kernel": 3},
    "no-convolution-bias": {"use_conv_bias": False, "time_step_rank": 5},
    "untied-gelu": {"tie_word_embeddings": False, "hidden_act": "gelu", "state_size": 1},
    "kernel-1": {"conv_kernel": 1, "expand": 1, "layer_norm_epsilon": 1e-2},
    "kernel-7": {"conv_kernel": 7, "expand": 3, "num_hidden_layers": 3, "use_bias": True},
    "half-as-wide": {"expand": 0.5, "hidden_size": 18, "time_step_rank": 1},
    "residual-in-its-dtype": {"residual_in_fp32": False, "state_size": 16, "hidden_act": "relu"},
    "own-width": {"intermediate_size": 33, "rescale_prenorm_residual": True},
}


@pytest.fixture(params=OPTIONS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return saved(tmp_path, **OPTIONS[request.param])


def saved(folder: Path, **options: Any) -> Path:
    """A model of these options."""
    config = transformers.MambaConfig(**SMALL | options)
    _drawn(transformers.MambaForCausalLM(config), _scaled).save_pretrained(folder)
    return folder


def _scaled(name: str, noise: Any) -> Any:
    """Decays from nearly 0 to nearly 1."""
    if noise.ndim == 1 and name.endswith("weight") or name.endswith(".D"):
        return 1 + 0.3 * noise
    if name.endswith("A_log") or "embeddings" in name:
        return noise
    return 0.3 * noise if noise.ndim == 1 else noise * noise[0].numel() ** -0.5


def test_options(folder: Path) -> None:
    same_forward(folder, LENGTHS)


@pytest.mark.parametrize("name", ["plain", "biases", "kernel-7"])
def test_padded_batch(tmp_path: Path, name: str) -> None:
    """Right padding, as refl pads: transformers sets what it hides to zero on either side of the
    convolution, and what comes behind a text changes nothing in it.
    """
    folder = saved(tmp_path, **OPTIONS[name])
    texts = [draw(5), draw(13), draw(1), draw(2)]
    padded = [text + [0] * (13 - len(text)) for text in texts]
    theirs = reference(folder, padded, [[i < len(text) for i in range(13)] for text in texts])
    _, logits = refl.load(folder, dtype="float64").trace(texts)
    agree(logits.array[:, 0], np.stack([theirs[b, len(text) - 1] for b, text in enumerate(texts)]))


@pytest.mark.parametrize("name", ["plain", "kernel-1", "kernel-7"])
def test_generate(tmp_path: Path, name: str) -> None:
    """Either holds states of convolution and scan. (Without a mask transformers hides tokens of a
    text that are the padding token. Of a text shorter than the kernel 4.52.4 holds the inputs of
    the convolution at the wrong places, the first behind the zeros in front of them and the next
    counted from the start: there it is run without states.)
    """
    folder = saved(tmp_path, eos_token_id=None, **OPTIONS[name])
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ours = refl.load(folder, dtype="float64")
    for length in (2, 9):
        ids = torch.tensor([draw(length)])
        with wide(), torch.no_grad():
            theirs = widened(loaded).generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=9,
                do_sample=False,
                use_cache=length > 7,
            )
        assert ours.generate(draw(length), 9) == theirs[0].tolist()


# -- MambaLRP --------------------------------------------------------------------------------------


def halved(x: Any) -> Any:
    """Of what arrives, half goes on."""
    return x / 2 + (x / 2).detach()


def as_identity(x: Any, z: Any) -> Any:
    """z = x (z / x), the factor a constant."""
    return x * (z / x).detach()


def silu(x: Any) -> Any:
    return as_identity(x, torch.nn.functional.silu(x))


def rms_norm(module: Any, x: Any) -> Any:
    scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
    return module.weight * (x * scale.detach())


def mixer(m: Any, u: Any) -> Any:  # (1, T, D) -> (1, T, D)
    """transformers' slow_forward, of which A, B, C and the step size are constants."""
    x, z = m.in_proj(u).transpose(1, 2).chunk(2, dim=1)
    x = silu(m.conv1d(x)[..., : u.shape[1]])
    step, b, c = torch.split(
        m.x_proj(x.transpose(1, 2)), [m.time_step_rank, m.ssm_state_size, m.ssm_state_size], dim=-1
    )
    d = torch.nn.functional.softplus(m.dt_proj(step)).transpose(1, 2).detach()
    decay = torch.exp(-torch.exp(m.A_log)[None, :, None, :] * d[..., None]).detach()
    state, ys = torch.zeros(1, x.shape[1], m.ssm_state_size, dtype=x.dtype), []
    for t in range(u.shape[1]):
        new = d[:, :, t, None] * b[:, None, t].detach() * x[:, :, t, None]
        state = decay[:, :, t] * state + new
        ys.append((state * c[:, None, t].detach()).sum(-1))
    y = torch.stack(ys, dim=-1) + x * m.D[None, :, None]
    return m.out_proj(halved(y * silu(z)).transpose(1, 2))


def mamba_lrp(model: Any, ids: Sequence[int], target: int) -> dict[str, Any]:
    """Site -> gradient x input, of the embeddings and of every block's output."""
    backbone, held = model.backbone, {}
    h = held["backbone.embeddings"] = backbone.embeddings(torch.tensor([ids]))
    h.retain_grad()
    for i, block in enumerate(backbone.layers):
        h = held[f"backbone.layers.{i}"] = h + mixer(block.mixer, rms_norm(block.norm, h))
        h.retain_grad()
    logits = model.lm_head(rms_norm(backbone.norm_f, h))[0, -1]
    logits[target].backward()
    return {site: (x * x.grad)[0].detach().numpy() for site, x in held.items()}


SILU = [name for name, options in OPTIONS.items() if "hidden_act" not in options]


def lengths() -> Iterator[int]:
    yield from (1, 2, 11)


@pytest.mark.parametrize("name", SILU)
def test_relevance_is_that_of_mamba_lrp(tmp_path: Path, name: str) -> None:
    """At the embeddings and at every block."""
    folder = saved(tmp_path, **OPTIONS[name])
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with wide():
        model = widened(loaded)
    ours = refl.load(folder, dtype="float64")
    for length in lengths():
        e = ours.explain(draw(length), "attnlrp-gradient", keep="*")
        with wide():
            expected = mamba_lrp(model, draw(length), e.target_id)
        assert len(expected) == 1 + model.config.num_hidden_layers
        for site, theirs in expected.items():
            assert np.abs(e[site] - theirs).max() <= 1e-9 * np.abs(theirs).max(), site
