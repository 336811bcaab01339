"""What the peers' tests share: random checkpoints written by transformers, and the forward they are
held against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, and no quarrel over cores."""
    torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make("llama", hidden_size=16, ...) -> a checkpoint folder with random weights, every norm
    weight and bias included.
    """

    def made(kind: str, save: dict[str, Any] | None = None, **options: Any) -> Path:
        random_model(kind, **options).save_pretrained(tmp_path, **(save or {}))
        return tmp_path

    return made


SMALL: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 29,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
    },
    "gpt2": {"vocab_size": 29, "n_positions": 32, "n_embd": 24, "n_layer": 3, "n_head": 4},
}

_DECODER: dict[str, Any] = SMALL["llama"] | {"num_key_value_heads": 4}
_GEMMA: dict[str, Any] = _DECODER | {
    "head_dim": 6,
    "num_key_value_heads": 2,
    "query_pre_attn_scalar": 7,
    "sliding_window": 3,
}
SMALL |= {
    "mistral": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER | {"head_dim": 6},
    "phi": _DECODER | {"partial_rotary_factor": 0.7},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA | {"sliding_window_pattern": 2},
}


def random_model(kind: str, **options: Any) -> Any:
    """transformers starts biases at 0 and norm weights at 1, which hides them; here everything is
    drawn, at a scale that keeps activations near 1."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (the extra 'peers')"
    )
    import torch

    config = transformers.AutoConfig.for_model(kind, **(SMALL[kind] | options))
    model = transformers.AutoModelForCausalLM.from_config(config)
    draw = torch.Generator().manual_seed(20240501)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(_scaled(name, torch.randn(p.shape, generator=draw)))
    return model.eval()


def _scaled(name: str, noise: Any) -> Any:
    if name.endswith("weight") and ("norm" in name or "ln_" in name):
        return 1 + 0.3 * noise
    return (
        0.3 * noise
        if noise.ndim == 1 or "wpe" in name or "embed" in name
        else noise * noise.shape[1] ** -0.5
    )
