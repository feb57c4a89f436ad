"""The repository's files as two texts: prose, which people read, and code, whose names prose may use."""

import fnmatch
import re
import subprocess
from functools import cache
from pathlib import PurePosixPath

from .paths import ROOT

CPP = (".cpp", ".h", ".inl", ".cu", ".cuh")
THIS = ("tests/package/test_references.py", "tests/support/references.py")  # they contain names of removed things
PROSE = (".py", ".md", ".toml", ".yaml", *CPP)
_CPP_TOKEN = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'', re.DOTALL)
_PYTHON_TOKEN = re.compile(
    r"""(?P<doc>^[ ]*r?(?:\"{3}.*?\"{3}))|(?P<comment>\#[^\n]*)"""
    r"""|\"{3}.*?\"{3}|'{3}.*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""",
    re.DOTALL | re.MULTILINE,
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
WORD = re.compile(r"[^\W\d]\w*")


@cache
def tracked() -> tuple[str, ...]:
    """Paths of the repository's files, from its root: what git has or would add; without git, all."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = sorted(set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")))
    except (OSError, subprocess.CalledProcessError):
        listed = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*")]
        listed = [
            path for path in listed if not path.startswith((".", "build/", "dist/")) and "__pycache__" not in path
        ]
    return tuple(path for path in listed if path and (ROOT / path).is_file())


@cache
def folders() -> frozenset[str]:
    return frozenset(str(parent) for path in tracked() for parent in PurePosixPath(path).parents)


def exists(pattern: str) -> bool:
    """Whether a path or the end of one, ``*`` in it or not, is a file or a folder of the repository."""
    pattern = pattern.rstrip("/")
    if "*" not in pattern:
        return any(path == pattern or path.endswith(f"/{pattern}") for path in (*tracked(), *folders()))
    return any(fnmatch.fnmatch(path, f"*{pattern}") for path in tracked())


def split(text: str, suffix: str) -> tuple[str, str]:
    """(prose, code) of a file. Prose is its comments and docstrings, or all of a Markdown file."""
    if suffix == ".md":
        return text, ""
    if suffix in CPP:
        comments = [found for found in _CPP_TOKEN.findall(text) if found.startswith("/")]
        return "\n".join(comments), _CPP_TOKEN.sub(lambda m: " " if m[0].startswith("/") else m[0], text)
    if suffix == ".py":
        prose = [m["doc"] or m["comment"] for m in _PYTHON_TOKEN.finditer(text) if m["doc"] or m["comment"]]
        return "\n".join(prose), _PYTHON_TOKEN.sub(lambda m: " " if m["doc"] or m["comment"] else m[0], text)
    return "\n".join(re.findall(r"#.*", text)), re.sub(r"#.*", " ", text)


@cache
def read(path: str) -> tuple[str, str]:
    """(prose, code) of a tracked file; pictures, measured data and the test of references have neither."""
    suffix = PurePosixPath(path).suffix
    if (
        path in THIS
        or suffix in (".png", ".jpg", ".svg")
        or (path.startswith("benchmarks/results/") and suffix != ".md")
    ):
        return "", ""
    return split((ROOT / path).read_text(), suffix)


@cache
def code_words(path: str = "") -> frozenset[str]:
    """The words of one file's code, or those of all code, the names of files and folders among them."""
    if path:
        return frozenset(WORD.findall(read(path)[1]))
    return frozenset().union(*map(code_words, tracked()), *(WORD.findall(path) for path in tracked()))


@cache
def all_code() -> str:
    """The code of all files, strings included, one after another."""
    return "\n".join(read(path)[1] for path in tracked())


@cache
def sources_of(module: str) -> tuple[str, ...]:
    """The files of a dotted module name: ``se_fused.nn`` has se_fused/nn/__init__.py; none if there is none."""
    name = module.replace(".", "/")
    return tuple(path for path in (f"{name}.py", f"{name}/__init__.py") if path in tracked())


@cache
def modules() -> dict[str, list[str]]:
    """Of each module's last name, and of each package's: the files that have its names."""
    found: dict[str, list[str]] = {}
    for path in map(PurePosixPath, tracked()):
        if path.suffix == ".py":
            name = path.parent.name if path.stem == "__init__" else path.stem
            found.setdefault(name, []).append(str(path))
    return found


@cache
def classes() -> dict[str, tuple[list[str], bool]]:
    """Of each class and struct: the files that define it, and whether all of its members are in them (no base)."""
    found: dict[str, tuple[list[str], bool]] = {}
    for path in tracked():
        for name, bases in re.findall(r"^(?:class|struct) (\w+)(\([^)]+\)|\s*:[^:{]+\{)?", read(path)[1], re.MULTILINE):
            files, alone = found.get(name, ([], True))
            found[name] = [*files, path], alone and not bases
    return found


def commands(text: str) -> list[str]:
    """Command lines of a text: the lines of Markdown's blocks of shell commands, and text in backticks."""
    blocks = [line.partition(" #")[0] for language, block in _FENCE.findall(text) if language in ("bash", "sh", "")
              for line in block.replace("\\\n", " ").splitlines()]  # fmt: skip
    return [line.strip() for line in blocks] + backticked(text)


def backticked(text: str) -> list[str]:
    """Texts in single or double backticks, within one paragraph; code blocks of Markdown are excluded."""
    text = _FENCE.sub("", text)
    found = re.findall(r"(?<!`)(`{1,2})(?!`)((?:[^`\n]|\n(?!\s*\n))+?)\1(?!`)", text)
    return [" ".join(re.sub(r"\n\s*(?:#|//)?\s*", " ", inner).split()) for _, inner in found]
