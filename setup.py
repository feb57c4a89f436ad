"""Build of the kernels. Static metadata is in pyproject.toml.

The environment variable SE_FUSED_BUILD selects what is built:
    auto   (default) CPU kernels; also CUDA kernels, for TORCH_CUDA_ARCH_LIST or else for the GPUs of this machine, if
           torch and a CUDA toolkit allow it (build_cuda.py); pure Python if there is no compiler
    cpu    CPU kernels, or fail
    cuda   CPU and CUDA kernels, for TORCH_CUDA_ARCH_LIST or else for every architecture, or fail
    none   pure Python: needs neither a compiler nor torch
CXX, CUDA_HOME, TORCH_CUDA_ARCH_LIST and MAX_JOBS are respected. The build is recorded in se_fused/_build_info.py.
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
# The stable ABI of torch 2.10 is the oldest with all functions that csrc/ calls. One binary serves every later torch
# and Python.
TARGET_ABI, DEFINES = "2.10", ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
# No -march, because the instruction set is selected at run time. No -ffast-math, because NaN and Inf must propagate.
# -ffp-contract=fast allows fused multiply-adds. -Werror=switch refuses an activation or a gate without code.
CXX_FLAGS = (
    "-std=c++20 -O3 -g0 -fvisibility=hidden -ffp-contract=fast -fno-math-errno -fno-trapping-math -Werror=switch"
).split()


def fail(message: str) -> None:
    sys.exit(f"\nse_fused: {message}\n")


def find_compiler() -> tuple[str, str]:
    """(the C++20 compiler, "") or ("", the reason why there is none)."""
    reasons = []
    for cxx in [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]:
        there = shutil.which(shlex.split(cxx)[0])
        if there and output(*shlex.split(cxx), "-std=c++20", "-x", "c++", "-E", "-", text="#include <concepts>\n"):
            return cxx, ""
        reasons.append(f"{cxx} cannot compile C++20" if there else f"{cxx} was not found")
    return "", f"no C++ compiler ({', '.join(reasons)}); install one: apt-get install g++"


def plan(mode: str) -> tuple[dict, list[Extension], dict]:
    """(build record, extensions, setuptools commands) for a mode; exits with an error if the mode cannot be built."""
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
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # reads CUDA_HOME when imported

    # Folders are removed from the paths that __FILE__ puts into the binary, so that it does not depend on their place.
    folders = {ROOT: "", Path(torch.__file__).parent: "torch/"}
    cxx_flags = [*CXX_FLAGS, *DEFINES, *(f"-ffile-prefix-map={folder}/={name}" for folder, name in folders.items())]
    # nvcc's flags must not contain paths: torch ignores its list of architectures if a flag contains the letters
    # "arch".
    nvcc_flags = ["-std=c++20", "-O3", "-Xcompiler", "-fvisibility=hidden", "-DUSE_CUDA", *DEFINES]
    how = {"extra_compile_args": cxx_flags, "extra_link_args": ["-s"]}
    sources = ["csrc/register.cpp", *find_sources("csrc/cpu/*.cpp")]
    extensions = [CppExtension("se_fused._C_cpu", sources, py_limited_api=True, **how)]
    # _introspect works with this Python version only, also in a wheel for all versions. It is optional: `info` shows
    # more with it, and nothing else needs it.
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
    """build_py that also writes the build record, and first removes the files of earlier builds."""

    def run(self) -> None:
        package = (ROOT if self.editable_mode else Path(self.build_lib)) / "se_fused"
        for stale in package.glob("*.so") if self.editable_mode else package.rglob("*.*"):
            stale.unlink()
        super().run()
        (package / "_build_info.py").write_text(f"# Written by setup.py.\nBUILD = {pformat(info, sort_dicts=False)}\n")


if (mode := os.environ.get("SE_FUSED_BUILD") or "auto") not in MODES:
    fail(f"SE_FUSED_BUILD={mode} is unknown; it is one of {', '.join(MODES)}")
# Metadata and source archives are built without a compiler and without torch.
builds = {"bdist_wheel", "editable_wheel", "build", "build_ext", "install", "develop"} & set(sys.argv)
info, extensions, commands = plan(mode if builds else "none")
abi3 = {"bdist_wheel": {"py_limited_api": "cp311"}} if extensions else {}
setup(ext_modules=extensions, cmdclass={"build_py": BuildPython, **commands}, options=abi3)
