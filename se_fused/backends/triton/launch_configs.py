"""Launch shapes (elements, programs, warps) as frozen records, chosen by rule from the map's shape and the device.

The rules are derived, not yet measured (benchmarks/results/UNMEASURED.md). The derivation, for an H200:

- Bytes in flight. 4.3 TB/s at a latency of about 0.7 us need 3 MB in flight: 23 KB for each of 132 multiprocessors. A
  thread of a 16-bit pass has at least two 16-byte loads in flight. Registers permit 8 programs of 128 threads per
  multiprocessor, which makes 32 KB.
- Columns. 128 bytes of a row are one cache line; channels_last tiles take that much of each position. Contiguous tiles
  take the part of a row that leaves the fewest lanes idle (56 x 56 = 12.25 x 256).
- Programs of a pass with sums. Registers limit how many run at once (``SUM_REGISTERS``). A sum is split so that they
  run in few, full rounds (``splits_of``): N = 128 and 64 channels per program are 512 programs in ResNet-50's first
  stage, and two splits fill 1,024 of the 1,056 places of an H100. The launch that merges the splits reads N * C values
  more for each, so there are at most 12 programs per multiprocessor (``_SPLIT_PROGRAMS``).
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import torch

__all__ = [
    "MEAN_REGISTERS",
    "SUM_REGISTERS",
    "Device",
    "ExcitationConfig",
    "L2GroupedConfig",
    "Map",
    "PassConfig",
    "cdiv",
    "device_of",
    "excitation_config",
    "l2_grouped_config",
    "neighbours",
    "pass_config",
    "power_of_two",
    "standing_in",
]


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two >= n."""
    return 1 << max(n - 1, 0).bit_length()


@dataclass(frozen=True)
class Device:
    """The device properties that the rules use."""

    multiprocessors: int
    l2_bytes: int
    is_nvidia: bool = True
    major: int = 9
    """First number of the compute capability."""

    def resident(self, registers: int, warps: int) -> int:
        """Programs that run at once on all multiprocessors, by their registers per thread."""
        return self.multiprocessors * min(65536 // (registers * 32 * warps), 2048 // (32 * warps))


H200 = Device(multiprocessors=132, l2_bytes=60 * 2**20)
_stand_in = H200


@contextmanager
def standing_in(device: Device) -> Iterator[None]:
    """Sets, until the end of the block, the device that the rules assume for tensors on no GPU: in the interpreter, and
    on ``meta``, where kernels are compiled for another machine. The default is an H200."""
    global _stand_in
    before, _stand_in = _stand_in, device
    try:
        yield
    finally:
        _stand_in = before


@lru_cache(maxsize=64)
def _gpu(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    return Device(
        properties.multi_processor_count, properties.L2_cache_size, torch.version.hip is None, properties.major
    )


def device_of(device: torch.device) -> Device:
    """The properties of a tensor's device; without a GPU, those of the stand-in."""
    return _gpu(device.index or 0) if device.type == "cuda" else _stand_in


@dataclass(frozen=True)
class Map:
    """Sizes and memory order of a dense (N, C, *spatial) tensor, in the terms of tiles.py."""

    n: int
    c: int
    s: int
    channels_last: bool
    itemsize: int

    @property
    def length(self) -> int:
        """Elements of a row."""
        return self.c if self.channels_last else self.s

    @property
    def samples(self) -> int:
        """Number of channel axes: N in channels_last, 1 in contiguous order, where the axis has N * C channels."""
        return self.n if self.channels_last else 1

    @property
    def channel_count(self) -> int:
        """Length of the channel axis."""
        return self.c if self.channels_last else self.n * self.c

    @property
    def align(self) -> int:
        """The largest power of two up to 16 that divides a row's length."""
        return gcd(self.length, 16)

    @property
    def vector(self) -> int:
        """Elements in 16 bytes."""
        return 16 // self.itemsize

    @property
    def window(self) -> int:
        """Elements of the whole vectors that cover any row, rounded up to a power of two."""
        return power_of_two(self.s + self.vector - 1)

    @property
    def unaligned(self) -> bool:
        """Whether the kernels of unaligned.py apply: rows are contiguous, short, and not aligned to whole vectors."""
        if self.channels_last or self.s % self.vector == 0 or self.s < self.vector:
            return False
        return self.window <= 1024 and self.n * self.c * self.s % self.vector == 0

    @property
    def nbytes(self) -> int:
        """Bytes of the map, which are those of one pass."""
        return self.n * self.c * self.s * self.itemsize

    def arguments(self, per_sample: bool = False) -> dict[str, int | bool]:
        """The size arguments of every pass kernel; with ``per_sample`` the channel axis is C in both memory orders."""
        outer = self.s if self.channels_last else self.c if per_sample else self.channel_count
        along = 1 if self.channels_last else gcd(self.c, 16)
        return {
            "inner": self.length // self.align, "outer": outer // along, "ALIGN": self.align, "ALIGN_OUTER": along,
            "CHANNELS_LAST": self.channels_last,
        }  # fmt: skip


@dataclass(frozen=True)
class PassConfig:
    """Launch shape of a pass."""

    channels: int  # BLOCK_CHANNELS, along the channel axis
    positions: int  # BLOCK_POSITIONS, per step
    span: int  # positions per program, a multiple of ``positions``
    warps: int
    registers: int | None = None  # per thread, at most

    def splits(self, m: Map) -> int:
        """Number of programs that share a sum."""
        return cdiv(m.s, self.span)

    def programs(self, m: Map) -> int:
        """Number of programs of a launch."""
        return m.samples * cdiv(m.channel_count, self.channels) * self.splits(m)

    def whole_blocks(self, m: Map) -> bool:
        """Whether each program has channels of one block of ``channels`` channels of one sample."""
        return m.channels_last or m.c % self.channels == 0

    def blocks(self) -> dict[str, int]:
        """Constants of the kernel."""
        return {"BLOCK_CHANNELS": self.channels, "BLOCK_POSITIONS": self.positions}

    def chunk(self, m: Map) -> int:
        """CHUNK of a kernel that sums over positions: values per lane and step, all in one thread (tiles.py)."""
        vector = m.vector if m.unaligned else min(m.vector, m.align)
        if not (m.channels_last or m.unaligned):
            return min(vector, self.positions)
        accesses = max(self.channels * self.positions // (32 * self.warps * vector), 1)
        return min(accesses, max(self.positions // vector, 1) if m.unaligned else self.positions)

    def options(self) -> dict[str, int]:
        """Options of the launch."""
        options = {"num_warps": self.warps}
        return options if self.registers is None else options | {"maxnreg": self.registers}


def tile_shape(m: Map, elements: int) -> tuple[int, int]:
    """(channels, positions) of a tile of about ``elements`` elements."""
    if m.channels_last:
        columns = min(max(power_of_two(m.c), 8), max(128 // m.itemsize, 32))
        return columns, min(max(elements // columns, 1), power_of_two(m.s))
    whole = max(power_of_two(m.s), 8)
    columns = whole
    if whole > 128:  # ties go to the longer rows
        columns = min((1024, 512, 256, 128), key=lambda k: cdiv(m.s, k) * k)
    return min(max(elements // columns, 1), power_of_two(m.channel_count)), min(columns, elements)


SUM_REGISTERS = {1: 64, 2: 72, 3: 96}
"""Registers per thread of a kernel that sums over positions, by the number of maps that it reads, in the code of 16-bit
maps (tests/backends/triton/test_compiled_code.py)."""

MEAN_REGISTERS = 72
"""Registers per thread of scale_shift_act_mean, which has the tiles of a kernel that reads three maps."""

_FIXED_STEPS = 3
"""The steps that take as long as a program's merging of its lanes, about 600 of 230 instructions."""

_SPLIT_PROGRAMS = 12
"""Programs per multiprocessor up to which sums are split."""


def sum_registers(m: Map, tensors: int, device: Device) -> int | None:
    """The limit for registers per thread that a launch sets. 64 let eight programs run where the compiler's own choice
    of 72 lets seven; on sm_100 it spills, and so does the backward kernel with Triton 3.6. A kernel that reads three
    maps needs all of its registers. Where rows or channels are no multiple of 16 elements, the compiler stops at 96 and
    spills, so the limit is a larger number."""
    if tensors == 3 or not device.is_nvidia:
        return None
    if m.align < 16 or m.c % 16:
        return 168
    return SUM_REGISTERS[tensors] if device.major < 10 else 80


def sum_columns(m: Map, elements: int) -> int:
    """Channels of a channels_last tile that is summed: 128 bytes of a position or, so that short maps have several
    steps per program, up to four times as many, as long as there are eight tiles per sample. All depends on the map of
    one sample only, because other constants are other kernels."""
    columns = 128 // m.itemsize
    while columns < 512 // m.itemsize and m.s * columns < 6 * elements and m.c >= 16 * columns:
        columns *= 2
    return columns


def splits_of(programs: int, steps: int, resident: int, most: int) -> int:
    """In how many parts, at most ``most``, to split the ``steps`` of each of so many programs, of which ``resident``
    run at once: those with the shortest time, rounds of programs times steps of one, and the fewest of these."""

    def time(splits: int) -> int:
        return cdiv(programs * splits, resident) * (cdiv(steps, splits) + _FIXED_STEPS)

    return min(range(1, max(min(steps // 2, most, 256), 1) + 1), key=time)


def pass_config(m: Map, device: Device, tensors: int, sums: bool, registers: int | None = None) -> PassConfig:
    """The launch shape of a pass.

    Args:
        m: the map.
        device: the device that it runs on.
        tensors: number of maps that a step reads; each takes registers.
        sums: whether the kernel sums over positions. If so a program processes many steps; otherwise four steps are
            enough to amortise loading its coefficients.
        registers: per thread of a kernel that sums, if they are not those of ``SUM_REGISTERS``.
    """
    warps = 4
    if m.unaligned:
        nbytes = {1: 64, 2: 32, 3: 16}[tensors] if sums else 32 // tensors
        rows = max(warps * 32 * nbytes // m.itemsize // m.window, 1)
        return PassConfig(min(rows, power_of_two(m.channel_count)), m.window, m.window, warps)
    # Each narrow access takes a register, so a thread has fewer of them.
    bytes_per_thread = min(64 if tensors == 1 else 32, max(4 * m.align * m.itemsize, 16))
    elements = warps * 32 * bytes_per_thread // m.itemsize
    channels, positions = tile_shape(m, elements)
    if sums and m.channels_last and channels * m.itemsize >= 128:
        channels = sum_columns(m, elements)
        positions = min(max(elements // channels, 1), power_of_two(m.s))
    steps = cdiv(m.s, positions)
    if not sums:
        return PassConfig(channels, positions, min(steps, 4) * positions, warps)
    programs = m.samples * cdiv(m.channel_count, channels)
    most = cdiv(_SPLIT_PROGRAMS * device.multiprocessors, programs)
    splits = splits_of(programs, steps, device.resident(registers or SUM_REGISTERS[tensors], warps), most)
    return PassConfig(channels, positions, cdiv(steps, splits) * positions, warps, sum_registers(m, tensors, device))


def neighbours(config: PassConfig, m: Map) -> list[PassConfig]:
    """Launch shapes near ``config``, for autotuning: half, the same and twice its tile size along each axis, 4 or 8
    warps."""
    found = []
    elements = config.channels * config.positions
    for channels, positions, warps in itertools.product((0.5, 1, 2), (0.5, 1, 2), (4, 8)):
        columns = config.channels if m.channels_last else config.positions
        if m.unaligned and positions != 1:  # the window's size is fixed
            continue
        a, b = int(config.channels * channels), int(config.positions * positions)
        if min(a, b) < 1 or (a if m.channels_last else b) < min(columns, 8) or not 512 <= a * b <= 16384:
            continue
        found.append(PassConfig(a, b, cdiv(config.span, b) * b, warps, config.registers if a * b <= elements else None))
    return [shape for shape in found if shape != config]


@dataclass(frozen=True)
class L2GroupedConfig:
    """Launch shape of the l2_grouped inference kernel, which keeps groups of samples in L2."""

    passes: PassConfig
    group: int  # samples
    programs: int


def l2_grouped_config(m: Map, device: Device) -> L2GroupedConfig | None:
    """The launch shape of the l2_grouped kernel, or None if separate launches are as good: x stays in L2 between the
    passes, three groups do not fit in L2, or there are too few samples.

    Four programs of 128 threads per multiprocessor, with 64 bytes in flight per thread, have 32 KB in flight, which is
    enough. A tile is two such steps, 16 KB, so that taking its ticket (a round trip to L2, at most 1 us) is a third of
    its time and not most of it. A group has as many tiles as there are programs: 8.7 MB on an H200; three groups take
    26 of its 60 MB of L2.
    """
    if m.nbytes <= device.l2_bytes // 2 or m.n < 4:
        return None
    programs = 4 * device.multiprocessors
    channels, positions = tile_shape(m, 4 * 32 * min(64, max(4 * m.align * m.itemsize, 16)) // m.itemsize)
    if not m.channels_last:  # groups are whole samples, so a tile must not span two
        channels = min(channels, power_of_two(m.c))
    steps = min(cdiv(m.s, positions), 2)
    passes = PassConfig(channels, positions, steps * positions, 4)
    sample = cdiv(m.c, channels) * passes.splits(m)  # tiles of one sample
    group = cdiv(programs, sample)
    if 3 * group * m.nbytes // m.n > device.l2_bytes * 3 // 4 or 2 * group > m.n:
        return None
    return L2GroupedConfig(passes, group, programs)


@dataclass(frozen=True)
class ExcitationConfig:
    """Launch shape of the excitation's kernels."""

    n: int  # BLOCK_N: samples per tile; tensor cores need at least 16
    m: int  # BLOCK_M: samples per step, in tiles that loop over all samples
    c: int  # BLOCK_C: channels per tile
    r: int  # BLOCK_R: squeezed channels per tile
    k: int  # BLOCK_K: channels per step
    q: int  # BLOCK_Q: squeezed channels per step
    warps: int
    registers: int  # per thread, at most

    def blocks(self) -> dict[str, int]:
        """Constants of the kernel."""
        return {f"BLOCK_{name.upper()}": getattr(self, name) for name in "nmcrkq"}

    def options(self, device: Device) -> dict[str, int]:
        """Options of the launch."""
        options = {"num_warps": self.warps, "num_stages": 1}
        return options | {"maxnreg": self.registers} if device.is_nvidia else options


def excitation_config(n: int, c: int, r: int, kernel: str) -> ExcitationConfig:
    """The launch shape of excitation in kernel "forward", "backward" or "l2_grouped".

    There are 2 * N * C * R products in all (67 M at N = 128, C = 2048), which is little for tensor cores. The time
    depends on having a tile for every multiprocessor in each phase, and few steps, because each step waits about 0.7 us
    for L2. So tiles are small, and steps are as long as registers permit. With k = 256 forward or 128 backward, or with
    loads staged in shared memory ahead of their use (two stages or more), the kernels spill
    (tests/backends/triton/test_compiled_code.py).

    Forward and backward run one program per multiprocessor, so registers are free and the limit is 255; without it
    ptxas stops at 128 or 168 and spills a few bytes. Four programs of the l2_grouped kernel share a multiprocessor, so
    its limit is 128.
    """
    most = {
        "forward": {"m": 64, "c": 32, "r": 16, "k": 128, "q": 64, "warps": 8, "registers": 255},
        "backward": {"m": 32, "c": 16, "r": 16, "k": 64, "q": 64, "warps": 8, "registers": 255},
        "l2_grouped": {"m": 16, "c": 32, "r": 16, "k": 32, "q": 32, "warps": 4, "registers": 128},
    }[kernel]
    sizes = {"c": c, "r": r, "k": c, "q": r}
    blocks = {name: max(min(power_of_two(size), most[name]), 16) for name, size in sizes.items()}
    # Only two values, for few samples or many, so that the smaller last batch of an epoch rarely needs a new
    # compilation.
    blocks["m"] = 16 if n <= 16 else most["m"]
    return ExcitationConfig(16, **blocks, warps=most["warps"], registers=most["registers"])
