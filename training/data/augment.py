"""Random changes to a chip while training, and the warp between templates.

Imports the core, NumPy, OpenCV and pydantic. Everything random about a chip comes from
(seed, visit, sample), so a run that resumes, or that has another number of workers, sees the
same pixels. Each change reads its own numbers: switching one on leaves the others as they were.
"""

from __future__ import annotations

import math
from typing import Annotated

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from facerec.alignment import find_template, similarity_transform
from facerec.types import RGBImage
from training.data.samplers import Draw

Probability = Annotated[float, Field(ge=0, le=1)]

_GREY = np.array([0.299, 0.587, 0.114])
"""Luma of ITU-R BT.601, as JPEG has it."""
_INDEX_BITS = 40
_U = {
    name: slot
    for slot, name in enumerate(
        (
            *("flip", "crop", "scale", "x", "y", "angle"),
            *("low", "low_side", "low_kernel"),
            *("photometric", "brightness", "contrast", "saturation", "grey"),
            *("occlusion", "area", "aspect", "left", "top"),
        )
    )
}


class Augmentation(BaseModel):
    """The ``[augmentation]`` table of a recipe; probabilities are per image.

    The default is the field's: a mirror image half of the time, nothing else. ``strong()`` is
    for cameras and lighting that the photos do not show.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip: Probability = 0.5
    crop: Probability = 0.0
    """Another scale, position and angle, as from a detector that is a little off."""
    crop_scale: tuple[float, float] = (0.9, 1.1)
    crop_shift: float = Field(default=0.05, ge=0, lt=0.5)
    """Largest shift to either side, as a share of the chip."""
    crop_degrees: float = Field(default=5.0, ge=0, le=180)
    low_resolution: Probability = 0.0
    """Shrunk and enlarged again: a face far from the camera."""
    low_resolution_side: tuple[float, float] = (0.2, 0.7)
    """The side in between, as a share of the chip's."""
    photometric: Probability = 0.0
    brightness: float = Field(default=0.5, ge=0, lt=1)
    """The factor lies in 1 +- this; ``contrast`` and ``saturation`` likewise."""
    contrast: float = Field(default=0.5, ge=0, lt=1)
    saturation: float = Field(default=0.5, ge=0, lt=1)
    grey: Probability = 0.0
    occlusion: Probability = 0.0
    """A rectangle of noise (random erasing: Zhong et al. 2020, arXiv 1708.04896)."""
    occlusion_area: tuple[float, float] = (0.02, 0.2)
    """As a share of the chip."""

    @model_validator(mode="after")
    def _are_ranges(self) -> Augmentation:
        for name, lowest, highest in (
            ("crop_scale", 0.1, 4.0),
            ("low_resolution_side", 0.02, 1.0),
            ("occlusion_area", 0.001, 0.9),
        ):
            low, high = getattr(self, name)
            if not lowest <= low <= high <= highest:
                raise ValueError(f"{name}: a range within [{lowest}, {highest}], got {low}, {high}")
        return self

    @staticmethod
    def none() -> Augmentation:
        """Every chip as it is."""
        return Augmentation(flip=0)

    @staticmethod
    def strong() -> Augmentation:
        """Crops, low resolution and light at 0.2 each, as AdaFace (Kim et al. 2022, section 4.1)
        trains on low-quality faces; grey and occlusion rarer."""
        return Augmentation(crop=0.2, low_resolution=0.2, photometric=0.2, grey=0.05, occlusion=0.1)


def generator(seed: int, draw: Draw) -> np.random.Generator:
    """The random numbers of one showing of one image.

    Philox is a function of its key: neighbouring keys give independent streams.
    """
    key = (draw.visit << _INDEX_BITS | draw.sample) & (2**64 - 1)
    return np.random.Generator(np.random.Philox(key=np.array([seed, key], dtype=np.uint64)))


class ChipTransform:
    """From a source's chip to what a backbone takes, with or without augmentation.

    The warp between two templates and the random crop are one interpolation. What lies beyond
    the chip repeats its border. Safe to pickle and to share between threads.
    """

    def __init__(
        self,
        source: tuple[str, int],
        target: tuple[str, int],
        augmentation: Augmentation | None,
        seed: int = 0,
    ) -> None:
        """source, target: template and size. Raises ConfigError for an unknown template."""
        self.size = target[1]
        self.augmentation = augmentation
        self.seed = seed
        self.matrix = template_warp(source, target)
        self._identity = source == target

    def __call__(self, chip: RGBImage, draw: Draw) -> RGBImage:
        """(S, S, 3) uint8 RGB of the target's size; the input is left as it is."""
        how = self.augmentation
        if how is None:
            return chip if self._identity else warp_chip(chip, self.matrix, self.size)
        rng = generator(self.seed, draw)
        u = rng.random(len(_U))
        if u[_U["crop"]] < how.crop:
            chip = warp_chip(
                chip, _crop_matrix(how, u, self.size) @ _square(self.matrix), self.size
            )
        elif not self._identity:
            chip = warp_chip(chip, self.matrix, self.size)
        if u[_U["low"]] < how.low_resolution:
            chip = _low_resolution(how, u, chip)
        chip = _photometric(how, u, chip)
        if u[_U["occlusion"]] < how.occlusion:
            chip = _occlude(how, u, chip, rng)
        return chip[:, ::-1] if u[_U["flip"]] < how.flip else chip


def template_warp(source: tuple[str, int], target: tuple[str, int]) -> NDArray[np.float64]:
    """(2, 3): the similarity from one template's chips to another's; both as (name, size)."""
    points = [find_template(name).scaled_to(size) for name, size in (source, target)]
    return similarity_transform(*points)


def warp_chip(chip: RGBImage, matrix: NDArray[np.float64], size: int) -> RGBImage:
    """``chip`` under ``matrix`` (2, 3), sampled as :func:`facerec.alignment.align` does.

    Bilinear; below half the size first averaged down by a whole factor. The border is
    repeated outwards.
    """
    scale = math.hypot(matrix[0, 0], matrix[1, 0])
    if scale < 0.5 + 1e-6:  # exactly half, bilinear, would take every other pixel
        factor = int(1 / scale + 1e-6)
        chip = cv2.resize(
            chip, (chip.shape[1] // factor, chip.shape[0] // factor), interpolation=cv2.INTER_AREA
        )
        shift = np.full(2, (factor - 1) / 2)
        matrix = np.column_stack([matrix[:, :2] * factor, matrix[:, :2] @ shift + matrix[:, 2]])
    warped: RGBImage = cv2.warpAffine(
        chip, matrix[:2], (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return warped


def _square(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.vstack([matrix, [0, 0, 1]])


def _between(low: float, high: float, u: float) -> float:
    return low + (high - low) * u


def _crop_matrix(how: Augmentation, u: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """(2, 3): scale and rotation about the middle of the chip, then a shift."""
    low, high = how.crop_scale
    scale = math.exp(_between(math.log(low), math.log(high), u[_U["scale"]]))
    angle = math.radians(how.crop_degrees) * (2 * u[_U["angle"]] - 1)
    a, b = scale * math.cos(angle), scale * math.sin(angle)
    centre = (size - 1) / 2
    x, y = (size * how.crop_shift * (2 * u[_U[axis]] - 1) for axis in ("x", "y"))
    return np.array(
        [
            [a, -b, centre - a * centre + b * centre + x],
            [b, a, centre - b * centre - a * centre + y],
        ]
    )


def _low_resolution(how: Augmentation, u: NDArray[np.float64], chip: RGBImage) -> RGBImage:
    size = len(chip)
    side = max(2, round(size * _between(*how.low_resolution_side, u[_U["low_side"]])))
    small = cv2.resize(chip, (side, side), interpolation=cv2.INTER_AREA)
    kernels = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC)
    kernel = kernels[int(u[_U["low_kernel"]] * len(kernels))]
    large: RGBImage = cv2.resize(small, (size, size), interpolation=kernel)
    return large


def _photometric(how: Augmentation, u: NDArray[np.float64], chip: RGBImage) -> RGBImage:
    """Brightness, contrast about the mean grey, and saturation, as one 3x4 matrix.

    x' = c b x + (1 - c) b m, with m the chip's mean grey; then colour towards or away from its
    grey by s. One pass over the pixels, rounded and clipped once.
    """
    grey = u[_U["grey"]] < how.grey
    if u[_U["photometric"]] < how.photometric:
        b, c, s = (
            1 + getattr(how, name) * (2 * u[_U[name]] - 1)
            for name in ("brightness", "contrast", "saturation")
        )
    elif grey:
        b, c, s = 1.0, 1.0, 1.0
    else:
        return chip
    s = 0.0 if grey else s
    mean = float(np.dot(cv2.mean(chip)[:3], _GREY))
    colour = c * b * (s * np.eye(3) + (1 - s) * _GREY[None, :])
    changed: RGBImage = cv2.transform(
        chip, np.column_stack([colour, np.full(3, (1 - c) * b * mean)])
    )
    return changed


def _occlude(
    how: Augmentation, u: NDArray[np.float64], chip: RGBImage, rng: np.random.Generator
) -> RGBImage:
    size = len(chip)
    area = _between(*how.occlusion_area, u[_U["area"]]) * size * size
    aspect = math.exp(_between(math.log(1 / 3), math.log(3), u[_U["aspect"]]))
    height = min(size, max(1, round(math.sqrt(area * aspect))))
    width = min(size, max(1, round(math.sqrt(area / aspect))))
    top = int(u[_U["top"]] * (size - height + 1))
    left = int(u[_U["left"]] * (size - width + 1))
    chip = chip.copy()
    chip[top : top + height, left : left + width] = rng.integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )
    return chip
