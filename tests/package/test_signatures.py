"""Tests that signatures stay short: arguments that belong together are one record, and ``*args`` stays whole."""

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest
from support.paths import ROOT

from se_fused import functional, reference

pytestmark = pytest.mark.quick

MOST = 9
"""Named parameters of a function, without self, cls and ctx."""

PYTORCH = "repeats the flat signature of PyTorch's functions"
ZOO = "repeats the constructor of timm and torchvision"
OPTIONS = "each parameter is an option of the command line"
EXCEPTIONS = {
    **{
        f"{file}::{name}": PYTORCH
        for name in ("batch_norm_squeeze_excite", "batch_norm_act", "squeeze_excite", "conv1x1_squeeze_excite")
        for file in (
            "se_fused/reference.py",
            f"se_fused/functional/{name if name.startswith('conv') else 'batch_norm_squeeze_excite'}.py",
        )
    },
    "se_fused/models/_blocks.py::_Block.__init__": ZOO,
    "se_fused/models/se_resnet.py::SEResNet.__init__": ZOO,
    "se_fused/nn/squeeze_excite.py::SqueezeExcite.__init__": ZOO,
    "se_fused/apps/fracture/cli/demo.py::demo_command": OPTIONS,
    "se_fused/apps/fracture/cli/evaluation.py::compare_models_command": OPTIONS,
    "se_fused/apps/fracture/cli/training.py::train_command": OPTIONS,
    "se_fused/cli/commands.py::compare_command": OPTIONS,
}
"""Functions with more parameters, and why. Triton kernels take no records, so they are not counted."""

PYTHON = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text())
    for folder in ("se_fused", "benchmarks", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


# ---- Python
def functions(node: ast.AST, inside: str = "") -> Iterator[tuple[str, Function]]:
    """(qualified name, function) of a tree."""
    for child in ast.iter_child_nodes(node):
        name = inside
        if isinstance(child, Function | ast.ClassDef):
            name = f"{inside}.{child.name}" if inside else child.name
            if isinstance(child, Function):
                yield name, child
        yield from functions(child, name)


def is_kernel(function: Function) -> bool:
    """Whether it is Triton's language."""
    return any(ast.unparse(each).split("(")[0] in ("triton.jit", "jit") for each in function.decorator_list)


def parameters(function: Function) -> int:
    given = function.args
    named = {each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
    return len(named - {"self", "cls", "ctx"})


def long_functions(trees: dict[str, ast.Module]) -> dict[str, Function]:
    return {
        f"{file}::{name}": function
        for file, tree in trees.items()
        for name, function in functions(tree)
        if parameters(function) > MOST and not is_kernel(function)
    }


def test_python_functions_have_few_parameters() -> None:
    assert set(long_functions(PYTHON)) <= EXCEPTIONS.keys()


def test_every_exception_is_needed() -> None:
    found = long_functions(PYTHON)
    assert not EXCEPTIONS.keys() - found.keys()
    for name, reason in EXCEPTIONS.items():
        if reason == PYTORCH:
            assert name.partition("::")[2] in {*functional.__all__} & {*reference.__all__}
        if reason == OPTIONS:
            assert any(ast.unparse(each).startswith("app.command(") for each in found[name].decorator_list)


def taken_apart(tree: ast.AST) -> Iterator[str]:
    """Functions that index, slice or unpack the tuple of their ``*args``, in an assignment or as a part of a tuple.
    Passing it on in a call, ``f(*args)``, is no unpacking."""
    for name, function in functions(tree):
        if function.args.vararg is None:
            continue
        given = function.args.vararg.arg

        def is_given(node: Any, given: str = given) -> bool:
            return isinstance(node, ast.Name) and node.id == given

        for node in ast.walk(function):
            indexed = isinstance(node, ast.Subscript) and is_given(node.value)
            assigned = isinstance(node, ast.Assign) and is_given(node.value) and isinstance(node.targets[0], ast.Tuple)
            spread = isinstance(node, ast.Tuple | ast.List) and any(
                isinstance(part, ast.Starred) and is_given(part.value) for part in node.elts
            )
            if indexed or assigned or spread:
                yield name
                break


def test_variable_arguments_are_not_taken_apart() -> None:
    found = [
        f"{file}::{name}" for file, tree in PYTHON.items() if file.startswith("se_fused/") for name in taken_apart(tree)
    ]
    assert not found


def test_the_python_checks_see_what_is_wrong() -> None:
    def tree(code: str) -> ast.Module:
        return ast.parse(code)

    ten = ", ".join("abcdefghij")
    long = tree(
        f"class A:\n  def f(self, {ten}): ...\n  def g({ten[:-3]}, **more): ...\n@triton.jit\ndef h({ten}): ..."
    )
    assert set(long_functions({"x.py": long})) == {"x.py::A.f"}
    assert set(long_functions({"x.py": tree(f"def f({ten[:10]}, *, {ten[12:]}, z): ...")})) == {"x.py::f"}
    for line in ("x = args[0]", "x, y = args", "g(args[1:])", "return (1, *args)", "x, *y = args"):
        assert list(taken_apart(tree(f"def f(*args):\n  {line}"))) == ["f"], line
    for line in ("g(*args)", "g(args)", "h = lambda: g(*args)", "x = other[0]"):
        assert not list(taken_apart(tree(f"def f(*args, **other):\n  {line}"))), line


# ---- C++
CPP = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in sorted((ROOT / "csrc").rglob("*"))
    if path.suffix in (".cpp", ".h", ".inl", ".cu", ".cuh")
}
BOXED = "csrc/operators.h"
"""The functions of this file are bound to the operators' schemas, argument by argument."""
NO_NAMES = {"if", "for", "while", "switch", "return", "catch", "sizeof", "decltype", "alignas", "__launch_bounds__"}


def code_of(text: str) -> str:
    """The text without comments, literals and preprocessor directives."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.S)
    text = re.sub(r'"(?:\\.|[^"\\])*"' + r"|'(?:\\.|[^'\\])'", '""', text)
    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", " ", text, flags=re.M)


def parts_of(code: str, start: int) -> tuple[int, int]:
    """(number of parts separated by commas, end) of the parenthesis that opens before ``start``."""
    depth, commas, at = 1, 0, start
    while depth and at < len(code):
        depth += (code[at] in "([{<") - (code[at] in ")]}" or (code[at] == ">" and code[at - 1] != "-"))
        commas += code[at] == "," and depth == 1
        at += 1
    return (commas + 1 if code[start : at - 1].strip() else 0), at


def cpp_functions(text: str) -> Iterator[tuple[str, int]]:
    """(name, number of parameters) of functions that are defined; a lambda is called "lambda". Kernels are left out."""
    code = code_of(text)
    for found in re.finditer(r"([A-Za-z_]\w*|\])\s*\(", code):
        name = found[1]
        count, end = parts_of(code, found.end())
        body = re.match(
            r"\s*(const|noexcept|mutable|override|->\s*[\w:<>,&*\s]+?|:\s*\w+\s*[({][^;]*?)*\s*\{", code[end:]
        )
        before = code[max(code.rfind(";", 0, found.start()), code.rfind("}", 0, found.start())) + 1 : found.start()]
        initialises = re.search(r"(?<!:):\s*$|,\s*$", before)  # a member, in a constructor
        if body and name not in NO_NAMES and not initialises and "__global__" not in before:
            yield ("lambda" if name == "]" else name), count


def test_cpp_functions_have_few_parameters() -> None:
    found = [
        (file, name, count)
        for file, text in CPP.items()
        if file != BOXED
        for name, count in cpp_functions(text)
        if count > MOST
    ]
    assert not found


def test_the_cpp_check_sees_functions() -> None:
    ten = ", ".join(f"int {c}" for c in "abcdefghij")
    code = f"""
    // void commented({ten}) {{
    template <class T, class U>
    std::tuple<A, B> plain(const F<T, U>& a, int (*b)(int, int), int c = g(1, 2)) {{ if (a(1, 2)) {{}} }}
    inline auto trailing({ten}) -> std::tuple<A, B> {{}}
    Class::Class(int a, int b) : a_(a), b_(b) {{}}
    int method() const {{ return call({ten}); }}
    const auto f = [&]({ten}) {{ for (int i = 0; i < 3; ++i) {{}} }};
    __global__ void __launch_bounds__(256) kernel({ten}) {{}}
    """
    assert list(cpp_functions(code)) == [("plain", 3), ("trailing", 10), ("Class", 2), ("method", 0), ("lambda", 10)]
    known = {name for text in CPP.values() for name, _ in cpp_functions(text)}
    assert {"moments_backward", "block_forward", "in_chunks", "layout_of", "lambda"} <= known
