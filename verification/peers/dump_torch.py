"""An oracle file of a Hugging Face checkpoint as torch runs it: with LXT's patches, or with plain
autograd.

    refl dump-torch FOLDER TEXT --out FILE --method attnlrp

Forward hooks and pre-hooks on every module keep its output and its input with their gradients; the
file has, for each site (a module's path, or `<path>.input`), the activation x, the gradient g, and
the relevance x g. `refl compare` and `Explanation.load` read it.

    attnlrp             AttnLRP by LXT 2.1's gradient x input form (lxt.py beside this), for the
                        model types it has patches for
    cp-lrp              CP-LRP by the same
    input-x-gradient    transformers as it is, for any model

What is computed inside a module without a module of its own (scores, probabilities, residual sums)
has no hook and is not in the file. The model runs with eager attention; in float64 transformers'
float32 islands are lifted. torch is imported when a function is called.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import refl
from refl.errors import ReflError
from refl.explanation import Candidate, Explanation, MethodFacts, Sites
from refl.extras import install
from refl.io.config import decoder_start_id, probability, read_config
from refl.io.images import prepared
from refl.io.text import Text
from refl.io.weights import Weights
from refl.network import LABELED
from refl.rules.published import METHODS
from refl.seeds import probabilities
from refl.verification.peers import lxt

LXT_METHODS = {"attnlrp": "attnlrp-gradient", "cp-lrp": "cp-lrp"}
"""Method -> refl's name for it."""
KNOWN = (*LXT_METHODS, "input-x-gradient")
FAMILIES = ("llama", "gpt2", "qwen2", "qwen3", "gemma3_text", "bert")
"""Model types that LXT 2.1 has patches for and that run beside transformers 4.52.4."""


# -- what was recorded -----------------------------------------------------------------------------


@dataclass
class Recording:
    """The tensors that passed through the modules, in forward order, each under its first name."""

    tensors: dict[str, Any] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    first: dict[int, str] = field(default_factory=dict)
    layer: int = -1
    """Which of ALBERT's layers is running: they share their modules."""

    def put(self, name: str, tensor: Any) -> None:
        if name in self.tensors or name in self.aliases:
            return
        if id(tensor) in self.first:
            self.aliases[name] = self.first[id(tensor)]
            return
        self.tensors[name], self.first[id(tensor)] = tensor, name

    def retain(self) -> None:
        """To be called before the backward pass: what runs inside a function of LXT's is a part of
        the graph only once that returns.
        """
        for tensor in self.tensors.values():
            if tensor.requires_grad:
                tensor.retain_grad()


def _first_tensor(value: Any) -> Any:
    """The first tensor of floats in what a module was given or gives back;
    None where there is none.
    """
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return next((t for v in value if (t := _first_tensor(v)) is not None), None)
    return value if hasattr(value, "is_floating_point") and value.is_floating_point() else None


@contextmanager
def hooked(model: Any) -> Iterator[Recording]:
    """Every module watched, for as long as this lasts."""
    recording, handles = Recording(), []
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    for module in model.modules():
        mine = _Names(names[id(module)], recording)
        handles.append(module.register_forward_pre_hook(_before(mine, recording), with_kwargs=True))
        handles.append(module.register_forward_hook(_after(mine, recording)))
    try:
        yield recording
    finally:
        for handle in handles:
            handle.remove()


class _Names:
    """The name of a module at each of its calls: a table that encoder and decoder share has one in
    each, and is called in that order.
    """

    def __init__(self, names: list[str], recording: Recording) -> None:
        self.names = [n for n in names if "." in n] or names
        self.calls, self.recording = -1, recording

    def enter(self) -> str:
        self.calls += 1
        if self.names[0].rpartition(".")[0].endswith("albert_layer_groups"):
            self.recording.layer += 1
        return self.now()

    def now(self) -> str:
        name = self.names[min(self.calls, len(self.names) - 1)]
        head, group, tail = name.partition("albert_layer_groups.")
        return (
            f"{head}layer.{self.recording.layer}.{tail.partition('.')[2]}".rstrip(".")
            if group and self.recording.layer >= 0
            else name
        )


def _before(names: _Names, recording: Recording) -> Callable[..., None]:
    def hook(module: Any, args: Any, kwargs: Any) -> None:
        name = names.enter()
        tensor = _first_tensor((args, kwargs))
        if tensor is not None and name:
            recording.put(f"{name}.input", tensor)

    return hook


def _after(names: _Names, recording: Recording) -> Callable[..., None]:
    def hook(module: Any, args: Any, output: Any) -> None:
        import torch

        tensor, name = _first_tensor(output), names.now()
        if tensor is None or not name:
            return
        if isinstance(module, torch.nn.Embedding) and tensor.is_leaf:
            tensor.requires_grad_()
        recording.put(name, tensor)

    return hook


# -- running ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Input:
    """What the model reads. `pixels` (C, H, W) for one that takes images, and `picture`, uint8
    (H, W, C), what they are made of; `decoder` is what a decoder has written, by default its start
    token.
    """

    ids: tuple[int, ...] = ()
    decoder: tuple[int, ...] | None = None
    types: tuple[int, ...] | None = None
    pixels: Any = None
    picture: Any = None

    def tensors(self, dtype: Any) -> dict[str, Any]:
        import torch

        if self.pixels is not None:
            return {
                "pixel_values": torch.tensor(np.asarray(self.pixels), dtype=dtype)[
                    None
                ].requires_grad_()
            }
        ids = torch.tensor([self.ids], dtype=torch.int64)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.decoder is not None:
            inputs["decoder_input_ids"] = torch.tensor([self.decoder])
        return inputs | (
            {"token_type_ids": torch.tensor([self.types])} if self.types is not None else {}
        )


def dump(
    folder: str | Path,
    item: Input | Sequence[int],
    *,
    method: str = "input-x-gradient",
    target: int | None = None,
    position: int | None = None,
    dtype: str = "float64",
    identity_eps: float = lxt.IDENTITY_EPS,
) -> Explanation:
    """A checkpoint run by torch, as an Explanation whose sites are modules; torch keeps
    no ledger.

    item            token ids, or an Input
    method          one of KNOWN
    target          the output to explain; by default the largest
    position        the row of the logits; by default the last of a decoder, the mask of a masked
                    language model
    identity_eps    what LXT adds to x in f(x)/(x + eps)

    Raises ReflError where torch, transformers or LXT is not installed, or has no patches for the
    model.
    """
    if method not in KNOWN:
        raise ReflError(f"unknown method {method!r}: expected one of {', '.join(KNOWN)}")
    transformers = _imported()
    inputs = item if isinstance(item, Input) else Input(tuple(int(i) for i in item))
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = str(config.model_type)
    if config.is_encoder_decoder and inputs.decoder is None:
        inputs = replace(inputs, decoder=(decoder_start_id(read_config(folder)),))
    if method in LXT_METHODS:
        _refuse_unpatched(kind, method)
    with _patches(kind, method, identity_eps), _width(dtype) as make:
        model = make(_class(transformers, config, method), folder)
        with hooked(model) as recording:
            logits = _logits(model, inputs, dtype)
            recording.retain()
            z = logits.detach().numpy().reshape(-1, logits.shape[-1])
            row = _row(folder, z, inputs, position)
            best = int(z[row].argmax()) if target is None else target
            if not 0 <= best < z.shape[1]:
                raise ReflError(f"target {target} is outside the model's {z.shape[1]} outputs")
            logits.reshape(-1, logits.shape[-1])[row, best].backward()
        return _explanation(
            Path(folder),
            model,
            recording,
            inputs,
            z[row],
            best,
            method,
            dtype,
            transformers.__version__,
            identity_eps,
        )


def _imported() -> Any:
    try:
        importlib.import_module("torch")
        return importlib.import_module("transformers")
    except ImportError as absent:
        raise ReflError(
            f"dump-torch needs torch and transformers ({absent}): {install('peers')}"
        ) from None


def _refuse_unpatched(kind: str, method: str) -> None:
    try:
        lxt.load()
    except ImportError as absent:
        raise ReflError(
            f"method {method} needs LXT ({absent}): pip install --no-deps lxt==2.1, or "
            "take input-x-gradient"
        ) from None
    known = [f for f in FAMILIES if f != "bert" or method == "attnlrp"]
    if kind not in known:
        raise ReflError(
            f"LXT has no {method} for model type {kind}: it has patches for "
            f"{', '.join(known)}; input-x-gradient runs any"
        )


def _class(transformers: Any, config: Any, method: str) -> Any:
    """The class that config.json names; LXT has a copy of its own of BERT's."""
    named = (config.architectures or ["AutoModelForCausalLM"])[0]
    if config.model_type == "bert" and method in LXT_METHODS:
        return getattr(lxt.load("lxt.efficient.models.bert"), named)
    found = getattr(transformers, named, None)
    if found is None:
        raise ReflError(
            f"config.json names the architecture {named!r}, which transformers "
            f"{transformers.__version__} does not have"
        )
    return type(found._from_config(config)) if found.__name__.startswith("Auto") else found


Make = Callable[[Any, str | Path], Any]


@contextmanager
def _width(dtype: str) -> Iterator[Make]:
    """How to make a model of this dtype, with every float32 island of a float64 one lifted. The
    file is read outside, in its own dtype.
    """
    import torch

    if dtype not in ("float32", "float64"):
        raise ReflError(f"unknown dtype {dtype!r}: expected float32 or float64")
    with ExitStack() as stack:

        def make(cls: Any, folder: str | Path) -> Any:
            loaded = cls.from_pretrained(folder, torch_dtype="auto")
            if dtype == "float64":
                stack.enter_context(lxt.wide())
            model = cls._from_config(
                loaded.config, torch_dtype=getattr(torch, dtype), attn_implementation="eager"
            )
            model.load_state_dict(loaded.state_dict())
            return model.eval().requires_grad_(False)

        yield make


def _patches(kind: str, method: str, identity_eps: float) -> AbstractContextManager[None]:
    if method not in LXT_METHODS:
        return nullcontext()
    return (
        _patched_bert(identity_eps)
        if kind == "bert"
        else lxt.patched(kind, LXT_METHODS[method], identity_eps)
    )


@contextmanager
def _patched_bert(identity_eps: float) -> Iterator[None]:
    """LXT's BERT is a copy of transformers' with the rules written in; what it patches beside it is
    LayerNorm and Dropout.
    """
    bert, rules = lxt.load("lxt.efficient.models.bert"), lxt.load("lxt.efficient.rules")
    with ExitStack() as stack:
        for target, patch in bert.attnLRP.items():
            if isinstance(target, type):
                stack.enter_context(lxt.restored(target, "forward"))
                patch(target)
        forward = rules.identity_rule_implicit_fn.forward
        stack.enter_context(lxt.restored(forward, "__defaults__"))
        forward.__defaults__ = (identity_eps,)
        yield


def _logits(model: Any, inputs: Input, dtype: str) -> Any:  # -> (1, T, V) or (1, V)
    import torch

    kept = (
        {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    )
    try:
        out = model(**inputs.tensors(getattr(torch, dtype)), **kept)
    except (IndexError, ValueError) as reason:
        raise ReflError(f"transformers cannot run this input: {reason}") from reason
    for name in ("logits", "prediction_logits"):
        if getattr(out, name, None) is not None:
            return getattr(out, name)
    raise ReflError(
        f"{type(model).__name__} gives no logits: a checkpoint without a head has no "
        "output to explain"
    )


def _row(folder: str | Path, z: Any, inputs: Input, position: int | None) -> int:
    """The row of the logits (T, V) that is explained."""
    count = int(z.shape[0])
    if position is not None:
        if not -count <= position < count:
            raise ReflError(f"position {position} is outside the {count} rows of the logits")
        return position % count
    text = Text.load(folder)
    masks = [
        t
        for t, i in enumerate(inputs.ids)
        if text is not None and text.mask is not None and i == text.mask
    ]
    return (
        masks[0]
        if len(masks) == 1 and inputs.decoder is None and count == len(inputs.ids)
        else count - 1
    )


# -- as an oracle file -----------------------------------------------------------------------------


def _explanation(
    folder: Path,
    model: Any,
    recording: Recording,
    inputs: Input,
    z: Any,
    target: int,
    method: str,
    dtype: str,
    version: str,
    identity_eps: float,
) -> Explanation:
    import torch

    activations, gradients = _arrays(recording, str(model.config.model_type))
    text, ids = Text.load(folder), list(inputs.ids)
    relevance, decoder = _tokens(recording, model, inputs, activations, gradients)
    best = [int(i) for i in np.argsort(-z, kind="stable")[:5]]
    names = _names(model, text)
    ran = f"torch {torch.__version__}, transformers {version}" + (
        ", LXT 2.1" if method in LXT_METHODS else ""
    )
    raw, task = read_config(folder), _task(model)
    kind = probability(raw, len(z)) if task in LABELED else "softmax"
    p = probabilities(z, kind)
    return Explanation(
        tokens=_read(text, ids),
        input_ids=ids,
        relevance=relevance,
        target=names(target),
        target_id=target,
        logit=float(z[target]),
        probability=float(p[target]),
        against=None,
        seed="logit",
        explained=float(z[target]),
        candidates=[Candidate(names(i), i, float(z[i]), float(p[i])) for i in best],
        method=_method(method, ran, identity_eps),
        recorded=None,
        about={
            "refl": refl.__version__,
            "model": folder.resolve().name,
            "architecture": str(raw.get("model_type")),
            "dtype": dtype,
            "task": task,
            **({} if kind == "softmax" else {"probability": kind}),
            "ran": ran,
        },
        sites=Sites(gradients, activations, recording.aliases, "gradient_x_input"),
        decoder_tokens=None if inputs.decoder is None else _read(text, list(inputs.decoder)),
        decoder_ids=None if inputs.decoder is None else list(inputs.decoder),
        decoder_relevance=decoder,
        picture=_picture(inputs),
        patch=None if inputs.pixels is None else _patch(model.config),
        fingerprint=Weights(folder, dtype=dtype, place=lambda array: array).fingerprint,
    )


def _arrays(recording: Recording, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Activations and gradients from the output down; what no gradient reached has zeros, what
    autograd did not see is left out.
    """
    activations, gradients = {}, {}
    for name, tensor in reversed(recording.tensors.items()):
        if not tensor.requires_grad:
            continue
        g = tensor.grad if tensor.grad is not None else tensor.new_zeros(tensor.shape)
        activations[name], gradients[name] = (
            _bare(name, a.detach().numpy(), kind) for a in (tensor, g)
        )
    recording.aliases = {
        alias: site for alias, site in recording.aliases.items() if site in activations
    }
    return activations, gradients


TURNED = ("qwen3", "qwen3_moe")
"""Model types that norm queries and keys before they turn (T, H, d) to (H, T, d)."""


def _bare(name: str, array: Any, kind: str) -> Any:
    """Without the batch axis, in refl's layout: patches as rows where a convolution has a grid,
    heads before positions.
    """
    if array.ndim == 4 and name.endswith("projection"):  # (1, O, H/h, W/w) -> (N, O)
        return np.ascontiguousarray(array[0].reshape(array.shape[1], -1).T)
    if (
        array.ndim == 4
        and kind in TURNED
        and name.removesuffix(".input").endswith(("q_norm", "k_norm"))
    ):
        array = array.swapaxes(1, 2)
    return np.array(array[0] if array.ndim > 2 and array.shape[0] == 1 else array)


def _tokens(
    recording: Recording,
    model: Any,
    inputs: Input,
    activations: dict[str, Any],
    gradients: dict[str, Any],
) -> tuple[Any, Any]:  # -> (T,) or (H, W), and the decoder's (T,)
    """What reached the input, summed over features."""

    def relevance(name: str) -> Any:
        site = recording.aliases.get(name, name)
        return activations[site] * gradients[site]

    if inputs.pixels is not None:
        site = next(name for name, x in activations.items() if x.shape == np.shape(inputs.pixels))
        return relevance(site).sum(axis=0), None
    if inputs.decoder is not None:
        encoder, decoder = (relevance(f"{side}.embed_tokens") for side in ("encoder", "decoder"))
        return encoder.sum(axis=-1), decoder.sum(axis=-1)
    table = model.get_input_embeddings()
    embedding = next(name for name, module in model.named_modules() if module is table)
    return relevance(embedding).sum(axis=-1), None


def _picture(inputs: Input) -> Any:
    """What an eye would see: of pixels alone the darkest is black, the lightest white."""
    if inputs.picture is not None or inputs.pixels is None:
        return inputs.picture
    pixels = np.asarray(inputs.pixels, dtype=np.float64)
    return prepared(pixels, None, pixels.shape[0], pixels.shape[1:], "float64").picture


def _patch(config: Any) -> tuple[int, int] | None:
    """Height and width of a patch, where the model has them."""
    size = getattr(config, "patch_size", None)
    if isinstance(size, (list, tuple)):
        return (int(size[0]), int(size[1]))
    return None if size is None else (int(size), int(size))


def _names(model: Any, text: Text | None) -> Callable[[int], str]:
    if _task(model) in ("class", "image-class"):
        return lambda i: str(model.config.id2label.get(i, i))
    return lambda i: _read(text, [i])[0]


def _read(text: Text | None, ids: list[int]) -> list[str]:
    return [str(i) for i in ids] if text is None else text.tokens(ids)


def _task(model: Any) -> str:
    name = type(model).__name__
    if "ImageClassification" in name:
        return "image-class"
    kinds = {
        "SequenceClassification": "class",
        "MaskedLM": "masked-token",
        "ConditionalGeneration": "sequence-to-sequence",
    }
    return next((task for end, task in kinds.items() if end in name), "next-token")


def _method(method: str, ran: str, identity_eps: float) -> MethodFacts:
    """A method by refl's name; the rules are the other library's. An eps that is not its own is
    said.
    """
    name = LXT_METHODS.get(method, method)
    whose = "LXT 2.1's gradient x input form" if method in LXT_METHODS else "autograd"
    own = identity_eps == lxt.IDENTITY_EPS or method not in LXT_METHODS
    changed = "" if own else f", changed: f(x)/(x + {identity_eps:g}), not {lxt.IDENTITY_EPS:g}"
    return MethodFacts(
        name,
        formulation="gradient_x_input",
        source=f"{METHODS[name].source} (run by {ran})",
        summary=f"as {whose} computes it{changed}: it names no rules",
    )
