"""Selective scan: what a state space model makes of a text, each channel i with N states of its own
(Gu and Dao 2023, Mamba, arXiv 2312.00752, section 3, zero-order hold as its code has it)

    h_t = a_t h_(t-1) + d_t B_t x_t,    a_t = exp(d_t A),  A = -exp(A_log)        h_0 = 0
    y_t = sum_n C_tn h_tn

x (B, T, I) is read with the step sizes d (B, T, I), the inputs' and the outputs' coefficients
B and C (B, T, N), which are activations too, and A (I, N), a weight.

    epsilon     A, B, C and d are constants, so y is linear in x: R_x = x sum_n d_t B_tn l_tn, where
                l_t = C_t s_t + a_(t+1) l_(t+1) is the recurrence backwards, s = R / (y + eps s(y))
                                        (Rezaei Jafari et al. 2024, arXiv 2406.07592, section 4.2)
    gradient    the true derivative, of all four operands: with l of g,
                g_x = sum_n d_t B_tn l_tn                g_B = sum_i l_tin d_ti x_ti
                g_d = sum_n l_tn (B_tn x_t + A_n a_tn h_(t-1),n)        g_C = sum_i g_ti h_tin

In gradient x input form, epsilon is `epsilon_gxi`: g_x as above, nothing for d, B and C.

Absorbs: stabilizer sum eps s(y) s. The true derivative counts every term of y four times, for x, d,
B and C, so it absorbs `product_offset` = -3 sum R; and once more for the decays that d sets, which
is `decay_offset` = -sum l_t d_t A a_t h_(t-1).
"""

from __future__ import annotations

from collections.abc import Iterator

from refl.arrays import Array, namespace, total, total_product
from refl.rules.conservation import Forms, RuleOutput, stabilized_ratio

CAUSES = {
    "product_offset": "a product counted once for each factor",
    "decay_offset": "how step sizes set what a scan keeps",
}


def forward(
    x: Array, d: Array, b: Array, c: Array, a_log: Array
) -> Array:  # (B, T, I) x 2, (B, T, N) x 2, (I, N) -> (B, T, I)
    return after(None, x, d, b, c, a_log)[0]


def after(
    h: Array | None, x: Array, d: Array, b: Array, c: Array, a_log: Array
) -> tuple[Array, Array]:  # (B, I, N), ... -> (B, T, I), (B, I, N)
    """What follows on the states h of a text that was read before (None where there is none), and
    the states that it ends with.
    """
    every, y = states(d * x, b, _decays(d, a_log), h), []
    for t, now in enumerate(every):
        y.append((now @ c[:, t, :, None])[..., 0])
    return namespace(x).stack(y, axis=1), now


def epsilon(
    x: Array,
    d: Array,
    b: Array,
    c: Array,
    a_log: Array,
    z: Array,
    r: Array,
    *,
    eps: float = 1e-6,
    stabilizer: str = "sign",
) -> RuleOutput:  # r: (B, T, I) -> (B, T, I)
    s, absorbed = stabilized_ratio(z, r, eps, stabilizer)
    return RuleOutput(
        (x * _to_x(d, b, c, a_log, s), None, None, None, None), {"stabilizer": absorbed}
    )


def epsilon_gxi(
    x: Array, d: Array, b: Array, c: Array, a_log: Array, z: Array, g: Array
) -> RuleOutput:  # g: (B, T, I) -> (B, T, I)
    return RuleOutput((_to_x(d, b, c, a_log, g), None, None, None, None), {})


def gradient(
    x: Array, d: Array, b: Array, c: Array, a_log: Array, z: Array, g: Array
) -> RuleOutput:  # g: (B, T, I) -> (B, T, I) x 2, (B, T, N) x 2
    xp, read = namespace(x, g), d * x
    h = list(states(read, b, _decays(d, a_log)))
    to_x, to_d, to_b, to_c, kept = [], [], [], [], []
    for t, l_t, a_t in _backwards(c, g, d, a_log):
        to_state = (l_t @ b[:, t, :, None])[..., 0]
        held = xp.sum(l_t * a_t * h[t - 1] * -xp.exp(a_log), axis=-1) if t else 0 * to_state
        to_x.append(d[:, t, :] * to_state)
        to_d.append(x[:, t, :] * to_state + held)
        to_b.append((read[:, t, None, :] @ l_t)[:, 0, :])
        to_c.append((g[:, t, None, :] @ h[t])[:, 0, :])
        kept.append(d[:, t, :] * held)
    g_x, g_d, g_b, g_c, decays = (
        xp.stack(each[::-1], axis=1) for each in (to_x, to_d, to_b, to_c, kept)
    )
    offsets = {"product_offset": -3 * total_product(z, g), "decay_offset": -total(decays)}
    return RuleOutput((g_x, g_d, g_b, g_c, None), offsets)


def _to_x(d: Array, b: Array, c: Array, a_log: Array, s: Array) -> Array:  # (B, T, I)
    """sum_n d_t B_tn l_tn"""
    back = [(l_t @ b[:, t, :, None])[..., 0] for t, l_t, _ in _backwards(c, s, d, a_log)]
    return d * namespace(s).stack(back[::-1], axis=1)


def states(
    read: Array, b: Array, decays: Iterator[Array], h: Array | None = None
) -> Iterator[Array]:  # (B, I, N) each
    """h_1, ..., h_T: a_t h_(t-1) + (d_t x_t) B_t"""
    for t, a_t in enumerate(decays):
        new = read[:, t, :, None] * b[:, t, None, :]
        h = new if h is None else a_t * h + new
        yield h


def _decays(d: Array, a_log: Array) -> Iterator[Array]:  # (B, I, N) each
    """a_1, ..., a_T"""
    xp = namespace(d, a_log)
    a = -xp.exp(a_log)
    for t in range(d.shape[1]):
        yield xp.exp(d[:, t, :, None] * a)


def _backwards(
    c: Array, s: Array, d: Array, a_log: Array
) -> Iterator[tuple[int, Array, Array]]:  # -> t, l_t (B, I, N), a_t (B, I, N)
    """From the last place to the first: l_t = C_t s_t + a_(t+1) l_(t+1)."""
    xp = namespace(s, d, a_log)
    a, coming = -xp.exp(a_log), None
    for t in range(s.shape[1] - 1, -1, -1):
        l_t = s[:, t, :, None] * c[:, t, None, :]
        l_t = l_t if coming is None else l_t + coming
        a_t = xp.exp(d[:, t, :, None] * a)
        yield t, l_t, a_t
        coming = a_t * l_t


RULES = {"epsilon": Forms(epsilon, epsilon_gxi), "gradient": Forms(None, gradient)}
