"""The tiers of tests (support/tiers.py): what `make quick` and `make test` leave out of the full product."""

import itertools
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from support.tiers import TIERS, combinations_of, covering, in_tier

SIZES = {"shape": 9, "dtype": 3, "layout": 2, "instructions": 3, "out_act": 4}
CASES = [dict(zip(SIZES, values, strict=True)) for values in itertools.product(*map(range, SIZES.values()))]
pytestmark = pytest.mark.quick


@pytest.mark.parametrize(("strength", "at_most"), [(1, 9), (2, 40), (3, 150), (5, 648), (7, 648)])
def test_every_combination_is_covered_by_few_cases(strength: int, at_most: int) -> None:
    chosen = [CASES[number] for number in covering(CASES, strength)]
    wanted = set().union(*(combinations_of(case, strength) for case in CASES))
    assert set().union(*(combinations_of(case, strength) for case in chosen)) == wanted
    assert len(chosen) <= at_most


def test_a_test_without_parameters_is_one_case() -> None:
    assert covering([], 2) == [] == covering(CASES, 0)
    assert covering([{}], 2) == [0]


def test_values_occur_about_equally_often() -> None:
    """Two formats alternate over the options, though a second format for each option would add nothing."""
    cases = [{"format": i // 40, "option": i % 40} for i in range(80)]
    formats = Counter(cases[number]["format"] for number in covering(cases, 1))
    assert formats == {0: 20, 1: 20}


def test_cases_that_are_missing_from_the_product_are_not_needed() -> None:
    cases = [case for case in CASES if case["shape"] == 0 or case["dtype"] == 0]
    chosen = covering(cases, 2)
    assert len(chosen) < len(cases) / 3 and max(chosen) < len(cases)


@dataclass(frozen=True)
class Item:
    """As much of a pytest item as the tiers need."""

    nodeid: str
    marks: tuple[tuple[str, dict[str, int]], ...] = ()
    values: tuple[tuple[str, int], ...] = ()

    @property
    def callspec(self) -> SimpleNamespace:
        return SimpleNamespace(params=dict(self.values))

    def get_closest_marker(self, name: str) -> SimpleNamespace | None:
        return next((SimpleNamespace(kwargs=kwargs) for mark, kwargs in self.marks if mark == name), None)

    __hash__ = object.__hash__


def grid(name: str, sizes: dict[str, int], **marks: dict[str, int]) -> list[Any]:
    products = itertools.product(*map(range, sizes.values()))
    return [Item(f"{name}[{v}]", tuple(marks.items()), tuple(zip(sizes, v, strict=True))) for v in products]


PLAIN, QUICK, NIGHTLY = (Item("plain"), Item("quick", (("quick", {}),)), Item("nightly", (("nightly", {}),)))
SIZES_OF_THREE = {"a": 2, "instructions": 3, "b": 4}
PRODUCT = grid("product", SIZES_OF_THREE)
QUICK_PRODUCT = grid("quick-product", SIZES_OF_THREE, quick={})
STRONGER = grid("stronger", SIZES_OF_THREE, quick={}, grid={"test": 3, "quick": 2})
NIGHTLY_PRODUCT = grid("nightly-product", {"a": 3}, nightly={})
ITEMS: list[Any] = [PLAIN, QUICK, NIGHTLY, *PRODUCT, *QUICK_PRODUCT, *STRONGER, *NIGHTLY_PRODUCT]


@pytest.mark.parametrize(
    ("tier", "counts"),
    [
        ("quick", {"quick": 1, "quick-product": 4, "stronger": 8}),
        ("test", {"plain": 1, "quick": 1, "product": 12, "quick-product": 12, "stronger": 24}),
        (
            "nightly",
            {
                "plain": 1,
                "quick": 1,
                "nightly": 1,
                "product": 24,
                "quick-product": 24,
                "stronger": 24,
                "nightly-product": 3,
            },
        ),
    ],
)
def test_marks_decide_which_tests_are_in_a_tier(tier: str, counts: dict[str, int]) -> None:
    chosen = in_tier(ITEMS, tier)
    assert Counter(item.nodeid.partition("[")[0] for item in chosen) == counts
    if tier == "quick":
        best = [dict(item.values)["instructions"] for item in chosen if "instructions" in dict(item.values)]
        assert set(best) == {2}, "the best instruction set alone"


def test_each_tier_holds_the_one_before() -> None:
    quick, test, nightly = (in_tier([PLAIN, QUICK, NIGHTLY], tier) for tier in TIERS)
    assert quick < test < nightly
