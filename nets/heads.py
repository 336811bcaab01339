"""Which head a checkpoint has; and the head that decoders put on their last token to classify a
text.

    class:    logits = score(h_last),    last: the last token that is no padding

`architectures` of config.json names the class that wrote the file, and with it the head: a Config
says which classes its net computes. Where the file names none, the tensors of a head show it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from refl.arrays import asnumpy
from refl.errors import ReflError
from refl.nets.batch import Batch
from refl.nets.config import brief
from refl.nets.tensors import Tensors
from refl.trace import Trace, Value

NEXT_TOKEN, CLASS = "next-token", "class"


class Headed(Protocol):
    """What a Config says about heads."""

    SHOWN_BY: ClassVar[dict[str, str]]
    """Head -> how the names of its tensors begin."""
    OTHERWISE: ClassVar[str]
    """The head of a file that has no such tensor."""

    @classmethod
    def classes(cls, model_type: str | None) -> dict[str, str]:
        """The classes that write such files -> their head."""


class OfDecoder:
    """What the Config of a decoder says about heads; the fields are read from config.json."""

    HEADS: ClassVar[dict[str, str]] = {}
    """The classes that write such files -> head."""
    SHOWN_BY: ClassVar[dict[str, str]] = {NEXT_TOKEN: "lm_head.", CLASS: "score."}
    OTHERWISE: ClassVar[str] = NEXT_TOKEN

    architectures: list[str] | None
    id2label: dict[str, Any] | None
    num_labels: int | None
    pad_token_id: int | None

    @property
    def task(self) -> str:
        """What the head is for, by the class that wrote the checkpoint."""
        return chosen(self.architectures, self.HEADS, self.OTHERWISE)

    @classmethod
    def classes(cls, model_type: str | None) -> dict[str, str]:
        return cls.HEADS

    @property
    def labels(self) -> int:
        """How many classes a classifier tells apart."""
        return labels(self.id2label, self.num_labels)


def of_decoder(family: str, *, language: str = "ForCausalLM") -> dict[str, str]:
    """The classes of a decoder: the language model, and the classifier."""
    return {family + language: NEXT_TOKEN, f"{family}ForSequenceClassification": CLASS}


def chosen(
    architectures: Sequence[str] | None, classes: Mapping[str, str], otherwise: str | None = None
) -> str:
    """The head that `architectures` names; `otherwise` where it names none.

    Raises ReflError for a class that is not among `classes`, for several with different heads, and
    for none where there is no `otherwise`.
    """
    if not architectures and otherwise is not None:
        return otherwise
    for name in architectures or [""]:
        if name not in classes:
            raise ReflError(
                f"config.json has architectures = {brief(architectures)}: with this model_type "
                f"refl expected one of {', '.join(classes)}; to go by the tensors, load with "
                "ignore=['architectures'] (--ignore architectures)"
            )
    heads = {classes[name] for name in architectures or ()}
    if len(heads) > 1:
        raise ReflError(
            f"config.json has architectures = {brief(architectures)}, which have different heads: "
            "keep one"
        )
    return heads.pop()


def by_tensors(config: type[Headed], model_type: str | None, names: Iterable[str]) -> str:
    """The class whose head is among the tensors of a file.
    Raises ReflError where there are several.
    """
    names = list(names)
    heads = [
        head
        for head, prefix in config.SHOWN_BY.items()
        if any(name.startswith(prefix) for name in names)
    ] or [config.OTHERWISE]
    found = {head: name for name, head in reversed(config.classes(model_type).items())}
    if len(heads) > 1:
        raise ReflError(
            "config.json has no architectures, and the tensors show the heads of "
            f"{' and '.join(found.get(head, head) for head in heads)}: name one there"
        )
    return found.get(heads[0], heads[0])


def labels(id2label: Mapping[str, Any] | None, num_labels: int | None) -> int:
    """How many outputs a classifier has: as many as have names, else as config.json counts."""
    return len(id2label) if id2label else num_labels or 2


# -- the classifier of decoders --------------------------------------------------------------------


def score_shapes(count: int, width: int, option: str = "hidden_size") -> Tensors:
    yield "score.weight", (count, width), f"id2label (or num_labels) and {option}"


def score(
    t: Trace, h: Value, batch: Batch, pad: int | None
) -> Value:  # (B, T, D) -> (B, 1, classes)
    row = t.move("score.row", "rows", h, index=last_tokens(batch, pad))
    return t.linear("score", row, role="head")


def last_tokens(batch: Batch, pad: int | None) -> tuple[int, ...]:
    """For each example the position of the last token that is no padding; 0 where all are. As in
    transformers the id alone says so: a text that ends with the padding token ends before it.
    """
    ids = asnumpy(batch.ids)
    mask = None if batch.unpadded is None else asnumpy(batch.unpadded).tolist()
    return tuple(
        max(
            (t for t, i in enumerate(row) if i != pad and (mask is None or mask[b][t])),
            default=0,
        )
        for b, row in enumerate(ids.tolist())
    )
