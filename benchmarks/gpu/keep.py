"""Puts what came back from a GPU under benchmarks/results/<gpu>/, draws it, and strikes what is now measured."""

import fnmatch
import json
import re
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from se_fused._atomic_write import write_text

from .report import draw
from .steps import COMMANDS
from .store import load
from .tables import render
from .target import ROOT

__all__ = ["TABLE", "keep", "strike"]

TABLE = "UNMEASURED.md"
"""In benchmarks/results: a table of claim, the step that settles it, what is expected, what was measured."""

Record = dict[str, Any]


def _found(path: Path) -> list[tuple[str, Path]]:
    """(command, archive) of a file, or of all in a folder.

    Raises:
        ValueError: there is none.
    """
    files = sorted(path.glob("*.tar.gz")) if path.is_dir() else [path]
    named = [(file.name.removesuffix(".tar.gz"), file) for file in files]
    found = [(command, file) for command, file in named if command in COMMANDS]
    if not found:
        names = ", ".join(f"{command}.tar.gz" for command in COMMANDS)
        raise ValueError(f"{path.name} is none of {names}, which `python3 -m benchmarks.gpu` writes, and holds none")
    return found


def _text(archive: Path, command: str) -> str:
    """The results in an archive. Nothing of it is unpacked.

    Raises:
        ValueError: it is no archive of ours.
    """
    try:
        with tarfile.open(archive) as tar:
            file = tar.extractfile(f"{command}.jsonl")
            if file is None:
                raise KeyError(command)
            return file.read().decode()
    except (tarfile.TarError, EOFError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{archive.name} cannot be read as {command}'s archive ({type(error).__name__}: {error})"
        ) from None


def slug(gpu: str) -> str:
    """A folder's name: "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def strike(text: str, command: str, gpu: str, commit: str, steps: Iterable[Record]) -> tuple[str, list[str]]:
    """The table with what the steps of a command settled struck, and those claims.

    A line names its steps as ``right: excitation cuda`` or ``right: contract cuda *``. All that it names must be good,
    and their figures are what was measured.

    Args:
        text: of :data:`TABLE`.
        command: whose steps.
        gpu, commit: where and what was measured.
        steps: as :func:`.store.load` returns them.
    """
    ended = {f"{command}: {s['step']}": s for s in steps}
    lines, struck = [], []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        named = re.fullmatch(r"`(.+)`", cells[1]) if len(cells) == 4 else None
        meant = [ended[name] for name in fnmatch.filter(ended, named[1])] if named else []
        if meant and all(step["verdict"] == "ok" for step in meant):
            figure = "; ".join(step["figure"] for step in meant)
            claim = cells[0] if cells[0].startswith("~~") else f"~~{cells[0]}~~"
            told = f"{figure} ({gpu}, {commit[:10]})".replace("|", "/")
            line = f"| {claim} | {cells[1]} | {cells[2]} | {told} |"
            struck.append(cells[0].strip("~"))
        lines.append(line)
    return "\n".join(lines) + "\n", struck


def keep(tars: Sequence[Path], results: Path) -> list[str]:
    """Keep the results of one or more archives; returns what to tell.

    Args:
        tars: files, or folders of them.
        results: benchmarks/results.

    Raises:
        ValueError: a file is none of ours, or a rehearsal's.
        OSError: it cannot be read, or the results cannot be written.
    """
    read: list[tuple[str, Record, list[Record], list[Record]]] = []
    for path in tars:  # all are read before anything is written
        if not path.exists():
            raise ValueError(f"{path.name} is not there: give the archive that came back, as TAR=...")
        for command, archive in _found(path):
            environment, steps, rows = load(_text(archive, command))
            if environment["rehearsal"] and results.resolve().is_relative_to(ROOT):
                raise ValueError(f"{archive.name} is of a rehearsal on a CPU: it measures nothing")
            read.append((command, environment, steps, rows))
    told = []
    for command, environment, steps, rows in read:
        gpu = str(environment["gpu"])
        place = results / slug(gpu)
        place.mkdir(parents=True, exist_ok=True)
        lines = [{"kind": "environment", **environment}, *steps, *rows]
        write_text(place / f"{command}.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
        write_text(place / f"{command}.txt", "\n".join(render(command, environment, steps, rows)) + "\n")
        good = sum(step["verdict"] == "ok" for step in steps)
        told.append(f"{command} on {gpu}: {good} of {len(steps)} steps, in {place.name}/{command}.jsonl and .txt")
        table = results / TABLE
        if table.exists():
            text, struck = strike(table.read_text(), command, gpu, str(environment.get("commit") or "?"), steps)
            write_text(table, text)
            told += [f"  measured now: {claim}" for claim in struck]
    for place in sorted({results / slug(str(environment["gpu"])) for _, environment, _, _ in read}):
        told += [f"  drawn: {place.name}/{file.name}" for file in draw(place)]
    return told
