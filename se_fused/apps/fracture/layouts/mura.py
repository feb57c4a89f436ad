"""Adapter for MURA v1.1: Stanford ML Group, https://stanfordmlgroup.github.io/competitions/mura/.

The research agreement does not allow redistribution of the images.

40,561 radiographs of the upper limb in 14,863 studies, each normal or abnormal (not only fractures). Layout:
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
    """Whether a folder has a table of studies, or folders ``XR_*`` in train or valid."""
    return any((root / f"{s}_labeled_studies.csv").is_file() or any(root.glob(f"{s}/XR_*")) for s in _SPLITS)


def _table(path: Path) -> dict[tuple[str, ...], str]:
    """{(region, patient, study folder): "0" or "1"} from a table of studies; empty if there is no table."""
    if not path.is_file():
        return {}
    found: dict[tuple[str, ...], str] = {}
    with path.open(encoding="utf-8-sig", newline="") as stream:
        for line, row in enumerate(csv.reader(stream), 1):
            parts = tuple(row[0].strip("/ ").split("/")[-3:]) if row else ()
            if not any(row):
                continue
            if len(row) != 2 or len(parts) != 3 or row[1].strip() not in ("0", "1"):
                raise InputError(f"{path}: line {line}: needs the path of a study and 0 or 1; restore the line")
            found[parts] = row[1].strip()
    return found


def read(root: Path, regions: Sequence[str] | None = None) -> Manifest:
    """Read MURA with the labels "normal" and "abnormal" of each image's study, and its two splits, train and valid.

    ``patient00011`` in several ``XR_*`` folders is the same patient. A study is "XR_HUMERUS/patient00011/study1".
    Evaluate by study, with the mean probability of its images. Views are unknown.

    Args:
        root: the folder that contains train and valid.
        regions: regions to read, e.g. ``("humerus", "forearm")`` for the long bones; None reads all.

    Raises:
        InputError: there is no such region; a study's folder and the table disagree; or a line of the table is invalid.
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
                        left.add("study neither positive nor negative", study)
                        continue
                    if listed is not None and listed != str(int(kind == "positive")):
                        raise InputError(f"{table_path}: gives {listed} for a {kind} study, {study}; restore the line")
                    images = find(study)
                    if not images:
                        left.add("study without images", study)
                    key = f"{region.name}/{patient.name}/{name}"
                    records += [Record(p, label, patient.name, key, "", split, "MURA") for p in images]
        for parts in table:
            if wanted is None or parts[0] in wanted:
                left.add("the folder of a study is missing", "/".join((split, *parts)))
    if wanted is not None and wanted - seen:
        raise InputError(f"regions has {', '.join(sorted(wanted - seen))}; {root} has {', '.join(sorted(seen))}")
    return Manifest(tuple(records), ("MURA is published without a test split: train and valid only", *left.notes()))
