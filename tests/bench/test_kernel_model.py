"""The model of the kernels' times: launches as the host code makes them, phases, limits, and predictions in a pack."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.paths import ROOT

from benchmarks.gpu import launches, machine_code, model
from benchmarks.gpu.predicted import Predictions, table
from benchmarks.gpu.sass.warp import LATENCY, Trace
from benchmarks.gpu.tickets import phases
from benchmarks.gpu.work.times import call

pytestmark = pytest.mark.skipif(machine_code.why_not() is not None, reason=str(machine_code.why_not()))
SHAPE = (16, 256, 14, 14)


def launched(mode: str, layout: str = "channels_last", shape: tuple[int, ...] = SHAPE) -> list[launches.Launched]:
    given = model.inputs(shape, layout, torch.bfloat16)
    return launches.recorded(lambda backend: call(mode, "cuda", given)())


def test_launches_are_those_of_the_host_code() -> None:
    train = launched("train")
    assert [launch.name for launch in train] == [
        "moments", "excitation", "scale_shift_act", "moments_backward", "excitation_backward",
        "scale_shift_act_backward",
    ]  # fmt: skip
    assert [launch.name for launch in launched("infer")] == ["cluster_fused"]
    assert all(launch.name in launch.symbol and launch.threads % 32 == 0 for launch in train)
    with pytest.raises(ZeroDivisionError), launches.taken_over(lambda launch: print(1 // 0)):
        call("squeeze", "cuda", model.inputs(SHAPE, "contiguous", torch.bfloat16))()


def test_a_sample_more_is_a_sample_more_of_work() -> None:
    """Issue and memory grow with the samples; a short launch is bound by latency."""
    few, many = (model.predict(launched("train", shape=(n, *SHAPE[1:]))[0], "train", (n, *SHAPE[1:]), torch.bfloat16)
                 for n in (16, 512))  # fmt: skip
    assert many.memory == pytest.approx(32 * few.memory)
    assert 16 * few.issue < many.issue < 40 * few.issue
    assert few.limit == "latency" and many.us > few.us
    assert max(many.issue, many.memory, many.latency) <= many.us <= many.issue + many.memory + many.latency + 3
    assert many.share == pytest.approx(many.memory / many.us)


def test_what_limits_a_launch() -> None:
    """A slower clock, fewer registers or slower memory show in the time that they limit, and in no other."""
    launch = launched("train")[0]
    base = model.predict(launch, "train", SHAPE, torch.bfloat16)

    def other(**change: float) -> model.Prediction:
        machine = dataclasses.replace(model.MACHINE, **change)
        return model.predict(launch, "train", SHAPE, torch.bfloat16, machine)

    assert other(copy=1.5e12).memory == pytest.approx(2 * base.memory) and other(copy=1.5e12).issue == base.issue
    assert other(clock=0.8775e9).issue == pytest.approx(2 * base.issue)
    assert other(memory=2000).latency > base.latency + 0.5 and other(memory=2000).issue == base.issue
    assert other(registers=32768).resident == base.resident // 2


def test_units() -> None:
    """The busiest unit decides; the rates are those of the CUDA Programming Guide."""

    def cycles(**units: int) -> float:
        trace = Trace()
        trace.units.update(units)
        return model.busy(trace)

    assert cycles(control=8) == 2
    assert cycles(alu=8) == 4 and cycles(imad=8) == 4
    assert cycles(fma=8) == 2 and cycles(fma=8, imad=8) == 4 and cycles(fma=24, imad=8) == 8
    assert cycles(xu=8) == 16


def test_phases_are_those_of_the_kernel() -> None:
    """Every tile of the excitation is in one phase, and phases wait for the ones before."""
    latency = {**LATENCY, "map": LATENCY["global"]}
    for launch in launched("train"):
        if not launch.name.startswith("excitation"):
            continue
        found = phases(launch, latency)
        waits = [phase.waits for phase in found]
        assert waits[0] == frozenset() and len(set(waits)) >= 2
        assert all(phase.tiles > 0 and phase.trace.cycles > LATENCY["atomic"] for phase in found)
        assert launch.blocks <= sum(phase.tiles for phase in found)


def test_predictions_travel_in_the_manifest(tmp_path: Path) -> None:
    row = {"backend": "cuda", "kernel": "moments", "mode": "train", "layout": "contiguous", "shape": [1, 2, 3, 4]}
    row |= {"us": 3.5, "share": 0.5}
    gate = {**row, "kernel": "excitation", "share": None}
    (tmp_path / "manifest.json").write_text(json.dumps({"predicted": [row, gate]}))
    found = Predictions(tmp_path)
    assert found.find("cuda", "moments", "train", "contiguous", (1, 2, 3, 4)) == ("percent", 50)
    assert found.find("cuda", "excitation", "train", "contiguous", (1, 2, 3, 4)) == ("us", 3.5)
    assert found.find("triton", "moments", "train", "contiguous", (1, 2, 3, 4)) is None
    assert found.find("cuda", "moments", "infer", "contiguous", (1, 2, 3, 4)) is None
    assert Predictions(tmp_path / "none").find("cuda", "moments", "train", "contiguous", (1, 2, 3, 4)) is None


def test_command() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "model", "--batch", "2", "--kernel"]
    ran = subprocess.run([*command, "moments"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "not measured" in ran.stdout
    assert len([line for line in ran.stdout.splitlines() if line.startswith("moments")]) == 16
    wrong = subprocess.run([*command, "moment"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 1 and "no launch of moment" in wrong.stderr


def test_table() -> None:
    rows = model.predictions(batch=2, stages=((64, 8, 8),), kernels=("excitation", "moments"))
    lines = table(rows)
    assert len(lines) == 1 + len(rows) == 7
    assert lines[0].split()[:3] == ["kernel", "layout", "mode"]
