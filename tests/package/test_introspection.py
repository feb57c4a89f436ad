"""Tests of the attributes that compiled kernels report, and of the package without the module that reads them."""

import io
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from support import shim_library

import se_fused
from se_fused import backends
from se_fused.info import kernels as introspect

CPU, CUDA = backends.BACKENDS["cpu"], backends.BACKENDS["cuda"]
# Instances of a kernel: dtypes x alignments of vectors x variants (l2_grouped: weights in x's dtype or float32).
INSTANCES = {
    "moments": 3 * 5 * 2,
    "moments_backward": 3 * 5 * 2,
    "scale_shift_act": 3 * 5,
    "scale_shift_act_mean": 3 * 5,
    "scale_shift_act_backward": 3 * 5 * 2,
    "excitation": 6,
    "excitation_backward": 6,
    "cluster_fused": 3 * 3,
    "l2_grouped": (1 + 2 + 2) * 3,
}
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def module():
    return pytest.importorskip("se_fused._introspect", reason="not built: needs pybind11")


def made(name, **attributes):
    known = {"threads": 256, "max_threads": 256, "registers": 40, "local_bytes": 0, "constant_bytes": 0}
    return {"name": name, "shared_bytes": 0, "blocks_per_multiprocessor": 4} | known | attributes


# ---- without the module
def test_everything_works_without_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "se_fused._introspect", None)  # makes the import fail
    about = se_fused.info()
    assert "se_fused._introspect" in about["kernels"] and "pybind11" in about["kernels"]
    assert "\n" not in about["kernels"]
    assert about["cpu"]["instructions"] == (None if CPU.load_error else CPU.capability())


def test_nothing_imports_it_before_it_is_asked_for():
    code = "import sys, se_fused; sys.exit('se_fused._introspect' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_library_of_another_build_is_told(monkeypatch):
    def fail(library):
        raise RuntimeError(f"{library} has no such function")

    older = types.SimpleNamespace(cpu_capability=fail, cuda_kernels=fail)
    monkeypatch.setattr(introspect, "_module", lambda: older)
    monkeypatch.setattr(CUDA, "load", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "has no such function" in introspect.cuda_kernels()
    assert introspect.cpu_instructions() == (None if CPU.load_error else CPU.capability())


def test_reasons_in_the_order_of_what_is_missing(monkeypatch):
    monkeypatch.setattr(introspect, "_module", lambda: types.SimpleNamespace(cuda_kernels=lambda library: []))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(CUDA, "load", lambda: "not built")
    assert introspect.cuda_kernels() == "not built"
    monkeypatch.setattr(CUDA, "load", lambda: None)
    assert introspect.cuda_kernels() == "torch sees no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert introspect.cuda_kernels() == []


# ---- the printed text
def test_summary_spans_instances_and_names_those_that_spill():
    kernels = [
        made("moments float32 rows", registers=40),
        made("moments float32 cols m2", registers=64, local_bytes=24, shared_bytes=16384),
        made("cluster_fused bfloat16 cols", shared_bytes=None),
        {"name": "excitation float16", "threads": 256, "shared_bytes": 8196, "error": "no kernel image"},
    ]
    table = introspect.summary(kernels)
    headings, moments, cluster_fused, excitation = (dict(zip(table[0], row, strict=True)) for row in table)
    assert list(headings) == list(headings.values())
    assert moments == {"kernel": "moments", "instances": "2", "threads": "256", "registers": "40–64",
                       "shared bytes": "0–16384", "blocks per SM": "4", "spilled bytes": "0–24",
                       "where": "float32 cols m2"}  # fmt: skip
    assert cluster_fused["shared bytes"] == "by shape"
    assert (excitation["registers"], excitation["where"]) == ("", "no kernel image")


def test_info_prints_the_summary(monkeypatch):
    pytest.importorskip("rich")
    from rich.console import Console

    from se_fused.bench.report.console import print_info

    monkeypatch.setattr(introspect, "cuda_kernels", lambda: [made("moments float32 rows", registers=41)])
    to = Console(width=132, record=True, file=io.StringIO())
    print_info(se_fused.info(), to)
    text = to.export_text()
    assert "Compiled CUDA kernels" in text and " 41 " in text


# ---- with the module
@pytest.mark.skipif(CPU.load_error is not None, reason="the CPU kernels are not loaded")
def test_capability_is_the_operators(module):
    for cap in ("default", ""):
        CPU.capability(cap)
        assert module.cpu_capability(str(CPU.library)) == introspect.cpu_instructions() == CPU.capability()


def test_a_missing_library_is_named(module, tmp_path: Path):
    missing = str(tmp_path / "_C_none.so")
    for ask in (module.cpu_capability, module.cuda_kernels):
        with pytest.raises(RuntimeError, match=r"_C_none\.so: cannot open shared object file"):
            ask(missing)


@pytest.mark.skipif(CPU.load_error is not None, reason="the CPU kernels are not loaded")
def test_a_function_that_is_not_there_is_named(module):
    with pytest.raises(RuntimeError, match="has no se_fused_cuda_attributes"):
        module.cuda_kernels(str(CPU.library))


@pytest.mark.skipif(shim_library.why_not() is not None, reason=str(shim_library.why_not()))
def test_every_instance_of_the_kernels_is_listed_once(module):
    kernels = module.cuda_kernels(str(shim_library.library()))
    names = [kernel["name"] for kernel in kernels]
    assert len(set(names)) == len(names)
    listed = [name.partition(" ")[0] for name in names]
    assert {name: listed.count(name) for name in listed} == INSTANCES
    assert {kernel["error"] for kernel in kernels} == {"compiled for the CPU"}  # the shim has no attributes
    for kernel in kernels:
        assert (kernel["shared_bytes"] is None) == kernel["name"].startswith("cluster_fused")
        assert kernel["threads"] == 256


@pytest.mark.gpu
@on_gpu
def test_attributes_on_a_gpu(module):
    if reason := CUDA.can_use("cuda", torch.float32):
        pytest.skip(reason)
    kernels = introspect.cuda_kernels()
    assert len(kernels) == sum(INSTANCES.values())
    for kernel in kernels:
        assert "error" not in kernel, kernel
        assert 0 < kernel["registers"] <= 255 and kernel["max_threads"] >= kernel["threads"]
        assert kernel["blocks_per_multiprocessor"] >= 1, kernel
        assert kernel["local_bytes"] == 0, kernel  # tests/backends/cuda/test_compiled_code.py finds the same
