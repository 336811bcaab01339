"""Which head a checkpoint has; the head that decoders put on their last token to classify a text,
and those that stand on every token.

    class:          logits = score(h_last),    last: the last token that is no padding
    token class:    logits_t = score(h_t) or classifier(h_t), with a bias
    answer span:    (start_t, end_t) = qa_outputs(h_t): a question's answer is the span of tokens
                    from s to e whose start_s + end_e is largest (Devlin et al. 2019, section 4.2)

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
from refl.nets.tensors import Tensors, linear
from refl.trace import Trace, Value

NEXT_TOKEN, CLASS, TOKEN_CLASS = "next-token", "class", "token-class"
ANSWER_SPAN, FEATURES = "answer-span", "features"

TOKENS, SPANS = "ForTokenClassification", "ForQuestionAnswering"
"""Ends of the names of classes that not every family has."""


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
    SHOWN_BY: ClassVar[dict[str, str]] = {
        NEXT_TOKEN: "lm_head.",
        CLASS: "score.",
        TOKEN_CLASS: "score.bias",
        ANSWER_SPAN: "qa_outputs.",
    }
    OTHERWISE: ClassVar[str] = NEXT_TOKEN
    OF_TOKENS: ClassVar[str] = "score"
    """The layer that classifies tokens."""
    SPANS_IN: ClassVar[str] = "model"
    """What the class that finds answers calls the net below its head."""

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
    def base(self) -> str:
        """The module path of the net below its head."""
        return self.SPANS_IN if self.task == ANSWER_SPAN else "model"

    @property
    def labels(self) -> int:
        """How many classes a classifier tells apart."""
        return labels(self.id2label, self.num_labels)


def of_decoder(family: str, *further: str, language: str = "ForCausalLM") -> dict[str, str]:
    """The classes of a decoder: the language model, the classifier, and what it has `further`, of
    TOKENS and SPANS.
    """
    task = {TOKENS: TOKEN_CLASS, SPANS: ANSWER_SPAN}
    return {family + language: NEXT_TOKEN, f"{family}ForSequenceClassification": CLASS} | {
        family + end: task[end] for end in further
    }


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
    if TOKEN_CLASS in heads and CLASS in heads:  # of one layer, whose bias only tokens have
        heads.remove(CLASS)
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


# -- heads on every token --------------------------------------------------------------------------


def rows(
    t: Trace, head: str, h: Value, batch: Batch
) -> Value:  # (B, T, D) -> (B, T, D), or (B, 1, D) at the wanted rows
    return h if batch.rows is None else t.move(f"{head}.row", "rows", h, index=batch.rows)


def token_class_shapes(name: str, count: int, width: int, option: str = "hidden_size") -> Tensors:
    yield from linear(name, count, width, f"id2label (or num_labels) and {option}", bias=True)


def token_class(
    t: Trace, name: str, h: Value, batch: Batch
) -> Value:  # (B, T, D) -> (B, T, labels), or (B, 1, labels) at the wanted rows
    return t.linear(name, rows(t, name, h, batch), bias=True, role="head")


def answer_span_shapes(width: int, option: str = "hidden_size") -> Tensors:
    yield from linear("qa_outputs", 2, width, option, bias=True)


def answer_span(t: Trace, h: Value) -> Value:  # (B, T, D) -> (B, T, 2): start and end
    return t.linear("qa_outputs", h, bias=True, role="head")


# -- heads of decoders -----------------------------------------------------------------------------


def decoder_shapes(c: OfDecoder, width: int, option: str = "hidden_size") -> Tensors:
    """Of a head that is not the language model's."""
    if c.task == CLASS:
        yield from score_shapes(c.labels, width, option)
    elif c.task == TOKEN_CLASS:
        yield from token_class_shapes(c.OF_TOKENS, c.labels, width, option)
    else:
        yield from answer_span_shapes(width, option)


def of_decoder_on(
    t: Trace, h: Value, c: OfDecoder, batch: Batch
) -> Value:  # (B, T, D) -> (B, 1, classes), (B, T, labels) or (B, 1, labels), (B, T, 2)
    """A head that is not the language model's."""
    if c.task == CLASS:
        return score(t, h, batch, c.pad_token_id)
    if c.task == TOKEN_CLASS:
        return token_class(t, c.OF_TOKENS, h, batch)
    return answer_span(t, h)


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
    mask = None if batch.attention_mask is None else asnumpy(batch.attention_mask).tolist()
    return tuple(
        max(
            (t for t, i in enumerate(row) if i != pad and (mask is None or mask[b][t])),
            default=0,
        )
        for b, row in enumerate(ids.tolist())
    )
