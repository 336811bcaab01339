"""Vocabulary projection: what a neuron or a head writes to the residual stream, read as logits.

    p = U N v

    v    of a neuron its column of the down projection W (D, width);
         of a head at one position its slice of the output layer times its context, W_h c_h;
         from weights alone, of a head that looks at one token, W_h V_h N_0 e (its OV circuit), e
         the token's embedding and N_0 the norm in front of the attention, as N
    N    the final norm as a linear map: RMSNorm w * v (Gemma (1 + w) * v),
         LayerNorm w * (v - mean(v))
    U    the unembedding: the weight of the head, (V, D)

A norm's scale 1/std and all biases are left out. Times the activation of the neuron and 1/std of a
run, p is what the neuron adds to that run's logits by the direct way (a head: times 1/std); what
later blocks make of it is not in it. Without N, p = U v.

What else stands on the way counts: the norm behind a half-block (OLMo 2, Gemma 2 and 3), the scale
in front of the head (T5), the mean of two heads (DeiT). Left out are an expert's routing weight and
the soft cap of logits (Gemma 2); `notes` says so.

Sources: nostalgebraist 2020 (the logit lens); Geva et al. 2021 and 2022 (arXiv 2012.14913 and
2203.14680); Elhage et al. 2021, A Mathematical Framework for Transformer Circuits (OV); Achtibat et
al. 2024 (arXiv 2402.05602), section 3.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from refl import arguments
from refl.anatomy import watched
from refl.arrays import Array, asnumpy
from refl.components import Attention, Components, Mlp, Part
from refl.edits import any_expert, edited_site
from refl.errors import LONGEST_REPR, ReflError, argument, sentence
from refl.latent import circuit
from refl.latent.direct import Way, mapped, refuse_apart, ways
from refl.model import Model
from refl.network import CLASSIFIES
from refl.question import Forward, Question
from refl.trace import Parameter, Record, Trace


class Entry(NamedTuple):
    """A token, or a class, and its number in a projection."""

    token: str
    id: int
    logit: float


@dataclass(frozen=True, eq=False, repr=False)
class Projection:
    """A neuron or a head on the outputs of the model.

    part             the neuron or the head
    logits           float array (V,)
    norm             whether the final norm counts
    top, bottom      the k largest and the k smallest, the most extreme first
    notes            what is on the way and counts, and what is left out
    position, token  of a head: where in the input, and the token there
    alone            of a head: whether it is what weights alone say of that token
    """

    part: Part
    logits: Any
    norm: bool
    top: tuple[Entry, ...]
    bottom: tuple[Entry, ...]
    notes: tuple[str, ...]
    position: int | None = None
    token: str | None = None
    alone: bool = False

    def __repr__(self) -> str:
        """One line."""
        ends = " ".join(repr(entry.token) for entry in self.top[:3])
        norm = "with" if self.norm else "without"
        return sentence(f"<Projection of {self.part.name} {norm} norm: {ends} ...>", LONGEST_REPR)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the array, for a file."""
        return {
            "name": self.part.name,
            "kind": self.part.kind,
            "site": self.part.site,
            "norm": self.norm,
            "position": self.position,
            "token": self.token,
            "alone": self.alone,
            "notes": list(self.notes),
            "top": [entry._asdict() for entry in self.top],
            "bottom": [entry._asdict() for entry in self.bottom],
        }


def project(
    model: Model,
    part: str | Part,
    norm: bool = True,
    k: int = 10,
    item: Any = None,
    position: int | None = None,
    decoder: Any = None,
    token: str | int | None = None,
) -> Projection:
    """The vocabulary projection of a neuron ("L2.N17") or of a head ("L2.H1").

    norm       with the final norm as a linear map, or without it
    k          how many tokens at each end
    item       of a head: the input in which it is looked at (text, token ids, a picture); a
               neuron's row is the same in every input, and takes none
    position   of a head: at which token, counted from 0, or from the end if negative; by default
               the one whose output is read (the last of a text, the class token of a picture)
    decoder    for encoder-decoders what the decoder has said, as in `explain`
    token      of a head, in place of an input: what its weights make of this token (text or id)
               where it looks at nothing else, embedded and not changed by any block before

    The weights are the model's, whatever edits it has; the context of a head is that of its edited
    run. Raises ReflError for what is no neuron or head, and where no direct way leads to the
    outputs (a post-norm encoder, an encoder of two, a checkpoint without a head).
    """
    norm, k = arguments.flag("norm", norm), arguments.positive("k", k)
    refuse_apart(model)
    part = _numbered(model.components, part)
    trace = watched(model)
    found = ways(trace, _output_site(model.components, part), part.name)
    if part.kind == "neuron":
        _refuse_input(part, item=item, position=position, decoder=decoder, token=token)
        return _projection(model, part, found, norm, k, _row(trace, model.components, part))
    if token is not None:
        _refuse_both(item=item, position=position, decoder=decoder)
        return _of_token(model, part, trace, found, norm, k, token)
    forward = _run(model, part, item, decoder)
    values = forward.trace.values
    context = values.get(edited_site(part.site), values[part.site]).array[0]
    at = _position(forward, position, int(context.shape[-2]))
    v = _head_output(trace, model.components, part, context[part.number, at])
    projection = _projection(model, part, found, norm, k, v)
    return replace(projection, position=at, token=_token(model, forward, at))


def _of_token(
    model: Model,
    part: Part,
    trace: Trace,
    found: Sequence[Way],
    norm: bool,
    k: int,
    token: str | int,
) -> Projection:
    """Of a head, from weights alone."""
    attention = next(a for a in model.components.attentions if a.context == part.site)
    number = model.token_id(token)
    context = circuit.values(trace, attention, number)[part.number]
    projection = _projection(
        model, part, found, norm, k, _head_output(trace, model.components, part, context)
    )
    before = circuit.norm_before(trace, attention)
    notes = () if before is None else (f"times {_weight_said(before)}, before the attention",)
    return replace(
        projection,
        token=model.tokens([number])[0],
        alone=True,
        notes=(*notes, *projection.notes),
    )


def _numbered(components: Components, part: str | Part) -> Part:
    """Raises ReflError for a block."""
    found = part if isinstance(part, Part) else components.part(part)
    if found.number is None:
        raise ReflError(
            f"{found.name} is a block, which has no vector of its own: project a neuron "
            f"({found.name}.N0) or a head ({found.name}.H0)"
        )
    return found


def _owner(components: Components, part: Part) -> Mlp | Attention:
    if part.kind == "neuron":
        return next(m for m in components.mlps if m.neurons == part.site)
    return next(a for a in components.attentions if a.context == part.site)


def _output_site(components: Components, part: Part) -> str:
    """The site of what its MLP, or its attention, gives."""
    return _owner(components, part).output


# -- the vector ------------------------------------------------------------------------------------


def _weight(trace: Trace, site: str) -> Array:  # (D, I)
    """Of the layer whose output is at a site: (O, I), however it is stored. Of an expert that did
    not run it is found by that of one that did.
    """
    like = next(r for r in trace.records if any_expert(r.output.site) == any_expert(site))
    there = next((r for r in trace.records if r.output.site == site), like)
    w = there.operands[1]
    assert isinstance(w, Parameter)
    if there.output.site == site:
        return w.array
    name = w.name.replace(there.output.site, site)
    return Parameter(w.weights, name, w.transposed).array


def _row(trace: Trace, components: Components, part: Part) -> Array:  # -> (D,)
    return _weight(trace, _output_site(components, part))[:, part.number]


def _head_output(
    trace: Trace, components: Components, part: Part, context: Array
) -> Array:  # (d,) -> (D,)
    """W_h c_h: heads stand side by side in what the output layer reads."""
    start, width = int(part.number or 0) * context.shape[0], int(context.shape[0])
    return _weight(trace, _output_site(components, part))[:, start : start + width] @ context


def _refuse_both(**said: Any) -> None:
    for name, value in said.items():
        if value is not None:
            raise ReflError(
                f"{argument('token')} is looked at without any input: leave {argument(name)} out"
            )


def _refuse_input(part: Part, **said: Any) -> None:
    for name, value in said.items():
        if value is not None:
            raise ReflError(
                f"{part.name} is a neuron, whose row is the same in every input: leave "
                f"{argument(name)} out"
            )


def _run(model: Model, part: Part, item: Any, decoder: Any) -> Forward:
    model.refuse_features("projecting heads")
    if item is None:
        raise ReflError(
            f"what the head {part.name} gives depends on the input: give {argument('item')}"
        )
    return Question(model).forward(model.readings([item], decoder))


def _position(forward: Forward, position: int | None, length: int) -> int:
    """By default the first row that is chosen for the output."""
    if position is None:
        rows = (r for r in forward.trace.records if r.attributes.get("kind") == "rows")
        if (chosen := next(rows, None)) is None:
            raise ReflError(
                f"the model has outputs at every token and none is chosen: give "
                f"{argument('position')}, where the head is looked at"
            )
        return int(chosen.attributes["index"][0])
    number = arguments.whole("position", position)
    if not -length <= number < length:
        raise ReflError(
            f"{argument('position')} {arguments.received(number)} is outside the input of {length} "
            f"tokens: expected 0 to {length - 1}, or -{length} to -1 from the end"
        )
    return number % length


def _token(model: Model, forward: Forward, position: int) -> str | None:
    """None in a picture, whose tokens have no text."""
    if model.takes_images:
        return None
    return model.tokens([forward.readings[0].explained[position]])[0]


# -- through the direct ways -----------------------------------------------------------------------


def _projection(
    model: Model, part: Part, found: Sequence[Way], norm: bool, k: int, v: Array
) -> Projection:
    logits = asnumpy(sum(_through(way, norm, v) for way in found))
    order = np.argsort(-logits, kind="stable")
    bottom = np.argsort(logits, kind="stable")
    return Projection(
        part=part,
        logits=logits,
        norm=norm,
        top=_entries(model, logits, order[:k]),
        bottom=_entries(model, logits, bottom[:k]),
        notes=tuple(dict.fromkeys(_notes(model, part, found, norm))),
    )


def _through(way: Way, norm: bool, v: Array) -> Array:  # (D,) -> (V,)
    for record in way.records(norm):
        v = mapped(record, v)
    return v


def _entries(model: Model, logits: Any, ids: Any) -> tuple[Entry, ...]:
    numbers = [int(i) for i in ids]
    names = model.output_names(numbers)
    return tuple(Entry(t, i, float(logits[i])) for t, i in zip(names, numbers, strict=True))


def _notes(model: Model, part: Part, found: Sequence[Way], norm: bool) -> Iterator[str]:
    """What counts, and what is left out, beyond the unembedding."""
    way = found[0]
    for record in way.norms(own=True):
        yield f"times {_weight_said(record)}, the norm behind the half-block"
    for record in way.norms(own=False):
        yield f"{'times' if norm else 'without'} {_weight_said(record)}, the final norm"
    for record in way.records(norm):
        if record.operation == "scale":
            yield f"times {record.attributes['factor']:.4g} ({record.output.site})"
    if len(found) > 1:
        yield f"the mean of {len(found)} heads, each of which reads a token of its own"
    if any(r.role == "expert.weighted" for r in way.own):
        yield "before the routing weight of its expert"
    if way.capped:
        yield "before the soft cap of the logits"
    if model.task in CLASSIFIES:
        yield "the classes read the stream at one token alone: elsewhere only by way of attention"


def _weight_said(record: Record) -> str:
    one = "1 + " if record.attributes.get("offset") else ""
    centered = ", centered," if record.operation == "layer_norm" else ""
    return f"{one}the weight of {record.output.site}{centered}".removesuffix(",")
