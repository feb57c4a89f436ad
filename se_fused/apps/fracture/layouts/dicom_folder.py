"""Adapter for a folder of DICOM radiographs, labelled by the names of its sub-folders or by a table ``labels.csv``.

Patients and studies get pseudonyms in the order of the files ("p0001", "s0001"). The manifest, its notes and error
messages contain no identifier from a DICOM header.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ...._errors import InputError
from .. import dicom
from ..manifest import Manifest, Record, plural
from ._tools import LeftOut, find, image_files, normal, one_spelling, read_table, split_of
from .folders import by_folder, folders_fits
from .table import column_of

__all__ = ["fits", "read_dicom"]

_STUDY = {"studyinstanceuid", "study_instance_uid", "study_uid"}
_IMAGE = {"sopinstanceuid", "sop_instance_uid", "sop_uid", "instance_uid"}


def fits(root: Path) -> bool:
    """Whether a folder has DICOM files in class folders, or together with a ``labels.csv``."""
    if not root.is_dir():
        return False
    if (root / "labels.csv").is_file():
        return next(image_files(root, "dicom"), None) is not None
    return folders_fits(root, "dicom")


class _Pseudonyms:
    """Assigns numbered pseudonyms to keys, in the order of their first occurrence."""

    def __init__(self, letter: str) -> None:
        self._letter = letter
        self._names: dict[str, str] = {}

    def of(self, key: str) -> str:
        return self._names.setdefault(key, f"{self._letter}{len(self._names) + 1:04d}") if key else ""

    def __len__(self) -> int:
        return len(self._names)


class _Labels:
    """Labels and splits from ``labels.csv``, by file, by image (SOPInstanceUID) or by study (StudyInstanceUID)."""

    def __init__(self, root: Path, columns: Mapping[str, str]) -> None:
        table = root / "labels.csv"
        names, rows = read_table(table)
        file = column_of(table, names, "path", columns)
        label, split = column_of(table, names, "label", columns), column_of(table, names, "split", columns)
        keys = {
            kind: next((n for n in names if normal(n) in known), "")
            for kind, known in (("study", _STUDY), ("image", _IMAGE))
        }
        keys = {"file": file, **keys}
        if not label or not any(keys.values()):
            raise InputError(f"{table}: needs a column label and one of file, StudyInstanceUID or SOPInstanceUID")
        self._root, self._found = root, dict[tuple[str, str], tuple[str, str]]()
        self.kinds = [kind for kind in ("file", "image", "study") if keys[kind]]
        self.used: set[tuple[str, str]] = set()
        self.names = Counter[str]()
        for line, row in rows:
            given = (row[label], split_of(row[split]) if split else "")
            if split and row[split] and not given[1]:
                raise InputError(f"{table}: line {line}: split must be train, valid, test or empty: {row[split]!r}")
            filled = [(kind, row[keys[kind]]) for kind in self.kinds if row[keys[kind]]]
            if not filled:
                raise InputError(f"{table}: line {line} names no image; add it or remove the line")
            key = filled[0]
            if not given[0]:
                continue
            if self._found.setdefault(key, given) != given:
                raise InputError(f"{table}: line {line} repeats an image or study with another label; remove one line")

    def of(self, path: Path, header: dicom.Header) -> tuple[str, str]:
        """Label and split of a file; "" where the table has no entry."""
        names = [("file", path.relative_to(self._root).as_posix())]
        names += [("file", name) for name in (path.name, path.stem) if self.names[name] == 1]
        for key in (*names, ("image", header.instance), ("study", header.study)):
            if key in self._found:
                self.used.add(key)
                return self._found[key]
        return "", ""

    def unused(self) -> int:
        return len(self._found.keys() - self.used)


def read_dicom(root: Path, columns: Mapping[str, str] | None = None) -> Manifest:
    """Read a DICOM folder. Labels come from its ``labels.csv`` if there is one, else from the names of class folders.

    ``labels.csv`` has a column label and one of file (a path, or a unique file name), SOPInstanceUID and
    StudyInstanceUID, and optionally split. PatientID and its issuer identify the patient; without them, the study
    does. The view comes from ViewPosition. Files without an image, with several frames or with a damaged header are
    left out and counted.

    Raises:
        InputError: there are no labels; the table cannot be read, or gives an image or study two labels.
        ImportError: pydicom is not installed.
    """
    left = LeftOut(root)
    notes: tuple[str, ...] = ()
    table = _Labels(root, columns or {}) if (root / "labels.csv").is_file() else None
    if table:
        images = [(path, "", "") for path in find(root, "dicom")]
        table.names = Counter(name for path, _, _ in images for name in {path.name, path.stem})
    else:
        images, notes = by_folder(root, "dicom", left)
    patients, studies, records = _Pseudonyms("p"), _Pseudonyms("s"), []
    for path, label, split in images:
        try:
            header = dicom.read_header(path)
        except InputError:
            left.add("not a readable DICOM file", path)
            continue
        if header.frames != 1:
            left.add("several frames" if header.frames else "contains no image", path)
            continue
        if table:
            label, split = table.of(path, header)
            if not label:
                left.add("without a label in labels.csv", path)
                continue
        patient, study = patients.of(header.patient), studies.of(header.study)
        records.append(Record(path, label, patient, study, header.view, split, root.name))
    kept, joined = one_spelling(records)
    said = [*notes, *joined, *left.notes()]
    if table and table.unused():
        said.append(f"{plural(table.unused(), 'line')} of labels.csv without a matching image")
    if len(patients) == 1 and len(studies) > 1:
        said.append(
            "all images have the same PatientID; if they are of several patients, give a CSV with a patient column"
        )
    if others := sum(1 for _ in image_files(root)):
        said.append(f"{plural(others, 'image')} of other formats left out; --layout folders reads them")
    return Manifest(kept, tuple(said))
