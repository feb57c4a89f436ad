"""Similarity of radiographs that is invariant to rotation, mirroring, cropping and changes of grey levels.

There are two steps, both on thumbnails. The coarse step compares each image with all others in all poses by matrix
products and selects its most similar images. The fine step registers each selected pair (inverse compositional
Gauss-Newton over affine maps: Baker and Matthews, Lucas-Kanade 20 Years On, IJCV 56, 2004) and computes the normalised
cross-correlation (NCC) after local differences of brightness and contrast are removed.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["SIDE", "candidates", "confirm"]

SIDE = 64
"""Height and width of the thumbnails in pixels."""

Progress = Callable[[float], None]

_COARSE = 24
_TURNS = (-24.0, -16.0, -8.0, 0.0, 8.0, 16.0, 24.0)
_COMPONENTS = 64
_MATES = 8  # candidates for each image
_SAMPLE = 200  # images from which the principal components are computed
_STRETCH = (0.75, 1.33)  # scales between two copies that were each zoomed by up to a quarter
_BLOCK = 512  # rows of the product: 512 x 20,000 float32 are 40 MB
_BATCH = 256  # pairs registered at once
_FIRST = 16  # side of the image in the first registration
_STIFF = 0.2  # share of the difference of the singular values removed in each round; a quarter in the last registration
# Minimum NCC after the first and the second registration; pairs below it are dropped. Of the pairs that end above 0.8,
# the lowest second NCC was 0.88; 19 of 20 pairs of different real radiographs are dropped.
_WORTH = (0.6, 0.85)
_OVERLAP = 0.4  # minimum overlap as a share of the square; the inscribed disc covers 0.79 of it
_DETAIL = 2.0  # sigma in thumbnail pixels: finer than the width of a bone, coarser than noise


def poses() -> Tensor:
    """Poses for the coarse step, (28, 2, 2) float32: 0 and 90 degrees, each with seven small rotations, then mirrored.

    Each matrix maps coordinates of the output image to coordinates of the input image. A half turn is not needed,
    because Fourier magnitudes are invariant to it.
    """
    maps = []
    for mirror in (1.0, -1.0):
        for quarter in (0, 90):
            for turn in _TURNS:
                c, s = math.cos(math.radians(quarter + turn)), math.sin(math.radians(quarter + turn))
                maps.append([[mirror * c, -mirror * s], [s, c]])
    return torch.tensor(maps)


def _disc(side: int) -> Tensor:
    """(side, side) bool mask of the inscribed disc, the part that is common to all rotations of the square."""
    place = (torch.arange(side) + 0.5) * 2 / side - 1
    return place[:, None] ** 2 + place[None] ** 2 <= 1


def _warp(images: Tensor, maps: Tensor, beyond: str = "border") -> Tensor:
    """Resample (n, 1, S, S) with affine maps (n, 2, 3); `beyond` is the padding: "border" or "zeros"."""
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=beyond, align_corners=False)


@cache
def _gaussian(side: int, sigma: float) -> Tensor:
    """(side, side) matrix of a Gaussian blur along one axis, with the border replicated outside the image."""
    reach = math.ceil(3 * sigma)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    place = (torch.arange(side)[:, None] + torch.arange(-reach, reach + 1)).clamp(0, side - 1)
    return torch.zeros(side, side).scatter_add_(1, place, (taps / taps.sum()).expand(side, -1))


def _blur(images: Tensor, sigma: float) -> Tensor:
    # Matrix products: a convolution of one channel with 65 taps took three quarters of the total time.
    kernel = _gaussian(images.shape[-1], sigma)
    return kernel @ images @ kernel.T


def _level(images: Tensor, sigma: float) -> Tensor:
    """Remove local brightness and contrast: the result has zero mean and unit variance within about sigma."""
    detail = images - _blur(images, sigma)
    # The floor, 1/50 of the range from black to white, limits the amplification of noise in uniform regions.
    return detail / (_blur(detail * detail, sigma) + 0.02**2).sqrt()


def _float(thumbnails: NDArray[np.uint8], rows: Tensor | slice) -> Tensor:
    """The given rows of the thumbnails as (n, 1, SIDE, SIDE) float32 in [0, 1]."""
    return torch.from_numpy(thumbnails)[rows, None].float() / 255


def _spectra(levelled: Tensor, pose: Tensor) -> Tensor:
    """(n, D) float32: the logarithm of the Fourier magnitudes of the images in a pose.

    Magnitudes are invariant to translation of the limb and to a half turn.
    """
    window = torch.hann_window(_COARSE, periodic=False)
    found = []
    for some in levelled.split(2048):
        seen = _warp(some, F.pad(pose, (0, 1)).expand(len(some), 2, 3))
        seen = F.interpolate(seen, (_COARSE, _COARSE), mode="bilinear", antialias=True)[:, 0]
        seen = (seen - seen.mean((1, 2), keepdim=True)) * window * window[:, None]
        seen = seen / seen.square().sum((1, 2), keepdim=True).sqrt().clamp_min(1e-6)
        found.append((torch.fft.rfft2(seen).abs() + 0.02).log().flatten(1))
    return torch.cat(found)


def candidates(
    thumbnails: NDArray[np.uint8], progress: Progress = lambda share: None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Candidate pairs of duplicates: for each image the eight most similar ones in any pose.

    Args:
        thumbnails: (n, SIDE, SIDE).
        progress: called with the completed share, 0 to 1.

    Returns:
        Pairs i < j, each once, (m, 2) int64; and the likeliest poses of j, (m, 2) int64, without and with mirroring.
        Both are returned because Fourier magnitudes barely distinguish a straight bone from its mirror image.
    """
    count = len(thumbnails)
    if count < 2:
        return np.zeros((0, 2), np.int64), np.zeros((0, 2), np.int64)
    pictures = _float(thumbnails, slice(None))
    # Principal components, half whitened: features that all limbs share weigh less than features that differ. They are
    # computed from the images in all poses, so two images are enough.
    some = torch.linspace(0, count - 1, min(count, _SAMPLE)).long()
    sample = torch.cat([_spectra(pictures[some], pose) for pose in poses()])
    mean = sample.mean(0)
    _, strength, axes = torch.linalg.svd(sample - mean, full_matrices=False)
    basis = axes[:_COMPONENTS].T / (strength[:_COMPONENTS] / strength[0].clamp_min(1e-6) + 1e-3).sqrt()

    def described(pose: Tensor) -> Tensor:
        return F.normalize((_spectra(pictures, pose) - mean) @ basis, dim=1)

    plain = described(torch.eye(2))
    turned = torch.stack([described(pose) for pose in poses()])
    mates = min(_MATES, count - 1)
    best, who, how = [], [], []
    for start in range(0, count, _BLOCK):
        rows = plain[start : start + _BLOCK]
        top = torch.full((2, len(rows), count), -2.0)
        pose = torch.zeros((2, len(rows), count), dtype=torch.uint8)
        for number, other in enumerate(turned):
            product, mirror = rows @ other.T, 2 * number // len(turned)
            pose[mirror].masked_fill_(product > top[mirror], number)
            torch.maximum(top[mirror], product, out=top[mirror])
        highest = top.amax(0)
        highest.diagonal(start).fill_(-3)  # exclude the image itself
        value, place = highest.topk(mates, 1)
        best.append(value)
        who.append(place)
        how.append(torch.stack([p.gather(1, place) for p in pose], 2).long())
        progress(min(1.0, (start + _BLOCK) / count))
    first = torch.arange(count)[:, None].expand(count, mates)
    return _unique(first.flatten(), torch.cat(who).flatten(), torch.cat(how).flatten(0, 1), torch.cat(best).flatten())


def _unique(first: Tensor, second: Tensor, pose: Tensor, value: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs i < j, each once, with the poses of the more similar occurrence; pairs (j, i) get the inverse poses."""
    there = poses()
    # The inverse of a rotation or reflection is its transpose; abs() ignores a half turn, which changes the sign.
    back = (there.transpose(1, 2).reshape(-1, 4) @ there.reshape(-1, 4).T).abs().argmax(1)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    pose = torch.where((first < second)[:, None], pose, back[pose])
    order = np.lexsort((-value.numpy(), high.numpy(), low.numpy()))
    pairs = torch.stack([low, high], 1).numpy()[order]
    new = np.ones(len(pairs), bool)
    new[1:] = (pairs[1:] != pairs[:-1]).any(1)
    return pairs[new], pose.numpy()[order][new]


def _inverse(m: Tensor) -> Tensor:
    """Inverse of (n, 2, 2) matrices; torch.linalg calls LAPACK for each matrix, which took most of the time."""
    (a, b), (c, d) = m[:, 0].unbind(1), m[:, 1].unbind(1)
    return torch.stack([d, -b, -c, a], 1).view(-1, 2, 2) / (a * d - b * c)[:, None, None]


def _bounded(m: Tensor, stiff: float = 0.0) -> Tensor:
    """Clamp the singular values of (n, 2, 2) to `_STRETCH` and reduce their difference by the share `stiff`.

    m is q times a rotation plus r times a reflection; its singular values are q + r and |q - r|.
    """
    (a, b), (c, d) = m[:, 0].unbind(1), m[:, 1].unbind(1)
    e, f, g, h = (a + d) / 2, (a - d) / 2, (c + b) / 2, (c - b) / 2
    q, r = torch.hypot(e, h).clamp_min(1e-9), torch.hypot(f, g).clamp_min(1e-9)
    large, small = (q + r).clamp(*_STRETCH), (q - r).abs().clamp(*_STRETCH)
    more, less = (large + small) / 2, (1 - stiff) * (large - small) / 2
    turning, mirroring = torch.where(q > r, more, less) / q, torch.where(q > r, less, more) / r
    e, h, f, g = e * turning, h * turning, f * mirroring, g * mirroring
    return torch.stack([e + f, g - h, g + h, e - f], 1).view(-1, 2, 2)


def _register(still: Tensor, moving: Tensor, maps: Tensor, rounds: int, stiff: float = 0.0) -> Tensor:
    """Affine maps (n, 2, 3) that register `moving` to `still`, both (n, 1, S, S), starting from `maps`."""
    n, _, side, _ = still.shape
    place = (torch.arange(side) + 0.5) * 2 / side - 1
    y, x = place[:, None].expand(side, side), place[None].expand(side, side)
    weight = _disc(side).float()
    gradient = F.pad(still, (1, 1, 1, 1), mode="replicate")
    step = side / 4  # central difference of two pixels of 2 / side each
    gx = (gradient[:, 0, 1:-1, 2:] - gradient[:, 0, 1:-1, :-2]) * step
    gy = (gradient[:, 0, 2:, 1:-1] - gradient[:, 0, :-2, 1:-1]) * step
    ones = torch.ones_like(gx)
    # Derivatives of `still` with respect to the six parameters of the map, then gain and offset of the grey values.
    basis = torch.stack([gx * x, gx * y, gx, gy * x, gy * y, gy, still[:, 0], ones], 1).flatten(2) * weight.flatten()
    hessian = basis @ basis.transpose(1, 2)
    hessian += torch.eye(8) * (1e-4 * hessian.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + 1e-6)
    solver = torch.linalg.inv(hessian) @ basis
    for _ in range(rounds):
        seen = _warp(moving, maps)
        change = solver @ ((seen - still)[:, 0].flatten(1) * weight.flatten())[:, :, None]
        small = change[:, :6, 0].clamp(-0.2, 0.2).view(n, 2, 3)
        linear = maps[:, :, :2] @ _inverse(small[:, :, :2] + torch.eye(2))
        # The scale along a straight bone is undetermined: without bounds, every bone can be stretched to match another.
        maps = torch.cat([_bounded(linear, stiff), maps[:, :, 2:] - linear @ small[:, :, 2:]], 2)
    return maps


def _correlation(one: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    """(n,) weighted NCC of (n, 1, S, S) images."""
    total = weight.sum((1, 2, 3), keepdim=True).clamp_min(1e-6)
    one = one - (one * weight).sum((1, 2, 3), keepdim=True) / total
    other = other - (other * weight).sum((1, 2, 3), keepdim=True) / total
    both = (one * other * weight).sum((1, 2, 3))
    return both / ((one * one * weight).sum((1, 2, 3)) * (other * other * weight).sum((1, 2, 3)) + 1e-12).sqrt()


def _fit(still: Tensor, moving: Tensor, maps: Tensor) -> Tensor:
    """(n,) NCC of (n, 1, S, S) images in their overlap within the disc; 0 if the overlap is too small."""
    weight = (_warp(torch.ones_like(moving), maps, "zeros") > 0.999).float() * _disc(still.shape[-1])
    value = _correlation(still, _warp(moving, maps), weight)
    return value.where(weight.mean((1, 2, 3)) > _OVERLAP, torch.zeros(()))


def _seen(still: Tensor, moving: Tensor, maps: Tensor, sigma: float) -> Tensor:
    """(n,) NCC of the detail of (n, 1, S, S) images in their overlap within the disc; 0 if the overlap is too small."""
    seen = _warp(moving, maps)
    weight = (_warp(torch.ones_like(moving), maps, "zeros") > 0.999).float() * _disc(still.shape[-1])
    value = _correlation(_level(still, sigma), _level(seen, sigma), weight)
    return value.where(weight.mean((1, 2, 3)) > _OVERLAP, torch.zeros(()))


def _place(still: Tensor, moving: Tensor, pose: Tensor) -> Tensor:
    """Maps (n, 2, 3) of a pose (n, 2, 2) and the translation that correlates `moving` best with `still`.

    Both images are (n, 1, S, S).
    """
    side = still.shape[-1]
    disc, padded = _disc(side), (2 * side, 2 * side)
    seen = _warp(moving, F.pad(pose, (0, 1)))
    product = torch.fft.rfft2(still[:, 0] * disc, s=padded).conj() * torch.fft.rfft2(seen[:, 0] * disc, s=padded)
    place = torch.fft.irfft2(product, s=padded).flatten(1).argmax(1)
    shift = torch.stack([place % (2 * side), place // (2 * side)], 1).float()
    shift = torch.where(shift > side, shift - 2 * side, shift) * 2 / side  # shifts that wrap around are negative
    return torch.cat([pose, pose @ shift[:, :, None]], 2)


def confirm(
    thumbnails: NDArray[np.uint8],
    pairs: NDArray[np.int64],
    poses_of: NDArray[np.int64],
    progress: Progress = lambda share: None,
) -> NDArray[np.float32]:
    """Register each candidate pair and compute its similarity.

    Args:
        thumbnails: (n, SIDE, SIDE).
        pairs: (m, 2).
        poses_of: (m, 2), from `candidates`.
        progress: called with the completed share, 0 to 1.

    Returns:
        (m,) NCC of the detail, 0 to 1; 0 for pairs that fit too poorly in a coarse registration.
    """
    similarity = np.zeros(len(pairs), np.float32)
    known = poses()
    for start in range(0, len(pairs), _BATCH):
        rows = np.arange(start, min(start + _BATCH, len(pairs)))
        one, other = (_float(thumbnails, torch.from_numpy(pairs[rows, side])) for side in (0, 1))
        level = [_level(picture, SIDE / 6) for picture in (one, other)]
        small = [F.adaptive_avg_pool2d(picture, _FIRST) for picture in level]
        # Four starts, with and without mirroring and a half turn; the two best of a coarse registration are refined.
        starts = []
        for mirror in (0, 1):
            for half_turn in (1.0, -1.0):
                found = _place(small[0], small[1], half_turn * known[torch.from_numpy(poses_of[rows, mirror])])
                starts.append(_register(small[0], small[1], found, 10, _STIFF))
        fits, order = torch.stack([_fit(small[0], small[1], found) for found in starts]).topk(2, 0)
        all_maps = torch.stack(starts)
        for fit, which in zip(fits, order, strict=True):
            maps, going = all_maps[which, torch.arange(len(rows))], torch.arange(len(rows))
            for side, worth, stiff in ((32, _WORTH[0], _STIFF), (SIDE, _WORTH[1], _STIFF / 4)):
                going = going[fit[going] >= worth]
                if len(going):
                    still, moving = (F.adaptive_avg_pool2d(picture[going], side) for picture in level)
                    maps[going] = _register(still, moving, maps[going], 8, stiff)
                    fit[going] = _fit(still, moving, maps[going])
            if len(going):
                value = _seen(one[going], other[going], maps[going], _DETAIL).numpy()
                similarity[rows[going.numpy()]] = np.maximum(similarity[rows[going.numpy()]], value)
        progress(min(1.0, (start + _BATCH) / len(pairs)))
    return similarity
