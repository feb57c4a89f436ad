"""What every test run rests on: how processes share the tests, and what is set before CUDA starts."""

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


@pytest.mark.slow
def test_shards_are_the_whole_and_large_maps_are_in_one() -> None:
    """Four maps of 2^31 elements take 17 GB each: never at once."""
    whole = collected("")
    shards = [collected(f"{i}/{SHARDS}") for i in range(SHARDS)]
    assert sorted(itertools.chain(*shards)) == sorted(whole) and len(set(whole)) == len(whole)
    large = [[name for name in shard if "int32" in name] for shard in shards]
    assert sorted(map(len, large)) == [0, 0, 4]
    assert max(map(len, shards)) - min(map(len, shards)) <= 5


def test_cublas_is_told_to_be_deterministic() -> None:
    """conftest.py turns deterministic algorithms on; cuBLAS warns where this is not set."""
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")


def test_compiled_code_is_kept_by_instruction_set() -> None:
    """torch.compile's own cache gives one set's code to another (conftest.py)."""
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


@pytest.mark.slow
def test_a_cap_of_the_run_stays(tmp_path: Path) -> None:
    """ATEN_CPU_CAPABILITY holds for our kernels in every test, not in the first alone."""
    (tmp_path / "test_caps.py").write_text(
        "import pytest\nfrom se_fused import backends\n\n\n@pytest.mark.parametrize('i', range(2))\n"
        "def test_cap(i):\n    assert backends.BACKENDS['cpu'].capability() == 'default'\n"
        "    backends.BACKENDS['cpu'].capability('')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "conftest", str(tmp_path)]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default", "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}"}
    said = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False)
    assert "2 passed" in said.stdout, said.stdout[-2000:]
