"""States of an input, some of whose units are at a baseline, and what a net makes of each.

    zero       the token's embedding is 0 (positions stay); the pixel, as the net reads it, is 0
    mean       the mean of the input's embeddings; of each channel of the picture
    mask, unk, pad, a token's text or id
               the embedding of another token in its place
    blur       the pixel of the picture blurred
    delete     the token is left out: what follows moves up

What exactly a copy at a baseline is, refl.methods.copies says: it is the same for methods that
leave parts out. Copies of several inputs run in the same batches, of like lengths (refl.batching),
and none is run twice: a subject keeps what is known of its states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from refl.arguments import expected
from refl.errors import ReflError, argument
from refl.evaluation.subject import Subject
from refl.evaluation.units import Units
from refl.methods import copies
from refl.network import GENERATES, Network
from refl.seeds import Seed

DELETE = "delete"
OF_TEXT = ("zero", "mean", *copies.NAMED, DELETE)
OF_PICTURES = ("zero", "mean", "blur")


@dataclass(frozen=True)
class State:
    """An input with some of its units at the baseline. `gone` bool (N,)."""

    subject: Subject
    units: Units
    gone: Any

    def away(self) -> Any:  # -> bool (T,), (T + U,) or (H, W)
        """The same of each token or pixel."""
        return self.units.spread(self.gone)


def refuse(network: Network, baseline: Any) -> None:
    """Raises ReflError for a baseline that inputs of this net do not have."""
    known = OF_PICTURES if network.takes_images else OF_TEXT
    if isinstance(baseline, str) and baseline in known and baseline not in copies.NAMED:
        return
    if network.takes_images:
        raise expected("baseline", f"one of {', '.join(known)} of a picture", baseline)
    try:
        copies.token(network, baseline)
    except ReflError as reason:
        said = f"{argument('baseline')}: expected one of {', '.join(known)}, or a token; {reason}"
        raise ReflError(said) from None


def stays(subject: Subject, baseline: str | int) -> tuple[int, ...]:
    """Numbers of tokens that this baseline cannot replace: where a token is guessed, or a feature
    explained, it has to be there.
    """
    question, reading = subject.question, subject.reading
    if baseline != DELETE or question.network.task in GENERATES:
        return ()
    position = question.position_of(reading)
    return () if position is None else (position,)


@dataclass
class Runner:
    """What stands for a unit that is gone, and which number is explained."""

    baseline: str | int
    quantity: str | None = None
    bases: dict[int, dict[str, tuple[Any, Any]]] = field(default_factory=dict)
    """Of each subject, by site: what it starts from, and the same with every unit gone."""

    def values(self, states: Sequence[State]) -> list[float]:
        """The explained number of each state; those that are known are not run again. The
        subjects are of one net.
        """
        keys = [self._key(state) for state in states]
        wanted: dict[Any, State] = {}
        for state, key in zip(states, keys, strict=True):
            if key not in state.subject.known:
                wanted.setdefault((id(state.subject), key), state)
        rows = self._rows(list(wanted.values()))
        for (_, key), state, row in zip(wanted, wanted.values(), rows, strict=True):
            state.subject.known[key] = explained(state.subject, self.quantity).value(row)
        return [state.subject.known[key] for state, key in zip(states, keys, strict=True)]

    def _key(self, state: State) -> Any:
        units = state.units
        return (self.baseline, self.quantity, units.numbers.tobytes(), state.gone.tobytes())

    def _rows(self, states: Sequence[State]) -> list[Any]:  # -> NumPy (V,) each
        found: list[Any] = [None] * len(states)
        if not states:
            return found
        made = list(map(self._copy, states))
        for question, numbers in copies.batches(states[0].subject.question, made):
            some = [made[n] for n in numbers]
            rows = question.rows([c.reading for c in some], leaves=copies.stacked(some))
            for n, row in zip(numbers, rows, strict=True):
                found[n] = row
        return found

    def _copy(self, state: State) -> copies.Copy:
        question, reading = state.subject.question, state.subject.reading
        if self.baseline == DELETE:
            away, split = state.away(), state.units.read
            dropped = np.flatnonzero(away[:split]).tolist()
            written = np.flatnonzero(away[split:]).tolist()
            return copies.deleted(question, reading, dropped, written)
        start = partial(self._leaves, state)
        return copies.Copy(reading, start, question.position)

    def _leaves(self, state: State) -> dict[str, Any]:
        """What a copy starts from."""
        away, split, found = state.away(), state.units.read, {}
        for number, (site, (x, base)) in enumerate(self._bases(state.subject).items()):
            if x.ndim == 3:  # pixels
                found[site] = np.where(away, base, x)
            else:
                part = away[split:] if number else away[:split]
                found[site] = np.where(part[:, None], base, x)
        return found

    def _bases(self, subject: Subject) -> dict[str, tuple[Any, Any]]:
        if id(subject) not in self.bases:
            question, network = subject.question, subject.question.network
            forward = question.forward([subject.reading])
            self.bases[id(subject)] = {
                site: (
                    forward.leaf(site)[0],
                    copies.filling(network, forward, site, self.baseline, "baseline"),
                )
                for site in forward.input_sites()
            }
        return self.bases[id(subject)]


def explained(subject: Subject, quantity: str | None) -> Seed:
    """The subject's own seed, or another number of the same output."""
    if quantity is None or quantity == subject.seed.kind:
        return subject.seed
    return Seed(quantity, subject.seed.target, subject.seed.against)
