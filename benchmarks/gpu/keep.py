"""Stores returned results under benchmarks/results/<gpu>/, draws them, and marks measured claims in UNMEASURED.md."""

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
"""File in benchmarks/results: a table of claims with the step that checks each, the expectation and the measurement."""

Record = dict[str, Any]


def _found(path: Path) -> list[tuple[str, Path]]:
    """(command, archive) of a file, or of all archives in a folder.

    Raises:
        ValueError: there is no archive.
    """
    files = sorted(path.glob("*.tar.gz")) if path.is_dir() else [path]
    named = [(file.name.removesuffix(".tar.gz"), file) for file in files]
    found = [(command, file) for command, file in named if command in COMMANDS]
    if not found:
        names = ", ".join(f"{command}.tar.gz" for command in COMMANDS)
        raise ValueError(f"{path.name} is not, and does not contain, one of {names} of `python3 -m benchmarks.gpu`")
    return found


def _text(archive: Path, command: str) -> str:
    """The text of the results in an archive, read without unpacking files.

    Raises:
        ValueError: the file is not an archive of this command.
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
    """Name of the folder for a GPU, such as "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def strike(text: str, command: str, gpu: str, commit: str, steps: Iterable[Record]) -> tuple[str, list[str]]:
    """Strike the claims in the table that the steps of a command have checked, and fill in the measurements.

    A line of the table names its steps, such as ``right: excitation cuda`` or ``right: contract cuda *``. The claim is
    struck if all these steps have the verdict "ok"; their figures are the measurement.

    Args:
        text: content of :data:`TABLE`.
        command: the command of the steps.
        gpu, commit: GPU and commit of the measurement.
        steps: steps as returned by :func:`.store.load`.

    Returns:
        The new content, and the struck claims.
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
    """Store the results of one or more archives; return the lines to print.

    Args:
        tars: archives, or folders of archives.
        results: the folder benchmarks/results.

    Raises:
        ValueError: a file is not an archive of these commands, or it is from a rehearsal.
        OSError: a file cannot be read, or the results cannot be written.
    """
    read: list[tuple[str, Record, list[Record], list[Record]]] = []
    for path in tars:  # read all archives before writing any file
        if not path.exists():
            raise ValueError(f"{path.name} does not exist: give the returned archive, as TAR=...")
        for command, archive in _found(path):
            environment, steps, rows = load(_text(archive, command))
            if environment["rehearsal"] and results.resolve().is_relative_to(ROOT):
                raise ValueError(f"{archive.name} is from a rehearsal on a CPU, which measures nothing")
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
