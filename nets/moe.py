"""Mixture of experts, the half-block in place of an MLP (Shazeer et al. 2017, arXiv 1701.06538;
Mixtral, arXiv 2401.04088).

    p = softmax(gate(x))                     for each token, over the experts
    r = the k largest of p                   made to sum to one, where the config says so
    y = sum over the chosen of  r_e expert_e(x)

Only chosen experts run, on the tokens that chose them, and only their weights are fetched. Sites of
an expert are (B, N, D): N tokens for each example, first those whose first choice it was, then the
second, and so on, as transformers has them; then zeros where another example has more. Padding is
sent to no expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

from refl.arrays import Array, asnumpy
from refl.errors import ReflError
from refl.trace import Choice, Index, Trace, Value


def mixture(
    t: Trace,
    x: Value,
    expert: Callable[..., Value],
    k: int,
    normalized: bool,
    attention_mask: Array | None,
) -> Value:  # (B, T, D), bool (B, T) -> (B, T, D)
    length = x.array.shape[1]
    logits = t.linear("gate", x, role="router.logits")
    p = t.softmax("probabilities", logits, role="router.probabilities")
    r, chosen = t.top_k("chosen", p, k, role="router.choice")
    if normalized:
        r = t.renormalize("routing_weights", r, role="router.weights")
    r = t.move("routing_weights.flat", "reshape", r, shape=(-1, length * k, 1))
    terms, places = [], []
    for e, tokens, weights in dispatched(chosen, attention_mask):
        y = t.module(f"experts.{e}", expert, t.gather(f"experts.{e}.tokens", x, tokens))
        weight = t.gather(f"experts.{e}.routing_weight", r, weights)
        terms.append(t.multiply(f"experts.{e}.weighted", weight, y, role="expert.weighted"))
        places.append(tokens)
    return t.combine("", terms, tuple(places), length, role="expert.sum")


def dispatched(chosen: Choice, attention_mask: Array | None) -> Iterator[tuple[int, Index, Index]]:
    """For each expert that a token chose: its tokens' positions, and those of their weights among
    the T k of an example.
    """
    kept = None if attention_mask is None else asnumpy(attention_mask).tolist()
    tokens: dict[int, list[list[int]]] = {}
    weights: dict[int, list[list[int]]] = {}
    for b, example in enumerate(chosen):
        for j, t in product(range(len(example[0])), range(len(example))):
            if kept is None or kept[b][t]:
                e = example[t][j]
                tokens.setdefault(e, [[] for _ in chosen])[b].append(t)
                weights.setdefault(e, [[] for _ in chosen])[b].append(t * len(example[t]) + j)
    return ((e, _padded(tokens[e]), _padded(weights[e])) for e in sorted(tokens))


def _padded(rows: list[list[int]]) -> Index:
    longest = max(map(len, rows))
    return tuple((*row, *[None] * (longest - len(row))) for row in rows)


HARMLESS = ("output_router_logits", "router_aux_loss_coef", "router_jitter_noise")
"""Options that only training or its loss knows."""


def check_expert_count(name: str, experts: int, k: int) -> None:
    """Raises ReflError unless a token can choose k experts."""
    if k > experts:
        raise ReflError(
            f"config.json has num_experts_per_tok = {k}, but only {experts} experts ({name})"
        )
