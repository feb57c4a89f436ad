"""The house's order: imports point one way, files stay small, and the package needs nothing but its core."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "se_fused"
# A module may import from its own layer and from those to its right (DESIGN section 4).
LAYERS = ["fracture", "models", "nn", "functional", "ops", "backends"]
# Below all layers: plain PyTorch and leaf helpers. Above all: tools that people run.
LEAVES = {"reference", "_codes", "_arguments", "_files", "_random", "_version", "_build", "_build_info"}
TOOLS = {
    "__init__",
    "__main__",
    "cli",
    "info",
    "introspect",
    "recording",
    "verify",
    "bounds",
    "measure",
    "timing",
    "bandwidth",
    "telemetry",
    "workloads",
    "networks",
    "peers",
    "tails",
    "engines",
    "converted",
    "compare",
    "report",
    "plots",
    "results",
}
FILES = sorted(PACKAGE.rglob("*.py"))


def layer(parts):
    return parts[0] if parts else "__init__"


def imported(path):
    """Top-level names inside se_fused that a file imports, at any depth of its code."""
    package = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            module = tuple(node.module.split(".")) if node.module else ()
            if base + module:
                yield layer(base + module)
            else:
                yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "se_fused":
            rest = node.module.split(".")[1:]
            yield from [layer(tuple(rest))] if rest else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("se_fused."))


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(PACKAGE)) for p in FILES])
def test_imports_point_one_way(path):
    mine = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported(path):
        if mine in TOOLS or name == mine or name in LEAVES:
            continue
        assert mine not in LEAVES, f"{mine} is a leaf and imports {name}"
        if name in TOOLS:
            assert mine == "fracture", f"{mine} imports the tool {name}"
            continue
        assert LAYERS.index(mine) <= LAYERS.index(name), f"{mine} imports {name}, which lies above it"


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(PACKAGE)) for p in FILES])
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= 420


def test_import_needs_the_core_only():
    """torch and numpy are enough to import and to call; nothing else is even looked at."""
    code = """
import sys
blocked = {"timm", "torchvision", "monai", "safetensors", "matplotlib", "typer", "rich", "PIL", "scipy", "pytest"}
blocked |= {"lightning"}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
import torch, se_fused
model = se_fused.SEResNet18(num_classes=3).eval()
assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)
print(se_fused.info()["se_fused"])
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


# ---- the tests themselves: a missing package skips what needs it, and stops nothing else
OURS = sorted([*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
# The core's dependencies, pytest, and what a machine with a GPU and PyTorch for training has besides.
EVERYWHERE = {
    "torch", "numpy", "triton", "pytest", "pytest_benchmark", "timm", "torchvision", "matplotlib", "typer", "rich",
    "lightning", "torchmetrics", "PIL", "yaml", "sklearn", "tensorboard", "safetensors", "onnx", "onnxruntime",
}  # fmt: skip
KNOWN = EVERYWHERE | set(sys.stdlib_module_names) | {"se_fused", "benchmarks"} | {path.stem for path in OURS}


def executed(statements):
    """What runs when a module is imported: not the insides of functions, but those of if, try, with and classes."""
    for node in statements:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for name in ("body", "orelse", "finalbody"):
                yield from executed(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from executed(handler.body)


def unguarded(source):
    """Packages that a file needs to be imported and does not ask for first."""
    asked = set()
    for node in executed(ast.parse(source).body):
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            yield from (root for name in names if (root := name.partition(".")[0]) not in KNOWN | asked)
        elif isinstance(node, ast.Expr | ast.Assign) and isinstance(node.value, ast.Call):
            function, arguments = node.value.func, node.value.args
            if isinstance(function, ast.Attribute) and function.attr == "importorskip":
                asked.update(a.value.partition(".")[0] for a in arguments[:1] if isinstance(a, ast.Constant))


@pytest.mark.parametrize("path", OURS, ids=[str(p.relative_to(ROOT)) for p in OURS])
def test_optional_packages_are_asked_for_first(path):
    assert not list(unguarded(path.read_text()))


def test_the_check_sees_what_is_missing():
    assert list(unguarded("import numpy, monai.networks as m")) == ["monai"]
    assert list(unguarded("if True:\n    from pydicom.uid import UID")) == ["pydicom"]
    assert list(unguarded("import httpx\npytest.importorskip('httpx')")) == ["httpx"]
    assert not list(unguarded("x = pytest.importorskip('httpx')\nimport httpx"))
    assert not list(unguarded("def f():\n    import monai\nfrom . import x"))


@pytest.mark.slow
def test_collection_needs_no_optional_package():
    command = [sys.executable, "-m", "pytest", "tests", "--collect-only", "-q", "-p", "missing_modules"]
    path = os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    said = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, text=True, capture_output=True)
    assert said.returncode == 0, said.stdout[-3000:] + said.stderr[-3000:]
