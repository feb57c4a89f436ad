"""Adapter for HBFMID, the Human Bone Fractures Multi-modal Image Dataset: Mendeley Data, doi 10.17632/xwfs6xbk47.1.

The licence is CC BY 4.0 according to the Mendeley page, but "Private" according to its ``data.yaml``. The adapter also
reads other data sets that Roboflow exported with YOLO boxes.

1,539 images derived from 641, with ten fracture types and Healthy. Layout: ``data.yaml`` (class names) and
``{train,valid,test}/{images,labels}/<source>_jpg.rf.<hash>.jpg``, with a line ``class x y w h`` for each box. 13 % of
the images are MRI. Copies of one source image are in several splits: the adapter reads the published splits, but scores
on them are not reliable (``se-fused fracture audit`` counts the copies).
"""

import re
from pathlib import Path
from typing import Any

from ...._errors import InputError
from ..manifest import NEGATIVES, Manifest, Record
from ._tools import LeftOut, find, split_of, sub_folders

__all__ = ["fits", "read"]

_NAMES = ("data.yaml", "data.yml")
_EXPORTED = re.compile(r"_(?:jpe?g|png|bmp|tiff?)\.rf\.", re.IGNORECASE)


def _splits(root: Path) -> list[Path]:
    folders = sub_folders(root) if root.is_dir() else []
    return [f for f in folders if split_of(f.name) and (f / "images").is_dir() and (f / "labels").is_dir()]


def fits(root: Path) -> bool:
    """Whether a folder has a ``data.yaml`` and a split folder with images and labels."""
    return any((root / name).is_file() for name in _NAMES) and bool(_splits(root))


def _classes(root: Path) -> list[str]:
    """Class names from ``data.yaml``, given as a list or as a mapping from class numbers."""
    try:
        import yaml
    except ImportError as error:
        raise ImportError('reading data.yaml requires PyYAML: pip install "se_fused[train]"') from error
    path = next((root / name for name in _NAMES if (root / name).is_file()), root / _NAMES[0])
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: cannot be read: {reason}; restore the file") from None
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[k] for k in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InputError(f"{path}: has no list of class names; it must contain names: [Comminuted, ...]")
    return [str(name).strip() for name in names]


def _boxes(path: Path, classes: list[str]) -> set[str]:
    """Set of the classes of an image's boxes."""
    found = set()
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not text.split():
            continue
        number = text.split()[0]
        if not (number.isdecimal() and int(number) < len(classes)):
            raise InputError(f"{path}: line {line}: class must be 0 to {len(classes) - 1}; got {number[:20]!r}")
        found.add(classes[int(number)])
    return found


def read(root: Path) -> Manifest:
    """Read a data set with YOLO boxes; the class of an image is the class of its boxes.

    An image without a box gets the class that means "no fracture" (Healthy), if there is one. MRI (``_mri`` in the
    name), images with boxes of several classes and images without a label file are left out and counted. The study is
    the name of the source image from which Roboflow derived the file. Patients are unknown.

    Raises:
        InputError: ``data.yaml`` or a line of a label file cannot be read, or a class number has no name.
    """
    classes, left, records = _classes(root), LeftOut(root), []
    negative = {name for name in classes if re.sub("[_-]", " ", name.casefold()) in NEGATIVES}
    for folder in _splits(root):
        for path in find(folder / "images"):
            labels = folder / "labels" / f"{path.stem}.txt"
            if "_mri" in path.name.casefold():
                left.add("MRI", path)
                continue
            if not labels.is_file():
                left.add("without a label file", path)
                continue
            found = _boxes(labels, classes) or negative
            if len(found) != 1:
                left.add("boxes of several classes" if found else "without a box", path)
                continue
            source = _EXPORTED.split(path.stem)[0]
            records.append(Record(path, found.pop(), "", source, "", split_of(folder.name), "HBFMID"))
    return Manifest(tuple(records), left.notes())
