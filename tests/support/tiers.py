"""Which tests run in `make quick`, `make test` and `make nightly`: a tier holds the tests of the tiers before it.

A test marked ``nightly`` or ``quick`` belongs to that tier; any other to ``test``. A parametrised test runs its full
product of parameters in ``nightly``. In ``test`` it runs in so many cases that each pair of values of any two
parameters occurs in one of them, in ``quick`` so many that each value does, with the best instruction set alone.
``grid(test=3, quick=2)`` asks for combinations of as many parameters instead of 2 and 1.

Why pairs: few faults need a combination of three values. In seven studies of failures, one or two parameters triggered
47 to 97 % (76 % on average), up to three 75 to 99 % (91 %): Kuhn, Kacker and Lei, "Estimating t-Way Fault Profile
Evolution During Testing", COMPSAC 2016, table I. Tests whose code is chosen by three parameters have ``grid(test=3)``.
tests/mutants shows what each tier finds.
"""

import heapq
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pytest

TIERS = ("quick", "test", "nightly")
Values = dict[str, Any]  # of one case: the name of each parameter, and its value or the value's number
Combination = frozenset[tuple[str, Any]]


def combinations_of(case: Values, strength: int) -> set[Combination]:
    """Every choice of ``strength`` parameters of the case, with their values; of fewer parameters, all of them."""
    return {frozenset(chosen) for chosen in combinations(case.items(), min(strength, len(case)))}


def covering(cases: Sequence[Values], strength: int) -> list[int]:
    """The numbers of cases that together have every combination of values of any ``strength`` parameters.

    Greedy: the case with the most combinations that are missing comes next, the first of equals. So each further
    case adds something, and the choice depends on nothing but the order of the cases.
    """
    all_of = [combinations_of(case, strength) for case in cases]
    missing = set().union(*all_of) if all_of else set()
    # what a case adds only shrinks: a stale entry is corrected when it reaches the top
    heap = [(-len(found), number) for number, found in enumerate(all_of)]
    heapq.heapify(heap)
    chosen = []
    while missing:
        _, number = heapq.heappop(heap)
        adds = len(all_of[number] & missing)
        if heap and (-adds, number) > heap[0]:
            heapq.heappush(heap, (-adds, number))
            continue
        chosen.append(number)
        missing -= all_of[number]
    return sorted(chosen)


def values_of(item: pytest.Item) -> Values:
    """The number of each parameter's value, by the parameter's name."""
    callspec = getattr(item, "callspec", None)
    return {} if callspec is None else dict(callspec.indices)


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
        if tier == "quick":  # the last instruction set is the best
            best = max(values_of(case).get("instructions", 0) for case in cases)
            cases = [case for case in cases if values_of(case).get("instructions", best) == best]
        chosen.update(cases[number] for number in covering([values_of(case) for case in cases], strength))
    return chosen
