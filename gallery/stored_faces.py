"""From what the gallery keeps of a face to its embedding by another model.

A loose crop is enough; where none was kept, the original photo is looked for, and taken only if
not a byte of it has changed. Imports the core, numpy, and this package's generations.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from facerec.alignment import align
from facerec.errors import ImageError, ModelError
from facerec.image import DEFAULT_MAX_PIXELS, load_image, read_bytes
from facerec.packs import Pack
from facerec.packs.manifest import sha256_file
from facerec.pipeline import Pipeline
from facerec.types import Detections, FloatArray, RGBImage
from gallery.generations import StoredFace
from gallery.items import displayable

_WORKERS = 2
_SAME_BOX = 0.3
"""Overlap, intersection over union, of one face's boxes by two detectors."""


@dataclass(frozen=True, eq=False)
class Embedded:
    """vectors: (template id, (d,) unit embedding). reasons: (template id, why there is none)."""

    vectors: tuple[tuple[int, FloatArray], ...] = ()
    reasons: tuple[tuple[int, str], ...] = ()


class _Unusable(Exception):
    """Why a template cannot be embedded."""


class Reembedder:
    """A pipeline at work on stored faces; None for a pack that is not here.

    detect: look for the landmarks in the crop with the pipeline's own detector, and take the
    stored ones only where it does not find that face; for crops of another detector. photos:
    folders where the original photos may lie now, by their names. without: what to say of every
    template where there is no pipeline.
    """

    def __init__(
        self,
        pipeline: Pipeline | None,
        *,
        detect: bool = False,
        photos: Sequence[Path] = (),
        max_pixels: int = DEFAULT_MAX_PIXELS,
        without: str = "",
    ) -> None:
        self._pipeline = pipeline
        self._detect = detect
        self._folders = photos
        self._max_pixels = max_pixels
        self._without = without

    def embed(self, faces: Sequence[StoredFace]) -> Embedded:
        """All of ``faces`` at once."""
        [result] = self.embed_batches([faces])
        return result

    def embed_batches(self, batches: Iterable[Sequence[StoredFace]]) -> Iterator[Embedded]:
        """One result a batch, in order; while one is embedded the next is read and aligned.

        Raises ModelError where the model does not run.
        """
        if self._pipeline is None:
            for batch in batches:
                yield Embedded(reasons=tuple((face.id, self._without) for face in batch))
            return
        pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="align")
        try:
            ahead: tuple[Sequence[StoredFace], list[Future[RGBImage | str]]] | None = None
            for batch in batches:
                chips = [pool.submit(self._chip, face, self._pipeline) for face in batch]
                if ahead is not None:
                    yield self._finish(*ahead)
                ahead = batch, chips
            if ahead is not None:
                yield self._finish(*ahead)
        finally:
            pool.shutdown(cancel_futures=True)

    def _finish(
        self, batch: Sequence[StoredFace], waiting: Sequence[Future[RGBImage | str]]
    ) -> Embedded:
        found = [(face.id, future.result()) for face, future in zip(batch, waiting, strict=True)]
        reasons = [(i, chip) for i, chip in found if isinstance(chip, str)]
        chips = [(i, chip) for i, chip in found if not isinstance(chip, str)]
        vectors, refused = self._embed(chips)
        return Embedded(tuple(vectors), (*reasons, *refused))

    def _embed(
        self, chips: Sequence[tuple[int, RGBImage]]
    ) -> tuple[list[tuple[int, FloatArray]], list[tuple[int, str]]]:
        """The chips' embeddings; if one makes the model give NaN, what is wrong with that one."""
        assert self._pipeline is not None
        if not chips:
            return [], []
        try:
            rows = self._pipeline.embedder.embed(np.concatenate([chip for _, chip in chips]))
            return [(i, row) for (i, _), row in zip(chips, rows, strict=True)], []
        except ModelError as exc:
            if len(chips) == 1:
                return [], [(chips[0][0], str(exc))]
            failure = exc
        vectors, refused = [], []
        for one in chips:
            done, wrong = self._embed([one])
            vectors += done
            refused += wrong
        if not vectors:  # then it is not the faces
            raise failure
        return vectors, refused

    def _chip(self, face: StoredFace, pipeline: Pipeline) -> RGBImage | str:
        """(1, S, S, 3) as the embedder wants it, or why there is none."""
        try:
            found = self._from_crop(face, pipeline)
            image, landmarks = found or self._from_photo(face, pipeline)
            contract = pipeline.contract
            return align(image, landmarks[None], contract.template, contract.input_size)
        except _Unusable as exc:
            return _as_text(exc)
        except (ValueError, MemoryError, cv2.error) as exc:
            return _as_text(f"its picture cannot be used: {exc}")

    def _from_crop(
        self, face: StoredFace, pipeline: Pipeline
    ) -> tuple[RGBImage, FloatArray] | None:
        if face.crop_jpeg is None or face.landmarks is None:
            return None
        try:
            crop = load_image(face.crop_jpeg)
        except ImageError:
            return None  # the photo may be better off
        again = None
        if self._detect:
            again = same_landmarks(pipeline.detector.detect([crop])[0], face.landmarks)
        return crop, face.landmarks if again is None else again

    def _from_photo(self, face: StoredFace, pipeline: Pipeline) -> tuple[RGBImage, FloatArray]:
        path, data = self._photo(face)
        try:
            image = load_image(data, max_pixels=self._max_pixels)
        except ImageError as exc:
            raise _Unusable(f"no crop was kept, and its photo cannot be read: {exc}") from exc
        found = pipeline.detector.detect([image])[0]
        chosen = _same_face(found, face.box_xyxy)
        if chosen is None:
            raise _Unusable(
                f"no crop was kept, and the face is not found in {path} by pack "
                f"{pipeline.pack.name!r}"
            )
        return image, found.landmarks[chosen]

    def _photo(self, face: StoredFace) -> tuple[Path, bytes]:
        """The photo's file and bytes."""
        if "#t=" in face.source:
            raise _Unusable(
                f"no crop was kept, and its picture is a frame of a video, {face.source}"
            )
        changed = None
        for path in self._places(face):
            try:
                data = read_bytes(path)
            except ImageError:
                continue
            if hashlib.sha256(data).hexdigest() == face.content_sha256:
                return path, data
            changed = path
        if changed is not None:
            raise _Unusable(f"no crop was kept, and its photo has changed since: {changed}")
        raise _Unusable(f"no crop was kept, and its photo is not there: {face.source}")

    def _places(self, face: StoredFace) -> Iterator[Path]:
        seen = [Path(path) for path in (*face.paths, face.source)]
        yield from seen
        for name in dict.fromkeys(path.name for path in seen):
            yield from self._by_name.get(name, ())

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        """Every file under the folders of photos, by its name."""
        found: dict[str, list[Path]] = {}
        for root in self._folders:
            for folder, _, names in os.walk(root):
                for name in names:
                    found.setdefault(name, []).append(Path(folder, name))
        return found


def _as_text(reason: object) -> str:
    """As a store and a terminal take it: a file's name may hold bytes that are no UTF-8."""
    return displayable(reason).replace("\0", "\ufffd")


def same_detector(a: Pack, b: Pack) -> bool:
    """Whether both packs put the landmarks of a face in the same places. Raises ModelError."""
    first, second = a.manifest.detector, b.manifest.detector
    if first.kind != second.kind:
        return False
    hashes = (
        spec.sha256 or sha256_file(path)
        for spec, path in ((first, a.detector_path), (second, b.detector_path))
    )
    return len(set(hashes)) == 1


def same_landmarks(found: Detections, landmarks: FloatArray) -> FloatArray | None:
    """Those of the detected face that has ``landmarks`` (5, 2), by its own detector.

    Within a quarter of the distance between the eyes, in the mean; None if there is none.
    """
    if not len(found):
        return None
    off = np.linalg.norm(found.landmarks - landmarks, axis=2).mean(axis=1)
    nearest = int(np.argmin(off))
    apart = float(np.linalg.norm(landmarks[0] - landmarks[1]))
    return found.landmarks[nearest] if off[nearest] < apart / 4 else None


def _same_face(found: Detections, box: FloatArray | None) -> int | None:
    """Which of the detected faces is at ``box`` (4,); without a box the largest, as enrolment."""
    if not len(found):
        return None
    boxes = found.boxes_xyxy
    if box is None:
        return int(np.argmax(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)))
    overlaps = _overlaps(boxes, box)
    best = int(np.argmax(overlaps))
    return best if overlaps[best] >= _SAME_BOX else None


def _overlaps(boxes: FloatArray, box: FloatArray) -> FloatArray:
    """Intersection over union of (n, 4) boxes with one (4,)."""
    low = np.maximum(boxes[:, :2], box[:2])
    high = np.minimum(boxes[:, 2:], box[2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    overlaps: FloatArray = shared / np.maximum(areas - shared, 1e-9)
    return overlaps
