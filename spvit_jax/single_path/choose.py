"""Choosing one option at each site, for the most value within every budget.

Sites are independent: values add up, and so do prices. A multiplier per budget turns prices into
value, and raising it until the budget is held gives the best choice for what it spends (Everett
1963). What is left is filled greedily. A search among near choices ends it, branch and bound: it
proves itself on small problems and is cut short on large ones.
"""

from typing import NamedTuple

import numpy as np

TOLERANCE = 0.005  # of the tightest budget: where more is left, every option is tried in its turn
MANY = 64  # options; sites with more are not tried so, having small steps
NODES = 20_000  # of the search
ROUNDING = 1e-13  # of a budget; less than one multiply-accumulate


class Site(NamedTuple):
    """The options at one place, cheaper ones first."""

    values: np.ndarray  # [options]
    prices: np.ndarray  # [options, budgets]


class _Choice(NamedTuple):
    picked: list[int]
    value: float
    left: np.ndarray  # of each budget


def choose(sites: list[Site], budgets: np.ndarray) -> list[int]:
    """Picks an option at every site; together they are within every budget.

    Args:
      sites: each with an option that is free.
      budgets: what may be spent, ``[budgets]``.
    """
    scale = np.where(budgets > 0, budgets, 1)
    sites = [Site(np.asarray(s.values, float), s.prices / scale) for s in sites]
    room = budgets / scale
    multipliers = _multipliers(sites, room)
    best = _fill(sites, _picks(sites, multipliers), room)
    for s in (s for s, site in enumerate(sites) if len(site.values) <= MANY):
        for option in range(len(sites[s].values)):
            if best.left.min() <= TOLERANCE:
                break
            best = max(best, _forced(sites, s, option, room), key=lambda choice: choice.value)
    return _fill(sites, _near(sites, room, multipliers, best).picked, room).picked


def _picks(sites: list[Site], multipliers: np.ndarray) -> list[int]:
    """The best option of each site where prices count as lost value."""
    return [int(np.argmax(s.values - s.prices @ multipliers)) for s in sites]


def _spent(sites: list[Site], picked: list[int]) -> np.ndarray:
    return np.sum([site.prices[option] for site, option in zip(sites, picked, strict=True)], axis=0)


def _multipliers(sites: list[Site], room: np.ndarray) -> np.ndarray:
    """The least multiplier of each budget, given the others, with which it is held."""
    multipliers = np.zeros(len(room))

    def holds(b: int, multiplier: float) -> bool:
        multipliers[b] = multiplier
        return bool(_spent(sites, _picks(sites, multipliers))[b] <= room[b] + ROUNDING)

    for _ in range(8 if len(room) > 1 else 1):  # sweeps: one budget's multiplier frees another's
        for b in range(len(room)):
            low, high = 0.0, 1e-6
            if holds(b, 0.0):
                continue
            while not holds(b, high):
                low, high = high, 2 * high
            for _ in range(40):
                middle = (low + high) / 2
                low, high = (low, middle) if holds(b, middle) else (middle, high)
            multipliers[b] = high
    while (_spent(sites, _picks(sites, multipliers)) > room + ROUNDING).any():
        multipliers = 2 * multipliers
    return multipliers


def _fill(sites: list[Site], picked: list[int], room: np.ndarray) -> _Choice:
    """Changes one option after another for the most valuable one that still fits."""
    picked, left = list(picked), room - _spent(sites, picked)
    while True:
        best = (0.0, 0, 0)
        for s, (values, prices) in enumerate(sites):
            gains = values - values[picked[s]]
            gains[(prices - prices[picked[s]] > left + ROUNDING).any(1)] = 0
            option = int(np.argmax(gains))
            best = max(best, (float(gains[option]), s, option))
        gain, s, option = best
        if gain <= 0:
            value = sum(float(site.values[o]) for site, o in zip(sites, picked, strict=True))
            return _Choice(picked, value, left)
        left = left - sites[s].prices[option] + sites[s].prices[picked[s]]
        picked[s] = option


def _forced(sites: list[Site], s: int, option: int, room: np.ndarray) -> _Choice:
    """The choice with one site's option given; worth nothing where that alone does not fit."""
    if (sites[s].prices[option] > room + ROUNDING).any():
        return _Choice([], -np.inf, room)
    only = Site(*(part[option : option + 1] for part in sites[s]))
    others = [*sites[:s], only, *sites[s + 1 :]]
    choice = _fill(others, _picks(others, _multipliers(others, room)), room)
    return choice._replace(picked=[*choice.picked[:s], option, *choice.picked[s + 1 :]])


def _near(sites: list[Site], room: np.ndarray, multipliers: np.ndarray, best: _Choice) -> _Choice:
    """The best choice that branch and bound finds, starting from ``best``."""
    order = sorted(range(len(sites)), key=lambda s: len(sites[s].values))
    reduced = [sites[s].values - sites[s].prices @ multipliers for s in order]
    ranked = [np.argsort(-r, kind="stable") for r in reduced]
    bounds = np.append(np.cumsum([r.max() for r in reduced][::-1])[::-1], 0)
    nodes = 0

    def descend(depth: int, bound: float, left: np.ndarray, picked: list[int]) -> None:
        nonlocal best, nodes
        if depth == len(order):
            by_site = [option for _, option in sorted(zip(order, picked, strict=True))]
            value = sum(float(s.values[o]) for s, o in zip(sites, by_site, strict=True))
            best = max(best, _Choice(by_site, value, left), key=lambda choice: choice.value)
            return
        for option in ranked[depth]:
            nodes += 1
            least = bound + reduced[depth][option]
            if nodes > NODES or least + bounds[depth + 1] <= best.value + 1e-12:
                return
            rest = left - sites[order[depth]].prices[option]
            if (rest >= -ROUNDING).all():
                descend(depth + 1, least, rest, [*picked, int(option)])

    descend(0, float(multipliers @ room), room, [])
    return best
