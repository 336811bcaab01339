"""Conditions, pairs, patching, leave-one-out and randomized weights under array-api-strict on a
second fake device (and under CuPy where there is a GPU): the numbers are those of NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from backends import BESIDE_NUMPY, Backend

from refl import anatomy
from refl.conditions import Conditions
from refl.evaluation import patching
from refl.evaluation.leave_one_out import LeaveOneOut, by_block
from refl.evaluation.patching import Pair
from refl.evaluation.sanity import Sanity
from refl.evaluation.subject import Item, Subject
from refl.methods import chosen, under
from refl.model import Model
from refl.question import Question
from refl.rules.published import RELP
from refl.verification.random_models import LLAMA, moved, random_model

IDS = [3, 5, 2]


def conditioned(model: Model) -> Any:
    conditions = Conditions({"model.layers.0.self_attn.context": (1,)}, through=True)
    readings = model.readings([IDS])
    e = under(chosen("attnlrp"), conditions).explain(Question(model), readings, [(2, None)], ())[0]
    return np.append(e.relevance, e.ledger.absorbed["condition"])


def pairs(model: Model) -> Any:
    return model.explain(IDS, "metagame", target=2).pairs


def patches(model: Model) -> Any:
    pair, sites = Pair.read(model, IDS, [3, 1, 2], 4, 2), anatomy.sites(model, "mlp")
    effects = (patching.exact(pair, sites), patching.approximate(pair, sites, RELP))
    return np.concatenate([row for part in effects for row in part.values()])


def left_out(model: Model) -> Any:
    subject = Subject.read(model, Item("0", IDS, target=2))
    rows = [LeaveOneOut(9, how).effects(subject) for how in ("live", "held", "renormalized")]
    return np.concatenate([*rows, *by_block(subject).values()])


def randomized(model: Model) -> Any:
    subject = Subject.read(model, Item("0", IDS, target=2))
    scores = model.explain(IDS, target=2, keep=()).relevance
    return Sanity("attnlrp").judge(subject, scores).curves["sanity"]


@pytest.mark.parametrize("backend", BESIDE_NUMPY, indirect=True)
@pytest.mark.parametrize("what", [conditioned, pairs, patches, left_out, randomized])
def test_the_numbers_of_numpy(what: Any, backend: Backend) -> None:
    home = random_model(LLAMA | {"attention_bias": True}, 1)
    here, there = what(home), what(moved(home, backend.place))
    assert isinstance(there, np.ndarray) and np.abs(there - here).max() <= 1e-12
