"""Data sets of synthetic phantoms (no clinical meaning): a folder with images, a manifest and a table of the cracks."""

import csv
import io
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import re
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import default_rng

from ...._atomic_write import write_text, write_whole
from ...._checks import check_int
from ...._errors import InputError
from ...._version import __version__
from ..manifest import Manifest, Record
from .drawing import NOTE, Crack, class_of, difficulty_of, draw_patient
from .fractures import CLASSES
from .limbs import SPLIT, VIEWS

__all__ = ["GENERATOR", "load_cracks", "write_set"]

GENERATOR = 1
"""Version of the generator; increased whenever a seed draws different images."""

SHARES = {"test": 0.15, "valid": 0.15}  # shares of the patients of each class; the rest is for training

_SMALL = 4_000_000  # patients x pixels of one view; below this, starting processes takes longer than drawing
_STAMP = "se_fused"
_OURS = re.compile(r"\d{5,}-(AP|lateral)\.png|\.\d{5,}-(AP|lateral)\.\d+\.part\.png")
_CRACK = tuple(f.name for f in fields(Crack) if f.name != "box")
_COLUMNS = ("path", "class", "patient", "view", "split", "x0", "y0", "x1", "y1", *_CRACK)

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class _Settings:
    """Settings on which an image depends, in addition to its patient and view."""

    seed: int
    size: int
    difficulty: float
    bits: int
    generator: int = GENERATOR


def _name(index: int, view: str) -> str:
    return f"{index:05d}-{view}.png"


def _stamp(path: Path) -> dict[str, Any]:
    """Metadata stored in an image by this generator; {} for other images."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return json.loads(getattr(image, "text", {}).get(_STAMP, "{}"))
    except (OSError, ValueError):
        return {}


def _write_patient(images: Path, settings: _Settings, index: int) -> list[dict[str, Any] | None]:
    """Write the views of a patient unless both exist with the same settings; returns the crack in each view."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    paths = [images / _name(index, view) for view in VIEWS]
    there = [_stamp(path) for path in paths]
    if all(stamp.get("settings") == asdict(settings) for stamp in there):
        return [stamp["crack"] for stamp in there]
    found = []
    for path, taken in zip(
        paths, draw_patient(settings.seed, index, settings.size, None, settings.difficulty), strict=True
    ):
        white, kind = (255, np.uint8) if settings.bits == 8 else (65535, np.uint16)
        pixels = np.round(taken.image.astype(np.float64) * white).astype(kind)
        crack = None if taken.crack is None else asdict(taken.crack)
        about = PngInfo()
        about.add_text("Comment", NOTE)
        about.add_text(_STAMP, json.dumps({"settings": asdict(settings), "crack": crack}))
        picture = Image.fromarray(pixels)
        write_whole(path, partial(picture.save, pnginfo=about))
        found.append(crack)
    return found


def _end_with_parent() -> None:
    """Initialise a worker: ignore Ctrl-C, which the parent handles, and exit if the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def watch() -> None:
            multiprocessing.connection.wait([sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def _results(draw: Callable[[int], Any], patients: int, workers: int) -> Iterator[Any]:
    if workers == 1:
        yield from map(draw, range(patients))
        return
    # spawn, not fork: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _end_with_parent)
    try:
        yield from pool.map(draw, range(patients), chunksize=max(1, min(8, patients // (4 * workers))))
    finally:
        pool.shutdown(cancel_futures=True)


def _splits(classes: Sequence[int], seed: int) -> list[str]:
    """Split of each patient: the same shares of every class, with at least one patient if it has three or more."""
    splits = ["train"] * len(classes)
    for label in range(len(CLASSES)):
        members = [k for k, value in enumerate(classes) if value == label]
        order = default_rng([seed, label, SPLIT]).permutation(len(members)).tolist()
        for name, share in SHARES.items():
            count = max(round(share * len(members)), 1) if len(members) >= 3 else 0
            for place in order[:count]:
                splits[members[place]] = name
            order = order[count:]
    return splits


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return "" if isinstance(value, float) and math.isnan(value) else f"{value:.5g}"


def _crack_table(records: Sequence[Record], cracks: Sequence[dict[str, Any] | None], folder: Path) -> str:
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(_COLUMNS)
    for record, crack in zip(records, cracks, strict=True):
        about = record.path.relative_to(folder).as_posix(), record.label, record.patient, record.view, record.split
        if crack is None:
            table.writerow((*about, *[""] * (len(_COLUMNS) - len(about))))
        else:
            table.writerow((*about, *(crack["box"] or [""] * 4), *(_text(crack[name]) for name in _CRACK)))
    return out.getvalue()


def load_cracks(folder: str | os.PathLike[str]) -> dict[Path, Crack | None]:
    """Load the cracks of a written set of synthetic phantoms (no clinical meaning).

    Returns:
        {path of an image: its crack}; None for images of the class "none".

    Raises:
        InputError: the folder has no valid cracks.csv.
    """
    folder = Path(folder).resolve()
    try:
        rows = list(csv.DictReader(io.StringIO((folder / "cracks.csv").read_text(encoding="utf-8"))))
        found: dict[Path, Crack | None] = {}
        for row in rows:
            box = tuple(int(row[name]) for name in ("x0", "y0", "x1", "y1")) if row["x0"] else None
            values: dict[str, Any] = {name: float(row[name] or "nan") for name in _CRACK}
            flags = {name: values[name] == 1 for name in ("visible", "hairline")}
            whole = row["visible"] != ""
            found[folder / row["path"]] = Crack(box=box, **{**values, **flags}) if whole else None  # type: ignore[arg-type]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{folder / 'cracks.csv'}: is not a table of cracks ({error}); se-fused fracture synth writes one"
        ) from None
    return found


def _read_about(folder: Path) -> dict[str, Any]:
    """Content of a set's about.json; {} for a missing or empty folder. InputError if the folder has other content."""
    if not folder.exists():
        return {}
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a folder for the data set")
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        if isinstance(about, dict) and about.get("kind") == NOTE:
            return about
    except (OSError, ValueError):
        pass
    if any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise InputError(f"{folder}: is not empty and contains no synthetic set; give a new or empty folder")
    return {}


def _finished(folder: Path, about: dict[str, Any], found: dict[str, Any]) -> Manifest | None:
    """The manifest of a set if it is complete and has the same settings; otherwise None."""
    if about != found or not (folder / "manifest.csv").exists() or not (folder / "cracks.csv").exists():
        return None
    try:
        manifest = Manifest.load(folder / "manifest.csv")
    except InputError:
        return None
    complete = len(manifest) == 2 * about["patients"] and all(record.path.exists() for record in manifest.records)
    return manifest if complete else None


def write_set(
    folder: str | os.PathLike[str],
    patients: int,
    size: int = 224,
    seed: int = 0,
    difficulty: float | str = 0.0,
    bits: int = 8,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write a set of synthetic phantoms (no clinical meaning): two views of each patient, all classes equally frequent.

    The folder gets images/*.png, cracks.csv (:func:`load_cracks`), about.json and, last, manifest.csv. Each file is
    written atomically. A complete set with the same settings is returned unchanged, an interrupted one is continued,
    and one with other settings is replaced. Images depend only on seed, size, difficulty and bits.

    Args:
        folder: output folder; created if missing.
        patients: number of patients, >= 1. They are split by patient, 70/15/15 of each class.
        size: height and width in pixels, >= 32.
        seed: random seed of the data set, >= 0.
        difficulty: 0 (easy) to 1 (hard), or a name in `DIFFICULTIES`.
        bits: bits per pixel of the PNG files, 8 or 16.
        workers: number of processes; None: one for each core, or only this process for a small set. With several
            processes, a script needs the usual ``if __name__ == "__main__"``.
        progress: called with a description of the current step and the completed share, 0 to 1.

    Raises:
        TypeError, ValueError: an argument is not an integer or is too small.
        InputError: the folder is not empty and contains no synthetic set; difficulty or bits is invalid; or Pillow is
            not installed.
    """
    patients, size = check_int(patients, "patients", 1), check_int(size, "size", 32)
    seed, number = check_int(seed, "seed", 0), difficulty_of(difficulty)
    if bits not in (8, 16):
        raise InputError(f"bits must be 8 or 16, got {bits!r}")
    if workers is None:
        workers = 1 if patients * size**2 < _SMALL else len(os.sched_getaffinity(0))
    workers = min(check_int(workers, "workers", 1), patients)
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise InputError('writing images requires Pillow: pip install "se_fused[train]"') from None
    folder = Path(folder).resolve()
    settings = _Settings(seed, size, number, bits)
    options = f"--patients {patients} --size {size} --difficulty {number:g} --seed {seed} --bits {bits}"
    about = {
        "kind": NOTE, "patients": patients, **asdict(settings), "classes": list(CLASSES), "views": list(VIEWS),
        "se_fused": __version__, "command": f"se-fused fracture synth {shlex.quote(folder.name)} {options}",
    }  # fmt: skip
    earlier = _read_about(folder)
    done = _finished(folder, about, earlier)
    if done is not None:
        return done

    images = folder / "images"
    for name in ("manifest.csv", "cracks.csv", "sheet.png"):  # from here on, the set counts as unfinished
        (folder / name).unlink(missing_ok=True)
    images.mkdir(parents=True, exist_ok=True)
    write_text(folder / "about.json", json.dumps(about, indent=1) + "\n")
    cracks: list[dict[str, Any] | None] = []
    for index, found in enumerate(_results(partial(_write_patient, images, settings), patients, workers)):
        cracks += found
        if progress is not None:
            progress(f"{2 * (index + 1)} of {2 * patients} images", (index + 1) / patients)

    classes = [class_of(seed, index) for index in range(patients)]
    splits, records = _splits(classes, seed), []
    for index in range(patients):
        for view in VIEWS:
            patient, label = f"patient-{index:05d}", CLASSES[classes[index]]
            records.append(Record(images / _name(index, view), label, patient, "1", view, splits[index], NOTE))
    wanted = {record.path.name for record in records}
    for entry in images.iterdir():  # remove the images of an earlier, larger set
        if entry.name not in wanted and _OURS.fullmatch(entry.name):
            entry.unlink()
    write_text(folder / "cracks.csv", _crack_table(records, cracks, folder))
    manifest = Manifest(tuple(records))
    manifest.save(folder / "manifest.csv")
    return manifest
