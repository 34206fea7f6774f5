"""Frozen, validated value types shared by every package. Imports numpy only.

Shapes, dtypes and units are checked once, when a value is built, so that the
code behind the border need not check again. Arrays handed to a type are made
read-only views; similarity is always cosine in [-1, 1].
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float32]
RGBImage = NDArray[np.uint8]
"""(H, W, 3) uint8, RGB, C-contiguous."""


def _frozen_array(name: str, value: ArrayLike, shape: tuple[int | None, ...]) -> FloatArray:
    """A read-only float32 copy-or-view of ``value``, checked against ``shape`` (None: any)."""
    array = np.asarray(value, dtype=np.float32)
    if array.ndim != len(shape) or any(
        want is not None and want != got for want, got in zip(shape, array.shape, strict=True)
    ):
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: holds NaN or infinity")
    view = array.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True, eq=False)
class Detections:
    """The faces found in one image, column-wise, best score first.

    boxes_xyxy: (N, 4) float32, pixels of the original image, may exceed its border.
    scores: (N,) float32 in [0, 1].
    landmarks: (N, 5, 2) float32, pixels, xy; left eye, right eye, nose, left and
        right mouth corner, left and right as seen in the image.
    """

    boxes_xyxy: FloatArray
    scores: FloatArray
    landmarks: FloatArray

    def __post_init__(self) -> None:
        n = len(self.scores)
        object.__setattr__(self, "scores", _frozen_array("scores", self.scores, (n,)))
        object.__setattr__(self, "boxes_xyxy", _frozen_array("boxes_xyxy", self.boxes_xyxy, (n, 4)))
        object.__setattr__(self, "landmarks", _frozen_array("landmarks", self.landmarks, (n, 5, 2)))

    @staticmethod
    def empty() -> Detections:
        """No face."""
        return Detections(
            np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32)
        )

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, indices: Sequence[int] | NDArray[np.intp]) -> Detections:
        """The rows ``indices``, in that order."""
        rows = np.asarray(indices, dtype=np.intp)
        return Detections(self.boxes_xyxy[rows], self.scores[rows], self.landmarks[rows])

    def __iter__(self) -> Iterator[tuple[FloatArray, float, FloatArray]]:
        for box, score, points in zip(self.boxes_xyxy, self.scores, self.landmarks, strict=True):
            yield box, float(score), points


@dataclass(frozen=True, eq=False)
class Face:
    """One face of one image, embedded.

    box_xyxy: (4,) float32 pixels. landmarks: (5, 2) float32 pixels, in the order
    of :class:`Detections`. det_score: [0, 1]. embedding: (d,) float32, unit length.
    """

    box_xyxy: FloatArray
    landmarks: FloatArray
    det_score: float
    embedding: FloatArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "box_xyxy", _frozen_array("box_xyxy", self.box_xyxy, (4,)))
        object.__setattr__(self, "landmarks", _frozen_array("landmarks", self.landmarks, (5, 2)))
        object.__setattr__(self, "embedding", _frozen_array("embedding", self.embedding, (None,)))
        norm = float(np.linalg.norm(self.embedding))
        if abs(norm - 1.0) > 1e-3:
            raise ValueError(f"embedding: expected unit length, got |e| = {norm:.4f}")


@dataclass(frozen=True)
class EmbeddingContract:
    """All that fixes what an embedding means; vectors of two contracts never meet.

    embedder_sha256: of the ONNX file. template: name of the alignment template.
    input_size: side of the square chip, pixels. colour: "RGB" or "BGR". The network
    gets ``(pixel - mean) * scale`` per channel, in the order of ``colour``.
    flip: the embedding is the mean over the chip and its mirror image. dim: d.
    """

    embedder_sha256: str
    template: str
    input_size: int
    colour: str
    mean: tuple[float, float, float]
    scale: tuple[float, float, float]
    flip: bool
    dim: int

    def __post_init__(self) -> None:
        # Equal contracts have equal ids: 0 and 0.0 are equal, but not as JSON.
        for name in ("mean", "scale"):
            object.__setattr__(self, name, tuple(float(v) + 0.0 for v in getattr(self, name)))

    @property
    def contract_id(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 over the fields, as canonical JSON."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The fields as JSON; :meth:`from_json` reads it back to an equal contract."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> EmbeddingContract:
        """The contract that :meth:`to_json` wrote."""
        raw = json.loads(text)
        raw["mean"] = tuple(raw["mean"])
        raw["scale"] = tuple(raw["scale"])
        return EmbeddingContract(**raw)


@dataclass(frozen=True)
class ThresholdTable:
    """Cosine thresholds by false-match rate, and the data they were measured on.

    fmr: strictly decreasing, in (0, 1). cosine: the smallest threshold at which the
    share of impostor pairs at or above it is at most ``fmr``; non-decreasing.
    fnmr: share of genuine pairs below ``cosine``; same length.
    measured_on: a sentence naming data, pairs and command.
    """

    fmr: tuple[float, ...]
    cosine: tuple[float, ...]
    fnmr: tuple[float, ...]
    measured_on: str

    def __post_init__(self) -> None:
        if not len(self.fmr) == len(self.cosine) == len(self.fnmr):
            raise ValueError("thresholds: fmr, cosine and fnmr differ in length")
        if len(self.fmr) < 2:
            raise ValueError("thresholds: at least two operating points are needed")
        if any(not 0 < f < 1 for f in self.fmr):
            raise ValueError("thresholds: every fmr lies between 0 and 1")
        if any(b >= a for a, b in zip(self.fmr, self.fmr[1:], strict=False)):
            raise ValueError("thresholds: fmr decreases strictly")
        if any(not abs(c) <= 1 + 1e-6 for c in self.cosine):  # just above 1: nobody matches
            raise ValueError("thresholds: every cosine lies between -1 and 1")
        if any(not 0 <= f <= 1 for f in self.fnmr):
            raise ValueError("thresholds: every fnmr lies between 0 and 1")
        if any(b < a for a, b in zip(self.cosine, self.cosine[1:], strict=False)):
            raise ValueError("thresholds: cosine does not decrease as fmr falls")

    def cosine_at(self, fmr: float) -> float:
        """The threshold for ``fmr``: linear in log10(fmr) between measured points.

        Outside the table nothing is known, so this raises ValueError rather than
        extrapolate; the message names the measured range.
        """
        low, high = self.fmr[-1], self.fmr[0]
        if not low * (1 - 1e-9) <= fmr <= high * (1 + 1e-9):
            raise ValueError(
                f"no threshold was measured for FMR {fmr:g}; this pack knows {low:g} to {high:g}"
            )
        x = [math.log10(f) for f in reversed(self.fmr)]
        return float(np.interp(math.log10(fmr), x, list(reversed(self.cosine))))

    def fmr_at(self, cosine: float) -> float:
        """The false-match rate at a threshold of ``cosine``: what :meth:`cosine_at` inverts.

        NaN outside the table, where nothing was measured. Where several measured rates
        share a threshold, the lowest of them.
        """
        if not self.cosine[0] <= cosine <= self.cosine[-1]:
            return math.nan
        log_fmr = np.log10(self.fmr)
        # The last point at or below: of equals the lowest rate, as the table's definition says.
        i = int(np.searchsorted(self.cosine, cosine, side="right")) - 1
        if self.cosine[i] == cosine:
            return self.fmr[i]
        step = (cosine - self.cosine[i]) / (self.cosine[i + 1] - self.cosine[i])
        return float(10 ** (log_fmr[i] + step * (log_fmr[i + 1] - log_fmr[i])))

    def fmr_for_fpir(self, fpir: float, gallery_size: int) -> float:
        """The FMR at which a search of ``gallery_size`` people has false-positive rate ``fpir``.

        First approximation, independent comparisons: FPIR = 1 - (1 - FMR)^N.
        """
        if not 0 < fpir < 1:
            raise ValueError(f"FPIR lies between 0 and 1, got {fpir:g}")
        return -math.expm1(math.log1p(-fpir) / max(1, gallery_size))


@dataclass(frozen=True)
class Identity:
    """A person of a gallery. ``template_count`` is as of the moment of reading.

    state: "named"; "unnamed" for somebody who has yet to be named, then called "unknown #ID";
    "dismissed" for one of those whom nobody wants to see.
    """

    id: int
    name: str
    metadata: Mapping[str, Any]
    created_at: datetime
    template_count: int
    state: str = "named"


@dataclass(frozen=True, eq=False)
class Template:
    """One enrolled view of a person, as the store keeps it.

    landmarks: (5, 2) float32, pixels of the stored crop; None where no crop is kept.
    source: what the caller named the photo; free text. content_sha256: of the photo.
    face: which of its faces, 0 for an enrolment. box_xyxy: (4,) float32, pixels of the photo;
    None where it was not kept.
    """

    id: int
    identity_id: int
    source: str
    content_sha256: str
    det_score: float
    created_at: datetime
    has_crop: bool
    landmarks: FloatArray | None = None
    face: int = 0
    box_xyxy: FloatArray | None = None


@dataclass(frozen=True)
class Candidate:
    """A person of the gallery, by their template most similar to the probe.

    similarity: cosine in [-1, 1]. template_id: the template that scored it.
    """

    identity_id: int
    name: str
    similarity: float
    template_id: int


@dataclass(frozen=True)
class Decision:
    """Who a probe is: the first candidate if it reaches the threshold, else unknown.

    candidates: at most k people, most similar first; empty for an empty gallery.
    threshold: cosine. fmr: the false-match rate of one comparison at it; NaN where the
    caller chose a threshold outside of what was measured.
    fpir: the false-positive rate of this search, 1-(1-fmr)^N for N people; NaN likewise.
    people: N, how many were searched.
    """

    candidates: tuple[Candidate, ...]
    threshold: float
    fmr: float
    fpir: float
    people: int = 0

    @property
    def match(self) -> Candidate | None:
        """The person, or None for *unknown*."""
        if self.candidates and self.candidates[0].similarity >= self.threshold:
            return self.candidates[0]
        return None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Whether two faces are one person's, and all that the answer rests on.

    similarity: cosine. threshold: cosine. fmr: false-match rate at it, NaN if unmeasured.
    faces_a, faces_b: faces found in each photo, of which the largest was taken; faces_b is
    None where B is an enrolled person. face_a, face_b: the faces compared.
    """

    a: str
    b: str
    similarity: float
    threshold: float
    fmr: float
    faces_a: int
    faces_b: int | None
    face_a: Face
    face_b: Face | None

    @property
    def same(self) -> bool:
        """Whether the similarity reaches the threshold."""
        return self.similarity >= self.threshold


@dataclass(frozen=True)
class Rejection:
    """Why the enrolment gate refused a face: a stable ``code`` and a sentence."""

    code: str
    reason: str


@dataclass(frozen=True)
class Failure:
    """One item of a batch that failed, while the batch went on."""

    source: str
    code: str
    reason: str


@dataclass(frozen=True)
class EnrolResult:
    """What became of every photo of one enrolment.

    enrolled: (source, template id) of each new template. duplicates: sources whose
    content this person has already. rejected: source -> reasons of the gate.
    failed: photos that could not be read or held no face.
    overridden: source -> reasons that force set aside, for photos that were enrolled.
    """

    identity: Identity | None
    enrolled: tuple[tuple[str, int], ...] = ()
    duplicates: tuple[str, ...] = ()
    rejected: Mapping[str, tuple[Rejection, ...]] = field(default_factory=dict)
    failed: tuple[Failure, ...] = ()
    overridden: Mapping[str, tuple[Rejection, ...]] = field(default_factory=dict)
