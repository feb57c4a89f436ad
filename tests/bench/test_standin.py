"""The stand-in device of benchmarks/standin, and the tables of benchmarks/host_network.py."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.compiled import COMPILER
from support.paths import ROOT
from torch import Tensor, nn

from benchmarks import host_network, host_parts

pytest.importorskip("timm")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
NETWORKS = host_network.NETWORKS


def worker(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.support.standin_worker", *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    done = worker()
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout)


# ---- the device
@needs_compiler
@pytest.mark.parametrize("name", NETWORKS)
def test_results_and_gradients_have_the_forms_of_the_cpu(found: dict[str, Any], name: str) -> None:
    here, cpu = found["forms"][name]["standin"], found["forms"][name]["cpu"]
    assert len(cpu) > 100 and cpu[""][0] == [2, 1000] and "gradient of x" in cpu
    assert here == cpu


@needs_compiler
def test_launches_are_counted(found: dict[str, Any]) -> None:
    passes = ("moments", "scale_shift_act", "excitation", "moments_backward", "scale_shift_act_backward",
              "excitation_backward")  # fmt: skip
    block = found["block"]
    assert {name: block[f"se_fused {name}"] for name in passes} == dict.fromkeys(passes, 1)
    for row in found["launches"].values():
        assert row["launched"]["convolution"] <= row["layers"]["Conv2d"] and row["allocations"] > 100
    timm, ours = found["launches"]["timm"], found["launches"]["se_fused"]["launched"]
    assert timm["launched"]["convolution"] == timm["layers"]["Conv2d"]
    assert timm["launched"]["batch_norm"] == timm["layers"]["norms"]
    assert ours["se_fused moments"] == 20 and ours["se_fused excitation"] == 8 and "batch_norm" not in ours


@needs_compiler
def test_nothing_is_computed_and_no_memory_is_read(found: dict[str, Any]) -> None:
    errors = found["errors"]
    assert errors["copy"].startswith("RuntimeError: the stand-in device computes nothing")
    assert errors["print"].startswith("NotImplementedError: Could not run 'aten::")
    assert errors["item"].startswith("NotImplementedError: Could not run 'aten::_local_scalar_dense'")
    assert errors["other operator"].startswith("NotImplementedError: Could not run 'aten::erf.out'")
    assert worker("read").returncode == -signal.SIGSEGV


@needs_compiler
def test_autocast_runs_and_frames_are_named(found: dict[str, Any]) -> None:
    assert found["errors"]["autocast"] == "no error"
    assert found["frames"] == 45


@needs_compiler
def test_pointers_are_aligned_and_the_choice_of_backends_is_restored(found: dict[str, Any]) -> None:
    assert found["aligned"] and found["restored"]


# ---- parts
CALLGRIND = """\
events: Ir
fl=(1) ???
ob=(1) /usr/lib/libpython3.11.so.1.0
fn=(1) _PyEval_EvalFrameDefault'se_part_1
0 100
cob=(2) /lib/libc.so.6
cfn=(2) malloc
calls=3 0
0 30
fn=(3) _PyEval_EvalFrameDefault'se_part_2
0 50
cob=(2)
cfn=(2)
calls=1 0
0 10
ob=(2)
fn=(2)
0 40
ob=(3) /torch/lib/libtorch_cpu.so
fn=(4) torch::autograd::Engine::run()
0 7
cfn=(5) c10::Dispatcher::call()
calls=1 0
0 5
fn=(5)
0 5
ob=(4) frames
fn=(6) se_hook
0 1000
"""


def test_parts_sum_to_the_total_and_shared_functions_go_to_their_callers(tmp_path: Path) -> None:
    file = tmp_path / "callgrind"
    file.write_text(CALLGRIND)
    found = host_parts.parts(file)
    names = list(host_parts.FRAMES)
    assert {part: count for part, count in found.items() if count} == {
        names[1]: 130, names[2]: 60, "autograd": 7, "dispatcher": 5,
    }  # fmt: skip


# ---- passes
def test_the_mode_is_set_outside_of_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """``train()`` of SE-ResNet50 takes a tenth of a step's instructions."""
    events: list[str] = []

    class Net(nn.Linear):
        def train(self, mode: bool = True) -> "Net":
            events.append("train" if mode else "eval")
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            events.append("call" if self.training else "call in eval")
            return super().forward(x)

    @contextmanager
    def region(name: str) -> Iterator[None]:
        events.append(name)
        yield
        events.append("end")

    monkeypatch.setattr(F, "cross_entropy", lambda y, target: y.sum())
    host_network.run_passes(Net(3, 2), torch.ones(2, 3), region)
    assert events == ["eval", "inference", "call in eval", "end", "train", "forward", "call", "end", "backward", "end",
                      "step", "call", "end"]  # fmt: skip


# ---- tables
def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    def row(instructions: float) -> dict[str, host_network.Count]:
        return {
            "forward": host_network.Count(instructions, {"add": 2, "mul": 1}, 9, dict.fromkeys(host_parts.PARTS, 0))
        }

    counts = {"timm": row(2e6), "se_fused": row(3e6)}
    counts["se_fused"]["forward"].parts["dispatcher"] = 500_000
    assert host_network.count_rows(counts)[1] == ["se_fused", "forward", "3.00", "1.50", "3", "9"]
    assert host_network.part_rows(counts) == [["dispatcher", "0.00", "0.50"]]
    turns = [{kind: {"timm": 1.0, "se_fused": 1.5} for kind in host_network.PASSES} for _ in range(3)]
    rows = host_network.time_rows(("timm", "se_fused"), turns)
    assert rows[4] == ["se_fused", "inference", "1500.00", "1.50 (1.50 to 1.50)"]
    host_network.show("Title", ["a", "b"], [["x", "1"]], 1, markdown=True)
    assert capsys.readouterr().out == "Title\n\n| a | b |\n| --- | ---: |\n| x | 1 |\n\n"
