"""A net with its weights and its tokenizer: what reads an input and runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from refl import arguments, parallel
from refl.arguments import is_single, received
from refl.arrays import Array, asnumpy, namespace
from refl.attention_mask import mask_of, refuse_blind, together
from refl.cache import Cache, CachedTrace
from refl.device import on_host
from refl.edits import (
    Change,
    Edits,
    guarded,
    refuse_strange,
    refuse_strange_leaves,
    whole,
)
from refl.errors import LONGEST_REPR, ReflError, UnknownWords, argument, sentence, shown
from refl.io.images import Image, Preparation, prepared
from refl.io.text import Text
from refl.nets.batch import Batch
from refl.nets.heads import OfDecoder, last_tokens
from refl.nets.masks import of_net
from refl.targets import ENDS, SPANS, Feature, Special, span
from refl.trace import LEAVES, Trace, Value

TASKS = (
    *("next-token", "masked-token", "class", "token-class", "answer-span", "features"),
    *("sequence-to-sequence", "image-class"),
)
"""What a net's output is: `token-class` a class for every token, `answer-span` for every token
whether an answer starts or ends there; `features` are those of its last layer, where a checkpoint
has no head.
"""

CLASSIFIES = ("class", "image-class")

LABELED = (*CLASSIFIES, "token-class")
"""Whose outputs are classes with names."""

WHOLE = (*CLASSIFIES, "answer-span")
"""Whose output is of no one token, so that there is no `position` to choose."""

GENERATES = ("next-token", "sequence-to-sequence")

Input = str | Sequence[int]
"""A text or token ids. (A net that takes images takes pictures: see `images.prepared`.)"""


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
        classifier of texts or pictures; (B, T, 2) of starts and ends of answers.
        """


def no_fingerprint() -> str:
    """Of weights that come from no file."""
    return ""


def no_file_to_change() -> None:
    """The same: nothing can change under them."""


@dataclass(frozen=True)
class Reading:
    """One input as the net takes it."""

    input: Any
    """Token ids, or an Image."""
    types: list[int] | None = None
    """Token type ids, where somebody has said them."""
    prefix: list[int] | None = None
    """The ids that a decoder has written, where there is one."""
    attention_mask: Any = None
    """Which of its tokens may be looked at, or which may look where: NumPy bool (T,) or (T, T)."""
    second: list[bool] | None = None
    """Of a pair of texts which tokens are of the second."""

    @property
    def explained(self) -> Any:
        """The ids whose positions have outputs: the decoder's where there is one."""
        return self.input if self.prefix is None else self.prefix


@dataclass(repr=False)
class Network:
    """A net with its weights and tokenizer."""

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
    probability: str = "softmax"
    """What makes probabilities of the logits: "softmax"; "sigmoid" where classes do not exclude
    each other; "none" where the outputs are numbers (a regression, features).
    """
    fingerprint: Callable[[], str] = no_fingerprint
    refuse_changed: Callable[[], None] = no_file_to_change
    """Raises ReflError where the weights' files have changed since they were opened."""
    decoder_start_id: int = 0
    """Id that a decoder's text starts with."""
    ignored: Mapping[str, str] = field(default_factory=dict)
    """What the caller said to ignore in the checkpoint: `ignored options`, `ignored tensors`."""
    preparation: Preparation | None = None
    """What is done to a picture before a net sees it."""
    edits: Edits = field(default_factory=dict)
    """Site -> what is changed there in every run (refl.edits)."""
    known: dict[str, Any] = field(default_factory=dict, compare=False)
    """What has been found out about the net, by name (refl.anatomy)."""

    def __repr__(self) -> str:
        """One line."""
        kind = f"{self.net.MODEL_TYPE}, {self.task}, {self.dtype} on {self.device}"
        return sentence(f"<{type(self).__name__} {self.name or '(unnamed)'}: {kind}>", LONGEST_REPR)

    def __getstate__(self) -> dict[str, Any]:
        """Pickled by the name of its net and by its weights. Those that are read from files are
        pickled by the files' path and fingerprint: they are opened again, and refused where they
        have changed.
        """
        at_home = self.place is on_host or (self.device == "cpu" and _is_local(self.place))
        net = self.net.__name__ if isinstance(self.net, ModuleType) else self.net
        return vars(self) | {"net": net, "place": None if at_home else self.place}

    def __setstate__(self, state: dict[str, Any]) -> None:
        net = state["net"]
        state["net"] = import_module(net) if isinstance(net, str) else net
        state["place"] = state["place"] or on_host
        vars(self).update(state)

    # -- text and ids ------------------------------------------------------------------------------

    def read(self, item: Any) -> Any:
        """An input as the net takes it: token ids, or the prepared picture.
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
        self._refuse_reading()
        if isinstance(item, str):
            text = arguments.text("the input", item)
            ids = self._tokenizer().encode(text)
            self._warn_of_unknown_words(ids, text)
        else:
            ids = [arguments.token_id(i) for i in arguments.input_members(item)]
        return self._checked(ids)

    def encode_pair(self, item: Any, second: Any) -> Reading:
        """Two texts as the checkpoint's tokenizer joins them, with their token types, and which
        tokens are of the second. Raises ReflError for what are no texts, and where the model reads
        no pairs: only encoders tell two texts apart, but whatever finds answers reads two.
        """
        count = getattr(self.config, "type_vocab_size", None)
        if count is None and self.task != "answer-span":
            raise ReflError(
                f"{self.name or 'the model'} reads no pairs of texts, as encoders do that tell "
                f"two sentences apart: leave {argument('pair=')} out"
            )
        first = arguments.text("the input of a pair", item)
        second = arguments.text("pair", second)
        ids, types, of_second = self._tokenizer().pair(first, second)
        self._warn_of_unknown_words(ids, first, second)
        # RoBERTa has one type, whatever a template says
        kinds = None if count is None else [k if k < count else 0 for k in types]
        return Reading(self._checked(ids), kinds, second=of_second)

    def _warn_of_unknown_words(self, ids: list[int], text: str, second: str | None = None) -> None:
        tokenizer = self._tokenizer()
        if tokenizer.unknown is None or tokenizer.unknown not in ids:
            return
        words = tokenizer.unknown_words(text, second)
        if words:
            few = ", ".join(repr(shown(w)) for w in words[:8]) + ", ..." * (len(words) > 8)
            instead = tokenizer.tokens([tokenizer.unknown])[0]
            warnings.warn(
                f"{few} {'is' if len(words) == 1 else 'are'} not in the vocabulary of "
                f"{self.name or 'the model'}, which reads {instead}: "
                f"model.text.vocabulary() lists its {len(tokenizer)} entries",
                UnknownWords,
                stacklevel=2,
            )

    def _checked(self, ids: list[int]) -> list[int]:
        if not ids:
            raise ReflError("the input is empty: expected at least one token")
        for i in ids:
            if not 0 <= i < self.config.vocab_size:
                raise ReflError(
                    f"token id {received(i)} is outside the vocabulary of "
                    f"{self.config.vocab_size} (0 to {self.config.vocab_size - 1})"
                )
        if len(ids) > self.config.longest:
            raise ReflError(
                f"the input has {len(ids)} tokens, the model has positions for "
                f"{self.config.longest}: shorten it"
            )
        return ids

    def _refuse_reading(self) -> None:
        if self.takes_images:
            raise ReflError(f"{self.name or 'the model'} takes pictures: it reads no text")

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The ids as a reader expects to see them. Raises ReflError for what are none."""
        numbers = [arguments.token_id(i) for i in arguments.listed("ids", ids, "token ids")]
        return list(map(received, numbers)) if self.text is None else self.text.tokens(numbers)

    def token_id(self, token: str | int) -> int:
        """The id of a target given as text or as id.
        Raises ReflError for one that is no single token.
        """
        self._refuse_reading()
        if isinstance(token, str):
            return self._tokenizer().id_of(arguments.text("target", token))
        id_ = arguments.token_id(token)
        if not 0 <= id_ < self.config.vocab_size:
            raise ReflError(
                f"target id {received(id_)} is outside the vocabulary of {self.config.vocab_size} "
                f"(0 to {self.config.vocab_size - 1})"
            )
        return id_

    def _tokenizer(self) -> Text:
        if self.text is None:
            raise ReflError(
                f"{self.name or 'the model'} has no tokenizer.json: give token ids in place of text"
            )
        return self.text

    @property
    def task(self) -> str:
        """What its output is: one of TASKS."""
        return self.net.task(self.config)

    @property
    def takes_images(self) -> bool:
        """Whether its input is a picture."""
        return self.task == "image-class"

    def batch_dependent(self, length: int) -> bool:
        """Whether an example's output depends on its batch mates where the longest has `length`
        tokens: with dynamic rotary positions, beyond max_position_embeddings.
        """
        depends = getattr(self.config, "batch_dependent", None)
        return False if depends is None else bool(depends(length))

    def blank(self) -> Any:
        """The plainest input there is: what shows the sites of the net."""
        if not self.takes_images:
            return [0]
        size = (self.config.num_channels, *self.config.image)
        return Image(
            np.zeros(size, dtype=self.dtype), np.zeros((*size[1:], size[0]), dtype=np.uint8)
        )

    def output_names(self, ids: Sequence[int]) -> list[str]:
        """Names of outputs: tokens, or the labels of a classifier; of answers start and end, of
        features their numbers.
        """
        if self.task == "answer-span":
            return [ENDS[arguments.whole("a column", i) % 2] for i in ids]
        if self.task == "features":
            return [received(arguments.whole("a coordinate", i)) for i in ids]
        if self.task not in LABELED:
            return self.tokens(ids)
        numbers = [arguments.whole("a class", i) for i in arguments.listed("ids", ids, "numbers")]
        return [self.labels.get(i, received(i)) for i in numbers]

    def output_id(self, name: str | int) -> int:
        """The number of an output given by name or number.
        Raises ReflError for one that is none.
        """
        if self.task not in LABELED:
            return self.token_id(name)
        number = arguments.as_whole(name)
        found = [
            i
            for i, label in self.labels.items()
            if i == number or (isinstance(name, str) and name == label)
        ]
        if len(found) > 1:
            raise ReflError(
                f"{received(name)} is the name of {len(found)} classes: give one by its number, "
                f"{', '.join(map(str, found[:10]))}"
            )
        if not found:
            known = ", ".join(list(self.labels.values())[:10])
            raise ReflError(f"unknown class {received(name)}: the model has {known}")
        return found[0]

    @property
    def gives_features(self) -> bool:
        """Whether its output is features: a checkpoint without a head."""
        return self.task == "features" or getattr(self.config, "head", None) == "Model"

    def target(self, target: Any) -> int | Special:
        """The output meant by a target: its number, or the start and end of an answer, or what is
        explained of features (refl.targets). Raises ReflError for one that is none.
        """
        if isinstance(target, Feature) and not self.gives_features:
            raise ReflError(
                f"{argument('target')} is one of features, and {self.name or 'the model'} has a "
                f"head (its task is {self.task}): explain its output, or a neuron with "
                f"{argument('at=')}"
            )
        if isinstance(target, Feature):
            return target
        if self.task == "features":
            self.refuse_headless()
        if self.task == "answer-span":
            if (found := span(target)) is None:
                raise arguments.expected("target", SPANS, target)
            return found
        return self.output_id(target)

    def refuse_headless(self) -> None:
        """Raises ReflError for a checkpoint without a head, where none of its features is named."""
        raise ReflError(
            f"{self.name or 'the model'} is a checkpoint without a head, so there is no output to "
            f"explain: take one with a head, explain a {argument('coordinate')} of its features or "
            f"their {argument('cosine')} to a vector, or a neuron with {argument('at=')} (its "
            "site, and its index there)"
        )

    def decoder_prefix(self, decoder: Input | None) -> list[int]:
        """What a decoder has written so far, as ids: the start token, then the text. Ids stand for
        themselves, start token included.
        """
        if decoder is None or isinstance(decoder, str):
            text = self._tokenizer().encode_bare(decoder) if decoder else []
            return self.encode([self.decoder_start_id, *text])
        return self.encode(decoder)

    def decoder_prefixes(self, count: int, decoder: Any) -> list[list[int]] | None:
        """For each of so many inputs what its decoder has written; `decoder` is one for all, or a
        list. None where there is no decoder.
        """
        if self.task != "sequence-to-sequence":
            if decoder is not None:
                raise ReflError(
                    f"{self.name or 'the model'} has no decoder (its task is {self.task}): "
                    f"leave {argument('decoder')} out"
                )
            return None
        if decoder is None or is_single(decoder):
            return [self.decoder_prefix(decoder)] * count
        each = arguments.input_members(decoder)
        if len(each) != count:
            raise ReflError(
                f"{len(each)} decoder texts for {count} inputs: expected one for each, "
                "or one for all"
            )
        return [self.decoder_prefix(one) for one in each]

    def readings(
        self,
        items: Sequence[Any],
        decoder: Any = None,
        types: Any = None,
        pair: Any = None,
        masks: Any = None,
    ) -> list[Reading]:
        """Inputs as the net takes them, each with its token types and with what a decoder has
        written. `decoder`: one for all, or a list; `types`: a list for each input; `pair`: the
        second text of each; `masks`: its attention mask, or None for one without. Raises ReflError
        for what does not fit the net.
        """
        if pair is not None:
            if types is not None:
                raise ReflError(
                    f"{argument('pair=')} has the token types of the tokenizer: leave "
                    f"{argument('types=')} out"
                )
            if len(pair) != len(items):
                raise ReflError(f"{len(pair)} second texts for {len(items)} inputs: one for each")
            self.decoder_prefixes(len(items), decoder)  # which nothing that reads pairs has
            joined = [self.encode_pair(a, b) for a, b in zip(items, pair, strict=True)]
            allowed = self._attention_masks(masks, [reading.input for reading in joined])
            return [replace(r, attention_mask=m) for r, m in zip(joined, allowed, strict=True)]
        inputs = [self.read(item) for item in items]
        prefixes = self.decoder_prefixes(len(inputs), decoder)
        kinds = self._types(types, inputs)
        allowed = self._attention_masks(masks, inputs)
        return [
            Reading(
                ids,
                None if kinds is None else kinds[b],
                None if prefixes is None else prefixes[b],
                allowed[b],
            )
            for b, ids in enumerate(inputs)
        ]

    def lengths(self, reading: Reading) -> tuple[int, ...]:
        """How many tokens are read, and written by a decoder; of a picture its patches."""
        if isinstance(reading.input, Image):
            height, width = self.config.patch
            return (reading.input.pixels[0].size // (height * width) + 1,)
        return (len(reading.input), *(() if reading.prefix is None else (len(reading.prefix),)))

    # -- forward -----------------------------------------------------------------------------------

    def batch(
        self,
        inputs: Sequence[Any],
        position: int | None = None,
        every: bool = False,
        decoder_prefix: Any = None,
        types: Sequence[Sequence[int]] | None = None,
        masks: Sequence[Any] | None = None,
    ) -> Batch:
        """Inputs as `read` gives them, token ids padded on the right, and the position whose output
        is wanted: by default where the task has its own.

        `decoder_prefix`: the decoder's ids, for nets that have one; the position is then one of
        theirs. `types`: token type ids. `masks`: attention masks, of the caller, None for an input
        without.
        """
        self._refuse_position(position)
        kinds, allowed = self._types(types, inputs), self._attention_masks(masks, inputs)
        if self.takes_images:
            return Batch(pixels=self.place(np.stack([image.pixels for image in inputs])))
        prefixes = self.decoder_prefixes(len(inputs), decoder_prefix)
        rows = None if every else self._rows(prefixes or inputs, position)
        ids, unpadded = self._padded(inputs)
        decoder_ids, decoder_mask = (None, None) if prefixes is None else self._padded(prefixes)
        batch = Batch(
            ids=ids,
            attention_mask=unpadded,
            unpadded=unpadded,
            types=None if kinds is None else self._padded(kinds)[0],
            decoder_ids=decoder_ids,
            decoder_attention_mask=decoder_mask,
            rows=rows,
        )
        return batch if masks is None else self._masked(batch, inputs, allowed)

    def _attention_masks(self, masks: Any, inputs: Sequence[Any]) -> list[Any]:
        """Of each input NumPy bool (T,) or (T, T), or None. Raises ReflError where the net takes
        none.
        """
        if masks is None:
            return [None] * len(inputs)
        if self.takes_images:
            raise ReflError(
                f"{self.name or 'the model'} takes pictures, of which every patch is looked at: "
                f"leave {argument('attention_mask')} out"
            )
        each = arguments.listed("attention_mask", masks, "a list of masks, one for each input")
        if len(each) != len(inputs):
            raise ReflError(
                f"{len(each)} attention masks for {len(inputs)} inputs: expected one for each, or "
                "None for one without"
            )
        found = [
            None if one is None else mask_of(one, len(ids))
            for one, ids in zip(each, inputs, strict=True)
        ]
        if self.task == "sequence-to-sequence" and any(
            m is not None and m.ndim == 2 for m in found
        ):
            raise ReflError(
                f"{self.name or 'the model'} has a decoder that looks at the input too: expected "
                f"one entry of {argument('attention_mask')} for each token, for both"
            )
        return found

    def _masked(self, batch: Batch, inputs: Sequence[Sequence[int]], masks: list[Any]) -> Batch:
        """With what may be looked at, of what is no padding. Raises ReflError where a token whose
        output is read may look at nothing.
        """
        for b, (ids, allowed) in enumerate(zip(inputs, masks, strict=True)):
            if allowed is not None:
                text, rows = np.asarray([ids]), self._rows_read(batch, b)
                refuse_blind(of_net(self.config, text, allowed[None]), rows)
        whole = together(masks, [len(ids) for ids in inputs])
        return replace(batch, attention_mask=self.place(whole))

    def _rows_read(self, batch: Batch, b: int) -> tuple[int, ...]:
        """The tokens of an example that the head reads, where it does not read all of them."""
        if self.task == "sequence-to-sequence":
            return ()
        if self.task != "class":
            return () if batch.rows is None else (batch.rows[b],)
        if isinstance(self.config, OfDecoder):
            return (last_tokens(batch, self.config.pad_token_id)[b],)
        return () if getattr(self.config, "classifier_pooling", "cls") == "mean" else (0,)

    def _types(self, types: Any, inputs: Sequence[Any]) -> list[list[int]] | None:
        """Token types once checked. Raises ReflError where the net tells none apart."""
        if types is None:
            return None
        count = getattr(self.config, "type_vocab_size", None)
        if count is None or self.takes_images:
            raise ReflError(
                f"{self.name or 'the model'} has no token types: leave {argument('types')} out"
            )
        each = [arguments.members(t) for t in arguments.members(types) or []]
        numbers = [[arguments.as_whole(k) for k in t or []] for t in each]
        fits = [len(t) for t in numbers] == [len(i) for i in inputs]
        if not fits or not all(k is not None and 0 <= k < count for t in numbers for k in t):
            raise ReflError(
                f"{argument('types')} has to give every token of every input a number "
                f"from 0 to {count - 1} "
                f"(inputs of {', '.join(str(len(i)) for i in inputs[:5])} tokens), got "
                f"{received(types)}"
            )
        return [[k for k in t if k is not None] for t in numbers]

    def _refuse_position(self, position: Any) -> None:
        if position is not None and self.task == "answer-span":
            raise ReflError(
                f"{argument('position=')} chooses the token whose output is explained, and the "
                f"start and the end of an answer are tokens themselves: give them as "
                f"{argument('target')}"
            )
        if position is not None and self.task in CLASSIFIES:
            raise ReflError(
                f"{argument('position=')} chooses the token whose output is explained, and a "
                f"classifier has one output for all of its input: leave {argument('position')} out"
            )

    def _padded(
        self, inputs: Sequence[Sequence[int]]
    ) -> tuple[Array, Array | None]:  # -> (B, T), and the attention mask where any is padded
        longest = max(map(len, inputs))
        ids = np.asarray([[*i, *[0] * (longest - len(i))] for i in inputs], dtype=np.int64)
        if all(len(i) == longest for i in inputs):
            return self.place(ids), None
        mask = np.asarray([[t < len(i) for t in range(longest)] for i in inputs])
        return self.place(ids), self.place(mask)

    def _rows(
        self, inputs: Sequence[Sequence[int]], position: int | None
    ) -> tuple[int, ...] | None:
        """Where the output is wanted; None for a classifier, whose net pools, and for answers,
        which may start and end anywhere.
        """
        if self.task in WHOLE:
            return None
        return tuple(self._position(ids, position) for ids in inputs)

    def _position(self, ids: Sequence[int], position: int | None) -> int:
        if position is not None:
            number = arguments.whole("position", position)
            at = number + len(ids) if number < 0 else number
            if not 0 <= at < len(ids):
                raise ReflError(
                    f"{argument('position')} {received(number)} is outside the input of "
                    f"{len(ids)} tokens: "
                    f"expected 0 to {len(ids) - 1}, or -{len(ids)} to -1 from the end"
                )
            return at
        if self.task in GENERATES:
            return len(ids) - 1
        if self.task == "features" or (self.task == "token-class" and len(ids) == 1):
            return 0
        if self.task == "token-class":
            raise ReflError(
                f"{self.name or 'the model'} gives every token a class, and the input has "
                f"{len(ids)}: say which token's with {argument('position=')}, counted from 0, or "
                "from the end if negative"
            )
        masks = [t for t, i in enumerate(ids) if i == self.mask_id]
        if len(masks) != 1:
            raise ReflError(
                f"expected one mask token in the input, found {len(masks)}: write it where "
                f"the model is to guess, or give {argument('position=')}"
            )
        return masks[0]

    def forward(self, t: Trace, batch: Batch) -> Value:
        """The logits, run on a trace. Raises ReflError where they are not finite, and where the
        checkpoint has changed.
        """
        self.refuse_changed()
        # what goes wrong is said in a sentence, by its site
        with parallel.alone(), np.errstate(all="ignore"):
            logits = self.net.forward(t, self.config, batch)
        self._refuse_unmade(t)
        refuse_overflow(t, logits, self.dtype)
        return logits

    def _refuse_unmade(self, t: Trace) -> None:
        """Raises ReflError for an edit, or a leaf, that the run has not met."""
        if not t.edits and not t.leaves:
            return
        if unmet := [site for site in t.leaves if site not in t.edited]:
            refuse_strange_leaves(unmet, self.starts())
        if unmade := [site for site in t.edits if site not in t.edited]:
            refuse_strange(unmade, self.sites(), self.weights)

    def logits(
        self,
        item: Input,
        decoder: Input | None = None,
        edits: Edits | None = None,
        *,
        attention_mask: Any = None,
    ) -> Any:  # -> NumPy (T, V)
        """The logits after every token of one input, or of what its decoder has written; `edits`:
        site -> what is changed there, a refl.Edit or a function of the activation (1, ...);
        `attention_mask` as for `explain`. A token that it leaves nothing to look at has logits too,
        of a row of attention that is 0.
        """
        read, prefixes = self.read(item), self.decoder_prefixes(1, decoder)
        masks = None if attention_mask is None else [attention_mask]
        batch = self.batch([read], every=True, decoder_prefix=prefixes, masks=masks)
        return asnumpy(self.forward(self._unrecorded(self._edits(edits)), batch).array)[0]

    def _edits(self, edits: Edits | None) -> dict[str, Change]:
        """Edits of a run that is not recorded, once checked."""
        both = whole(self.edits, edits, recorded=False)
        return {site: guarded(site, change) for site, change in both.items()}

    def generate(
        self,
        item: Input,
        tokens: int = 32,
        decoder: Input | None = None,
        edits: Edits | None = None,
    ) -> list[int]:
        """Greedy continuation: the input's ids (or its decoder prefix) and up to `tokens` more,
        stopping at the end-of-text token, or where the model has no more positions.

        Only the new token is run, beside the keys and values of those before (refl.cache): with
        the same bits as `logits` of the whole text on OpenBLAS, elsewhere to rounding. Where the
        rotary angles of all tokens change with the length (dynamic scaling, beyond
        max_position_embeddings), and with `edits` (as for `logits`), the whole text is run for
        every token.
        """
        self._refuse_silent()
        tokens = arguments.whole("tokens", tokens)
        if tokens < 0:
            raise arguments.expected("tokens", "a whole number of at least 0", tokens)
        read, prefixes = self.encode(item), self.decoder_prefixes(1, decoder)
        ids, changed = read if prefixes is None else prefixes[0], self._edits(edits)
        cache = Cache()
        for _ in range(min(tokens, self.config.longest - len(ids))):
            if self.batch_dependent(len(ids)):
                cache = Cache()
            ids.append(int(self._next(cache, read, prefixes, changed).argmax()))
            if ids[-1] in self.eos_ids:
                break
        return ids

    def _refuse_silent(self) -> None:
        """Raises ReflError for a net that writes no text."""
        if self.task not in GENERATES:
            raise ReflError(
                f"{self.name or 'the model'} writes no text (its task is {self.task}): expected a "
                "model of the next token"
            )

    def _next(
        self,
        cache: Cache,
        read: list[int],
        prefixes: list[list[int]] | None,
        edits: dict[str, Change],
    ) -> Any:  # -> NumPy (V,)
        """The logits of the next token, from a run of the tokens that the cache does not hold."""
        batch = self.batch([read], decoder_prefix=prefixes)
        if edits:
            return asnumpy(self.forward(self._unrecorded(edits), batch).array)[0, 0]
        new = batch.after(cache.length)
        logits = self.forward(CachedTrace(self.weights, cache), new).array
        cache.length = len(read if prefixes is None else prefixes[0])
        return asnumpy(logits)[0, 0]

    def _unrecorded(self, edits: dict[str, Change]) -> Trace:
        if edits:
            return Trace(self.weights, record=False, plain=False, edits=edits)
        return CachedTrace(self.weights)

    def trace(
        self,
        items: Sequence[Input],
        position: int | None = None,
        decoder: Any = None,
        every: bool = False,
        **how: Any,
    ) -> tuple[Trace, Value]:
        """The recorded forward of a batch, and the logits at each input's explained position, (B,
        1, V), or at `every` one.
        """
        read = [self.read(item) for item in arguments.listed("items", items, "a list of inputs")]
        if not read:
            raise ReflError("items is empty: expected a list of inputs")
        prefixes = self.decoder_prefixes(len(read), decoder)
        batch = self.batch(read, position, arguments.flag("every", every), prefixes)
        t = Trace(self.weights, **how)
        return t, self.forward(t, batch)

    def sites(self) -> dict[str, str]:
        """Every name a value has, and its site: what keep patterns,
        composites and `e[...]` can name.
        """
        values = dict.fromkeys(self._blank_trace().values.values())
        return {name: value.site for value in values for name in value.names}

    def starts(self) -> list[str]:
        """The sites that a run can start from, as it starts from leaves: embeddings, pixels."""
        records = self._blank_trace().records
        return [r.output.site for r in records if r.operation in LEAVES]

    def _blank_trace(self) -> Trace:
        return self.trace([self.blank()], position=None if self.task in WHOLE else 0)[0]


def _is_local(function: Any) -> bool:
    """Whether it has no name that it could be pickled by."""
    return "<" in getattr(function, "__qualname__", "")


def refuse_overflow(t: Trace, logits: Value, dtype: str) -> None:
    """Raises ReflError where something on the way to the logits is not finite."""
    xp = namespace(logits.array)
    watched = [*(t.watched or []), (logits.site, xp.all(xp.isfinite(logits.array)))]
    finite = asnumpy(xp.stack([fine for _, fine in watched]))  # one transfer from a device
    if finite.all():
        return
    site = _first_not_finite(t) or watched[int(finite.argmin())][0]
    if dtype == "float32":
        raise ReflError(
            f"float32 overflowed at {site} in the forward pass: use {argument('dtype')} float64"
        )
    look = "the checkpoint and the edits" if t.edits else "the checkpoint"
    raise ReflError(f"the forward pass is not finite at {site} in {dtype}: check {look}")


def _first_not_finite(t: Trace) -> str | None:
    """The first recorded value that is infinite or no number."""
    for record in t.records:
        xp = namespace(record.output.array)
        if not bool(xp.all(xp.isfinite(record.output.array))):
            return record.output.site
    return None
