"""What is switched, in which checkpoint, on which inputs.

shipped            its held-out sentences of subject-verb agreement
babyllama105       sentences of Marvin and Linzen (2018); the model reads characters, so that
                   what is asked for is the first character in which the two verbs differ, after
                   all that they have in common. Of the sentences answered so at first as many
                   as are asked for, evenly from the whole file
vit_mnist_012_hf   digits (refl.verification.quality.faithfulness.inputs): a 2 against the class
                   that comes next; where neurons are turned to the other class, all digits
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import refl
from refl.evaluation import datasets
from refl.evaluation.subject import Item, Subject
from refl.latent.switching import inputs as switched_inputs
from refl.latent.switching import switching
from refl.latent.switching.results import Switching
from refl.model import Model
from refl.verification.quality.faithfulness import inputs
from refl.verification.quality.faithfulness.inputs import SHARED

SENTENCES = SHARED / "data" / "LM_syneval" / "marvin_linzen_sva_sample.tsv"


@dataclass(frozen=True)
class Chosen:
    """Inputs, and what is known of how they were come by."""

    items: Sequence[Item]
    accuracy: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Kind of the input -> how many are answered so at first, and of how many."""


@dataclass(frozen=True)
class Experiment:
    """One checkpoint, one kind of change, one kind of ranking."""

    title: str
    checkpoint: str
    items: Callable[[Model, int], Chosen]
    to: str
    rank: str
    inputs: int
    draws: int

    def run(self, most: int | None = None) -> tuple[Switching, Chosen]:
        """On its inputs, or so many at most."""
        folder = None if self.checkpoint == "shipped" else SHARED / "checkpoints" / self.checkpoint
        model = refl.load(folder)
        chosen = self.items(model, self.inputs if most is None else min(most, self.inputs))
        found = switching(model, chosen.items, to=self.to, rank=self.rank, draws=self.draws)
        return found, chosen


# -- inputs ----------------------------------------------------------------------------------------


def agreement(model: Model, count: int) -> Chosen:
    """The shipped model's own."""
    return Chosen(switched_inputs.shipped(count))


def characters(model: Model, count: int) -> Chosen:
    """Sentences that are answered so at first, evenly from all of them."""
    correct, known = list[Item](), defaultdict[str, list[bool]](list)
    for item in datasets.items(model, SENTENCES):
        answered = Subject.read(model, item).value > 0
        good, bad = (model.tokens([model.output_id(one)])[0] for one in item.contrast or ())
        known[f"{item.facts['construction']}"].append(answered)
        known[f"{good!r} rather than {bad!r}"].append(answered)
        correct += [item] if answered else []
    count = min(count, len(correct))
    some = [correct[n * len(correct) // count] for n in range(count)]
    return Chosen(some, {name: (sum(each), len(each)) for name, each in known.items()})


def digits(model: Model, count: int, only: int | None = None) -> Chosen:
    """So many digits, or so many of one kind."""
    drawn, found = count, list[Item]()
    while len(found) < count:
        every = inputs.digits(model, drawn)
        found = [item for item in every if only is None or item.facts["digit"] == only]
        drawn *= 2
    return Chosen(found[:count])


TITLES = {
    ("off", "input"): "switched off, each input ranked by itself",
    ("off", "corpus"): "switched off, one ranking",
    ("other", "input"): "turned to the other answer, each input ranked by itself",
    ("other", "corpus"): "turned to the other answer, one ranking",
}


def _experiments(
    checkpoint: str,
    items: Callable[[Model, int], Chosen],
    kinds: Sequence[tuple[str, str]],
    inputs: int,
    draws: int,
) -> dict[str, Experiment]:
    return {
        f"{checkpoint} {to} {rank}": Experiment(
            TITLES[to, rank], checkpoint, items, to, rank, inputs, draws
        )
        for to, rank in kinds
    }


TWOS = partial(digits, only=2)
BY_ITSELF = [("off", "input"), ("other", "input")]

EXPERIMENTS: dict[str, Experiment] = {
    **_experiments("shipped", agreement, list(TITLES), 200, 20),
    **_experiments("babyllama105", characters, BY_ITSELF, 80, 10),  # its texts are long
    **_experiments("vit_mnist_012_hf", TWOS, [("off", "input"), ("off", "corpus")], 100, 20),
    **_experiments("vit_mnist_012_hf", digits, [("other", "input"), ("other", "corpus")], 100, 20),
}
"""By the names that --only takes."""
