"""The engine's sweep against the same model in exact arithmetic, at every site of every
architecture: relevance, activations, ledger.

The bound at a site is UNITS times that site's own condition times the unit roundoff. The condition
is what moving every number of the run by one unit may do to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import refl
import refl.sweep
from refl.model import Model
from refl.nets import NETS, rope
from refl.rules import movement, softmax
from refl.rules.composites import Composite
from refl.rules.published import METHODS
from refl.verification.definitions import exact_sweep
from refl.verification.random_models import random_model
from refl.verification.vectors.make_model_vectors import CONFIGS

FOR_ANY_NET = (
    "attnlrp",
    "attnlrp-gradient",
    "cp-lrp",
    "lrp-0",
    "ding-2017",
    "input-x-gradient",
    "lxt-explicit",
)
UNITS = 16
U = 2.0**-53


def inputs(model: Model) -> tuple[list[Any], dict[str, Any]]:
    """A padded batch of two, or two pictures; and how they are explained."""
    if model.takes_images:
        size = (2, model.config.num_channels, *model.config.image)
        return list(np.random.default_rng(1).standard_normal(size)), {}
    asked = model.task in ("masked-token", "token-class", "features")
    how: dict[str, Any] = {"position": 1} if asked else {}
    if model.task == "sequence-to-sequence":
        how["decoder"] = [[0, 4], [7]]
    return [[3, 5, 3], [9, 2]], how


class Beside:
    """An exact run of a model, with the engine's beside it. `asked`: what the engine calls the
    targets, where they are no numbers.
    """

    def __init__(
        self,
        model: Model,
        methods: tuple[str, ...],
        runs: int = 3,
        targets: tuple[Any, ...] = (1, 0),
        asked: Any = None,
    ) -> None:
        self.model, (self.items, self.how) = model, inputs(model)
        self.targets, self.asked = targets, list(targets) if asked is None else asked
        trace, logits = model.trace(self.items, self.how.get("position"), self.how.get("decoder"))
        self.exact = exact_sweep.run(
            trace.records, logits, self.targets, methods, model.config, runs
        )

    def differences(self, method: str, composite: Composite | None = None) -> list[str]:
        """Sites, activations and entries of the ledger that are off by more than rounding."""
        answers = self.model.explain(
            self.items, composite or method, target=self.asked, keep="*", **self.how
        )
        return [
            line
            for b, e in enumerate(answers)
            for line in (*self._sites(b, e, method), *self._absorbed(b, e, method))
        ]

    def _sites(self, b: int, e: Any, method: str) -> list[str]:
        wanted = self.exact.relevance[method]
        assert list(e) == list(wanted)
        far = [
            site
            for site in wanted
            if _far(e[site], wanted[site][b], self.exact.condition[method][site])
        ]
        return far + [
            site
            for site in wanted
            if _far(
                e.activation(site),
                self.exact.values[site][b],
                self.exact.condition["forward"][site],
            )
        ]

    def _absorbed(self, b: int, e: Any, method: str) -> list[str]:
        wanted = self.exact.amounts[method]
        recorded = {
            (entry.site, cause): float(amount)
            for entry in e.ledger
            for cause, amount in entry.absorbed.items()
        }
        strange = [
            str(key) for key, amount in recorded.items() if key not in wanted and amount != 0
        ]
        return strange + [
            str(key)
            for key, (amounts, k) in wanted.items()
            if _far(recorded.get(key, 0.0), amounts[b], k)
        ]


def _far(got: Any, wanted: Any, condition: float) -> bool:
    assert np.shape(got) == np.shape(wanted)
    return not float(np.abs(got - wanted).max(initial=0.0)) <= UNITS * U * condition


def test_every_architecture_is_here() -> None:
    assert set(CONFIGS) == {net.MODEL_TYPE for net in NETS.values()}


@pytest.mark.parametrize("kind", CONFIGS)
def test_engine_is_exact_but_for_rounding(kind: str) -> None:
    model = random_model(CONFIGS[kind], 11)
    methods = (*FOR_ANY_NET, "attnlrp-vit") if model.takes_images else FOR_ANY_NET
    run = Beside(model, methods)
    assert run.exact.conservation_error < 1e-40
    for method in methods:
        assert run.differences(method) == []
        total = sum(run.exact.absorbed[method].values())
        assert math.isclose(total, run.exact.logits[0, 0, 1], rel_tol=1e-13)


@pytest.mark.parametrize("kind", ["llama", "bert", "qwen3_moe"])
def test_biases_and_other_options(kind: str) -> None:
    more: dict[str, dict[str, Any]] = {
        "llama": {
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "hidden_act": "gelu",
        },
        "bert": {"architectures": ["BertForSequenceClassification"], "hidden_act": "relu"},
        "qwen3_moe": {"norm_topk_prob": False},
    }
    run = Beside(random_model(CONFIGS[kind] | more[kind], 5), ("attnlrp", "cp-lrp"))
    assert run.differences("attnlrp") == run.differences("cp-lrp") == []


HEADS: dict[str, tuple[str, tuple[Any, ...], Any]] = {
    "BertForTokenClassification": ("bert", (1, 0), None),
    "BertForQuestionAnswering": ("bert", ((0, 5), (2,)), [(0, 2), ("start", 1)]),
    "BertModel": ("bert", (1, 6), [refl.coordinate(1), refl.coordinate(6)]),
    "LlamaForSequenceClassification": ("llama", (1, 0), None),
    "LlamaForTokenClassification": ("llama", (1, 0), None),
    "LlamaForQuestionAnswering": ("llama", ((0, 5), (3,)), [(0, 2), ("end", 1)]),
}
"""Class -> net, the numbers of what is explained (of an answer 2 s and 2 e + 1), and its names."""


@pytest.mark.parametrize("name", HEADS)
def test_every_head_is_exact_but_for_rounding(name: str) -> None:
    """Of a padded batch: the second text is the shorter one."""
    kind, targets, asked = HEADS[name]
    config = CONFIGS[kind] | {"architectures": [name], "num_hidden_layers": 1}
    config = {key: value for key, value in config.items() if key not in ("id2label", "label2id")}
    methods = ("attnlrp", "cp-lrp", "input-x-gradient")
    run = Beside(random_model(config, 11), methods, 2, targets, asked)
    assert run.exact.conservation_error < 1e-40
    assert [run.differences(method) for method in methods] == [[], [], []]


# -- faults, each of which has to be seen ----------------------------------------------------------

FAULTS: dict[str, tuple[str, str, Callable[[pytest.MonkeyPatch], None]]] = {
    "the last reader's share alone": (
        "llama",
        "attnlrp",
        lambda m: m.setattr(refl.sweep, "_accumulate", lambda sums, at, r: sums.update({at: r})),
    ),
    "the first reader's share alone": (
        "t5",
        "cp-lrp",
        lambda m: m.setattr(refl.sweep, "_accumulate", lambda sums, at, r: sums.setdefault(at, r)),
    ),
    "copies of a key averaged": (
        "llama",
        "attnlrp-gradient",
        lambda m: m.setitem(
            movement.MOVES,
            "repeat_heads",
            (
                movement._repeat_heads,
                lambda r, x, times: movement._unrepeat_heads(r, x, times=times) / times,
            ),
        ),
    ),
    "copies of a key taken from other groups": (
        "llama",
        "cp-lrp",
        lambda m: m.setitem(movement.MOVES, "repeat_heads", (movement._repeat_heads, _strided)),
    ),
    "positions counted from one": (
        "llama",
        "attnlrp",
        lambda m: m.setattr(rope, "tables", _later(rope.tables)),
    ),
    "logits shifted by their maximum": (
        "bert",
        "attnlrp",
        lambda m: m.setattr(softmax, "visible", _shifted(softmax.visible)),
    ),
}


def _strided(r: Any, x: Any, times: int) -> Any:
    return r.reshape(x.shape[0], times, *x.shape[1:]).sum(axis=1)


def _later(tables: Any) -> Any:
    return lambda rope, length, other: tuple(
        table[:, :, 1:] for table in tables(rope, length + 1, other)
    )


def _shifted(visible: Any) -> Any:
    return lambda x, r, mask: visible(x - x.max(axis=-1, keepdims=True), r, mask)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, method, plant = FAULTS[fault]
    model = random_model(CONFIGS[kind], 11)
    assert Beside(model, (method,)).differences(method) == []
    plant(monkeypatch)
    assert Beside(model, (method,)).differences(method) != []


@pytest.mark.parametrize(
    "option", [{"eps": 1.0001e-6}, {"stabilizer": "plain"}], ids=["eps", "sign"]
)
def test_another_option_is_seen(option: dict[str, Any]) -> None:
    run = Beside(random_model(CONFIGS["gpt2"], 11), ("attnlrp",))
    assert run.differences("attnlrp", METHODS["attnlrp"].with_options(**option)) != []


def test_a_weight_off_by_a_little_is_seen() -> None:
    model = random_model(CONFIGS["phi"], 11)
    run, name = Beside(model, ("cp-lrp",)), "model.layers.0.self_attn.v_proj.weight"
    run.model = replace(model, weights={**model.weights, name: model.weights[name] * (1 + 1e-12)})
    assert run.differences("cp-lrp") != []
