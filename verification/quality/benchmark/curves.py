"""Perturbation curves a second, beside a plain loop that runs one state at a time.

    OPENBLAS_NUM_THREADS=1 python -m refl.verification.quality.benchmark.curves [--inputs 8]

The curves are those of flipping, MoRF and LeRF, of random scores of several methods, on the shipped
model's sentences and, where it is beside the project, on beginnings of stories with stories260K.
The loop runs the N + 1 states of every order on their own, as most published evaluations do;
`batched` is the metric on the same scores: each distinct state once, many of them in a batch. Runs
alternate (`rounds`), and both sides' curves are compared.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refl.evaluation import Case, Item, Perturbation, Subject, datasets
from refl.model import Model, load
from refl.verification.quality.benchmark.rounds import alternated, quotients, spread, timed
from refl.verification.quality.import_graph import PROJECT

SHARED = PROJECT.parent / "shared"
STORIES = SHARED / "checkpoints" / "stories260K"
TEXTS = SHARED / "data" / "tinystories" / "tinystories_1000.json"

Curves = list[Any]
"""MoRF and LeRF of each case, NumPy (2, N + 1)."""


def one_by_one(cases: Sequence[Case]) -> Curves:
    """The plain loop: sort, replace one embedding after the other by 0, run each state."""
    return [np.asarray(_orders(case)) for case in cases]


def _orders(case: Case) -> list[list[float]]:
    question, reading = case.subject.question, case.subject.reading
    forward = question.forward([reading])
    site = forward.embedded
    special = {*question.network.text.special} if question.network.text else set()
    units = [t for t, i in enumerate(reading.input) if i not in special]
    most = sorted(units, key=lambda t: (-case.scores[t], t))
    found = []
    for order in (most, most[::-1]):
        x = forward.leaf(site).copy()
        values = [case.subject.seed.value(question.rows([reading], leaves={site: x})[0])]
        for t in order:
            x[0, t] = 0
            values.append(case.subject.seed.value(question.rows([reading], leaves={site: x})[0]))
        found.append(values)
    return found


def batched(cases: Sequence[Case]) -> Curves:
    """The metric; nothing is known of any state before."""
    for case in cases:
        case.subject.known.clear()
    found = Perturbation("flip").judge_all(cases)
    return [np.asarray([j.curves["MoRF_flip"], j.curves["LeRF_flip"]]) for j in found]


def cases(model: Model, items: Sequence[Item], methods: int) -> list[Case]:
    """Random scores of so many methods for each item."""
    generator = np.random.default_rng(0)
    return [
        Case(subject, generator.standard_normal(len(subject.reading.input)))
        for subject in (Subject.read(model, item) for item in items)
        for _ in range(methods)
    ]


def compared(name: str, asked: Sequence[Case], repeat: int, patience: float) -> dict[str, Any]:
    """Medians over the rounds, in curves a second."""
    sides: dict[str, Callable[[Sequence[Case]], Curves]] = {
        "loop": one_by_one,
        "batched": batched,
    }
    first = {side: run(asked) for side, run in sides.items()}  # not counted
    size = max(np.abs(curve).max() for curve in first["loop"])
    pairs = zip(first["loop"], first["batched"], strict=True)
    deviation = max(float(np.abs(a - b).max()) for a, b in pairs) / size

    def way(side: str) -> Callable[[], dict[str, float]]:
        return lambda: {side: timed(lambda: sides[side](asked))[1]}

    seconds = alternated({side: way(side) for side in sides}, repeat, patience)
    count = 2 * len(asked)
    return {
        "inputs": name,
        "curves": count,
        **{side: count / spread(values)[0] for side, values in seconds.items()},
        "times": spread(quotients(seconds, "loop", "batched")),
        "deviation": deviation,
    }


def stories(model: Model, count: int, tokens: int) -> list[Item]:
    """Beginnings of stories, of so many tokens."""
    told = json.loads(TEXTS.read_text(encoding="utf-8"))
    texts = told if isinstance(told, list) else told["stories"]
    plain = [t if isinstance(t, str) else t.get("text", t.get("story")) for t in texts[:count]]
    return [Item(str(n), model.encode(text)[:tokens]) for n, text in enumerate(plain)]


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--inputs", type=int, default=8, help="inputs; default 8")
    p.add_argument("--methods", type=int, default=15, help="methods for each; default 15")
    p.add_argument("--tokens", type=int, default=32, help="of a story; default 32")
    p.add_argument("--repeat", type=int, default=5, help="rounds; default 5")
    p.add_argument("--patience", type=float, default=60, help="seconds, after which 3 rounds do")
    o = p.parse_args()
    shipped = load()
    sets = {"shipped model": (shipped, datasets.shipped(o.inputs)["agreement"])}
    if STORIES.is_dir() and TEXTS.is_file():
        model = load(STORIES)
        sets[f"stories260K, {o.tokens} tokens"] = (model, stories(model, o.inputs, o.tokens))
    print(f"{'curves a second':26}{'loop':>9}{'batched':>9}{'times':>7}  quartiles   deviation")
    for name, (model, items) in sets.items():
        for methods in dict.fromkeys((1, o.methods)):
            row = compared(name, cases(model, items, methods), o.repeat, o.patience)
            middle, low, high = row["times"]
            print(
                f"{f'{name}, {methods}':26}{row['loop']:9.0f}{row['batched']:9.0f}{middle:7.1f}"
                f"  {low:.1f}-{high:.1f}   {row['deviation']:.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
