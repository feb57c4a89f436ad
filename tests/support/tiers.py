"""Selection of the tests for `make quick`, `make test` and `make nightly`. Each tier includes the one before it.

A test marked ``nightly`` or ``quick`` belongs to that tier, any other test to ``test``. A parametrised test runs with
all combinations of its parameters in ``nightly``. In ``test`` it runs in a few cases that contain each pair of values
of any two parameters, in ``quick`` in cases that contain each value, and only with the best instruction set.
``grid(test=3, quick=2)`` requests combinations of 3 and 2 parameters instead of 2 and 1, ``quick=0`` no case.

Why pairs: few faults need a combination of three values. In seven studies of failures, one or two parameters triggered
47 to 97 % (76 % on average), up to three 75 to 99 % (91 %): Kuhn, Kacker and Lei, "Estimating t-Way Fault Profile
Evolution During Testing", COMPSAC 2016, table I. Tests whose code is chosen by three parameters have ``grid(test=3)``.
tests/mutants shows what each tier finds.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pytest

TIERS = ("quick", "test", "nightly")
Values = dict[str, Any]  # of one case: the name of each parameter, and its value or what stands for it
Combination = frozenset[tuple[str, Any]]


def combinations_of(case: Values, strength: int) -> set[Combination]:
    """Every choice of ``strength`` parameters of the case, with their values; of fewer parameters, all of them."""
    return {frozenset(chosen) for chosen in combinations(case.items(), min(strength, len(case)))}


def covering(cases: Sequence[Values], strength: int) -> list[int]:
    """The numbers of cases that together have every combination of values of any ``strength`` parameters.

    Greedy: the case with the most combinations that are missing comes next; of equals the one whose values occur least
    in the cases chosen so far, then the first. So each further case adds something, values occur about equally often,
    and the choice depends on nothing but the order of the cases.
    """
    if strength == 0:
        return []
    all_of = [combinations_of(case, strength) for case in cases]
    missing = set().union(*all_of) if all_of else set()
    occurrences: Counter[tuple[str, Any]] = Counter()

    def rank(number: int) -> tuple[int, int, int]:
        return -len(all_of[number] & missing), sum(occurrences[value] for value in cases[number].items()), number

    heap = [rank(number) for number in range(len(cases))]
    heapq.heapify(heap)
    chosen = []
    while missing:
        number = heapq.heappop(heap)[-1]
        current = rank(number)
        if heap and current > heap[0]:  # ranks only grow: an old one is corrected when it reaches the top
            heapq.heappush(heap, current)
            continue
        chosen.append(number)
        missing -= all_of[number]
        occurrences.update(cases[number].items())
    return sorted(chosen)


def values_of(item: pytest.Item) -> Values:
    """Each parameter's value by the parameter's name: the id of its object, because values need not be hashable."""
    callspec = getattr(item, "callspec", None)
    return {} if callspec is None else {name: id(value) for name, value in callspec.params.items()}


def in_tier(items: Sequence[pytest.Item], tier: str) -> set[pytest.Item]:
    """The tests that run in the tier."""
    if tier == "nightly":
        return set(items)
    candidates = [item for item in items if item.get_closest_marker("nightly") is None]
    if tier == "quick":
        candidates = [item for item in candidates if item.get_closest_marker("quick")]
    chosen: set[pytest.Item] = set()
    functions: dict[str, list[pytest.Item]] = {}
    for item in candidates:
        functions.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in functions.values():
        grid = cases[0].get_closest_marker("grid")
        strength = {"test": 2, "quick": 1, **(grid.kwargs if grid else {})}[tier]
        if tier == "quick":  # instruction sets are in their order, the best one last
            best = values_of(cases[-1]).get("instructions")
            cases = [case for case in cases if values_of(case).get("instructions") == best]
        chosen.update(cases[number] for number in covering([values_of(case) for case in cases], strength))
    return chosen
