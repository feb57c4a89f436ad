"""The op contract for sm_90's machine code of the Triton kernels, which benchmarks/gpu/sass executes on the CPU.

Triton's interpreter (test_contract.py) runs the kernels as Triton means them. Here runs what Triton and ptxas made of
them, with tensor cores and ldmatrix. It needs no GPU and no nvcc. tests/backends/cuda/test_machine_code.py is its twin.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT, SUPPORT

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
ELEMENTS = 600
STRENGTHS = {"quick": 1, "test": 1, "nightly": 2}
PARTS = 2


def ran(folder: Path, *arguments: object) -> Any:
    """What the worker prints, run without the interpreter and with its own cache of compiled kernels."""
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "SE_FUSED_AUTOTUNE")}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "TRITON_CACHE_DIR": str(folder)}
    command = [sys.executable, str(SUPPORT / "triton_machine_code.py"), *map(str, arguments)]
    worker = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert worker.returncode == 0, worker.stderr[-4000:]
    return json.loads(worker.stdout)


@pytest.mark.parametrize("part", range(PARTS))
def test_calls(part: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A covering array of calls, in two parts, because compiling takes most of the time."""
    strength = STRENGTHS[request.config.getoption("tier")]
    found = ran(tmp_path, strength, ELEMENTS, f"{part}/{PARTS}")
    assert found["calls"] >= 7
    assert not found["failed"], "\n".join(f"{name}: {error}" for name, error in found["failed"].items())


def test_norms_in_two_orders(tmp_path: Path) -> None:
    """The results of a norm without squeeze-excite do not depend on which programs arrive last and merge, and the
    counters of arrivals are zero afterwards."""
    wrong = ran(tmp_path, "norms")
    assert not wrong, wrong
