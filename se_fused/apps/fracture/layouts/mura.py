"""MURA v1.1: Stanford ML Group, https://stanfordmlgroup.github.io/competitions/mura/, research agreement: the images
may not be passed on.

40,561 radiographs of the upper limb in 14,863 studies, each normal or abnormal (which is more than fractures). Layout:
``MURA-v1.1/{train,valid}/XR_HUMERUS/patientNNNNN/study1_{positive,negative}/imageK.png`` and
``{train,valid}_labeled_studies.csv`` (path, label; no header).
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from ...._errors import InputError
from ..manifest import Manifest, Record
from ._tools import LeftOut, find, sub_folders

__all__ = ["fits", "read"]

_SPLITS = ("train", "valid")
_LABELS = {"negative": "normal", "positive": "abnormal"}


def fits(root: Path) -> bool:
    """A table of its studies, or folders ``XR_*`` below train or valid."""
    return any((root / f"{s}_labeled_studies.csv").is_file() or any(root.glob(f"{s}/XR_*")) for s in _SPLITS)


def _table(path: Path) -> dict[tuple[str, ...], str]:
    """{(region, patient, study folder): "0" or "1"} of a table of studies; empty where there is none."""
    if not path.is_file():
        return {}
    found: dict[tuple[str, ...], str] = {}
    with path.open(encoding="utf-8-sig", newline="") as stream:
        for line, row in enumerate(csv.reader(stream), 1):
            parts = tuple(row[0].strip("/ ").split("/")[-3:]) if row else ()
            if not any(row):
                continue
            if len(row) != 2 or len(parts) != 3 or row[1].strip() not in ("0", "1"):
                raise InputError(f"{path}: line {line}: wanted a study's path and 0 or 1; restore the line")
            found[parts] = row[1].strip()
    return found


def read(root: Path, regions: Sequence[str] | None = None) -> Manifest:
    """Labels "normal" and "abnormal" of the study that an image belongs to; its two splits, train and valid.

    ``patient00011`` in several ``XR_*`` folders is one person. A study is "XR_HUMERUS/patient00011/study1"; score by
    it, as the mean over its images. Views are not known.

    Args:
        root: the folder of train and valid.
        regions: only these, e.g. ``("humerus", "forearm")`` for the long bones; all by default.

    Raises:
        InputError: no such region; a study's folder and its table disagree; a line that is none.
    """
    wanted = None if regions is None else {f"XR_{region.upper().removeprefix('XR_')}" for region in regions}
    left, records, seen = LeftOut(root), [], set()
    for split in _SPLITS:
        table_path = root / f"{split}_labeled_studies.csv"
        table = _table(table_path)
        if not (root / split).is_dir():
            if table:
                left.add("the folder of a split is missing", split)
            continue
        for region in sub_folders(root / split):
            seen.add(region.name)
            for patient in sub_folders(region) if wanted is None or region.name in wanted else ():
                for study in sub_folders(patient):
                    name, _, kind = study.name.partition("_")
                    label, listed = _LABELS.get(kind), table.pop((region.name, patient.name, study.name), None)
                    if label is None:
                        left.add("a study neither positive nor negative", study)
                        continue
                    if listed is not None and listed != str(int(kind == "positive")):
                        raise InputError(f"{table_path}: has {listed} for a {kind} study, {study}; restore the line")
                    images = find(study)
                    if not images:
                        left.add("a study without images", study)
                    key = f"{region.name}/{patient.name}/{name}"
                    records += [Record(p, label, patient.name, key, "", split, "MURA") for p in images]
        for parts in table:
            if wanted is None or parts[0] in wanted:
                left.add("the folder of a study is missing", "/".join((split, *parts)))
    if wanted is not None and wanted - seen:
        raise InputError(f"regions has {', '.join(sorted(wanted - seen))}; {root} has {', '.join(sorted(seen))}")
    return Manifest(tuple(records), ("no split is a test set as shipped: train and valid only", *left.notes()))
