"""Comments, docstrings and documents name nothing that is gone: files, names of code, commands, sections."""

import ast
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Any

import pytest
import torch
from support.paths import ROOT
from support.references import (
    PROSE,
    THIS,
    WORD,
    all_code,
    backticked,
    classes,
    code_words,
    commands,
    exists,
    modules,
    read,
    sources_of,
    split,
    tracked,
)
from typer.main import get_command

from se_fused.cli import app

pytestmark = pytest.mark.quick
CHECKED = [path for path in tracked() if path.endswith((*PROSE, "Makefile", ".ci/run")) and path not in THIS]

# Files of other projects, of CUDA and of the C library; what setup.py writes.
FOREIGN_FILES = {
    "cublasLt.h", "cublas_api.h", "library_types.h", "malloc.h", "nvml.h", "_build_info.py",
    "networks/blocks/squeeze_and_excitation.py",
}  # fmt: skip
# Names that are not in our code, by origin. A dotted name that begins with its library's needs no entry.
FOREIGN_NAMES = {
    "instructions, the C library, compilers": {
        "__AVX512F__", "__cxa_throw", "global_load_dwordx4", "madvise", "prefetchnta", "prefetchw",
    },
    "libraries, named in prose as theirs": {
        "ExponentialMovingAverage", "_convert_float", "apply_voi_lut", "device_info", "enabled_precisions",
        "fasterrcnn_resnet50_fpn", "fully_shard", "get_global_memory_bandwidth", "make_divisible", "multiple_of",
        "round_limit", "se_resnet18", "se_resnet50", "segmentation_models",
    },
    "files of data sets": {"images_part1", "patient00011"},
}  # fmt: skip
FOREIGN = frozenset().union(*FOREIGN_NAMES.values())
FOREIGN_ROOTS = ("monai", "np", "numpy", "timm", "tl", "torchvision", "triton", "pydicom", "lightning", "typing", "os")

SUFFIX = "py|h|cpp|cu|cuh|inl|md|toml|yaml|js|css|html"
FILE = re.compile(rf"(?<![\w./<\-*])((?:[\w.*-]+/)*[\w*-]+\.(?:{SUFFIX}))\b(?!\.\w)")
PATH = re.compile(r"(?<![\w./<-])((?:se_fused|csrc|tests|benchmarks|docs|\.ci)/[\w./*-]*[\w*/])(?![\w<{])")
DOTTED = re.compile(r"(?<![\w./])(?:torch\.ops\.)?se_fused(?:\.\w+)+")
IDENTIFIER = re.compile(r"~?[^\W\d]\w*(?:(?:\.|::)\w+)*(?:\(.*\))?")
SNAKE = re.compile(r"(?<![\w/.<${*-])_{0,2}[a-z][a-z0-9]*_\w+(?![\w/*<{-])")
SUBSCRIPT = re.compile(r"[A-Za-z]+_[a-z]|sm_\d+")  # sum_k in a formula; a GPU's architecture
GAP = r"[\s/#*]+"  # a comment's next line begins with its mark
SECTION = re.compile(
    rf"\b(\w+?)(?:\.md)?(?:,|'s)?{GAP}section{GAP}(\d+(?:\.\d+)*)|\bsection{GAP}(\d+(?:\.\d+)*){GAP}of{GAP}(\w+)"
)
OURS = re.compile(r"(?:\bse-fused|-m se_fused)(?= [a-z-])([^`\n\"';|&]*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def stale_files(prose: str) -> set[str]:
    """Source files, documents, and paths from the root that are not in the repository, nor written by our code."""
    files = {name.removeprefix("../") for name in FILE.findall(prose)} - FOREIGN_FILES
    files = {name for name in files if not exists(name) and not name.startswith(("torch/", "build/"))}
    paths = {path for path in PATH.findall(prose) if not exists(path)}
    return {name for name in files if not re.search(rf"\b{re.escape(name)}\b", all_code())} | {
        path for path in paths if path not in all_code()
    }


def stale_members(prose: str) -> set[str]:
    """``file.py::name``, ``se_fused.module.name`` and operators ``torch.ops.se_fused.name`` that are not there."""
    found = set()
    for file, name in re.findall(r"([\w/]+\.py)::(\w+)", prose):
        if not any(name in code_words(path) for path in tracked() if f"/{path}".endswith(f"/{file}")):
            found.add(f"{file}::{name}")
    for dotted in set(DOTTED.findall(prose)):
        if dotted.startswith("torch.ops."):
            known = hasattr(torch.ops.se_fused, dotted.split(".")[3])
        else:
            known = dotted in all_code() or resolves(dotted)
        found |= set() if known else {dotted}
    return found


def resolves(dotted: str) -> bool:
    """Whether the longest part that is a module has the next part in its code, and our code the others."""
    parts = dotted.split(".")
    end = max(end for end in range(1, len(parts) + 1) if sources_of(".".join(parts[:end])))
    names = parts[end:]
    return not names or (
        any(names[0] in code_words(path) for path in sources_of(".".join(parts[:end])))
        and all(name in code_words() for name in names)
    )


def stale_names(prose: str) -> set[str]:
    """Identifiers in backticks, and words with an underscore outside, that occur nowhere in our code."""
    found = set()
    for item in backticked(prose):
        if IDENTIFIER.fullmatch(item) and not item.startswith("se_fused.") and not FILE.fullmatch(item):
            parts = re.split(r"\.|::", item.partition("(")[0].lstrip("~"))
            if not is_known(parts):
                found.add(".".join(parts))
    words = set(SNAKE.findall(re.sub(r"\bhttps?://\S+", "", prose)))
    return found | {word for word in words if not is_word(word)}


def is_word(word: str) -> bool:
    """Whether our code has a word, or words that end with it (``_backward``), or it is foreign, a number, a formula."""
    known = word in code_words() or word in FOREIGN or SUBSCRIPT.fullmatch(word) or word.isdecimal()
    return bool(known) or (word[0] == "_" and any(other.endswith(word) for other in code_words()))


def is_known(parts: list[str]) -> bool:
    """Whether a dotted name's parts are names of our code, each in the file of the one before where that is clear."""
    if parts[0] in FOREIGN_ROOTS:
        return True
    if parts[0] in ("torch", "nn", "F"):
        return in_torch(".".join(parts))
    files, complete = classes().get(parts[0], ([], False))
    files = files if complete else modules().get(parts[0], [])
    if files and len(parts) > 1 and not parts[1].isdecimal() and ".".join(parts[:2]) not in all_code():
        return any(parts[1] in code_words(path) for path in files)
    return all(map(is_word, parts))


@cache
def in_torch(name: str) -> bool:
    name = re.sub(r"^F(?=\.)", "torch.nn.functional", re.sub(r"^nn(?=\.)", "torch.nn", name))
    module, value = "torch", torch
    for part in name.split(".")[1:]:
        module = f"{module}.{part}"
        if not hasattr(value, part) and find_spec(module) is None:
            return False
        value = getattr(value, part) if hasattr(value, part) else import_module(module)
    return True


def stale_sections(prose: str) -> set[str]:
    """Sections by number that have no heading in the document: one in capitals (``DESIGN section 2``) is ours."""
    found = set()
    for before, number, number_of, after in SECTION.findall(prose):
        document, number = f"{before or after}.md", number or number_of
        if (before or after).isupper() and number not in headings(document):
            found.add(f"{document} section {number}")
    return found


@cache
def headings(document: str) -> set[str]:
    path = ROOT / document
    return set(re.findall(r"^#+ (\d+(?:\.\d+)*)\b", path.read_text() if path.exists() else "", re.MULTILINE))


def stale_targets(text: str) -> set[str]:
    """``make`` commands whose target the Makefile lacks."""
    named = set()
    for line in commands(text):
        if command := re.match(r"(?:(?:nice|exec|timeout)\b.* |(?:\w+=\S+ )+)?make((?: [^\s;|&]+)*)", line):
            named |= {word for word in command[1].split() if re.fullmatch(r"[a-z][a-z-]*", word)}
    return named - set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def stale_commands(text: str) -> set[str]:
    """Our commands and their options that do not exist; modules that ``python -m`` does not find."""
    found = set()
    for rest in OURS.findall(text):
        path = "se-fused"
        for word in rest.split():
            if our_commands()[path] or not re.fullmatch(r"[a-z][\w-]*", word):
                break
            path += f" {word}"
            if path not in our_commands():
                found.add(path)
                break
        options = our_commands().get(path, {})
        found |= {f"{path} {option}" for option in OPTION.findall(rest) if options and option not in options}
    for module, rest in re.findall(r"-m ((?:se_fused|benchmarks)(?:\.[a-z_]+)*)\b(?!\.)([^`\n\"]*)", text):
        sources = [*sources_of(module), *sources_of(f"{module}.__main__")]
        code = "".join(read(path)[1] for path in sources)
        if not sources:
            found.add(f"-m {module}")
        elif module != "se_fused":
            words = re.findall(r"^ ([a-z]+(?:\|[a-z]+)*)", rest)
            named = [*"|".join(words).split("|"), *OPTION.findall(rest)]
            found |= {f"-m {module} {name}" for name in named if name not in ("", "--help") and f'"{name}"' not in code}
    return found | {item for item in backticked(text) if item.startswith("--") and not is_option(item)}


@cache
def our_commands(group: Any = None, path: str = "se-fused") -> dict[str, set[str]]:
    """The options of each command by all of its words; of a group of commands, none."""
    group = group or get_command(app)
    found: dict[str, set[str]] = {path: set()}
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if hasattr(command, "list_commands"):
            found |= our_commands(command, f"{path} {name}")
        else:
            options = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
            found[f"{path} {name}"] = options | {"--help"}
    return found


def is_option(item: str) -> bool:
    """Whether an option that is named alone is of our commands, or in our code, the Makefile or CI's script."""
    name = OPTION.findall(item)[:1]
    return (
        not name
        or any(name[0] in options for options in our_commands().values())
        or re.search(rf"[\" ]{name[0]}\b(?!-)", all_code()) is not None
    )


def stale_variables(text: str) -> set[str]:
    """Environment variables SE_FUSED_* that nothing reads."""
    return {name for name in re.findall(r"\bSE_FUSED_[A-Z][A-Z_]*[A-Z]\b", text) if name not in variables()}


@cache
def variables() -> frozenset[str]:
    """Read by Python (a string in what is no test, or looked up in a test), a shell, make or C++ (macros too)."""
    found: set[str] = set()
    for path in tracked():
        code = read(path)[1]
        if path.endswith(".py") and not PurePosixPath(path).name.startswith("test_"):
            found |= set(re.findall(r"\"(SE_FUSED_\w+)\"", code))
        found |= set(re.findall(r"(?:environ(?:\.get\(|\[)\"|getenv\(\"|\$[({]|#define )(SE_FUSED_\w+)", code))
    return frozenset(found)


def stale_arguments(source: str) -> set[str]:
    """Entries under ``Args:`` that are no parameter of the function; of a class, nowhere in the file's code."""
    found = set()
    for node in ast.walk(ast.parse(source)) if "\n    Args:\n" in source else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and (
            section := re.search(r"^Args:\n((?:(?: .*)?\n?)*)", ast.get_docstring(node) or "", re.MULTILINE)
        ):
            within = split(source, ".py")[1] if isinstance(node, ast.ClassDef) else ast.unparse(node.args)
            for entry in re.findall(r"^    ([*\w][\w, *]*):(?: |$)", section[1], re.MULTILINE):
                found |= {f"{node.name}: {name}" for name in set(WORD.findall(entry)) - set(WORD.findall(within))}
    return found


RULES = {"files": stale_files, "members": stale_members, "names": stale_names, "sections": stale_sections}
COMMANDS = {"targets": stale_targets, "commands": stale_commands, "variables": stale_variables}


RED = {
    stale_files: {
        "see gone.py, csrc/cpu/gone.inl, GONE.md and reference.py": {"gone.py", "csrc/cpu/gone.inl", "GONE.md"},
        "the folder tests/gone/ has csrc/gone/*.cu": {"tests/gone/", "csrc/gone/*.cu"},
    },
    stale_members: {
        "tests/conftest.py::gone, conftest.py::shard_of": {"tests/conftest.py::gone"},
        "se_fused.nn.gone": {"se_fused.nn.gone"},
        "see se_fused.nn.convert.api.gone, se_fused.gone.": {"se_fused.nn.convert.api.gone", "se_fused.gone"},
        "``torch.ops.se_fused.gone`` of se_fused.ops": {"torch.ops.se_fused.gone"},
    },
    stale_names: {
        "`gonner` and ``Gonner::it``": {"gonner", "Gonner.it"},
        ":func:`~reference.gonner_it`, `squeeze_excite`": {"reference.gonner_it"},
        "a gone_function\nin words, and squeeze_excite": {"gone_function"},
        "``moments.revert`` is another module's, `Layout.gonner` no member": {"moments.revert", "Layout.gonner"},
        "`torch.gonner` and ``nn.Conv9d(3)``": {"torch.gonner", "nn.Conv9d"},
    },
    stale_sections: {
        "DESIGN section 99; TECH, section 1": {"DESIGN.md section 99", "TECH.md section 1"},
        "section 98 of CONTRIBUTING.md": {"CONTRIBUTING.md section 98"},
        "// see DESIGN.md\n// section 97": {"DESIGN.md section 97"},
    },
    stale_targets: {
        "`make gone VENV=x`, ``A=1 make tests``, `make test`": {"gone", "tests"},
        "```bash\nmake gone    # comment\n```": {"gone"},
    },
    stale_commands: {
        "`se-fused gone`, python -m se_fused fracture gone": {"se-fused gone", "se-fused fracture gone"},
        "`se-fused fracture train --gone 1 --set a=b`": {"se-fused fracture train --gone"},
        "`--gonner` does it; `--keep-splits` is one of ours": {"--gonner"},
        "python3 -m benchmarks.gpu right|gone --gone": {"-m benchmarks.gpu gone", "-m benchmarks.gpu --gone"},
        "python -m se_fused.gone x": {"-m se_fused.gone"},
    },
    stale_variables: {"SE_FUSED_GONE=1 SE_FUSED_BUILD=cpu": {"SE_FUSED_GONE"}},
    stale_arguments: {
        'def f(a, *b):\n    """Do.\n\n    Args:\n        a, gone: x\n        *b: y\n    """': {"f: gone"},
    },
}
GREEN = {
    stale_files: "ops/moments.py, csrc/cuda/*.cu, torch/library.h, report.md, https://example.org/a.py.txt, build/x.py",
    stale_members: "se_fused.functional.squeeze_excite, se_fused.applications, torch.ops.se_fused.rescale_backward",
    stale_names: "``SqueezeExcite.forward(x)``, ``_backward``, sum_k a_k, `torch.nn.functional.relu`, `timm.gone`",
    stale_sections: "DESIGN section 2.1, PS3.10, section 7.1; arXiv:1910.01279, section 4.3",
    stale_targets: "make sure; `make -j2 test VENV=x`; `CC=gcc make lint`",
    stale_commands: "`se-fused`'s commands; se-fused fracture train --resume; ``python3 -m benchmarks.gpu --help``",
    stale_variables: "SE_FUSED_BACKEND, SE_FUSED_CUDA_PLAN",
}
CASES = [(rule, text, gone) for rule, texts in RED.items() for text, gone in texts.items()]
CASES += [(rule, text, set()) for rule, text in GREEN.items()]


@pytest.mark.parametrize(("rule", "text", "gone"), CASES, ids=[case[0].__name__ for case in CASES])
def test_each_rule_sees_what_is_gone(rule: Callable[[str], set[str]], text: str, gone: set[str]) -> None:
    assert rule(text) == gone


@pytest.mark.parametrize("rule", [*RULES, *COMMANDS])
def test_nothing_named_is_gone(rule: str) -> None:
    """Names are searched in prose; commands and variables also in strings, in the Makefile and in CI's script."""
    found = {}
    for path in CHECKED:
        text = (ROOT / path).read_text() if rule in COMMANDS else read(path)[0]
        found[path] = sorted((RULES | COMMANDS)[rule](text))
    assert CHECKED and not {path: names for path, names in found.items() if names}


def test_documented_arguments_exist() -> None:
    found = {path: sorted(stale_arguments((ROOT / path).read_text())) for path in CHECKED if path.endswith(".py")}
    assert found and not {path: names for path, names in found.items() if names}


def test_prose_is_told_from_code() -> None:
    python = 'def f():\n    """Doc."""\n    x = "# text"  # comment\n    return """text"""\n'
    prose, code = split(python, ".py")
    assert prose.split() == ['"""Doc."""', "#", "comment"] and "Doc" not in code and code.count("text") == 2
    prose, code = split('int a; // one\n/* two\n*/ f("// three");', ".cpp")
    assert "one" in prose and "two" in prose and "three" not in prose and "three" in code and "one" not in code
    assert backticked("`a` and ``b\n    # c``; `d\n\ne`") == ["a", "b c"]


def test_foreign_names_are_named() -> None:
    """FOREIGN_NAMES has no stale entries: each is used in prose, and is not a name of our code."""
    prose = "".join(read(path)[0] for path in CHECKED)
    assert not {name for name in FOREIGN if name not in prose or name in code_words()}
