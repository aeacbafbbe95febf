"""Choosing one option per site within budgets, against trying all of them."""

import itertools

import numpy as np
import pytest

from spvit_jax.single_path.choose import Site, choose


def problem(seed, budgets, kind):
    """Up to five sites of up to five options, the first of each free, and budgets."""
    rng = np.random.default_rng(seed)
    sites = []
    for _ in range(rng.integers(1, 6)):
        options = rng.integers(1, 6)
        prices = np.sort(rng.integers(0, 100, (options, budgets)), axis=0).astype(float)
        prices[0] = 0
        values = {
            "any": lambda n: rng.normal(size=n),
            "rising": lambda n: np.cumsum(rng.exponential(size=n)),
            "ties": lambda n: rng.integers(-1, 3, n).astype(float),
        }[kind](options)
        sites.append(Site(values, prices))
    return sites, rng.uniform(0, 1.1, budgets) * sum(site.prices[-1] for site in sites)


def worth(sites, picked):
    return sum(float(site.values[option]) for site, option in zip(sites, picked, strict=True))


def fits(sites, picked, room):
    spent = sum(site.prices[option] for site, option in zip(sites, picked, strict=True))
    return bool((spent <= room).all())


def best_of_all(sites, room):
    every = itertools.product(*(range(len(site.values)) for site in sites))
    return max(worth(sites, picked) for picked in every if fits(sites, picked, room))


@pytest.mark.parametrize("kind", ["any", "rising", "ties"])
@pytest.mark.parametrize("budgets", [1, 2])
def test_a_small_choice_is_the_best_of_all(budgets, kind):
    for seed in range(25):
        sites, room = problem(seed, budgets, kind)
        picked = choose(sites, room)
        assert fits(sites, picked, room), seed
        assert worth(sites, picked) == pytest.approx(best_of_all(sites, room), abs=1e-9), seed


def test_what_a_multiplier_alone_cannot_find_is_found():
    """The better of two lumps, though the other gives more for its price; then what still fits."""
    lumps = [Site(np.array([0.0, 9.0]), np.array([[0.0], [8.0]]))]
    lumps += [Site(np.array([0.0, 6.0]), np.array([[0.0], [5.0]])) for _ in range(2)]
    assert choose(lumps, np.array([10.0])) == [0, 1, 1]
    assert choose(lumps, np.array([9.0])) == [1, 0, 0]
    assert choose(lumps, np.array([13.0])) == [1, 1, 0] or choose(lumps, np.array([13.0])) == [
        1,
        0,
        1,
    ]


def test_free_options_and_empty_budgets():
    site = Site(np.array([0.0, 2.0, 1.0, 5.0]), np.array([[0.0], [0.0], [0.0], [3.0]]))
    assert choose([site, site], np.array([0.0])) == [1, 1]
    assert choose([site], np.array([3.0])) == [3]
    assert choose([Site(np.array([-4.0]), np.array([[0.0]]))], np.array([1.0])) == [0]


def test_many_small_steps_fill_a_budget_to_the_last():
    rng = np.random.default_rng(0)
    units = [
        Site(
            np.append(0, np.cumsum(np.sort(rng.uniform(1, 2, 500))[::-1])),
            np.arange(501.0)[:, None],
        )
        for _ in range(6)
    ]
    lumps = [Site(np.array([0.0, 300.0]), np.array([[0.0], [250.0]])) for _ in range(6)]
    for room in (400.0, 1234.0, 4499.0):
        picked = choose(units + lumps, np.array([room]))
        assert sum(picked[:6]) + 250 * sum(picked[6:]) == room
