"""Tests of the package's structure: imports have one direction, files are small, and only the core is required."""

import ast
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest
from support.paths import ROOT

pytestmark = pytest.mark.quick

PACKAGE = ROOT / "se_fused"
FILES = sorted(PACKAGE.rglob("*.py"))
# From top to bottom: a module imports from its own folder and from those below it (CONTRIBUTING.md).
ORDER = {
    "": [
        "__main__", "apps", "cli", "bench", "testing", "__init__", "info", "models", "nn", "functional", "ops",
        "backends", "reference", "activations", "_params", "_checks", "_atomic_write", "_errors", "_formats",
        "_build", "_version", "_build_info",
    ],
    "bench": ["report", "compare", "accuracy", "workloads", "providers", "measure", "__init__"],
    "bench/report": [
        "write", "plots", "figures", "scaling", "roofline", "markdown", "machine", "console", "style", "regressions",
        "noise", "load", "pairs", "records", "format", "__init__",
    ],
    "functional": [
        "__init__", "conv1x1_squeeze_excite", "gated_projection", "channel_gate", "batch_norm_squeeze_excite",
        "_arguments", "dispatch",
    ],
    "nn": [
        "__init__", "compile", "inference", "convert", "residual_block", "norms", "se_layers", "squeeze_excite",
        "known",
    ],
    "nn/convert": [
        "__init__", "api", "report", "decide", "monai", "timm", "torchvision", "inverted_residual", "block_end",
        "attention_layers", "modules", "class_swap",
    ],
    "nn/inference": [
        "__init__", "optimize", "checking", "copies", "rewriting", "functional", "tracing", "layers", "matching",
        "folding", "casts",
    ],
    "nn/compile": ["__init__", "dynamo", "rewriting", "matching", "graph"],
    "models": [
        "__init__", "factory", "checkpoints", "_misfits", "_places", "_zoos", "_files", "_listing", "unet", "densenet",
        "resnet", "se_resnet", "_registry", "_classifier", "_blocks",
    ],
}  # fmt: skip


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports(path):
    """Modules of the package that a file imports, anywhere in its code."""
    package = path.relative_to(PACKAGE.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, [base, node.module]))
            if base.partition(".")[0] == "se_fused":
                names = (f"{base}.{alias.name}" for alias in node.names)
                yield from (name if name in MODULES else base for name in names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "se_fused")


GRAPH = {name: {other for other in imports(path) if other != name} for name, path in MODULES.items()}


def place(module, folder):
    """The part of a folder that contains a module, or None if the module is outside the folder."""
    inside = ["se_fused", *filter(None, folder.split("/"))]
    parts = module.split(".")
    if parts[: len(inside)] != inside:
        return None
    return parts[len(inside)] if len(parts) > len(inside) else "__init__"


def upward(graph, folder, order):
    """The imports inside a folder that go from a lower to a higher part."""
    for module, others in graph.items():
        for other in others:
            here, there = place(module, folder), place(other, folder)
            if here is not None and there is not None and order.index(here) > order.index(there):
                yield f"{module} imports {other}"


@pytest.mark.parametrize("folder", ORDER)
def test_imports_point_one_way(folder):
    assert not list(upward(GRAPH, folder, ORDER[folder]))


def test_every_part_has_its_place():
    for folder, order in ORDER.items():
        parts = {place(module, folder) for module in MODULES} - {None, *order}
        assert not parts, f"{folder or 'se_fused'}: {sorted(parts)} have no place in the order"


def test_contributing_says_the_same_order():
    line = next(s for s in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if s.startswith("apps → "))
    named = line.split(" → ")[:-1]  # csrc is not a package
    assert named == [part for part in ORDER[""] if part in named] and len(named) > 8


def test_no_circles():
    TopologicalSorter(GRAPH).prepare()


def test_the_checks_see_what_is_wrong():
    graph = {"se_fused.bench.report.plots": {"se_fused.cli"}, "se_fused.cli": {"se_fused.bench.report.plots"}}
    assert list(upward(graph, "", ORDER[""])) == ["se_fused.bench.report.plots imports se_fused.cli"]
    assert list(upward({"se_fused.bench.measure.timing": {"se_fused.bench.compare"}}, "bench", ORDER["bench"]))
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()
    assert "se_fused.backends.base" in GRAPH["se_fused.backends.cpu"]


def test_applications_are_strangers():
    """Only an application's own files contain its name: not the library, its command line, or the benchmarks."""
    names = [folder.name for folder in (PACKAGE / "apps").iterdir() if (folder / "__init__.py").exists()]
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        if "apps" not in path.relative_to(ROOT).parts:
            assert not [name for name in names if name in path.read_text().lower()], path


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(PACKAGE)) for p in FILES])
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= 420


@pytest.mark.grid(quick=0)
def test_import_needs_the_core_only():
    """torch and numpy suffice to import and call the package; no other package is imported, even if it is installed."""
    code = """
import sys
from graphlib import CycleError, TopologicalSorter
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


# ---- the tests: a missing package skips the tests that need it, and no others
OURS = sorted([*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
# The core's dependencies, pytest, and packages that a machine with a GPU and PyTorch for training has.
EVERYWHERE = {
    "torch", "numpy", "triton", "pytest", "pytest_benchmark", "timm", "torchvision", "matplotlib", "typer", "rich",
    "lightning", "torchmetrics", "PIL", "yaml", "sklearn", "tensorboard", "safetensors", "onnx", "onnxruntime",
}  # fmt: skip
KNOWN = (
    EVERYWHERE
    | set(sys.stdlib_module_names)
    | {"se_fused", "benchmarks", "mutants", "support"}
    | {path.stem for path in OURS}
)


def executed(statements):
    """Statements that run when a module is imported: outside functions, but inside if, try, with and classes."""
    for node in statements:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for name in ("body", "orelse", "finalbody"):
                yield from executed(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from executed(handler.body)


def unguarded(source):
    """Packages that a file needs to be imported, without a previous importorskip."""
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


@pytest.mark.grid(quick=0)
def test_collection_needs_no_optional_package():
    command = [sys.executable, "-m", "pytest", "tests", "--collect-only", "-q", "-p", "support.missing_modules"]
    path = os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    said = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, text=True, capture_output=True)
    assert said.returncode == 0, said.stdout[-3000:] + said.stderr[-3000:]
