# Most users need only two commands: make run and make test.
PYTHON ?= python3
VENV ?= .venv
# Versions that pass the tests, pinned so that a new release cannot break a first installation. torch >= 2.11 works.
TORCH ?= torch==2.14.1 torchvision==0.29.2
DATA ?=
# Two workers, each of which runs whole files, because fixtures of a file may compile a library.
WORKERS = -n 2 --dist loadfile
PYTEST_ARGS ?= -q $(WORKERS)
MAX_JOBS ?= 2
export MAX_JOBS

PY = $(VENV)/bin/python
CPP = $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')
STANDIN = $(shell find benchmarks/standin -name '*.h' -o -name '*.cpp')

.DEFAULT_GOAL := help
FORCE:
.PHONY: FORCE help venv run quick test nightly fuzz lint format bench wheel gpu gpu-pack gpu-keep cuda-all clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Two steps with a stamp file each, so that a changed kernel is compiled without checking all the tools with pip again.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "se_fused needs Python 3.11 or later; choose one: make venv PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "this Python cannot make virtual environments: apt-get install python3-venv" >&2; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q "setuptools>=77.0.3" ninja pybind11
	$(PY) -c 'import torch' 2>/dev/null || $(PY) -m pip install -q $(TORCH)
	SE_FUSED_BUILD=none $(PY) -m pip install -q --no-build-isolation -e ".[test,bench,dev]"
	@touch $@

# The build settings of the environment: a change compiles again, and without settings the existing build is kept.
ASKED = $(strip $(SE_FUSED_BUILD) $(TORCH_CUDA_ARCH_LIST))
$(VENV)/.asked: $(if $(ASKED),FORCE) | $(VENV)/.installed
	@echo '$(ASKED)' | cmp -s - $@ || echo '$(ASKED)' >$@

$(VENV)/.built: $(VENV)/.installed $(VENV)/.asked setup.py build_backend.py build_cuda.py $(CPP)
	$(PY) -m pip install -q --no-build-isolation --no-deps -e .
	@touch $@

venv: $(VENV)/.built  ## create .venv with torch, the tools and this package, and compile the kernels

RADIOGRAPHS = $(if $(DATA),$(DATA),build/radiographs/manifest.csv)

run: venv  ## train and evaluate a small SE-ResNet on synthetic radiographs or DATA=folder, compare speeds: build/run
	@mkdir -p build
	$(if $(DATA),,$(PY) -m se_fused fracture synth build/radiographs --patients 800 --size 96)
	rm -rf build/run
	$(PY) -m se_fused fracture train --config small-cpu --data "$(RADIOGRAPHS)" --output build/run
	$(PY) -m se_fused fracture demo --plot build/demo.png

quick: venv  ## an answer in two minutes: one case of each value of a parameter, on the best instruction set
	$(VENV)/bin/ruff check -q .
	$(PY) -m pytest --tier quick $(PYTEST_ARGS)

test: venv lint  ## what CI runs: lint, the test suite, each benchmark once; PYTEST_ARGS="-q -k name" for a part
	$(PY) -m pytest $(PYTEST_ARGS)
	@echo "and as on a CPU without AVX-512:"
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PY) -m pytest -m isa -q $(WORKERS)
	$(PY) -m pytest benchmarks --benchmark-only --preset smoke -q

nightly: venv lint cuda-all  ## every combination, sanitizers, every GPU's machine code, the browser, trainings, fuzzing
	SE_FUSED_REQUIRE_BROWSER=1 $(PY) -m pytest --tier nightly $(PYTEST_ARGS)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PY) -m pytest --tier nightly -m isa -q $(WORKERS)
	$(PY) -m pytest benchmarks --benchmark-only --preset smoke -q
	$(PY) tests/mutants/run.py --tier test

BACKEND ?= cpu
SECONDS ?= 600
SEED ?= 0
# Searches with different seeds may run side by side.
fuzz: venv  ## random calls against the op contract: BACKEND=cpu|cuda|triton|reference, SECONDS=600 or CASES=10000, SEED=0
	PYTHONPATH=tests:. OMP_WAIT_POLICY=PASSIVE $(PY) -m support.fuzz $(BACKEND) --seed $(SEED) \
	  $(if $(CASES),--cases $(CASES),--seconds $(SECONDS))

lint: venv  ## check with ruff, mypy and clang-format; changes nothing
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP) $(STANDIN)

format: venv  ## format the sources with ruff and clang-format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CPP) $(STANDIN)

bench: venv  ## run the benchmarks (an hour on two cores) and write a report with figures to build/report
	@mkdir -p build
	$(PY) -m pytest benchmarks --benchmark-only --benchmark-json=build/benchmarks.json
	$(PY) -m se_fused report build/benchmarks.json --output build/report

# A wheel is for other machines: with a CUDA toolkit it has CUDA kernels for every architecture, not only this GPU's.
wheel: venv  ## build dist/*.whl with the kernels, for every torch from 2.11 and every Python from 3.11 on
	$(if $(SE_FUSED_BUILD),,SE_FUSED_BUILD=$$($(PY) build_cuda.py)) $(PY) -m build --wheel --no-isolation

gpu-pack: venv  ## build the CUDA library for a machine with a GPU (needs nvcc, no GPU); VARIANT=name FROM=commit adds another
	$(PY) -m benchmarks.gpu pack $(if $(ARCH),--arch $(ARCH)) $(if $(VARIANT),--variant $(VARIANT)) $(if $(FROM),--from $(FROM))

gpu:  ## on a machine with a GPU: verify, profile and benchmark the kernels, without network: build/gpu
	@$(PYTHON) -m benchmarks.gpu all

gpu-keep: venv  ## add GPU results TAR=file-or-folder to benchmarks/results/<gpu>, plot them, and update UNMEASURED.md
	$(PY) -m benchmarks.gpu keep $(TAR)

cuda-all: venv  ## compile the CUDA kernels for every architecture, check the machine code, run it, predict times; no GPU
	SE_FUSED_TEST_ARCHS="80 86 89 90 100 120" $(PY) -m pytest -q --tier nightly tests/backends/cuda/test_compiled_code.py
	$(PY) -m pytest -q --tier nightly -n 2 tests/backends/cuda/test_machine_code.py
	$(PY) -m benchmarks.gpu model
	$(PY) -m benchmarks.gpu model --backend triton

clean:  ## remove build products; keeps .venv
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks
	rm -f se_fused/*.so se_fused/_build_info.py $(VENV)/.built
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
