"""A whole answer beside transformers and torch, in float64: the log-probabilities of its tokens as
transformers' own forward of the text gives them, and input x gradient of their sum by autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_models import random_model, random_t5

import refl
from refl.verification.peers.lxt import wide

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)

BOUND = 1e-10
"""Of the largest score, or of the sum. Both sides round in float64."""

READ = [3, 0, 5, 21, 5]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, biases, one key head": (
        "llama",
        {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    ),
    "gpt2": ("gpt2", {}),
    "gpt2, scaled by blocks": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gemma2": ("gemma2", {}),
    "mistral, a window": ("mistral", {"sliding_window": 3}),
    "mixtral": ("mixtral", {}),
    "phi": ("phi", {}),
    "t5": ("t5", {}),
    "t5, gated, untied": (
        "t5",
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
}
CASES = [
    ([4], [9]),
    ([4, 2], [9, 9]),
    ([7, 1, 28, 3, 3], [0, 11, 2]),
    ([1], [5, 6, 7, 8, 9, 10, 11]),
]
"""What stands before the answer, and the answer."""


class Theirs:
    """The checkpoint by transformers in float64."""

    def __init__(self, loaded: Any, kind: str) -> None:
        self.twin = type(loaded)._from_config(
            loaded.config, torch_dtype=torch.float64, attn_implementation="eager"
        )
        self.twin.load_state_dict(loaded.state_dict())
        self.twin.eval()
        self.kind = kind

    def embedded(self, ids: Sequence[int]) -> Any:
        x = self.twin.get_input_embeddings()(torch.tensor([list(ids)])).detach()
        return x.requires_grad_()

    def of(self, prompt: list[int], answer: list[int], seed: str) -> tuple[Any, list[Any]]:
        """Of each token of the answer its number, and x dy/dx of their sum, (T,) for each input."""
        xs = [self.embedded([*prompt, *answer])]
        if self.kind == "t5":
            xs = [self.embedded(READ), *xs]
            logits = self.twin(inputs_embeds=xs[0], decoder_inputs_embeds=xs[1]).logits
        else:
            logits = self.twin(inputs_embeds=xs[0], use_cache=False).logits
        rows = logits[0, len(prompt) - 1 : -1]
        z = rows.log_softmax(-1) if seed == "log-probability" else rows
        of_tokens = z[torch.arange(len(answer)), torch.tensor(answer)]
        of_tokens.sum().backward()
        return of_tokens.detach().numpy(), [(x * x.grad).sum(-1)[0].detach().numpy() for x in xs]


def saved(folder: Path, kind: str, options: dict[str, Any]) -> Any:
    """A checkpoint of these options, as transformers reads it."""
    model = random_t5(**options) if kind == "t5" else random_model(kind, **options)
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, torch_dtype=torch.float32)


@pytest.mark.parametrize("name", KINDS)
def test_a_span_is_autograds(name: str, tmp_path: Path) -> None:
    """In one batch of ours, of several lengths; each by itself of theirs."""
    kind, options = KINDS[name]
    loaded = saved(tmp_path, kind, options)
    model = refl.load(tmp_path, dtype="float64")
    prompts, answers = [prompt for prompt, _ in CASES], [answer for _, answer in CASES]
    items, decoder = prompts, {}
    if kind == "t5":
        items, decoder = [READ] * len(CASES), {"decoder": prompts}
    with wide():
        theirs = Theirs(loaded, kind)
        for seed in ("logit", "log-probability"):
            how: dict[str, Any] = {"answer": answers, "seed": seed, "keep": (), **decoder}
            ours = model.explain(items, "input-x-gradient", **how)
            named = model.explain(items, "random", **how)
            for e, plain, case in zip(ours, named, CASES, strict=True):
                of_tokens, scores = theirs.of(*case, seed)
                own = [r for r in (e.relevance, e.decoder_relevance) if r is not None]
                largest = max(float(np.abs(s).max()) for s in scores)
                for r, s in zip(own, scores, strict=True):
                    assert r.shape == s.shape and np.abs(r - s).max() <= BOUND * largest
                said = [
                    token.logit if seed == "logit" else np.log(token.probability)
                    for token in e.answer
                ]
                np.testing.assert_allclose(said, of_tokens, rtol=BOUND, atol=BOUND)
                assert abs(plain.explained - of_tokens.sum()) <= BOUND * np.abs(of_tokens).sum()


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_each_token_is_autograds(name: str, tmp_path: Path) -> None:
    kind, options = KINDS[name]
    loaded = saved(tmp_path, kind, options)
    model, (prompt, answer) = refl.load(tmp_path, dtype="float64"), CASES[2]
    decoder = {"decoder": prompt} if kind == "t5" else {}
    item = READ if kind == "t5" else prompt
    how: dict[str, Any] = {"method": "input-x-gradient", "seed": "log-probability"}
    m = model.explain_answer(item, answer, **how, **decoder)
    with wide():
        theirs, before = Theirs(loaded, kind), 0.0
        for n in range(len(answer)):
            *_, scores = theirs.of(prompt, answer[: n + 1], "log-probability")
            row, total = m.matrix[: n + 1].sum(axis=0), np.concatenate(scores)
            assert np.abs(row[: len(total)] - total).max() <= BOUND * np.abs(total).max()
            assert not row[len(total) :].any()
            before += m.log_probabilities[n]
            assert abs(theirs.of(prompt, answer[: n + 1], "log-probability")[0].sum() - before) < (
                BOUND * abs(before)
            )
