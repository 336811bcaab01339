"""The methods that read attention against a few lines of torch on transformers' own models, whose
attention weights come from `output_attentions` and their gradients from autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers_models import random_model, random_t5, random_vision, write_encoder

import refl
from refl.verification.peers.lxt import wide

pytestmark = pytest.mark.peers
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (the extra 'peers')"
)
torch = pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")

IDS, PREFIX, BOUND = [5, 3, 17, 3, 11, 2], [0, 7, 9, 4], 1e-11


def twin(loaded: Any) -> Any:
    """The same model in float64, attention written out."""
    with wide():
        made = type(loaded)._from_config(
            loaded.config, torch_dtype=torch.float64, attn_implementation="eager"
        )
        made.load_state_dict(loaded.state_dict())
        return made.eval()


def ran(model: Any, row: int | None, **inputs: Any) -> tuple[Any, dict[str, list[Any]]]:
    """The largest logit of a row, and (A, dA) of each attention, (H, J, I), by kind."""
    with wide(), torch.enable_grad():
        out = model(**inputs, output_attentions=True)
        kinds = ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")
        every = {kind: list(out[kind]) for kind in kinds if out.get(kind) is not None}
        for one in every.values():
            for a in one:
                a.retain_grad()
        logits = out.logits[0] if row is None else out.logits[0, row]
        logits.max().backward()
    pairs = {k: [(a[0].detach(), a.grad[0]) for a in one] for k, one in every.items()}
    return int(logits.argmax()), pairs


def positive(a: Any, g: Any) -> Any:
    return (a * g).clamp(min=0).mean(0)


def grad_cam(blocks: Sequence[Any]) -> Any:
    return positive(*blocks[-1])


def rolled(blocks: Sequence[Any], own: float) -> Any:
    joint = torch.eye(blocks[0][0].shape[-1], dtype=torch.float64)
    for a, _ in blocks:
        joint = (a.mean(0) + torch.eye(len(joint), dtype=torch.float64)) * own @ joint
    return joint


def gradient_rollout(blocks: Sequence[Any]) -> Any:
    joint = torch.eye(blocks[0][0].shape[-1], dtype=torch.float64)
    for a, g in blocks:
        joint = joint + positive(a, g) @ joint
    return joint


THEIRS: dict[str, tuple[dict[str, Any], Callable[[Sequence[Any]], Any]]] = {
    "grad-cam": ({}, grad_cam),
    "attention-rollout": ({}, lambda blocks: rolled(blocks, 0.5)),
    "attention-rollout-none": ({"normalization": "none"}, lambda blocks: rolled(blocks, 1.0)),
    "gradient-rollout": ({}, gradient_rollout),
}


def method(name: str) -> Any:
    options, _ = THEIRS[name]
    return refl.methods.chosen(name.removesuffix("-none"), options=options)


def loaded(folder: Path, model: Any) -> Any:
    model.save_pretrained(folder)
    return refl.load(folder, dtype="float64")


def agree(ours: Any, theirs: Any) -> None:
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= BOUND * np.abs(theirs).max()
    assert np.abs(theirs).max() > 0


TEXT: dict[str, tuple[Callable[[Path], Any], int | None, int]] = {
    "gpt2": (lambda _: random_model("gpt2"), -1, -1),
    "llama-groups": (lambda _: random_model("llama", num_key_value_heads=2), -1, -1),
    "mistral-window": (lambda _: random_model("mistral", sliding_window=2), -1, -1),
    "bert": (lambda folder: encoder(folder, "BertForMaskedLM"), 2, 2),
    "bert-classes": (lambda folder: encoder(folder, "BertForSequenceClassification"), None, 0),
}
"""Name -> what makes the model, the row of its logits, the row of attention that is read."""


def encoder(folder: Path, kind: str) -> Any:
    return getattr(transformers, kind).from_pretrained(write_encoder(folder / "made", kind, {}))


@pytest.mark.parametrize("kind", TEXT)
def test_texts(kind: str, tmp_path: Path) -> None:
    make, row, read = TEXT[kind]
    model = make(tmp_path)
    ours = loaded(tmp_path / kind, model)
    target, pairs = ran(twin(model), row, input_ids=torch.tensor([IDS]))
    where = {} if row != 2 else {"position": 2}
    for name, (_, theirs) in THEIRS.items():
        e = ours.explain(IDS, method=method(name), **where)
        assert e.target_id == target
        agree(e.relevance, theirs(pairs["attentions"])[read])


PICTURES = {
    "vit": ("vit", "ForImageClassification"),
    "deit": ("deit", "ForImageClassification"),
    "deit-teacher": ("deit", "ForImageClassificationWithTeacher"),
}


@pytest.mark.parametrize(("kind", "head"), PICTURES.values(), ids=PICTURES)
def test_pictures(kind: str, head: str, tmp_path: Path) -> None:
    model = random_vision(kind, head, image_size=[13, 11], patch_size=[4, 3])
    ours = loaded(tmp_path, model)
    x = np.random.default_rng(1).standard_normal((3, 13, 11))
    target, pairs = ran(twin(model), None, pixel_values=torch.tensor(x)[None])
    learned, both = 1 + (kind == "deit"), [0, 1] if head.endswith("Teacher") else [0]
    for name, (_, theirs) in THEIRS.items():
        e = ours.explain(x, method=method(name))
        assert e.target_id == target and e.relevance.shape == (13, 11)
        row = theirs(pairs["attentions"])[both].mean(0)[learned:].reshape(3, 3)
        agree(e.patches, row)
        assert np.ptp(e.relevance[4:8, 3:6]) == 0 and not e.relevance[12:].any()


# -- encoder and decoder ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, list[Any]]]:
    model = random_t5(num_decoder_layers=3)
    ours = loaded(tmp_path_factory.mktemp("t5"), model)
    inputs = {"input_ids": torch.tensor([IDS]), "decoder_input_ids": torch.tensor([PREFIX])}
    target, pairs = ran(twin(model), -1, **inputs)
    assert ours.explain(IDS, decoder=PREFIX, method="grad-cam").target_id == target
    return ours, pairs


def of_t5(t5: Any, name: str) -> Any:
    return t5[0].explain(IDS, decoder=PREFIX, method=method(name))


def test_t5_grad_cam(t5: Any) -> None:
    e, pairs = of_t5(t5, "grad-cam"), t5[1]
    agree(e.relevance, grad_cam(pairs["cross_attentions"])[-1])
    agree(e.decoder_relevance, grad_cam(pairs["decoder_attentions"])[-1])


@pytest.mark.parametrize("name", ["attention-rollout", "attention-rollout-none"])
def test_t5_rollout_is_that_of_one_graph(t5: Any, name: str) -> None:
    """Tokens of both sides in one matrix, the encoder's first; each attention a block of it."""
    scale, pairs, n, every = 0.5 if name.endswith("rollout") else 1.0, t5[1], 6, 10
    joint = torch.eye(every, dtype=torch.float64)

    def step(joint: Any, a: Any, rows: slice, columns: slice) -> Any:
        b = torch.eye(every, dtype=torch.float64)
        b[rows, columns] += a.mean(0)
        b[rows] *= scale
        return b @ joint

    for a, _ in pairs["encoder_attentions"]:
        joint = step(joint, a, slice(0, n), slice(0, n))
    both = zip(pairs["decoder_attentions"], pairs["cross_attentions"], strict=True)
    for (a, _), (c, _) in both:
        joint = step(joint, a, slice(n, every), slice(n, every))
        joint = step(joint, c, slice(n, every), slice(0, n))
    e = of_t5(t5, name)
    agree(e.relevance, joint[-1, :n])
    agree(e.decoder_relevance, joint[-1, n:])


def test_t5_gradient_rollout(t5: Any) -> None:
    """Rules 6, 7 and 10 of the paper, token by token."""
    e, pairs = of_t5(t5, "gradient-rollout"), t5[1]

    def normal(r: Any) -> Any:
        made = torch.eye(len(r), dtype=torch.float64)
        for i, row in enumerate(r - made):
            made[i] += row / row.sum() if row.sum() else row
        return made

    qq = gradient_rollout(pairs["encoder_attentions"])
    ss, sq = torch.eye(4, dtype=torch.float64), torch.zeros(4, 6, dtype=torch.float64)
    both = zip(pairs["decoder_attentions"], pairs["cross_attentions"], strict=True)
    for self_attention, cross in both:
        c = positive(*self_attention)
        ss, sq = ss + c @ ss, sq + c @ sq
        sq = sq + normal(ss).transpose(0, 1) @ positive(*cross) @ normal(qq)
    agree(e.relevance, sq[-1])
    agree(e.decoder_relevance, ss[-1])


# -- Chefer et al. 2021, down to the attention weights ---------------------------------------------


def quotient(r: Any, z: Any) -> Any:
    return torch.where(z == 0, torch.zeros_like(z), r / z)


def through_linear(x: Any, w: Any, r: Any) -> Any:  # (T, I), (O, I), (T, O) -> (T, I)
    """z+ from its messages."""
    c = (x[:, None, :] * w[None]).clamp(min=0)
    return (c * quotient(r, c.sum(-1))[..., None]).sum(1)


def through_product(a: Any, b: Any, r: Any) -> tuple[Any, Any]:
    """Halves of R over the contributions to each entry of a b."""
    s = quotient(r, a @ b) / 2
    return a * (s @ b.transpose(-1, -2)), b * (a.transpose(-1, -2) @ s)


def through_sum(a: Any, b: Any, r: Any) -> tuple[Any, Any]:
    a, b = a * quotient(r, a + b), b * quotient(r, a + b)
    fraction = a.sum().abs() / (a.sum().abs() + b.sum().abs())
    return a * fraction * r.sum() / a.sum(), b * (1 - fraction) * r.sum() / b.sum()


def split(x: Any, heads: int) -> Any:  # (T, D) -> (H, T, d)
    return x.unflatten(-1, (heads, -1)).transpose(0, 1)


def merged(x: Any) -> Any:  # (H, T, d) -> (T, D)
    return x.transpose(0, 1).flatten(1)


def through_block(block: dict[str, Any], heads: int, r: Any) -> tuple[Any, Any]:
    """(R of the block's input, R(A)). Norms and activations hand on what they get, so that pre- and
    post-norm blocks differ in their inputs alone.
    """
    of_mlp, r = through_sum(block["mlp"], block["middle"], r)
    of_mlp = through_linear(block["wide"], block["down"], of_mlp)
    r = r + through_linear(block["narrow"], block["up"], of_mlp)
    of_attention, r = through_sum(block["attention"], block["input"], r)
    of_context = split(through_linear(block["context"], block["out"], of_attention), heads)
    q, k, v = (split(x, heads) for x in block["qkv"])
    of_a, of_v = through_product(block["a"], v, of_context)
    of_q, of_k = through_product(q, k.transpose(-1, -2), of_a)
    for w, part in zip(block["into"], (of_q, of_k.transpose(-1, -2), of_v), strict=True):
        r = r + through_linear(block["normed"], w, merged(part))
    return r, of_a


def heard(model: Any, names: Sequence[str], **inputs: Any) -> dict[str, tuple[Any, Any]]:
    """(input, output) of modules in a run."""
    found: dict[str, tuple[Any, Any]] = {}

    def hear(name: str) -> Callable[..., None]:
        def hook(_: Any, x: Any, y: Any) -> None:
            found[name] = (x[0][0], (y[0] if isinstance(y, tuple) else y)[0])

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(hear(name)) for name in names]
    with wide(), torch.no_grad():
        model(**inputs)
    for one in hooks:
        one.remove()
    return found


PARTS = {
    "bert": ("bert.encoder.layer.{}", "attention.self.{}", "attention.output.dense"),
    "vit": ("vit.encoder.layer.{}", "attention.attention.{}", "attention.output.dense"),
    "gpt2": ("transformer.h.{}", "attn.c_attn", "attn.c_proj"),
}
MLP = {
    "bert": ("intermediate.dense", "output.dense"),
    "vit": ("intermediate.dense", "output.dense"),
    "gpt2": ("mlp.c_fc", "mlp.c_proj"),
}


def blocks_of(model: Any, kind: str, weights: Sequence[Any], **inputs: Any) -> list[dict[str, Any]]:
    """Of each block what `through_block` reads."""
    block, qkv, out = PARTS[kind]
    up, down = MLP[kind]
    queries = [qkv] if kind == "gpt2" else [qkv.format(n) for n in ("query", "key", "value")]
    paths = [block.format(i) for i in range(len(weights))]
    modules = [f"{path}.{end}" for path in paths for end in (*queries, out, up, down, "")]
    io = heard(model, [m.rstrip(".") for m in modules], **inputs)

    def w(name: str) -> Any:
        weight = model.get_submodule(name).weight
        return (weight.T if kind == "gpt2" else weight).detach()

    found = []
    for path, (a, _) in zip(paths, weights, strict=True):
        q = [f"{path}.{name}" for name in queries]
        o, u, d = (f"{path}.{end}" for end in (out, up, down))
        before, attended = io[path][0], io[o][1]
        one = {
            "a": a,
            "input": before,
            "attention": attended,
            "context": io[o][0],
            "middle": io[u][0] if kind == "bert" else before + attended,
            "narrow": io[u][0],
            "wide": io[d][0],
            "mlp": io[d][1],
            "normed": io[q[0]][0],
            "qkv": [io[n][1] for n in q] if len(q) == 3 else io[q[0]][1].chunk(3, -1),
            "into": [w(n) for n in q] if len(q) == 3 else w(q[0]).chunk(3),
        }
        found.append(one | {"out": w(o), "up": w(u), "down": w(d)})
    return found


def scaled_queries(blocks: Sequence[dict[str, Any]], heads: int) -> None:
    for block in blocks:
        q, k, v = block["qkv"]
        block["qkv"] = (q * (q.shape[-1] // heads) ** -0.5, k, v)


def chefer(blocks: Sequence[dict[str, Any]], heads: int, r: Any, weights: Any) -> list[Any]:
    """C_l of each block, the first first."""
    found = []
    for block, (_, gradient) in zip(reversed(blocks), reversed(weights), strict=True):
        r, of_a = through_block(block, heads, r)
        found.append((gradient * of_a).clamp(min=0).mean(0))
    return found[::-1]


def of_head(model: Any, kind: str, target: int, tokens: int, last: Any, width: int) -> Any:
    """Relevance of the last block's output: from 1 at the target, through the head."""
    r = torch.zeros(tokens, width, dtype=torch.float64)
    if kind == "bert":
        pooled = model.bert.pooler
        x = torch.tanh(last[:1] @ pooled.dense.weight.T + pooled.dense.bias)
        one = through_linear(x, model.classifier.weight[[target]], torch.ones(1, 1).double())
        r[:1] = through_linear(last[:1], pooled.dense.weight, one)
    elif kind == "vit":
        x = model.vit.layernorm(last)[:1]
        r[:1] = through_linear(x, model.classifier.weight[[target]], torch.ones(1, 1).double())
    else:
        x = model.transformer.ln_f(last)[-1:]
        r[-1:] = through_linear(x, model.lm_head.weight[[target]], torch.ones(1, 1).double())
    return r.detach()


@pytest.mark.parametrize("kind", PARTS)
def test_chefer(kind: str, tmp_path: Path) -> None:
    row, inputs, x = None, {"input_ids": torch.tensor([IDS])}, IDS
    if kind == "vit":
        made = random_vision("vit", "ForImageClassification")
        x = np.random.default_rng(1).standard_normal((3, 12, 12))
        inputs = {"pixel_values": torch.tensor(x)[None]}
    elif kind == "gpt2":
        made, row = random_model("gpt2"), -1
    else:
        made = encoder(tmp_path, "BertForSequenceClassification")
    ours, model = loaded(tmp_path / kind, made), twin(made)
    target, pairs = ran(model, row, **inputs)
    weights = pairs["attentions"]
    blocks = blocks_of(model, kind, weights, **inputs)
    scaled_queries(blocks, 4)
    path = PARTS[kind][0].format(len(weights) - 1)
    last = heard(model, [path], **inputs)[path][1]
    r = of_head(model, kind, target, len(last), last, last.shape[1])
    maps = chefer(blocks, 4, r, weights)
    for normalization in ("rows", "none"):
        for start in (0, 1):
            joint = torch.eye(len(last), dtype=torch.float64)
            for c in maps[start:]:
                b = c + torch.eye(len(c), dtype=torch.float64)
                joint = (b / b.sum(1, keepdim=True) if normalization == "rows" else b) @ joint
            options = {"normalization": normalization, "start_block": start}
            e = ours.explain(x, method=refl.methods.chosen("chefer-2021", options=options))
            found = e.patches.ravel() if kind == "vit" else e.relevance
            theirs = joint[row or 0].detach().numpy()
            agree(found, theirs[1:] if kind == "vit" else theirs)


# -- the same through rotation, grouped keys and a gated product -----------------------------------


def turned(x: Any, cos: Any, sin: Any) -> Any:  # (H, T, d)
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def through_rotation(x: Any, cos: Any, sin: Any, r: Any) -> Any:
    """x times the transposed map of R / z."""
    x = x.detach().requires_grad_()
    z = turned(x, cos, sin)
    (g,) = torch.autograd.grad(z, x, quotient(r, z.detach()))
    return (x * g).detach()


def through_llama_block(layer: Any, io: Any, path: str, a: Any, tables: Any, r: Any) -> Any:
    def of(name: str) -> tuple[Any, Any]:
        return io[f"{path}.{name}"]

    attention, mlp, cfg = layer.self_attn, layer.mlp, layer.self_attn.config
    before, attended, wide = io[path][0], of("self_attn.o_proj")[1], of("mlp.down_proj")
    of_mlp, r = through_sum(wide[1], before + attended, r)
    each = through_linear(wide[0], mlp.down_proj.weight, of_mlp) / 2
    narrow = of("mlp.gate_proj")[0]
    for linear in (mlp.gate_proj, mlp.up_proj):
        r = r + through_linear(narrow, linear.weight, each)
    of_attention, r = through_sum(attended, before, r)
    context = of("self_attn.o_proj")[0]
    of_context = through_linear(context, attention.o_proj.weight, of_attention)
    heads, groups = cfg.num_attention_heads, cfg.num_key_value_heads
    q, k, v = (
        split(of(f"self_attn.{n}_proj")[1], h)
        for n, h in (("q", heads), ("k", groups), ("v", groups))
    )
    times = heads // groups
    q_turned, k_turned = turned(q, *tables) * attention.scaling, turned(k, *tables)
    repeated = [x.repeat_interleave(times, 0) for x in (k_turned, v)]
    of_a, of_v = through_product(a, repeated[1], split(of_context, heads))
    of_q, of_k = through_product(q_turned, repeated[0].transpose(-1, -2), of_a)
    of_k, of_v = (x.unflatten(0, (groups, times)).sum(1) for x in (of_k.transpose(-1, -2), of_v))
    parts = (through_rotation(q, *tables, of_q), through_rotation(k, *tables, of_k), of_v)
    normed = of("self_attn.q_proj")[0]
    for n, part in zip("qkv", parts, strict=True):
        weight = getattr(attention, f"{n}_proj").weight
        r = r + through_linear(normed, weight, merged(part))
    return r.detach(), of_a.detach()


def test_chefer_of_a_llama_with_groups(tmp_path: Path) -> None:
    made = random_model("llama", num_key_value_heads=2)
    ours, model = loaded(tmp_path, made), twin(made)
    inputs = {"input_ids": torch.tensor([IDS])}
    target, pairs = ran(model, -1, **inputs)
    paths = [f"model.layers.{i}" for i in range(len(model.model.layers))]
    ends = [f"self_attn.{n}_proj" for n in "qkvo"] + [
        f"mlp.{n}_proj" for n in ("gate", "up", "down")
    ]
    io = heard(model, [*paths, "model.norm", *(f"{p}.{e}" for p in paths for e in ends)], **inputs)
    with wide():
        places = torch.arange(len(IDS))[None]
        cos, sin = model.model.rotary_emb(torch.zeros(1, dtype=torch.float64), places)
    last = io["model.norm"][1]
    r = torch.zeros_like(last)
    one = torch.ones(1, 1, dtype=torch.float64)
    r[-1:] = through_linear(last[-1:], model.lm_head.weight[[target]], one).detach()
    joint = torch.eye(len(IDS), dtype=torch.float64)
    every = zip(paths[::-1], model.model.layers[::-1], pairs["attentions"][::-1], strict=True)
    for path, layer, (a, gradient) in every:
        r, of_a = through_llama_block(layer, io, path, a, (cos[0], sin[0]), r)
        b = (gradient * of_a).clamp(min=0).mean(0) + torch.eye(len(IDS), dtype=torch.float64)
        joint = joint @ (b / b.sum(1, keepdim=True))
    agree(ours.explain(IDS, method="chefer-2021").relevance, joint[-1].numpy())
