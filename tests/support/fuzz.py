"""Random calls for the op contract: the axes of contract.py with any sizes. `make fuzz` runs them until a time is over.

hypothesis draws the calls from a seed, and reduces a call that fails to the smallest one that it can find. Several
searches with different seeds may run side by side.
"""

import argparse
import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

pytest.importorskip("hypothesis", reason="hypothesis is in the extra se_fused[test]")
import hypothesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from se_fused.testing.case import ALL_OPS, Case
from support import contract
from support.lines import LINES, Line

BATCH = 250
"""Calls that one run of hypothesis draws; from the first failure on, the run reduces it."""
REDUCTION = 90.0
"""Seconds for that. A failing call is drawn 40 times before it counts, which takes long in an interpreter."""


# ---- random calls
@st.composite
def shapes(draw: st.DrawFn, largest: int) -> tuple[int, ...]:
    """(N, C, *spatial) with at most ``largest`` elements; one in twenty is a special shape of the contract."""
    if draw(st.integers(0, 19)) == 19:
        named = [s for s in contract.shapes(largest).values() if math.prod(s) <= largest]
        return draw(st.sampled_from(named))
    channels = draw(st.integers(1, 80 if largest < 5000 else 300))
    room = max(largest // channels, 1)
    spatial = []
    for _ in range(draw(st.integers(1, 3))):
        spatial.append(draw(st.integers(1, max(1, min(room, 70)))))
        room = max(room // spatial[-1], 1)
    return (draw(st.integers(1, max(1, min(room, 19)))), channels, *spatial)


@st.composite
def calls(draw: st.DrawFn, line: Line) -> dict[str, Any]:
    """The values of a call's axes, and of the backend's own."""
    values: dict[str, Any] = {"op": draw(st.sampled_from(ALL_OPS)), "shape": draw(shapes(line.budget.random_elements))}
    for name, choices in line.all_axes.items():
        if name in values:
            continue
        allowed = [value for value in choices if contract.is_allowed(values, name, value)]
        values[name] = draw(st.sampled_from(allowed))
        if name == "hidden" and len(allowed) > 1 and draw(st.booleans()):
            values[name] = draw(st.integers(2, 40))
    return values


# ---- the search
def meets(case: Case, line: Line) -> None:
    """Check one random call against the contract.

    Some of many calls have gradients whose error is chance for eager too: twice eager's error is no bound there. They
    may have what rounding of x changes in the exact gradient as well.
    """
    *few, most = contract.DRAWS
    for draws in few:
        with contextlib.suppress(contract.OutOfBound):
            return contract.passes(case, line.name, line.device, range(draws))
    contract.passes(case, line.name, line.device, range(most), conditioned=True)


@dataclass
class Search:
    """What a search found."""

    line: Line
    seed: int
    cases: int = 0
    seconds: float = 0.0
    failing: dict[str, Any] | None = None  # the values of the smallest call that fails
    problem: str = ""

    def __str__(self) -> str:
        rate = self.cases / max(self.seconds, 1e-9)
        return f"{self.line.name}, seed {self.seed}: {self.cases} cases in {self.seconds:.0f} s, {rate:.1f} per second"

    def report(self) -> str:
        """The search in words; of a failure, the smallest call as a command."""
        if self.failing is None:
            return f"{self}, all within the contract"
        own = {name: self.failing[name] for name in self.line.axes}
        call = f"again({self.line.name!r}, {own}, {spelled(contract.case_of(self.failing))})"
        command = f'PYTHONPATH=tests:. python -c "import torch; from support.fuzz import *; {call}"'
        return f"{self}, until a call failed: {self.problem}\n{command}"


def spelled(case: Case) -> str:
    """The case as Python, without the fields that have their default."""
    fields = {f.name: (getattr(case, f.name), f.default) for f in dataclasses.fields(case)}
    return f"Case({', '.join(f'{name}={value!r}' for name, (value, usual) in fields.items() if value != usual)})"


def search(
    line: Line,
    seed: int,
    cases: int | None = None,
    seconds: float = math.inf,
    progress: Callable[[Search], None] = lambda found: None,
) -> Search:
    """Run random calls on a backend, until one fails, ``cases`` have run, or the time is over."""
    found = Search(line, seed)
    start = time.monotonic()
    failed = math.inf  # when the first call failed

    def is_over() -> bool:
        found.seconds = time.monotonic() - start
        return found.seconds >= seconds or (cases is not None and found.cases >= cases)

    def one(values: dict[str, Any]) -> None:
        nonlocal failed
        if is_over() if found.failing is None else time.monotonic() > failed + REDUCTION:
            return
        try:
            with line.using(values):
                meets(contract.case_of(values), line)
        except Exception as error:
            failed = min(failed, time.monotonic())
            found.failing, found.problem = values, f"{type(error).__name__}: {error}"
            raise
        if found.failing is None:
            found.cases += 1
            progress(found)

    while found.failing is None and not is_over():
        left = BATCH if cases is None else min(BATCH, cases - found.cases)
        run = hypothesis.seed(f"{seed} {found.cases}")(
            settings(
                max_examples=left, deadline=None, database=None, print_blob=False, report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            )(given(calls(line))(one))
        )  # fmt: skip
        try:
            run()
        except Exception:
            if found.failing is None:
                raise
    is_over()
    return found


# ---- the command
def as_in_tests() -> None:
    """Set up the process as conftest.py sets up tests: Triton's interpreter, allocations that are filled with NaN."""
    import conftest  # noqa: F401 (sets variables that Triton reads when it is imported)

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def again(backend: str, own: dict[str, str], case: Case) -> None:
    """Check one call, as a report names it: ``own`` has the values of the backend's own axes."""
    as_in_tests()
    line = LINES[backend]
    with line.using(own):
        meets(case, line)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("make fuzz", description="random calls against the op contract")
    parser.add_argument("backend", choices=LINES)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--cases", type=int)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    as_in_tests()
    line = LINES[asked.backend]
    if (reason := line.why_not()) is not None:
        print(f"{line.name} cannot run here: {reason}", file=sys.stderr)
        return 2
    said = 0.0

    def progress(found: Search) -> None:
        nonlocal said
        if found.seconds >= said + 10:
            said = found.seconds
            print(found, flush=True)

    found = search(line, asked.seed, asked.cases, asked.seconds, progress)
    print(found.report())
    return 0 if found.failing is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
