"""Splits the instructions of a callgrind file among the parts of the host's work.

A function of PyTorch belongs to a part by its name. A Python frame belongs to one by its file: the library
benchmarks/standin/frames lets each frame run below a function that is named after the part, and callgrind keeps the
interpreter's work below these functions apart. All other functions (memory, strings, dictionaries, the C library) are
charged to their callers, in proportion to what each of them spends there. So every instruction is in one part, and the
parts sum to the total. What the naming of frames takes is left out; it also stops the interpreter from running calls of
Python functions in one C frame, which adds about a twentieth to Python's parts.
"""

import re
from collections import defaultdict
from pathlib import Path

__all__ = ["FRAMES", "PARTS", "parts"]

FRAMES = {
    "other Python": (),
    "nn.Module": ("torch/nn/modules/module.py",),
    "checks, records": (
        "se_fused/functional/",
        "se_fused/_",
        "se_fused/nn/known.py",
        "se_fused/nn/norms.py",
        "<string>",
    ),  # the last is the generated code of dataclasses
    "operators, backends in Python": ("se_fused/ops/", "se_fused/backends/"),
    "models, layers": ("se_fused/nn/", "se_fused/models/", "timm/", "torch/nn/"),
    "PyTorch's Python": ("torch/",),
}
"""The parts of Python frames by pieces of their file's name; the first that occurs counts, from the top."""

_NATIVE = {
    "se_fused's C++": r"se_fused::",
    "convolutions": r"conv(?!ert)",
    "allocation": r"empty|StorageImpl|TensorImpl|Allocator|allocate|DataPtr|intrusive_ptr_target",
    "autograd": r"autograd|ThreadLocalState|RecordFunction|CallbackManager|CacheEntry|StepCallbacks|SavedVariable",
    "dispatcher": r"Dispatcher|c10::impl|KernelFunction|OperatorEntry|OperatorHandle|IValue|ivalue|at::_ops|aoti_|"
    r"torch_call|DispatchKey|torch::jit|torch_library|StableIValue|from_stack",
    "kernels' host code": r"at::native|at::meta|TensorIterator|standin::|at::detail|at::TensorBase",
}
"""The parts of PyTorch's C++ functions by what their names contain; the first that matches counts."""

_LIBRARIES = re.compile(r"libtorch_cpu|libc10|libtorch\.so|linked/|/[0-9a-f]{24}$")
PARTS = (*FRAMES, "Python bindings", *_NATIVE, "other")
_DROPPED = "measurement"

Function = tuple[str, str]  # library, name


def part_of(function: Function) -> str | None:
    """The part to which a function belongs; None if its instructions are those of its callers."""
    library, name = function
    if found := re.search(r"se_part_(\d+)", name):
        return list(FRAMES)[int(found.group(1))]
    if "se_hook" in name:
        return _DROPPED
    if "libtorch_python" in library:
        return "Python bindings"
    if _LIBRARIES.search(library):
        return next((part for part, pattern in _NATIVE.items() if re.search(pattern, name)), None)
    return None


def read(path: Path) -> tuple[dict[Function, int], dict[Function, dict[Function, int]]]:
    """(instructions of each function itself, and of its calls by caller: callee -> caller -> instructions)."""
    tables: dict[str, dict[str, str]] = {"file": {}, "ob": {}, "fn": {}}
    own: dict[Function, int] = defaultdict(int)
    calls: dict[Function, dict[Function, int]] = defaultdict(lambda: defaultdict(int))
    library = called_library = ""
    caller = callee = ("", "")
    in_call = False

    def name(kind: str, text: str) -> str:
        found = re.match(r"\((\d+)\)(?: (.*))?$", text)
        if found is None:
            return text
        if found.group(2) is not None:
            tables[kind][found.group(1)] = found.group(2)
        return tables[kind][found.group(1)]

    for line in path.read_text(errors="replace").splitlines():
        key, equals, text = line.partition("=")
        if equals and key == "ob":
            library = called_library = name("ob", text)
        elif equals and key == "fn":
            caller, called_library = (library, name("fn", text)), library
        elif equals and key == "cob":
            called_library = name("ob", text)
        elif equals and key == "cfn":
            callee, called_library = (called_library, name("fn", text)), library
        elif equals and key == "calls":
            in_call = True
        elif line[:1].isdigit() or line[:1] in ("+", "-", "*"):
            cost = int(line.split()[-1]) if len(line.split()) > 1 else 0
            if in_call:
                calls[callee][caller] += cost
            else:
                own[caller] += cost
            in_call = False
    return own, calls


def parts(path: Path, rounds: int = 60) -> dict[str, int]:
    """Instructions of each part."""
    own, calls = read(path)
    functions = {*own, *calls, *(caller for callers in calls.values() for caller in callers)}
    fixed = {function: part_of(function) for function in functions}
    shares: dict[Function, dict[str, float]] = {f: {part: 1.0} if part else {} for f, part in fixed.items()}
    shared = [function for function, part in fixed.items() if part is None]
    for _ in range(rounds):
        for function in shared:
            mixed: dict[str, float] = defaultdict(float)
            for caller, cost in calls.get(function, {}).items():
                for part, share in shares[caller].items():
                    mixed[part] += cost * share
            total = sum(mixed.values())
            if total:
                shares[function] = {part: amount / total for part, amount in mixed.items()}
    found: dict[str, float] = defaultdict(float)
    for function, cost in own.items():
        for part, share in (shares[function] or {"other": 1.0}).items():
            found[part] += cost * share
    return {part: round(found[part]) for part in PARTS}
