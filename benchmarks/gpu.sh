#!/usr/bin/env bash
# make gpu: build, test and measure on a machine that has a GPU and a torch that sees it, but perhaps no network.
# Leaves benchmarks/results/<gpu>/: environment.json, tests.txt, memcheck.txt, racecheck.txt, codegen.txt, info.txt,
# runs/*.json (a file of benchmarks each) and .txt, benchmarks-triton.json, ncu-*.csv, and report/, drawn from the runs.
# A lease is short: ONLY="tests tail" takes some of the steps; "benchmarks" are streams, tail, conv, scaling, convert and
# network; BENCH_ARGS="-k seresnet50" goes to pytest. ONLY=fracture trains the application's four models, SEEDS times.
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
  [[ -z ${ONLY:-} || " $ONLY " == *" $name "* ]] || return 0
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

# Most of the tests' time is Triton compiling, one core per process.
jobs=$(($(nproc) < 8 ? $(nproc) : 8))
parallel_tests() {
  local i pids=() status=0
  for ((i = 0; i < jobs; i++)); do
    SE_FUSED_TEST_SHARD=$i/$jobs "$py" -m pytest tests -q >"build/shard-$i.txt" 2>&1 &
    pids+=($!)
  done
  for i in "${!pids[@]}"; do
    wait "${pids[i]}" || status=1
    grep -vE '^[.sxFE]+ +\[|^$' "build/shard-$i.txt"
  done
  return $status
}
step tests logged "$results/tests.txt" parallel_tests

sanitizer=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2>/dev/null)
if [[ -n $sanitizer ]]; then
  # PyTorch hands out parts of large blocks: without its cache each tensor is a block, and its end is seen. Kernels are
  # compiled before, so that the tool does not watch the compiler.
  sanitized() {
    "$py" -m pytest tests -q -m sanitizer || return
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 900 "$sanitizer" --tool "$1" --error-exitcode 1 --target-processes all \
      "$py" -m pytest tests -q -m sanitizer
  }
  step memcheck logged "$results/memcheck.txt" sanitized memcheck
  step racecheck logged "$results/racecheck.txt" sanitized racecheck
else
  echo "== no compute-sanitizer here"
fi

# what the compilers made of the kernels that are about to be timed
step codegen logged "$results/codegen.txt" "$py" -m se_fused.backends.triton.codegen
step info logged "$results/info.txt" "$py" -m se_fused info
mkdir -p "$results/runs"
ONLY=${ONLY:-}
ONLY=${ONLY//benchmarks/streams tail conv scaling convert network report}
for part in streams tail conv scaling convert network; do
  # one file each: what is cut off does not take the others with it
  step "$part" logged "$results/runs/$part.txt" "$py" -m pytest "benchmarks/test_$part.py" -q --benchmark-only \
    ${BENCH_ARGS:-} --benchmark-json="$results/runs/$part.json"
done
find "$results/runs" -name '*.json' -empty -delete  # of what was cut off, or not run at all
step triton env SE_FUSED_BACKEND=triton "$py" -m pytest benchmarks/test_tail.py -q --benchmark-only \
  --benchmark-json="$results/benchmarks-triton.json"
# The application, full size: hours for three seeds, so it is left out unless asked for (ONLY=fracture). What a lease's end
# cuts off goes on in the next call: finished trainings are kept, begun ones resumed.
if [[ " $ONLY " == *" fracture "* ]]; then
  fracture() {
    "$py" -m se_fused synth build/radiographs-224 --patients 4000 --size 224 || return
    "$py" -m se_fused compare-models --config configs/fracture/full-gpu.yaml --data build/radiographs-224/manifest.csv \
      --seeds "${SEEDS:-1}" --output "$results/fracture"
  }
  step fracture logged "$results/fracture.txt" fracture
fi
profiler=$(command -v ncu || ls "${CUDA_HOME:-/usr/local/cuda}/bin/ncu" 2>/dev/null)
if [[ -n $profiler ]]; then
  metrics=gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum,lts__t_sector_hit_rate.pct
  metrics+=,gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed,launch__registers_per_thread
  for backend in cuda triton; do
    step ncu logged "$results/ncu-$backend.csv" "$profiler" --csv --metrics "$metrics" --nvtx \
      --nvtx-include "measured/" "$py" benchmarks/profiled.py "$backend"
  done
else
  echo "== no ncu here"
fi
if compgen -G "$results/runs/*.json" >/dev/null; then
  step report "$py" -m se_fused report "$results"/runs/*.json --output "$results/report"
fi

echo "== $results: $(ls "$results" | tr '\n' ' ')"
if ((${#failed[@]})); then
  echo "make gpu: failed: ${failed[*]}" >&2
  exit 1
fi
