"""Shapley values and Shapley pairs of a game, exact or from permutations; nothing here knows a net

    phi_j = sum over S without j of  |S|! (N - |S| - 1)! / N!  (v(S + j) - v(S))    (Shapley 1953)

A game whose coalitions each have an attribution, phi_i(S) for the members i of S, has pairs: what j
adds to the attribution of i,

    phi_{j->i} = Shapley value of j in the game  S -> phi_i(S + i),  S among the players but i
    phi_{i->i} = phi_i({i}),     so that   sum_j phi_{j->i} = phi_i(everybody)   exactly

(metagame, arXiv 2605.06295; which of the two comes first matters: phi_{j->i} is not phi_{i->j}).

Exact: every coalition once, 2^N of them. Sampled: orders of the players, each with its reverse
(Mitchell et al. 2022, Sampling permutations for Shapley value estimation, arXiv 2104.12199,
antithetic), j's value the mean of what it adds to those before it. Each order telescopes, so the
sums above hold exactly however few there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import comb
from typing import Any

import numpy as np

from refl.errors import ReflError

Game = Callable[[Any], Any]
"""Coalitions (C, N) bool, one a row -> what each is worth (C,); or, for pairs, its attribution
(C, N), of which the entries of members count."""

MOST_PLAYERS = 20
"""Of a game whose coalitions are all asked for: a million of them."""


def values(game: Game, players: int) -> Any:  # -> (N,)
    """The Shapley value of each player, exact. Raises ReflError above MOST_PLAYERS."""
    masks, numbers = _all(players)
    v = np.asarray(game(masks), dtype=np.float64)
    found = np.empty(players)
    for j in range(players):
        without = numbers[~masks[:, j]]
        added = v[without | 1 << j] - v[without]
        found[j] = (_weights(players)[masks[without].sum(axis=1)] * added).sum()
    return found


def pairs(game: Game, players: int) -> Any:  # -> (N, N), [i, j] = phi_{j->i}
    """What each player adds to the attribution of each, exact. Raises ReflError above
    MOST_PLAYERS.
    """
    masks, numbers = _all(players)
    phi = np.zeros((len(masks), players))
    phi[1:] = np.where(masks[1:], game(masks[1:]), 0.0)
    found = np.zeros((players, players))
    for j in range(players):
        without = numbers[~masks[:, j]]
        added = np.where(masks[without], phi[without | 1 << j] - phi[without], 0.0)
        others = np.maximum(masks[without].sum(axis=1) - 1, 0)  # of S, beside i
        found[:, j] = (_weights(players - 1)[others][:, None] * added).sum(axis=0)
    alone = np.arange(players)
    found[alone, alone] = phi[1 << alone, alone]
    return found


def sampled_pairs(
    game: Game, players: int, permutations: int, draw: int = 0
) -> Any:  # -> (N, N), [i, j] = phi_{j->i}
    """The same from so many orders drawn, and the reverse of each. A coalition that several orders
    ask for is asked for once.
    """
    orders = list(_orders(players, permutations, draw))
    chains = [[_chain(order, i) for i in range(players)] for order in orders]
    asked = sorted({number for rows in chains for chain in rows for number, _ in chain})
    masks = np.array([[n >> t & 1 for t in range(players)] for n in asked], dtype=bool)
    phi = dict(zip(asked, game(masks), strict=True))
    found = np.zeros((players, players))
    for rows in chains:
        for i, chain in enumerate(rows):
            before = 0.0
            for number, j in chain:
                found[i, j] += phi[number][i] - before
                before = phi[number][i]
    return found / len(orders)


def _orders(players: int, permutations: int, draw: int) -> Iterator[list[int]]:
    random = np.random.default_rng(draw)
    for _ in range(permutations):
        order = random.permutation(players).tolist()
        yield order
        yield order[::-1]


def _chain(order: list[int], i: int) -> list[tuple[int, int]]:
    """The coalitions in which the others join i, as numbers whose bits are the members; and who
    has joined last.
    """
    number, found = 1 << i, [(1 << i, i)]
    for j in order:
        if j != i:
            number |= 1 << j
            found.append((number, j))
    return found


def _all(players: int) -> tuple[Any, Any]:  # -> (2^N, N) bool, (2^N,)
    """Every coalition, and its number."""
    if not 1 <= players <= MOST_PLAYERS:
        raise ReflError(
            f"a game of {players} players has 2^{players} coalitions: expected 1 to "
            f"{MOST_PLAYERS} players, or permutations"
        )
    numbers = np.arange(1 << players)
    return (numbers[:, None] >> np.arange(players) & 1).astype(bool), numbers


def _weights(players: int) -> Any:  # -> (N,), by |S|
    """|S|! (N - |S| - 1)! / N!"""
    return np.array([1 / (players * comb(players - 1, size)) for size in range(players)] or [1.0])
