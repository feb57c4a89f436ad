"""What the compiler makes of the Triton kernels, read from machine code, for GPUs that need not be there.

codegen_worker.py compiles what calls would launch for sm_80, sm_90, sm_100 and AMD's gfx942. Held here: nothing spills;
passes move 128 bits per access; offsets of maps are 64-bit; nothing is computed in float64; no atomics on
floats; what one program waits for is acquired and what it leaves is released; products run on tensor cores.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
from support import compiled
from support.paths import ROOT, SUPPORT

PASSES = (
    "moments_kernel",
    "scale_shift_act_kernel",
    "moments_backward_kernel",
    "scale_shift_act_backward_kernel",
    "scale_shift_act_mean_kernel",
)
ONE_MAP = ("moments_kernel", "scale_shift_act_mean_kernel")  # that they read
UNALIGNED = tuple(name.replace("kernel", "unaligned_kernel") for name in PASSES)  # contiguous rows off 16 bytes
NVIDIA = (80, 90, 100)
Row = dict[str, Any]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {
        "TRITON_CACHE_DIR": str(compiled.cache("triton")),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    command = [sys.executable, str(SUPPORT / "codegen_worker.py"), str(min(os.cpu_count() or 1, 8))]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    found: list[Row] = json.loads(run.stdout)
    return found


def name(row: Row) -> str:
    return "{kernel} {architecture} {dtype} {layout} {shape} {call}".format(**row)


def test_everything_was_compiled(rows: list[Row]) -> None:
    kernels = {
        *PASSES,
        *UNALIGNED,
        "excitation_kernel",
        "excitation_backward_kernel",
        "l2_grouped_kernel",
        "conv1x1_kernel",
    }
    for architecture in NVIDIA:
        assert {row["kernel"] for row in rows if row["architecture"] == architecture} == kernels
    assert {row["kernel"] for row in rows if row["architecture"] == "gfx942"} == kernels - {"l2_grouped_kernel"}
    for kernel in PASSES:
        seen = {(row["dtype"], row["layout"]) for row in rows if row["kernel"] == kernel and row["architecture"] == 90}
        assert len(seen) == 6, f"{kernel}: {seen}"


def test_nothing_spills(rows: list[Row]) -> None:
    spills = {name(row): (row["registers"], row["spill_bytes"]) for row in rows if row["spill_bytes"]}
    assert not spills


def test_resources_let_enough_programs_run(rows: list[Row]) -> None:
    """A multiprocessor has 65536 registers and (sm_80) 163 KB of shared memory: four programs of a pass, or one."""
    for row in rows:
        if row["architecture"] not in NVIDIA:
            continue
        programs = 4 if row["kernel"] in (*PASSES, *UNALIGNED, "l2_grouped_kernel") else 1
        assert programs * row["registers"] * row["warps"] * 32 <= 65536, name(row)
        assert programs * row["shared_bytes"] <= 163 * 1024, name(row)


def test_passes_move_128_bits(rows: list[Row]) -> None:
    """Rows of ResNet-50's first stage, and all channels_last maps. The big tensors' loads are 128-bit, whatever else is
    there: per kernel and step x, residual, dy or dr, and no access of the maps' own dtype is narrower."""
    checked = 0
    for row in rows:
        aligned = row["shape"] == "256x56x56" or (row["layout"] == "channels_last" and "x" in row["shape"])
        if row["kernel"] not in (*PASSES, "l2_grouped_kernel") or not aligned:
            continue
        checked += 1
        assert row["loads"].get("128", 0) >= (
            2 if row["kernel"] in ONE_MAP or row["architecture"] not in NVIDIA else 4
        ), name(row)
        if row["kernel"] != "moments_kernel":  # which writes sums
            assert row["stores"].get("128", 0) >= (2 if row["architecture"] in NVIDIA else 1), name(row)
        if row["dtype"] != "float32":  # 16-bit accesses would be single elements of a map
            assert not row["loads"].get("16") and not row["stores"].get("16"), name(row)
    assert checked > 80


def test_rows_that_start_anywhere_move_128_bits_too(rows: list[Row]) -> None:
    """Contiguous 14 x 14 and 7 x 7 in bfloat16: rows start at multiples of 8 and of 2 bytes."""
    found = [row for row in rows if row["kernel"] in UNALIGNED and row["dtype"] == "bfloat16"]
    found = [row for row in found if row["architecture"] in NVIDIA]
    assert {row["shape"] for row in found} == {"1024x14x14", "2048x7x7"} and len(found) >= 20
    for row in found:
        assert row["loads"].get("128", 0) >= (1 if row["kernel"].replace("_unaligned", "") in ONE_MAP else 2), name(row)
        assert not row["loads"].get("16") and not row["stores"].get("16"), name(row)
        assert row["stores"].get("128", 0) >= (0 if row["kernel"] == "moments_unaligned_kernel" else 1), name(row)


def test_no_float64_and_no_float_atomics(rows: list[Row]) -> None:
    """A Python float beside a tensor must not widen it; sums must not depend on who comes first."""
    assert not [name(row) for row in rows if row["float64"]]
    assert not [name(row) for row in rows if row["float_atomics"]]


def test_offsets_of_maps_are_64_bit(rows: list[Row]) -> None:
    assert not [name(row) for row in rows if row["kernel"] in PASSES + UNALIGNED and row["narrow_offsets"]]


def test_phases_acquire_and_release(rows: list[Row]) -> None:
    """Machine code of sm_80 and later: an acquire drops the multiprocessor's L1, a release is a GPU-wide fence."""
    for row in rows:
        if row["architecture"] not in NVIDIA or row["kernel"] not in (
            "excitation_kernel",
            "excitation_backward_kernel",
            "l2_grouped_kernel",
        ):
            continue
        without_excitation = row["kernel"] == "excitation_kernel" and not row["tensor_cores"]
        waits = {
            "excitation_kernel": 2,
            "excitation_backward_kernel": 1 if not row["tensor_cores"] else 2,
            "l2_grouped_kernel": 3,
        }
        if without_excitation:  # one phase
            assert row["acquires"] == 0, name(row)
            continue
        assert row["acquires"] >= waits[row["kernel"]], name(row)
        assert row["releases"] >= waits[row["kernel"]], name(row)


def test_products_run_on_tensor_cores(rows: list[Row]) -> None:
    wanted = {80: "HMMA", 90: "HGMMA", 100: "UTC"}
    found = [row for row in rows if row["kernel"] == "conv1x1_kernel" and row["architecture"] in NVIDIA]
    assert len(found) == 22
    for row in found:
        assert any(wanted[row["architecture"]] in core for core in row["tensor_cores"]), name(row)
        assert row["loads"].get("128", 0) >= 8, name(row)
