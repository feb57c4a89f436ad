"""Tests of the once-per-kernel-and-device initialisation (csrc/cuda/once.h) with several threads. They need no CUDA."""

import subprocess

import pytest
from support import compiled, shim_library
from support.paths import SUPPORT

pytestmark = pytest.mark.skipif(shim_library.why_not() is not None, reason=str(shim_library.why_not()))


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_once_per_kernel(sanitizer: str) -> None:
    extra = ["-pthread", f"-fsanitize={sanitizer}"]
    flags = ["-std=c++20", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", *extra]
    try:
        program = compiled.build([SUPPORT / "cuda_once.cpp"], flags, extra)
    except subprocess.CalledProcessError as error:
        if "cannot find" in error.stderr:
            pytest.skip(f"the compiler has no sanitizer for {sanitizer}")
        raise
    said = subprocess.run([program], text=True, capture_output=True, check=False, timeout=120)
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-2000:]
