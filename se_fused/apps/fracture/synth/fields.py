"""Random fields and blurs of square images. All are periodic or replicate the border, so no edge artefacts appear."""

import math
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

__all__ = ["Array", "blur", "cloud", "low_pass", "noise"]

Array = NDArray[Any]  # arrays of the image's size are float32

_CLOUD_CELLS = 64  # a cloud has no detail finer than 32 cycles per image


def _gain(rows: int, power: float, corner: float, axis: float, pull: float) -> Array:
    """Spectrum (rows, rows//2+1): 1/f^power above `corner` cycles per image, stretched `pull` times along `axis`."""
    fy, fx = np.fft.fftfreq(rows, 1 / rows)[:, None].astype(np.float32), np.arange(rows // 2 + 1, dtype=np.float32)
    along, across = fy * math.cos(axis) - fx * math.sin(axis), fx * math.cos(axis) + fy * math.sin(axis)
    return ((along * pull) ** 2 + across**2 + np.float32(corner**2)) ** np.float32(-power / 2)


def noise(rng: Generator, size: int, power: float, corner: float, axis: float = 0.0, pull: float = 1.0) -> Array:
    """Random field (size, size) with mean 0, standard deviation 1 and spectrum 1/f^power above `corner` cycles.

    Its structures are `pull` times longer along `axis`.
    """
    spectrum = np.fft.rfft2(rng.standard_normal((size, size), np.float32)) * _gain(size, power, corner, axis, pull)
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, (size, size)).astype(np.float32)
    return field / field.std()


def cloud(rng: Generator, size: int, power: float, corner: float, axis: float = 0.0, pull: float = 1.0) -> Array:
    """Like `noise`, but without fine detail: the same field at every size, up to sampling."""
    cells, half = _CLOUD_CELLS, min(_CLOUD_CELLS, size) // 2
    spectrum = np.fft.rfft2(rng.standard_normal((cells, cells), np.float32)) * _gain(cells, power, corner, axis, pull)
    spectrum[0, 0] = 0
    wide = np.zeros((size, size // 2 + 1), np.complex64)
    wide[:half, :half], wide[-half + 1 :, :half] = spectrum[:half, :half], spectrum[-half + 1 :, :half]
    field = np.fft.irfft2(wide, (size, size)).astype(np.float32)
    return field / field.std()


def low_pass(image: Array, width: float) -> Array:
    """Periodic Gaussian blur; sigma is the share `width` of the image."""
    size, few = len(image), min(len(image) // 2, math.ceil(1 / width))  # at higher frequencies the gain is below 1e-8
    f = np.fft.fftfreq(size, 1 / size).astype(np.float32)[:, None] ** 2 + np.arange(few + 1, dtype=np.float32) ** 2
    spectrum = np.fft.rfft2(image)
    spectrum[:, : few + 1] *= np.exp(np.float32(-2 * (width * np.pi) ** 2) * f)
    spectrum[:, few + 1 :] = 0
    return np.fft.irfft2(spectrum, image.shape).astype(np.float32)


def _taps(sigma: float, reach: int) -> list[float]:
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return (taps / taps.sum()).tolist()


def blur(image: Array, sigma: float) -> Array:
    """Gaussian blur, sigma in pixels, truncated at three sigma, with replicated border pixels."""
    reach = math.ceil(3 * sigma)
    taps = _taps(sigma, reach)
    for _ in range(2):  # no matrix product: BLAS threads would compete with data loaders
        size = len(image)
        wide = np.pad(image, ((reach, reach), (0, 0)), mode="edge")
        total = wide[reach : reach + size] * np.float32(taps[reach])
        for k in range(reach):  # the taps are symmetric
            pair = wide[k : k + size] + wide[2 * reach - k : 2 * reach - k + size]
            pair *= np.float32(taps[k])
            total += pair
        image = np.ascontiguousarray(total.T)
    return image
