"""Builds the kernels; everything that needs no decision is in pyproject.toml.

SE_FUSED_BUILD says what to build:
    auto   (default) CPU kernels; CUDA kernels for the GPUs in sight, or for TORCH_CUDA_ARCH_LIST, where torch and a
           toolkit allow (build_cuda.py); pure Python where no compiler is
    cpu    CPU kernels, or fail
    cuda   CPU and CUDA kernels, for TORCH_CUDA_ARCH_LIST or else for every architecture, or fail
    none   pure Python: needs neither a compiler nor torch
CXX, CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS are obeyed. What was built goes into se_fused/_build_info.py.
"""

import os
import shlex
import shutil
import sys
from importlib import import_module, util
from pathlib import Path
from pprint import pformat

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

from build_cuda import ROOT, find_sources, output, prepare_cuda

MODES = ("auto", "cpu", "cuda", "none")
# torch 2.10's stable ABI is the oldest with all that csrc/ calls; one binary then serves every later torch and Python.
TARGET_ABI, DEFINES = "2.10", ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
# No -march: chosen at run time. No -ffast-math: NaN and Inf must survive. Contraction makes fused multiply-adds.
CXX_FLAGS = "-std=c++20 -O3 -g0 -fvisibility=hidden -ffp-contract=fast -fno-math-errno -fno-trapping-math".split()


def fail(message: str) -> None:
    sys.exit(f"\nse_fused: {message}\n")


def find_compiler() -> tuple[str, str]:
    """(the C++20 compiler, "") or ("", why there is none)."""
    reasons = []
    for cxx in [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]:
        there = shutil.which(shlex.split(cxx)[0])
        if there and output(*shlex.split(cxx), "-std=c++20", "-x", "c++", "-E", "-", text="#include <concepts>\n"):
            return cxx, ""
        reasons.append(f"{cxx} cannot compile C++20" if there else f"{cxx} is not there")
    return "", f"no C++ compiler ({', '.join(reasons)}); install one: apt-get install g++"


def plan(mode: str) -> tuple[dict, list[Extension], dict]:
    """(what will be built, the extensions, their command); fails where what was asked for cannot be had."""
    info = {"mode": "none", "requested": mode, "target_abi": TARGET_ABI, "note": "SE_FUSED_BUILD=none"}
    info |= dict.fromkeys(("torch", "compiler", "flags", "cuda", "arch_list"))
    if mode == "none":
        return info, [], {}
    cxx, reason = find_compiler()
    if not cxx:
        if mode != "auto":
            fail(f"SE_FUSED_BUILD={mode}: {reason}")
        print(f"WARNING: se_fused: {reason}. Building pure Python, without compiled kernels.", file=sys.stderr)
        return info | {"note": reason}, [], {}
    os.environ["CXX"] = cxx
    try:
        import torch
    except ImportError as error:
        wanted = f"the kernels are built against torch>=2.11, which {sys.executable} lacks ({error})"
        fail(f"{wanted}: pip install torch setuptools ninja, or drop --no-build-isolation, or set SE_FUSED_BUILD=none")
    obstacle = "SE_FUSED_BUILD=cpu" if mode == "cpu" else prepare_cuda(torch, mode)
    if mode == "cuda" and obstacle:
        fail(f"SE_FUSED_BUILD=cuda: {obstacle}. SE_FUSED_BUILD=cpu builds the CPU kernels")
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # reads CUDA_HOME: not earlier

    # Folders are cut out of what __FILE__ leaves in the binary: the same sources give the same bytes wherever they lie.
    folders = {ROOT: "", Path(torch.__file__).parent: "torch/"}
    cxx_flags = [*CXX_FLAGS, *DEFINES, *(f"-ffile-prefix-map={folder}/={name}" for folder, name in folders.items())]
    # No path among nvcc's flags: torch drops its whole list of architectures where one contains the letters "arch".
    nvcc_flags = ["-std=c++20", "-O3", "-Xcompiler", "-fvisibility=hidden", "-DUSE_CUDA", *DEFINES]
    how = {"extra_compile_args": cxx_flags, "extra_link_args": ["-s"]}
    sources = ["csrc/register.cpp", *find_sources("csrc/cpu/*.cpp")]
    extensions = [CppExtension("se_fused._C_cpu", sources, py_limited_api=True, **how)]
    # One file for this Python alone in a wheel for all: `info` says more where it is, and nothing else asks for it.
    if util.find_spec("pybind11") and (sources := find_sources("csrc/introspect.cpp")):
        include = import_module("pybind11").get_include()
        extensions.append(Extension("se_fused._introspect", sources, include_dirs=[include], **how))
    compiler = output(*shlex.split(cxx), "--version").partition("\n")[0]
    info |= {"mode": "cpu", "torch": torch.__version__, "compiler": compiler, "flags": CXX_FLAGS, "note": obstacle}
    if not obstacle:
        sources = [*find_sources("csrc/cuda/*.cpp"), *find_sources("csrc/cuda/*.cu")]
        how |= {"extra_compile_args": {"cxx": [*cxx_flags, "-DUSE_CUDA"], "nvcc": nvcc_flags}}
        extensions.append(CUDAExtension("se_fused._C_cuda", sources, py_limited_api=True, **how))
        info |= {"mode": "cuda", "cuda": torch.version.cuda, "arch_list": os.environ["TORCH_CUDA_ARCH_LIST"]}
    cuda = f"no CUDA kernels: {obstacle}" if obstacle else f"CUDA kernels for {info['arch_list']}"
    print(f"se_fused: CPU kernels; {cuda}", file=sys.stderr)
    return info, extensions, {"build_ext": BuildExtension}


class BuildPython(build_py):
    """Also records what is built, and takes nothing of an earlier build along."""

    def run(self) -> None:
        package = (ROOT if self.editable_mode else Path(self.build_lib)) / "se_fused"
        for stale in package.glob("*.so") if self.editable_mode else package.rglob("*.*"):
            stale.unlink()
        super().run()
        (package / "_build_info.py").write_text(f"# Written by setup.py.\nBUILD = {pformat(info, sort_dicts=False)}\n")


if (mode := os.environ.get("SE_FUSED_BUILD") or "auto") not in MODES:
    fail(f"SE_FUSED_BUILD={mode} is unknown; it is one of {', '.join(MODES)}")
# Metadata and source archives need no plan: they are made without a compiler and without torch.
builds = {"bdist_wheel", "editable_wheel", "build", "build_ext", "install", "develop"} & set(sys.argv)
info, extensions, commands = plan(mode if builds else "none")
abi3 = {"bdist_wheel": {"py_limited_api": "cp311"}} if extensions else {}
setup(ext_modules=extensions, cmdclass={"build_py": BuildPython, **commands}, options=abi3)
