"""Compiles csrc/cuda/*.cu with nvcc and ptxas for GPUs that need not be present, and reads the results.

``python tests/support/cuda_code.py [90 100 ...]`` prints registers, stack, spills and shared memory of every kernel.
"""

import functools
import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support import compiled as compiled_files

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "csrc" / "cuda"
SOURCES = {path.stem: path for path in sorted(FOLDER.glob("*.cu"))}
NVCC = shutil.which("nvcc")
AT_ONCE = 2  # the compiler of one file takes up to 1 GB


def architectures() -> list[int]:
    return [int(arch) for arch in os.environ.get("SE_FUSED_TEST_ARCHS", "90").split()]


def modes() -> list[str]:
    """Names of the modes, in the order of their numbers in template arguments."""
    found = re.search(r"enum class Mode : int \{ (.*?) \}", (FOLDER / "kernel_params.h").read_text())
    assert found, "enum Mode is not where it was"
    return found.group(1).split(", ")


@dataclass(frozen=True)
class Kernel:
    """One kernel instance, or a device function that was not inlined."""

    mangled: str
    label: str  # demangled, without namespaces
    is_entry: bool = True
    registers: int = 0
    stack: int = 0  # bytes per thread, including spills
    spill_stores: int = 0
    spill_loads: int = 0
    shared: int = 0  # static bytes; our kernels use dynamic shared memory only

    def _name_and_arguments(self) -> tuple[str, str]:
        # Example: _ZN8se_fused4cuda22scale_shift_act_kernelIfLNS0_4ModeE4EEEvNS0_13ScaleShiftActE. A name's length
        # precedes it.
        found = re.match(r"_ZN\d+se_fused4cuda(\d+)(\w+)", self.mangled)
        if not found:
            return self.mangled, ""
        length = int(found.group(1))
        return found.group(2)[:length], found.group(2)[length:]

    @property
    def name(self) -> str:
        return self._name_and_arguments()[0]

    @property
    def item_bytes(self) -> int:
        """Bytes of the first template argument, which is the map's element type."""
        return 4 if self._name_and_arguments()[1].startswith("If") else 2

    @property
    def mode(self) -> str | None:
        found = re.search(r"LNS0_4ModeE(\d)E", self._name_and_arguments()[1])
        return modes()[int(found.group(1))] if found else None

    @property
    def flag(self) -> bool:
        """Whether the Boolean template argument is true."""
        return "Lb1E" in self._name_and_arguments()[1]


@dataclass(frozen=True)
class Code:
    source: Path
    architecture: int
    kernels: list[Kernel]
    cubin: Path


def demangled(names: list[str]) -> list[str]:
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if not tool or not names:
        return names
    text = subprocess.run([tool], input="\n".join(names), check=True, capture_output=True, text=True).stdout
    text = re.sub(r"\([\w:]+\)$|\bse_fused::(cuda::)?|^void ", "", text, flags=re.MULTILINE)
    return re.sub(r"\(Mode\)(\d)", lambda m: modes()[int(m.group(1))], text).splitlines()


def parsed(log: str) -> list[Kernel]:
    """Parse the output of ptxas -v."""
    number = r"(\d+) bytes "
    found: dict[str, dict[str, int]] = {}
    entry = function = ""
    for line in log.splitlines():
        if m := re.search(r"Compiling entry function '(\S+)'", line):
            entry = m.group(1)
            found.setdefault(entry, {})["is_entry"] = True
        elif m := re.search(r"Function properties for (\S+)", line):
            function = m.group(1)
        elif m := re.search(number + "stack frame, " + number + "spill stores, " + number + "spill loads", line):
            sizes = dict(zip(("stack", "spill_stores", "spill_loads"), map(int, m.groups()), strict=True))
            found.setdefault(function, {"is_entry": False}).update(sizes)
        elif m := re.search(r"Used (\d+) registers", line):
            shared = re.search(number + "smem", line)
            found[entry] |= {"registers": int(m.group(1)), "shared": int(shared.group(1)) if shared else 0}
    labels = demangled(list(found))
    return [Kernel(name, label, **of) for (name, of), label in zip(found.items(), labels, strict=True)]


@functools.cache
def _headers_and_compiler() -> str:
    """A hash of nvcc's version and of the headers, which every source may include."""
    key = hashlib.sha256(subprocess.run([str(NVCC), "--version"], check=True, capture_output=True).stdout)
    for header in sorted([*FOLDER.glob("*.cuh"), *FOLDER.glob("*.h"), *FOLDER.parent.glob("*.h")]):
        key.update(header.name.encode() + header.read_bytes())
    return key.hexdigest()


def compiled(source: Path, architecture: int, *flags: str) -> Code:
    """Compile with those flags of setup.py that affect device code."""
    assert NVCC, "nvcc is not installed"
    command = [NVCC, "-std=c++20", "-O3", "-cubin", f"-arch=sm_{architecture}", "-Xptxas", "-v", *flags]
    key = hashlib.sha256("\0".join([_headers_and_compiler(), *command, source.name, source.read_text()]).encode())
    name = f"{source.stem}.sm_{architecture}.{key.hexdigest()[:24]}"
    report, cubin = (compiled_files.cache("cubins") / f"{name}.{kind}" for kind in ("txt", "cubin"))

    def write_both(path: Path) -> None:
        run = subprocess.run([*command, source, "-o", path], capture_output=True, text=True, check=False)
        assert run.returncode == 0, f"{source.name} for sm_{architecture}:\n{run.stdout}{run.stderr}"[-4000:]
        report.write_text(run.stderr)

    compiled_files.stored(cubin, write_both)
    return Code(source, architecture, parsed(report.read_text()), cubin)


def machine_code(code: Code) -> dict[str, str]:
    """SASS by the kernel's mangled name. nvcc alone has no disassembler, so the one in Triton's package is used."""
    from se_fused.backends.triton import compiled_code

    command = [compiled_code._tool("cuobjdump"), "-sass", code.cubin]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    parts = (part.split(maxsplit=1) for part in text.split("Function : ")[1:])
    return {name: sass for name, sass in parts}


def section(cubin: Path, name: str) -> bytes:
    """Contents of a section of a cubin, an ELF file of 64 bits; empty if there is none of this name."""
    data = cubin.read_bytes()
    table, size, count, names = (*struct.unpack_from("<Q", data, 0x28), *struct.unpack_from("<HHH", data, 0x3A))
    headers = [struct.unpack_from("<IIQQQQ", data, table + size * i) for i in range(count)]
    texts = headers[names][4]
    for at, kind, _, _, offset, length in headers:
        end = data.index(b"\0", texts + at)
        if data[texts + at : end].decode() == name and kind != 8:  # 8: without contents
            return data[offset : offset + length]
    return b""


def print_table(archs: list[int]) -> None:
    jobs = [(source, arch) for arch in archs for source in SOURCES.values()]
    print(f"{'arch':6}{'registers':>10}{'stack':>7}{'stores':>7}{'loads':>6}{'shared':>7}  kernel (bytes; of spills)")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for code in pool.map(lambda job: compiled(*job), jobs):
            for k in sorted(code.kernels, key=lambda k: k.label):
                numbers = f"{k.registers:10}{k.stack:7}{k.spill_stores:7}{k.spill_loads:6}{k.shared:7}"
                print(f"sm_{code.architecture:<3}{numbers}  {k.label}", flush=True)


if __name__ == "__main__":
    if not NVCC:
        sys.exit("nvcc is not on PATH")
    print_table([int(arch.removeprefix("sm_")) for arch in sys.argv[1:]] or architectures())
