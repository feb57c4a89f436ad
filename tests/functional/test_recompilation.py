"""A batch of another size, such as an epoch's last one, needs no other compiled kernels.

recompilation_worker.py lists, without compiling, what each launch at each batch size would be compiled for: signature,
constants, and the properties by which Triton specialises arguments (a value of 1, divisibility by 16).
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from support.paths import ROOT, SUPPORT

from se_fused._formats import LAYOUTS

FULL, FEW = 256, 16
PARTIAL = (255, 251, 250, 240, 129, 128, 127, 100, 64, 33, 32, 17)
SMALL = (15, 8, 5, 3, 2, 1)
Keys = dict[int, set[str]]

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(scope="module")
def answers() -> dict[str, dict[str, dict[str, list[str]]]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    batches = ",".join(map(str, (FULL, FEW, *PARTIAL, *SMALL)))
    command = [sys.executable, str(SUPPORT / "recompilation_worker.py"), batches]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout)


@pytest.fixture(params=LAYOUTS)
def keys(request: pytest.FixtureRequest, answers: dict) -> dict[str, Keys]:
    """For each call, a dictionary from batch size to the keys of the kernels to compile."""
    return {
        call: {int(n): set(found) for n, found in answers[f"{call} {request.param == 'channels_last'}"]["ours"].items()}
        for call in ("train", "infer", "squeeze")
    }


def names(found: set[str]) -> set[str]:
    return {key.split("'")[1] for key in found}


def test_training_compiles_once(keys: dict[str, Keys]) -> None:
    """Training needs the same kernels at every batch size, except smaller excitation tiles for 16 samples and fewer."""
    train = keys["train"]
    assert len(train[FULL]) > 40
    assert not set().union(*(train[n] for n in PARTIAL)) - train[FULL]
    few = set().union(*(train[n] for n in (FEW, *SMALL)))
    assert names(few - train[FULL]) == {"excitation_kernel", "excitation_backward_kernel"}
    assert few <= train[FULL] | train[FEW]
    assert all(found == keys["squeeze"][FULL] for found in keys["squeeze"].values())


def test_inference_compiles_once_each_way(keys: dict[str, Keys]) -> None:
    """Inference compiles each path once; samples are grouped where x does not stay in L2, which depends on N."""
    infer = keys["infer"]
    assert not (infer[255] | infer[251]) - infer[FULL]
    ways = set().union(*(infer[n] for n in (FULL, *PARTIAL)))
    grouped = {key for key in ways if "l2_grouped_kernel" in key}
    assert grouped == {key for key in infer[FULL] if "l2_grouped_kernel" in key} and len(grouped) > 5
    assert ways - grouped <= infer[FULL] | infer[17]
    assert set().union(*(infer[n] for n in SMALL)) - grouped <= infer[FULL] | infer[FEW] | infer[1]
    assert names(infer[FEW] - ways) == {"excitation_kernel"}


def test_triton_specialises_as_we_say(answers: dict) -> None:
    """Two launches have the same key of ours if and only if they have the same key of Triton's launcher."""
    for call, found in answers.items():
        pairs = {
            (ours, theirs)
            for n, launches in found["ours"].items()
            for ours, theirs in zip(launches, found["triton"][n], strict=True)
        }
        assert len(pairs) == len({ours for ours, _ in pairs}) == len({theirs for _, theirs in pairs}), call
