"""Data of a run: reads and checks the manifest of the configuration and makes the data sets."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...._errors import InputError
from ..data import Augmentation, RadiographDataset, decode_all
from ..manifest import SPLITS, Manifest, Record
from ..preparing import open_manifest, prepare
from ..preprocessing import Preprocessing
from .config import DataConfig

__all__ = ["Sources", "check_splits", "read_manifest", "read_sources"]

Progress = Callable[[str, float], None]
_NAMED = 3


@dataclass(frozen=True)
class Sources:
    """Data sets of a run.

    Attributes:
        manifest: all images, including the damaged ones.
        classes: class names, in the order of the class numbers.
        sets: {split: data set} without the damaged images.
        preprocessing: preprocessing with the mean and standard deviation of the training images.
        damaged: (record, reason) of each damaged image.
    """

    manifest: Manifest
    classes: tuple[str, ...]
    sets: dict[str, RadiographDataset]
    preprocessing: Preprocessing
    damaged: tuple[tuple[Record, str], ...]

    def counts(self, split: str) -> list[int]:
        """Number of readable images of each class in a split."""
        labels = self.sets[split].labels
        return [labels.count(i) for i in range(len(self.classes))]

    def damaged_table(self) -> str:
        """The damaged images as CSV: path, split, label, reason."""
        out = io.StringIO()
        table = csv.writer(out, lineterminator="\n")
        table.writerow(("path", "split", "label", "reason"))
        table.writerows((str(r.path), r.split, r.label, reason) for r, reason in self.damaged)
        return out.getvalue()


def read_manifest(config: DataConfig, progress: Progress = lambda *_: None) -> Manifest:
    """Read the manifest ``data.path``, or prepare the folder ``data.path``.

    Raises:
        InputError: the path is empty or does not exist, or the data cannot be read or prepared.
    """
    if not config.path:
        raise InputError("data.path: no data given; give --data manifest.csv, or --data FOLDER of images")
    path = Path(config.path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give --data a manifest.csv or a folder of images")
    if path.is_file():
        manifest = open_manifest(path, config.layout)
        if all(record.split and record.patient for record in manifest.records):
            return manifest
    return prepare(path, layout=config.layout, seed=config.split_seed, progress=progress)


def check_splits(manifest: Manifest, where: str = "data.path") -> tuple[str, ...]:
    """Check that a network can be trained and evaluated on the splits; returns the class names.

    Raises:
        InputError: there are fewer than two classes, an image with a split has no label, train or valid has no images,
            a class has no training images, or a patient is in two splits.
    """
    used = [record for record in manifest.records if record.split]
    for record in used:
        if not record.label:
            raise InputError(f"{record.path}: has split {record.split} but no label; add a label or clear its split")
    classes = Manifest(tuple(used)).classes
    if len(classes) < 2:
        raise InputError(f"{where}: has only one class ({', '.join(classes)}); training needs images of two or more")
    for split in ("train", "valid"):
        if not any(record.split == split for record in used):
            patients = len({record.patient for record in used})
            raise InputError(
                f"{where}: split {split} has no images ({patients} patient{'s' * (patients != 1)} in total; no patient "
                "may be in two splits); add patients, then run se-fused fracture prepare"
            )
    found = {record.label for record in used if record.split == "train"}
    for record in used:
        if record.label not in found:
            raise InputError(
                f"{where}: class {record.label!r} has no training images ({record.path.name} is in {record.split}); "
                "add some, leave the class out, or split again with se-fused fracture prepare"
            )
    homes: dict[str, Record] = {}
    for record in used:
        first = homes.setdefault(record.patient, record) if record.patient else record
        if first.split != record.split:
            raise InputError(
                f"{where}: one patient is in two splits: {first.path.name} in {first.split}, {record.path.name} in "
                f"{record.split}; split again with se-fused fracture prepare"
            )
    return classes


def read_sources(
    manifest: Manifest, config: DataConfig, seed: int, cache_folder: Path, progress: Progress = lambda *_: None
) -> Sources:
    """Decode all images once and make the data sets.

    Raises:
        InputError: as in `check_splits`, before and after the damaged images are removed; or the share of damaged
            images exceeds ``data.max_damaged``.
    """
    check_splits(manifest)
    used = Manifest(tuple(record for record in manifest.records if record.split))
    decoded = decode_all(
        used, config.size, cache=config.cache, folder=cache_folder, depth=config.depth,
        workers=None if config.workers < 0 else config.workers, progress=progress,
    )  # fmt: skip
    damaged = tuple((r, decoded.damaged[r.path]) for r in used.records if r.path in decoded.damaged)
    if len(damaged) > config.max_damaged * len(used):
        named = "; ".join(f"{record.path}: {reason}" for record, reason in damaged[:_NAMED])
        more = f"; and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
        raise InputError(
            f"{len(damaged)} of {len(used)} images cannot be read, more than data.max_damaged={config.max_damaged:g} "
            f"allows: {named}{more}; repair or remove them, or increase data.max_damaged"
        )
    whole = Manifest(tuple(record for record in used.records if record.path in decoded.places))
    classes = check_splits(whole, "without the damaged images")
    if lost := sorted(set(check_splits(used)) - set(classes)):
        raise InputError(
            f"class {lost[0]!r} has damaged images only, such as {damaged[0][0].path}; repair or remove them"
        )
    mean, std = decoded.mean_std([record.path for record in whole.where("train").records])
    augmentation = Augmentation(config.augmentation) if config.augmentation else None
    sets = {
        split: RadiographDataset(
            used.where(split),
            classes,
            config.size,
            cache=decoded,
            seed=seed,
            augmentation=augmentation if split == "train" else None,
        )
        for split in SPLITS
    }
    return Sources(manifest, classes, sets, Preprocessing(config.size, mean, std), damaged)
