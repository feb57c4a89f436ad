"""Parts of the Markdown documents: code blocks and how they run, tables, links and headings."""

import multiprocessing
import os
import re
import warnings
from pathlib import Path

import se_fused

from .paths import ROOT

GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return [code for name, code in _FENCE.findall(text) if name == language]


# Each example runs in a process of its own, forked from one that has imported the libraries: imports are most of the
# time of most examples.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["se_fused", "torch._dynamo", "torchvision", "timm"])


def _execute(code: str, folder: Path, package: str) -> None:
    assert se_fused.__file__ == package, f"the example would run with {se_fused.__file__}, not with {package}"
    os.chdir(folder)
    warnings.filterwarnings("error", category=UserWarning, module="se_fused")
    exec(compile(code, "example", "exec"), {"__name__": "__main__"})


def exit_code(code: str, folder: Path, seconds: float = 900) -> int | None:
    """Run Python code in a new process with this working folder; returns the exit code, None after ``seconds``."""
    process = _PROCESSES.Process(target=_execute, args=(code, folder, se_fused.__file__))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
    return process.exitcode


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
    """The reason why a relative link in a document is broken; None if it is not."""
    path, _, anchor = link.partition("#")
    target = (document.parent / path).resolve() if path else document
    if not target.is_relative_to(ROOT):
        return "leaves the repository"
    if not target.exists():
        return "no such file"
    if anchor and (target.suffix != ".md" or anchor not in anchors(target.read_text(encoding="utf-8"))):
        return "no such heading"
    return None
