"""Remembered calls launch what ordinary ones do (plan_worker.py says how they are compared without a GPU)."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT, SUPPORT

pytestmark = [
    pytest.mark.quick,
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
]


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "SE_FUSED_AUTOTUNE")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), environment.get("PYTHONPATH", "")])
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, str(SUPPORT / "plan_worker.py")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_remembered_calls_launch_what_ordinary_calls_do(answer: dict[str, Any]) -> None:
    """Kernels, grids, arguments and results are those of JITFunction.run, also in a call after one that differs from it
    in one thing: a size, memory order, dtype, setting, an absent tensor, or an address that is no multiple of 16."""
    found = answer["comparisons"]
    assert not found["faults"], "\n".join(found["faults"])
    assert found["calls"] > 500 and found["repeated"] > 1000


def test_tools_and_other_versions_see_the_launches(answer: dict[str, Any]) -> None:
    """The first call of a kind, and calls under a launch hook or a debug mode, go through Triton; so do all calls if a
    version of Triton launches in another way, and se_fused.info() says so."""
    found = answer["switches"]
    assert found["first"] == found["hook"] == found["debug"] == found["another Triton"] == [True] * 6
    assert found["second"] == found["afterwards"] == [False] * 6
    assert "calls compiled kernels in another way" in found["info"]
    assert found["info afterwards"] == "remembered"


def test_copies_are_not_remembered(answer: dict[str, Any]) -> None:
    """A call that copies a parameter is more than its launches, so it runs as it is."""
    assert answer["copies"] == [True]


def test_number_of_plans(answer: dict[str, Any]) -> None:
    """No operation keeps more plans than the limit, also if threads make them at the same time."""
    assert answer["plans"] == [4, 0, 4]


def test_compiled_kernels(tmp_path: Path) -> None:
    """A kernel that Triton really compiled is launched with the arguments that JITFunction.run gives it."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(SUPPORT / "plan_worker.py"), "compile"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    ordinary, remembered = json.loads(run.stdout)
    assert ordinary == remembered and "x" in ordinary
