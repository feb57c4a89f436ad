"""Any CSV that names images and their classes; a manifest of se_fused is one."""

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
"""Names of columns that are known for each column of a manifest; case, spaces and hyphens do not matter."""


def column_of(table: Path, columns: list[str], role: str, given: Mapping[str, str]) -> str:
    """The column of a table that holds a manifest's column `role`: as given, else by its name; "" if there is none.

    Raises:
        InputError: the given one does not exist, or several would fit.
    """
    if role in given:
        if given[role] not in columns:
            raise InputError(f"{table}: has no column {given[role]} (for {role}); it has {', '.join(columns)}")
        return given[role]
    found = [name for name in columns if normal(name) in ALIASES[role]]
    exact = [name for name in found if normal(name) == role]
    if len(exact or found) > 1:
        raise InputError(f"{table}: {' and '.join(found)} may both be the {role}; rename one of them to {role}")
    return (exact or found or [""])[0]


def candidates(folder: Path) -> list[Path]:
    """The CSV files lying in a folder that name images and labels."""
    found = []
    for path in sorted(folder.glob("*.[ct]sv")):
        names = {normal(name) for name in header_of(path)}
        if not path.name.startswith(".") and all(names & set(ALIASES[role]) for role in ("path", "label")):
            found.append(path)
    return found


class _Finder:
    """Images by what a table calls them: a path from the table's folder, or a name that is unique below it."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._names: dict[str, list[Path]] | None = None

    def find(self, name: str) -> Path | str:
        """The file, or why there is none."""
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
    """Read a CSV, or the one in a folder that names images and labels (manifest.csv where there are several).

    A path is relative to the CSV's folder; a bare file name is also searched below it, and may lack its suffix. Rows
    without a label, without their file, or said twice, are left out and counted.

    Args:
        root: the CSV or its folder.
        columns: the table's names of columns where they are others than `ALIASES`, e.g. ``{"label": "Befund"}``.

    Raises:
        InputError: no such table or column; an image with two labels; a split of another name.
    """
    given = dict(columns or {})
    for role in given:
        if role not in ALIASES:
            raise InputError(f"columns has {role}, which is none of {', '.join(ALIASES)}")
    table = root
    if root.is_dir():
        tables = candidates(root) if not given else sorted(root.glob("*.[ct]sv"))
        named = [path for path in tables if path.name == "manifest.csv"]
        if len(named or tables) != 1:
            which = f"holds {', '.join(path.name for path in tables)}" if tables else "holds no CSV with path and label"
            raise InputError(f"{root}: {which}; name the CSV file itself")
        table = (named or tables)[0]
    names, rows = read_table(table)
    place = {role: column_of(table, names, role, given) for role in ALIASES}
    for role in ("path", "label"):
        if not place[role]:
            raise InputError(
                f"{table}: has no column for the {role} ({', '.join(ALIASES[role])}); rename one to {role}"
            )
    finder, left = _Finder(table.parent), LeftOut(table.parent)
    records: dict[Path, Record] = {}
    for line, row in rows:
        cell = {role: row[name] if name else "" for role, name in place.items()}
        if not cell["path"]:
            raise InputError(f"{table}: line {line} names no image; remove the row or name it")
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
                raise InputError(f"{table}: line {line}: {path.name} has two labels; remove one of its rows")
            left.add("said twice", cell["path"])
            continue
        texts = {role: cell[role] for role in ("label", "patient", "study", "view")}
        source = cell["source"] or table.parent.name
        records[path] = Record(path, **texts, split=split_of(cell["split"]), source=source)
    kept, joined = one_spelling(list(records.values()))
    return Manifest(kept, (f"from {table.name}", *joined, *left.notes()))
