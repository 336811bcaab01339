"""Explanations against known evidence:  python -m refl.evaluation.known_evidence [--sentences N]

The shipped model's grammar says which word decides each of its predictions (the subject's number,
the person in the stated fact). For each method this prints how often the token of largest relevance
is that evidence: of the contrast, the target's logit less the foil's, and of the target's logit
alone. Evidence in the wide sense adds what truly supports it: the thing asked for, a second verb
that agrees.

The contrast is what the evidence decides. The logit alone is also what any verb, or any person, has
in common, so less of it rests on the evidence.

One number of it is no ranking of methods. It asks for the one strongest token. The length of a
gradient is where a small change would move the output most; relevance divides up what the output
is, and that comes in part from words that say nothing of the question.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from typing import Any

from refl.arguments import positive
from refl.methods import METHODS
from refl.model import SHIPPED, Model, load

CHOSEN = tuple(name for name in METHODS if not name.endswith(("-vit", "-vit-box")))


def sentences(count: int) -> dict[str, list[dict[str, Any]]]:  # task -> its first `count` sentences
    """Raises ReflError for a count that is no whole number above 0."""
    count = positive("count", count)
    tasks = defaultdict(list)
    for line in (SHIPPED / "evidence.jsonl").read_text(encoding="utf-8").splitlines():
        sentence = json.loads(line)
        tasks[sentence["task"]].append(sentence)
    return {task: found[:count] for task, found in tasks.items()}


EXPLAINED = ("contrast", "logit")
"""What is explained: the target's logit less the foil's, or the target's logit."""


def hits(
    model: Model, method: str, chosen: list[dict[str, Any]], explained: str = "contrast"
) -> tuple[float, float]:
    """The fraction of sentences whose strongest token is evidence, and is so in the wide sense."""
    strict = wide = 0
    for s in chosen:
        strongest = int(
            model.explain(s["prefix"], method, keep=(), **_asked(s, explained)).relevance.argmax()
        )
        strict += strongest in s["evidence_tokens"]
        wide += strongest in (*s["evidence_tokens"], *s["support_tokens"])
    return strict / len(chosen), wide / len(chosen)


def _asked(sentence: dict[str, Any], explained: str) -> dict[str, Any]:
    if explained == "logit":
        return {"target": sentence["target"]}
    return {"contrast": (sentence["target"], sentence["foil"])}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sentences", type=int, default=200, help="sentences of each task (default: all 200)"
    )
    args = parser.parse_args()
    model, tasks = load(), sentences(args.sentences)
    for explained in EXPLAINED:
        print(f"{explained:20}" + "".join(f"{task:>14}{'(wide)':>9}" for task in tasks))
        for method in CHOSEN:
            scores = [hits(model, method, chosen, explained) for chosen in tasks.values()]
            print(f"{method:20}" + "".join(f"{strict:14.1%}{wide:9.1%}" for strict, wide in scores))
        print()


if __name__ == "__main__":
    main()
