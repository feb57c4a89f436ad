"""The table of activations is right, C++ and documents repeat it, and no other module interprets its numbers."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.documents import DOCUMENTS
from support.paths import ROOT

from se_fused import activations
from se_fused.activations import (
    ACT_CODES,
    ACTIVATIONS,
    GATE_CODES,
    GATES,
    OUT_ACT_CODES,
    OUT_ACTIVATIONS,
    Function,
    keeps_mask,
    names_in_words,
    recomputed,
    writes_dr,
)

pytestmark = pytest.mark.quick

HEADER = ROOT / "csrc" / "enums.h"
FILES = [*sorted((ROOT / "se_fused").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]
ROWS: dict[str, Function] = {**ACTIVATIONS, **GATES}

# Names of such numbers in any case: out_act, OUT_ACT, act, gate ...
CODE = re.compile(r"(.*_)?(act|gate|code)", re.IGNORECASE)
ACTIVATION = re.compile(f"(out_|act_|gate_)?({'|'.join(ACT_CODES | GATE_CODES | OUT_ACT_CODES)})", re.IGNORECASE)


# ---- the rows
def slopes(row: Function, at: torch.Tensor) -> torch.Tensor:
    """The derivative by autograd."""
    x = at.clone().requires_grad_()
    return torch.autograd.grad(row.forward(x).sum(), x)[0]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_row_of_an_activation(name: str) -> None:
    """``backward``, ``corners`` and ``keeps`` follow from the function and from autograd's choices at the corners."""
    row = ACTIVATIONS[name]
    x = torch.linspace(-8, 8, 65, dtype=torch.float64)  # has every multiple of 1/4, and so every corner
    slope, g = slopes(row, x), torch.randn_like(x)
    torch.testing.assert_close(row.backward(g, x), g * slope)
    step = 1e-9
    jumps = (slopes(row, x + step) - slopes(row, x - step)).abs() > 1e-6
    assert x[jumps].tolist() == list(row.corners)
    assert slopes(row, torch.linspace(-8, 8, 6401)).abs().max() <= row.steepest + 1e-6
    if row.keeps is not None:
        if (slope == 1).all():
            needs = "nothing"
        elif torch.equal(slope, (x > 0).double()):  # where the forward pass sets the bits of the mask
            needs = "mask"
        else:
            needs = "input"
        assert row.keeps == needs
    if row.inplace is not None:
        assert torch.equal(row.inplace(x.clone()), row.forward(x))
    assert row.forward(torch.zeros(3)).eq(0).all()  # kernels rely on it where a tile is larger than R


@pytest.mark.parametrize("name", GATES)
def test_row_of_a_gate(name: str) -> None:
    x = torch.linspace(-8, 8, 65)
    g = torch.randn_like(x)
    slope = slopes(GATES[name], x)
    torch.testing.assert_close(GATES[name].backward(g, GATES[name].forward(x)), g * slope)
    assert abs(slope.max() - GATES[name].steepest) < 1e-6


@pytest.mark.parametrize("name", ROWS)
def test_names_elsewhere(name: str) -> None:
    """Each class, function and alias of a row computes what the row computes, and is found under its name only."""
    row, x = ROWS[name], torch.linspace(-8, 8, 65)
    for cls in row.modules:
        module = cls(**row.attributes)
        assert torch.equal(module(x), row.forward(x)) and activations.name_of_module(module) == name
    for alias in row.aliases:
        assert activations.ALIASES[alias] == name and alias not in ROWS
    for function in row.functions:
        result = getattr(x.clone(), function)() if isinstance(function, str) else function(x.clone())
        assert torch.equal(result, row.forward(x)) and activations.FUNCTIONS[function] == name


def test_other_options_have_no_name() -> None:
    class Swish(torch.nn.Module):
        """Has a name of timm's, but is not timm's."""

    assert activations.name_of_module(Swish()) is None
    assert activations.name_of_module(torch.nn.LeakyReLU(0.2)) is None
    assert activations.name_of_module(torch.nn.Softplus()) is None


def test_names_in_timm() -> None:
    layers = pytest.importorskip("timm.layers", reason="timm is in the extra se_fused[test]")
    x = torch.linspace(-8, 8, 65)
    for name, row in ROWS.items():
        for cls in (getattr(layers.activations, c, None) or getattr(layers.activations_me, c) for c in row.timm):
            torch.testing.assert_close(cls()(x), row.forward(x))
            assert activations.name_of_module(cls()) == name


def test_what_numbers_mean() -> None:
    for name, code in OUT_ACT_CODES.items():
        row = OUT_ACTIVATIONS[name]
        assert activations.by_code(code) is row
        assert keeps_mask(code) == (row.keeps == "mask") and recomputed(code) == (row.keeps == "input")
        # Only a derivative from the input is written unasked, and dr of the derivative 1 is dy.
        assert writes_dr(code, True) == (row.keeps != "nothing") and writes_dr(code, False) == (row.keeps == "input")


# ---- repetitions
def listed(macro: str) -> list[list[str]]:
    """The entries of a list in the header, X(name, ...), as lists of words."""
    found = re.search(rf"#define {macro}\(X\)((?:.*\\\n)*.*)", HEADER.read_text())
    assert found is not None
    return [entry.split(", ") for entry in re.findall(r"X\(([^)]*)\)", found.group(1))]


@pytest.mark.skipif(not HEADER.parent.exists(), reason="needs the sources")
def test_cpp_lists_are_the_tables() -> None:
    assert listed("SE_ACTIVATIONS") == [[name] for name in ACTIVATIONS]
    assert listed("SE_GATES") == [[name] for name in GATES]
    assert listed("SE_OUT_ACTIVATIONS") == [[n, row.keeps] for n, row in ACTIVATIONS.items() if row.keeps]


# A list of names in a docstring or document: at least two, separated by commas, the last one after "or".
_NAME = f'["`]*(?:None|{"|".join(ROWS)})["`]*(?: \\([^)]*\\))?'
LIST = re.compile(rf"{_NAME}(?:,\s+{_NAME})*\s+or\s+{_NAME}")


def lists(text: str) -> Iterator[str]:
    """The lists of names in a text, without quotes and remarks."""
    for found in LIST.findall(text):
        yield re.sub(r" \([^)]*\)", "", re.sub(r"[\"`]", "", " ".join(found.split()))).replace("none", "None")


@pytest.mark.parametrize("path", [*FILES, *DOCUMENTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_lists_in_documents_are_complete(path: Path) -> None:
    complete = {
        names_in_words(names)
        for names in (ACTIVATIONS, GATES, OUT_ACTIVATIONS, [n for n in OUT_ACTIVATIONS if n != "none"])
    }
    wrong = [found for found in lists(path.read_text()) if found not in complete]
    assert not wrong, f"the tables have: {'; '.join(sorted(complete))}"


def test_the_lists_are_seen() -> None:
    text = 'act: identity, relu (slope\n0), "silu" or\n  tanh. A sum or none. None, relu or silu.'
    assert list(lists(text)) == ["identity, relu, silu or tanh", "None, relu or silu"]


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
    ['x = out_act == "relu"', "x = keeps_mask(out_act)", "x = OUT_ACT == RELU", "x = rate == 2", "f(act=None)"],
)
def test_the_check_passes(line: str) -> None:
    assert not list(numbers(line))
