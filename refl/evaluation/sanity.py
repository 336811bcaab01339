"""Sanity: does the explanation depend on what the model has learned?

    rho_d = Spearman(scores, scores of the net whose top d parts are random),  d = 0 ... all

    Adebayo et al. 2018, Sanity Checks for Saliency Maps, arXiv 1810.03292: weights are
    randomized part by part from the output down, each on top of those before (cascading)

The parts are the net's blocks; above them what is read after the last (norm, head), below them what
is read before the first (embeddings). A tensor belongs to the part that reads it first, so a head
that shares its table with the embedding changes with the embedding. The random numbers of a tensor
are normal with its own mean and standard deviation: activations stay of the size they had. What is
explained stays the same output.

An explanation that shows the model moves away from 1; one that shows the input alone does not. The
correlation is given of the scores and of their sizes (an explanation whose signs turn at random has
none of the former, and may keep all of the latter).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from refl import anatomy, arguments
from refl.arrays import Array, asnumpy, like
from refl.errors import ReflError, argument
from refl.evaluation import naming
from refl.evaluation.correlation import spearman
from refl.evaluation.subject import Judged, Subject
from refl.methods import Method, chosen
from refl.network import Network

ABOVE, BELOW = "above the blocks", "below the blocks"


@dataclass(frozen=True)
class Sanity:
    """method    whose scores are judged, a name, a .toml file or itself: it explains the randomized
              net too; by default whatever `judged` judges, each method by its own explanations
    draw      another number gives other weights
    """

    method: str | Path | Method | None = field(default=None, compare=False)
    draw: int = 0
    settled: Method | None = field(init=False, repr=False, default=None)
    """The method itself, a file read once."""

    source: ClassVar[str] = "Adebayo et al. 2018, arXiv 1810.03292"
    summary: ClassVar[str] = (
        "rank correlation with the explanation of a net whose weights are random from the top down"
    )
    axes: ClassVar[tuple[str, str]] = (
        "fraction of the parts that are random, from the output down",
        "rank correlation",
    )
    larger_is_better: ClassVar[Mapping[str, bool | None]] = {
        "sanity": False,
        "sanity_absolute": False,
    }

    def __post_init__(self) -> None:
        if arguments.whole("draw", self.draw) < 0:
            raise arguments.expected("draw", "a whole number of at least 0", self.draw)
        found = None if self.method is None else chosen(self.method)
        object.__setattr__(self, "settled", found)

    def of(self, method: Any) -> Sanity:
        """The same for the scores of a method. Raises ReflError for scores from elsewhere."""
        if self.method is not None:
            return self
        if not callable(getattr(type(method), "explain", None)):
            raise ReflError(
                "sanity explains nets with random weights, and scores from elsewhere cannot: leave "
                "them out, or say by which method with sanity:method=NAME"
            )
        return replace(self, method=method)

    @property
    def name(self) -> str:
        """With every option that is not the default; a method from a file by its path, for its own
        name may be another's.
        """
        said = ["sanity"]
        if self.settled is not None:
            is_said = isinstance(self.method, (str, Path))
            said.append(naming.option("method", str(self.method) if is_said else self.settled.name))
        return ":".join(said + [f"draw={self.draw}"] * (self.draw != 0))

    def refuse(self, subject: Subject) -> None:
        """Raises ReflError for a net that the method is not defined for."""
        if self.settled is not None:
            self.settled.refuse(subject.question.network)

    def judge(self, subject: Subject, scores: Any, decoder_scores: Any = None) -> Judged:
        """The correlation with all weights random, and as curves those by depth: 0 parts, 1, ..."""
        if self.settled is None:
            raise ReflError(f"sanity has no {argument('method')}: expected that of the scores")
        signed, sizes = by_depth(subject, self.settled, np.asarray(scores), self.draw)
        return Judged(
            {"sanity": signed[-1], "sanity_absolute": sizes[-1]},
            {"sanity": np.asarray(signed), "sanity_absolute": np.asarray(sizes)},
        )


def by_depth(
    subject: Subject, method: Method, scores: Any, draw: int = 0
) -> tuple[list[float], list[float]]:
    """Spearman's correlation of the scores, and of their sizes, with those of the net whose top 0,
    1, ... parts are random. Raises ReflError for scores of another shape.
    """
    signed, sizes = [], []
    for part in randomized(subject.question.network, draw):
        asked = replace(subject.question, network=part)
        (e,) = method.explain(asked, [subject.reading], [subject.target], ())
        other = asnumpy(e.relevance)
        if other.shape != scores.shape:
            raise ReflError(
                f"scores of shape {scores.shape} beside an explanation of {other.shape}: expected "
                f"those of {argument('method')} {method.name}"
            )
        signed.append(spearman(scores, other))
        sizes.append(spearman(abs(scores), abs(other)))
    return signed, sizes


# -- weights ---------------------------------------------------------------------------------------


def randomized(network: Network, draw: int = 0) -> Iterator[Network]:
    """The net as it is, and then with one part more random each time, from the top down."""
    yield network
    gone: set[str] = set()
    known: dict[str, Array] = {}
    for part, names in parts(network).items():
        gone |= {part, *names}
        yield replace(network, weights=_Random(network.weights, frozenset(gone), draw, known))


def parts(network: Network) -> dict[str, list[str]]:
    """Part -> the tensors it is the first to read, from the output down: what is above the blocks,
    each block, what is below. What stands between two blocks goes with the one before; what has
    a block's name is that block's, wherever it is read.
    """
    reads = _Reads(network.weights)
    trace = anatomy.watched(network, reads.by(network))
    last = trace.blocks[-1] if trace.blocks else ""
    found: dict[str, list[str]] = {ABOVE: [], **{path: [] for path in trace.blocks[::-1]}}
    found[BELOW] = []
    for name, (block, inside) in reads.first.items():
        own = next((path for path in trace.blocks if name.startswith(f"{path}.")), None)
        found[own or (ABOVE if block == last and not inside else block or BELOW)].append(name)
    return {part: names for part, names in found.items() if names}


class _Reads(Mapping[str, Array]):
    """Weights that take down where each was read first: in which block or after it ("" before any),
    and whether inside.
    """

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.weights = weights
        self.first: dict[str, tuple[str, bool]] = {}

    def by(self, network: Network) -> anatomy.Watching:
        """The trace that reads them."""
        self.trace = anatomy.Watching(network, self)
        return self.trace

    def __getitem__(self, name: str) -> Array:
        path = self.trace.blocks[-1] if self.trace.blocks else ""
        self.first.setdefault(name, (path, self.trace.inside_block))
        return self.weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def __contains__(self, name: object) -> bool:
        return name in self.weights


class _Random(Mapping[str, Array]):
    """Weights of which some are random: those named, and what lies under a path that is named (an
    expert that no word went to). `known`: those drawn already.
    """

    def __init__(
        self, weights: Mapping[str, Array], gone: frozenset[str], draw: int, known: dict[str, Array]
    ) -> None:
        self.weights, self.gone, self.draw, self.known = weights, gone, draw, known

    def __getitem__(self, name: str) -> Array:
        paths = (name[:n] for n, c in enumerate(name) if c == ".")
        if name not in self.gone and self.gone.isdisjoint(paths):
            return self.weights[name]
        if name not in self.known:
            self.known[name] = like(
                drawn(name, asnumpy(self.weights[name]), self.draw), self.weights[name]
            )
        return self.known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def __contains__(self, name: object) -> bool:
        return name in self.weights


def drawn(name: str, w: Any, draw: int) -> Any:  # NumPy -> NumPy, in its shape
    """Normal numbers of the mean and standard deviation of w; the same for the same name."""
    wide = w.astype(np.float64)
    random = np.random.default_rng((draw, zlib.crc32(name.encode())))
    return wide.mean() + wide.std() * random.standard_normal(w.shape)
