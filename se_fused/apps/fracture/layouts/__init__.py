"""Adapters that read data sets in their published layouts into a manifest.

Each adapter module documents its data set: the place of publication, the licence and the layout.
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
"""{name of a layout: function that reads it}."""

_SETS = {"fracatlas": fracatlas.fits, "mura": mura.fits, "grazpedwri": grazpedwri.fits, "hbfmid": hbfmid.fits}
_FITS = {**_SETS, "folders": folders_fits, "class-first": class_first_fits, "dicom": dicom_folder.fits}
_DEPTH = 3


def _fitting(root: Path) -> list[str]:
    """Names of the layouts that match a folder or file."""
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
    """The folder and, while it contains a single folder, that folder too: archives often unpack into nested folders."""
    yield root
    for _ in range(_DEPTH):
        inside = sub_folders(root) if root.is_dir() else []
        if len(inside) != 1:
            return
        root = inside[0]
        yield root


def _certain(root: Path, folder: Path) -> bool:
    """Whether the sub-folders of a single folder are certainly classes.

    Otherwise the single folder may be the only class and its sub-folders patients.
    """
    named = folder == root or folder.name == folder.parent.name or (folder / "labels.csv").is_file()
    return named or any(split_of(inner.name) for inner in sub_folders(folder))


def detect(root: Path) -> tuple[Path, str]:
    """Detect the layout of a data set; returns its folder (`root` or a single folder inside it) and the layout's name.

    Raises:
        InputError: no layout or several layouts match.
    """
    for folder in _nested(root):
        found = _fitting(folder)
        if found in (["folders"], ["dicom"]) and not _certain(root, folder):
            raise InputError(f"{root}: contains one folder, so one class; if that contains the classes, give {folder}")
        if len(found) > 1:
            raise InputError(f"{folder}: matches the layouts {' and '.join(found)}; choose one with --layout")
        if found:
            return folder, found[0]
    raise InputError(
        f"{root}: no known layout of a data set; expected: a folder of images for each class, a CSV with path and "
        f"label, or one of these with --layout: {', '.join(LAYOUTS)}"
    )


def _options(layout: str, options: dict[str, Any]) -> dict[str, Any]:
    known = list(inspect.signature(LAYOUTS[layout]).parameters)[1:]
    for name in options:
        if name not in known:
            raise InputError(
                f"{name} is not an option of layout {layout}; its options are {', '.join(known) or 'none'}"
            )
    return options


def read(
    root: str | os.PathLike[str], layout: str = "auto", classes: Sequence[str] | None = None, **options: Any
) -> Manifest:
    """Read a data set in its published layout.

    Args:
        root: folder of the data set, or a CSV file. A folder that contains only one folder is replaced by that folder.
        layout: one of `LAYOUTS`, or "auto" to detect it from the files. The manifest's first note names the layout.
        classes: allowed labels; None allows any.
        options: options of the layout: ``columns`` (csv, dicom), ``task`` (grazpedwri), ``source_split`` (fracatlas),
            ``regions`` (mura).

    Returns:
        The images in the order of the files or of the table. ``patient`` is "" where the data set names no patients,
        ``split`` is "" where it has no splits. ``notes`` name the layout and count the images left out, with reasons.

    Raises:
        InputError: there is no such folder, no layout or several layouts match, a class has no images, there are
            fewer than two classes, a label is outside `classes`, or a table cannot be read. The message is one line.
        ImportError: pydicom (for DICOM) or PyYAML (for ``data.yaml``) is not installed.
    """
    root = Path(root).resolve()
    if layout != "auto" and layout not in LAYOUTS:
        raise InputError(f"layout must be one of auto, {', '.join(LAYOUTS)}; got {layout!r}")
    if not root.exists():
        raise InputError(f"{root}: no such folder or file; give the folder of a data set, or a CSV file")
    if layout == "auto":
        folder, name = detect(root)
    else:
        fits = _FITS.get(layout, Path.is_file)
        name, sure = layout, layout in (*_SETS, "class-first")
        folder = next((f for f in _nested(root) if fits(f) and (sure or _certain(root, f))), root)
        if folder.is_file() and name != "csv":
            raise InputError(f"{root}: is a file; layout {name} needs a folder")
    manifest = LAYOUTS[name](folder, **_options(name, options))
    notes = (f"layout {name} of {folder}", *manifest.notes)
    if not manifest.records:
        raise InputError(f"{folder}: no images for layout {name}{_first(manifest.notes)}; choose another with --layout")
    if len(manifest.classes) < 2:
        raise InputError(
            f"{folder}: all {len(manifest)} images are of one class, {manifest.classes[0]!r}; two or more are needed"
        )
    for record in manifest.records if classes is not None else ():
        if record.label not in (classes or ()):
            raise InputError(f"{record.path}: label {record.label!r} is not one of {', '.join(classes or ())}")
    return replace(manifest, notes=notes)


def _first(notes: tuple[str, ...]) -> str:
    counted = [note for note in notes if "left out" in note]
    return f" ({'; '.join(counted)})" if counted else ""
