"""Adapters for class folders: inside train, valid and test folders, containing them, or without splits.

``folders``: ``<class>/**/image.png``, or ``{train,valid,test}/<class>/**/image.png`` as in torchvision's ImageFolder
and in Bone Fracture Multi-Region X-ray Data (Kaggle bmadushanirodrigo, ODC-By:
``{train,val,test}/{fractured,not fractured}/``; its file names show that it was augmented before the split).

``class-first``: ``<Class>/{Train,Test}/image.jpg``, as in Bone Break Classification (Kaggle pkdarabi, CC BY 4.0), whose
class names vary in case ("Hairline Fracture", "Greenstick fracture").

These layouts name no patients; groups of near duplicates are derived later.
"""

from collections.abc import Iterable
from pathlib import Path

from ...._errors import InputError
from ..manifest import Manifest, Record, natural_key, plural
from ._tools import LeftOut, find, image_files, one_spelling, split_of, sub_folders

__all__ = ["by_folder", "class_first_fits", "folders_fits", "read_class_first", "read_folders"]

Placed = tuple[Path, str, str]
"""(path of an image, label, split)."""


def _has_images(folder: Path, kind: str = "picture") -> bool:
    return next(image_files(folder, kind), None) is not None


def folders_fits(root: Path, kind: str = "picture") -> bool:
    """Whether a folder has two or more class folders, or folders named after splits."""
    if not root.is_dir():
        return False
    full = [folder for folder in sub_folders(root) if _has_images(folder, kind)]
    return any(split_of(folder.name) for folder in full) or len(full) > 1


def class_first_fits(root: Path) -> bool:
    """Whether a folder has two or more class folders that contain only folders named after splits."""
    if not root.is_dir():
        return False
    classes = [sub_folders(folder) for folder in sub_folders(root) if _has_images(folder)]
    return len(classes) > 1 and all(inner and all(split_of(folder.name) for folder in inner) for inner in classes)


def _loose(folder: Path, kind: str, left: LeftOut) -> None:
    """Count images that are in a folder itself instead of in its class folders as left out."""
    for path in sorted(image_files(folder, kind), key=natural_key):
        if path.parent == folder:
            left.add("outside the class folders", path)


def _check_empty(root: Path, empty: Iterable[Path], full: set[str]) -> tuple[str, ...]:
    """Notes on class folders that are empty in one split; raises InputError for a class without any image."""
    notes = []
    for folder in empty:
        if folder.name not in full:
            raise InputError(f"{folder}: the class has no images; add PNG, JPEG, TIFF or DICOM files, or remove it")
        notes.append(f"{folder.relative_to(root).as_posix()} has no images")
    return tuple(notes)


def by_folder(root: Path, kind: str, left: LeftOut) -> tuple[list[Placed], tuple[str, ...]]:
    """Images of class folders with label and split, and notes; raises InputError for an empty class."""
    inside = sub_folders(root)
    splits = [folder for folder in inside if split_of(folder.name)]
    classes = [(folder, "") for folder in inside]
    _loose(root, kind, left)
    if splits:
        for folder in inside:
            for path in find(folder, kind) if folder not in splits else ():
                left.add("outside the split folders", path)
        for folder in splits:
            _loose(folder, kind, left)
        classes = [(folder, split_of(parent.name)) for parent in splits for folder in sub_folders(parent)]
    images = [(path, folder.name, split) for folder, split in classes for path in find(folder, kind)]
    full = {label for _, label, _ in images}
    if not full:
        return [], ()
    reached = {(label, split) for _, label, split in images}
    empty = [folder for folder, split in classes if (folder.name, split) not in reached]
    return images, _check_empty(root, empty, full)


def _manifest(root: Path, images: list[Placed], notes: tuple[str, ...], left: LeftOut) -> Manifest:
    records, joined = one_spelling(
        [Record(path, label, split=split, source=root.name) for path, label, split in images]
    )
    other = sum(1 for _ in image_files(root, "dicom"))
    dicom = (f"{plural(other, 'DICOM file')} left out; --layout dicom reads them",) if other else ()
    return Manifest(records, notes + joined + left.notes() + dicom)


def read_folders(root: Path) -> Manifest:
    """Read a folder for each class, or folders train, valid (val) and test that contain one for each class.

    Class folders are searched to any depth. Class names that differ only in case are merged.
    """
    left = LeftOut(root)
    images, notes = by_folder(root, "picture", left)
    return _manifest(root, images, notes, left)


def read_class_first(root: Path) -> Manifest:
    """Read a folder for each class that contains Train and Test. Class names become, e.g., "Hairline fracture"."""
    left, notes = LeftOut(root), []
    images: list[Placed] = []
    _loose(root, "picture", left)
    for folder in sub_folders(root):
        before, label = len(images), " ".join(folder.name.split()).capitalize()
        for inner in sub_folders(folder):
            found = find(inner)
            if not (split := split_of(inner.name)):
                for path in found:
                    left.add("outside Train and Test", path)
                continue
            images += [(path, label, split) for path in found]
            if not found:
                notes.append(f"{folder.name}/{inner.name} has no images")
        _loose(folder, "picture", left)
        if len(images) == before:
            raise InputError(f"{folder}: the class has no images in Train or Test; add images, or remove the folder")
    return _manifest(root, images, tuple(notes), left)
