"""Compiles Triton launches for any GPU, without having one, and reports registers, spills, shared memory and the widths
of memory accesses.

``python -m se_fused.backends.triton.compiled_code`` prints a table for the blocks of ResNet-50's stages. The launches
are
those of the backend: it is called with tensors on the ``meta`` device, and nothing is launched.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._params import (
    NO_EXCITATION,
    BatchNormParams,
    BlockOptions,
    Conv1x1Params,
    ExcitationParams,
    SavedTensors,
)
from ...activations import OUT_ACT_CODES
from . import batch_norm_squeeze_excite, conv1x1_squeeze_excite, passes
from .launch import Launch, recording

__all__ = [
    "ARCHITECTURES",
    "Code",
    "compiled",
    "key_of",
    "launches_of_block",
    "launches_of_conv1x1_squeeze_excite",
    "launches_of_gated_conv1x1",
    "launches_of_scale_shift_act_mean",
    "narrow_offsets",
]

ARCHITECTURES = (80, 90, 100)
_POINTERS = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.uint8: "*u8", torch.int32: "*i32",
}  # fmt: skip


@dataclass(frozen=True)
class Code:
    """One kernel, compiled for one architecture."""

    registers: int  # per thread
    spill_bytes: int  # local memory and stack per thread
    shared_bytes: int  # per program
    loads: Counter[int]  # instructions that load from global memory, by bits per thread
    stores: Counter[int]
    asm: dict[str, str]  # "ttir", "ptx", "sass" ...


_Path = tuple[int, ...]
"""An argument's number, and for a field of a group the field's number after it."""


def _signature(launch: Launch) -> tuple[dict[str, Any], dict[_Path, Any], dict[_Path, list[list[Any]]]]:
    """(types by name, constants and attributes by path) of the arguments, specialised as Triton's launcher does it. The
    type of a group is a group of types."""
    constants: dict[_Path, Any] = {}
    attributes: dict[_Path, list[list[Any]]] = {}

    def type_of(value: Any, path: _Path, constant: bool, fixed: bool) -> Any:
        if isinstance(value, tuple):
            return type(value)(*(type_of(field, (*path, i), False, False) for i, field in enumerate(value)))
        if isinstance(value, Tensor):
            name, divisible = _POINTERS[value.dtype], True  # PyTorch's allocator aligns to 512 bytes
        elif value is None or constant or (value == 1 and not isinstance(value, float) and not fixed):
            constants[path] = value
            return "constexpr"
        elif isinstance(value, float):
            name, divisible = "fp32", False
        else:
            name, divisible = "i32", value % 16 == 0 and not fixed
        if divisible:
            attributes[path] = [["tt.divisibility", 16]]
        return name

    types = {
        p.name: type_of(launch.arguments[p.name], (index,), p.name.isupper(), p.do_not_specialize)
        for index, p in enumerate(launch.kernel.params)
    }
    return types, constants, attributes


def key_of(launch: Launch) -> str:
    """The key of Triton's specialisation: launches with the same key share one compiled kernel."""
    types, constants, attributes = _signature(launch)
    return repr((launch.name, types, constants, sorted(attributes), sorted(launch.options.items())))


def _tool(name: str) -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _widths(sass: str, instruction: str) -> Counter[int]:
    """Count of the matching instructions by their bits per thread. LDGSTS loads from global into shared memory."""
    found: Counter[int] = Counter()
    for suffixes in re.findall(rf"\b(?:{instruction})\.E([.\w]*)", sass):
        width = re.search(r"\.(128|64|U?8|[US]?16)\b", suffixes)
        found[int(width.group(1).lstrip("US")) if width else 32] += 1
    return found


def compiled(launch: Launch, architecture: int | str) -> Code:
    """Compile the kernel of a launch.

    Args:
        launch: from :func:`recording <se_fused.backends.triton.launch.recording>`.
        architecture: an NVIDIA compute capability (90 for 9.0), or the name of an AMD architecture ("gfx942").

    Raises:
        RuntimeError: Triton's interpreter is on in this process, so kernels cannot be compiled.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if type(launch.kernel).__name__ == "InterpretedFunction":
        raise RuntimeError("kernels are interpreted in this process (TRITON_INTERPRET): compile them in another")
    types, constants, attributes = _signature(launch)
    source = ASTSource(fn=launch.kernel, signature=types, constexprs=constants, attrs=attributes)
    if isinstance(architecture, str):
        target = GPUTarget("hip", architecture, 64)
    else:
        target = GPUTarget("cuda", architecture, 32)
    kernel = triton.compile(source, target=target, options=launch.options)
    return _amd(kernel) if isinstance(architecture, str) else _nvidia(kernel)


def _nvidia(kernel: Any) -> Code:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])

        def dump(option: str) -> str:
            return subprocess.run(
                [_tool("cuobjdump"), option, cubin], check=True, capture_output=True, text=True
            ).stdout

        sass, usage = dump("-sass"), dump("-res-usage")
    numbers = {k: int(v) for k, v in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    return Code(
        numbers["REG"], numbers["STACK"] + numbers["LOCAL"], max(numbers["SHARED"], kernel.metadata.shared),
        _widths(sass, "LDG|LDGSTS"), _widths(sass, "STG"), {**kernel.asm, "sass": sass},
    )  # fmt: skip


def _amd(kernel: Any) -> Code:
    """Code statistics from AMD's assembly text. The suffixes of its mnemonics give the widths: global_load_dwordx4,
    _ushort, _ubyte."""
    text = kernel.asm["amdgcn"]
    bits = {"dwordx4": 128, "dwordx2": 64, "dword": 32, "short": 16, "ushort": 16, "byte": 8, "ubyte": 8}

    def widths(kind: str) -> Counter[int]:
        names = re.findall(rf"\b(?:global|buffer)_{kind}_(\w+)", text)
        return Counter(bits[n.removesuffix("_d16").removesuffix("_hi")] for n in names if n.split("_")[0] in bits)

    def number(name: str) -> int:
        return max(int(n) for n in re.findall(rf"\.{name}:\s*(\d+)", text))

    spilled = number("private_segment_fixed_size") + 4 * number("vgpr_spill_count")
    return Code(
        number("vgpr_count"), spilled, kernel.metadata.shared, widths("load"), widths("store"), dict(kernel.asm)
    )


def launches_of_block(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    channels_last: bool,
    training: bool,
    hidden: int | None,
    out_act: str = "relu",
    act: str = "relu",
) -> list[Launch]:
    """The launches of ``batch_norm_squeeze_excite`` for a shape, forward and (in training) backward.

    Args:
        shape: (N, C, *spatial).
        hidden: R; None without squeeze-excite.
        out_act, act: names of the activations.
    """
    c = shape[1]
    x = _meta(*shape, dtype=dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    fc = NO_EXCITATION
    if hidden is not None:
        fc1, fc2 = _meta(hidden, c, dtype=dtype), _meta(c, hidden, dtype=dtype)
        fc = ExcitationParams(fc1, _meta(hidden, dtype=dtype), fc2, _meta(c, dtype=dtype), act)
    bn = BatchNormParams(_meta(c), _meta(c), _meta(c), _meta(c), training, 0.1, 1e-5)
    if training:
        bn = bn.without_running()
    options = BlockOptions(x, None, out_act)
    with recording(dry=True) as launches:
        if not training:
            batch_norm_squeeze_excite.batch_norm_squeeze_excite_inference(x, bn, fc, options, torch.empty_like(x))
            return launches
        y, *saved = batch_norm_squeeze_excite.batch_norm_squeeze_excite_forward(x, bn, fc, options, True)
        batch_norm_squeeze_excite.batch_norm_squeeze_excite_backward(y, SavedTensors(x, *saved), bn, fc, options, True)
    return launches


def launches_of_conv1x1_squeeze_excite(shape: tuple[int, ...], dtype: torch.dtype) -> list[Launch]:
    """The launches of a 1x1 convolution with squeeze-excite from C / 4 channels to ``shape`` (N, C, *spatial), R = C /
    16."""
    n, c = shape[:2]
    k, r = c // 4, c // 16

    def rows(channels: int) -> Tensor:
        return _meta(n, channels, *shape[2:], dtype=dtype).to(memory_format=torch.channels_last)

    with recording(dry=True) as launches:
        conv1x1_squeeze_excite.product(
            rows(k),
            Conv1x1Params(_meta(c, k, 1, 1, dtype=dtype), _meta(c, dtype=dtype)),
            ExcitationParams(_meta(r, k), _meta(r), _meta(c, r, dtype=dtype), _meta(c, dtype=dtype)),
            BlockOptions(rows(c), None, "relu"),
        )
    return launches


def launches_of_scale_shift_act_mean(
    shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, out_act: str
) -> list[Launch]:
    """The launches of pass 2 with the mean of its result, and of the first half of its backward pass."""
    x = _meta(*shape, dtype=dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    vector = _meta(*shape[:2])
    with recording(dry=True) as launches:
        passes.scale_shift_act_mean(x, vector, vector, OUT_ACT_CODES[out_act])
        passes.scale_shift_act_mean_backward(x, vector, x, vector, vector, vector, OUT_ACT_CODES[out_act])
    return launches


def launches_of_gated_conv1x1(shape: tuple[int, ...], dtype: torch.dtype) -> list[Launch]:
    """The launches of a gated 1x1 convolution from ``shape`` (N, C, *spatial) to C / 4 channels, with a bias."""
    n, c = shape[:2]
    y = _meta(*shape, dtype=dtype).to(memory_format=torch.channels_last)
    with recording(dry=True) as launches:
        conv1x1_squeeze_excite.gated_product(
            y, _meta(n, c), _meta(c // 4, c, 1, 1, dtype=dtype), _meta(c // 4, dtype=dtype)
        )
    return launches


def _meta(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(size, dtype=dtype, device="meta")


def narrow_offsets(ttir: str) -> int:
    """Number of address computations in two and more dimensions with 32-bit offsets in Triton's intermediate code.

    Such an offset is the sum of a row's and a column's. It may overflow unless the row's offset is 64-bit, so the
    number should be zero.
    """
    return len(re.findall(r"tt\.addptr [^\n]*: tensor<\d+(?:x\d+)+x!tt\.ptr<\w+>>, tensor<[\dx]+xi32>", ttir))


def _rows() -> Iterator[tuple[str, ...]]:
    for channels_last in (True, False):
        for c, size in ((256, 56), (512, 28), (1024, 14), (2048, 7)):
            for training in (True, False):
                shape = (128, c, size, size)
                for launch in launches_of_block(shape, torch.bfloat16, channels_last, training, max(c // 16, 8)):
                    code = compiled(launch, 90)
                    yield (
                        "channels_last" if channels_last else "contiguous", f"{c}x{size}x{size}", launch.name,
                        str(launch.grid[0]), str(code.registers), str(code.spill_bytes), str(code.shared_bytes),
                        str(dict(code.loads)), str(dict(code.stores)),
                    )  # fmt: skip


if __name__ == "__main__":
    print("layout map kernel programs registers spills shared loads stores (bfloat16, N = 128, sm_90)")
    for row in _rows():
        print(*row)
