"""What papers claim, asked of the checkpoints at hand.

known evidence    agreement (Marvin and Linzen 2018; BLiMP, Warstadt et al. 2020, with the words
                  that decide of Ferrando et al. 2023): of the sentences that a model gets right,
                  does the strongest token lie in the word that decides?
leave-one-out     by block: does CP-LRP agree better than AttnLRP with the effect of a token's
                  row, in middle and late blocks? And is it the product that is divided in
                  halves, or attention that is held, that makes the difference?
patching          are RelP's scores nearer to exact patching than the gradient's?
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refl.evaluation import datasets, patching
from refl.evaluation.evidence import Evidence
from refl.evaluation.judging import cases, judge_all
from refl.evaluation.leave_one_out import LeaveOneOut, by_block_agreement
from refl.evaluation.statistics import summary
from refl.evaluation.subject import Item, Subject
from refl.methods import chosen
from refl.model import Model
from refl.verification.quality.faithfulness.inputs import INPUTS, SHARED

BLIMP = SHARED / "data" / "logit-explanations" / "blimp_with_targets"
CIRCUITS = SHARED / "data" / "feature-circuits"

TABLES = ("attnlrp-gradient", "cp-lrp", "attnlrp-flattened", "input-x-gradient")
"""What is held against leave-one-out by block: rules in gradient x input form."""


# -- agreement -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sentences:
    """A file of minimal pairs, in words."""

    path: Path
    source: str
    better: str
    """The word that makes a sentence right."""
    evidence: str
    """The word that decides."""


SETS = {
    "agreement": Sentences(
        SHARED / "data" / "LM_syneval" / "marvin_linzen_sva_sample.tsv",
        "Marvin and Linzen (2018)",
        "the verb that agrees",
        "the subject",
    ),
    "determiners": Sentences(
        BLIMP / "determiner_noun_agreement_1.csv",
        "BLiMP (Warstadt et al. 2020)",
        "the noun that agrees",
        "the determiner",
    ),
    "anaphors": Sentences(
        BLIMP / "anaphor_gender_agreement.csv",
        "BLiMP (Warstadt et al. 2020)",
        "the pronoun that agrees",
        "the name or noun that it stands for",
    ),
}
"""The tests of agreement, by the names of their parts of the report."""


def agreement(model: Model, sentences: Path, methods: Sequence[str], count: int) -> dict[str, Any]:
    """Accuracy by construction; and on the first `count` sentences that the model gets right the
    numbers of each method.
    """
    correct, of = [], defaultdict(list)
    for item in datasets.items(model, sentences):
        is_correct = Subject.read(model, item).value > 0
        of[str(item.facts["construction"])].append(is_correct)
        if is_correct and item.evidence:
            correct.append(item)
    chosen_items = spread(correct, count)
    subjects = [Subject.read(model, item) for item in chosen_items]
    found = {}
    for name in methods:
        answers = judge_all(Evidence(), cases(chosen(name), subjects))
        keys = answers[0].numbers
        found[name] = {key: _said([a.numbers[key] for a in answers]) for key in keys}
    return {
        "sentences": sum(map(len, of.values())),
        "accuracy": {name: float(np.mean(values)) for name, values in of.items()},
        "judged": len(subjects),
        "methods": found,
    }


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """So many of them, evenly from the whole list."""
    if len(items) <= count:
        return list(items)
    return [items[n * len(items) // count] for n in range(count)]


# -- leave-one-out ---------------------------------------------------------------------------------


def by_block(name: str, model: Model, count: int) -> dict[str, Any]:
    """Table -> block -> mean Spearman and Pearson correlation of its relevance with the effect of
    a row of zeros; and of the input's with leave-one-out, attention live, held or renormalized.
    """
    subjects = [Subject.read(model, item) for item in INPUTS[name](model, count)]
    blocks: dict[str, Any] = {}
    inputs: dict[str, Any] = {}
    for table in TABLES:
        method = chosen(table)
        rows: dict[str, list[dict[str, float]]] = defaultdict(list)
        for subject in subjects:
            for path, numbers in by_block_agreement(subject, method).items():
                rows[path].append(numbers)
        blocks[table] = {path: _each(numbers) for path, numbers in rows.items()}
        scored = cases(method, subjects)
        inputs[table] = {
            attention: _each([a.numbers for a in judge_all(LeaveOneOut("zero", attention), scored)])
            for attention in ("live", "held", "renormalized")
        }
    return {"inputs": len(subjects), "blocks": blocks, "attention": inputs}


# -- patching --------------------------------------------------------------------------------------


def patched(model: Model, files: Sequence[str], count: int) -> list[dict[str, Any]]:
    """RelP and attribution patching against exact patching, by kind of component."""
    lines: list[Mapping[str, Any]] = []
    for file in files:
        text = (CIRCUITS / file).read_text(encoding="utf-8")
        lines += [json.loads(line) for line in text.splitlines()]
    pairs = patching.pairs(model, lines)
    some = [pairs[n * len(pairs) // count] for n in range(count)] if len(pairs) > count else pairs
    return [
        {
            "kind": one.kind,
            "table": one.table,
            "mean": one.mean,
            "error": one.error,
            "pairs": len(some),
            "defined": len(one.defined),
        }
        for one in patching.agreement(some)
    ]


# -- numbers ---------------------------------------------------------------------------------------


def _each(numbers: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {key: _said([one[key] for one in numbers]) for key in numbers[0]}


def _said(values: Sequence[float]) -> dict[str, float]:
    s = summary(np.asarray(values))
    return {"mean": s.mean, "error": s.standard_error, "count": s.count}
