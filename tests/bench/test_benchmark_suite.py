"""Tests of the benchmark suite: wrong results are not timed, missing packages are named, presets are complete."""

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path

import pytest
from support.paths import ROOT
from support.provenance import naming_folders

from se_fused.bench.providers.registry import BLOCK_PROVIDERS, NETWORK_PROVIDERS

BENCHMARKS = ROOT / "benchmarks"


def load(name: str):
    """A module from a file in benchmarks/, which is not a package."""
    spec = spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cases = load("cases")
TESTS = (
    "test_pass", "test_block", "test_conv1x1", "test_network", "test_convert", "test_host", "test_scaling",
    "test_network_scaling",
)  # fmt: skip


KNOWN = {
    "test_block": BLOCK_PROVIDERS,
    "test_scaling": BLOCK_PROVIDERS,
    "test_network": NETWORK_PROVIDERS,
    "test_network_scaling": NETWORK_PROVIDERS,
}


def suite(tmp_path: Path, *arguments: str, plugin: str = "") -> tuple[subprocess.CompletedProcess, dict | None]:
    """Run a part of the suite as a process, with a plugin that changes the library; returns process and results."""
    (tmp_path / "changed.py").write_text(plugin)
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "pytest", str(BENCHMARKS), "--benchmark-only", "--preset", "smoke", "-q", "-p",
               "no:cacheprovider", "-p", "changed", f"--benchmark-json={results}", *arguments]  # fmt: skip
    # With pytest-xdist's variables, pytest-benchmark would disable itself.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment["PYTHONPATH"] = f"{tmp_path}:{BENCHMARKS.parent}"
    done = subprocess.run(command, text=True, capture_output=True, cwd=tmp_path, env=environment)
    written = results.exists() and results.stat().st_size
    return done, json.loads(results.read_text()) if written else None


# ---- cases
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("preset", cases.PRESETS)
@pytest.mark.parametrize("test", TESTS)
def test_rows(test: str, preset: str, device: str):
    names, rows = cases.cases(test, preset, device)
    assert len(set(rows)) == len(rows) > 0
    assert {len(row) for row in rows} == {len(names)}
    for row in rows:
        given = dict(zip(names, row, strict=True))
        assert "candidate" not in given or given["candidate"] in KNOWN.get(test, (given["candidate"],))


def test_rows_of_one_workload_stand_together():
    """The rows of one workload follow each other, so that it is built, and its float64 truth computed, only once."""
    for test, about in (("test_block", 4), ("test_network", 5), ("test_convert", 6), ("test_scaling", 4)):
        for preset in cases.PRESETS:
            keys = [row[:about] for row in cases.cases(test, preset, "cpu")[1]]
            runs = 1 + sum(a != b for a, b in pairwise(keys))
            assert runs == len(set(keys)), (test, preset)


def test_ours_comes_first_and_plain_after_the_network():
    for test in ("test_block", "test_scaling"):
        rows = cases.cases(test, "default", "cpu")[1]
        seen = set()
        for *key, candidate in rows:
            assert candidate == "se_fused" or tuple(key) in seen
            seen.add(tuple(key))


def test_full_holds_what_was_asked_for():
    rows = cases.cases("test_network", "full", "cuda")[1]
    for network in ("seresnet50", "seresnet101", "seresnet152", "seresnext50_32x4d"):
        for batch in ("1", "8", "64", "256"):
            found = {row[5:] for row in rows if row[:3] == (network, "infer", batch)}
            assert {kind for *_, kind in found} == {"se", "plain"}
            candidates = {candidate for candidate, *_ in found}
            ways = {"compile", "compile max-autotune", "compile reduce-overhead"}
            assert {"se_fused", "eager", "tensorrt", *ways} <= candidates
        assert any(row[:2] == (network, "train") for row in rows)
    on_cpu = {row[5] for row in cases.cases("test_network", "full", "cpu")[1]}
    assert {"openvino", "onnxruntime", "compile freezing"} <= on_cpu
    ends = {axis: (values[0], values[-1]) for axis, values in cases.STUDIES.items()}
    assert ends.pop("samples") == (2, 512)
    assert ends == {"batch": (1, 512), "image": (64, 1024), "channels": (16, 4096), "positions": (1, 1_000_000)}


# ---- results
BLOCK = ("-k", "test_block and 2x64x14x14 and se-infer and channels_last and not bn_se and (eager or se_fused)")


def test_a_run_says_how_it_was_taken(tmp_path):
    done, results = suite(tmp_path, *BLOCK)
    assert done.returncode == 0, done.stdout
    about = results["se_fused"]
    assert about["preset"] == "smoke" and about["limits"]["cpu"]["copy"]
    assert about["command"].startswith("python -m pytest benchmarks --benchmark-only --preset smoke")
    assert "--benchmark-json=results.json" in about["command"] and not naming_folders(results)
    ours, eager = results["benchmarks"]
    assert ours["extra_info"]["candidate"] == "se_fused" and "ratio" not in ours["extra_info"]
    assert ours["extra_info"]["share_of_copy"].keys() == {"warm", "cold"}
    info = eager["extra_info"]
    assert info["ratio"]["to"] == "se_fused" and info["cold_ratio"]["n"] >= 5 and info["peak_bytes"] > 0
    assert info["seconds"]["median"] == pytest.approx(eager["stats"]["median"], rel=1e-6)
    assert info["counted_bytes"] == 3 * 2 * 64 * 14 * 14 * 4 and {"before", "after"} == info["telemetry"].keys()


WRONG = """
from se_fused import functional
right = functional.squeeze_excite
functional.squeeze_excite = lambda *args, **options: right(*args, **options) * 1.001
"""


def test_what_is_wrong_is_not_timed(tmp_path):
    done, results = suite(tmp_path, *BLOCK, plugin=WRONG)
    assert done.returncode == 1
    assert "differs from float64 in y" in done.stdout and "2 failed" in done.stdout  # eager has no reference then
    assert results is None or not results["benchmarks"]


MISSING = """
import sys
from se_fused.bench.providers import registry
right = registry.find_spec
registry.find_spec = lambda name: None if name == "openvino" else right(name)
"""


def test_a_missing_baseline_is_named(tmp_path):
    done, results = suite(tmp_path, "-k", "test_network and openvino and se", "-rs", plugin=MISSING)
    assert done.returncode == 0, done.stdout
    wanted = 'openvino is not installed: pip install "se_fused[bench]"'
    assert wanted in done.stdout
    assert results is None or {entry["reason"] for entry in results["se_fused"]["skipped"]} == {wanted}


def test_a_gpu_that_is_not_there(tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    done, _ = suite(tmp_path, "--device", "cuda")
    assert done.returncode != 0 and "torch finds no GPU here" in done.stdout + done.stderr


@pytest.mark.nightly
def test_two_runs_are_compared(tmp_path):
    """pytest-benchmark itself compares two runs: names and parameters are the same in every run and commit."""
    store = f"--benchmark-storage=file://{tmp_path}/store"
    first, _ = suite(tmp_path, *BLOCK, store, "--benchmark-save=first")
    second, _ = suite(tmp_path, *BLOCK, store, "--benchmark-compare=0001")
    assert first.returncode == second.returncode == 0, second.stdout
    for name in ("se_fused", "eager"):
        rows = [line for line in second.stdout.splitlines() if f"channels_last-{name}]" in line]
        assert sorted(row.split("(")[1].split(")")[0][:4] for row in rows) == ["0001", "NOW"], second.stdout


SLOW = """
import time
from se_fused import reference
right = reference.squeeze_excite
def slow(*args, **options):
    time.sleep(0.2)  # busy machines take their time for ours too
    return right(*args, **options)
reference.squeeze_excite = slow
"""


@pytest.mark.nightly
def test_a_ratio_is_the_baselines_time_over_ours(tmp_path):
    done, results = suite(tmp_path, *BLOCK, plugin=SLOW)
    assert done.returncode == 0, done.stdout
    eager = results["benchmarks"][1]["extra_info"]
    assert eager["candidate"] == "eager" and eager["seconds"]["median"] > 0.2
    assert eager["ratio"]["median"] > 2 and eager["cold_ratio"]["median"] > 2
