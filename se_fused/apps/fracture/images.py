"""Load radiographs (PNG, JPEG, TIFF, BMP, DICOM) as tensors, and write contact sheets of images.

Stored values are converted in floating point. Pillow's ``convert("L")`` clips 16-bit grey values to 255, which turns a
16-bit radiograph white, so it is used for 8-bit images only. This module neither logs nor prints, because file names
can contain patients' names.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..._atomic_write import write_whole
from ..._checks import check_int
from ..._errors import InputError
from . import dicom
from .manifest import natural_key

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "PICTURES",
    "SUFFIXES",
    "decode",
    "files",
    "letterbox",
    "letterboxed",
    "load_folder",
    "load_radiograph",
    "save_sheet",
]

Array = NDArray[np.float32]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
"""File name suffixes of the supported image formats other than DICOM."""

PICTURES = SUFFIXES | dicom.SUFFIXES
"""File name suffixes of all supported formats. DICOM files may also have another suffix or none."""

_OTHER_PICTURES = frozenset({".nii", ".jp2", ".j2k", ".gif", ".webp", ".heic"})
_SPLITS = frozenset({"train", "training", "valid", "val", "validation", "test", "testing"})
_FORMATS = "PNG, JPEG, TIFF, BMP or DICOM"
_TIFF_BITS, _TIFF_PHOTOMETRIC, _EXIF_ORIENTATION, _TIFF_SAMPLE_FORMAT = 258, 262, 274, 339
_LIMIT_16_BIT = 65535


def _grey(image: "Image") -> Array:
    """Convert a loaded Pillow image to (H, W) float32 in [0, 1], scaled by the range of the file's bit depth."""
    mode = image.mode
    if mode == "F" or mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("it contains NaN or infinite values")
        tags = getattr(image, "tag_v2", {})
        low, high = float(values.min()), float(values.max())
        wide = tags.get(_TIFF_BITS) == (32,) or tags.get(_TIFF_SAMPLE_FORMAT) == (2,)  # 32 bits, or signed
        if mode == "F" and low >= 0 and high <= 1:
            black, white = 0.0, 1.0
        elif mode != "F" and not wide and low >= 0 and high <= _LIMIT_16_BIT:
            # Older Pillows give 16-bit PNG as mode I, with the same values.
            black, white = 0.0, 4095.0 if tags.get(_TIFF_BITS) == (12,) else float(_LIMIT_16_BIT)
        else:  # signed, 32-bit and unbounded values define no white
            black, white = low, max(high, low + 1e-12)
        values = (values - black) / (white - black)
        # Pillow inverts MinIsWhite TIFFs of 1 and 8 bits, but not those of more bits.
        return (1 - values if tags.get(_TIFF_PHOTOMETRIC) == 0 else values).astype(np.float32)
    if mode in ("PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("LA", "RGBA"):  # transparent pixels become black, the background of a radiograph
        alpha: NDArray[Any] = np.asarray(image.getchannel("A"), np.float32) / 255
        colours = image.convert("L" if image.mode == "LA" else "RGB")
    else:
        alpha = np.ones((1, 1), np.float32)
        colours = image if mode in ("L", "RGB") else image.convert("L")
    values = np.asarray(colours, np.float32) / 255
    if values.ndim == 3:  # ITU-R BT.601 luma, as in convert("L"); this form is exact where r = g = b
        red, green, blue = values[..., 0], values[..., 1], values[..., 2]
        values = green + np.float32(0.299) * (red - green) + np.float32(0.114) * (blue - green)
    return np.clip(values * alpha, 0, 1)


def _upright(grey: Array, orientation: int) -> Array:
    """Undo an EXIF orientation (1 to 8); other values leave the image unchanged."""
    if orientation in (5, 6, 7, 8):
        grey = grey.T
    if orientation in (2, 3, 6, 7):
        grey = grey[:, ::-1]
    if orientation in (3, 4, 7, 8):
        grey = grey[::-1]
    return grey


def letterboxed(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """Position of an image in its letterboxed square: top, left, height and width in pixels."""
    longest = max(height, width)
    high, wide = max(1, round(height * size / longest)), max(1, round(width * size / longest))
    return (size - high) // 2, (size - wide) // 2, high, wide


def letterbox(grey: Array, size: int) -> Tensor:
    """Scale (H, W) to (1, size, size) with antialiasing: the longer side fills the square, the rest is black."""
    height, width = grey.shape
    top, left, *new = letterboxed(height, width, size)
    picture = torch.from_numpy(np.array(grey, dtype=np.float32, order="C"))[None, None]
    if new != [height, width]:
        picture = F.interpolate(picture, new, mode="bilinear", antialias=True, align_corners=False).clamp_(0, 1)
    return F.pad(picture[0], (left, size - new[1] - left, top, size - new[0] - top))


def decode(path: str | os.PathLike[str]) -> Array:
    """Read one PNG, JPEG, TIFF, BMP (8 or 16 bits) or DICOM file, upright, at its stored resolution.

    Black and white are the limits of the file's bit depth (0 and 255, 4095 for 12-bit TIFF, 65535), so the images of a
    data set keep their relative brightness. Floats outside [0, 1], signed values and values of more than 16 bits are
    scaled from the image's minimum to its maximum. Colours become luma, transparent pixels black. Of a file with
    several pages, the first is read. DICOM files are recognised by their suffix (``.dcm``, ``.dicom``) or, if the
    suffix is of no image format, by their content; their LUT or window is applied
    (:func:`se_fused.apps.fracture.dicom.read`).

    Args:
        path: the file.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is damaged or its format is unknown; the message gives the path and the reason.
        ImportError: Pillow is not installed, or pydicom for a DICOM file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a {_FORMATS} image")
    if path.suffix.lower() not in SUFFIXES and dicom.is_dicom(path):
        return dicom.read(path)[0]
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ImportError('loading images requires Pillow: pip install "se_fused[train]"') from error
    try:
        # A stream, not a file name: given a name, Pillow 13 memory-maps uncompressed TIFFs and scrambles rotated ones.
        with path.open("rb") as stream, Image.open(stream) as image:
            image.load()
            # Read the tag after load(): some decoders (TIFF) rotate the image themselves and remove the tag.
            return _upright(_grey(image), image.getexif().get(_EXIF_ORIENTATION, 1))
    except UnidentifiedImageError:
        raise InputError(f"{path}: not an image, or its header is damaged; give a {_FORMATS} file") from None
    except Exception as error:  # decoders raise any exception on damaged data, e.g. SyntaxError or struct.error
        raise InputError(f"{path}: cannot be read: {error or type(error).__name__}") from error


def load_radiograph(path: str | os.PathLike[str], size: int = 224) -> Tensor:
    """Load one image file of any format that :func:`decode` supports, letterboxed to a square.

    Args:
        path: the file.
        size: height and width S of the result in pixels, >= 1.

    Returns:
        (1, S, S) float32 in [0, 1].

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is damaged or its format is unknown; the message gives the path and the reason.
        ValueError: `size` is too small.
        ImportError: Pillow is not installed, or pydicom for a DICOM file.
    """
    size = check_int(size, "size", 1)
    return letterbox(decode(path), size)


def files(folder: Path) -> list[Path]:
    """All files below a folder in natural order, except hidden files, macOS ``._*`` files and ``__MACOSX`` folders."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        found += [Path(root, name) for name in names if not name.startswith(".")]
    return sorted(found, key=natural_key)


def load_folder(
    path: str | os.PathLike[str], size: int = 224, limit: int | None = None
) -> tuple[Tensor, Tensor, list[str], list[tuple[Path, str]]]:
    """Load a folder of images: each sub-folder is a class (searched to any depth); a flat folder is the class 'image'.

    Classes and files are in natural order ('2' before '10'). Hidden files, ``._*`` files and files that are not images
    (tables, notes) are ignored.

    Args:
        path: the folder.
        size: height and width S in pixels, >= 1.
        limit: maximum number of images, taken in turn from each class. None loads all.

    Returns:
        Images, (N, 1, S, S) float32 in [0, 1]; labels, (N,) int64, indices of the class names; the class names; and
        the skipped files as (path, reason): damaged images, unsupported formats, empty sub-folders, and images beside
        the class folders. Files beyond the limit are in neither list.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        ValueError: no image was found or none could be read; the sub-folders are a split (train, test, ...) and not
            classes; an argument is too small.
        ImportError: Pillow is not installed.
    """
    size, path = check_int(size, "size", 1), Path(path)
    limit = None if limit is None else check_int(limit, "limit", 1)
    wanted = f"expected: a folder with one sub-folder of {_FORMATS} images for each class, or a folder of images"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder; {wanted}")
    if not path.is_dir():
        raise NotADirectoryError(f"{path}: not a folder; {wanted}")
    skipped: list[tuple[Path, str]] = []

    def pictures(found: list[Path]) -> list[Path]:
        for file in found:
            if file.suffix.lower() in _OTHER_PICTURES:
                skipped.append((file, f"{file.suffix.lower()} files are not supported; convert them to PNG or TIFF"))
        return [file for file in found if file.suffix.lower() in PICTURES]

    entries = sorted(
        (entry for entry in path.iterdir() if not entry.name.startswith((".", "__MACOSX"))), key=natural_key
    )
    loose = pictures([entry for entry in entries if entry.is_file()])
    classes: dict[str, list[Path]] = {}
    for folder in (entry for entry in entries if entry.is_dir()):
        if found := pictures(files(folder)):
            classes[folder.name] = found
        else:
            skipped.append((folder, "contains no images"))
    if classes and {name.casefold() for name in classes} <= _SPLITS:
        raise ValueError(f"{path}: its sub-folders are a split ({', '.join(classes)}), not classes; give one of them")
    if classes:
        skipped += [(file, "is outside the class folders, so it has no class") for file in loose]
    elif loose:
        classes = {"image": loose}
    total = sum(map(len, classes.values()))
    if total == 0:
        raise ValueError(f"{path}: no images found; {wanted}")

    # One image of each class in turn, so that every class has images under a limit.
    queue = sorted((turn, label) for label, files in enumerate(classes.values()) for turn in range(len(files)))
    loaded: dict[tuple[int, int], Tensor] = {}
    ordered = list(classes.values())
    for turn, label in queue:
        if len(loaded) == limit:
            break
        try:
            loaded[label, turn] = load_radiograph(ordered[label][turn], size)
        except (ValueError, OSError) as error:
            skipped.append((ordered[label][turn], str(error).removeprefix(f"{ordered[label][turn]}: ")))
    if not loaded:
        file, reason = skipped[-1]
        raise ValueError(f"{path}: none of its {total} images could be read; the last was {file.name}: {reason}")
    keys = sorted(loaded)
    images = torch.empty(len(keys), 1, size, size)
    for place, key in enumerate(keys):
        images[place] = loaded.pop(key)
    return images, torch.tensor([label for label, _ in keys], dtype=torch.int64), list(classes), skipped


def save_sheet(pictures: Array, titles: Sequence[str], path: str | os.PathLike[str], heading: str) -> None:
    """Write grey images with titles as one image file, six in a row. The file is written atomically.

    Args:
        pictures: (N, H, W) in [0, 1], N >= 1.
        titles: N titles.
        path: a .png, .pdf, .svg ...
        heading: title of the whole sheet.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # not pyplot, which could change the backend
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('drawing a sheet requires matplotlib: pip install "se_fused[train]"') from error
    columns = min(len(titles), 6)
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(2 * columns, 2.2 * rows + 0.5), facecolor="black", layout="constrained")
    figure.suptitle(heading, color="white", fontsize=11)
    for k, axes in enumerate(figure.subplots(rows, columns, squeeze=False).ravel()):
        axes.axis("off")
        if k < len(titles):
            axes.imshow(pictures[k], cmap="gray", vmin=0, vmax=1)
            axes.set_title(titles[k], color="white", fontsize=9)
    write_whole(Path(path), lambda part: FigureCanvasAgg(figure).print_figure(part, dpi=120))
