"""One encoder block swept by hand: BERT's, under AttnLRP (Achtibat et al. 2024, arXiv 2402.05602),
in loops over plain lists.

    python -m refl.verification.definitions.by_hand_encoder

The companion of by_hand_decoder.py, and as self-contained. `block` is the whole story: the forward
pass, then the same lines upside down, each undone by its rule. What cannot be handed on (to a bias,
to eps, to the constant part of a softmax) is absorbed, and recorded from a formula of its own,
never as what is missing. So the conservation ledger closes only if every line is right:

    sum of the relevance that comes in at y  =  sum of the relevance that reaches x  +
                                             everything absorbed

New beside the decoder: attention looks both ways, and away from padding alone; biases everywhere;
LayerNorm after each half, which is swept as the linear map it is once its standard deviation counts
as a constant (section 3.3.3). s(z) is 1 for z >= 0, else -1. Numbers may be of any kind that has +
- * / and comparison: floats with f=math, or mpmath's with f=mpmath.mp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Number = Any
Row = list[Number]
Rows = list[Row]
Heads = list[Rows]
Absorbed = dict[str, Number]
"""Cause -> what was absorbed."""


def block(
    x: Rows, seed: Callable[[Rows], Rows], w: dict[str, Any], attention_mask: Sequence[bool], *,
    heads: int, norm_eps: Number, eps: Number, f: Any = math,
) -> tuple[dict[str, tuple[Any, Any]], dict[str, Absorbed]]:  # fmt: skip
    """name -> (activation, relevance), and the conservation ledger of each line by the name of its
    output.

    x (T, D). seed(y) is the relevance of y, (T, D). w: the checkpoint's tensors by their names in
    the block. attention_mask: False at padding.
    """
    d = len(x[0]) // heads

    def wb(name: str) -> tuple[Any, Row]:
        return w[f"{name}.weight"], w[f"{name}.bias"]

    # -- forward -----------------------------------------------------------------------------------

    q1, k1, v1 = (
        linear(x, *wb(f"attention.self.{name}")) for name in ("query", "key", "value")
    )  # (T, D) x 3
    q, k, v = split(q1, heads), split(k1, heads), split(v1, heads)  # (H, T, d) x 3
    qs = each(lambda z: z * (1 / f.sqrt(d)), q)  # (H, T, d)
    kk = [transposed(head) for head in k]  # (H, d, T)
    scores = matmul(qs, kk)  # (H, T, T)
    p = softmax(scores, attention_mask, f)  # (H, T, T)
    context = matmul(p, v)  # (H, T, d)
    merged = merge(context)  # (T, D)
    o = linear(merged, *wb("attention.output.dense"))  # (T, D)
    a1 = add(o, x)  # (T, D)
    h = layer_norm(a1, *wb("attention.output.LayerNorm"), norm_eps, f)  # (T, D)
    inner = linear(h, *wb("intermediate.dense"))  # (T, F)
    act = each(lambda z: z * f.erfc(-z / f.sqrt(2)) / 2, inner)  # (T, F): gelu
    out = linear(act, *wb("output.dense"))  # (T, D)
    a2 = add(out, h)  # (T, D)
    y = layer_norm(a2, *wb("output.LayerNorm"), norm_eps, f)  # (T, D)

    # -- and back: the last line first -------------------------------------------------------------

    ledger: dict[str, Absorbed] = {}
    r_y = seed(y)
    # y = layer_norm(a2)
    r_a2, ledger["y"] = undo_layer_norm(a2, *wb("output.LayerNorm"), norm_eps, y, r_y, eps, f)
    # a2 = out + h
    r_out, h_by_a2, ledger["a2"] = undo_add(out, h, a2, r_a2, eps)
    # out = linear(act)
    r_act, ledger["out"] = undo_linear(act, *wb("output.dense"), out, r_out, eps)
    # act = gelu(inner): identity (eq. 9)
    r_inner = r_act
    # inner = linear(h); h has a second reader, a2 = out + h, and their shares add up
    h_by_inner, ledger["inner"] = undo_linear(h, *wb("intermediate.dense"), inner, r_inner, eps)
    r_h = add(h_by_a2, h_by_inner)
    # h = layer_norm(a1)
    r_a1, ledger["h"] = undo_layer_norm(
        a1, *wb("attention.output.LayerNorm"), norm_eps, h, r_h, eps, f
    )
    # a1 = o + x
    r_o, x_by_a1, ledger["a1"] = undo_add(o, x, a1, r_a1, eps)
    # o = linear(merged)
    r_merged, ledger["o"] = undo_linear(merged, *wb("attention.output.dense"), o, r_o, eps)
    # merged = the heads of context side by side
    r_context = split(r_merged, heads)
    # context = p v
    r_p, r_v, ledger["context"] = undo_matmul(p, v, context, r_context, eps)
    # p = softmax(scores)
    r_scores, ledger["p"] = undo_softmax(scores, attention_mask, p, r_p)
    # scores = qs kk
    r_qs, r_kk, ledger["scores"] = undo_matmul(qs, kk, scores, r_scores, eps)
    # kk = the transposed k,  qs = q / sqrt(d): one input and no bias, so it gets all
    r_k, r_q = [transposed(head) for head in r_kk], r_qs
    # q1, k1, v1 = linear(x), and q, k, v are these cut into heads: with a1 = o + x four readers of
    # x
    x_by_q, ledger["q"] = undo_linear(x, *wb("attention.self.query"), q1, merge(r_q), eps)
    x_by_k, ledger["k"] = undo_linear(x, *wb("attention.self.key"), k1, merge(r_k), eps)
    x_by_v, ledger["v"] = undo_linear(x, *wb("attention.self.value"), v1, merge(r_v), eps)
    r_x = add(x_by_a1, add(add(x_by_q, x_by_k), x_by_v))

    return {
        "x": (x, r_x),
        "q": (q, r_q),
        "k": (k, r_k),
        "v": (v, r_v),
        "qs": (qs, r_qs),
        "kk": (kk, r_kk),
        "scores": (scores, r_scores),
        "p": (p, r_p),
        "context": (context, r_context),
        "merged": (merged, r_merged),
        "o": (o, r_o),
        "a1": (a1, r_a1),
        "h": (h, r_h),
        "inner": (inner, r_inner),
        "act": (act, r_act),
        "out": (out, r_out),
        "a2": (a2, r_a2),
        "y": (y, r_y),
    }, ledger


# -- each operation, and what undoes it ------------------------------------------------------------


def stabilized_ratio(z: Any, r: Any, eps: Number) -> tuple[Any, Absorbed]:
    """s = R / (z + eps s(z)), the division in every line below, and what the stabilizer absorbs:
    eps s(z) s  (eq. 5).
    """
    e = each(lambda z: eps if z >= 0 else -eps, z)
    s = each(lambda r, z, e: r / (z + e), r, z, e)
    return s, {"stabilizer": total(each(lambda e, s: e * s, e, s))}


def linear(x: Rows, w: Rows, b: Row) -> Rows:  # (T, I), (O, I), (O,) -> (T, O)
    """z_j = sum_i W_ji x_i + b_j"""
    return [
        [
            sum(w_ji * x_i for w_ji, x_i in zip(w_j, x_t, strict=True)) + b_j
            for w_j, b_j in zip(w, b, strict=True)
        ]
        for x_t in x
    ]


def undo_linear(
    x: Rows, w: Rows, b: Row, z: Rows, r: Rows, eps: Number
) -> tuple[Rows, Absorbed]:  # r (T, O) -> (T, I)
    """R_i = x_i sum_j W_ji s_j,  s_j = R_j / (z_j + eps s(z_j))  (eq. 8).
    The bias absorbs b_j s_j.
    """
    s, absorbed = stabilized_ratio(z, r, eps)
    by_x = [
        [sum(w_j[i] * s_j for w_j, s_j in zip(w, s_t, strict=True)) for i in range(len(w[0]))]
        for s_t in s
    ]
    absorbed["bias"] = sum(b_j * s_j for s_t in s for b_j, s_j in zip(b, s_t, strict=True))
    return each(lambda x, g: x * g, x, by_x), absorbed


def add(a: Rows, b: Rows) -> Any:  # (T, D), (T, D) -> (T, D)
    return each(lambda a, b: a + b, a, b)


def undo_add(
    a: Rows, b: Rows, z: Rows, r: Rows, eps: Number
) -> tuple[Rows, Rows, Absorbed]:  # r (T, D) -> (T, D), (T, D)
    """R_a = a s,  R_b = b s,  s = R / (z + eps s(z))  (eq. 8)."""
    s, absorbed = stabilized_ratio(z, r, eps)
    return each(lambda a, s: a * s, a, s), each(lambda b, s: b * s, b, s), absorbed


def layer_norm(
    x: Rows, w: Row, b: Row, norm_eps: Number, f: Any
) -> Rows:  # (T, D), (D,), (D,) -> (T, D)
    """z_i = w_i (x_i - mean(x)) / std + b_i,  std^2 = mean((x - mean(x))^2) + norm_eps"""
    z = []
    for x_t in x:
        mean, std = mean_and_std(x_t, norm_eps, f)
        z.append([w_i * (x_i - mean) / std + b_i for w_i, x_i, b_i in zip(w, x_t, b, strict=True)])
    return z


def undo_layer_norm(
    x: Rows, w: Row, b: Row, norm_eps: Number, z: Rows, r: Rows, eps: Number, f: Any
) -> tuple[Rows, Absorbed]:  # r (T, D) -> (T, D)
    """With std a constant z is linear in x, z_j = sum_i w_j (delta_ij - 1/D) x_i / std + b_j, and
    eq. 8 reads

    R_i = x_i (c_i - mean(c)),  c = w s / std,  s = R / (z + eps s(z))  (section 3.3.3).
                                norm_bias absorbs b_j s_j.
    """
    s, absorbed = stabilized_ratio(z, r, eps)
    r_x = []
    for x_t, s_t in zip(x, s, strict=True):
        std = mean_and_std(x_t, norm_eps, f)[1]
        c = [w_j * s_j / std for w_j, s_j in zip(w, s_t, strict=True)]
        r_x.append([x_i * (c_i - sum(c) / len(c)) for x_i, c_i in zip(x_t, c, strict=True)])
    absorbed["norm_bias"] = sum(b_j * s_j for s_t in s for b_j, s_j in zip(b, s_t, strict=True))
    return r_x, absorbed


def mean_and_std(x: Row, norm_eps: Number, f: Any) -> tuple[Number, Number]:
    mean = sum(x) / len(x)
    return mean, f.sqrt(sum((x_i - mean) * (x_i - mean) for x_i in x) / len(x) + norm_eps)


def matmul(a: Heads, v: Heads) -> Heads:  # (H, J, I), (H, I, P) -> (H, J, P)
    """O_jp = sum_i A_ji V_ip, head by head"""
    return [
        [
            [sum(x * y for x, y in zip(row, column, strict=True)) for column in transposed(v[h])]
            for row in a[h]
        ]
        for h in range(len(a))
    ]


def undo_matmul(
    a: Heads, v: Heads, o: Heads, r: Heads, eps: Number
) -> tuple[Heads, Heads, Absorbed]:
    """R_A[j,i] = A_ji sum_p V_ip s_jp,  R_V[i,p] = V_ip sum_j A_ji s_jp,  s = R / (2 O + eps s(O))
    (prop. 3.3, eq. 15).
    """
    s, absorbed = stabilized_ratio(each(lambda o: 2 * o, o), r, eps)
    by_a = matmul(s, [transposed(head) for head in v])  # sum_p V_ip s_jp
    by_v = matmul([transposed(head) for head in a], s)  # sum_j A_ji s_jp
    return each(lambda a, g: a * g, a, by_a), each(lambda v, g: v * g, v, by_v), absorbed


def softmax(
    scores: Heads, attention_mask: Sequence[bool], f: Any
) -> Heads:  # (H, T, T) -> (H, T, T)
    """p_i = exp(x_i) / sum_k exp(x_k) over what is no padding; 0 there.
    The maximum only keeps exp in range.
    """

    def row(x: Row) -> Row:
        top = max(x_i for x_i, seen in zip(x, attention_mask, strict=True) if seen)
        e = [
            f.exp(x_i - top) if seen else 0 * x_i
            for x_i, seen in zip(x, attention_mask, strict=True)
        ]
        return [e_i / sum(e) for e_i in e]

    return [[row(x) for x in head] for head in scores]


def undo_softmax(
    scores: Heads, attention_mask: Sequence[bool], p: Heads, r: Heads
) -> tuple[Heads, Absorbed]:  # r (H, T, T) -> (H, T, T)
    """R_i = x_i (R_i - p_i sum_j R_j)  (prop. 3.1), x the scores as they are; 0 at masked entries.

    p_j is not linear in x: around x it is sum_i p_j (delta_ij - p_i) x_i plus a constant, whose
    share is absorbed as softmax_offset, sum_j R_j (1 - x_j + sum_i p_i x_i) in all. What may have
    arrived at a masked entry is absorbed as mask.
    """
    r_x, offset, mask = each(lambda x: 0 * x, scores), 0 * total(r), 0 * total(r)
    seen = [i for i in range(len(attention_mask)) if attention_mask[i]]
    for h in range(len(scores)):
        for t, (x, p_t, r_t) in enumerate(zip(scores[h], p[h], r[h], strict=True)):
            sum_r, mean_x = sum(r_t[i] for i in seen), sum(p_t[i] * x[i] for i in seen)
            for i in seen:
                r_x[h][t][i] = x[i] * (r_t[i] - p_t[i] * sum_r)
                offset += r_t[i] * (1 - x[i] + mean_x)
            mask += sum(r_t[i] for i in range(len(attention_mask)) if not attention_mask[i])
    return r_x, {"softmax_offset": offset, "mask": mask}


# -- lists of lists --------------------------------------------------------------------------------


def each(function: Callable[..., Number], *x: Any) -> Any:
    """The function of every number, or of every pair of numbers, of nested lists of one shape."""
    return (
        [each(function, *rows) for rows in zip(*x, strict=True)]
        if isinstance(x[0], list)
        else function(*x)
    )


def total(x: Any) -> Number:
    return sum(total(row) for row in x) if isinstance(x, list) else x


def transposed(x: Rows) -> Rows:  # (M, N) -> (N, M)
    return [list(column) for column in zip(*x, strict=True)]


def split(x: Rows, heads: int) -> Heads:  # (T, H d) -> (H, T, d)
    d = len(x[0]) // heads
    return [[row[h * d : h * d + d] for row in x] for h in range(heads)]


def merge(x: Heads) -> Rows:  # (H, T, d) -> (T, H d)
    return [[z for head in x for z in head[t]] for t in range(len(x[0]))]


def main() -> None:
    """Three tokens and one of padding, two heads. What is the last token's first number made of?"""
    chance = (math.sin(7.0 * n * n + 1.0) for n in range(1, 1000))

    def drawn(*shape: int) -> Any:
        return [drawn(*shape[1:]) for _ in range(shape[0])] if shape else next(chance)

    names = [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    ]
    shapes: dict[str, tuple[int, ...]] = {name: (4, 4) for name in names}
    shapes |= {
        "intermediate.dense": (3, 4),
        "output.dense": (4, 3),
        "attention.output.LayerNorm": (4,),
        "output.LayerNorm": (4,),
    }
    w = {f"{name}.weight": drawn(*shape) for name, shape in shapes.items()}
    w |= {f"{name}.bias": drawn(shape[0]) for name, shape in shapes.items()}
    values, ledger = block(
        drawn(4, 4),
        lambda y: [[0.0] * 4, [0.0] * 4, [y[2][0], 0.0, 0.0, 0.0], [0.0] * 4],
        w,
        [True, True, True, False],
        heads=2,
        norm_eps=1e-12,
        eps=1e-6,
    )

    explained = values["y"][0][2][0]
    account = {f"token {t}": sum(r) for t, r in enumerate(values["x"][1])}
    account |= {
        f"absorbed at {line}: {cause}": amount
        for line, causes in ledger.items()
        for cause, amount in causes.items()
    }
    for what, amount in [
        ("explained", explained),
        *account.items(),
        ("missing", explained - sum(account.values())),
    ]:
        print(f"{what:36}{amount:+.17f}")


if __name__ == "__main__":
    main()
