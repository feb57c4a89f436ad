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

import pytest
from support.paths import ROOT, SUPPORT

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
ELEMENTS = 600
STRENGTHS = {"quick": 1, "test": 1, "nightly": 2}
PARTS = 2


@pytest.mark.parametrize("part", range(PARTS))
def test_calls(part: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A covering array of calls, in two parts, because compiling takes most of the time."""
    strength = STRENGTHS[request.config.getoption("tier")]
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "SE_FUSED_AUTOTUNE")}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "TRITON_CACHE_DIR": str(tmp_path)}
    script = SUPPORT / "triton_machine_code.py"
    command = [sys.executable, str(script), str(strength), str(ELEMENTS), f"{part}/{PARTS}"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    found = json.loads(ran.stdout)
    assert found["calls"] >= 7
    assert not found["failed"], "\n".join(f"{name}: {error}" for name, error in found["failed"].items())
