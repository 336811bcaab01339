"""Quantized checkpoints beside torch and transformers: float8 against torch's own casts, and nets
against transformers on the same weights, widened. (Its own kernels for such files need a GPU, and
round activations besides. What other libraries make of a matrix is recorded:
tests/refl/test_quantized.py.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quantized_files as files
from transformers_forward import LENGTHS, agree, draw, reference

import refl
from refl.io.safetensors import every_float8
from refl.io.weights import Weights
from refl.verification.random_models import LLAMA, random_model

pytestmark = pytest.mark.peers
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")

KINDS = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
WIDE = LLAMA | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "head_dim": 8,
    "architectures": ["LlamaForCausalLM"],
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tag", KINDS)
def test_every_float8_is_that_of_torch(tag: str, dtype: str) -> None:
    """All 256, NaN and infinity included, with the signs of both zeros."""
    bits = torch.arange(256, dtype=torch.uint8).view(getattr(torch, KINDS[tag]))
    wanted = bits.to(getattr(torch, dtype)).numpy()
    found = every_float8(tag, np.dtype(dtype).str)
    assert np.array_equal(found, wanted, equal_nan=True)
    number = ~np.isnan(wanted)
    assert np.array_equal(np.signbit(found)[number], np.signbit(wanted)[number])


@pytest.mark.parametrize("shape", [(64, 32), (40, 24), (7, 50)])
def test_blocks_of_float8_that_torch_cast(tmp_path: Path, shape: tuple[int, int]) -> None:
    """As FineGrainedFP8 stores a matrix; the last blocks need not be full."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    w = torch.randn(shape)
    scales = torch.empty(-(-shape[0] // 16), -(-shape[1] // 16))
    for a, b in np.ndindex(*scales.shape):
        scales[a, b] = w[a * 16 : a * 16 + 16, b * 16 : b * 16 + 16].abs().max() / 448
    whole = scales.repeat_interleave(16, 0).repeat_interleave(16, 1)[: shape[0], : shape[1]]
    stored = (w / whole).to(torch.float8_e4m3fn)
    option = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    files.save(tmp_path, {"quantization_config": option}, {})
    save_file({"x.weight": stored, "x.weight_scale_inv": scales}, tmp_path / "model.safetensors")
    for dtype in ("float32", "float64"):
        found: Any = Weights(tmp_path, dtype=dtype, place=lambda array: array)["x.weight"]
        kind = getattr(torch, dtype)
        assert np.array_equal(found, (stored.to(kind) * whole.to(kind)).numpy())


@pytest.mark.parametrize(
    "kind", ["fp8-tensor", "gptq-4-ordered", "gptq-8", "awq", "int8", "nf4", "ct-packed-4-zeros"]
)
def test_a_net_is_that_of_transformers_on_the_widened_weights(tmp_path: Path, kind: str) -> None:
    weights = random_model(WIDE, 3).weights
    arrays = {name: np.asarray(weights[name]) for name in weights}
    one, plain = files.checkpoint(tmp_path, WIDE, arrays, kind)
    model = refl.load(one, dtype="float64")
    for length in LENGTHS:
        ids = draw(length, WIDE["vocab_size"])
        agree(model.logits(ids), reference(plain, [ids])[0])
