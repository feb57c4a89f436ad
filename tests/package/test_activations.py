"""Only se_fused/activations.py uses the numbers of activations and gates, and the C++ enums have the same numbers."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

from se_fused import reference
from se_fused.activations import ACT_CODES, GATE_CODES, OUT_ACT_CODES, keeps_mask, recomputed, writes_dr

pytestmark = pytest.mark.quick

HEADER = ROOT / "csrc" / "enums.h"
FILES = [*sorted((ROOT / "se_fused").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]

# Names of such numbers in any case: out_act, OUT_ACT, act, gate ...
CODE = re.compile(r"(.*_)?(act|gate|code)", re.IGNORECASE)
ACTIVATION = re.compile(f"(out_|act_|gate_)?({'|'.join(ACT_CODES | GATE_CODES | OUT_ACT_CODES)})", re.IGNORECASE)


@pytest.mark.parametrize(
    ("names", "codes"),
    [
        (reference.OUT_ACTIVATIONS, OUT_ACT_CODES),
        (reference.GATES, GATE_CODES),
        (reference.ACTIVATIONS, ACT_CODES),
    ],
    ids=["OutAct", "Gate", "Act"],
)
def test_every_name_has_a_number(names: dict[str, object], codes: dict[str, int]) -> None:
    assert list(codes) == list(names) and list(codes.values()) == list(range(len(names)))


def test_what_derivatives_ask_for() -> None:
    assert [name for name, code in OUT_ACT_CODES.items() if keeps_mask(code)] == ["relu"]
    assert [name for name, code in OUT_ACT_CODES.items() if recomputed(code)] == ["silu", "hard_swish"]
    assert [name for name, code in OUT_ACT_CODES.items() if writes_dr(code, True)] == ["relu", "silu", "hard_swish"]
    assert [name for name, code in OUT_ACT_CODES.items() if writes_dr(code, False)] == ["silu", "hard_swish"]


@pytest.mark.skipif(not HEADER.parent.exists(), reason="needs the sources")
@pytest.mark.parametrize(
    ("kind", "codes"), [("OutAct", OUT_ACT_CODES), ("Gate", GATE_CODES), ("Act", ACT_CODES)], ids=lambda v: str(v)[:6]
)
def test_cpp_numbers_alike(kind: str, codes: dict[str, int]) -> None:
    found = re.search(rf"enum class {kind} : int64_t {{([^}}]*)}}", HEADER.read_text())
    assert found is not None
    assert [name.strip() for name in found.group(1).split(",")] == sorted(codes, key=codes.__getitem__)


@pytest.mark.skipif(not HEADER.parent.exists(), reason="needs the sources")
def test_cpp_computes_the_same_again() -> None:
    found = re.search(r"constexpr bool recomputed\(OutAct act\) {(.*?)}", HEADER.read_text(), re.DOTALL)
    assert found is not None
    assert re.findall(r"OutAct::(\w+)", found.group(1)) == [n for n, code in OUT_ACT_CODES.items() if recomputed(code)]
    assert "!" not in found.group(1) and "&&" not in found.group(1)


# ---- the source
def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_code(node: ast.AST) -> bool:
    return CODE.fullmatch(_name(node)) is not None


def _is_number(node: ast.AST | None) -> bool:
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(_is_number(element) for element in node.elts)
    return isinstance(node, ast.Constant) and type(node.value) is int


def _bound(node: ast.AST) -> Iterator[tuple[str, ast.AST | None]]:
    """(name, value) of each value that an assignment, a default, or a keyword argument gives to a name."""
    if isinstance(node, ast.Assign | ast.AnnAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            pairs = zip(target.elts, node.value.elts, strict=False) if several else [(target, node.value)]
            yield from ((_name(to), value) for to, value in pairs)
    elif isinstance(node, ast.arguments):
        positional = [*node.posonlyargs, *node.args]
        yield from ((a.arg, d) for a, d in zip(reversed(positional), reversed(node.defaults), strict=False))
        yield from ((a.arg, d) for a, d in zip(node.kwonlyargs, node.kw_defaults, strict=True))
    elif isinstance(node, ast.Call):
        yield from ((keyword.arg or "", keyword.value) for keyword in node.keywords)


def numbers(source: str) -> Iterator[int]:
    """Lines in which a number stands for an activation or a gate: in a comparison, a table, a call or an assignment."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = (node.left, *node.comparators)
            if any(map(_is_code, sides)) and any(map(_is_number, sides)):
                yield node.lineno
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict) and _is_code(node.slice):
            if any(map(_is_number, node.value.keys)):
                yield node.lineno
        for name, value in _bound(node):
            named = CODE.fullmatch(name) or (name.isupper() and ACTIVATION.fullmatch(name))
            inner = value.args[0] if isinstance(value, ast.Call) and value.args else value  # tl.constexpr(1)
            if named and _is_number(inner):
                yield getattr(value, "lineno", 0)


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_no_number_stands_for_an_activation(path: Path) -> None:
    lines = sorted(set(numbers(path.read_text())))
    assert not lines, f"{path.relative_to(ROOT)}: use se_fused/activations.py instead, in lines {lines}"


@pytest.mark.parametrize(
    "line",
    [
        "x = out_act == 2", "x = 1 < OUT_ACT", "if ACT >= 2 or y: pass", "x = self.gate != 0", "x = code in (1, 2)",
        "x = {0: a, 1: b}[out_act]", "f(x, out_act=1)", "f(OUT_ACT=1)", "def f(x, out_act: int = 0): pass",
        "def f(*, act=1): pass", "RELU, SILU = 1, 2", "OUT_SILU = tl.constexpr(2)", "code: int = 1",
    ],
)  # fmt: skip
def test_the_check_sees(line: str) -> None:
    assert set(numbers(line)) == {1}


@pytest.mark.parametrize(
    "line",
    ['x = out_act == "relu"', "x = keeps_mask(out_act)", "x = OUT_ACT == OUT_RELU", "x = rate == 2", "f(act=None)"],
)
def test_the_check_passes(line: str) -> None:
    assert not list(numbers(line))
