"""Data sets as they are shipped -> one manifest.

Each adapter's module names its data set, where it is published, its licence and its layout.
"""

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...._errors import InputError
from ..manifest import Manifest
from . import dicom_folder, fracatlas, grazpedwri, hbfmid, mura
from ._tools import split_of, sub_folders
from .dicom_folder import read_dicom
from .folders import class_first_fits, folders_fits, read_class_first, read_folders
from .table import candidates, read_csv

__all__ = ["LAYOUTS", "detect", "read"]

LAYOUTS: dict[str, Callable[..., Manifest]] = {
    "folders": read_folders,
    "class-first": read_class_first,
    "csv": read_csv,
    "fracatlas": fracatlas.read,
    "mura": mura.read,
    "grazpedwri": grazpedwri.read,
    "hbfmid": hbfmid.read,
    "dicom": read_dicom,
}
"""The names of layouts and what reads them."""

_SETS = {"fracatlas": fracatlas.fits, "mura": mura.fits, "grazpedwri": grazpedwri.fits, "hbfmid": hbfmid.fits}
_FITS = {**_SETS, "folders": folders_fits, "class-first": class_first_fits, "dicom": dicom_folder.fits}
_DEPTH = 3


def _fitting(root: Path) -> list[str]:
    """The layouts that a folder or file has."""
    if root.is_file():
        return ["csv"]
    if (root / "manifest.csv") in (tables := candidates(root)):
        return ["csv"]
    if found := [name for name, fits in _SETS.items() if fits(root)]:
        return found
    found = ["csv"] if tables else []
    if class_first_fits(root):
        found.append("class-first")
    elif folders_fits(root):
        found.append("folders")
    if dicom_folder.fits(root):
        own = found == ["csv"] and tables == [root / "labels.csv"]
        found = ["dicom"] if own else [*found, "dicom"]
    return found


def _nested(root: Path) -> Iterator[Path]:
    """The folder, and while it holds one folder only, that: archives unpack into folders of folders."""
    yield root
    for _ in range(_DEPTH):
        inside = sub_folders(root) if root.is_dir() else []
        if len(inside) != 1:
            return
        root = inside[0]
        yield root


def _certain(root: Path, folder: Path) -> bool:
    """Whether folders below a lone folder are classes. They may also be patients, and the lone folder the one class."""
    named = folder == root or folder.name == folder.parent.name or (folder / "labels.csv").is_file()
    return named or any(split_of(inner.name) for inner in sub_folders(folder))


def detect(root: Path) -> tuple[Path, str]:
    """The folder that has a layout, which may lie in `root` alone, and the layout's name.

    Raises:
        InputError: none is recognised, or several.
    """
    for folder in _nested(root):
        found = _fitting(folder)
        if found in (["folders"], ["dicom"]) and not _certain(root, folder):
            raise InputError(f"{root}: holds one folder, so one class; if the classes are below it, name {folder}")
        if len(found) > 1:
            raise InputError(f"{folder}: may be {' or '.join(found)}; say which with --layout")
        if found:
            return folder, found[0]
    raise InputError(
        f"{root}: no layout of a data set recognised; wanted: a folder of images for each class, a CSV with path and "
        f"label, or with --layout one of {', '.join(LAYOUTS)}"
    )


def _options(layout: str, options: dict[str, Any]) -> dict[str, Any]:
    known = list(inspect.signature(LAYOUTS[layout]).parameters)[1:]
    for name in options:
        if name not in known:
            raise InputError(f"{name} is no option of layout {layout}, which takes {', '.join(known) or 'none'}")
    return options


def read(
    root: str | os.PathLike[str], layout: str = "auto", classes: Sequence[str] | None = None, **options: Any
) -> Manifest:
    """Read a data set as its publishers lay it out.

    Args:
        root: its folder, or a CSV. A folder that holds nothing but one folder stands for that one.
        layout: one of `LAYOUTS`, or "auto" to tell it from its files; the manifest's first note says which it was.
        classes: the labels that may occur; any by default.
        options: of the layout: ``columns`` (csv, dicom), ``task`` (grazpedwri), ``source_split`` (fracatlas),
            ``regions`` (mura).

    Returns:
        The images in the order of the files or of the table. ``patient`` is "" where the data set names none, ``split``
        where it has none. ``notes`` say which layout it was, and count what was left out, and why.

    Raises:
        InputError: one line saying what of the data is wrong: no such folder, no or several layouts, a class without
            images, fewer than two classes, a label outside `classes`, a table that cannot be read.
        ImportError: DICOM without pydicom, or ``data.yaml`` without PyYAML.
    """
    root = Path(root).resolve()
    if layout != "auto" and layout not in LAYOUTS:
        raise InputError(f"layout must be auto, {', '.join(LAYOUTS)}, got {layout!r}")
    if not root.exists():
        raise InputError(f"{root}: no such folder or file; name the folder of a data set, or a CSV")
    if layout == "auto":
        folder, name = detect(root)
    else:
        fits = _FITS.get(layout, Path.is_file)
        name, sure = layout, layout in (*_SETS, "class-first")
        folder = next((f for f in _nested(root) if fits(f) and (sure or _certain(root, f))), root)
        if folder.is_file() and name != "csv":
            raise InputError(f"{root}: is a file; layout {name} wants a folder")
    manifest = LAYOUTS[name](folder, **_options(name, options))
    notes = (f"layout {name} of {folder}", *manifest.notes)
    if not manifest.records:
        raise InputError(f"{folder}: no images for layout {name}{_first(manifest.notes)}; say another with --layout")
    if len(manifest.classes) < 2:
        raise InputError(
            f"{folder}: all {len(manifest)} images are of one class, {manifest.classes[0]!r}; two or more are wanted"
        )
    for record in manifest.records if classes is not None else ():
        if record.label not in (classes or ()):
            raise InputError(f"{record.path}: label {record.label!r} is none of {', '.join(classes or ())}")
    return replace(manifest, notes=notes)


def _first(notes: tuple[str, ...]) -> str:
    counted = [note for note in notes if "left out" in note]
    return f" ({'; '.join(counted)})" if counted else ""
