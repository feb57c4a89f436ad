"""What nvcc and ptxas make of csrc/cuda/*.cu, for GPUs that need not be there.

``python tests/support/cuda_code.py [90 100 ...]`` prints registers, stack, spills and shared memory of every kernel.
"""

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the call as a program

from support import compiled as compiled_cache

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "csrc" / "cuda"
SOURCES = {path.stem: path for path in sorted(FOLDER.glob("*.cu"))}
NVCC = shutil.which("nvcc")
AT_ONCE = 2  # a compiler of one file takes up to 1 GB


def architectures() -> list[int]:
    return [int(arch) for arch in os.environ.get("SE_FUSED_TEST_ARCHS", "90").split()]


def modes() -> list[str]:
    """By their numbers in template arguments."""
    found = re.search(r"enum class Mode : int \{ (.*?) \}", (FOLDER / "kernel_params.h").read_text())
    assert found, "enum Mode is not where it was"
    return found.group(1).split(", ")


@dataclass(frozen=True)
class Kernel:
    """One instance, or a device function that was not inlined."""

    mangled: str
    label: str  # demangled, without namespaces
    is_entry: bool = True
    registers: int = 0
    stack: int = 0  # bytes per thread, spills included
    spill_stores: int = 0
    spill_loads: int = 0
    shared: int = 0  # without the dynamic, which is all that our kernels have

    def _name_and_arguments(self) -> tuple[str, str]:
        # _ZN8se_fused4cuda22scale_shift_act_kernelIfLNS0_4ModeE4EEEvNS0_13ScaleShiftActE
        # each name stands after its length
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
        """Of the first template argument, the map's type."""
        return 4 if self._name_and_arguments()[1].startswith("If") else 2

    @property
    def mode(self) -> str | None:
        found = re.search(r"LNS0_4ModeE(\d)E", self._name_and_arguments()[1])
        return modes()[int(found.group(1))] if found else None

    @property
    def flag(self) -> bool:
        """The template argument that is a bool."""
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
    """From what ptxas -v says."""
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
def nvcc_version() -> str:
    assert NVCC, "nvcc is not installed"
    return subprocess.run([NVCC, "--version"], check=True, capture_output=True, text=True).stdout


def with_headers(source: Path) -> dict[Path, bytes]:
    """The content of a source and of all of our headers that it includes."""
    found: dict[Path, bytes] = {}
    waiting = [source]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found[file] = file.read_bytes()
            names = re.findall(rb'^\s*#\s*include "(.+?)"', found[file], re.MULTILINE)
            waiting += [path for name in names if (path := (file.parent / name.decode()).resolve()).exists()]
    return found


def compiled(source: Path, architecture: int, folder: Path, *flags: str) -> Code:
    """With setup.py's flags, as far as they concern code for the device; once for the same sources, flags and nvcc."""
    command = [str(NVCC), "-std=c++20", "-O3", "-cubin", f"-arch=sm_{architecture}", "-Xptxas", "-v", *flags]
    key = hashlib.sha256(f"{command} {nvcc_version()}".encode())
    for file, content in sorted(with_headers(source.resolve()).items()):
        key.update(file.name.encode() + content)
    kept = compiled_cache.cache("cubins") / key.hexdigest()[:24]
    cubin, log = folder / f"{source.stem}.sm_{architecture}.cubin", kept / "log"
    if not compiled_cache.find(log):
        run = subprocess.run([*command, source, "-o", cubin], capture_output=True, text=True)
        assert run.returncode == 0, f"{source.name} for sm_{architecture}:\n{run.stdout}{run.stderr}"[-4000:]
        kept.mkdir(exist_ok=True)
        for path, content in ((kept / "cubin", cubin.read_bytes()), (log, run.stderr.encode())):  # the log comes last
            with tempfile.NamedTemporaryFile(dir=kept, delete=False) as partial:
                partial.write(content)
            Path(partial.name).rename(path)
    shutil.copy(kept / "cubin", cubin)
    return Code(source, architecture, parsed(log.read_text()), cubin)


def machine_code(code: Code) -> dict[str, str]:
    """SASS by the kernel's mangled name. nvcc alone has no disassembler; Triton's package brings one."""
    from se_fused.backends.triton import compiled_code

    command = [compiled_code._tool("cuobjdump"), "-sass", code.cubin]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    parts = (part.split(maxsplit=1) for part in text.split("Function : ")[1:])
    return {name: sass for name, sass in parts}


def print_table(archs: list[int]) -> None:
    jobs = [(source, arch) for arch in archs for source in SOURCES.values()]
    print(f"{'arch':6}{'registers':>10}{'stack':>7}{'stores':>7}{'loads':>6}{'shared':>7}  kernel (bytes; of spills)")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        for code in pool.map(lambda job: compiled(*job, Path(folder)), jobs):
            for k in sorted(code.kernels, key=lambda k: k.label):
                numbers = f"{k.registers:10}{k.stack:7}{k.spill_stores:7}{k.spill_loads:6}{k.shared:7}"
                print(f"sm_{code.architecture:<3}{numbers}  {k.label}", flush=True)


if __name__ == "__main__":
    if not NVCC:
        sys.exit("nvcc is not on PATH")
    print_table([int(arch.removeprefix("sm_")) for arch in sys.argv[1:]] or architectures())
