"""Table of a model's predictions for a set of images: the input of all evaluation."""

import csv
import io
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..._atomic_write import write_text
from ..._errors import InputError
from .manifest import Record

__all__ = ["Predictions"]

_FIXED = ("path", "label", "patient", "study", "view")
_SUM = 1e-4  # tolerance of the sum of K float32 probabilities


def _is_class(column: str) -> bool:
    return column.startswith("p:")


@dataclass(frozen=True)
class Predictions:
    """Predicted class probabilities of N images for K classes.

    Attributes:
        classes: K names.
        paths, patients, studies, views: N strings each, as in :class:`se_fused.apps.fracture.manifest.Record`.
        labels: (N,) int64, indices into `classes`; -1 where unknown.
        probabilities: (N, K) float64; each row sums to 1.
        skipped: (path, reason) of each image that could not be read. These images have no row, and the CSV file does
            not list them.
    """

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    patients: tuple[str, ...]
    studies: tuple[str, ...]
    views: tuple[str, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    skipped: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    @classmethod
    def of(
        cls,
        classes: tuple[str, ...],
        records: Sequence[Record],
        probabilities: NDArray[np.float64],
        skipped: Sequence[tuple[str, str]] = (),
    ) -> "Predictions":
        """Build the table of these records; a label outside `classes` counts as unknown."""
        numbers = {name: i for i, name in enumerate(classes)}
        return cls(
            classes,
            tuple(str(record.path) for record in records),
            tuple(record.patient for record in records),
            tuple(record.study for record in records),
            tuple(record.view for record in records),
            np.array([numbers.get(record.label, -1) for record in records], np.int64),
            probabilities,
            tuple(skipped),
        )

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(N,) int64: the class with the largest probability, the first one in case of a tie."""
        return self.probabilities.argmax(1)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "Predictions":
        """Select rows by index or mask; a row may be selected several times. `skipped` is unchanged."""
        places = np.arange(len(self))[rows]

        def some(texts: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(texts[i] for i in places)

        return replace(
            self, paths=some(self.paths), patients=some(self.patients), studies=some(self.studies),
            views=some(self.views), labels=self.labels[places], probabilities=self.probabilities[places],
        )  # fmt: skip

    def averaged(self, keys: Sequence[Hashable | None]) -> "Predictions":
        """Average the rows that share a key, such as a patient or a study.

        Each result has the mean probabilities of its rows, the path of the first row and no view. Its label is the
        label of its rows, or unknown where they differ. Rows with the key None are left out.
        """
        places: dict[Hashable, list[int]] = {}
        for i, key in enumerate(keys):
            if key is not None:
                places.setdefault(key, []).append(i)
        rows = list(places.values())
        labels = [set(self.labels[those].tolist()) for those in rows]
        means = [self.probabilities[those].mean(0) for those in rows]
        return replace(
            self.take(np.array([those[0] for those in rows], np.int64)),
            views=("",) * len(rows),
            labels=np.array([label.pop() if len(label) == 1 else -1 for label in labels], np.int64),
            probabilities=np.array(means, np.float64).reshape(len(rows), len(self.classes)),
        )

    def text(self) -> str:
        """The table as CSV: path, label, patient, study, view, predicted, then ``p:<class>`` for each class."""
        out = io.StringIO()
        table = csv.writer(out, lineterminator="\n")
        table.writerow((*_FIXED, "predicted", *(f"p:{name}" for name in self.classes)))
        for i, best in enumerate(self.predicted.tolist()):
            label = self.classes[self.labels[i]] if self.labels[i] >= 0 else ""
            # repr() makes the round trip through the file exact.
            values = (repr(float(p)) for p in self.probabilities[i])
            row = (self.paths[i], label, self.patients[i], self.studies[i], self.views[i], self.classes[best], *values)
            table.writerow(row)
        return out.getvalue()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the CSV file atomically."""
        write_text(Path(path), self.text())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Predictions":
        """Read a CSV of :meth:`save`.

        Raises:
            InputError: there is no such file, or it is not a table of predictions.
        """
        path = Path(path)
        try:
            rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{path}: cannot be read: {error}; se-fused fracture train and evaluate write it"
            ) from None
        head = rows[0] if rows else []
        classes = tuple(name.removeprefix("p:") for name in head[6:])
        if tuple(head[:6]) != (*_FIXED, "predicted") or not classes or not all(map(_is_class, head[6:])):
            raise InputError(
                f"{path}: not a table of predictions; se-fused fracture train and evaluate write such tables"
            )
        try:
            numbers = {"": -1, **{name: i for i, name in enumerate(classes)}}
            labels = np.array([numbers[row[1]] for row in rows[1:]], np.int64)
            probabilities = np.array([[float(v) for v in row[6:]] for row in rows[1:]], np.float64)
            probabilities = probabilities.reshape(len(rows) - 1, len(classes))
            if not (np.abs(probabilities.sum(1) - 1) < _SUM).all():
                raise ValueError("the probabilities of a row do not sum to 1")
        except (KeyError, ValueError, IndexError) as error:
            raise InputError(f"{path}: damaged: {error}; write it again with se-fused fracture evaluate") from None
        texts = [tuple(row[i] for row in rows[1:]) for i in (0, 2, 3, 4)]
        return cls(classes, texts[0], texts[1], texts[2], texts[3], labels, probabilities)
