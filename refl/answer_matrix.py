"""Every token of an answer explained: a matrix of relevance, a row for each token of the answer, a
column for each token that stands before it.

    matrix = [ relevance | decoder_relevance | before ]           N rows, T + S + N columns

    relevance           (N, T): of the input, which an encoder reads where there is one
    decoder_relevance   (N, S): of what its decoder had said before the answer, where there is one
    before              (N, N): of the answer's own tokens; those that come later are read by none
                        before them, so it is 0 from the diagonal on

    explained_n = sum of row n + all that is absorbed on the way + conservation error

Row n is an explanation by itself, of the text up to token n with this token as its target. By a
table of rules relevance is linear in where it starts: the sums of the columns are the relevance of
the answer as a whole (`Model.explain` with `answer`), to rounding, unless the run of a beginning is
another one than that of the whole text (dynamic rotary positions beyond those of training, edits at
positions counted from the end).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from refl import arguments
from refl.errors import LONGEST_REPR, ReflError, sentence
from refl.explanation import Explanation, MethodFacts
from refl.io.safetensors import write_safetensors
from refl.ledger import Ledger
from refl.rows import number_or_null
from refl.rules.composites import Composite

FORMAT = 1
"""Of the file that `save` writes."""


@dataclass(repr=False, eq=False)
class AnswerMatrix(Sequence[Explanation]):
    """The explanations of an answer's tokens, in their order: `m[n]` is that of token n.

    answer         its text; of a model without tokenizer its ids
    explanations   one for each token
    """

    answer: str
    explanations: list[Explanation]

    def __post_init__(self) -> None:
        if not self.explanations:
            raise ReflError("an answer of no tokens has no matrix: expected at least one")

    def __len__(self) -> int:
        return len(self.explanations)

    @overload
    def __getitem__(self, index: int) -> Explanation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Explanation]: ...
    def __getitem__(self, index: Any) -> Any:
        return self.explanations[index]

    def __repr__(self) -> str:
        """One line."""
        size = f"{len(self)} tokens by {len(self.columns)}"
        return sentence(
            f"<{type(self).__name__}: {self.answer!r}, {size}, {self.seed}, {self.method.title}>",
            LONGEST_REPR,
        )

    # -- what is explained -------------------------------------------------------------------------

    @property
    def method(self) -> Composite | MethodFacts:
        """What made it."""
        return self[0].method

    @property
    def seed(self) -> str:
        """What of each token is explained: logit, log-probability or probability."""
        return self[0].seed

    @property
    def about(self) -> dict[str, str]:
        """Versions, model, dtype, and what is unusual in the run."""
        return self[0].about

    @property
    def answer_tokens(self) -> list[str]:
        """A name for each row."""
        return [e.target for e in self]

    @property
    def answer_ids(self) -> list[int]:
        return [e.target_id for e in self]

    @property
    def explained(self) -> Any:  # (N,) float64
        """What the conservation ledger of each row adds up to."""
        return np.asarray([e.explained for e in self])

    @property
    def logits(self) -> Any:  # (N,) float64
        """Of each token, where it stands."""
        return np.asarray([e.logit for e in self])

    @property
    def probabilities(self) -> Any:  # (N,) float64
        return np.asarray([e.probability for e in self])

    @property
    def log_probabilities(self) -> Any:  # (N,) float64
        with np.errstate(divide="ignore"):
            return np.log(self.probabilities)

    # -- the matrix --------------------------------------------------------------------------------

    @property
    def tokens(self) -> list[str]:
        """Of the input."""
        return self[0].tokens

    @property
    def decoder_tokens(self) -> list[str] | None:
        """What a decoder had said before the answer, None where there is no decoder."""
        return self[0].decoder_tokens

    @property
    def relevance(self) -> Any:  # (N, T)
        return np.stack([e.relevance[: len(self.tokens)] for e in self])

    @property
    def decoder_relevance(self) -> Any:  # (N, S)
        """None where there is no decoder."""
        if self.decoder_tokens is None:
            return None
        return np.stack([e.decoder_relevance[: len(self.decoder_tokens)] for e in self])

    @property
    def before(self) -> Any:  # (N, N)
        first, count = len(self._said(self[0])), len(self)
        found = np.zeros((count, count), dtype=self.relevance.dtype)
        for n, e in enumerate(self):
            found[n, :n] = self._said(e)[first:]
        return found

    def _said(self, e: Explanation) -> Any:
        """The relevance of the tokens behind which the answer stands, and of the answer's."""
        return e.relevance if self.decoder_tokens is None else e.decoder_relevance

    @property
    def parts(self) -> dict[str, slice]:
        """Which columns are of what: `input`, `decoder` where there is one, `answer`."""
        sizes = {"input": len(self.tokens)}
        if self.decoder_tokens is not None:
            sizes["decoder"] = len(self.decoder_tokens)
        sizes["answer"] = len(self)
        found, start = {}, 0
        for name, size in sizes.items():
            found[name] = slice(start, start + size)
            start += size
        return found

    @property
    def columns(self) -> list[str]:
        """A token for each column."""
        return [*self.tokens, *(self.decoder_tokens or ()), *self.answer_tokens]

    @property
    def matrix(self) -> Any:  # (N, T + S + N)
        """All of it side by side."""
        blocks = (self.relevance, self.decoder_relevance, self.before)
        return np.concatenate([block for block in blocks if block is not None], axis=1)

    # -- sums --------------------------------------------------------------------------------------

    @property
    def sums(self) -> dict[str, Any]:  # (N,) float64 each
        """Of every row the relevance of each part."""
        matrix = self.matrix
        return {
            name: matrix[:, part].sum(axis=1, dtype=np.float64) for name, part in self.parts.items()
        }

    @property
    def total(self) -> Any:  # (T + S + N,) float64
        """Of every column: the relevance of its token for the whole answer."""
        return self.matrix.sum(axis=0, dtype=np.float64)

    @property
    def rest(self) -> Any:  # (N,) float64
        """What of the explained number is on no token: absorbed on the way, and rounding."""
        return self.explained - self.matrix.sum(axis=1, dtype=np.float64)

    @property
    def ledgers(self) -> list[Ledger]:
        """The conservation ledger of each row. Raises ReflError where the method keeps none."""
        return [e.ledger for e in self]

    # -- what is written ---------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """Everything but the ledgers' operations, as plain numbers and strings: a row of `rows` for
        each token of the answer, its `relevance` in the order of `columns`.
        """
        matrix, sums = self.matrix, self.sums
        return {
            "format": FORMAT,
            "about": self[0].provenance,
            "method": self.method.as_dict(),
            "seed": self.seed,
            "answer": self.answer,
            **self._said_before(),
            "answer_tokens": self.answer_tokens,
            "answer_ids": self.answer_ids,
            "columns": self.columns,
            "parts": {name: [part.start, part.stop] for name, part in self.parts.items()},
            "rows": [
                _row(e, matrix[n].tolist(), {name: float(s[n]) for name, s in sums.items()})
                for n, e in enumerate(self)
            ],
            "total": self.total.tolist(),
            "explained": math.fsum(self.explained),
            "log_probability": number_or_null(math.fsum(self.log_probabilities)),
        }

    def _said_before(self) -> dict[str, Any]:
        first = self[0]
        said: dict[str, Any] = {"tokens": self.tokens, "input_ids": first.input_ids}
        if self.decoder_tokens is not None:
            said |= {"decoder_tokens": self.decoder_tokens, "decoder_ids": first.decoder_ids}
        return said

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: `matrix`, its parts `relevance`, `decoder_relevance` and
        `before`, `explained`, `logits`, `probabilities`, and all ids; the rest of `as_dict` in the
        metadata, each fact a JSON string. Raises ReflError where it cannot be written.
        """
        facts = {key: json.dumps(said) for key, said in self.as_dict().items() if key != "rows"}
        write_safetensors(arguments.path("path", path), self._arrays(), facts)

    def _arrays(self) -> dict[str, Any]:
        first = self[0]
        ids = {"input_ids": first.input_ids, "answer_ids": self.answer_ids}
        if first.decoder_ids is not None:
            ids["decoder_ids"] = first.decoder_ids
        numbers = {
            "matrix": self.matrix,
            "relevance": self.relevance,
            "before": self.before,
            "explained": self.explained,
            "logits": self.logits,
            "probabilities": self.probabilities,
        }
        if self.decoder_relevance is not None:
            numbers["decoder_relevance"] = self.decoder_relevance
        return {name: np.asarray(some, dtype=np.int64) for name, some in ids.items()} | numbers


def _row(e: Explanation, relevance: list[float], sums: dict[str, float]) -> dict[str, Any]:
    ledger = e.recorded
    return {
        "token": e.target,
        "id": e.target_id,
        "logit": e.logit,
        "probability": number_or_null(e.probability),
        "explained": e.explained,
        "relevance": relevance,
        "sums": sums,
        "absorbed": None if ledger is None else ledger.absorbed,
        "conservation_error": None if ledger is None else ledger.conservation_error,
    }
