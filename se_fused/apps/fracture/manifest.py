"""The one table that all data sets become: path, label, patient, study, view, split, source.

Everything behind the adapters (splits, audit, training, evaluation) sees only this. As a file it is CSV; paths in it
are relative to its own folder where the images lie below that, so that a folder can be moved.
"""

import csv
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from ..._atomic_write import write_text
from ..._errors import InputError

__all__ = ["NEGATIVES", "SPLITS", "Manifest", "Record", "natural_key", "ordered_classes", "plural"]

SPLITS = ("train", "valid", "test")
"""The names of splits; "" in a record: in none yet."""

NEGATIVES = frozenset({"none", "normal", "healthy", "negative", "no fracture", "not fractured", "non fractured"})
"""Labels that mean "no fracture", in lower case with spaces for ``_`` and ``-``; such a class comes first."""


@dataclass(frozen=True)
class Record:
    """One image. Texts are "" where unknown.

    Attributes:
        path: of the image, absolute.
        label: its class, or "" for an image to predict.
        patient: whom no split may part. A pseudonym; where the data set names no patients, a group of near-duplicates
            ("group-0001", :mod:`se_fused.apps.fracture.duplicates`).
        study: images taken together, unique within a patient.
        view: "AP", "lateral", ...
        split: one of `SPLITS`, or "".
        source: the data set.
    """

    path: Path
    label: str = ""
    patient: str = ""
    study: str = ""
    view: str = ""
    split: str = ""
    source: str = ""


_COLUMNS = tuple(f.name for f in fields(Record))


def plural(count: int, name: str) -> str:
    """ "1 image", "2 images"."""
    return f"{count} {name}{'' if count == 1 else 's'}"


def natural_key(text: object) -> list[tuple[int, int | str]]:
    """Sort key which puts 'image 2' before 'image 10', and upper beside lower case."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", str(text).casefold())]


def ordered_classes(labels: Iterable[str]) -> tuple[str, ...]:
    """The distinct labels without "", "no fracture" first, then in natural order: what every manifest's classes are."""
    names = {label for label in labels if label}
    return tuple(sorted(names, key=lambda n: (re.sub("[_-]", " ", n.casefold()) not in NEGATIVES, natural_key(n))))


@dataclass(frozen=True)
class Manifest:
    """Images with what is known of them.

    Attributes:
        records: one for each image.
        notes: what whoever made it has to say, such as what was left out and why; not part of the file.
    """

    records: tuple[Record, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels in their order; a label's place is its number."""
        return ordered_classes(record.label for record in self.records)

    def where(self, split: str) -> "Manifest":
        """The records of a split."""
        return Manifest(tuple(record for record in self.records if record.split == split), self.notes)

    def counts(self) -> dict[str, Counter[str]]:
        """{split: {label: images}}."""
        found: dict[str, Counter[str]] = {}
        for record in self.records:
            found.setdefault(record.split, Counter())[record.label] += 1
        return found

    def with_columns(self, **columns: Sequence[str]) -> "Manifest":
        """A copy with whole columns replaced, e.g. ``with_columns(split=[...])``; one text for each record."""
        for name, values in columns.items():
            if len(values) != len(self.records):
                raise ValueError(f"{name} must have one value for each of {len(self)} records, got {len(values)}")
        rows = (
            replace(record, **{name: values[i] for name, values in columns.items()})  # type: ignore[arg-type]
            for i, record in enumerate(self.records)
        )
        return Manifest(tuple(rows), self.notes)

    def text(self, folder: Path) -> str:
        """The CSV as it stands in a file of that folder."""
        out = io.StringIO()
        table = csv.writer(out, lineterminator="\n")
        table.writerow(_COLUMNS)
        base = folder.resolve()
        for record in self.records:
            path = record.path.relative_to(base).as_posix() if record.path.is_relative_to(base) else str(record.path)
            table.writerow((path, *(getattr(record, name) for name in _COLUMNS[1:])))
        return out.getvalue()

    def digest(self) -> str:
        """SHA-256 of file names, labels, patients and splits: the same wherever the folder lies."""
        rows = sorted("\0".join((r.path.name, r.label, r.patient, r.study, r.view, r.split)) for r in self.records)
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the CSV, whole or not at all."""
        write_text(Path(path), self.text(Path(path).parent))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Manifest":
        """Read a CSV with the columns path and label, and any of the others, in any order; more columns are ignored.

        Raises:
            InputError: no such file, a column is missing, a row without path, a path twice, or a split of another name.
                Whether the images exist is not looked at here.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{path}: cannot be read as a manifest: {error}; make one with se-fused fracture prepare"
            ) from None
        rows = csv.DictReader(io.StringIO(text))
        missing = [name for name in ("path", "label") if name not in (rows.fieldnames or ())]
        if missing:
            raise InputError(f"{path}: has no column {' and '.join(missing)}; its first line must name path and label")
        base, records, seen = path.parent.resolve(), [], set()
        for line, row in enumerate(rows, 2):
            values = {name: (row.get(name) or "").strip() for name in _COLUMNS}
            if not values["path"]:
                raise InputError(f"{path}: line {line} has no path; remove the line or name its image")
            if values["split"] not in ("", *SPLITS):
                raise InputError(f"{path}: line {line}: split must be train, valid, test or empty: {values['split']!r}")
            full = Path(os.path.normpath(base / values.pop("path")))
            if full in seen:
                raise InputError(f"{path}: line {line}: {full.name} is in it twice; remove one of the lines")
            seen.add(full)
            records.append(Record(full, **values))
        if not records:
            raise InputError(f"{path}: holds no images; make one with se-fused fracture prepare")
        return cls(tuple(records))
