"""Decides whether setup.py compiles CUDA kernels, and for which GPUs.

One architecture takes a minute to compile, all of them more than 15 minutes on two cores. By default only architectures
of this machine's GPUs are compiled.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent
Version = tuple[int, ...]


def output(*command, text: str = "") -> str:
    """Everything that a command prints, or "" if it fails."""
    run = subprocess.run(command, input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return "" if run.returncode else run.stdout


def find_sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def find_cuda_home() -> Path | None:
    """The CUDA toolkit's folder. torch would use the parent of nvcc on PATH, which is wrong if nvcc is a wrapper
    script."""
    guesses = [os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")]
    if not guesses[0]:
        if nvcc := shutil.which("nvcc"):
            guesses += re.findall(r" TOP=(.+)", output(nvcc, "-dryrun", "-x", "cu", os.devnull))
        guesses += ["/usr/local/cuda", *sorted(map(str, Path("/usr/local").glob("cuda-*")), reverse=True)]
    homes = (Path(guess).resolve() for guess in guesses if guess)
    parts = ("bin/nvcc", "include/cuda_runtime.h", "lib*/libcudart.so")
    return next((home for home in homes if all(any(home.glob(part)) for part in parts)), None)


def choose_architectures(mode: str, gpus: list[Version], asked: str, toolkit: Version) -> tuple[str, str]:
    """(the TORCH_CUDA_ARCH_LIST to compile for, "") or ("", the reason why there is none).

    Args:
        mode: auto or cuda.
        gpus: compute capability of each GPU of this machine.
        asked: the user's TORCH_CUDA_ARCH_LIST, or "".
        toolkit: version of CUDA.
    """
    if asked:
        return asked, ""
    # CUDA 12.8 is the first version that supports Blackwell.
    known = [(8, 0), (8, 6), (8, 9), (9, 0), *([(10, 0), (12, 0)] if toolkit >= (12, 8) else [])]
    wanted = known
    if mode == "auto":
        if not (able := [gpu for gpu in gpus if gpu >= known[0]]):
            seen = "the GPU is older than sm_80" if gpus else "no GPU was found"
            return "", f"{seen}; SE_FUSED_BUILD=cuda or TORCH_CUDA_ARCH_LIST=9.0 compiles CUDA kernels anyway"
        # Machine code for 8.6 also runs on 8.7. A GPU of an unknown, later generation gets all architectures and PTX.
        fitting = [[arch for arch in known if gpu[0] == arch[0] and gpu >= arch] for gpu in able]
        wanted = sorted({archs[-1] for archs in fitting}) if all(fitting) else known
    return ";".join(f"{major}.{minor}" for major, minor in wanted) + "+PTX" * (wanted is known), ""


def prepare_cuda(torch, mode: str) -> str:
    """Set CUDA_HOME and TORCH_CUDA_ARCH_LIST for torch's build helpers. Returns "", or the reason why CUDA kernels
    cannot be built."""
    if not find_sources("csrc/cuda/*.cu"):
        return "this version has no CUDA sources yet (csrc/cuda holds no .cu file)"
    if not torch.version.cuda:
        return f"torch {torch.__version__} is a build without CUDA; install one with it"
    if not (home := find_cuda_home()):
        return f"no CUDA {torch.version.cuda} toolkit (nvcc, headers, libcudart.so); install it or set CUDA_HOME"
    release = re.findall(r"release (\d+)\.(\d+)", output(home / "bin/nvcc", "--version")) or [(0, 0)]
    version = tuple(int(number) for number in release[0])
    if version[0] != int(torch.version.cuda.split(".")[0]):
        return f"{home} is CUDA {version[0]}.{version[1]} but torch {torch.__version__} is for {torch.version.cuda}"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_capability(index) for index in range(count)]
    archs, reason = choose_architectures(mode, gpus, os.environ.get("TORCH_CUDA_ARCH_LIST", ""), version)
    os.environ.update(CUDA_HOME=str(home), TORCH_CUDA_ARCH_LIST=archs)
    return reason


if __name__ == "__main__":  # prints the SE_FUSED_BUILD mode for `make wheel`
    import torch

    print("auto" if prepare_cuda(torch, "cuda") else "cuda")
