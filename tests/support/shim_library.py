"""Builds the CUDA kernels' source as a library for the CPU (tests/support/cuda_shim) and caches it."""

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import torch

from support import compiled
from support.compiled import COMPILER
from support.paths import ROOT, SUPPORT

SOURCES = ROOT / "csrc"
SHIM = SUPPORT / "cuda_shim"
SANITIZERS = ("address", "alignment")

# -g1: stack traces and sanitizers name lines; -g takes a quarter longer. Debuggers: SE_FUSED_SHIM_FLAGS="-O0 -g".
FLAGS = (
    "-std=c++20 -O1 -g1 -fPIC -fvisibility=hidden -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-unused-parameter "
    "-Wno-missing-field-initializers -DSE_CUDA_SHIM -DTORCH_TARGET_VERSION=0x020a000000000000"
).split() + shlex.split(os.environ.get("SE_FUSED_SHIM_FLAGS", ""))


def why_not() -> str | None:
    """The reason why the shim cannot be built here, or None."""
    if not SOURCES.exists() or COMPILER is None:
        return "needs the sources and a C++ compiler"
    return None


def library(sanitized: bool = False) -> Path:
    """Build the kernels as a shared library, with AddressSanitizer and alignment checks if ``sanitized``."""
    files = sorted([*(SOURCES / "cuda").glob("*"), *SOURCES.glob("*.h"), SHIM / "cuda_shim.h", Path(__file__)])
    key = hashlib.sha256(f"{torch.__version__} {sysconfig.get_platform()} {COMPILER} {FLAGS}".encode())
    for file in files:
        key.update(file.name.encode() + file.read_bytes())
    # This key is quick to compute and identifies the linked library. _build has a second cache, of object files.
    name = f"libse_fused_cuda_shim-{key.hexdigest()[:16]}{'-sanitized' * sanitized}"
    built = compiled.cache("linked") / f"{name}.so"
    with built.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes share the folder
        if not compiled.find(built):
            partial = built.with_suffix(".partial")
            shutil.copy(_build(sanitized), partial)
            partial.rename(built)
    return built


def _build(sanitized: bool) -> Path:
    home = Path(torch.__file__).parent
    extra = ["-fsanitize=" + ",".join(SANITIZERS), "-fno-sanitize-recover=alignment"] if sanitized else []
    flags = [*FLAGS, *extra, f"-I{SHIM.relative_to(ROOT)}", f"-I{home}/include"]
    sources = [f for f in sorted((SOURCES / "cuda").glob("*")) if f.suffix in (".cpp", ".cu")]
    return compiled.build(sources, flags, ["-shared", *extra, f"-L{home}/lib", "-ltorch", "-ltorch_cpu", "-lc10"])


def sanitizer_runtime() -> str | None:
    """Libraries for LD_PRELOAD, or None if the compiler has no AddressSanitizer.

    libstdc++ is one of them: AddressSanitizer looks up its __cxa_throw once, at the start, before Python loads it.
    """
    found = []
    for name in ("libasan.so", "libstdc++.so"):
        command = [str(COMPILER), f"-print-file-name={name}"]
        path = Path(subprocess.run(command, text=True, capture_output=True, check=False).stdout.strip())
        if not path.is_absolute():
            return None
        found.append(str(path.resolve()))
    return " ".join(found)
