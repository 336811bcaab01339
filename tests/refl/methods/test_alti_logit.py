"""ALTI-Logit: its parts sum to the logit on every net it is defined for; weights and updates of a
block worked out in fractions; and what it refuses.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from refl.edits import Edit
from refl.errors import ReflError
from refl.explanation import Explanation
from refl.methods import alti_logit
from refl.methods.alti_logit import Block, Stream, normalized
from refl.network import Reading
from refl.question import Question
from refl.verification.random_models import (
    ALBERT,
    ARCHITECTURES,
    BERT,
    DEIT,
    GEMMA2,
    GPT2,
    LLAMA,
    QWEN2,
    ROBERTA,
    T5,
    VIT,
    random_model,
    with_weights,
)

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 0, 7]
REFUSED = ("bert", "roberta", "albert", "vit", "deit", "t5")
DECODERS = {name: c for name, c in ARCHITECTURES.items() if name not in REFUSED}
NETS = DECODERS | {
    "gpt2-class": GPT2 | {"architectures": ["GPT2ForSequenceClassification"], "pad_token_id": 0},
    "llama-class": LLAMA | {"architectures": ["LlamaForSequenceClassification"]},
    "qwen2-bare": QWEN2 | {"num_hidden_layers": 1},
}


def explain(config: dict[str, Any], **asked: Any) -> Explanation:
    return random_model(config, seed=3).explain(IDS, method="alti-logit", **asked)


@pytest.mark.parametrize(
    "asked",
    [{}, {"contrast": (1, 0)}, {"position": 4}, {"options": {"value_biases": True}}],
    ids=["logit", "contrast", "position", "value-biases"],
)
@pytest.mark.parametrize("net", NETS)
def test_the_parts_sum_to_the_logit(net: str, asked: dict[str, Any]) -> None:
    if "class" in net:
        asked = {key: value for key, value in asked.items() if key != "position"}
    e = explain(NETS[net], **asked)
    size = sum(abs(part) for entry in e.ledger for part in entry.absorbed.values())
    size += abs(e.relevance).sum()
    parts = e.relevance.sum() + sum(e.ledger.absorbed.values())
    assert abs(parts - e.explained) <= 1e-12 * size
    assert all(abs(entry.conservation_error) <= 1e-12 * size for entry in e.ledger)
    assert {"mlp", "initial_residual"} <= set(e.ledger.absorbed)
    if "position" in asked:
        assert not e.relevance[5:].any() and e.relevance[:5].all()


def test_a_capped_logit_is_the_parts_of_the_bare_one_by_their_ratio() -> None:
    """z' = c tanh(z / c)."""
    capped = explain(GEMMA2, target=5)
    bare = explain(GEMMA2 | {"final_logit_softcapping": None}, target=5)
    assert abs(capped.explained - 12 * np.tanh(bare.explained / 12)) <= 1e-13
    wanted = bare.relevance * (capped.explained / bare.explained)
    assert abs(capped.relevance - wanted).max() <= 1e-13 * abs(wanted).sum()


def test_rows_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a text is as long as it likes: attention's faster forms are left aside."""
    model, ids = random_model(LLAMA, seed=4), [n % 17 for n in range(70)]
    whole = model.explain(ids, method="alti-logit").relevance
    monkeypatch.setattr(alti_logit, "TOGETHER", 9 * 70 * 16)
    assert abs(model.explain(ids, method="alti-logit").relevance - whole).max() <= 1e-13


def test_one_token() -> None:
    e = random_model(LLAMA, seed=4).explain([3], method="alti-logit")
    assert abs(e.relevance[0] + sum(e.ledger.absorbed.values()) - e.explained) <= 1e-12


def test_an_edit_of_a_half_block_is_part_of_it() -> None:
    edits = {
        "model.layers.0.self_attn": Edit(factor=0.5, amount=0.125),
        "model.layers.1.mlp": Edit(factor=0.0),
    }
    e = explain(LLAMA, edits=edits)
    parts = e.relevance.sum() + sum(e.ledger.absorbed.values())
    assert abs(parts - e.explained) <= 1e-12 and e.ledger.absorbed["edit"] != 0


# -- by hand ---------------------------------------------------------------------------------------

ROWS = [[1, 7], [7, -1], [5, 5], [-1, -7]]
"""Of mean square 25 each: the norm divides by 5."""
TINY = LLAMA | {
    "vocab_size": 4,
    "hidden_size": 2,
    "intermediate_size": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 2,
    "rms_norm_eps": 1e-40,
}
W_V, W_O = [[1, 2], [-1, 3]], [[4, -1], [1, 1]]
NORM, LAST = [2, 1], [1, 3]
HEAD = [[1, 2], [-3, 1], [0, 1], [2, 2]]


def tiny() -> Any:
    """Queries are 0: every token looks at all before it alike."""
    block = "model.layers.0"
    tensors = {
        "model.embed_tokens.weight": ROWS,
        f"{block}.input_layernorm.weight": NORM,
        f"{block}.self_attn.q_proj.weight": np.zeros((2, 2)),
        f"{block}.self_attn.v_proj.weight": W_V,
        f"{block}.self_attn.o_proj.weight": W_O,
        f"{block}.mlp.down_proj.weight": np.zeros((2, 1)),
        "model.norm.weight": LAST,
        "lm_head.weight": HEAD,
    }
    changed = {name: np.asarray(w, dtype=np.float64) for name, w in tensors.items()}
    return with_weights(random_model(TINY, seed=1), **changed)


def times(w: list[list[int]], x: list[Fraction]) -> list[Fraction]:
    return [sum((a * b for a, b in zip(row, x, strict=True)), Fraction(0)) for row in w]


def updates(t: int) -> list[list[Fraction]]:
    """o_t<-s for s up to t, each attended by 1 / (t + 1)."""
    normed = [[Fraction(x * w, 5) for x, w in zip(row, NORM, strict=True)] for row in ROWS]
    return [[o / (t + 1) for o in times(W_O, times(W_V, x))] for x in normed[: t + 1]]


def weights_by_hand() -> list[list[Fraction]]:
    found = []
    for t, x in enumerate(ROWS):
        o = updates(t)
        y = [x[d] + sum(update[d] for update in o) for d in range(2)]
        near = []
        for s, update in enumerate(o):
            part = [update[d] + (x[d] if s == t else 0) for d in range(2)]
            far = sum(abs(part[d] - y[d]) for d in range(2))
            near.append(max(Fraction(0), sum(map(abs, y)) - far))
        total = sum(near)
        row = [c / total for c in near] if total else [Fraction(int(s == t)) for s in range(t + 1)]
        found.append(row + [Fraction(0)] * (3 - t))
    return found


def test_weights_in_fractions() -> None:
    question = Question(tiny())
    forward = question.forward([Reading([0, 1, 2, 3])], plain=True)
    stream = Stream.of(question.network, forward)
    (added,) = stream.attentions()
    got, wanted = Block(stream, added, False).weights(), weights_by_hand()
    assert any(0 < c < 1 for row in wanted for c in row)
    assert any(row[s] == 0 for t, row in enumerate(wanted) for s in range(t + 1))
    assert abs(got - np.asarray(wanted, dtype=float)).max() <= 1e-15


@pytest.mark.parametrize(("target", "against"), [(0, None), (1, None), (3, 2)])
def test_updates_in_fractions(target: int, against: int | None) -> None:
    """The last norm's scale is a square root: scores are compared by what they are parts of."""
    asked = {"target": target} if against is None else {"contrast": (target, against)}
    e = tiny().explain([0, 1, 2, 3], method="alti-logit", **asked)
    u = [a - (0 if against is None else HEAD[against][d]) for d, a in enumerate(HEAD[target])]
    u = [a * w for a, w in zip(u, LAST, strict=True)]
    each = [
        sum((a * o for a, o in zip(u, update, strict=True)), Fraction(0)) for update in updates(3)
    ]
    first = sum(Fraction(a * x) for a, x in zip(u, ROWS[3], strict=True))
    whole = first + sum(each)
    for got, wanted in zip(e.relevance, each, strict=True):
        assert abs(got / e.explained - float(wanted / whole)) <= 1e-13
    got = e.ledger.absorbed["initial_residual"] / e.explained
    assert abs(got - float(first / whole)) <= 1e-13


def test_two_blocks_are_traced_through_the_first() -> None:
    """R = d_1 + d_2 C_1."""
    model = random_model(LLAMA, seed=6)
    question = Question(model)
    forward = question.forward([Reading(IDS)], plain=True)
    stream = Stream.of(model, forward)
    blocks = [Block(stream, added, False) for added in stream.attentions()]
    (seed,) = question.seeds(forward, [(2, None)])
    u = alti_logit._unembedding(question, forward, seed, stream.last)[0]
    first, second = (block.updates("alti-logit", u)[0] for block in blocks)
    c = blocks[0].weights()
    assert abs(c.sum(axis=1) - 1).max() <= 1e-15 and (np.triu(c, 1) == 0).all()
    e = model.explain(IDS, method="alti-logit", target=2)
    assert abs(e.relevance - (first + second @ c)).max() <= 1e-14


def test_a_token_that_no_source_comes_near_to_stays_itself() -> None:
    c = np.asarray([[3.0, -1.0, 1.0], [-2.0, 0.0, -1.0], [0.0, 0.0, 5.0]])
    assert normalized(c).tolist() == [[0.75, 0, 0.25], [0, 1, 0], [0, 0, 1]]


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [BERT, ROBERTA, ALBERT, VIT, DEIT, T5])
def test_it_is_for_decoders(config: dict[str, Any]) -> None:
    model = random_model(config, seed=3)
    item: Any = np.zeros((3, 8, 12)) if model.takes_images else IDS
    asked = {"position": 2} if model.task == "masked-token" else {}
    asked |= {"decoder": [0, 1]} if config is T5 else {}
    with pytest.raises(ReflError, match="alti-logit is defined for decoders whose blocks add to"):
        model.explain(item, method="alti-logit", **asked)


def test_a_norm_on_the_stream_is_seen_where_the_task_does_not_say_it() -> None:
    model = random_model(BERT | {"architectures": ["BertForSequenceClassification"]}, seed=3)
    with pytest.raises(ReflError, match="one residual stream"):
        model.explain(IDS, method="alti-logit")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"at": ("model.layers.0.mlp.act_fn", (2, 7))}, "explains logits"),
        ({"seed": "log-probability"}, "'log-probability' is none"),
        ({"recompute": True}, "one block at a time"),
        ({"edits": {"model.layers.0": Edit(factor=0.5)}}, "one residual stream"),
        ({"edits": {"model.layers.0.self_attn.context": Edit(factor=0.5)}}, "an edit between"),
        ({"options": {"value_biases": 2}}, "value_biases"),
        ({"keep": "*"}, "has no sweep"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_it_does_not_take(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ReflError, match=said):
        explain(LLAMA, **asked)
