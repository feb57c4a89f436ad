"""A folder of DICOM radiographs, labelled by the names of its folders or by a table ``labels.csv``.

Patients and studies become pseudonyms in the order of the files ("p0001", "s0001"): no identifier of a header comes
into the manifest, into a note or into an error.
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
    """DICOM files in folders of classes, or beside a ``labels.csv``."""
    if not root.is_dir():
        return False
    if (root / "labels.csv").is_file():
        return next(image_files(root, "dicom"), None) is not None
    return folders_fits(root, "dicom")


class _Pseudonyms:
    """The same short name for the same key, numbered as they come."""

    def __init__(self, letter: str) -> None:
        self._letter = letter
        self._names: dict[str, str] = {}

    def of(self, key: str) -> str:
        return self._names.setdefault(key, f"{self._letter}{len(self._names) + 1:04d}") if key else ""

    def __len__(self) -> int:
        return len(self._names)


class _Labels:
    """``labels.csv``: labels and splits by file, by image or by study."""

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
            raise InputError(f"{table}: wanted a column label and one of file, StudyInstanceUID or SOPInstanceUID")
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
                raise InputError(f"{table}: line {line} names no image; remove the line or name it")
            key = filled[0]
            if not given[0]:
                continue
            if self._found.setdefault(key, given) != given:
                raise InputError(f"{table}: line {line} gives what it names a second label; remove one of the lines")

    def of(self, path: Path, header: dicom.Header) -> tuple[str, str]:
        """Label and split of a file, "" where the table has none."""
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
    """Labels from ``labels.csv`` in the folder if there is one, else from the names of the folders of classes.

    ``labels.csv`` has a column label and file (a path, or a name if it is unique), SOPInstanceUID or StudyInstanceUID,
    and may have split. Patients are told apart by PatientID and its issuer, or by study where there is none; the view
    comes from ViewPosition. Files that hold no image, several frames or a damaged header are left out and counted.

    Raises:
        InputError: nothing that gives labels; a table that cannot be read, or that says two labels of one thing.
        ImportError: pydicom is missing.
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
            left.add("no readable DICOM", path)
            continue
        if header.frames != 1:
            left.add("several frames" if header.frames else "no image in it", path)
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
        said.append(f"{plural(table.unused(), 'line')} of labels.csv without an image")
    if len(patients) == 1 and len(studies) > 1:
        said.append(
            "all images say the same PatientID: if they are of several patients, give a CSV with a patient column"
        )
    if others := sum(1 for _ in image_files(root)):
        said.append(f"{plural(others, 'image')} of other formats left out: --layout folders reads those")
    return Manifest(kept, tuple(said))
