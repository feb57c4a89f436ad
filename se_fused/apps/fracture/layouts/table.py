"""Adapter for CSV files that list images and their classes, such as a manifest of se_fused."""

import os
from collections.abc import Mapping
from pathlib import Path

from ...._errors import InputError
from ..images import PICTURES
from ..manifest import Manifest, Record
from ._tools import LeftOut, find, header_of, normal, one_spelling, read_table, split_of

__all__ = ["ALIASES", "candidates", "column_of", "read_csv"]

ALIASES = {
    "path": (
        "path image file filename file_name filepath file_path image_path image_file image_name image_id img"
    ).split(),
    "label": "label class diagnosis category target".split(),
    "patient": "patient patient_id patientid subject subject_id".split(),
    "study": "study study_id studyid study_number".split(),
    "view": "view projection view_position viewposition".split(),
    "split": "split set subset partition".split(),
    "source": "source dataset".split(),
}
"""{column of a manifest: accepted column names}; case, spaces and hyphens are ignored."""


def column_of(table: Path, columns: list[str], role: str, given: Mapping[str, str]) -> str:
    """The column of a table for the manifest's column `role`: the given name, else an accepted name, else "".

    Raises:
        InputError: the given column does not exist, or several columns match.
    """
    if role in given:
        if given[role] not in columns:
            raise InputError(f"{table}: has no column {given[role]} (for {role}); its columns are {', '.join(columns)}")
        return given[role]
    found = [name for name in columns if normal(name) in ALIASES[role]]
    exact = [name for name in found if normal(name) == role]
    if len(exact or found) > 1:
        raise InputError(f"{table}: columns {' and '.join(found)} may both be the {role}; rename one of them to {role}")
    return (exact or found or [""])[0]


def candidates(folder: Path) -> list[Path]:
    """CSV and TSV files in a folder that have columns for path and label."""
    found = []
    for path in sorted(folder.glob("*.[ct]sv")):
        names = {normal(name) for name in header_of(path)}
        if not path.name.startswith(".") and all(names & set(ALIASES[role]) for role in ("path", "label")):
            found.append(path)
    return found


class _Finder:
    """Finds images by their entry in a table: a path relative to the table's folder, or a unique name below it."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._names: dict[str, list[Path]] | None = None

    def find(self, name: str) -> Path | str:
        """The path of the file, or the reason why it is not found."""
        path = Path(os.path.normpath(self._base / name.replace("\\", "/")))
        if path.is_file():
            return path
        if self._names is None:
            self._names = {}
            for file in find(self._base) + find(self._base, "dicom"):
                for key in {file.name, file.stem}:
                    self._names.setdefault(key, []).append(file)
        hits = self._names.get(path.name, []) if path.parent == self._base else []
        hits = hits or [file for suffix in PICTURES if (file := path.with_name(path.name + suffix)).is_file()]
        if len(hits) == 1:
            return hits[0]
        return "several files have this name" if hits else "the file is missing"


def read_csv(root: Path, columns: Mapping[str, str] | None = None) -> Manifest:
    """Read a CSV file, or the CSV in a folder with columns for path and label (manifest.csv if there are several).

    Paths are relative to the folder of the CSV. A bare file name is also searched below that folder, and its suffix may
    be omitted. Rows without a label, rows whose file is missing and repeated rows are left out and counted.

    Args:
        root: the CSV file or its folder.
        columns: {column of the manifest: column of the table} for names outside `ALIASES`, e.g.
            ``{"label": "Befund"}``.

    Raises:
        InputError: there is no such table or column; an image has two labels; or a split has an unknown name.
    """
    given = dict(columns or {})
    for role in given:
        if role not in ALIASES:
            raise InputError(f"columns: {role} is not one of {', '.join(ALIASES)}")
    table = root
    if root.is_dir():
        tables = candidates(root) if not given else sorted(root.glob("*.[ct]sv"))
        named = [path for path in tables if path.name == "manifest.csv"]
        if len(named or tables) != 1:
            which = f"has {', '.join(path.name for path in tables)}" if tables else "has no CSV with path and label"
            raise InputError(f"{root}: {which}; give the path of one CSV file")
        table = (named or tables)[0]
    names, rows = read_table(table)
    place = {role: column_of(table, names, role, given) for role in ALIASES}
    for role in ("path", "label"):
        if not place[role]:
            raise InputError(
                f"{table}: has no column for the {role} ({', '.join(ALIASES[role])}); rename a column to {role}"
            )
    finder, left = _Finder(table.parent), LeftOut(table.parent)
    records: dict[Path, Record] = {}
    for line, row in rows:
        cell = {role: row[name] if name else "" for role, name in place.items()}
        if not cell["path"]:
            raise InputError(f"{table}: line {line} names no image; add it or remove the line")
        if not cell["label"]:
            left.add("without a label", cell["path"])
            continue
        path = finder.find(cell["path"])
        if isinstance(path, str):
            left.add(path, cell["path"])
            continue
        if cell["split"] and not split_of(cell["split"]):
            raise InputError(f"{table}: line {line}: split must be train, valid, test or empty: {cell['split']!r}")
        if path in records:
            if records[path].label != cell["label"]:
                raise InputError(f"{table}: line {line}: {path.name} has two labels; remove one of its lines")
            left.add("listed twice", cell["path"])
            continue
        texts = {role: cell[role] for role in ("label", "patient", "study", "view")}
        source = cell["source"] or table.parent.name
        records[path] = Record(path, **texts, split=split_of(cell["split"]), source=source)
    kept, joined = one_spelling(list(records.values()))
    return Manifest(kept, (f"from {table.name}", *joined, *left.notes()))
