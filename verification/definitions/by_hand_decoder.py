"""One decoder block swept by hand: Llama's, under AttnLRP (Achtibat et al. 2024, arXiv 2402.05602),
in loops over plain lists.

    python -m refl.verification.definitions.by_hand_decoder

`block` is the whole story. Its first half is the forward pass. Its second half has the same lines
upside down: each quotes the forward line it undoes, and hands the relevance that arrived at that
line's output to its inputs. What cannot be handed on (to a bias, to eps, to the constant part of a
softmax) is absorbed, and recorded under its cause from a formula of its own, never as what is
missing. So the conservation ledger closes only if every line is right:

    sum of the relevance that comes in at y  =  sum of the relevance that reaches x  +
                                             everything absorbed

Below, each operation stands beside what undoes it, with the number of the equation. s(z) is 1 for z
>= 0, else -1. Numbers may be of any kind that has + - * / and comparison: floats with f=math, or
mpmath's with f=mpmath.mp.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Number = Any
Row = list[Number]
Rows = list[Row]
Heads = list[Rows]
Absorbed = dict[str, Number]
"""Cause -> what was absorbed."""


def block(
    x: Rows, seed: Callable[[Rows], Rows], w: dict[str, Any], *,
    heads: int, kv_heads: int, norm_eps: Number, theta: Number, eps: Number, f: Any = math,
) -> tuple[dict[str, tuple[Any, Any]], dict[str, Absorbed]]:  # fmt: skip
    """name -> (activation, relevance), and the conservation ledger of each line by the name of its
    output.

    x (T, D). seed(y) is the relevance of y, (T, D). w: the checkpoint's tensors by their names in
    the block; biases may be missing.
    """
    d, group = len(w["self_attn.q_proj.weight"]) // heads, heads // kv_heads
    angles = [[t * theta ** (-2.0 * i / d) for i in range(d // 2)] for t in range(len(x))]
    cos, sin = each(f.cos, angles), each(f.sin, angles)  # (T, d/2), (T, d/2)

    def wb(name: str) -> tuple[Rows, Row | None]:
        return w[f"{name}.weight"], w.get(f"{name}.bias")

    # -- forward -----------------------------------------------------------------------------------

    n1 = rms_norm(x, w["input_layernorm.weight"], norm_eps, f)  # (T, D)
    q1, k1, v1 = (
        linear(n1, *wb(f"self_attn.{name}_proj")) for name in "qkv"
    )  # (T, H d), (T, K d), (T, K d)
    q = split(q1, heads)  # (H, T, d)
    k, v = split(k1, kv_heads), split(v1, kv_heads)  # (K, T, d) x 2
    qr, kr = rotate(q, cos, sin), rotate(k, cos, sin)  # (H, T, d), (K, T, d)
    qs = each(lambda z: z * (1 / f.sqrt(d)), qr)  # (H, T, d)
    kk = [transposed(kr[h // group]) for h in range(heads)]  # (H, d, T)
    vv = [v[h // group] for h in range(heads)]  # (H, T, d)
    scores = matmul(qs, kk)  # (H, T, T)
    p = softmax(scores, f)  # (H, T, T)
    context = matmul(p, vv)  # (H, T, d)
    merged = merge(context)  # (T, H d)
    o = linear(merged, *wb("self_attn.o_proj"))  # (T, D)
    h1 = add(x, o)  # (T, D)
    n2 = rms_norm(h1, w["post_attention_layernorm.weight"], norm_eps, f)  # (T, D)
    gate, up = linear(n2, *wb("mlp.gate_proj")), linear(n2, *wb("mlp.up_proj"))  # (T, F), (T, F)
    act = each(lambda z: z / (1 + f.exp(-z)), gate)  # (T, F): silu
    gated = each(lambda a, b: a * b, act, up)  # (T, F)
    down = linear(gated, *wb("mlp.down_proj"))  # (T, D)
    y = add(h1, down)  # (T, D)

    # -- and back: the last line first -------------------------------------------------------------

    ledger: dict[str, Absorbed] = {}
    r_y = seed(y)
    # y = h1 + down
    h1_by_y, r_down, ledger["y"] = undo_add(h1, down, y, r_y, eps)
    # down = linear(gated)
    r_gated, ledger["down"] = undo_linear(gated, *wb("mlp.down_proj"), down, r_down, eps)
    # gated = act * up: half each (prop. 3.2)
    r_act = r_up = each(lambda r: r / 2, r_gated)
    # act = silu(gate): identity (eq. 9)
    r_gate = r_act
    # gate = linear(n2),  up = linear(n2): two readers of n2, whose shares add up
    n2_by_gate, ledger["gate"] = undo_linear(n2, *wb("mlp.gate_proj"), gate, r_gate, eps)
    n2_by_up, ledger["up"] = undo_linear(n2, *wb("mlp.up_proj"), up, r_up, eps)
    r_n2 = add(n2_by_gate, n2_by_up)
    # n2 = rms_norm(h1): identity (prop. 3.4); h1 has a second reader, y = h1 + down
    r_h1 = add(h1_by_y, r_n2)
    # h1 = x + o
    x_by_h1, r_o, ledger["h1"] = undo_add(x, o, h1, r_h1, eps)
    # o = linear(merged)
    r_merged, ledger["o"] = undo_linear(merged, *wb("self_attn.o_proj"), o, r_o, eps)
    # merged = the heads of context side by side
    r_context = split(r_merged, heads)
    # context = p vv
    r_p, r_vv, ledger["context"] = undo_matmul(p, vv, context, r_context, eps)
    # p = softmax(scores)
    r_scores, ledger["p"] = undo_softmax(scores, p, r_p)
    # scores = qs kk
    r_qs, r_kk, ledger["scores"] = undo_matmul(qs, kk, scores, r_scores, eps)
    # kk, vv = the transposed kr, and v, each for every query head of its group: copies, whose
    # relevance adds up
    r_kr = groups_summed([transposed(head) for head in r_kk], group)
    r_v = groups_summed(r_vv, group)
    # qs = qr / sqrt(d): one input and no bias, so it gets all
    r_qr = r_qs
    # qr = rotate(q),  kr = rotate(k)
    r_q, ledger["qr"] = undo_rotate(q, cos, sin, qr, r_qr, eps)
    r_k, ledger["kr"] = undo_rotate(k, cos, sin, kr, r_kr, eps)
    # q1, k1, v1 = linear(n1), and q, k, v are these cut into heads: three readers of n1
    n1_by_q, ledger["q"] = undo_linear(n1, *wb("self_attn.q_proj"), q1, merge(r_q), eps)
    n1_by_k, ledger["k"] = undo_linear(n1, *wb("self_attn.k_proj"), k1, merge(r_k), eps)
    n1_by_v, ledger["v"] = undo_linear(n1, *wb("self_attn.v_proj"), v1, merge(r_v), eps)
    r_n1 = add(add(n1_by_q, n1_by_k), n1_by_v)
    # n1 = rms_norm(x): identity (prop. 3.4); x has a second reader, h1 = x + o
    r_x = add(x_by_h1, r_n1)

    return {
        "x": (x, r_x),
        "n1": (n1, r_n1),
        "q": (q, r_q),
        "k": (k, r_k),
        "v": (v, r_v),
        "qr": (qr, r_qr),
        "kr": (kr, r_kr),
        "qs": (qs, r_qs),
        "kk": (kk, r_kk),
        "vv": (vv, r_vv),
        "scores": (scores, r_scores),
        "p": (p, r_p),
        "context": (context, r_context),
        "merged": (merged, r_merged),
        "o": (o, r_o),
        "h1": (h1, r_h1),
        "n2": (n2, r_n2),
        "gate": (gate, r_gate),
        "up": (up, r_up),
        "act": (act, r_act),
        "gated": (gated, r_gated),
        "down": (down, r_down),
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


def linear(x: Rows, w: Rows, b: Row | None) -> Rows:  # (T, I), (O, I), (O,) -> (T, O)
    """z_j = sum_i W_ji x_i + b_j"""
    z = [[sum(w_ji * x_i for w_ji, x_i in zip(w_j, x_t, strict=True)) for w_j in w] for x_t in x]
    return [add(z_t, b) for z_t in z] if b else z


def undo_linear(
    x: Rows, w: Rows, b: Row | None, z: Rows, r: Rows, eps: Number
) -> tuple[Rows, Absorbed]:  # r (T, O) -> (T, I)
    """R_i = x_i sum_j W_ji s_j,  s_j = R_j / (z_j + eps s(z_j))  (eq. 8).
    The bias absorbs b_j s_j.
    """
    s, absorbed = stabilized_ratio(z, r, eps)
    by_x = [
        [sum(w_j[i] * s_j for w_j, s_j in zip(w, s_t, strict=True)) for i in range(len(w[0]))]
        for s_t in s
    ]
    if b:
        absorbed["bias"] = sum(b_j * s_j for s_t in s for b_j, s_j in zip(b, s_t, strict=True))
    return each(lambda x, g: x * g, x, by_x), absorbed


def add(a: Any, b: Any) -> Any:  # (T, D), (T, D) -> (T, D)
    return each(lambda a, b: a + b, a, b)


def undo_add(
    a: Rows, b: Rows, z: Rows, r: Rows, eps: Number
) -> tuple[Rows, Rows, Absorbed]:  # r (T, D) -> (T, D), (T, D)
    """R_a = a s,  R_b = b s,  s = R / (z + eps s(z))  (eq. 8)."""
    s, absorbed = stabilized_ratio(z, r, eps)
    return each(lambda a, s: a * s, a, s), each(lambda b, s: b * s, b, s), absorbed


def rms_norm(x: Rows, weight: Row, norm_eps: Number, f: Any) -> Rows:  # (T, D) -> (T, D)
    """z = w x / sqrt(mean(x^2) + norm_eps).  Nothing undoes it: the scale counts as a constant, so
    R_x = R  (prop. 3.4).
    """
    rms = [f.sqrt(sum(v * v for v in x_t) / len(x_t) + norm_eps) for x_t in x]
    return [[weight[i] * v / rms[t] for i, v in enumerate(x_t)] for t, x_t in enumerate(x)]


def matmul(a: Heads, v: Heads) -> Heads:  # (H, J, I), (H, I, P) -> (H, J, P)
    """O_jp = sum_i A_ji V_ip, head by head"""
    return [linear(a_h, transposed(v_h), None) for a_h, v_h in zip(a, v, strict=True)]


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


def softmax(scores: Heads, f: Any) -> Heads:  # (H, T, T) -> (H, T, T)
    """p_i = exp(x_i) / sum_k exp(x_k) over what position t may see, i <= t; 0 beyond. The maximum
    only keeps exp in range.
    """

    def row(x: Row) -> Row:
        e = [f.exp(x_i - max(x)) for x_i in x]
        return [e_i / sum(e) for e_i in e]

    return [
        [row(x[: t + 1]) + [0 * x_i for x_i in x[t + 1 :]] for t, x in enumerate(head)]
        for head in scores
    ]


def undo_softmax(
    scores: Heads, p: Heads, r: Heads
) -> tuple[Heads, Absorbed]:  # r (H, T, T) -> (H, T, T)
    """R_i = x_i (R_i - p_i sum_j R_j)  (prop. 3.1), x the scores as they are; 0 at masked entries.

    p_j is not linear in x: around x it is sum_i p_j (delta_ij - p_i) x_i plus a constant, whose
    share is absorbed as softmax_offset, sum_j R_j (1 - x_j + sum_i p_i x_i) in all. What may have
    arrived at a masked entry is absorbed as mask.
    """
    r_x, offset, mask = each(lambda x: 0 * x, scores), 0 * total(r), 0 * total(r)
    for h in range(len(scores)):
        for t, (x, p_t, r_t) in enumerate(zip(scores[h], p[h], r[h], strict=True)):
            sum_r, mean_x = sum(r_t[: t + 1]), sum(p_t[i] * x[i] for i in range(t + 1))
            for i in range(t + 1):
                r_x[h][t][i] = x[i] * (r_t[i] - p_t[i] * sum_r)
                offset += r_t[i] * (1 - x[i] + mean_x)
            mask += sum(r_t[t + 1 :])
    return r_x, {"softmax_offset": offset, "mask": mask}


def rotate(x: Heads, cos: Rows, sin: Rows) -> Heads:  # (H, T, d) -> (H, T, d)
    """The pairs (x_i, x_(i + d/2)) turned:  z = (x1 cos - x2 sin,  x2 cos + x1 sin)"""
    half = len(cos[0])

    def turned(x: Row, c: Row, s: Row) -> Row:
        return [x[i] * c[i] - x[half + i] * s[i] for i in range(half)] + [
            x[half + i] * c[i] + x[i] * s[i] for i in range(half)
        ]

    return [[turned(x_t, cos[t], sin[t]) for t, x_t in enumerate(head)] for head in x]


def undo_rotate(
    x: Heads, cos: Rows, sin: Rows, z: Heads, r: Heads, eps: Number
) -> tuple[Heads, Absorbed]:  # r (H, T, d) -> (H, T, d)
    """A linear map without a bias: R_x1 = x1 (cos s_1 + sin s_2),  R_x2 = x2 (cos s_2 - sin s_1),
    s = R / (z + eps s(z))  (eq. 8).
    """
    s, absorbed = stabilized_ratio(z, r, eps)
    by_x = rotate(s, cos, each(lambda v: -v, sin))  # the transposed map turns the other way
    return each(lambda x, g: x * g, x, by_x), absorbed


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


def groups_summed(r: Heads, group: int) -> Heads:  # (H, T, d) -> (K, T, d)
    return [each(lambda *copies: sum(copies), *r[g : g + group]) for g in range(0, len(r), group)]


def main() -> None:
    """Three tokens, two heads that share a key head.
    What is the last token's first number made of?
    """
    chance = (math.sin(7.0 * n * n + 1.0) for n in range(1, 1000))

    def drawn(*shape: int) -> Any:
        return [drawn(*shape[1:]) for _ in range(shape[0])] if shape else next(chance)

    w = {
        f"self_attn.{name}_proj.weight": drawn(out, 4)
        for name, out in (("q", 4), ("k", 2), ("v", 2), ("o", 4))
    }
    w |= {
        f"mlp.{name}_proj.weight": drawn(*shape)
        for name, shape in (("gate", (3, 4)), ("up", (3, 4)), ("down", (4, 3)))
    }
    w |= {
        "self_attn.q_proj.bias": drawn(4),
        "input_layernorm.weight": drawn(4),
        "post_attention_layernorm.weight": drawn(4),
    }
    values, ledger = block(
        drawn(3, 4), lambda y: [[0.0] * 4, [0.0] * 4, [y[2][0], 0.0, 0.0, 0.0]], w,
        heads=2, kv_heads=1, norm_eps=1e-6, theta=10000.0, eps=1e-6,
    )  # fmt: skip

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
