"""Libraries built in advance on a machine with nvcc, for a machine with a GPU but without a compiler or a network.

``make gpu-pack`` creates the folder ``build/gpu-pack``, which git ignores. It contains the two libraries, for sm_90
only; the build record of setup.py; the module that reads register counts, for that machine's Python; and
``manifest.json``, which also has the model's predictions (:mod:`.model`). ``VARIANT=name`` adds another build of the
CUDA library in ``variants/name``, which the command `where` times in the same run; with ``FROM=commit``, of an earlier
version.
"""

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from se_fused._atomic_write import write_bytes, write_text
from se_fused.info.environment import commit

from .environment import uncommitted
from .predicted import of_this_machine as predictions_here
from .target import ROOT

__all__ = ["ARCHITECTURE", "FOLDER", "MOST_BYTES", "PYTHON", "PackError", "build", "check", "libraries", "variants"]

FOLDER = ROOT / "build" / "gpu-pack"
ARCHITECTURE = "9.0"
PYTHON = (3, 12)
"""Python version of the GPU machine. The libraries work with every Python, the module that reads registers with one."""
MOST_BYTES = 25 * 2**20
"""Size limit of the pack. All files that are sent to a lent machine may have 64 MiB together."""
_LIBRARIES = ("_C_cpu.abi3.so", "_C_cuda.abi3.so")


class PackError(Exception):
    """An unusable or missing pack; the message is one line with the remedy."""


def _sources() -> str:
    """Digest of the sources of the libraries."""
    digest = hashlib.sha256()
    for file in sorted([*(ROOT / "csrc").rglob("*"), ROOT / "setup.py", ROOT / "build_cuda.py"]):
        if file.is_file():
            digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# ---- building
@contextmanager
def _checkout(revision: str) -> Iterator[Path]:
    """The sources of a commit in a temporary folder.

    Raises:
        PackError: there is no such commit.
    """
    with tempfile.TemporaryDirectory(prefix="se-fused-sources-") as folder:
        archive = Path(folder) / "sources.tar"
        command = ["git", "-C", str(ROOT), "archive", "--format=tar", f"--output={archive}", revision]
        ran = subprocess.run(command, text=True, capture_output=True, check=False)
        if ran.returncode:
            raise PackError(f"FROM={revision} is no commit of this repository: {ran.stderr.strip()}")
        with tarfile.open(archive) as packed:
            packed.extractall(Path(folder) / "sources", filter="data")
        yield Path(folder) / "sources"


def _compiled(architecture: str, sources: Path = ROOT) -> Path:
    """Build sources with their setup.py for the architecture of the GPU; return the folder of the built package."""
    place = ROOT / "build" / ("gpu-pack-build" if sources == ROOT else "gpu-pack-build-from")
    settings = {
        "SE_FUSED_BUILD": "cuda",
        "TORCH_CUDA_ARCH_LIST": architecture,
        "MAX_JOBS": os.environ.get("MAX_JOBS", "2"),
    }
    # ninja of a virtual environment is in the folder of its Python
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(place), "--build-lib", str(place / "lib")]
    place.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **settings, "PATH": path}
    tail: deque[str] = deque(maxlen=40)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, cwd=sources, env=environment, **streams) as process:  # type: ignore[call-overload]
        assert process.stdout is not None
        for line in process.stdout:
            tail.append(line)
            if step := re.match(r"\[\d+/\d+\] .*?([\w.]+\.(?:cu|cpp)) ", line):  # progress: some files take a minute
                print(f"  compiled {line.split()[0]} {step[1]}", flush=True)
    if process.returncode:
        print(*tail, sep="", end="", file=sys.stderr)
        raise PackError("the libraries do not compile (see above): nvcc and a torch for the same CUDA are needed")
    return place / "lib" / "se_fused"


def _python() -> str | None:
    """Command of a Python with the GPU machine's version, or None."""
    name = "python{}.{}".format(*PYTHON)
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [sys.executable, name, *map(str, sorted(versions.glob(f"{PYTHON[0]}.{PYTHON[1]}.*/bin/{name}")))]
    ask = "import sys; print(sys.version_info[:2])"
    for python in filter(shutil.which, found):  # try to run it, because pyenv has shims without a Python behind them
        said = subprocess.run([python, "-c", ask], text=True, capture_output=True, check=False)
        if said.stdout.strip() == str(PYTHON):
            return python
    return None


def _introspection(target: Path) -> Path | str:
    """Compile the module that reads register counts for the GPU machine's Python; return its path, or why it cannot."""
    version = "{}.{}".format(*PYTHON)
    if (python := _python()) is None:
        return f"no Python {version} here"
    ask = "import sysconfig as s; print(s.get_paths()['include']); print(s.get_config_var('EXT_SUFFIX'))"
    include, suffix = subprocess.run([python, "-c", ask], text=True, capture_output=True, check=True).stdout.split()
    if not (Path(include) / "Python.h").exists():
        return f"Python {version} has no headers here"
    try:
        import pybind11
    except ImportError:
        return "pybind11 is not installed"
    built = target / f"_introspect{suffix}"
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    flags = "-std=c++20 -O2 -g0 -s -shared -fPIC -fvisibility=hidden".split()
    places = [f"-I{include}", f"-I{pybind11.get_include()}", f"-ffile-prefix-map={ROOT}/="]
    subprocess.run([*compiler, *flags, *places, "csrc/introspect.cpp", "-o", str(built), "-ldl"], cwd=ROOT, check=True)
    return built


def build(
    variant: str = "", architecture: str = ARCHITECTURE, folder: Path = FOLDER, revision: str = ""
) -> list[str]:  # fmt: skip
    """Build the pack, or a variant of its CUDA library; return the lines to print.

    Args:
        variant: name of the variant; empty builds the pack.
        architecture: compute capability of the GPU.
        folder: the pack's.
        revision: commit whose sources the variant is built from; empty takes this checkout's.

    Raises:
        PackError: it cannot be built, or it is too large.
    """
    if variant and not re.fullmatch(r"[\w.-]+", variant):
        raise PackError(f"VARIANT must be a name of letters, digits, '.', '_' and '-'; got {variant!r}")
    if variant and not (folder / "manifest.json").exists():
        raise PackError("a variant needs a pack: run `make gpu-pack` without VARIANT first")
    if revision and not variant:
        raise PackError("FROM is for a variant: add VARIANT=name")
    if revision:
        with _checkout(revision) as sources:
            package = _compiled(architecture, sources)
    else:
        package = _compiled(architecture)
    place = folder / "variants" / variant if variant else folder
    place.mkdir(parents=True, exist_ok=True)
    names = ["_C_cuda.abi3.so"] if variant else [*_LIBRARIES, "_build_info.py"]
    for name in names:
        write_bytes(place / name, (package / name).read_bytes())
    left_out = ""
    if not variant:
        for old in folder.glob("_introspect*.so"):
            old.unlink()
        found = _introspection(folder)
        if isinstance(found, str):
            left_out = f"without _introspect (registers in `info`): {found}\n"
        else:
            names.append(found.name)
    predicted: list[dict[str, Any]] = []
    if architecture == ARCHITECTURE and not revision:  # the model runs this checkout's host code
        print("  predicting the kernels' times from their machine code (two minutes)", flush=True)
        predicted, reasons = predictions_here()
        left_out += "\n".join(reasons)
    manifest = {
        "commit": revision or (commit() or "") + (" with changes" if uncommitted() else ""),
        "sources": _sources(),
        "torch": torch.__version__, "cuda": torch.version.cuda, "architecture": architecture,
        "machine": platform.machine(),
        "python": list(PYTHON), "files": {name: _sha256(place / name) for name in names},
        "predicted": predicted,
    }  # fmt: skip
    write_text(place / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if size > MOST_BYTES:
        kept = ", ".join(sorted(variants(folder))) or "none"
        raise PackError(f"the pack has {size / 2**20:.1f} MB, more than 25: remove a variant (existing: {kept})")
    relative = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    told = [
        f"{relative}: {size / 2**20:.1f} MB, compute capability {architecture}, built with torch {torch.__version__}"
    ]
    told += [f"  {file.relative_to(folder)}" for file in sorted(folder.rglob("*")) if file.is_file()]
    told += left_out.splitlines()
    told += [
        f"git ignores it: copy {relative} together with the checkout to the GPU machine, and run in the checkout:",
        *(f"  python3 -m benchmarks.gpu {command} --output DIR" for command in ("right", "where", "claims")),
    ]
    return told


# ---- using
def variants(folder: Path = FOLDER) -> dict[str, Path]:
    """Folder of each additional build of the CUDA library, by name."""
    return {manifest.parent.name: manifest.parent for manifest in sorted(folder.glob("variants/*/manifest.json"))}


def _read(place: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((place / "manifest.json").read_text())
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PackError(f"{place.name}/manifest.json cannot be read ({type(error).__name__}): make gpu-pack") from None
    for name, digest in files.items():
        if not (place / name).exists() or _sha256(place / name) != digest:
            raise PackError(f"{name} in {place.name} differs from the built file: copy the whole folder again")
    return dict(manifest)


def check(
    folder: Path = FOLDER, *, cuda: str | None = torch.version.cuda, capability: tuple[int, int] | None = None
) -> tuple[dict[str, Any], str]:
    """Check that the pack can be used here; return its manifest, and a line about a missing part, or "".

    Args:
        folder: the folder of the pack.
        cuda: CUDA version of the running torch.
        capability: compute capability of the GPU; None skips this check.

    Raises:
        PackError: there is no pack, or it is for another machine.
    """
    if not (folder / "manifest.json").exists():
        raise PackError(
            "no pack in build/gpu-pack: run `make gpu-pack` on a machine with nvcc, possibly this one; it takes minutes"
        )
    manifest = _read(folder)
    if manifest["sources"] != _sources():
        raise PackError(
            "the pack in build/gpu-pack is built from other sources than this checkout: run `make gpu-pack` again"
        )
    if manifest["machine"] != platform.machine():
        raise PackError(f"the pack is for {manifest['machine']}, this machine is {platform.machine()}: build it here")
    ours, theirs = str(manifest["cuda"]).partition(".")[0], str(cuda).partition(".")[0]
    if ours != theirs:
        raise PackError(
            f"the pack is for CUDA {manifest['cuda']}, torch {torch.__version__} here for {cuda}: "
            "build the pack with a torch for that CUDA"
        )
    have = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    if have < (2, 11):
        raise PackError(f"the pack needs torch 2.11 or later, got {torch.__version__}: use another Python environment")
    if capability is not None and "{}.{}".format(*capability) != manifest["architecture"]:
        there = "{}.{}".format(*capability)
        raise PackError(
            f"the pack is for compute capability {manifest['architecture']}, this GPU has {there}: "
            f"make gpu-pack ARCH={there}"
        )
    note = ""
    if sys.version_info[:2] != tuple(manifest["python"]):
        built_for = ".".join(map(str, manifest["python"]))
        note = f"the pack's _introspect is for Python {built_for}: `info` lists no registers here"
    return manifest, note


def libraries(folder: Path = FOLDER) -> list[tuple[str, str]]:
    """(name, value of ``SE_FUSED_LIBRARIES``) of the pack, whose name is "", and of each variant."""
    found = [("", str(folder))]
    for name, place in variants(folder).items():
        _read(place)
        found.append((name, f"{place}{os.pathsep}{folder}"))
    return found
