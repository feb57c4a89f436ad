"""Covering arrays: few calls that have every combination of values of any two or three axes of a description.

The tiers (tiers.py) choose from cases that are listed. The description of a call (contract.py) has too many to list, so
the calls are constructed one at a time, as AETG does (Cohen, Dalal, Fredman and Patton, "The AETG System", IEEE
Transactions on Software Engineering 23(7), 1997): each begins with a combination that is missing and takes, axis by
axis, the value that adds the most missing combinations.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Rule:
    """Which values of some axes form a call together."""

    axes: tuple[str, ...]
    allows: Callable[..., bool]

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the rule allows the values, some of which may not be chosen yet."""
        if any(name not in values for name in self.axes):
            return True
        return self.allows(*(values[name] for name in self.axes))


class _Builder:
    """The combinations that are missing, and the search for calls that have them. Values are numbered over all axes."""

    def __init__(self, axes: Mapping[str, Sequence[Any]], rules: Sequence[Rule], strength: int, seed: int) -> None:
        self.axes, self.strength = axes, strength
        self.random = random.Random(seed)
        self.values = [(name, value) for name, values in axes.items() for value in values]
        ends = dict(zip(axes, itertools.accumulate(map(len, axes.values())), strict=True))
        self.numbers = {name: range(ends[name] - len(axes[name]), ends[name]) for name in axes}
        self.rules_of = {name: [rule for rule in rules if name in rule.axes] for name in axes}
        self.allows = cache(self._allows)
        self.missing = np.zeros((len(self.values),) * strength, bool)
        for names in itertools.permutations(axes, strength):
            self.missing[tuple(slice(r.start, r.stop) for r in (self.numbers[name] for name in names))] = True

    def _allows(self, rule: Rule, numbers: tuple[int, ...]) -> bool:
        return rule.allows(*(self.values[number][1] for number in numbers))

    def fits(self, chosen: dict[str, int], name: str, number: int) -> bool:
        """Whether the rules allow the value with those that are chosen."""
        for rule in self.rules_of[name]:
            numbers = [number if axis == name else chosen.get(axis) for axis in rule.axes]
            if None not in numbers and not self.allows(rule, tuple(numbers)):
                return False
        return True

    def leaves_a_choice(self, chosen: dict[str, int], name: str) -> bool:
        """Whether the axes that share a rule with the one just chosen still have a value."""
        others = {axis for rule in self.rules_of[name] for axis in rule.axes if axis not in chosen}
        return all(any(self.fits(chosen, axis, number) for number in self.numbers[axis]) for axis in others)

    def complete(self, chosen: dict[str, int], order: list[str]) -> dict[str, int] | None:
        """A call with the chosen values, or None if there is none."""
        left = [name for name in order if name not in chosen]
        if not left:
            return chosen
        name, have = left[0], list(chosen.values())
        numbers = self.numbers[name]
        gains = self.missing[np.ix_(numbers, *[have] * (self.strength - 1))].reshape(len(numbers), -1).sum(1)
        ranked = sorted(zip(-gains, (self.random.random() for _ in numbers), numbers, strict=True))
        for _, _, number in ranked:
            if self.fits(chosen, name, number):
                more = chosen | {name: number}
                found = self.complete(more, left[1:]) if self.leaves_a_choice(more, name) else None
                if found is not None:
                    return found
        return None

    def first_missing(self) -> dict[str, int] | None:
        """A combination that is missing, or None."""
        at = int(self.missing.argmax())
        numbers = [int(n) for n in np.unravel_index(at, self.missing.shape)]
        return {self.values[n][0]: n for n in numbers} if self.missing[tuple(numbers)] else None

    def is_allowed(self, chosen: dict[str, int]) -> bool:
        fits = all(self.fits(chosen, name, number) for name, number in chosen.items())
        return fits and all(self.leaves_a_choice(chosen, name) for name in chosen)

    def strike(self, chosen: dict[str, int]) -> int:
        """Take the combinations of the chosen values off the missing ones, and return how many there were."""
        at = np.ix_(*[list(chosen.values())] * self.strength)
        count = int(self.missing[at].sum())
        self.missing[at] = False
        return count


def covering_array(
    axes: Mapping[str, Sequence[Any]], rules: Sequence[Rule], strength: int, seed: int = 0, candidates: int = 4
) -> Iterator[dict[str, Any]]:
    """Calls that together have every combination of values of any ``strength`` axes that the rules allow.

    Args:
        axes: the values of each axis. They need not be hashable.
        rules: what makes a combination of values a call.
        seed: of the order in which axes are filled; the same seed gives the same calls.
        candidates: so many calls are constructed for each that is taken, the one with the most missing combinations.
    """
    builder = _Builder(axes, rules, strength, seed)
    while (start := builder.first_missing()) is not None:
        found = []
        for _ in range(candidates if builder.is_allowed(start) else 0):
            order = builder.random.sample(list(axes), len(axes))
            order.sort(key=lambda name: not builder.rules_of[name])  # axes with rules first: dead ends show early
            chosen = builder.complete(start, order)
            if chosen is None:
                break
            at = np.ix_(*[list(chosen.values())] * strength)
            found.append((int(builder.missing[at].sum()), len(found), chosen))
        if not found:
            builder.strike(start)
            continue
        _, _, best = max(found, key=lambda item: (item[0], -item[1]))
        builder.strike(best)
        yield {name: builder.values[best[name]][1] for name in axes}
