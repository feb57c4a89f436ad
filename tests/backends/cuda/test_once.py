"""Tests of the once-per-kernel-and-device initialisation (csrc/cuda/once.h) with several threads. They need no CUDA."""

import subprocess
from pathlib import Path

import pytest
from support import shim_library
from support.paths import SUPPORT

pytestmark = pytest.mark.skipif(shim_library.why_not() is not None, reason=str(shim_library.why_not()))


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_once_per_kernel(sanitizer: str, tmp_path: Path) -> None:
    program, source = tmp_path / "once", SUPPORT / "cuda_once.cpp"
    flags = ["-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", f"-fsanitize={sanitizer}"]
    built = subprocess.run([str(shim_library.COMPILER), *flags, "-o", program, source], capture_output=True, text=True)
    if "cannot find" in built.stderr:
        pytest.skip(f"the compiler has no sanitizer for {sanitizer}")
    assert built.returncode == 0, built.stderr
    said = subprocess.run([program], text=True, capture_output=True, check=False, timeout=120)
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-2000:]
