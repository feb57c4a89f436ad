"""Run calls of the op contract on sm_90's machine code of the Triton kernels, and print what failed as JSON.

A process of its own, because the tests' process interprets Triton kernels. Arguments: the strength of the covering
array, the most elements of a map, and optionally I/N for a part of the calls; or "norms", for norms whose programs
arrive in two orders.
"""

import functools
import itertools
import json
import sys

import torch

from benchmarks.gpu import machine_code, triton_launches
from se_fused.backends.triton import memory
from se_fused.testing.verify import Case
from support import contract

NORMS = (
    ("channels_last", (10, 40, 4, 4), torch.float32),
    ("contiguous", (10, 16, 16, 16), torch.bfloat16),
    ("contiguous", (10, 64, 7, 7), torch.bfloat16),
    ("contiguous", (3, 40, 4, 4), torch.float32),
)
"""Two groups of samples and: two blocks of channels, one block, rows that are not aligned. At last programs whose rows
are of several samples, which form one group."""


def norms() -> dict[str, str]:
    """What is wrong with norms whose programs run forwards and backwards, by case: results whose bits depend on the
    order, or counters that are not zero afterwards."""
    wrong = {}
    for layout, shape, dtype in NORMS:
        case = Case("batch_norm_act", shape, dtype, layout)
        found = []
        for reverse in (False, True):
            with triton_launches.taken_over(functools.partial(machine_code.run, reverse=reverse)):
                found.append(contract.results(case))
            name = f"{layout} {shape} reverse={reverse}"
            counters = memory.kept_counters(torch.device("cpu"), 1)
            if counters.any():
                wrong[f"{name}, counters"] = f"{counters.count_nonzero()} of {counters.numel()} are not zero"
                counters.zero_()
            different = [k for k, (a, b) in enumerate(zip(found[0], found[-1], strict=True)) if not torch.equal(a, b)]
            if different:
                wrong[f"{name}, bits"] = f"results {different}"
    return wrong


def main(strength: int, elements: int, part: str = "0/1") -> int:
    first, parts = (int(number) for number in part.split("/"))
    failed, launched = {}, 0
    calls = contract.calls(elements, strength, contract.AXES)
    for number, (name, values) in enumerate(itertools.islice(calls, first, None, parts)):
        try:
            with triton_launches.taken_over(functools.partial(machine_code.run, reverse=bool(number % 2))):
                contract.meets(contract.case_of(values), "triton", "cpu")
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
        launched = number + 1
        print(name, failed.get(name, "ok"), file=sys.stderr, flush=True)
    print(json.dumps({"calls": launched, "failed": failed}))
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "norms":
        print(json.dumps(norms()))
        sys.exit(0)
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
