"""A checkpoint made ready: config -> net, weights, tokenizer; and what one does with it (encode,
logits, generate, explain).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import refl
from refl.arrays import Array, asnumpy, namespace
from refl.device import placer
from refl.errors import ReflError, nearest
from refl.explainer import with_pixel_bounds
from refl.explanation import Candidate, Explanation, Sites
from refl.io.config import decoder_start_id, eos_ids, labels, read_config
from refl.io.images import Image, Preparation, is_one, prepared, read_preparation
from refl.io.text import Text
from refl.io.weights import Prefixed, Weights, expect, refuse_strangers
from refl.ledger import DESTINATIONS
from refl.nets import NETS
from refl.nets.batch import Batch
from refl.nets.config import parse
from refl.rules.composites import Composite, from_toml, method
from refl.seeds import Seed, softmax
from refl.show.explanation import ShownExplanation
from refl.sweep import Sweep, Swept
from refl.trace import Trace, Value

SHIPPED = Path(__file__).parent / "shipped"
"""The small model that comes with refl."""

DTYPES = ("float32", "float64")

TASKS = ("next-token", "masked-token", "class", "features", "sequence-to-sequence", "image-class")
"""What a net's output is; `features` are those of its last layer, where a checkpoint has no
head.
"""

CLASSIFIES = ("class", "image-class")

Input = str | Sequence[int]
"""A text or token ids. (A net that sees takes pictures: see `images.prepared`.)"""
Progress = Callable[[str, int, int], object]
"""(phase, done, of)"""


class Net(Protocol):
    """What a file in nets/ provides."""

    MODEL_TYPE: str
    PREFIX: str
    Config: Any

    def task(self, c: Any) -> str:
        """What its output is: one of TASKS."""

    def shapes(self, c: Any) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """Every tensor it needs: name, shape, and the options of config.json that ask for it."""

    def forward(self, t: Trace, c: Any, batch: Batch) -> Value:
        """Logits: (B, T, V), or (B, 1, V) at the rows the batch wants; (B, 1, classes) for a
        classifier.
        """


def load(
    folder: str | Path | None = None,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    ignore: Collection[str] = (),
) -> Model:
    """A model from a Hugging Face checkpoint folder (config.json, *.safetensors, tokenizer.json),
    or the one that ships with refl.

    device    "cpu", or "cuda" (needs CuPy)
    dtype     of the computation: "float32", or "float64" for oracles; half-precision checkpoints
              are widened exactly
    ignore    options of config.json that are known to change nothing

    Raises ReflError, in one sentence, for anything that cannot be loaded.
    """
    folder = Path(folder) if folder is not None else SHIPPED
    if dtype not in DTYPES:
        raise ReflError(f"unknown dtype {dtype!r}: expected {' or '.join(DTYPES)}")
    place = placer(device)
    raw = read_config(folder)
    net = architecture(raw)
    config = parse(net.Config, raw, ignore)
    weights = Weights(folder, dtype=dtype, place=place)
    renamed = getattr(net, "renamed", lambda weights: weights)(weights)
    named = Prefixed(renamed, net.PREFIX)
    for name, shape, why in net.shapes(config):
        expect(renamed, named.inner(name), shape, why)
    refuse_strangers(named, {name for name, _, _ in net.shapes(config)})
    text = Text.load(folder)
    return Model(
        net,
        config,
        named,
        text,
        place,
        dtype,
        device,
        folder.resolve().name,
        eos_ids(raw),
        None if text is None else text.mask,
        _named(raw, config),
        weights.fingerprint,
        decoder_start_id(raw),
        preparation=read_preparation(folder, net.MODEL_TYPE)
        if net.task(config) == "image-class"
        else None,
    )


def architecture(raw: dict[str, Any]) -> Net:
    """The net for a config.json. Raises ReflError for a model_type there is none for."""
    kind = raw.get("model_type")
    if kind not in NETS:
        raise ReflError(f"config.json has model_type {kind!r}: refl knows {', '.join(NETS)}")
    return NETS[kind]


def _named(raw: dict[str, Any], config: Any) -> dict[int, str]:
    """The names of the outputs; features of a picture, where a checkpoint has no classifier, have
    numbers.
    """
    return (
        {i: str(i) for i in range(config.labels)}
        if getattr(config, "head", None) == "Model"
        else labels(raw)
    )


@dataclass
class Model:
    """A net with its weights and tokenizer. Made by `refl.load`."""

    net: Net
    config: Any
    weights: Mapping[str, Array]
    text: Text | None
    place: Callable[[Any], Array]
    dtype: str
    device: str = "cpu"
    name: str = ""
    eos_ids: frozenset[int] = frozenset()
    """Ids that end a text."""
    mask_id: int | None = None
    """Id of the mask token, for models that guess one."""
    labels: Mapping[int, str] = field(default_factory=dict)
    """Names of a classifier's outputs."""
    fingerprint: Callable[[], str] = lambda: ""
    decoder_start_id: int = 0
    """Id that a decoder's text starts with."""
    preparation: Preparation | None = None
    """What is done to a picture before a net sees it."""

    # -- text and ids ------------------------------------------------------------------------------

    def read(self, item: Any) -> Any:
        """An input as the net takes it: token ids, or for a net that sees the prepared picture.
        Raises ReflError for anything else.
        """
        if self.takes_images:
            return prepared(
                item, self.preparation, self.config.num_channels, self.config.image, self.dtype
            )
        return self.encode(item)

    def encode(self, item: Input) -> list[int]:
        """Token ids of a text, or the ids themselves once checked. Raises ReflError for what the
        model cannot read.
        """
        ids = self._tokenizer().encode(item) if isinstance(item, str) else [int(i) for i in item]
        if not ids:
            raise ReflError("the input is empty: expected at least one token")
        for i in ids:
            if not 0 <= i < self.config.vocab_size:
                raise ReflError(
                    f"token id {i} is outside the vocabulary of {self.config.vocab_size} "
                    f"(0 to {self.config.vocab_size - 1})"
                )
        if len(ids) > self.config.longest:
            raise ReflError(
                f"the input has {len(ids)} tokens, the model has positions for "
                f"{self.config.longest}: shorten it"
            )
        return ids

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The ids as a reader expects to see them."""
        return self.text.tokens(ids) if self.text else [str(i) for i in ids]

    def token_id(self, token: str | int) -> int:
        """The id of a target given as text or as id. Raises ReflError for one that is no single
        token.
        """
        if isinstance(token, str):
            return self._tokenizer().id_of(token)
        if not 0 <= token < self.config.vocab_size:
            raise ReflError(
                f"target id {token} is outside the vocabulary of {self.config.vocab_size}"
            )
        return int(token)

    def _tokenizer(self) -> Text:
        if self.text is None:
            raise ReflError(f"{self.name} has no tokenizer.json: give token ids in place of text")
        return self.text

    @property
    def task(self) -> str:
        """next-token, masked-token, class or sequence-to-sequence."""
        return self.net.task(self.config)

    @property
    def takes_images(self) -> bool:
        """Whether its input is a picture."""
        return self.task == "image-class"

    def blank(self) -> Any:
        """The plainest input there is: what shows the sites of the net."""
        if not self.takes_images:
            return [0]
        size = (self.config.num_channels, *self.config.image)
        return Image(
            np.zeros(size, dtype=self.dtype), np.zeros((*size[1:], size[0]), dtype=np.uint8)
        )

    def output_names(self, ids: Sequence[int]) -> list[str]:
        """Names of outputs: tokens, or the labels of a classifier."""
        return (
            [self.labels.get(i, str(i)) for i in ids]
            if self.task in CLASSIFIES
            else self.tokens(ids)
        )

    def output_id(self, name: str | int) -> int:
        """The number of an output given by name or number. Raises ReflError for one that is
        none.
        """
        if self.task not in CLASSIFIES:
            return self.token_id(name)
        for i, label in self.labels.items():
            if name in (i, label):
                return i
        raise ReflError(
            f"unknown class {name!r}: the model has {', '.join(list(self.labels.values())[:10])}"
        )

    def decoder_prefix(self, decoder: Input | None) -> list[int]:
        """What a decoder has written so far, as ids: the start token, then the text. Ids stand for
        themselves, start token included.
        """
        if decoder is None or isinstance(decoder, str):
            return self.encode(
                [
                    self.decoder_start_id,
                    *(self._tokenizer()._ids(decoder, add_special_tokens=False) if decoder else []),
                ]
            )
        return self.encode(decoder)

    def _decoder_prefixes(self, count: int, decoder: Any) -> list[list[int]] | None:
        """For each of so many inputs what its decoder has written; `decoder` is one for all, or a
        list. None where there is no decoder.
        """
        if self.task != "sequence-to-sequence":
            if decoder is not None:
                raise ReflError(
                    f"{self.name or 'the model'} has no decoder (its task is {self.task}): "
                    "leave decoder out"
                )
            return None
        if decoder is None or _is_single(decoder):
            return [self.decoder_prefix(decoder)] * count
        if len(decoder) != count:
            raise ReflError(
                f"{len(decoder)} decoder texts for {count} inputs: expected one for each, "
                "or one for all"
            )
        return [self.decoder_prefix(one) for one in decoder]

    # -- forward -----------------------------------------------------------------------------------

    def batch(
        self,
        inputs: Sequence[Sequence[int]],
        position: int | None = None,
        every: bool = False,
        decoder_prefix: Sequence[Sequence[int]] | None = None,
        types: Sequence[Sequence[int]] | None = None,
    ) -> Batch:
        """Token ids, padded on the right, and the position whose output is wanted: by default where
        the task has its own.

        `decoder_prefix`: the decoder's ids, for nets that have one; the position is then one of theirs.
        `types`: token type ids.
        """
        if self.takes_images:
            return Batch(pixels=self.place(np.stack([image.pixels for image in inputs])))  # type: ignore[attr-defined]
        prefixes = self._decoder_prefixes(len(inputs), decoder_prefix)
        rows = (
            None
            if every or self.task == "class"
            else tuple(self._position(i, position) for i in prefixes or inputs)
        )
        ids, attention_mask = self._padded(inputs)
        decoder_ids, decoder_attention_mask = (
            (None, None) if prefixes is None else self._padded(prefixes)
        )
        return Batch(
            ids=ids,
            attention_mask=attention_mask,
            types=self._types(types, inputs),
            decoder_ids=decoder_ids,
            decoder_attention_mask=decoder_attention_mask,
            rows=rows,
        )

    def _types(
        self, types: Sequence[Sequence[int]] | None, inputs: Sequence[Sequence[int]]
    ) -> Array | None:  # -> (B, T)
        if types is None:
            return None
        count = getattr(self.config, "type_vocab_size", None)
        if count is None:
            raise ReflError(f"{self.name or 'the model'} has no token types: leave types out")
        if [len(t) for t in types] != [len(i) for i in inputs] or not all(
            0 <= k < count for t in types for k in t
        ):
            raise ReflError(
                f"types has to give every token of every input a number from 0 to {count - 1}"
            )
        return self._padded(types)[0]

    def _padded(
        self, inputs: Sequence[Sequence[int]]
    ) -> tuple[Array, Array]:  # -> (B, T), and which are real
        longest = max(map(len, inputs))
        ids = self.place(
            np.asarray([[*i, *[0] * (longest - len(i))] for i in inputs], dtype=np.int64)
        )
        attention_mask = None
        if any(len(i) < longest for i in inputs):
            attention_mask = self.place(
                np.asarray([[t < len(i) for t in range(longest)] for i in inputs])
            )
        return ids, attention_mask

    def _position(self, ids: Sequence[int], position: int | None) -> int:
        if position is not None:
            at = position + len(ids) if position < 0 else position
            if not 0 <= at < len(ids):
                raise ReflError(f"position {position} is outside the input of {len(ids)} tokens")
            return at
        if self.task in ("next-token", "sequence-to-sequence"):
            return len(ids) - 1
        if self.task == "features":
            return 0
        masks = [t for t, i in enumerate(ids) if i == self.mask_id]
        if len(masks) != 1:
            raise ReflError(
                f"expected one mask token in the input, found {len(masks)}: write it where "
                "the model is to guess, or give position="
            )
        return masks[0]

    def logits(self, item: Input, decoder: Input | None = None) -> Any:  # -> NumPy (T, V)
        """The logits after every token of one input, or of what its decoder has written."""
        t = Trace(self.weights, record=False, plain=False)
        return asnumpy(
            self._forward(
                t,
                self.batch(
                    [self.read(item)], every=True, decoder_prefix=self._decoder_prefixes(1, decoder)
                ),
            ).array
        )[0]

    def generate(self, item: Input, tokens: int = 32, decoder: Input | None = None) -> list[int]:
        """Greedy continuation: the input's ids (or its decoder prefix) and up to `tokens` more,
        stopping at the end-of-text token.

        Plain on purpose: the whole text is run again for every new token.
        """
        read, prefixes = self.encode(item), self._decoder_prefixes(1, decoder)
        ids = read if prefixes is None else prefixes[0]
        for _ in range(min(tokens, self.config.longest - len(ids))):
            t, batch = (
                Trace(self.weights, record=False, plain=False),
                self.batch([read], decoder_prefix=prefixes),
            )
            ids.append(int(asnumpy(self._forward(t, batch).array)[0, 0].argmax()))
            if ids[-1] in self.eos_ids:
                break
        return ids

    def trace(
        self, items: Sequence[Input], position: int | None = None, decoder: Any = None, **how: Any
    ) -> tuple[Trace, Value]:
        """The recorded forward of a batch, and the logits at each input's explained position, (B,
        1, V).
        """
        t = Trace(self.weights, **how)
        return t, self._forward(
            t,
            self.batch(
                [self.read(item) for item in items],
                position,
                decoder_prefix=self._decoder_prefixes(len(items), decoder),
            ),
        )

    def sites(self) -> dict[str, str]:
        """Every name a value has, and its site: what keep patterns, composites and `e[...]` can
        name.
        """
        t, _ = self.trace([self.blank()], position=0)
        return {
            name: value.site for value in dict.fromkeys(t.values.values()) for name in value.names
        }

    def _forward(self, t: Trace, batch: Batch) -> Value:
        logits = self.net.forward(t, self.config, batch)
        _refuse_overflow(t, logits)
        return logits

    # -- explaining --------------------------------------------------------------------------------

    def explain(
        self,
        item: Any,
        method: str | Composite = "attnlrp",
        *,
        target: str | int | Sequence[str | int] | None = None,
        contrast: tuple[str | int, str | int] | None = None,
        decoder: Any = None,
        position: int | None = None,
        seed: str = "logit",
        eps: float | None = None,
        stabilizer: str | None = None,
        keep: str | Sequence[str] = "*",
        recompute: bool = False,
        audit: bool = False,
        progress: Progress | None = None,
        at: tuple[str, Sequence[int]] | None = None,
        types: Any = None,
    ) -> Any:
        """Explain the next token after a text (the masked token in it, the class it is put in: what
        the model does), or after a list of token ids, or after each of a list of those (a padded
        batch).

        method        a published method by name, the path of a .toml composite, or a Composite
        target        the token to explain (text or id; for a batch one for all, or a list); by
                      default the most likely next one
        contrast      (a, b): explain the logit of a minus that of b
        decoder       for sequence-to-sequence models what the decoder has written so far: text, or
                      ids with the start token (for a batch
                      one for all, or a list); by default nothing but the start token. Its next
                      token is explained
        position      explain the output at this token instead (counted from 0, or from the end if
                      negative)
        seed          "logit", "log-probability" or "probability" (softmax-weighted)
        eps, stabilizer    set these options in every rule that has them
        keep          patterns of the sites whose activation and relevance to keep; () for none,
                      which is fastest
        recompute     hold one block's activations at a time and run the others again: less memory,
                      a third more time
        audit         also book the scale of rounding at every site (`entry.terms`)
        at
            (site, index): explain the activation of one neuron in place of an output,
            ("model.layers.1.mlp", (3, 17)) say,
                      the index in the shape of the activation without the batch axis
        types         token type ids, for models that tell sentence A from B; by default all 0 (for
                      a batch a list of them)

        Returns an Explanation, or a list of them for a batch. Raises ReflError for anything it
        cannot do.
        """
        if at is not None and not (
            target is None and contrast is None and position is None and seed == "logit"
        ):
            raise ReflError(
                "at= says what is explained: leave target, contrast, position and seed out"
            )
        single = is_one(item) if self.takes_images else _is_single(item)
        items = [item] if single else list(item)
        job = _Job(
            self,
            items,
            _composite(method, eps, stabilizer),
            keep,
            recompute,
            audit,
            progress,
            position,
            decoder,
            at,
            [types] if single and types is not None else types,
        )
        explained = job.run([self._targets(items, target, contrast)], seed)[0]
        return explained[0] if single else explained

    def explain_each(
        self,
        item: Input,
        targets: Sequence[str | int],
        method: str | Composite = "attnlrp",
        *,
        seed: str = "logit",
        **how: Any,
    ) -> list[Explanation]:
        """Several targets of one text from a single forward pass: one Explanation each."""
        options = {
            "eps": None,
            "stabilizer": None,
            "keep": "*",
            "recompute": False,
            "audit": False,
            "progress": None,
        } | how
        composite = _composite(method, options.pop("eps"), options.pop("stabilizer"))
        wanted: list[list[tuple[int | None, int | None]]] = [
            [(self.output_id(t), None)] for t in targets
        ]
        return [one[0] for one in _Job(self, [item], composite, **options).run(wanted, seed)]

    def _targets(
        self, items: Sequence[Input], target: Any, contrast: tuple[str | int, str | int] | None
    ) -> list[tuple[int | None, int | None]]:
        """(target, against) for each input; None for the most likely next token."""
        if contrast is not None:
            if target is not None:
                raise ReflError("give a target or a contrast, not both")
            a, b = (self.output_id(token) for token in contrast)
            return [(a, b)] * len(items)
        if target is None or isinstance(target, (str, int)):
            return [(None if target is None else self.output_id(target), None)] * len(items)
        if len(target) != len(items):
            raise ReflError(
                f"{len(target)} targets for {len(items)} inputs: expected one for each, or "
                "one for all"
            )
        return [(self.output_id(token), None) for token in target]


def _is_single(item: Any) -> bool:
    if isinstance(item, str):
        return True
    if len(item) == 0:
        raise ReflError("the input is empty: expected a text, or at least one token id")
    return not (isinstance(item[0], str) or hasattr(item[0], "__len__"))


def _composite(name: str | Composite, eps: float | None, stabilizer: str | None) -> Composite:
    if isinstance(name, str):
        name = from_toml(name) if name.endswith(".toml") else method(name)
    changed = {
        key: value for key, value in (("eps", eps), ("stabilizer", stabilizer)) if value is not None
    }
    return name.with_options(**changed) if changed else name


def _refuse_overflow(t: Trace, logits: Value) -> None:
    xp = namespace(logits.array)
    if bool(xp.all(xp.isfinite(logits.array))):
        return
    for record in t.records:
        if not bool(xp.all(xp.isfinite(record.output.array))):
            raise ReflError(
                f"the forward pass overflows at {record.output.site}: try dtype float64, "
                "or check the checkpoint"
            )
    raise ReflError(
        "the forward pass gives logits that are not finite: try dtype float64, or check "
        "the checkpoint"
    )


@dataclass
class _Job:
    """One forward pass and the sweeps asked of it."""

    model: Model
    items: list[Input]
    composite: Composite
    keep: str | Sequence[str]
    recompute: bool
    audit: bool
    progress: Progress | None
    position: int | None = None
    decoder: Any = None
    at: tuple[str, Sequence[int]] | None = None
    types: Any = None

    def __post_init__(self) -> None:
        if self.model.takes_images:
            self.composite = with_pixel_bounds(
                self.composite, self.model.preparation, self.model.config.num_channels
            )

    def run(
        self, wanted: list[list[tuple[int | None, int | None]]], kind: str
    ) -> list[list[Explanation]]:
        """For each list of (target, against), one per input: an Explanation per input."""
        patterns = (self.keep,) if isinstance(self.keep, str) else tuple(self.keep)
        inside = any(_fits_attention(p) for p in (*patterns, *(self.at or ())[:1]))
        ids = [self.model.read(item) for item in self.items]
        prefixes = self.model._decoder_prefixes(len(ids), self.decoder)
        trace = Trace(self.model.weights, plain=inside, recompute=self.recompute)
        if self.at is None and self.model.task == "features":
            raise ReflError(
                f"{self.model.name or 'the model'} is a checkpoint without a head, so "
                "there is no output to explain: "
                "take one with a head, or explain a neuron with at=(site, index), on the "
                "command line --at SITE INDEX ..."
            )
        logits = self.model._forward(
            trace,
            self.model.batch(
                ids,
                self.position,
                every=self.at is not None,
                decoder_prefix=prefixes,
                types=self.types,
            ),
        )
        if self.at is not None:
            logits, wanted = self._neuron(
                trace,
                *self.at,
                lengths=[1] if self.model.takes_images else [len(i) for i in prefixes or ids],
            )
        rows = asnumpy(logits.array).reshape(
            len(ids), -1
        )  # (B, V), or all features of the neuron's site
        embedded = next(r.output for r in trace.records if r.attributes.get("role") in DESTINATIONS)
        decoder = [r.output.site for r in trace.records if r.attributes.get("role") == "tokens"][1:]
        patterns += tuple(decoder)
        results = []
        for number, targets in enumerate(wanted):
            seeds = [
                Seed(kind, int(z.argmax()) if a is None else a, b)
                for z, (a, b) in zip(rows, targets, strict=True)
            ]
            swept = self._sweep(
                trace, logits, rows, seeds, embedded, patterns, last=number == len(wanted) - 1
            )
            read = [[] for _ in ids] if self.model.takes_images else ids
            results.append(
                [
                    self._explanation(b, read[b], rows[b], seed, swept, embedded.site)
                    for b, seed in enumerate(seeds)
                ]
            )
            for b, e in enumerate(results[-1] if self.model.takes_images else ()):
                self._add_picture(
                    e,
                    ids[b],
                    *(
                        asnumpy(kept[embedded.site])[b]
                        for kept in (swept.propagated, swept.activations)
                    ),
                )
            for b, one in enumerate(prefixes or ()):
                self._add_decoder(
                    results[-1][b],
                    one,
                    asnumpy(swept.propagated[decoder[0]])[b],
                    asnumpy(swept.activations[decoder[0]])[b],
                )
        return results

    def _neuron(
        self, trace: Trace, site: str, index: Sequence[int], *, lengths: list[int]
    ) -> tuple[Value, list[list[tuple[int | None, int | None]]]]:
        """The value at a site, to be explained as logits are, and the neuron there as target."""
        if site not in trace.values:
            near = ", ".join(nearest(site, trace.values, 3))
            inside = " (inside a block there are none with recompute)" if self.recompute else ""
            raise ReflError(
                f"at= names {site!r}, which is no site of this model{inside}; nearest: {near}"
            )
        value = trace.values[site]
        shape = value.array.shape[1:]
        if len(index) != len(shape) or not all(
            -n <= i < n for i, n in zip(index, shape, strict=True)
        ):
            raise ReflError(
                f"at= has the index {tuple(index)} at {site}, whose shape is {tuple(shape)}"
            )
        if len(set(lengths)) > 1:
            raise ReflError(
                "at= explains one neuron in inputs of one length: give the others on their own"
            )
        flat = int(np.ravel_multi_index([i % n for i, n in zip(index, shape, strict=True)], shape))
        return value, [[(flat, None)] * int(value.array.shape[0])]

    def _sweep(
        self,
        trace: Trace,
        logits: Value,
        rows: Any,
        seeds: list[Seed],
        embedded: Value,
        patterns: tuple[str, ...],
        last: bool,
    ) -> Swept:
        form = Seed.gradient if self.composite.formulation == "gradient_x_input" else Seed.relevance
        start = self.model.place(
            np.stack([form(seed, z) for seed, z in zip(seeds, rows, strict=True)]).reshape(
                logits.array.shape
            )
        )
        done = iter(range(1, len(trace.records) + 1))
        sweep = Sweep(
            self.composite,
            keep=lambda names: (
                embedded.site in names or any(fnmatchcase(n, p) for p in patterns for n in names)
            ),
            release=last,
            audit=self.audit,
            progress=lambda: (
                self.progress and self.progress("sweep", next(done, 0), len(trace.records))
            ),
        )
        return sweep.run(trace, logits, start)

    def _explanation(
        self, b: int, ids: list[int], z: Any, seed: Seed, swept: Swept, embedded: str
    ) -> Explanation:
        model, p = self.model, softmax(z.astype(np.float64))
        best = [] if self.at else [int(i) for i in np.argsort(-z, kind="stable")[:5]]
        names = dict(zip(best, model.output_names(best), strict=True))
        ledger = swept.ledger.example(b)
        sites = Sites(
            swept.propagated, swept.activations, swept.aliases, self.composite.formulation, b
        )
        return ShownExplanation(
            tokens=model.tokens(ids),
            input_ids=ids,
            relevance=self._scores(
                asnumpy(swept.propagated[embedded])[b], asnumpy(swept.activations[embedded])[b]
            )[: len(ids)],
            target=f"{self.at[0]}[{', '.join(map(str, self.at[1]))}]"
            if self.at
            else model.output_names([seed.target])[0],
            target_id=seed.target,
            logit=float(z[seed.target]),
            probability=math.nan if self.at else float(p[seed.target]),
            against=None if seed.against is None else model.output_names([seed.against])[0],
            seed="activation" if self.at else seed.kind,
            explained=float(ledger.explained[0]),
            candidates=[Candidate(names[i], i, float(z[i]), float(p[i])) for i in best],
            composite=self.composite,
            ledger=ledger,
            about={
                "refl": refl.__version__,
                "model": model.name,
                "architecture": model.net.MODEL_TYPE,
                "dtype": model.dtype,
                "task": model.task,
            },
            fingerprint=model.fingerprint,
            sites=sites,
        )

    def _add_decoder(self, e: Explanation, ids: list[int], propagated: Any, x: Any) -> None:
        e.decoder_tokens, e.decoder_ids, e.decoder_relevance = (
            self.model.tokens(ids),
            ids,
            self._scores(propagated, x)[: len(ids)],
        )

    def _add_picture(self, e: Explanation, image: Image, propagated: Any, x: Any) -> None:
        channels_last = (np.moveaxis(a, 0, -1) for a in (propagated, x))
        e.relevance, e.picture, e.patch = (
            self._scores(*channels_last),
            image.picture,
            self.model.config.patch,
        )

    def _scores(self, propagated: Any, x: Any) -> Any:  # (T, D), (T, D) -> (T,)
        if self.composite.score == "norm":
            return np.sqrt((propagated * propagated).sum(axis=-1))
        return (
            propagated * x if self.composite.formulation == "gradient_x_input" else propagated
        ).sum(axis=-1)


def _fits_attention(pattern: str) -> bool:
    """Whether a pattern may name a site that only the plain form of attention has."""
    last = pattern.rpartition(".")[2]
    return "*" in last or "[" in last or last in ("scores", "probabilities", "transposed")
