"""Checks of the Triton kernels' machine code, compiled for GPUs that need not be present.

codegen_worker.py compiles what calls would launch: in `make nightly` for sm_80, sm_90, sm_100 and AMD's gfx942, before
that every kernel for sm_90 in bfloat16. These tests check that nothing spills; that passes move 128 bits per access;
that offsets into maps are 64-bit; that nothing is computed in float64; that there are no atomics on floats; that
results passed between programs are released and acquired; and that products run on tensor cores.
"""

import ast
import hashlib
import json
import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from support import compiled
from support.paths import ROOT, SUPPORT

PASSES = (
    "moments_kernel",
    "scale_shift_act_kernel",
    "moments_backward_kernel",
    "scale_shift_act_backward_kernel",
    "scale_shift_act_mean_kernel",
)
ONE_MAP = ("moments_kernel", "scale_shift_act_mean_kernel")  # these kernels read one map
UNALIGNED = tuple(name.replace("kernel", "unaligned_kernel") for name in PASSES)  # rows not aligned to 16 bytes
NVIDIA = (80, 90, 100)
Row = dict[str, Any]

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
]


def cached_file(tier: str) -> Path:
    """Cache file of the rows, named by a hash of versions and of the syntax trees of files that affect launches."""
    folders = [ROOT / "se_fused" / name for name in ("backends", "functional", "ops")]
    files = [*(f for folder in folders for f in folder.rglob("*.py")), *(ROOT / "se_fused").glob("*.py")]
    key = hashlib.sha256(f"{version('triton')} {torch.__version__} {tier}".encode())
    for file in sorted([*files, SUPPORT / "codegen_worker.py"]):
        key.update(f"{file.name} {ast.dump(ast.parse(file.read_text()))}".encode())
    return compiled.cache("triton") / f"{key.hexdigest()[:24]}.json"


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> list[Row]:
    """Statistics of the compiled kernels: of all of them in `make nightly`, of some in `make test`."""
    tier = "nightly" if request.config.getoption("tier") == "nightly" else "test"
    stored = compiled.stored(cached_file(tier), lambda path: path.write_text(json.dumps(compiled_rows(tier))))
    found: list[Row] = json.loads(stored.read_text())
    return found


def compiled_rows(tier: str) -> list[Row]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {
        "TRITON_CACHE_DIR": str(compiled.cache("triton") / "kernels"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    which = "all" if tier == "nightly" else "some"
    command = [sys.executable, str(SUPPORT / "codegen_worker.py"), str(min(os.cpu_count() or 1, 8)), which]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    found: list[Row] = json.loads(run.stdout)
    return found


def name(row: Row) -> str:
    return "{kernel} {architecture} {dtype} {layout} {shape} {call}".format(**row)


def architectures(rows: list[Row]) -> set[int | str]:
    return {row["architecture"] for row in rows}


def everything(rows: list[Row]) -> bool:
    return architectures(rows) == {*NVIDIA, "gfx942"}


def test_everything_was_compiled(rows: list[Row]) -> None:
    kernels = {
        *PASSES,
        *UNALIGNED,
        "excitation_kernel",
        "excitation_backward_kernel",
        "l2_grouped_kernel",
        "conv1x1_kernel",
    }
    assert everything(rows) or architectures(rows) == {90}
    for architecture in architectures(rows):
        expected = kernels if architecture in NVIDIA else kernels - {"l2_grouped_kernel"}
        assert {row["kernel"] for row in rows if row["architecture"] == architecture} == expected
    for kernel in PASSES:
        seen = {(row["dtype"], row["layout"]) for row in rows if row["kernel"] == kernel and row["architecture"] == 90}
        assert len(seen) == 6 or not everything(rows), f"{kernel}: {seen}"


def test_nothing_spills(rows: list[Row]) -> None:
    spills = {name(row): (row["registers"], row["spill_bytes"]) for row in rows if row["spill_bytes"]}
    assert not spills


def test_resources_let_enough_programs_run(rows: list[Row]) -> None:
    """Registers (65536) and shared memory (163 KB on sm_80) of a multiprocessor suffice for four programs of a pass.

    The other kernels need room for one program.
    """
    for row in rows:
        if row["architecture"] not in NVIDIA:
            continue
        programs = 4 if row["kernel"] in (*PASSES, *UNALIGNED, "l2_grouped_kernel") else 1
        assert programs * row["registers"] * row["warps"] * 32 <= 65536, name(row)
        assert programs * row["shared_bytes"] <= 163 * 1024, name(row)


def test_registers_of_sums_are_those_of_the_rule(rows: list[Row]) -> None:
    """Splits fill whole rounds of programs, whose number follows from the registers that launch_configs.py states."""
    from se_fused.backends.triton import launch_configs

    checked = 0
    for row in rows:
        if row["architecture"] not in (80, 90):
            continue
        if row["kernel"] == "scale_shift_act_mean_kernel" and row["shape"] in ("256x56x56", "2048x7x7"):
            assert row["registers"] <= launch_configs.MEAN_REGISTERS or row["dtype"] == "float32", name(row)
        if row["kernel"] not in ("moments_kernel", "moments_backward_kernel"):
            continue
        maps = 1 if row["kernel"] == "moments_kernel" else 3 if row["from_sum"] else 2
        if row["dtype"] != "float32" and row["shape"] in ("256x56x56", "1024x14x14", "2048x7x7"):
            checked += 1
            assert row["registers"] <= launch_configs.SUM_REGISTERS[maps], name(row)
    assert checked > (20 if everything(rows) else 3)


def test_passes_move_128_bits(rows: list[Row]) -> None:
    """Passes access large tensors with 128 bits, in rows of ResNet-50's first stage and in all channels_last maps.

    Per kernel and step these are x, residual, dy or dr; no access in the maps' own dtype is narrower.
    """
    checked = 0
    for row in rows:
        aligned = row["shape"] == "256x56x56" or (row["layout"] == "channels_last" and "x" in row["shape"])
        if row["kernel"] not in (*PASSES, "l2_grouped_kernel") or not aligned:
            continue
        checked += 1
        assert row["loads"].get("128", 0) >= (
            2 if row["kernel"] in ONE_MAP or row["architecture"] not in NVIDIA else 4
        ), name(row)
        if row["kernel"] != "moments_kernel":  # moments_kernel writes sums
            assert row["stores"].get("128", 0) >= (2 if row["architecture"] in NVIDIA else 1), name(row)
        if row["dtype"] != "float32":  # 16-bit accesses would be single elements of a map
            assert not row["loads"].get("16") and not row["stores"].get("16"), name(row)
    assert checked > (80 if everything(rows) else 10)


def test_rows_that_start_anywhere_move_128_bits_too(rows: list[Row]) -> None:
    """Contiguous 14 x 14 and 7 x 7 maps in bfloat16 (rows start at multiples of 8 and 2 bytes) use 128-bit accesses."""
    found = [row for row in rows if row["kernel"] in UNALIGNED and row["dtype"] == "bfloat16"]
    found = [row for row in found if row["architecture"] in NVIDIA]
    if everything(rows):
        assert {row["shape"] for row in found} == {"1024x14x14", "2048x7x7"} and len(found) >= 16
    assert {row["kernel"] for row in found} == set(UNALIGNED)
    for row in found:
        assert row["loads"].get("128", 0) >= (1 if row["kernel"].replace("_unaligned", "") in ONE_MAP else 2), name(row)
        assert not row["loads"].get("16") and not row["stores"].get("16"), name(row)
        assert row["stores"].get("128", 0) >= (0 if row["kernel"] == "moments_unaligned_kernel" else 1), name(row)


def test_no_float64_and_no_float_atomics(rows: list[Row]) -> None:
    """A Python float does not widen a tensor to float64, and no sum depends on the order of atomic additions."""
    assert not [name(row) for row in rows if row["float64"]]
    assert not [name(row) for row in rows if row["float_atomics"]]


def test_offsets_of_maps_are_64_bit(rows: list[Row]) -> None:
    assert not [name(row) for row in rows if row["kernel"] in PASSES + UNALIGNED and row["narrow_offsets"]]


def test_phases_acquire_and_release(rows: list[Row]) -> None:
    """Each phase acquires what it waits for and releases its results, in the machine code of sm_80 and later. So do the
    two levels of a norm without squeeze-excite.

    An acquire invalidates the multiprocessor's L1; a release is a GPU-wide fence.
    """
    waits = {"excitation_kernel": 2, "excitation_backward_kernel": 2, "l2_grouped_kernel": 3}
    of_norms = {"moments_kernel": 2, "moments_backward_kernel": 2}
    norms = 0
    for row in rows:
        least = (waits if row["excitation"] else of_norms).get(row["kernel"])
        if least is None or row["architecture"] not in NVIDIA or row["call"] not in ("train", "infer"):
            continue
        norms += not row["excitation"]
        assert row["acquires"] >= least, name(row)
        assert row["releases"] >= least, name(row)
    assert norms == 2


def test_products_run_on_tensor_cores(rows: list[Row]) -> None:
    wanted = {80: "HMMA", 90: "HGMMA", 100: "UTC"}
    found = [row for row in rows if row["kernel"] == "conv1x1_kernel" and row["architecture"] in NVIDIA]
    assert len(found) == 22 if everything(rows) else found
    for row in found:
        assert any(wanted[row["architecture"]] in core for core in row["tensor_cores"]), name(row)
        assert row["loads"].get("128", 0) >= 8, name(row)
