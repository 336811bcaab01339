"""refl and its peers, each with its model loaded: one forward and one sweep (or backward) of one
input, and of a list of inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from refl.verification.quality.benchmark.devices import Device
from refl.verification.quality.benchmark.rounds import timed
from refl.verification.quality.benchmark.spec import Item, Spec
from refl.verification.quality.benchmark.workload import item_of, smallest, texts_of


class Answer(NamedTuple):
    """What a side found."""

    relevance: list[Any]
    """NumPy (T,), or (H, W) of a picture; of an encoder-decoder both inputs', of a list each's."""
    target: int = -1
    error: float = 0.0
    """The conservation error, of the largest amount in the ledger."""


# -- refl ------------------------------------------------------------------------------------------


class Refl:
    """One model, loaded; `forward` and `sweep` are the two halves of `Model.explain(...,
    keep=())`.
    """

    name = "refl"

    def __init__(self, spec: Spec, device: Device, dtype: str = "float32") -> None:
        import refl
        from refl.rules.published import METHODS

        self.model = refl.load(spec.folder, dtype=dtype, device=device.name)
        self.composite = METHODS[spec.method]
        self.recompute = spec.recompute
        self.device = device

    def patched(self) -> AbstractContextManager[None]:
        return nullcontext()

    def forward(self, item: Item) -> tuple[Any, Any]:
        how = {"plain": False, "recompute": self.recompute}
        return self.model.trace([item.input], decoder=item.prefix, **how)

    def sweep(self, trace: Any, logits: Any, target: int | None = None) -> Answer:
        """`target`: by default the largest logit."""
        from refl.arrays import asnumpy
        from refl.ledger import DESTINATIONS
        from refl.seeds import Seed
        from refl.sweep import Sweep

        z = asnumpy(logits.array).reshape(-1)
        seed = Seed("logit", int(z.argmax()) if target is None else target)
        gradient = self.composite.formulation == "gradient_x_input"
        row = seed.gradient(z) if gradient else seed.relevance(z)
        start = self.model.place(row.reshape(logits.array.shape))
        inputs = [r.output.site for r in trace.records if r.role in DESTINATIONS]
        sweep = Sweep(self.composite, keep=lambda names: names[0] in inputs, release=True)
        swept = sweep.run(trace, logits, start)
        found = [_relevance(swept, site, gradient) for site in inputs]
        return Answer(found, seed.target, _error(swept.ledger.example(0)))

    def run(self, item: Item, target: int | None = None) -> Answer:
        return self.sweep(*self.forward(item), target)

    def seconds(self, item: Item) -> dict[str, float]:
        wait = self.device.synchronize
        (trace, logits), forward = timed(partial(self.forward, item), wait)
        _, sweep = timed(partial(self.sweep, trace, logits), wait)
        return {"refl forward": forward, "refl sweep": sweep, "refl": forward + sweep}

    def batch(self, texts: Sequence[list[int]]) -> Answer:
        """A list in one call, as a user makes it."""
        found = self.model.explain(list(texts), self.composite, keep=())
        return Answer([e.relevance for e in found], error=max(_error(e.ledger) for e in found))


def _relevance(swept: Any, site: str, gradient: bool) -> Any:  # (1, T, D) -> (T,)
    from refl.arrays import asnumpy

    x, r = asnumpy(swept.activations[site]), asnumpy(swept.propagated[site])
    return _features_summed(x * r if gradient else r)


def _features_summed(r: Any) -> Any:  # (1, T, D) -> (T,), pixels (1, C, H, W) -> (H, W)
    return r[0].sum(0 if r.ndim == 4 else -1)


def _error(ledger: Any) -> float:
    amounts = (ledger.explained, *ledger.absorbed.values())
    return abs(float(ledger.conservation_error)) / max(abs(float(a)) for a in amounts)


# -- torch, by itself or under LXT's patches -------------------------------------------------------


class Torch:
    """transformers' model; `run` is one forward and backward."""

    def __init__(self, spec: Spec, device: Device) -> None:
        import torch
        import transformers

        torch.set_num_threads(spec.threads)
        how = {"attn_implementation": spec.attention} if spec.attention else {}
        name, self.leaves_of, self.output = FAMILIES[spec.kind]
        model = getattr(transformers, name).from_pretrained(Path(spec.folder), **how)
        self.model = model.eval().requires_grad_(False).to(device.torch)  # only leaves want one
        self.name, self.method, self.kind = spec.side, spec.method, spec.kind
        self.bound, self.device = spec.bound, device

    def patched(self) -> AbstractContextManager[None]:
        """Everything else is to be called inside."""
        if self.name != "LXT":
            return nullcontext()
        from refl.verification.peers import lxt

        return lxt.patched(self.kind, self.method)

    def tensor(self, values: Any) -> Any:
        import torch

        return torch.as_tensor(values, device=self.device.torch)

    def run(self, item: Item, target: int, last: int = 1) -> Answer:
        """`last`: how many tokens to compute logits for, 0 for all."""
        leaves = [leaf.detach().requires_grad_() for leaf in self.leaves_of(self, item)]
        self.output(self.model, leaves, last)[target].backward()
        return Answer([_on_host(_features_summed(x.detach() * x.grad)) for x in leaves], target)

    def forward(self, item: Item) -> Any:
        """Alone, and nothing kept for a backward pass."""
        import torch

        with torch.no_grad():
            return self.output(self.model, self.leaves_of(self, item), 1)

    def seconds(self, item: Item, target: int, every: bool = False) -> dict[str, float]:
        """`every`: with logits of every token, too."""
        ways = {self.name: partial(self.run, item, target)}
        ways[f"{self.name} forward"] = partial(self.forward, item)
        if every:
            ways[f"{self.name}, every token"] = partial(self.run, item, target, last=0)
        return {name: timed(way, self.device.synchronize)[1] for name, way in ways.items()}

    # -- lists -------------------------------------------------------------------------------------

    def batch(self, texts: Sequence[list[int]]) -> Answer:
        """Sorted by length, in padded batches; each text's most likely next token."""
        found: list[Any] = [None] * len(texts)
        for group in groups([len(text) for text in texts], self.bound):
            relevance = self._batch([texts[b] for b in group])
            for b, row in zip(group, relevance, strict=True):
                found[b] = row[: len(texts[b])]
        return Answer(found)

    def _batch(self, texts: list[list[int]]) -> Any:  # -> (B, T)
        """One backward pass for the sum of every text's own logit: none is in another's. Padding
        stands behind the text, where causal attention never looks: without a mask LXT is faster.
        """
        lengths, longest = list(map(len, texts)), max(map(len, texts))
        ids = self.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
        x = self.model.get_input_embeddings()(ids).detach().requires_grad_()
        h = self.model.model(inputs_embeds=x, use_cache=False)[0]
        rows = self.tensor(range(len(texts))), self.tensor(lengths) - 1
        logits = self.model.lm_head(h[rows])
        logits.gather(1, logits.argmax(-1, keepdim=True)).sum().backward()
        return _on_host((x.detach() * x.grad).sum(-1))


def groups(lengths: Sequence[int], bound: int) -> list[list[int]]:
    """Texts of about one length, `bound` tokens at most, padding counted."""
    found: list[list[int]] = []
    for b in sorted(range(len(lengths)), key=lambda b: lengths[b]):
        if found and (len(found[-1]) + 1) * lengths[b] <= bound:
            found[-1].append(b)
        else:
            found.append([b])
    return found


def _on_host(x: Any) -> Any:
    return x.cpu().numpy()


# -- transformers' models --------------------------------------------------------------------------


def _embedded(side: Torch, item: Item) -> list[Any]:
    """Of a text, and of what a decoder has before it."""
    table = side.model.get_input_embeddings()
    texts = [text for text in (item.input, item.prefix) if text is not None]
    return [table(side.tensor([text])) for text in texts]


def _pixels(side: Torch, item: Item) -> list[Any]:
    return [side.tensor(item.input)[None]]


def _llama(model: Any, leaves: list[Any], last: int) -> Any:  # -> (V,)
    output = model(inputs_embeds=leaves[0], use_cache=False, logits_to_keep=last)
    return output.logits[0, -1]


def _vit(model: Any, leaves: list[Any], last: int) -> Any:  # -> (classes,)
    return model(pixel_values=leaves[0]).logits[0]


def _t5(model: Any, leaves: list[Any], last: int) -> Any:  # -> (V,)
    """The head at the last token alone, which transformers' own forward has no option for."""
    encoded = model.encoder(inputs_embeds=leaves[0])[0]
    h = model.decoder(inputs_embeds=leaves[1], encoder_hidden_states=encoded, use_cache=False)[0]
    return model.lm_head(h[:, -last:])[0, -1]


FAMILIES: dict[str, tuple[str, Callable[..., list[Any]], Callable[..., Any]]] = {
    "llama": ("LlamaForCausalLM", _embedded, _llama),
    "vit": ("ViTForImageClassification", _pixels, _vit),
    "t5": ("T5ForConditionalGeneration", _embedded, _t5),
}
"""Kind -> class of transformers, its leaves for an input, the row of logits for its leaves."""


# -- any of them -----------------------------------------------------------------------------------

Side = Refl | Torch


def loaded(spec: Spec, device: Device) -> Side:
    return Refl(spec, device) if spec.side == "refl" else Torch(spec, device)


def peak(spec: Spec, device: Device) -> dict[str, float]:
    """In a process of its own: the least there is to run first, which maps every weight, then the
    run that is measured.
    """
    side = loaded(spec, device)
    with side.patched():
        side.run(smallest(spec), 0)
        return device.peak_of(spec.side, _work(spec, side))


def _work(spec: Spec, side: Side) -> Callable[[], Answer]:
    if spec.sentences:
        return partial(side.batch, texts_of(spec))
    return partial(side.run, item_of(spec), 0)
