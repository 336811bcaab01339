"""transformers reads the folders of the model vectors as its own, and finds the logits, and the
activations of named modules, that exact arithmetic says: in float64 with its float32 islands
lifted, and in float32 as it comes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from refl.verification.peers.lxt import wide
from refl.verification.vectors.model_vectors import (
    FOLDER,
    ROUNDOFF,
    UNITS,
    ModelCase,
    architectures,
    check_activations,
    load,
)

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),  # ModernBERT imports it
]
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")

KINDS = architectures()


def loaded(kind: str) -> Any:
    """The class that config.json names;
    every tensor of the file has its place and no other is asked for.
    """
    (name,) = json.loads((FOLDER / kind / "config.json").read_text())["architectures"]
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    found, about = getattr(transformers, name).from_pretrained(
        FOLDER / kind, attn_implementation="eager", output_loading_info=True, **unpooled(name)
    )
    assert (
        not about["missing_keys"] and not about["unexpected_keys"] and not about["mismatched_keys"]
    )
    return found.eval()


def unpooled(name: str) -> dict[str, bool]:
    """Features stand there without a pooler, which transformers want to be told."""
    return {"add_pooling_layer": False} if name == "BertModel" else {}


def widened(model: Any) -> Any:
    """The float64 twin of a model; to be called inside `wide`."""
    inner = [getattr(model.config, name) for name in model.config.sub_configs]
    for config in (model.config, *inner):  # CLIP's towers are made in the dtype of the file
        config.torch_dtype = None
    twin = type(model)._from_config(
        model.config,
        torch_dtype=torch.float64,
        attn_implementation="eager",
        **unpooled(type(model).__name__),
    )
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def model_inputs(case: ModelCase, dtype: Any) -> dict[str, Any]:
    pixels = {}
    if case.pixels is not None:
        name = "pixel_values" if case.decoder_ids is None else "input_features"
        pixels = {name: torch.tensor(case.pixels, dtype=dtype)[None]} | _decoder(case)
    if case.ids is None:
        return pixels
    ids = torch.tensor([case.ids])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | pixels | _decoder(case)


def _decoder(case: ModelCase) -> dict[str, Any]:
    ids = case.decoder_ids
    return {} if ids is None else {"decoder_input_ids": torch.tensor([ids])}


OUTPUTS = ("logits", "logits_per_image", "text_embeds", "image_embeds", "last_hidden_state")
"""What transformers calls that which is explained: the first of these that it gives."""


def explained(case: ModelCase, out: Any) -> Any:  # (1, T, V) or (1, classes) -> (V,)
    """Of answers start and end of every token; features where there is no head."""
    if "start_logits" in out:
        return np.stack([out.start_logits.numpy()[0], out.end_logits.numpy()[0]], axis=-1).ravel()
    rows = next(out[name] for name in OUTPUTS if name in out).numpy()[0]
    return rows if rows.ndim == 1 else rows[-1 if case.position is None else case.position]


class Modules:
    """The outputs of modules whose names are sites."""

    def __init__(self, model: Any, case: ModelCase) -> None:
        self.captured: dict[str, Any] = {}
        names = set(case.sites) | set(case.aliases)
        headless = type(model).__name__ == "BertModel"  # whose modules lack what refl puts in front
        modules = {"bert." * headless + name: m for name, m in model.named_modules()}
        self.hooks = [
            m.register_forward_hook(self._keep(name))
            for name, m in modules.items()
            if name in names
        ]

    def _keep(self, name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, torch.Tensor):
                self.captured[name] = first.numpy()

        return hook

    def fitting(self, case: ModelCase) -> dict[str, Any]:
        """Those that are laid out as refl has them: transformers runs its head at every token, and
        a convolution gives a grid.
        """
        shapes = {
            name: case.activations[case.aliases.get(name, name)].shape for name in self.captured
        }
        return {name: x for name, x in self.captured.items() if x.shape == (1, *shapes[name])}


def run(model: Any, case: ModelCase, dtype: Any) -> tuple[Any, dict[str, Any]]:
    modules = Modules(model, case)
    with torch.no_grad():
        logits = explained(case, model(**model_inputs(case, dtype)))
    for hook in modules.hooks:
        hook.remove()
    return logits, modules.fitting(case)


def cases(kind: str) -> Iterator[ModelCase]:
    """One for each input."""
    return iter(load(kind, ["attnlrp"]))


def agree(case: ModelCase, logits: Any, activations: dict[str, Any], dtype: str) -> None:
    condition = case.activation_condition[case.sites[0]]
    assert np.abs(logits - case.logits).max() <= UNITS * ROUNDOFF[dtype] * condition
    assert len(activations) > 5
    assert [str(parting) for parting in check_activations(case, activations, dtype)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_float64(kind: str) -> None:
    model = loaded(kind)
    with wide():
        twin = widened(model)
        for case in cases(kind):
            agree(case, *run(twin, case, torch.float64), "float64")


@pytest.mark.parametrize("kind", KINDS)
def test_float32(kind: str) -> None:
    model = loaded(kind)
    for case in cases(kind):
        agree(case, *run(model, case, torch.float32), "float32")
