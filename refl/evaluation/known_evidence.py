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
from typing import Any

from refl.evaluation.datasets import of_sentence, sentences
from refl.evaluation.judging import judged
from refl.evaluation.statistics import summary
from refl.methods import METHODS
from refl.model import Model, load

__all__ = ["CHOSEN", "EXPLAINED", "hits", "main", "sentences"]

CHOSEN = tuple(name for name in METHODS if not name.endswith(("-vit", "-vit-box")))

EXPLAINED = ("contrast", "logit")
"""What is explained: the target's logit less the foil's, or the target's logit."""


def hits(
    model: Model, method: str, chosen: list[dict[str, Any]], explained: str = "contrast"
) -> tuple[float, float]:
    """The fraction of sentences whose strongest token is evidence, and is so in the wide sense."""
    items = [of_sentence(str(n), s, explained) for n, s in enumerate(chosen)]
    rows = judged(model, items, [method], ["evidence"])
    strict, wide = (
        summary([row.numbers[name] for row in rows]).mean for name in ("top_1", "top_1_wide")
    )
    return strict, wide


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
