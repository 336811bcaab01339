"""A checkpoint made ready: config -> net, weights, tokenizer; and explaining what it does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from refl import arguments, compared
from refl.anatomy import components
from refl.answer import in_words
from refl.arrays import Array
from refl.batching import TOKENS
from refl.compared import Compared
from refl.components import Components
from refl.conditions import Conditions
from refl.device import placer, room
from refl.edits import Edits, together
from refl.errors import ReflError, argument, shown
from refl.explanation import Explanation
from refl.intervention import edits_of
from refl.io.adapters import Adapted, read_adapter
from refl.io.adapters import Adapter as LoraAdapter
from refl.io.config import decoder_start_id, eos_ids, labels, probability, read_config
from refl.io.features import are_one
from refl.io.images import Preparation, is_one, read_preparation
from refl.io.names import named_weights
from refl.io.text import Text
from refl.io.unused import settle
from refl.io.weights import Weights
from refl.methods import Method, Table, chosen, under
from refl.nets import NETS, NOT_HERE
from refl.nets.config import brief, parse
from refl.nets.heads import by_tensors
from refl.network import LABELED, Input, Net, Network, Reading
from refl.question import Progress, Question, Target
from refl.rules.composites import Composite
from refl.show.answer import ShownAnswer
from refl.show.explanation import Batch
from refl.targets import Span

SHIPPED = Path(__file__).parent / "shipped"
"""The small model that comes with refl."""

EACH = (
    *("keep", "position", "recompute", "audit", "progress", "batch_tokens", "edits", "options"),
    "conditions",
)
"""Options of `explain` that `explain_each` hands on as they are."""

GENERATED = ("keep", "recompute", "audit", "progress", "edits", "options", "conditions")
"""Those of `explain_generated` and `explain_answer`."""

DTYPES = ("float32", "float64")


def load(
    folder: str | Path | None = None,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    ignore: Collection[str] = (),
    ignore_tensors: Collection[str] = (),
    adapter: str | Path | None = None,
    merge: bool = True,
) -> Model:
    """A model from a Hugging Face checkpoint folder (config.json, *.safetensors, tokenizer.json),
    or the one that ships with refl.

    device    "cpu", or "cuda" (needs CuPy)
    dtype     of the computation: "float32", or "float64" for oracles; half-precision and quantized
              checkpoints are widened as they are used, exactly as stored (refl.io.quantized)
    ignore    options of config.json that are known to change nothing
    ignore_tensors    patterns of tensors to go on without, of those that the net does not read
    adapter   folder of a LoRA adapter made for this checkpoint, as peft saves it
    merge     whether the adapter is merged into the weights, W + s B A, or kept apart: then what
              goes through it has its own sites (<module>.lora_A.default, <module>.adapter)
              and its own entries in the ledger

    Raises ReflError, in one sentence, for anything that cannot be loaded.
    """
    folder = arguments.path("folder", folder) if folder is not None else SHIPPED
    ignore, ignore_tensors = _each(ignore, "ignore"), _each(ignore_tensors, "ignore_tensors")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ReflError(
            f"unknown dtype {arguments.received(dtype)}: expected {' or '.join(DTYPES)}"
        )
    place = placer(device)
    raw = read_config(folder)
    net = architecture(raw)
    _refuse_own_code(raw, net, ignore)
    weights = Weights(folder, dtype=dtype, place=place, cache_bytes=room(device))
    renamed = getattr(net, "renamed", lambda weights: weights)(weights)
    raw = _with_pooler(_with_architectures(raw, net, renamed, ignore), net, renamed)
    beside = None if adapter is None else arguments.path("adapter", adapter)
    lora = None if beside is None else read_adapter(beside, dtype, place, room(device))
    of_base, raw = raw, raw if lora is None else _with_head(raw, net, lora)
    config = parse(net.Config, raw, ignore)
    spare = net.spare(config) if hasattr(net, "spare") else {}
    if lora is None:
        named: Any = named_weights(renamed, _prefix(net, config), net.shapes(config))
        without = settle(named, config, spare, ignore_tensors)
    else:
        lora = lora.under(_prefix(net, config), {name for name, *_ in net.shapes(config)})
        own = (one for one in net.shapes(config) if one[0] not in lora.whole)
        named = named_weights(renamed, _prefix(net, config), own)
        former = {name for name, *_ in net.shapes(parse(net.Config, of_base, ignore))}
        without = settle(named, config, spare | _replaced(net, lora, former), ignore_tensors)
    text = Text.load(folder, trusted=folder == SHIPPED)
    preparation = _preparation(folder, net, config)
    config, fitted = _fitted(net, config, named, preparation)
    model = Model(
        net=net,
        config=config,
        weights=fitted,
        text=text,
        place=place,
        dtype=dtype,
        device=device,
        name=folder.resolve().name,
        eos_ids=eos_ids(raw),
        mask_id=None if text is None else text.mask,
        labels=_output_names(raw, net, config),
        probability=_probability(raw, net, config),
        fingerprint=weights.fingerprint,
        refuse_changed=weights.refuse_changed,
        decoder_start_id=decoder_start_id(raw),
        preparation=preparation,
        ignored=_ignored(raw, ignore, without),
    )
    return model if lora is None else _with_adapter(model, lora, merge)


# -- a LoRA adapter --------------------------------------------------------------------------------


def _with_head(raw: dict[str, Any], net: Net, lora: LoraAdapter) -> dict[str, Any]:
    """config.json with the class that the adapter was made for, and as many labels as its head
    has. Raises ReflError where the net has no such head.
    """
    classes = net.Config.classes(raw["model_type"])
    wanted, count = lora.options.task, lora.labels()
    if wanted is not None and all(classes.get(one) != wanted for one in raw["architectures"]):
        named = [name for name, task in classes.items() if task == wanted]
        if not named:
            raise ReflError(
                f"the adapter was made for the task {wanted}, for which refl has no head on "
                f"{net.MODEL_TYPE}"
            )
        raw = raw | {"architectures": named[:1]}
    if count is not None and count != len(raw.get("id2label") or ()):
        raw = raw | {"num_labels": count, "id2label": None, "label2id": None}
    return raw


def _replaced(net: Net, lora: LoraAdapter, former: Iterable[str]) -> dict[str, str]:
    """Tensors of the base that the adapter has others for, and those of the base's former head:
    what the base's own class reads (`former`), and what shows any head.
    """
    tensors = dict.fromkeys(former, "another head")
    tensors |= dict.fromkeys(lora.whole, "the adapter has another")
    heads = dict.fromkeys((f"{start}*" for start in net.Config.SHOWN_BY.values()), "another head")
    return tensors | (heads if lora.labels() is not None else {})


def _with_adapter(model: Model, lora: LoraAdapter, merge: bool) -> Model:
    net, config, weights = model.net, model.config, model.weights
    adapted = Adapted(
        weights,
        lora,
        {name: shape for name, shape, _ in net.shapes(config)},
        merge=arguments.flag("merge", merge),
        conv1d=getattr(net, "CONV1D", ()),
        tied=getattr(config, "tie_word_embeddings", False),
    )
    said = f"{lora.name}, {'merged' if merge else 'kept apart'}"
    return replace(
        model,
        weights=adapted,
        fingerprint=partial(adapted.fingerprint, model.fingerprint),
        refuse_changed=partial(adapted.refuse_changed, model.refuse_changed),
        ignored={**model.ignored, "adapter": said},
    )


def _refuse_own_code(raw: dict[str, Any], net: Net, ignore: Collection[str]) -> None:
    """auto_map names classes in files that lie beside the checkpoint: what these compute, nobody
    here knows.
    """
    own = raw.get("auto_map")
    known = net.Config.classes(raw["model_type"])
    for what, name in own.items() if isinstance(own, dict) and "auto_map" not in ignore else ():
        if what.startswith("AutoModel") and str(name).rpartition(".")[2] not in known:
            raise ReflError(
                f"config.json has auto_map for {shown(what)}: {brief(name)} is code of its own, "
                "which refl does not run; if it computes what the architecture does, load with "
                "ignore=['auto_map'] (--ignore auto_map)"
            )


def _with_architectures(
    raw: dict[str, Any], net: Net, names: Iterable[str], ignore: Collection[str]
) -> dict[str, Any]:
    """config.json with the class that wrote the file: the tensors show it where the file does not
    say, or is not to be believed.
    """
    if raw.get("architectures") not in (None, []) and "architectures" not in ignore:
        return raw
    return raw | {"architectures": [by_tensors(net.Config, raw["model_type"], names)]}


def _with_pooler(raw: dict[str, Any], net: Net, names: Iterable[str]) -> dict[str, Any]:
    """config.json with whether features have a pooler beside them (add_pooling_layer, which
    transformers takes as an argument and does not write): the tensors show it.
    """
    known = any(field.name == "add_pooling_layer" for field in fields(net.Config))
    if not known or "add_pooling_layer" in raw:
        return raw
    return raw | {"add_pooling_layer": any("pooler." in name for name in names)}


def _prefix(net: Net, config: Any) -> str:
    """What names begin with that a bare model's lack: a class that finds answers may call the net
    below its head by another name.
    """
    answers = net.task(config) == "answer-span" and hasattr(config, "base")
    return f"{config.base}." if answers else net.PREFIX


def _each(patterns: Collection[str], what: str) -> list[str]:
    found = arguments.names(patterns)
    if found is None:
        raise ReflError(f"expected a list of names for {what}, got {arguments.received(patterns)}")
    return found


def _ignored(
    raw: dict[str, Any], ignore: Collection[str], tensors: Sequence[str]
) -> dict[str, str]:
    """What was left out of account because the caller said so, for whoever reads the numbers."""
    options = [name for name in ignore if name.partition(".")[0] in raw]
    said = {"ignored options": ", ".join(options), "ignored tensors": ", ".join(tensors)}
    return {what: names for what, names in said.items() if names}


def architecture(raw: dict[str, Any]) -> Net:
    """The net for a config.json. Raises ReflError for a model_type there is none for."""
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in NETS:
        why = NOT_HERE.get(kind) if isinstance(kind, str) else None
        said = "" if why is None else f", which is not implemented ({why})"
        raise ReflError(
            f"config.json has model_type {brief(kind)}{said}: refl knows {', '.join(NETS)}"
        )
    return NETS[kind]


def _output_names(raw: dict[str, Any], net: Net, config: Any) -> dict[int, str]:
    """The names of a classifier's outputs; features of a picture, where a checkpoint has no
    classifier, have numbers.
    """
    if getattr(config, "head", None) == "Model":
        return {i: str(i) for i in range(config.labels)}
    return labels(raw, config.labels) if net.task(config) in LABELED else {}


def _probability(raw: dict[str, Any], net: Net, config: Any) -> str:
    """Features have no probability: no class is among them."""
    if getattr(config, "head", None) == "Model":
        return "none"
    return probability(raw, config.labels) if net.task(config) in LABELED else "softmax"


def _preparation(folder: Path, net: Net, config: Any) -> Preparation | None:
    takes_images = net.task(config) in ("image-class", "similarity")
    return read_preparation(folder, net.MODEL_TYPE) if takes_images else None


def _fitted(
    net: Any, config: Any, weights: Mapping[str, Array], preparation: Preparation | None
) -> tuple[Any, Mapping[str, Array]]:
    """Of a net that takes pictures of any size: made for those that are prepared here."""
    size = None if preparation is None else preparation.fixed
    if size is None or not hasattr(net, "fitted"):
        return config, weights
    fitted: tuple[Any, Mapping[str, Array]] = net.fitted(config, weights, size)
    return fitted


@dataclass(repr=False)
class Model(Network):
    """A net with its weights and tokenizer, to be explained. Made by `refl.load`."""

    @property
    def components(self) -> Components:
        """The blocks of the net, the neurons of their MLPs, the heads of their attention."""
        return components(self)

    def with_edits(
        self, edits: Mapping[str, Any], positions: int | Sequence[int] | slice | None = None
    ) -> Model:
        """The model with neurons, heads or sites changed in every run: it can do what the model
        can, logits, generate, explain and evaluate; weights are shared.

        edits        what is changed -> how. What: a neuron or a head by its name (L3.N17, L3.H2:
                     refl.components), or a site. How: refl.off, refl.value(v), refl.scale(f), a
                     refl.Edit (of a site), or a function of the activation, array to array: of
                     that part of it alone for a neuron (B, T) or a head (B, T, d). No rule is
                     known for a function, so a model with one does not explain
        positions    the tokens at which; by default all of them. In `generate` they are counted in
                     the text as it grows: -1 is the token that is last

        Raises ReflError for what is not there, and for what cannot be changed so.
        """
        found = edits_of(edits, self.components, positions)
        return replace(self, edits=together(self.edits, found))

    def explain(
        self,
        item: Any,
        method: str | Composite | Method = "attnlrp",
        *,
        target: str | int | Sequence[str | int] | None = None,
        contrast: Any = None,
        decoder: Any = None,
        position: int | None = None,
        seed: str = "logit",
        eps: float | None = None,
        stabilizer: str | None = None,
        keep: str | Sequence[str] | None = None,
        recompute: bool = False,
        audit: bool = False,
        progress: Progress | None = None,
        at: tuple[str, Sequence[int]] | None = None,
        types: Any = None,
        batch_tokens: int = TOKENS,
        pair: Any = None,
        edits: Edits | None = None,
        options: Mapping[str, Any] | None = None,
        conditions: Mapping[str, Any] | Sequence[str] | Conditions | None = None,
        attention_mask: Any = None,
        text: Any = None,
        answer: Any = None,
    ) -> Any:
        """Explain the next token after a text (the masked token in it, the class it is put in: what
        the model does), or after a list of token ids, or after each of a list of those (a padded
        batch); how well a picture goes with a text, for (text, image), or among several texts, for
        ([text, text], image), where the texts are the classes that target and contrast name. Of a
        model of images the input is a picture (refl.io.images), of Whisper the log-mel features of
        sound (refl.io.features).

        method        a method by name (`refl methods` lists them), the path of a .toml composite,
                      a Composite, or a Method of refl.methods
        target        the token to explain (text or id; for a batch one for all, or a list); by
                      default the most likely next one. Of a model that finds answers: an answer
                      (17, 21), its first and last token counted from 0, whose start and end logits
                      are added; ("start", 17) or ("end", 21), one of them; by default the best
                      answer, which does not end before it starts and lies in the second text where
                      there is one (`pair`, or types 0 and 1), never in special tokens or padding.
                      Of a checkpoint without a head: refl.coordinate(n) or refl.cosine(vector)
        contrast      (a, b): explain the logit of a minus that of b; for a batch one pair for
                      all, a list of pairs, or (a, [b, ...]) with one b for each input
        decoder       for sequence-to-sequence models what the decoder has written so far: text, or
                      ids with the start token (for a batch one for all, or a list); by default
                      nothing but the start token. Its next token is explained
        position      explain the output at this token instead (counted from 0, or from the end if
                      negative); not for classifiers, which have one output. A model that gives
                      every token a class needs it, for a text of several
        seed          "logit", "log-probability" or "probability" (softmax-weighted)
        eps, stabilizer    set these options in every rule that has them
        keep          patterns of the sites whose activation and relevance to keep, each of which
                      has to name one; "*" for every site, () for none. By default nothing is held,
                      and the first `e[site]` runs the input once more and then has every site: the
                      same numbers to rounding
        recompute     hold one block's activations at a time and run the others again: less memory,
                      a third more time
        audit         also record the scale of rounding at every site (`entry.rounding_scale`)
        at            (site, index): explain the activation of one neuron in place of an output,
                      ("model.layers.1.mlp", (3, 17)) say, the index in the shape of the activation
                      without the batch axis
        types         token type ids, for models that tell sentence A from B; by default all 0 (for
                      a batch a list of them)
        pair          a second text, for encoders that read two (a question and its context): both
                      are joined, and their token types set, as the checkpoint's tokenizer does
                      (for a batch a list of them). A tuple of two texts is a batch
        edits         site -> refl.Edit: what is changed there in the run that is explained. Inputs
                      of different lengths are then run apart: an index counts no padding
        options       options of the method by name: {"steps": 64} of integrated-gradients, say
        conditions    what relevance has to have come through: a list of neurons, heads and sites
                      (["L2.N17", "L2.N33", "L1.H0"]: any of those of one site, at every token;
                      through each of several sites), or a mapping of each to what of it: of a
                      neuron or a head ... or tokens, of a site a mask, or an index as of
                      refl.Edit. The rest, and what goes around the site, is set to 0 there and
                      absorbed. A refl.conditions.Conditions with through=False keeps what goes
                      around. For tables of rules
        attention_mask
                      for each token True or False (1 or 0): whether it may be looked at, as
                      transformers' attention_mask says (an encoder-decoder's encoder hides it from
                      both); or (T, T) of them, which query (row) may look at which key. What the
                      net itself hides stays hidden, and positions are 0..T-1 as in transformers'
                      forward (its generate counts them after padding on the left). A hidden token
                      has no relevance, but where its own output is what the head reads. For a
                      batch a list of masks, None for an input without
        text          for models that compare a picture with texts: the text, or the list of texts,
                      and the input is the picture alone (for a batch the pictures)
        answer        explain this text behind the input as a whole, in place of one output: the sum
                      of its tokens' log-probabilities (`seed` "log-probability") or logits, each
                      after all that stands before it, in one forward pass and one sweep. A text as
                      it follows, with the blank before its first word, or token ids; of a
                      sequence-to-sequence model what its decoder says next, after `decoder`. For a
                      batch one for all, or a list. Its own tokens have relevance too, for those
                      that come later. `explain_answer` explains each of them
        batch_tokens  how many tokens are run at once, padding counted: a longer list is sorted by
                      length and run in batches of at most that (a single input may be longer).
                      An input's numbers are the same in any batch to rounding; for dynamic rotary
                      positions beyond those of training only inputs of one length share a batch

        Returns an Explanation, or for a batch a list of them, in its order. Raises ReflError for
        anything it cannot do.
        """
        if at is not None and not (
            target is None and contrast is None and position is None and _is_logit(seed)
        ):
            raise ReflError(
                f"{argument('at=')} says what is explained: leave {argument('target')}, "
                f"{argument('contrast')}, {argument('position')} and {argument('seed')} out"
            )
        if answer is not None:
            _refuse_beside_answer(target, contrast, position, at, seed)
        how = under(chosen(method, eps, stabilizer, options), conditions)
        question = Question(
            network=self,
            kind=seed,
            position=position,
            at=at,
            edits={} if edits is None else edits,
            recompute=recompute,
            batch_tokens=batch_tokens,
            progress=progress,
        )
        item = item if text is None else self._with_texts(item, text)
        single = self._is_single(item)
        items = [item] if single else self._members(item)
        wanted = [] if self.compares else self.targets(len(items), target, contrast)
        question = replace(question, every=_of_every_token(wanted))
        if single and types is not None:
            types = [types]
        masks = [attention_mask] if single and attention_mask is not None else attention_mask
        readings = self.readings(items, decoder, types, self._seconds(single, pair), masks)
        if self.compares:
            wanted = self._texts_wanted(readings, target, contrast, seed)
        if answer is not None:
            readings = self.answering(items, readings, answer, decoder)
        explained = how.explain(question, readings, wanted, keep, audit)
        return explained[0] if single else Batch(explained)

    def explain_each(
        self,
        item: Input,
        targets: Sequence[Any],
        method: str | Composite | Method = "attnlrp",
        *,
        seed: str = "logit",
        decoder: Any = None,
        types: Any = None,
        pair: Any = None,
        attention_mask: Any = None,
        eps: float | None = None,
        stabilizer: str | None = None,
        **how: Any,
    ) -> list[Explanation]:
        """Several targets of one input from a single forward pass: one Explanation each. `how`:
        keep, position, recompute, audit, progress and batch_tokens, as in `explain`. Raises
        ReflError as that does, and for a batch.
        """
        for name in ("at", "contrast", "target"):
            if how.pop(name, None) is not None:
                raise ReflError(
                    f"{argument(f'{name}=')} says what is explained, and so do targets: "
                    "leave it out, or take explain"
                )
        arguments.refuse_unknown("explain_each", how, EACH)
        if not self._is_single(item):
            raise ReflError("explain_each takes one input and its targets: give a batch to explain")
        names = _tokens("targets", targets)
        wanted: list[list[Target]] = []
        if not self.compares:
            wanted = [[(self.target(t), None)] for t in names]
        asked, question, kept = self._asked(method, eps, stabilizer, seed, how)
        question = replace(question, every=_of_every_token([t for row in wanted for t in row]))
        types = None if types is None else [types]
        masks = None if attention_mask is None else [attention_mask]
        readings = self.readings([item], decoder, types, self._seconds(True, pair), masks)
        if self.compares:
            wanted = [self._texts_wanted(readings, t, None, seed) for t in names]
        if isinstance(asked, Table):
            explainer = asked.explainer(question, **kept)
            return Batch(one for (one,) in explainer.run(readings, wanted))
        return Batch(
            one for row in wanted for one in asked.explain(question, readings, row, **kept)
        )

    def explain_generated(
        self,
        item: Input,
        tokens: int = 32,
        method: str | Composite | Method = "attnlrp",
        *,
        decoder: Any = None,
        seed: str = "logit",
        eps: float | None = None,
        stabilizer: str | None = None,
        **how: Any,
    ) -> list[Explanation]:
        """Continue a text greedily by up to `tokens` tokens and explain each of them: an
        Explanation for every new token, of the text before it, as `explain` of that text with this
        target gives it (to rounding). All share one forward pass, each has a sweep of its own.

        decoder    of a sequence-to-sequence model what is continued: as in `explain`
        how        keep, recompute, audit and progress, as in `explain`. With `keep`, and for
                   dynamic rotary positions beyond those of training, every text is run on its own

        Raises ReflError as `generate` and `explain` do, and for a batch.
        """
        self._refuse_silent()
        arguments.refuse_unknown("explain_generated", how, GENERATED)
        if not self._is_single(item):
            raise ReflError("explain_generated continues one text: give the others on their own")
        asked, question, kept = self._asked(method, eps, stabilizer, seed, how)
        whole = self.generate(item, tokens, decoder, question.edits)
        (reading,) = self.readings([item], decoder)
        return Batch(self._explain_from(reading, whole, asked, question, kept))

    def explain_answer(
        self,
        item: Input,
        answer: str | Sequence[int] | None = None,
        tokens: int = 32,
        method: str | Composite | Method = "attnlrp",
        *,
        decoder: Any = None,
        seed: str = "logit",
        eps: float | None = None,
        stabilizer: str | None = None,
        **how: Any,
    ) -> ShownAnswer:
        """Explain each token of an answer, after all that stands before it: a matrix with a row for
        each of its tokens and a column for each token of the input, and of the answer before it.

        answer     the answer: a text as it follows the input, with the blank before its first word,
                   or token ids. By default what the model itself adds, greedily, at most `tokens`
                   tokens
        decoder    of a sequence-to-sequence model what is said before the answer: as in `explain`
        how        keep, recompute, audit, progress, edits, options and conditions, as in `explain`

        A row is what `explain` of the text before with this token as `target` gives, to rounding;
        all share one forward pass, as in `explain_generated`, and are swept one by one. `print` it
        for a table, `m.html()` is a page. Raises ReflError as `generate` and `explain` do, for a
        batch, for log-mel features (which `explain` with `answer` reads), and where the model adds
        nothing.
        """
        self._refuse_silent()
        self.refuse_features("a matrix of an answer's tokens")
        arguments.refuse_unknown("explain_answer", how, GENERATED)
        if not self._is_single(item):
            raise ReflError("explain_answer explains one answer: give the others on their own")
        asked, question, kept = self._asked(method, eps, stabilizer, seed, how)
        (reading,) = self.readings([item], decoder)
        if answer is None:
            question.tell("generating", 0, 0)
            whole = self.generate(item, tokens, decoder, question.edits)
        else:
            (answered,) = self.answering([item], [reading], answer, decoder)
            whole = answered.explained
        said = whole[len(reading.explained) :]
        if not said:
            raise ReflError(
                f"the model adds nothing in {argument('tokens')} {tokens}: give the "
                f"{argument('answer')} that is to be explained, or more tokens"
            )
        return ShownAnswer(
            in_words(self, said), self._explain_from(reading, whole, asked, question, kept)
        )

    def _explain_from(
        self,
        reading: Reading,
        whole: list[int],
        asked: Method,
        question: Question,
        kept: dict[str, Any],
    ) -> list[Explanation]:
        """Of a whole text that begins with a reading each token behind that."""
        first = len(reading.explained)
        part = "input" if reading.prefix is None else "prefix"
        begun = [replace(reading, **_cut(part, whole[:end])) for end in range(first, len(whole))]
        targets = whole[first:]
        if isinstance(asked, Table):
            return asked.explainer(question, **kept).successive(begun, targets)
        return asked.explain(question, begun, [(target, None) for target in targets], **kept)

    def _asked(
        self,
        method: str | Composite | Method,
        eps: float | None,
        stabilizer: str | None,
        seed: str,
        how: dict[str, Any],
    ) -> tuple[Method, Question, dict[str, Any]]:
        """A method, a question, and what to keep, from options by their names."""
        kept: dict[str, Any] = {name: how.pop(name) for name in ("keep", "audit") if name in how}
        asked = chosen(method, eps, stabilizer, how.pop("options", None))
        asked = under(asked, how.pop("conditions", None))
        how["edits"] = {} if how.get("edits") is None else how["edits"]
        return asked, Question(self, seed, **how), kept

    # -- what is asked -----------------------------------------------------------------------------

    def _with_texts(self, item: Any, text: Any) -> Any:
        """(text, image) of an image, or of each in a list."""
        if not self.compares:
            raise ReflError(
                f"{self.name or 'the model'} compares no pictures with texts: leave "
                f"{argument('text=')} out"
            )
        return (text, item) if is_one(item) else [(text, one) for one in item]

    def _texts_wanted(
        self, readings: Sequence[Reading], target: Any, contrast: Any, seed: Any
    ) -> list[Target]:
        """As `targets`, where they are texts that pictures are compared with."""
        inputs: list[Compared] = [reading.input for reading in readings]
        if not _is_logit(seed) and any(len(one.texts) < 2 for one in inputs):
            raise ReflError(
                f"the {argument('seed')} {arguments.received(seed)} is that of a choice, and a "
                "picture with one text has none: give several texts, or take 'logit'"
            )
        _refuse_both(target, contrast)
        if contrast is not None:
            pairs = zip(inputs, _pairs(contrast, len(inputs)), strict=True)
            return [(one.number(a), one.number(b)) for one, (a, b) in pairs]
        each = _for_each(target, len(inputs), lambda one: arguments.members(one) is None)
        pairs = zip(inputs, each, strict=True)
        return [(None if name is None else one.number(name), None) for one, name in pairs]

    def _is_single(self, item: Any) -> bool:
        if self.compares:
            return compared.is_single(item)
        if self.takes_features:
            return are_one(item)
        return is_one(item) if self.takes_images else arguments.is_single(item)

    def _members(self, item: Any) -> list[Any]:
        return list(item) if self.takes_images or self.compares else arguments.input_members(item)

    def _seconds(self, single: bool, pair: Any) -> list[Any] | None:
        """The second text of each input."""
        if pair is None:
            return None
        return [pair] if single else arguments.listed("pair", pair, "a list of texts")

    def targets(self, count: int, target: Any, contrast: Any) -> list[Target]:
        """(target, against) for each input; None for the most likely next token."""
        _refuse_both(target, contrast)
        if contrast is not None:
            if self.task in ("answer-span", "features"):
                raise ReflError(
                    f"{argument('contrast')} is a difference of two outputs of one token, and "
                    f"{self.name or 'the model'} has none (its task is {self.task}): explain each "
                    "by itself, and subtract"
                )
            return [(self.output_id(a), self.output_id(b)) for a, b in _pairs(contrast, count)]
        each = _for_each(target, count, self._is_target)
        return [(None if token is None else self.target(token), None) for token in each]

    def _is_target(self, target: Any) -> bool:
        """Whether it is one target, not a list of them: an answer has two ends."""
        inside = None if isinstance(target, str) else arguments.members(target)
        if inside is None or self.task != "answer-span":
            return inside is None
        return not any(isinstance(one, Span) or arguments.members(one) for one in inside)


def _refuse_both(target: Any, contrast: Any) -> None:
    if contrast is not None and target is not None:
        raise ReflError(f"give {argument('target')} or {argument('contrast')}, not both")


def _for_each(target: Any, count: int, is_one: Callable[[Any], bool]) -> list[Any]:
    """The target of each of so many inputs: one for all, or a list; None for the likeliest."""
    if target is None or is_one(target):
        return [target] * count
    each = _tokens("target", target)
    if len(each) != count:
        raise ReflError(
            f"{len(each)} targets for {count} inputs: expected one for each, or one for all"
        )
    return each


def _of_every_token(wanted: Sequence[Target]) -> bool:
    """Whether a target is of the features of all tokens."""
    return any(getattr(target, "mean", False) for target, _ in wanted)


def _cut(part: str, ids: list[int]) -> dict[str, Any]:
    return {part: ids}


def _refuse_beside_answer(target: Any, contrast: Any, position: Any, at: Any, seed: Any) -> None:
    """Raises ReflError for what says something else than that an answer is explained."""
    if contrast is not None:
        raise ReflError(
            f"{argument('contrast')} is of two tokens: to contrast two answers explain each with "
            f"{argument('answer=')} and subtract their relevance, token by token of the input"
        )
    other = {"target": target, "position=": position, "at=": at}
    for name, value in other.items():
        if value is not None:
            raise ReflError(
                f"{argument('answer=')} says what is explained, each of its tokens where it "
                f"stands: leave {argument(name)} out"
            )
    if isinstance(seed, str) and seed == "probability":
        raise ReflError(
            f"the {argument('seed')} 'probability' is that of one token: of an answer explain "
            "'log-probability', the logarithm of the product, or 'logit'"
        )


def _is_logit(seed: Any) -> bool:
    return isinstance(seed, str) and seed == "logit"


def _tokens(name: str, value: Any) -> list[Any]:
    """A list of outputs by their names or numbers."""
    tokens = arguments.members(value)
    if not tokens:
        raise arguments.expected(name, "a list of tokens, or of classes", value)
    return tokens


def _pairs(contrast: Any, count: int) -> list[tuple[Any, Any]]:
    """(a, b) for each of so many inputs, from one pair for all, from a pair for each, or from a
    pair of which one or both are lists of tokens, one for each.
    """
    given = arguments.members(contrast) or []
    inside = [arguments.members(one) for one in given]
    if len(inside) == count and all(one is not None and len(one) == 2 for one in inside):
        return [(one[0], one[1]) for one in inside if one is not None]
    if len(given) == 2:
        columns = [[one] * count if m is None else m for one, m in zip(given, inside, strict=True)]
        if [len(column) for column in columns] == [count, count]:
            return list(zip(*columns, strict=True))
    raise arguments.expected(
        "contrast",
        f"two tokens (a, b), or for {count} inputs a list of {count} such pairs",
        contrast,
    )
