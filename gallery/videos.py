"""Videos: frames at a chosen rate, and the people in them by their best shots.

Faces of successive frames are joined to tracks by where they are and whom they resemble; of
each track the best face stands for it. Imports the core and OpenCV.
"""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from facerec.errors import ImageError
from facerec.quality import Quality
from facerec.types import Face, FloatArray, RGBImage, ThresholdTable

DEFAULT_FPS = 2.0
FRAMES_AT_ONCE = 16
_PIXELS_AT_ONCE = 64_000_000

_SAME_PLACE_IOU = 0.3
_LOOSE_WITHOUT_TABLE = 0.3
_STRICT_WITHOUT_TABLE = 0.7
_FULL_SIZE_PX = 112.0
_FULL_SHARPNESS = 0.3
_MOST_OF_IT = 0.9


@dataclass(frozen=True, eq=False)
class Frame:
    """image: (H, W, 3) uint8 RGB, upright. t_s: seconds since the start."""

    t_s: float
    image: RGBImage


class Video:
    """Iterate over it for its frames, ``fps`` of them a second, or all if there are fewer.

    Raises ImageError for what is no video, has no frame, or larger ones than ``max_pixels``.
    damage: after the iteration, a sentence where it broke off early; else None. Once ``stop`` is
    set, the next frame is a CancelledError.
    """

    def __init__(
        self, path: Path, fps: float, max_pixels: int, stop: threading.Event | None = None
    ) -> None:
        self._path = path
        self._fps = fps
        self._max_pixels = max_pixels
        self._stop = stop or threading.Event()
        self.damage: str | None = None

    def __iter__(self) -> Iterator[Frame]:
        _refuse_playlists(self._path)
        with _plain_name(self._path) as name:
            capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
            try:
                if not capture.isOpened():
                    raise ImageError(
                        f"{self._path}: not a video that can be read, or a damaged one"
                    )
                self._check_size(capture)
                yield from self._frames(capture)
            except cv2.error as exc:
                raise ImageError(f"{self._path}: the video cannot be decoded: {exc}") from exc
            finally:
                capture.release()

    def _frames(self, capture: cv2.VideoCapture) -> Iterator[Frame]:
        rate = capture.get(cv2.CAP_PROP_FPS)
        rate = rate if math.isfinite(rate) and 0 < rate < 1000 else 25.0
        declared = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        grabbed, next_t_s, last_t_s = 0, 0.0, -1.0
        while capture.grab():
            if self._stop.is_set():
                raise CancelledError
            t_s = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if not t_s > last_t_s:  # some files do not say
                t_s = grabbed / rate
            grabbed, last_t_s = grabbed + 1, t_s
            if t_s < next_t_s - 0.5 / rate:
                continue
            next_t_s = max(next_t_s + 1 / self._fps, t_s)
            read, image = capture.retrieve()
            if read:
                yield Frame(t_s, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        if not grabbed:
            raise ImageError(f"{self._path}: no frame of this video could be decoded")
        if 0 < declared < 1e9 and grabbed < _MOST_OF_IT * declared:
            self.damage = (
                f"{self._path}: damaged or truncated: {grabbed} of {declared:.0f} frames could be "
                "decoded; the faces in these were looked at."
            )

    def _check_size(self, capture: cv2.VideoCapture) -> None:
        width = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        height = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > self._max_pixels:
            raise ImageError(
                f"{self._path}: {width}x{height} pixels a frame are more than the limit of "
                f"{self._max_pixels:,}; scale it down, or raise the setting max_pixels"
            )


def batches(frames: Iterable[Frame]) -> Iterator[list[Frame]]:
    """``frames`` in lists: enough for the pipeline to share work, and not too many for the
    memory."""
    batch: list[Frame] = []
    for frame in frames:
        batch.append(frame)
        height, width = frame.image.shape[:2]
        if len(batch) >= FRAMES_AT_ONCE or len(batch) * height * width >= _PIXELS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


@dataclass(frozen=True, eq=False)
class Shot:
    """One face of one frame. rank: the higher, the better it stands for the person."""

    face: Face
    t_s: float
    rank: tuple[bool, float]


@dataclass(eq=False)
class Track:
    """One person, as far as one can tell. best: index of the best shot that was put to it."""

    best: Shot
    last_box: FloatArray
    last_embedding: FloatArray
    last_frame: int
    frames: int = 1


@dataclass(frozen=True)
class Likeness:
    """Cosines: from ``loose`` on, two faces at one place are one person; from ``strict`` on,
    wherever they are."""

    loose: float
    strict: float

    @staticmethod
    def of(table: ThresholdTable | None) -> Likeness:
        """From a pack's thresholds: its highest false-match rate, and its lowest."""
        if table is None:
            return Likeness(_LOOSE_WITHOUT_TABLE, _STRICT_WITHOUT_TABLE)
        return Likeness(table.cosine[0], table.cosine[-1])


@dataclass(eq=False)
class Tracks:
    """The tracks of a video so far, in the order in which they begin."""

    likeness: Likeness
    all: list[Track] = field(default_factory=list)
    _frame: int = -1

    def add(self, shots: Sequence[Shot]) -> list[Track]:
        """Put the faces of the next frame to tracks, each to another; the track of each."""
        self._frame += 1
        chosen: dict[int, int] = {}  # shot -> track
        for _, shot, track in sorted(self._candidates(shots), reverse=True):
            if shot not in chosen and track not in chosen.values():
                chosen[shot] = track
        return [self._put(shot, chosen.get(i)) for i, shot in enumerate(shots)]

    def _candidates(self, shots: Sequence[Shot]) -> Iterator[tuple[float, int, int]]:
        """(how well they go together, shot, track) of those that do at all."""
        if not shots or not self.all:
            return
        probes = np.stack([shot.face.embedding for shot in shots])
        best = probes @ np.stack([track.best.face.embedding for track in self.all]).T
        last = probes @ np.stack([track.last_embedding for track in self.all]).T
        cosines = np.maximum(best, last)
        for i, shot in enumerate(shots):
            for j, track in enumerate(self.all):
                cosine = float(cosines[i, j])
                place = 0.0
                if track.last_frame == self._frame - 1:
                    place = iou(shot.face.box_xyxy, track.last_box)
                is_there = place >= _SAME_PLACE_IOU and cosine >= self.likeness.loose
                if is_there or cosine >= self.likeness.strict:
                    yield place + cosine, i, j

    def _put(self, shot: Shot, track_index: int | None) -> Track:
        if track_index is None:
            track = Track(shot, shot.face.box_xyxy, shot.face.embedding, self._frame)
            self.all.append(track)
            return track
        track = self.all[track_index]
        track.last_box, track.last_embedding = shot.face.box_xyxy, shot.face.embedding
        track.last_frame = self._frame
        track.frames += 1
        if shot.rank > track.best.rank:
            track.best = shot
        return track


def shot_quality(quality: Quality) -> float:
    """How well a face that was measured would stand for its person, in [0, 1].

    The product of its detector score, the cosines of yaw and pitch, its size up to the 112
    pixels of a template, and its sharpness up to that of a crisp photo.
    """
    turned = math.cos(math.radians(quality.pose.yaw_deg)) * math.cos(
        math.radians(quality.pose.pitch_deg)
    )
    size = min(1.0, quality.size_px / _FULL_SIZE_PX)
    sharp = min(1.0, quality.sharpness / _FULL_SHARPNESS)
    return max(0.0, quality.det_score * turned * size * sharp)


def iou(a_xyxy: FloatArray, b_xyxy: FloatArray) -> float:
    """Intersection over union of two boxes (4,)."""
    low = np.maximum(a_xyxy[:2], b_xyxy[:2])
    high = np.minimum(a_xyxy[2:], b_xyxy[2:])
    overlap = float(np.clip(high - low, 0, None).prod())
    areas: NDArray[np.float32] = (a_xyxy[2:] - a_xyxy[:2]).prod() + (b_xyxy[2:] - b_xyxy[:2]).prod()
    union = float(areas) - overlap
    return overlap / union if union > 0 else 0.0


def _refuse_playlists(path: Path) -> None:
    """A playlist makes the decoder open other files and addresses; no video is plain text."""
    try:
        with path.open("rb") as stream:
            head = stream.read(256)
    except OSError as exc:
        raise ImageError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    if not head:
        raise ImageError(f"{path}: empty (0 bytes)")
    if all(byte in b"\t\r\n\xef\xbb\xbf" or 32 <= byte < 127 for byte in head):
        raise ImageError(f"{path}: not a video but text, such as a playlist")


@contextmanager
def _plain_name(path: Path) -> Iterator[str]:
    """A name that OpenCV takes: without per cent signs, which it counts up, or odd bytes."""
    name = str(path)
    if name.isprintable() and name.isascii() and "%" not in name:
        yield name
        return
    with tempfile.TemporaryDirectory(prefix="facerec-") as folder:
        ending = path.suffix.encode("ascii", "ignore").decode().replace("%", "")
        link = Path(folder) / f"video{ending}"
        link.symlink_to(path.absolute())
        yield str(link)
