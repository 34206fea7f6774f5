"""From five landmarks to the square chip that an embedder was trained on.

A similarity transform (rotation, uniform scale, translation) takes the landmarks to
a named template in the least-squares sense. Imports the core, NumPy and OpenCV.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from facerec.errors import ConfigError
from facerec.types import FloatArray, RGBImage


@dataclass(frozen=True)
class AlignmentTemplate:
    """Where the five landmarks go: ``points`` xy in a chip of ``size`` x ``size`` pixels."""

    name: str
    size: int
    points: tuple[tuple[float, float], ...]

    def scaled_to(self, size: int) -> NDArray[np.float64]:
        """(5, 2) float64 points for a chip of another side."""
        return np.array(self.points, dtype=np.float64) * (size / self.size)


TEMPLATES: dict[str, AlignmentTemplate] = {
    t.name: t
    for t in (
        # The template of ArcFace (Deng et al. 2019) and of most embedders since.
        AlignmentTemplate(
            "arcface-112",
            112,
            (
                (38.2946, 51.6963),
                (73.5318, 51.5014),
                (56.0252, 71.7366),
                (41.5493, 92.3655),
                (70.7299, 92.2041),
            ),
        ),
        # dlib's mean face shape with 25 % padding, reduced to five points.
        AlignmentTemplate(
            "dlib-150",
            150,
            (
                (47.549, 46.599),
                (100.476, 46.599),
                (74.013, 76.562),
                (50.415, 103.023),
                (97.610, 103.023),
            ),
        ),
    )
}


def find_template(name: str) -> AlignmentTemplate:
    """The template of that name. Raises ConfigError that lists the known names."""
    try:
        return TEMPLATES[name]
    except KeyError:
        known = ", ".join(sorted(TEMPLATES))
        raise ConfigError(f"no alignment template {name!r}; known are {known}") from None


def similarity_transform(landmarks: ArrayLike, points: ArrayLike) -> NDArray[np.float64]:
    """The similarity that takes ``landmarks`` nearest to ``points``.

    landmarks: (..., K, 2), pixels, xy. points: (K, 2). Returns (..., 2, 3) float64, to be
    applied as ``[x', y'] = M @ [x, y, 1]``. It minimises the sum of squared distances
    over rotations, uniform scales and translations without reflection, the problem of
    Umeyama (1991); in the plane, with xy as complex numbers z and w, the centred
    solution is simply a = sum(conj(z) w) / sum(|z|^2).

    Raises ValueError if a set of landmarks is one single point, or not finite.
    """
    source = np.asarray(landmarks, dtype=np.float64)
    target = np.asarray(points, dtype=np.float64)
    z = source[..., 0] + 1j * source[..., 1]
    w = target[..., 0] + 1j * target[..., 1]
    z_mean = z.mean(axis=-1, keepdims=True)
    w_mean = w.mean()
    z_centred = z - z_mean
    spread = (np.abs(z_centred) ** 2).sum(axis=-1)
    if not np.all(spread > 0):  # also catches NaN
        raise ValueError("landmarks: all five in one point, or not finite")
    a = (np.conj(z_centred) * (w - w_mean)).sum(axis=-1) / spread
    b = w_mean - a * z_mean[..., 0]
    transform = np.empty((*a.shape, 2, 3))
    transform[..., 0, 0] = transform[..., 1, 1] = a.real
    transform[..., 1, 0] = a.imag
    transform[..., 0, 1] = -a.imag
    transform[..., 0, 2] = b.real
    transform[..., 1, 2] = b.imag
    return transform


def align(image: RGBImage, landmarks: FloatArray, template: str, size: int) -> RGBImage:
    """Chips of every face: (N, size, size, 3) uint8 RGB.

    image: (H, W, 3) uint8 RGB. landmarks: (N, 5, 2) pixels, xy. What lies outside the
    image is black, as in the training data of these embedders. Bilinear; a face more than
    twice as large as the chip is first averaged down, so that no aliasing enters.
    """
    chips = np.zeros((len(landmarks), size, size, 3), dtype=np.uint8)
    if len(landmarks):
        transforms = similarity_transform(landmarks, find_template(template).scaled_to(size))
        for chip, transform in zip(chips, transforms, strict=True):
            _warp(image, transform, chip)
    return chips


def _warp(image: RGBImage, transform: NDArray[np.float64], chip: RGBImage) -> None:
    """Sample ``image`` under ``transform`` (image to chip) into ``chip``, in place."""
    scale = math.hypot(transform[0, 0], transform[1, 0])
    if scale > 0.5:
        cv2.warpAffine(image, transform, chip.shape[1::-1], dst=chip, flags=cv2.INTER_LINEAR)
        return
    factor = int(min(1 / max(scale, 1e-9), max(image.shape[:2])))
    x0, y0, x1, y1 = _region_of_chip(transform, len(chip), image.shape, factor)
    if x1 - x0 < factor or y1 - y0 < factor:
        return  # the face lies outside the image, or is thinner than one averaged pixel
    small = cv2.resize(
        image[y0:y1, x0:x1],
        ((x1 - x0) // factor, (y1 - y0) // factor),
        interpolation=cv2.INTER_AREA,
    )
    # Pixel centres: x = factor * (x_small + 1/2) - 1/2 + x0.
    shift = np.array([x0, y0]) + (factor - 1) / 2
    composed = np.column_stack(
        [transform[:, :2] * factor, transform[:, :2] @ shift + transform[:, 2]]
    )
    cv2.warpAffine(small, composed, chip.shape[1::-1], dst=chip, flags=cv2.INTER_LINEAR)


def _region_of_chip(
    transform: NDArray[np.float64], size: int, shape: tuple[int, ...], factor: int
) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the image that the chip sees; sides are multiples of ``factor``."""
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]], dtype=np.float64)
    inverse = cv2.invertAffineTransform(transform)
    seen = corners @ inverse[:, :2].T + inverse[:, 2]
    low = np.floor(seen.min(0)).astype(int) - 2 * factor
    high = np.ceil(seen.max(0)).astype(int) + 2 * factor
    x0, y0 = (int(v) for v in np.clip(low, 0, (shape[1], shape[0])))
    x1, y1 = (int(v) for v in np.clip(high, 0, (shape[1], shape[0])))
    return x0, y0, x1 - (x1 - x0) % factor, y1 - (y1 - y0) % factor


def loose_crop(
    image: RGBImage,
    box_xyxy: FloatArray,
    landmarks: FloatArray,
    scale: float = 1.6,
    max_side: int = 256,
) -> tuple[RGBImage, FloatArray]:
    """What the gallery keeps of a face: its box enlarged, and the landmarks inside it.

    box_xyxy: (4,) pixels. landmarks: (5, 2) pixels. The square of ``scale`` times the
    longer side, cut at the image's border, at most ``max_side`` pixels on its longest side.
    Returns the crop (h, w, 3) uint8 RGB and (5, 2) float32 landmarks in its pixels; a
    later model re-aligns from these. Raises ValueError if the box lies outside the image.
    """
    height, width = image.shape[:2]
    centre = (box_xyxy[:2] + box_xyxy[2:]) / 2
    half = scale * float(max(box_xyxy[2:] - box_xyxy[:2])) / 2
    x0, y0 = (int(v) for v in np.clip(np.floor(centre - half), 0, (width, height)))
    x1, y1 = (int(v) for v in np.clip(np.ceil(centre + half), 0, (width, height)))
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"face box {box_xyxy.tolist()} lies outside the {width}x{height} image")
    crop = image[y0:y1, x0:x1]
    ratio = min(1.0, max_side / max(crop.shape[:2]))
    if ratio < 1:
        size = (max(1, round((x1 - x0) * ratio)), max(1, round((y1 - y0) * ratio)))
        crop = cv2.resize(crop, size, interpolation=cv2.INTER_AREA)
    factors = np.array([crop.shape[1] / (x1 - x0), crop.shape[0] / (y1 - y0)])
    moved = (landmarks - (x0, y0) + 0.5) * factors - 0.5
    return np.ascontiguousarray(crop), moved.astype(np.float32)
