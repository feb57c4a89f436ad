"""Tests of measured launch choices: measured once and saved in a file, whose faults never stop a call."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from se_fused.backends.triton import launch_configs, passes, tuning
from se_fused.backends.triton.launch_configs import Device, Map, PassConfig

CPU = torch.device("cpu")


def timer(milliseconds: dict[Callable[[], Any], float]) -> Callable[[Callable[[], Any]], float]:
    def measure(run: Callable[[], Any]) -> float:
        run()
        return milliseconds[run]

    return measure


def ways() -> tuple[dict[str, Callable[[], Any]], list[str]]:
    called: list[str] = []
    return {name: (lambda name=name: called.append(name)) for name in ("a", "b", "c")}, called


def test_the_fastest_is_taken_and_remembered(tmp_path: Path) -> None:
    calls, called = ways()
    path = tmp_path / "deep" / "gpu.json"
    measure = timer(dict(zip(calls.values(), (3.0, 1.0, 2.0), strict=True)))
    assert tuning.fastest("key", calls, CPU, tuning.Cache(path), measure) == "b"
    assert called == ["a", "b", "c"]
    # The file decides, although another process measures other times.
    again = timer(dict(zip(calls.values(), (1.0, 3.0, 2.0), strict=True)))
    assert tuning.fastest("key", calls, CPU, tuning.Cache(path), again) == "b"
    assert called == ["a", "b", "c"]
    assert tuning.fastest("other", calls, CPU, tuning.Cache(path), again) == "a"
    assert json.loads(path.read_text()) == {"key": "b", "other": "a"}
    assert [p.name for p in path.parent.iterdir()] == ["gpu.json"]  # no temporary file is left


def test_a_remembered_name_that_is_gone_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    path.write_text('{"key": "z"}')
    calls, _ = ways()
    measure = timer(dict(zip(calls.values(), (3.0, 1.0, 2.0), strict=True)))
    assert tuning.fastest("key", calls, CPU, tuning.Cache(path), measure) == "b"


def test_two_processes_keep_each_others_choices(tmp_path: Path) -> None:
    one, two = (tuning.Cache(tmp_path / "gpu.json") for _ in range(2))
    one.put("first", "a")
    two.put("second", "b")
    assert json.loads((tmp_path / "gpu.json").read_text()) == {"first": "a", "second": "b"}


@pytest.mark.parametrize("text", ["{", "[1]", '{"key": 3}', ""])
def test_a_damaged_file_is_said_and_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(text)
    with pytest.warns(UserWarning, match=r"gpu\.json is not readable and will be overwritten"):
        cache = tuning.Cache(path)
    with pytest.warns(UserWarning, match="not readable"):
        cache.put("key", "a")
    assert tuning.Cache(path).get("key") == "a"


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write to read-only folders")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IREAD | stat.S_IEXEC)
    with pytest.warns(UserWarning, match="was not saved"):
        tuning.Cache(tmp_path / "gpu.json").put("key", "a")


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    cache = tuning.Cache(tmp_path / "elsewhere.json")
    cache.path = tmp_path / "cache" / "gpu.json"
    with pytest.warns(UserWarning, match=r"was not saved in .*gpu\.json|not readable"):
        cache.put("key", "a")
    assert cache.get("key") == "a"  # the choice still holds in this process


def test_a_candidate_that_fails_is_left_out(tmp_path: Path) -> None:
    def fails() -> None:
        raise RuntimeError("out of resource: shared memory")

    def works() -> None:
        pass

    def measure(run: Callable[[], Any]) -> float:
        run()
        return 1.0

    with pytest.warns(UserWarning, match="candidate big does not run here .out of resource"):
        choice = tuning.fastest("key", {"big": fails, "small": works}, CPU, tuning.Cache(tmp_path / "a.json"), measure)
    assert choice == "small"


def test_without_a_device_the_rule_decides() -> None:
    calls, called = ways()
    assert tuning.fastest("key", calls, CPU) == "a" and not called


def test_launch_shapes_are_measured_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With SE_FUSED_AUTOTUNE the candidates include the rule's shape, and the fastest one is launched."""
    asked: list[tuple[str, list[str]]] = []

    def fastest(key: str, candidates: dict[str, Any], device: torch.device) -> str:
        asked.append((key, list(candidates)))
        return list(candidates)[-1]

    monkeypatch.setattr(passes, "fastest", fastest)
    monkeypatch.setattr(passes, "can_measure", lambda device: True)
    from se_fused.backends.triton.launch import recording

    def launched() -> dict[str, Any]:
        x = torch.empty(128, 64, 56, 56, device="meta")
        with recording(dry=True) as launches:
            passes.launch_moments(x, passes.map_of(x), True, None)
        return launches[0].arguments

    plain = launched()
    assert not asked
    monkeypatch.setenv("SE_FUSED_AUTOTUNE", "1")
    tuned = launched()
    ((key, candidates),) = asked
    assert key.startswith("moments Map(n=128, c=64, s=3136") and len(candidates) == len(set(candidates)) > 5
    assert str(tuned["BLOCK_CHANNELS"]) in candidates[-1] and str(tuned["BLOCK_POSITIONS"]) in candidates[-1]
    assert (plain["BLOCK_CHANNELS"], plain["BLOCK_POSITIONS"]) != (tuned["BLOCK_CHANNELS"], tuned["BLOCK_POSITIONS"])


MAPS = [
    Map(n, c, s, channels_last, itemsize)
    for n in (1, 7, 128)
    for c in (1, 3, 64, 2048)
    for s in (1, 49, 196, 3136, 1_000_000)
    for channels_last in (True, False)
    for itemsize in (2, 4)
]


@pytest.mark.parametrize("sums", [True, False])
@pytest.mark.parametrize("tensors", [1, 2])
def test_rules_make_sense_for_any_map(tensors: int, sums: bool) -> None:
    """Tile sizes are powers of two and whole mask bytes, splits cover each position once, and neighbours can run."""
    for m in MAPS:
        rule = launch_configs.pass_config(m, launch_configs.H200, tensors, sums)
        for shape in (rule, *launch_configs.neighbours(rule, m)):
            assert shape.channels & (shape.channels - 1) == 0 and shape.positions & (shape.positions - 1) == 0, (
                m,
                shape,
            )
            assert (shape.channels if m.channels_last else shape.positions) % 8 == 0, (m, shape)
            assert shape.span % shape.positions == 0
            assert (shape.splits(m) - 1) * shape.span < m.s <= shape.splits(m) * shape.span
            assert shape.splits(m) <= 256 or not sums or shape != rule
        assert rule.channels * rule.positions <= 16384


@pytest.mark.parametrize("device", [launch_configs.H200, Device(108, 40 * 2**20), Device(16, 4 * 2**20)])
def test_groups_fit_into_l2(device: Device) -> None:
    """Three groups fit into 75 % of L2, and a group has as many tiles as programs or more, so that none waits."""
    grouped = 0
    for m in MAPS:
        plan = launch_configs.l2_grouped_config(m, device)
        if plan is None:
            continue
        grouped += 1
        assert m.nbytes > device.l2_bytes // 2
        assert 3 * plan.group * m.nbytes / m.n <= 0.75 * device.l2_bytes
        assert plan.group * launch_configs.cdiv(m.c, plan.passes.channels) * plan.passes.splits(m) >= plan.programs
    assert grouped >= 4


def test_the_stages_of_resnet50_are_grouped_where_they_pass_l2() -> None:
    """On an H200, bfloat16 stages with N = 128 of 206, 103 and 51 MB are grouped; 26 MB stay in L2 between launches."""
    stages = [Map(128, c, s, True, 2) for c, s in ((256, 3136), (512, 784), (1024, 196), (2048, 49))]
    plans = [launch_configs.l2_grouped_config(m, launch_configs.H200) for m in stages]
    assert [plan and plan.group for plan in plans] == [6, 10, 17, None]
    assert PassConfig(64, 64, 128, 4) == plans[0].passes  # 128 bytes of a row; 16 KB per tile


def test_sums_are_split_into_few_programs() -> None:
    """Programs of sums run in few rounds, and their number stays below 12 per multiprocessor, because the excitation
    reads the sums of each split."""

    def splits(c: int, s: int, channels_last: bool, tensors: int, registers: int | None = None) -> int:
        m = Map(128, c, s, channels_last, 2)
        return launch_configs.pass_config(m, launch_configs.H200, tensors, True, registers).splits(m)

    assert [splits(256, 3136, True, tensors) for tensors in (1, 2)] == [2, 3]  # without the limit 2 and 7
    assert [splits(256, 3136, False, tensors) for tensors in (1, 2)] == [1, 1]
    assert splits(256, 3136, True, 3, launch_configs.MEAN_REGISTERS) == 3
    assert [splits(2048, 49, True, tensors) for tensors in (1, 2)] == [1, 1]
