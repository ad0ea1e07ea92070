"""The alpha search: who is judged, who wins, and when rounds stop."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder.errors import KitError
from recipes.alpha import plateau, search_alpha

GRID = [1.0, 0.0, 0.5, 0.25]
alphas = st.floats(-2, 4).map(lambda value: round(value, 2))
rates = st.integers(0, 8).map(lambda value: value / 8)


class Table:
    """A function given by its values; remembers what it was asked."""

    def __init__(self, values: dict):
        self.values, self.asked = values, []

    def __call__(self, alpha: float):
        self.asked.append(alpha)
        return self.values[alpha]


def test_only_the_front_runners_and_zero_are_judged():
    preference = Table({0.0: (0.6, 1.0), 0.25: (0.7, 1.2), 0.5: (0.8, 1.5), 1.0: (0.8, 1.4)})
    judged = Table({0.0: 0.5, 0.5: 0.55, 1.0: 0.6})
    choice = search_alpha(GRID, preference, judged, keep=2)
    assert (choice.alpha, choice.accuracy) == (1.0, 0.6)
    assert sorted(preference.asked) == sorted(GRID), "log-probs for every alpha, once"
    assert judged.asked == [0.0, 0.5, 1.0]
    assert choice.curve[1] == {
        "alpha": 0.25,
        "preference_accuracy": 0.7,
        "preference_margin": 1.2,
        "accuracy": None,
    }
    assert [point["alpha"] for point in choice.curve] == [0.0, 0.25, 0.5, 1.0]
    assert [point["accuracy"] for point in choice.curve] == [0.5, None, 0.55, 0.6]
    judged.asked.clear()
    assert search_alpha(GRID, preference, judged, keep=1).alpha == 0.5, "equal accuracy: the larger margin goes on"
    assert judged.asked == [0.0, 0.5]


def test_zero_is_a_candidate_even_when_nobody_asked_for_it():
    judged = Table({0.0: 0.7, 0.5: 0.6})
    choice = search_alpha([0.5, 0.5], lambda alpha: (alpha, alpha), judged, keep=1)
    assert (choice.alpha, judged.asked) == (0.0, [0.0, 0.5])
    assert search_alpha([], lambda alpha: (0.5, 0.0), judged).curve == [
        {"alpha": 0.0, "preference_accuracy": 0.5, "preference_margin": 0.0, "accuracy": 0.7}
    ]


def test_ties_go_to_the_smaller_step():
    same = Table(dict.fromkeys([*GRID, -0.25], 0.5))
    assert search_alpha(GRID, None, same, keep=None).alpha == 0.0
    best = Table({0.0: 0.4, 0.25: 0.5, -0.25: 0.5, 0.5: 0.5, 1.0: 0.5})
    assert search_alpha([1.0, 0.5, 0.25], None, best).alpha == 0.25
    assert search_alpha([1.0, 0.5, 0.25, -0.25], None, best).alpha == -0.25, "holding back counts as the safer step"
    equal = Table(dict.fromkeys(GRID, 0.5))
    search_alpha(GRID, lambda alpha: (0.5, 1.0), equal, keep=2)
    assert equal.asked == [0.0, 0.25], "equal promise: the smaller steps are judged"


def test_a_step_that_overflows_loses_and_is_saved_as_null():
    nan = math.nan
    preference = Table({0.0: (0.5, 0.1), 0.25: (0.6, 0.2), 0.5: (nan, nan), 1.0: (1.0, math.inf)})
    judged = Table({0.0: 0.5, 0.25: nan})
    choice = search_alpha(GRID, preference, judged, keep=2)
    assert (choice.alpha, judged.asked) == (0.0, [0.0, 0.25])
    assert choice.curve[2]["preference_accuracy"] is choice.curve[3]["preference_margin"] is None
    json.dumps(choice.curve, allow_nan=False)
    with pytest.raises(KitError, match="diverged"):
        search_alpha(GRID, preference, lambda alpha: nan)


@pytest.mark.parametrize(("given", "message"), [(([math.nan], 2), "finite"), (([0.5], 0), "keep is 0")])
def test_nonsense_is_refused(given, message):
    grid, keep = given
    with pytest.raises(KitError, match=message):
        search_alpha(grid, lambda alpha: (0, 0), lambda alpha: 0, keep)


@given(st.dictionaries(alphas, st.tuples(rates, rates, rates), max_size=8), st.integers(1, 9))
@settings(deadline=None)
def test_whatever_the_curve(table, keep):
    table.setdefault(0.0, (0.5, 0.5, 0.5))
    preference = Table({alpha: row[:2] for alpha, row in table.items()})
    judged = Table({alpha: row[2] for alpha, row in table.items()})
    choice = search_alpha(table, preference, judged, keep)
    assert 0.0 in judged.asked and len(judged.asked) == len(set(judged.asked)) <= keep + 1
    assert choice.accuracy == max(table[alpha][2] for alpha in judged.asked) == table[choice.alpha][2]
    assert all(abs(choice.alpha) <= abs(a) for a in judged.asked if table[a][2] == choice.accuracy)
    left_out = table.keys() - set(judged.asked)
    passed = [a for a in judged.asked if a != 0] or [0.0]
    assert not left_out or max(table[a][:2] for a in left_out) <= max(table[a][:2] for a in [*passed, 0.0])
    everything = search_alpha(reversed(list(table)), preference, judged, keep=None)
    assert everything.accuracy == max(row[2] for row in table.values()) >= choice.accuracy
    assert search_alpha(reversed(list(table)), preference, judged, keep) == choice, "the order given does not matter"


def rounds(*pairs: tuple[float, float]) -> list[dict]:
    return [{"validation_accuracy": accuracy, "alpha": alpha} for accuracy, alpha in pairs]


def test_plateau():
    assert not plateau([])
    assert not plateau(rounds((0.5, 0.0))), "without the base's accuracy the first round counts as progress"
    assert plateau(rounds((0.5, 0.0)), start_accuracy=0.5)
    assert not plateau(rounds((0.5, 0.0), (0.6, 0.0)))
    assert plateau(rounds((0.6, 0.0), (0.6, 0.0))), "no round and no alpha helped"
    assert not plateau(rounds((0.6, 0.0), (0.5, 0.25))), "an alpha helped"
    assert not plateau(rounds((0.6, 0.0), (0.5, 0.0)), patience=2)
    assert plateau(rounds((0.6, 0.0), (0.5, 0.0), (0.55, 0.0)), patience=2), "0.55 is above 0.5 but not above the best"
    assert not plateau(rounds((0.6, 0.0), (0.5, 0.0), (0.61, 0.0)), patience=2)
    assert plateau(rounds((0.6, 0.0), (0.605, 0.0)), min_gain=0.01)
    with pytest.raises(KitError, match="patience"):
        plateau([], patience=0)
