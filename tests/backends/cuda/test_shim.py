"""Tests of the shim that runs CUDA kernels on the CPU: correct kernels pass in both orders, and each fault is found."""

import subprocess
from pathlib import Path

import pytest
from support import compiled, shim_library

pytestmark = pytest.mark.skipif(shim_library.why_not() is not None, reason=str(shim_library.why_not()))


@pytest.fixture(scope="module")
def program() -> Path:
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror"]
    return compiled.build([shim_library.SHIM / "selftest.cpp"], flags)


@pytest.mark.parametrize("what", ["ok", "faults"])
def test_selftest(program: Path, what: str) -> None:
    said = subprocess.run([str(program), what], text=True, capture_output=True, check=False, timeout=120)
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-2000:]
