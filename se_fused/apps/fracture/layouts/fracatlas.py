"""Adapter for FracAtlas: figshare 22363012, doi 10.6084/m9.figshare.22363012, CC BY 4.0.

4,083 radiographs of hands, legs, hips and shoulders, 717 of them with a fracture, without fracture types and patients.
Layout:
``dataset.csv`` (image_id, hand, leg, hip, shoulder, mixed, hardware, multiscan, fractured, fracture_count, frontal,
lateral, oblique), ``images/{Fractured,Non_fractured}/IMG0000019.jpg``, ``Annotations/`` and
``Utilities/Fracture Split/{train,valid,test}.csv``.
"""

from pathlib import Path

from ...._errors import InputError
from ..manifest import Manifest, Record, plural
from ._tools import LeftOut, header_of, read_table, split_of

__all__ = ["fits", "read"]

_FOLDERS = ("Non_fractured", "Fractured")
_VIEWS = ("frontal", "lateral", "oblique")


def fits(root: Path) -> bool:
    """Whether the folder has a ``dataset.csv`` with the columns of FracAtlas."""
    return {"image_id", "fractured"} <= set(header_of(root / "dataset.csv"))


def _splits(root: Path) -> dict[str, str]:
    found = {}
    folder = root / "Utilities" / "Fracture Split"
    for name in ("train", "valid", "test"):
        for _, row in read_table(folder / f"{name}.csv", ["image_id"])[1]:
            found[row["image_id"]] = split_of(name)
    return found


def read(root: Path, source_split: bool = False) -> Manifest:
    """Read FracAtlas with the labels "not fractured" and "fractured".

    The view is set where exactly one view is marked. Patients are unknown.

    Args:
        root: the folder of ``dataset.csv``.
        source_split: use the splits of ``Utilities/Fracture Split``, which cover the fractured images only.

    Raises:
        InputError: a table is missing or lacks a column, or the flag `fractured` is neither 0 nor 1.
    """
    table = root / "dataset.csv"
    _, rows = read_table(table, ["image_id", "fractured", "multiscan", *_VIEWS])
    left, records, several = LeftOut(root), {}, 0
    splits = _splits(root) if source_split else {}
    for line, row in rows:
        name, flag = row["image_id"], row["fractured"]
        if flag not in ("0", "1") or not name:
            raise InputError(f"{table}: line {line}: image_id or fractured (0 or 1) is missing; restore the line")
        places = [root / "images" / folder / name for folder in _FOLDERS]
        path = places[int(flag)]
        if not path.is_file():
            left.add(
                "the file is missing" if not places[1 - int(flag)].is_file() else "in the other class's folder", name
            )
            continue
        views = [view for view in _VIEWS if row[view] == "1"]
        several += len(views) > 1 or row["multiscan"] == "1"
        label, view = ("not fractured", "fractured")[int(flag)], views[0] if len(views) == 1 else ""
        records[path] = Record(path, label, view=view, split=splits.get(name, ""), source="FracAtlas")
    notes = [f"{plural(several, 'image')} with several views, or marked as multiscan"] if several else []
    if source_split:
        notes.append("splits from Utilities/Fracture Split, which cover the fractured images only")
    elif (root / "Utilities" / "Fracture Split").is_dir():
        notes.append("Utilities/Fracture Split is not used: it covers the fractured images only")
    return Manifest(tuple(records.values()), (*notes, *left.notes()))
