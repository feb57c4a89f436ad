"""Tests of conftest.py: how processes share the tests, and the settings made before CUDA starts."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

SHARDS = 3


def collected(shard: str) -> list[str]:
    file = "tests/backends/test_gpu.py"
    command = [sys.executable, "-m", "pytest", file, "--collect-only", "-q", "-p", "no:cacheprovider"]
    environment = os.environ | {"SE_FUSED_TEST_SHARD": shard}
    said = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=True)
    return [line for line in said.stdout.splitlines() if "::" in line]


@pytest.mark.nightly
def test_shards_are_the_whole_and_large_maps_are_in_one() -> None:
    """The shards contain each test once, and the four tests with 2^31 elements are in one shard.

    Each of them takes 17 GB, so they must not run at the same time.
    """
    whole = collected("")
    shards = [collected(f"{i}/{SHARDS}") for i in range(SHARDS)]
    assert sorted(itertools.chain(*shards)) == sorted(whole) and len(set(whole)) == len(whole)
    large = [[name for name in shard if "int32" in name] for shard in shards]
    assert sorted(map(len, large)) == [0, 0, 4]
    assert max(map(len, shards)) - min(map(len, shards)) <= 5


def test_cublas_is_told_to_be_deterministic() -> None:
    """conftest.py enables deterministic algorithms, so it must set this variable, or cuBLAS would warn."""
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")


def test_compiled_code_is_kept_by_instruction_set() -> None:
    """Each instruction set has its own cache, because torch.compile's does not distinguish them (conftest.py)."""
    found = set()
    for cap in ("default", "avx2"):
        environment = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
        code = "import os, conftest; print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
        said = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT / "tests", text=True, capture_output=True, check=True,
            env=environment | {"ATEN_CPU_CAPABILITY": cap, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        found.add(said.stdout.strip())
    assert len(found) == 2


def test_a_cap_of_the_run_stays(tmp_path: Path) -> None:
    """ATEN_CPU_CAPABILITY limits our kernels in every test, not only in the first."""
    (tmp_path / "test_caps.py").write_text(
        "import pytest\nfrom se_fused import backends\n\n\n@pytest.mark.parametrize('i', range(2))\n"
        "def test_cap(i):\n    assert backends.BACKENDS['cpu'].capability() == 'default'\n"
        "    backends.BACKENDS['cpu'].capability('')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "conftest", str(tmp_path)]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default", "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}"}
    said = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False)
    assert "2 passed" in said.stdout, said.stdout[-2000:]
