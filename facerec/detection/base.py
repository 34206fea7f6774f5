"""What every detector shares: how an image meets the network, and suppression.

An image is never distorted and never enlarged: it is shrunk to ``max_side`` if it is
longer, and padded with black at the right and the bottom to a multiple of 32. If no
face is found, or one too large for the kind of network, the image is looked at once more
from further away, shrunk inside a wide border: a face that fills the frame is larger than
those that these networks were trained on. They miss it, find two in it, or put its
landmarks wrong.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from facerec.errors import ModelError
from facerec.packs.manifest import DetectorSpec
from facerec.runtime import Blobs, Network, Workers
from facerec.types import Detections, FloatArray, RGBImage

_STRIDE = 32
_FRAME_IN_SECOND_LOOK = 160
"""Longest side of a photo in which the first look found nothing, network pixels."""
_FACE_IN_SECOND_LOOK = 140
"""Of the largest face, if the first look found one."""
_BORDER = 80
_IMAGES_PER_RUN = {"cpu": 1, "cuda": 16}


class Detector(Protocol):
    """Finds faces. ``detect`` may be called from several threads."""

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """One result per image, of any sizes; see :class:`facerec.types.Detections`."""


@dataclass(frozen=True)
class RawDetections:
    """Candidates in network pixels before suppression: (N, 4), (N,), (N, 5, 2) float32."""

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    landmarks: NDArray[np.float32]


@dataclass(frozen=True)
class _Placed:
    """An image on the network's canvas: network pixel = image pixel * scale + offset."""

    canvas: RGBImage
    scale_xy: tuple[float, float]
    offset_xy: tuple[int, int]


class NetworkDetector(ABC):
    """A detector that is one ONNX network; a kind of network says how to read its outputs.

    large_face_px: the longer side, in network pixels, above which a face gets a second look.
    """

    large_face_px: ClassVar[float] = math.inf

    def __init__(self, spec: DetectorSpec, network: Network, workers: Workers) -> None:
        self.spec = spec
        self.network = network
        self._workers = workers
        self._blobs = Blobs()

    def detect(self, images: Sequence[RGBImage]) -> list[Detections]:
        """The faces of every image, best first; images of equal shape share a run on a GPU.

        images: (H, W, 3) uint8 RGB each. Raises ModelError where the network fails.
        """
        placed = [self._fit(image) for image in images]
        found = self._look(placed)
        limits_px = [self.large_face_px / min(p.scale_xy) for p in placed]
        again = [
            i
            for i, (faces, limit_px) in enumerate(zip(found, limits_px, strict=True))
            if not len(faces) or _sides_px(faces).max() > limit_px
        ]
        if again:
            second = self._look([self._from_further(images[i], found[i]) for i in again])
            for i, faces in zip(again, second, strict=True):
                found[i] = self._merge(found[i], faces, limits_px[i])
        return found

    @abstractmethod
    def read(self, canvases: NDArray[np.uint8], *, wide: bool) -> list[RawDetections]:
        """Run the network on (N, H, W, 3) uint8 RGB, H and W multiples of 32; one result each.

        Only candidates of at least ``spec.score_threshold`` need be returned.
        """

    def _look(self, placed: list[_Placed]) -> list[Detections]:
        """Detections in image pixels, one per placed image, equal canvases grouped."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, p in enumerate(placed):
            groups.setdefault(p.canvas.shape, []).append(i)
        most = self.network.fixed_batch or _IMAGES_PER_RUN[self.network.device]
        runs = [g[i : i + most] for g in groups.values() for i in range(0, len(g), most)]
        wide = len(runs) == 1

        def look(rows: list[int]) -> list[Detections]:
            canvases = (
                np.stack([placed[i].canvas for i in rows])
                if len(rows) > 1
                else placed[rows[0]].canvas[None]
            )
            missing = (self.network.fixed_batch or 0) - len(rows)
            if missing > 0:
                blank = np.zeros((missing, *canvases.shape[1:]), dtype=np.uint8)
                canvases = np.concatenate([canvases, blank])
            raw = self.read(canvases, wide=wide)[: len(rows)]
            return [self._finish(r, placed[i]) for r, i in zip(raw, rows, strict=True)]

        found: list[Detections] = [Detections.empty()] * len(placed)
        for rows, faces in zip(runs, self._workers.map(look, runs), strict=True):
            for i, face in zip(rows, faces, strict=True):
                found[i] = face
        return found

    def _fit(self, image: RGBImage) -> _Placed:
        """Shrink to ``max_side`` if longer, pad to multiples of 32 (or the graph's size)."""
        fixed = self.network.fixed_size_hw
        height, width = image.shape[:2]
        scale = min(1.0, self.spec.max_side / max(height, width))
        if fixed:
            scale = min(scale, fixed[0] / height, fixed[1] / width)
        small = _shrink(image, scale)
        canvas_hw = fixed or tuple(-(-side // _STRIDE) * _STRIDE for side in small.shape[:2])
        return _place(small, image, canvas_hw, (0, 0))

    def _from_further(self, image: RGBImage, found: Detections) -> _Placed:
        """The image small in the middle of a black canvas, for faces that fill the frame."""
        longest = max(image.shape[:2])
        wanted: float = _FRAME_IN_SECOND_LOOK
        if len(found):
            wanted = longest * _FACE_IN_SECOND_LOOK / float(_sides_px(found).max())
        scale = min(1.0, wanted / longest)
        fixed = self.network.fixed_size_hw
        if fixed:
            scale = min(
                scale,
                *(side / 2 / have for side, have in zip(fixed, image.shape[:2], strict=True)),
            )
        small = _shrink(image, scale)
        canvas_hw = fixed or tuple(
            -(-(side + 2 * _BORDER) // _STRIDE) * _STRIDE for side in small.shape[:2]
        )
        offset = (canvas_hw[1] - small.shape[1]) // 2, (canvas_hw[0] - small.shape[0]) // 2
        return _place(small, image, canvas_hw, offset)

    def _merge(self, first: Detections, second: Detections, limit_px: float) -> Detections:
        """Large faces as the second look saw them, small ones as the first did."""
        if not len(first):
            return second
        large = second.take(np.nonzero(_sides_px(second) > limit_px / 2)[0])
        if not len(large):
            return first
        small = first.take(np.nonzero(_sides_px(first) <= limit_px)[0])
        both = Detections(
            np.concatenate([large.boxes_xyxy, small.boxes_xyxy]),
            np.concatenate([large.scores, small.scores]),
            np.concatenate([large.landmarks, small.landmarks]),
        )
        return both.take(suppress(both.boxes_xyxy, both.scores, self.spec.nms_iou))

    def check_scores(self, scores: NDArray[np.float32]) -> None:
        """Raise ModelError for NaN: it is below every threshold, so a broken network would
        otherwise look like a photo without faces."""
        if np.isnan(scores).any():
            raise ModelError(f"{self.network.path}: gave NaN for scores")

    def _finish(self, raw: RawDetections, placed: _Placed) -> Detections:
        """Suppress overlaps, order by score, go back to image pixels."""
        if not (np.isfinite(raw.boxes_xyxy).all() and np.isfinite(raw.landmarks).all()):
            raise ModelError(f"{self.network.path}: gave NaN or infinity for a face")
        # What is smaller than a pixel is no face, and cannot be aligned.
        sides = raw.boxes_xyxy[:, 2:] - raw.boxes_xyxy[:, :2]
        usable = np.nonzero(
            (sides.min(axis=1) >= 1) & (np.ptp(raw.landmarks, axis=1).max(axis=1) >= 1)
        )[0]
        keep = usable[suppress(raw.boxes_xyxy[usable], raw.scores[usable], self.spec.nms_iou)]
        scale = np.array(placed.scale_xy, dtype=np.float32)
        offset = np.array(placed.offset_xy, dtype=np.float32)
        # No half-pixel shift: detectors and embedders alike were trained on labels scaled so.
        points = (raw.landmarks[keep] - offset) / scale
        boxes = (raw.boxes_xyxy[keep].reshape(-1, 2, 2) - offset) / scale
        return Detections(boxes.reshape(-1, 4), np.clip(raw.scores[keep], 0, 1), points)


def suppress(
    boxes_xyxy: NDArray[np.float32], scores: NDArray[np.float32], max_iou: float
) -> NDArray[np.intp]:
    """Greedy non-maximum suppression: the rows that stay, best score first.

    boxes_xyxy: (N, 4). scores: (N,). A box is dropped if its intersection over union
    with a better one that stays exceeds ``max_iou``; equal scores keep their order.
    """
    order = np.argsort(-scores, kind="stable")
    boxes = boxes_xyxy[order].astype(np.float64)
    areas = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)
    alive = np.ones(len(order), dtype=bool)
    for i in range(len(order) - 1):
        if not alive[i]:
            continue
        low = np.maximum(boxes[i, :2], boxes[i + 1 :, :2])
        high = np.minimum(boxes[i, 2:], boxes[i + 1 :, 2:])
        overlap = np.clip(high - low, 0, None).prod(axis=1)
        union = areas[i] + areas[i + 1 :] - overlap
        alive[i + 1 :] &= overlap <= max_iou * union
    kept: NDArray[np.intp] = order[alive]
    return kept


def _sides_px(faces: Detections) -> FloatArray:
    """(N,) the longer side of each box."""
    sides: FloatArray = (faces.boxes_xyxy[:, 2:] - faces.boxes_xyxy[:, :2]).max(axis=1)
    return sides


def _shrink(image: RGBImage, scale: float) -> RGBImage:
    if scale >= 1:
        return image
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    # Bilinear samples two pixels; beyond a factor of two that would alias.
    method = cv2.INTER_LINEAR if scale > 0.5 else cv2.INTER_AREA
    shrunk: RGBImage = cv2.resize(image, size, interpolation=method)
    return shrunk


def _place(
    small: RGBImage, image: RGBImage, canvas_hw: tuple[int, ...], offset_xy: tuple[int, int]
) -> _Placed:
    height, width = small.shape[:2]
    x, y = offset_xy
    scale_xy = width / image.shape[1], height / image.shape[0]
    if (height, width) == tuple(canvas_hw):
        return _Placed(np.ascontiguousarray(small), scale_xy, offset_xy)
    canvas = np.zeros((*canvas_hw, 3), dtype=np.uint8)
    canvas[y : y + height, x : x + width] = small
    return _Placed(canvas, scale_xy, offset_xy)
