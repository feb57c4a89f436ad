"""Builds the CUDA kernels' source as a library for the CPU (tests/support/cuda_shim), once, in build/."""

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc"
SHIM = ROOT / "tests" / "support" / "cuda_shim"
COMPILER = next(iter(shlex.split(os.environ.get("CXX", ""))), None) or shutil.which("g++") or shutil.which("c++")
SANITIZERS = ("address", "alignment")

FLAGS = (
    "-std=c++20 -O1 -g -fPIC -fvisibility=hidden -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-unused-parameter "
    "-Wno-missing-field-initializers -DSE_CUDA_SHIM -DTORCH_TARGET_VERSION=0x020a000000000000"
).split()


def why_not() -> str | None:
    """The reason why the shim cannot be built here, or None."""
    if not SOURCES.exists() or COMPILER is None:
        return "needs the sources and a C++ compiler"
    return None


def library(sanitized: bool = False) -> Path:
    """Build the kernels as a shared library, with AddressSanitizer and alignment checks if ``sanitized``."""
    assert COMPILER is not None
    files = sorted([*(SOURCES / "cuda").glob("*"), *SOURCES.glob("*.h"), SHIM / "cuda_shim.h", Path(__file__)])
    key = hashlib.sha256(torch.__version__.encode() + sysconfig.get_platform().encode())
    for file in files:
        key.update(file.name.encode() + file.read_bytes())
    folder = ROOT / "build" / "cuda_shim" / (key.hexdigest()[:16] + ("-sanitized" if sanitized else ""))
    folder.mkdir(parents=True, exist_ok=True)
    built = folder / "libse_fused_cuda_shim.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes share the folder
        if not built.exists():
            _build(folder, built, sanitized)
    return built


def _build(folder: Path, built: Path, sanitized: bool) -> None:
    home = Path(torch.__file__).parent
    extra = ["-fsanitize=" + ",".join(SANITIZERS), "-fno-sanitize-recover=alignment"] if sanitized else []
    flags = [*FLAGS, *extra, f"-I{SHIM}", f"-I{home}/include"]
    sources = [f for f in sorted((SOURCES / "cuda").glob("*")) if f.suffix in (".cpp", ".cu")]

    def compile_one(source: Path) -> str:
        target = str(folder / f"{source.name}.o")
        subprocess.run([str(COMPILER), *flags, "-x", "c++", "-c", str(source), "-o", target], check=True)
        return target

    with ThreadPoolExecutor(max_workers=int(os.environ.get("MAX_JOBS", "2"))) as pool:
        objects = list(pool.map(compile_one, sources))
    partial = folder / "partial.so"
    torch_libraries = [f"-L{home}/lib", "-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run([str(COMPILER), "-shared", *extra, "-o", str(partial), *objects, *torch_libraries], check=True)
    partial.rename(built)


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
