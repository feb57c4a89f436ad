"""Cache of decoded images. All images of a manifest are decoded before training, which reports every damaged file.

On disk, the decoded images are one memory-mapped array file; all workers and processes of a machine share its pages.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from ...._atomic_write import write_text, write_whole
from ...._errors import InputError
from .. import images
from ..manifest import Manifest

__all__ = ["CACHES", "DEPTHS", "Decoded", "decode_all", "worker_count"]

CACHES = ("disk", "memory", "none")
DEPTHS: dict[int, type[np.unsignedinteger[Any]]] = {8: np.uint8, 16: np.uint16}
_VERSION = 1  # version of the cached values; increase it when the results of load_radiograph change
_FEW = 64  # up to this number, images are decoded in this process: starting workers takes longer
_MOST_WORKERS = 16

Progress = Callable[[str, float], None]


def worker_count() -> int:
    """Default number of worker processes: one for each CPU core available to this process, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_WORKERS)


@dataclass(frozen=True)
class Decoded:
    """Decoded images of a manifest at one size, sorted by path.

    Attributes:
        size: height and width S in pixels.
        places: {path: row} of the readable images.
        damaged: {path: reason} of the others.
        moments: (N, 2) float64: sum of the pixels, in [0, 1], and sum of their squares for each image.
        rows: (N, S, S) uint8 or uint16; None if images are decoded again at each access.
    """

    size: int
    places: dict[Path, int]
    damaged: dict[Path, str]
    moments: NDArray[np.float64]
    rows: NDArray[Any] | None = field(repr=False)

    def image(self, path: Path) -> torch.Tensor:
        """The decoded image of a path, (1, S, S) float32 in [0, 1]."""
        if self.rows is None:
            return images.load_radiograph(path, self.size)
        row = self.rows[self.places[path]]
        return torch.from_numpy(row.astype(np.float32) / np.float32(np.iinfo(row.dtype).max))[None]

    def mean_std(self, paths: list[Path]) -> tuple[float, float]:
        """Mean and standard deviation over all pixels of the given images; the latter is at least 1e-3."""
        total = self.moments[[self.places[path] for path in paths]].sum(0) / (len(paths) * self.size**2)
        mean = float(total[0])
        return mean, max(float(total[1]) - mean**2, 1e-6) ** 0.5


class _Decoding(Dataset[tuple[int, NDArray[Any] | None, tuple[float, float], str]]):
    def __init__(self, paths: list[Path], size: int, depth: int) -> None:
        self.paths, self.size, self.depth = paths, size, depth

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, NDArray[Any] | None, tuple[float, float], str]:
        path = self.paths[index]
        try:
            picture = images.load_radiograph(path, self.size)[0].numpy()
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).removeprefix(f"{path}:").split())
            return index, None, (0.0, 0.0), reason
        wide = picture.astype(np.float64)
        white = np.iinfo(DEPTHS[self.depth]).max
        whole = np.rint(wide * white).astype(DEPTHS[self.depth])
        return index, whole, (float(wide.sum()), float((wide * wide).sum())), ""


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """File lock: one process of this machine at a time; the others wait."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _digest(paths: list[Path], size: int, depth: int) -> str:
    lines = [f"{_VERSION} {size} {depth}"]
    for path in paths:
        try:
            found = path.stat()
            lines.append(f"{path}\0{found.st_size}\0{found.st_mtime_ns}")
        except OSError:
            lines.append(f"{path}\0missing")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:20]


def _decode(
    paths: list[Path], rows: NDArray[Any] | None, size: int, depth: int, workers: int, progress: Progress
) -> tuple[NDArray[np.float64], dict[int, str]]:
    """Decode the images into `rows`; returns the moments and {row: reason} of the damaged images."""
    moments, damaged = np.zeros((len(paths), 2)), {}
    source = _Decoding(paths, size, depth)
    few = len(paths) <= _FEW
    loader: DataLoader[Any] = DataLoader(source, batch_size=8, num_workers=0 if few else workers, collate_fn=list)
    done = 0
    for group in loader:
        for index, picture, sums, reason in group:
            moments[index] = sums
            if picture is None:
                damaged[index] = reason
            elif rows is not None:
                rows[index] = picture
        done += len(group)
        found = f", {len(damaged)} damaged" if damaged else ""
        progress(f"decoding {done} of {len(paths)} images{found}", done / len(paths))
    return moments, damaged


def decode_all(
    manifest: Manifest,
    size: int,
    *,
    cache: str = "memory",
    folder: Path | None = None,
    depth: int = 16,
    workers: int | None = None,
    progress: Progress = lambda *_: None,
) -> Decoded:
    """Decode and letterbox all images of a manifest, or load them from the cache on disk.

    Args:
        manifest: the images.
        size: height and width S in pixels.
        cache: "disk": an array file in `folder`, shared by all processes and reused while no image's path, size in
            bytes or modification time changes; "memory": an array of this process; "none": images are decoded now, to
            find the damaged ones, and again at each access.
        folder: folder of the cache for "disk"; created if missing. It contains the images themselves and is as
            confidential as they are.
        depth: bits of a cached pixel, 8 or 16.
        workers: number of decoding processes. Default: one for each CPU core, at most 16.
        progress: called with a description of the current step and the completed share, 0 to 1.

    Raises:
        InputError: the cache cannot be written, e.g. because the disk is full. Damaged and missing images raise no
            error; they are listed in ``damaged``.
        ImportError: a package for decoding is not installed.
    """
    paths = sorted((record.path for record in manifest.records), key=str)
    workers = worker_count() if workers is None else workers
    shape = (len(paths), size, size)

    def made(rows: NDArray[Any] | None, moments: NDArray[np.float64], damaged: dict[int, str]) -> Decoded:
        places = {path: i for i, path in enumerate(paths) if i not in damaged}
        return Decoded(size, places, {paths[i]: reason for i, reason in sorted(damaged.items())}, moments, rows)

    if cache != "disk":
        rows = np.zeros(shape, DEPTHS[depth]) if cache == "memory" else None
        return made(rows, *_decode(paths, rows, size, depth, workers, progress))

    assert folder is not None, "cache='disk' needs a folder"
    folder.mkdir(parents=True, exist_ok=True)
    name = _digest(paths, size, depth)
    file, about = folder / f"{name}.npy", folder / f"{name}.json"
    with _alone(folder / f"{name}.lock"):
        # The JSON file is written last: if it exists, the array is complete.
        if not about.is_file():

            def write(part: Path) -> None:
                # Reserve the space first: writing to a memory-mapped file on a full disk kills the process.
                with part.open("wb") as made:
                    head = np.lib.format.header_data_from_array_1_0(np.empty((0, size, size), DEPTHS[depth]))
                    np.lib.format.write_array_header_1_0(made, {**head, "shape": shape})
                    begin = made.tell()
                    os.posix_fallocate(made.fileno(), 0, begin + int(np.prod(shape)) * (depth // 8))
                rows = np.lib.format.open_memmap(part, "r+")
                moments, damaged = _decode(paths, rows, size, depth, workers, progress)
                rows.flush()
                table.update(moments=moments.tolist(), damaged={str(i): reason for i, reason in damaged.items()})

            table: dict[str, Any] = {}
            try:
                write_whole(file, write)
                write_text(about, json.dumps(table))
            except OSError as error:
                raise InputError(
                    f"{folder}: the decoded images ({int(np.prod(shape)) * (depth // 8) / 1e6:.0f} MB) cannot be "
                    f"cached: {error.strerror or error}; free some space, or set data.cache_folder or data.cache=memory"
                ) from None
        table = json.loads(about.read_text(encoding="utf-8"))
    moments = np.array(table["moments"], np.float64).reshape(-1, 2)
    return made(np.load(file, mmap_mode="r"), moments, {int(i): reason for i, reason in table["damaged"].items()})
