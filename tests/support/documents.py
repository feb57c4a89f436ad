"""Parts of the Markdown documents: code blocks, shell commands, tables, links and headings."""

import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from typer.main import get_command

from se_fused import cli

from .paths import ROOT

GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_COMMAND = re.compile(r"(?:[A-Z_]+=\S* )*(?:make|pip|pytest|python3?|se-fused) \S")


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return [code for name, code in _FENCE.findall(text) if name == language]


def section(text: str, start: str, end: str = "\n## ") -> str:
    """The text behind ``start``, up to ``end`` or the end of the document."""
    assert start in text, start
    return text.split(start)[1].split(end)[0]


def table(text: str, first: str = "") -> list[dict[str, str]]:
    """The rows of the first table whose header begins with ``first``: cells by column heading, "" without one."""
    lines = text.split("\n")
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"| {first}"))
    cells = []
    for line in lines[begin:]:
        if not line.startswith("|"):
            break
        cells.append([cell.strip() for cell in line.strip("|").split("|")])
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


# ---- links
def links(text: str) -> list[str]:
    """The targets of links and images that are relative: ``path``, ``path#anchor`` or ``#anchor``."""
    prose = _SPAN.sub("", _FENCE.sub("", text))
    return [found for found in re.findall(r"\]\(([^)\s]+)\)", prose) if not re.match(r"[a-z]+:", found)]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ +(.+?) *$", _FENCE.sub("", text), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        names.add(f"{slug}-{found[slug]}" if slug in found else slug)
        found[slug] = found.get(slug, 0) + 1
    return names


def link_problem(document: Path, link: str) -> str | None:
    """Why a relative link of a document leads nowhere, or None."""
    path, _, anchor = link.partition("#")
    target = (document.parent / path).resolve() if path else document
    if not target.is_relative_to(ROOT):
        return "leaves the repository"
    if not target.exists():
        return "no such file"
    if anchor and (target.suffix != ".md" or anchor not in anchors(target.read_text(encoding="utf-8"))):
        return "no such heading"
    return None


# ---- shell commands
def commands(text: str) -> list[list[str]]:
    """The shell commands of a document, as words: lines of bash blocks, and code spans that start with a program."""
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").split("\n")]
    lines += [span for span in _SPAN.findall(_FENCE.sub("", text)) if _COMMAND.match(span)]
    parts = (part for line in lines for part in line.split("&&"))
    split = (shlex.split(part, comments=True) for part in parts)
    return [words for words in split if words]


def _walk(words: list[str]) -> str | None:
    """Why ``se-fused`` does not take these words, or None: commands and options exist, values are not looked at."""
    command: Any = get_command(cli.app)
    for word in words:
        if word.startswith("-"):
            options = {o for parameter in command.params for o in (*parameter.opts, *parameter.secondary_opts)}
            if word.partition("=")[0] not in options | {"--help"}:
                return f"{command.name} has no option {word}"
        elif hasattr(command, "get_command"):
            parent, command = command, command.get_command(None, word)
            if command is None:
                return f"{parent.name} has no command {word}"
    return None


@cache
def _targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@cache
def _extras() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return set(project["optional-dependencies"])


def _gpu_problem(words: list[str]) -> str | None:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from benchmarks.gpu.__main__ import _arguments

    try:
        _arguments(words)
    except SystemExit:
        return f"benchmarks.gpu does not take {' '.join(words)}"
    return None


def _python_problem(words: list[str]) -> str | None:
    if words[0] != "-m":
        return None if words[0].startswith("-") or (ROOT / words[0]).exists() else f"no file {words[0]}"
    module, *rest = words[1:]
    if module == "se_fused":
        return _walk(rest)
    if module == "benchmarks.gpu":
        return _gpu_problem(rest)
    return None if importlib.util.find_spec(module) else f"no module {module}"


def _paths(words: list[str]) -> Iterator[str]:
    return (word for word in words if re.match(r"(tests|benchmarks)(/|$)", word))


def command_problem(words: list[str]) -> str | None:
    """Why a command cannot run in this repository, or None. Programs of others are not looked at."""
    words = words[next((i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), len(words)) :]
    if not words or words[1:] == ["..."]:
        return None
    program, *rest = words
    if program == "make":
        missing = [word for word in rest if "=" not in word and word not in _targets()]
        return f"the Makefile has no target {', '.join(missing)}" if missing else None
    if program == "pip":
        extras = {name for word in rest for found in re.findall(r"\[(.+)\]", word) for name in found.split(",")}
        return f"no extras {extras - _extras()}" if extras - _extras() else None
    if program == "se-fused":
        return _walk(rest)
    if program in ("python", "python3"):
        return _python_problem(rest)
    if program == "pytest":
        missing = [path for path in _paths(rest) if not (ROOT / path).exists()]
        return f"no tests {', '.join(missing)}" if missing else None
    return None
