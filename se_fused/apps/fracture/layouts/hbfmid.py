"""HBFMID, the Human Bone Fractures Multi-modal Image Dataset: Mendeley Data, doi 10.17632/xwfs6xbk47.1; its page says
CC BY 4.0, its own ``data.yaml`` "Private". Also any set that Roboflow exported as YOLO boxes of classes.

1,539 images made from 641, ten types of fracture and Healthy. Layout: ``data.yaml`` (the names of the classes) and
``{train,valid,test}/{images,labels}/<source>_jpg.rf.<hash>.jpg``, with a line ``class x y w h`` for each box. 13 % are
MRI. Copies of one source image lie in several splits: its own splits are kept, but no score on them is to be believed
(``se-fused fracture audit`` counts the copies).
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
    """``data.yaml`` and a split with images and labels."""
    return any((root / name).is_file() for name in _NAMES) and bool(_splits(root))


def _classes(root: Path) -> list[str]:
    """The names in ``data.yaml``: a list, or a mapping from numbers."""
    try:
        import yaml
    except ImportError as error:
        raise ImportError('reading data.yaml needs PyYAML: pip install "se_fused[train]"') from error
    path = next((root / name for name in _NAMES if (root / name).is_file()), root / _NAMES[0])
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: cannot be read: {reason}; restore it") from None
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[k] for k in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InputError(f"{path}: has no list of names; it must hold names: [Comminuted, ...]")
    return [str(name).strip() for name in names]


def _boxes(path: Path, classes: list[str]) -> set[str]:
    """The classes of an image's boxes."""
    found = set()
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not text.split():
            continue
        number = text.split()[0]
        if not (number.isdecimal() and int(number) < len(classes)):
            raise InputError(f"{path}: line {line}: wanted a class from 0 to {len(classes) - 1}, got {number[:20]!r}")
        found.add(classes[int(number)])
    return found


def read(root: Path) -> Manifest:
    """The class of an image's boxes; an image without a box is of the class that means none (Healthy), if there is one.

    Left out and counted: MRI (``_mri`` in the name), images with boxes of several classes, without a file of labels.
    The study is the name of the image that Roboflow made it from; patients are not known.

    Raises:
        InputError: ``data.yaml`` or a line of labels that cannot be read, or a class that it does not name.
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
                left.add("without a file of labels", path)
                continue
            found = _boxes(labels, classes) or negative
            if len(found) != 1:
                left.add("boxes of several classes" if found else "without a box", path)
                continue
            source = _EXPORTED.split(path.stem)[0]
            records.append(Record(path, found.pop(), "", source, "", split_of(folder.name), "HBFMID"))
    return Manifest(tuple(records), left.notes())
