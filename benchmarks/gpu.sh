#!/usr/bin/env bash
# make gpu: build, test and measure on a machine that has a GPU and a torch that sees it, but perhaps no network.
# Leaves benchmarks/results/<gpu>/: environment.json, tests.txt, sanitizer.txt, benchmarks.json, benchmarks.txt.
# A step that fails does not stop the next one, because time on a GPU is dear; the exit status remembers it.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=build/gpu-venv

gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else "")' 2>/dev/null)
if [[ -z $gpu ]]; then
  echo "make gpu: $python sees no GPU through torch; nothing was built or measured (PYTHON=... chooses another)" >&2
  exit 1
fi
slug=$(tr '[:upper:]' '[:lower:]' <<<"$gpu" | tr -cs 'a-z0-9' '-')
results=benchmarks/results/${slug%-}
mkdir -p "$results" build
failed=()

step() {  # step NAME COMMAND...: run it, say how it went
  local name=$1
  shift
  echo "== $name"
  "$@" || failed+=("$name")
}

# An environment of our own that sees all of $python's packages. --system-site-packages would not do: where $python is
# itself a virtual environment, it shows the packages of the Python below that. The system's packages stay untouched.
"$python" -m venv --without-pip "$venv" || exit 1
"$python" - "$venv" <<'PY'
import site, sys
from pathlib import Path

target = next(Path(sys.argv[1]).glob("lib/python3*/site-packages"))
(target / "parent.pth").write_text("".join(f"{path}\n" for path in site.getsitepackages()))
PY
py=$venv/bin/python
export PATH="$(dirname "$(command -v "$python")"):$PATH"  # where ninja lies beside it
build=("$py" -m pip install --no-index --no-build-isolation --no-deps -e .)
echo "== build: ${build[*]}"
"${build[@]}" || { echo "make gpu: the build failed; nothing was measured" >&2; exit 1; }

"$py" - "$results/environment.json" "${build[*]}" <<'PY'
"""Everything that another run needs to be compared with this one."""
import json, platform, subprocess, sys
from importlib import metadata
from pathlib import Path

import torch


def says(*command):
    try:
        return subprocess.run(command, text=True, capture_output=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


query = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,ecc.mode.current"
try:
    from se_fused._build_info import BUILD
except ImportError:
    BUILD = None
json_text = json.dumps(
    {
        "commit": says("git", "rev-parse", "HEAD"),
        "uncommitted": says("git", "status", "--porcelain"),
        "commands": ["make gpu", sys.argv[2]],
        "gpu": torch.cuda.get_device_name(0),
        "compute_capability": torch.cuda.get_device_capability(0),
        "nvidia_smi": says("nvidia-smi", f"--query-gpu={query}", "--format=csv"),
        "nvcc": says("nvcc", "--version"),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "versions": {n: version(n) for n in ("torch", "triton", "numpy", "timm", "torchvision", "pytest-benchmark")},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "build": BUILD,
    },
    indent=2,
)
Path(sys.argv[1]).write_text(json_text + "\n")
PY

logged() {  # logged FILE COMMAND...: print the output and keep it below the command that made it
  local file=$1
  shift
  echo "\$ $*" >"$file"
  "$@" 2>&1 | tee -a "$file"
  return "${PIPESTATUS[0]}"
}

step tests logged "$results/tests.txt" "$py" -m pytest tests -q

sanitizer=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2>/dev/null)
if [[ -n $sanitizer ]] && compgen -G 'se_fused/_C_cuda*.so' >/dev/null; then
  sanitized() {
    "$sanitizer" --tool memcheck --error-exitcode 1 --target-processes all "$py" -m pytest tests -q -m sanitizer
    local status=$?
    ((status == 5)) && echo "no test is marked sanitizer yet" && return 0
    return $status
  }
  step sanitizer logged "$results/sanitizer.txt" sanitized
fi

if compgen -G 'benchmarks/bench_*.py' >/dev/null || compgen -G 'benchmarks/test_*.py' >/dev/null; then
  step benchmarks logged "$results/benchmarks.txt" "$py" -m pytest benchmarks -q --benchmark-only \
    --benchmark-json="$results/benchmarks.json"
else
  echo "== benchmarks: there are none yet"
fi

echo "== $results: $(ls "$results" | tr '\n' ' ')"
if ((${#failed[@]})); then
  echo "make gpu: failed: ${failed[*]}" >&2
  exit 1
fi
