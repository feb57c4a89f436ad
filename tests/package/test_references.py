"""Source files that are named in comments and documents exist."""

import io
import re
import tokenize
from pathlib import Path

import pytest
from support.paths import ROOT

FOLDERS = ("se_fused", "csrc", "tests", "benchmarks")
SOURCES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if "results" not in path.parts]
SOURCES = sorted(path for path in SOURCES if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh", ".inl"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "NOTES.md"]
KNOWN = {path.relative_to(ROOT).as_posix() for path in [*SOURCES, *ROOT.glob("*.py")]}
# Files of other projects, and one that setup.py writes.
FOREIGN = {
    "cublasLt.h", "cublas_api.h", "library_types.h", "malloc.h", "nvml.h", "_build_info.py",
    "networks/blocks/squeeze_and_excitation.py",
}  # fmt: skip
NAME = re.compile(r"(?<![\w./<\-])((?:[\w-]+/)*[\w-]+\.(?:py|h|cpp|cu|cuh|inl))\b(?!\.\w)")


def prose(path: Path) -> str:
    """The text of a file that is written for people: comments and docstrings, or a document's backticks and links."""
    text = path.read_text()
    if path.suffix == ".md":
        return "\n".join(" ".join(found) for found in re.findall(r"`([^`]+)`|\]\(([^)]+)\)", text))
    if path.suffix != ".py":
        return "\n".join(re.findall(r"//(.*)", text))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return "\n".join(t.string for t in tokens if t.type == tokenize.COMMENT or t.string.startswith('"""'))


def unknown(text: str) -> list[str]:
    """The file names in a text that do not match the end of any path in this repository."""
    names = set(NAME.findall(text)) - FOREIGN
    return sorted(n for n in names if not any(f"/{path}".endswith(f"/{n}") for path in KNOWN) and "torch/" not in n)


@pytest.mark.parametrize("folder", ["", *FOLDERS])
def test_named_files_exist(folder: str) -> None:
    paths = [path for path in SOURCES if path.relative_to(ROOT).parts[0] == folder] if folder else DOCUMENTS
    found = {path.relative_to(ROOT).as_posix(): unknown(prose(path)) for path in paths if path != Path(__file__)}
    assert paths and not {path: names for path, names in found.items() if names}


def test_the_check_sees_what_is_gone() -> None:
    assert unknown("see gone.py, csrc/cpu/gone.inl and reference.py") == ["csrc/cpu/gone.inl", "gone.py"]
    assert not unknown("ops/moments.py, csrc/cuda/moments.cu, torch/library.h, https://example.org/a.py.txt")
