"""benchmarks/gpu/sass: machine code that nvcc made of small kernels, executed and compared with what they compute."""

import numpy as np
import pytest
from support import cuda_code
from support.paths import SUPPORT

from benchmarks.gpu import machine_code
from benchmarks.gpu.sass.grid import Grid, run_grid
from benchmarks.gpu.sass.memory import Pattern, Process
from benchmarks.gpu.sass.parse import Instruction, operand, parse
from benchmarks.gpu.sass.races import Race
from benchmarks.gpu.sass.warp import LATENCY, Constants, ExecutionError, Place, Trace, run

needs_compiler = pytest.mark.skipif(machine_code.why_not() is not None, reason=str(machine_code.why_not()))
Words = np.ndarray[tuple[int], np.dtype[np.uint32]]

MASK = 0xFFFFFFFF


@pytest.fixture(scope="module")
def kernels() -> dict[str, tuple[dict[int, Instruction], bytes]]:
    code = cuda_code.compiled(SUPPORT / "small_kernels.cu", machine_code.ARCHITECTURE)
    return {
        name: (parse(text), cuda_code.section(code.cubin, f".nv.constant2.{name}"))
        for name, text in cuda_code.machine_code(code).items()
    }


def constants(tables: bytes, threads: int, blocks: int, pointers: tuple[int, int], n: int, k: int) -> Constants:
    words = [threads, 1, 1, blocks, 1, 1]
    head = b"".join(w.to_bytes(4, "little") for w in words).ljust(0x210, b"\0")
    parameter = b"".join(p.to_bytes(8, "little") for p in pointers) + n.to_bytes(4, "little") + k.to_bytes(4, "little")
    return Constants({0: head + parameter, 2: tables})


def computed(kernels: object, name: str, k: int, given: Words, reverse: bool = False, threads: int = 64) -> Words:
    """What a kernel writes for 64 numbers, and 16 words behind them."""
    code, tables = kernels[name]  # type: ignore[index]
    out = np.zeros(80, dtype=np.uint32)
    blocks = len(given) // threads
    banks = constants(tables, threads, blocks, (given.ctypes.data, out.ctypes.data), 1000, k)
    run_grid(code, banks, Grid(blocks, threads, 4 * threads), Process(), reverse)
    return out


def numbers() -> Words:
    found = np.random.default_rng(3).integers(0, 2**32, 64, dtype=np.uint32)
    found[:6] = [0, 1, 0xFFFFFFFF, 0x80000000, 7, 0x7FFFFFFF]
    return found


def signed(x: int) -> int:
    return x - 2**32 if x >> 31 else x


def truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def shifted(x: int, k: int) -> int:
    y = (x << 32 | (~x & MASK)) >> (k % 40)
    arithmetic = (signed(x) << 32) >> (k % 37)
    turn = k % 32
    funnel = (((~x & MASK) << 32 | x) << turn >> 32) & MASK
    return ((y & MASK) ^ (y >> 32)) + arithmetic + funnel


def compared(x: int, k: int) -> int:
    y = (signed(x) << 32 | 1000) >> 3
    z = k * 65537 * 65537
    flags = (
        (y < z) | (y <= z) << 1 | ((y & (2**64 - 1)) > z) << 2 | (y == z) << 3 | (max(signed(x), k) == signed(x)) << 4
    )
    return flags | (min(x, k) & 0xFF) << 8


def selected(x: int, k: int) -> int:
    return [x * 3, ~x, x >> 3, x ^ 77, x.bit_count(), x * x, 5][x % 7]


def divided_64(x: int, k: int) -> int:
    y = x * 0x100000007 & (2**64 - 1)
    return (y // (k * 77)) & MASK ^ (y % 1001)


INTEGERS = {
    "divides": lambda x, k: x // k + 3 * (x % (k + 5)) + truncated(signed(x), -k),
    "divides_64": divided_64, "shifts": shifted, "compares": compared, "selects": selected,
}  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("k", [1, 3, 10, 35, 1000])
@pytest.mark.parametrize("name", INTEGERS)
def test_integers(kernels: object, name: str, k: int) -> None:
    given = numbers()
    want = [INTEGERS[name](int(x), k) & MASK for x in given]
    assert computed(kernels, name, k, given)[:64].tolist() == want


def looped(x: int) -> int:
    r = 0
    for k in range(x % 13):
        if x >> k & 1:
            r += k * k
        elif k % 3 == 0:
            continue
        else:
            r ^= k
        if r > 40:
            break
    return r


@needs_compiler
@pytest.mark.parametrize("reverse", [False, True])
def test_lanes_that_part_come_together_again(kernels: object, reverse: bool) -> None:
    given = numbers()
    alone = [looped(int(x)) for x in given]
    want = []
    for i, own in enumerate(alone):
        warp, lane = alone[i // 32 * 32 : i // 32 * 32 + 32], i % 32
        ballot = sum((int(x) & 1) << j for j, x in enumerate(given[i // 32 * 32 : i // 32 * 32 + 32]))
        down = warp[lane + 3] if lane % 16 + 3 < 16 else own
        want.append((own + warp[lane ^ 5] + down + ballot) & MASK)
    assert computed(kernels, "diverges", 1, given, reverse)[:64].tolist() == want


@needs_compiler
def test_floats(kernels: object) -> None:
    given = numbers()
    x = given.astype(np.uint64)
    f = ((x & 0x7FFFFF) | 0x3F800000).astype(np.uint32).view(np.float32)
    g = ((x >> 9) | 0x40000000).astype(np.uint32).view(np.float32)
    found = computed(kernels, "floats", 1, given)[:64].view(np.float32)
    a, b = f.astype(np.float64), g.astype(np.float64)
    want = a / b + np.sqrt(a) * np.minimum(a, b) - np.maximum(a, 1.5) + np.where(a > b, 1, -2) + np.abs(a - b)
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-6)


@needs_compiler
def test_conversions(kernels: object) -> None:
    given = numbers() >> np.uint32(12)
    torch = pytest.importorskip("torch")
    f = (given.astype(np.float32) * np.float32(1e-3)).astype(np.float32)
    half, brain = torch.from_numpy(f).half(), torch.from_numpy(f).bfloat16()
    bits = half.view(torch.int16).numpy().astype(np.uint32) << np.uint32(16)
    bits = bits | (brain.view(torch.int16).numpy().astype(np.uint32) & np.uint32(0xFFFF))
    want = bits + f.astype(np.uint32) + (f - np.float32(9)).astype(np.int32).view(np.uint32)
    want = want + half.float().numpy().view(np.uint32)
    want = want + (given.astype(np.uint64) << np.uint64(20)).astype(np.float32).view(np.uint32)
    assert computed(kernels, "converts", 1, given)[:64].tolist() == want.tolist()


@needs_compiler
@pytest.mark.parametrize("reverse", [False, True])
def test_memory(kernels: object, reverse: bool) -> None:
    given = numbers()
    raw = given.view(np.uint8)
    want = [int(raw[i]) | int(raw[i ^ 3]) << 8 for i in range(64)]
    found = computed(kernels, "bytes", 1, given, reverse)
    assert found[:64].tolist() == want
    assert found.view(np.uint8)[256:320].tolist() == [(w ^ 9) & 0xFF for w in want]

    one = given.astype(np.uint64)
    total = np.zeros(64, dtype=np.uint64)
    for k in range(4):
        total = (total + np.roll(one, -17 * k)) & np.uint64(MASK)
        one = total
    assert computed(kernels, "shared", 1, given, reverse)[:64].tolist() == total.tolist()

    found = computed(kernels, "counts", 1, given, reverse)
    for warp in (0, 1):
        odd = given[32 * warp : 32 * warp + 32] & 1
        assert found[64 + warp] == odd.sum()
        assert sorted(found[32 * warp : 32 * warp + 32][odd == 1]) == list(range(int(odd.sum())))


@needs_compiler
def test_faults_are_found(kernels: object) -> None:
    """Accesses beyond a block's shared memory, and unknown instructions and operands."""
    with pytest.raises(ExecutionError, match="STS"):
        computed(kernels, "beyond", 40, numbers())
    code = {0: Instruction(0, None, "QUUX", (operand("R1"),), "QUUX R1")}
    with pytest.raises(ExecutionError, match="QUUX"):
        run(code, Constants({}), Place(0))
    with pytest.raises(ValueError, match="operand 'Z9'"):
        operand("Z9")


@needs_compiler
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["races_read", "races_write"])
def test_races_are_found(kernels: object, name: str, reverse: bool) -> None:
    """A load of, and a store over, another warp's word without a barrier; within a warp there is no race."""
    with pytest.raises(Race, match="shared memory by warp"):
        computed(kernels, name, 32, numbers(), reverse)
    computed(kernels, name, 1, numbers() & np.uint32(0xFFFF), reverse, threads=32)


def traced(kernels: object, name: str, k: int) -> Trace:
    code, tables = kernels[name]  # type: ignore[index]
    return run(code, constants(tables, 32, 1, (1 << 20, 2 << 20), 1000, k), Place(0), Pattern(word=lambda address: 0))


@needs_compiler
@pytest.mark.parametrize(("stride", "cycles"), [(1, 1), (2, 2), (8, 8), (32, 32), (33, 1)])
def test_bank_conflicts(kernels: object, stride: int, cycles: int) -> None:
    """A store and a load of shared memory at a stride, beside a load and a store of 128 bytes of global memory."""
    trace = traced(kernels, "strided", stride)
    assert trace.wavefronts == 2 * cycles + 2
    assert trace.conflicts == 2 * (cycles - 1)


@needs_compiler
@pytest.mark.parametrize(("stride", "sectors"), [(1, 4), (2, 8), (8, 32), (16, 32)])
def test_sectors(kernels: object, stride: int, sectors: int) -> None:
    trace = traced(kernels, "gathers", stride)
    assert trace.sectors_read == sectors
    assert trace.sectors_written == 4
    assert trace.read == {4: 128} and trace.written == {4: 128}


@needs_compiler
def test_a_chain_of_loads_takes_their_latencies(kernels: object) -> None:
    few, many = traced(kernels, "chain", 4), traced(kernels, "chain", 24)
    assert 20 * LATENCY["global"] <= many.cycles - few.cycles <= 20 * (LATENCY["global"] + 60)
    assert many.read[4] - few.read[4] == 20 * 128
