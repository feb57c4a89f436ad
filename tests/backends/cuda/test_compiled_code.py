"""Checks of the CUDA kernels' compiled code, from ptxas's report and the machine code. Needs nvcc, but no GPU.

They check that nothing spills and no thread has a stack; that passes move 128 bits per access; that nothing is computed
in float64; that there are no atomics on floats; that blocks that wait for each other use no fence except their
releases; that the launches of a chain let the next one begin and wait for the one before; and that the cluster_fused
kernel uses bulk copies and pushes without fences and is empty before sm_90.
SE_FUSED_TEST_ARCHS="80 86 89 90 100 120" (`make cuda-all`) compiles for other architectures than sm_90.
"""

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from support import cuda_code
from support.cuda_code import Code, Kernel

# map kernel -> how many maps it reads and writes; it reads one more if its flag is set
PASSES = {
    "moments_kernel": (1, 0),
    "scale_shift_act_kernel": (2, 1),
    "moments_backward_kernel": (2, 1),  # flag: derivative from the sum; reads the residual
    "scale_shift_act_backward_kernel": (1, 1),  # flag: x is read
    "scale_shift_act_mean_kernel": (1, 1),
}
# kernel -> whether it lets its successor begin, and waits for its predecessor
CHAIN = {
    "moments_kernel": (True, False),
    "moments_backward_kernel": (True, False),
    "excitation_kernel": (True, True),
    "excitation_backward_kernel": (True, True),
    "scale_shift_act_kernel": (False, True),
    "scale_shift_act_backward_kernel": (False, True),
}
WIDE = ("rows", "rows_unaligned", "cols")
ARCHITECTURES = cuda_code.architectures()
FLOAT64 = r"\bD(?:ADD|MUL|FMA|SETP|MMA|MNMX)\b|\w+(?:\.\w+)*\.F64\b"
# CAS: an addition of floats in shared memory is a compare-and-swap loop
FLOAT_ATOMICS = r"\b(?:RED|ATOM)\w*\.[\w.]*(?:F16|F32|F64|CAS)"
BULK_COPY, PREFETCH, PUSH = r"\bUBLKCP\b", r"\bUBLKPF\b", r"\bSTAS\.128\b"
ARRIVE, WAIT = r"\bUCGABAR_ARV\b", r"\bUCGABAR_WAIT\b"
ALLOW, DEPENDENCY_WAIT = r"\bPREEXIT\b", r"\bACQBULK\b"
FENCE, FULL_FENCE, GPU_FENCE = r"\bMEMBAR\b", r"\bMEMBAR\.SC\b", r"\bMEMBAR[.\w]*\.GPU\b"
GLOBAL_ADD = r"\b(?:RED|ATOM)G?\.E\.ADD[\w.]*"
MEMORY = r"\b(?:LDG|STG|LD|ST|LDS|STS|RED|ATOM)\w*\."

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not cuda_code.NVCC, reason="nvcc is not installed"),
]
needs_disassembler = pytest.mark.skipif(find_spec("triton") is None, reason="Triton, which has cuobjdump, is missing")
Job = tuple[str, int]


def jobs(*sources: str) -> list[Job]:
    return [(source, arch) for arch in ARCHITECTURES for source in sources or cuda_code.SOURCES]


def name_of(job: Job) -> str:
    return f"{job[0]}-sm_{job[1]}"


every_source = pytest.mark.parametrize("code", jobs(), indirect=True, ids=name_of, scope="session")
pass_sources = pytest.mark.parametrize(
    "code", jobs("scale_shift_act", "scale_shift_act_mean", "moments"), indirect=True, ids=name_of, scope="session"
)
ticket_sources = pytest.mark.parametrize(
    "code", jobs("excitation", "excitation_backward", "l2_grouped"), indirect=True, ids=name_of, scope="session"
)
chain_sources = pytest.mark.parametrize(
    "code",
    jobs("moments", "excitation", "excitation_backward", "scale_shift_act"),
    indirect=True,
    ids=name_of,
    scope="session",
)
cluster_fused_source = pytest.mark.parametrize(
    "code", jobs("cluster_fused"), indirect=True, ids=name_of, scope="session"
)


@pytest.fixture(scope="session")
def compiling(request: pytest.FixtureRequest) -> Iterator[dict[Job, Future[Code]]]:
    """Background compilations of the kernels that the selected tests need."""
    calls = (getattr(item, "callspec", None) for item in request.session.items)
    wanted = dict.fromkeys(call.params["code"] for call in calls if call and "code" in call.params)
    pool = ThreadPoolExecutor(cuda_code.AT_ONCE)
    yield {(source, arch): pool.submit(cuda_code.compiled, cuda_code.SOURCES[source], arch) for source, arch in wanted}
    pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def code(request: pytest.FixtureRequest, compiling: dict[Job, Future[Code]]) -> Code:
    return compiling[request.param].result()


@pytest.fixture(scope="session")
def disassembled() -> dict[Path, dict[str, str]]:
    return {}


@pytest.fixture
def sass(code: Code, disassembled: dict[Path, dict[str, str]]) -> list[tuple[Kernel, str]]:
    if code.cubin not in disassembled:
        disassembled[code.cubin] = cuda_code.machine_code(code)
    found = disassembled[code.cubin]
    return [(kernel, found[kernel.mangled]) for kernel in code.kernels if kernel.is_entry]


def widths(sass: str) -> tuple[Counter[int], Counter[int]]:
    """Counts of global memory accesses, (loads, stores), by width in bits."""
    from se_fused.backends.triton.compiled_code import _widths

    return _widths(sass, "LDG"), _widths(sass, "STG")


def spills(kernels: list[Kernel]) -> list[str]:
    return [
        f"{k.label}: {k.stack} bytes of stack, {k.spill_stores} of spill stores, {k.spill_loads} of spill loads"
        for k in kernels
        if k.stack or k.spill_stores or k.spill_loads
    ]


@every_source
def test_every_kernel_was_compiled(code: Code) -> None:
    """The tests of this file see every kernel and every instance in the source."""
    written = set(re.findall(r"^(?:__global__ void )?(\w+_kernel)\(.*\) \{", code.source.read_text(), re.MULTILINE))
    assert {kernel.name for kernel in code.kernels if kernel.is_entry} == written
    for name in written & PASSES.keys():
        instances = [kernel for kernel in code.kernels if kernel.name == name]
        assert {kernel.mode for kernel in instances} == set(cuda_code.modes()), name
        assert len(instances) == 3 * len(cuda_code.modes()) * (
            1 if name in ("scale_shift_act_kernel", "scale_shift_act_mean_kernel") else 2
        ), name


@every_source
def test_nothing_spills(code: Code) -> None:
    """No kernel spills or has a stack; an array with run-time indices would need a stack even without spilling."""
    found = spills(code.kernels)
    assert not found, f"{code.source.name} for sm_{code.architecture}:\n" + "\n".join(found)


@every_source
@needs_disassembler
def test_no_float64_and_no_float_atomics(sass: list[tuple[Kernel, str]]) -> None:
    """No literal without the suffix f widens to float64, and no sum depends on the order of atomic additions."""
    found = [(k.label, sorted(set(re.findall(f"{FLOAT64}|{FLOAT_ATOMICS}", text)))) for k, text in sass]
    assert not [(label, instructions) for label, instructions in found if instructions]


@pass_sources
@needs_disassembler
def test_passes_move_128_bits(sass: list[tuple[Kernel, str]]) -> None:
    """Kernels in the modes rows, rows_unaligned and cols access maps with 128 bits.

    Each map has at least the 128-bit accesses of one vector of eight: two in float32, one in 16 bits. In rows and cols,
    no map has narrower stores. Narrower loads are not counted: they read parameters, the mask and, in rows_unaligned,
    the last elements of a tensor's memory.
    """
    checked = 0
    for kernel, text in sass:
        if kernel.name not in PASSES or kernel.mode not in WIDE:
            continue
        checked += 1
        per_vector, (read, written) = kernel.item_bytes // 2, PASSES[kernel.name]
        read += kernel.flag and kernel.name != "moments_kernel"  # whose flag is about its sums
        loads, stores = widths(text)
        assert loads[128] >= per_vector * read, (kernel.label, loads)
        assert stores[128] >= per_vector * written, (kernel.label, stores)
        if kernel.mode != "rows_unaligned":
            assert not stores[16], (kernel.label, stores)
            # Stores of 32 bits are sums in moments and means; elsewhere they could only be elements of a float32 map.
            assert not stores[32] or "moments" in kernel.name or "mean" in kernel.name, (kernel.label, stores)
    assert checked >= 9  # test_every_kernel_was_compiled checks that no instance is missing


@ticket_sources
@needs_disassembler
def test_a_release_is_the_only_fence(sass: list[tuple[Kernel, str]]) -> None:
    """Blocks publish their results by releases with one fence each; taking a ticket needs no fence."""
    for kernel, text in sass:
        assert not re.findall(FULL_FENCE, text), kernel.label
        releases = len(re.findall(GLOBAL_ADD, text)) - 1
        assert releases >= 2, kernel.label
        assert len(re.findall(FENCE, text)) == releases, kernel.label


@chain_sources
@needs_disassembler
def test_launches_of_a_chain_overlap(code: Code, sass: list[tuple[Kernel, str]]) -> None:
    """A kernel lets the next launch begin before it reads memory, and waits before it writes; before sm_90 neither."""
    later = code.architecture >= 90
    for kernel, text in sass:
        allows, waits = CHAIN[kernel.name]
        assert len(re.findall(ALLOW, text)) == (allows and later), kernel.label
        assert len(re.findall(DEPENDENCY_WAIT, text)) == (waits and later), kernel.label
        reads, writes = re.search(r"\bLDG?\.", text), re.search(r"\b(?:STG?|REDG?|ATOMG?)\.", text)
        assert reads and writes, kernel.label
        if allows and later:
            assert text.index("PREEXIT") < reads.start(), kernel.label
        if waits and later:
            assert text.index("ACQBULK") < writes.start(), kernel.label
        prefetches = kernel.name.startswith("excitation") or kernel.name == "scale_shift_act_kernel"
        assert bool(re.findall(PREFETCH, text)) == (prefetches and later), kernel.label


@cluster_fused_source
@needs_disassembler
def test_cluster_fused_pushes_its_results_without_fences(code: Code, sass: list[tuple[Kernel, str]]) -> None:
    """cluster_fused uses bulk copies and prefetches, asynchronous stores to other blocks, and 128-bit accesses.

    Its only cluster barrier is the one before the first store, which is relaxed. A release at cluster scope would be a
    fence for the whole device. x is read by shared-memory loads, not by generic ones.
    """
    assert len(sass) == 3 * len(WIDE)
    for kernel, text in sass:
        if code.architecture < 90:
            assert not re.findall(MEMORY, text), f"{kernel.label} ought to be empty"
            continue
        for instruction in (BULK_COPY, PREFETCH, PUSH, ARRIVE, WAIT):
            assert re.findall(instruction, text), kernel.label
        loads, stores = widths(text)
        assert min(loads[128], stores[128]) >= kernel.item_bytes // 2, (kernel.label, loads, stores)
        assert not re.findall(FENCE, text), kernel.label
        assert re.findall(r"\bLDS\.128\b", text), kernel.label
        assert not re.findall(r"\bLD\.E[\w.]*\.128\b", text), kernel.label


BAD = """
extern "C" {
__global__ void __launch_bounds__(1024) spills(volatile float* p) {  // 64 registers
  float a[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) a[i] = p[i];
#pragma unroll
  for (int i = 0; i < 128; ++i) p[128 + i] = a[i];
}
__global__ void indexed(volatile int* p) {
  int a[64];
  for (int i = 0; i < 64; ++i) a[p[i] & 63] = i;
  for (int i = 0; i < 64; ++i) p[i] = a[p[i] & 63];
}
__global__ void widened(float* p) { p[0] = p[1] * 0.1; }
__global__ void adds(float* p) { atomicAdd(p, 1.f); }
__global__ void adds_and_returns(float* p) { p[1] = atomicAdd(p, 1.f); }
__global__ void adds_in_shared_memory(float* p) {
  __shared__ float sum;
  if (threadIdx.x == 0) sum = 0.f;
  __syncthreads();
  atomicAdd(&sum, p[threadIdx.x]);
  __syncthreads();
  p[threadIdx.x] = sum;
}
__global__ void counts(int* p) { p[1] = atomicAdd(p, 1); }
__global__ void fences(int* p) {
  p[1] = p[0];
  __threadfence();
  p[2] = p[0];
}
__global__ void copies_one_by_one(volatile short* p) {
  for (int i = 0; i < 8; ++i) p[8 + i] = p[i];
}
}
"""


@needs_disassembler
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda arch: f"sm_{arch}")
def test_the_checks_see_what_they_look_for(architecture: int, tmp_path: Path) -> None:
    """The patterns find each fault in kernels that contain it; instruction names change between architectures."""
    source = tmp_path / "bad.cu"
    source.write_text(BAD)
    code = cuda_code.compiled(source, architecture)
    text = cuda_code.machine_code(code)
    assert {kernel.name for kernel in code.kernels} == text.keys() and len(text) == 9
    of = {kernel.name: kernel for kernel in code.kernels}
    assert of["spills"].spill_stores and of["spills"].spill_loads and of["spills"].registers <= 64
    assert of["indexed"].stack == 256 and not of["indexed"].spill_stores
    assert of["adds_in_shared_memory"].shared >= 4
    assert {line.split(":")[0] for line in spills(code.kernels)} == {"spills", "indexed"}
    assert {name for name in text if re.search(FLOAT64, text[name])} == {"widened"}
    atomics = {name for name in text if re.search(FLOAT_ATOMICS, text[name])}
    assert atomics == {"adds", "adds_and_returns", "adds_in_shared_memory"}
    assert {name for name in text if re.search(FULL_FENCE, text[name])} == {"fences"}
    assert len(re.findall(FENCE, text["fences"])) == len(re.findall(GPU_FENCE, text["fences"])) == 1
    added = {name for name in text if re.search(GLOBAL_ADD, text[name])}
    assert added == {"adds", "adds_and_returns", "counts"}
    assert widths(text["copies_one_by_one"]) == ({16: 8}, {16: 8})
    assert re.search(MEMORY, text["adds"])
