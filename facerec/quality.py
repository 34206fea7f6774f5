"""The enrolment gate: which faces are good enough to stand for a person.

One poor template draws every later search towards it, so a face is refused, with a
reason, rather than kept. Imports the core, NumPy and OpenCV.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from facerec.alignment import align
from facerec.types import Face, FloatArray, Rejection, RGBImage

_HEAD_MM = np.array(
    [[-32, -36, 0], [32, -36, 0], [0, 4, -28], [-25, 38, 2], [25, 38, 2]], dtype=np.float64
)
"""An average head's eyes, nose tip and mouth corners: x right, y down, z away from the camera."""

_CHIP = 112


@dataclass(frozen=True)
class Pose:
    """Where a face looks, degrees: yaw to the image's right, pitch down, roll clockwise."""

    yaw_deg: float
    pitch_deg: float
    roll_deg: float


@dataclass(frozen=True)
class Quality:
    """What the gate measured. size_px: shorter side of the box. sharpness: see ``sharpness``."""

    size_px: float
    det_score: float
    pose: Pose
    sharpness: float


@dataclass(frozen=True)
class Gate:
    """Limits of enrolment. The defaults keep 98 % of LFW's photos; see benchmarks/gate.py.

    min_size_px: shorter side of the face's box. min_score: of the detector.
    max_yaw_deg, max_pitch_deg: either way. min_sharpness: see :func:`sharpness`.
    """

    min_size_px: float = 40.0
    min_score: float = 0.6
    max_yaw_deg: float = 50.0
    max_pitch_deg: float = 40.0
    min_sharpness: float = 0.12

    def check(self, image: RGBImage, face: Face) -> tuple[Rejection, ...]:
        """Every reason against enrolling ``face`` of ``image``; empty if there is none.

        Codes: too_small, low_score, extreme_pose, blurred.
        """
        q = measure(image, face)
        found = []
        if q.size_px < self.min_size_px:
            found.append(
                Rejection(
                    "too_small",
                    f"The face is {q.size_px:.0f} pixels wide; {self.min_size_px:.0f} are needed.",
                )
            )
        if q.det_score < self.min_score:
            found.append(
                Rejection(
                    "low_score",
                    f"The detector is not sure that this is a face ({q.det_score:.2f}; "
                    f"{self.min_score:.2f} is needed).",
                )
            )
        if abs(q.pose.yaw_deg) > self.max_yaw_deg or abs(q.pose.pitch_deg) > self.max_pitch_deg:
            found.append(
                Rejection(
                    "extreme_pose",
                    f"The face looks too far away from the camera (about {q.pose.yaw_deg:+.0f}° "
                    f"sideways, {q.pose.pitch_deg:+.0f}° up or down).",
                )
            )
        if q.sharpness < self.min_sharpness:
            found.append(
                Rejection(
                    "blurred",
                    f"The face is blurred (sharpness {q.sharpness:.3f}; "
                    f"{self.min_sharpness:.3f} is needed).",
                )
            )
        return tuple(found)


def measure(image: RGBImage, face: Face) -> Quality:
    """What the gate looks at, for one face of ``image`` (H, W, 3) uint8 RGB."""
    size = float(min(face.box_xyxy[2:] - face.box_xyxy[:2]))
    [chip] = align(image, face.landmarks[None], "arcface-112", _CHIP)
    return Quality(size, face.det_score, head_pose(face.landmarks), sharpness(chip))


def head_pose(landmarks: FloatArray) -> Pose:
    """Pose from five landmarks (5, 2), pixels, xy.

    Scaled orthographic projection of an average head, fitted by least squares (the first
    step of POS, DeMenthon and Davis 1995): good to about ten degrees, which a gate needs.
    """
    points = landmarks.astype(np.float64)
    projection, *_ = np.linalg.lstsq(
        _HEAD_MM - _HEAD_MM.mean(0), points - points.mean(0), rcond=None
    )
    rows: NDArray[np.float64] = projection.T  # (2, 3): image x and y over head x, y, z
    x_axis = rows[0] / max(float(np.linalg.norm(rows[0])), 1e-9)
    y_axis = rows[1] - (rows[1] @ x_axis) * x_axis
    y_axis /= max(float(np.linalg.norm(y_axis)), 1e-9)
    depth = np.cross(x_axis, y_axis)
    # R = Rz(roll) Ry(yaw) Rx(pitch); its first column has no pitch in it.
    roll = np.arctan2(y_axis[0], x_axis[0])
    upright_y = np.cos(roll) * y_axis - np.sin(roll) * x_axis
    yaw = np.arctan2(depth[0], np.hypot(x_axis[0], y_axis[0]))
    pitch = np.arctan2(-upright_y[2], upright_y[1])
    yaw_deg, pitch_deg, roll_deg = (float(v) for v in np.degrees((yaw, pitch, roll)))
    return Pose(yaw_deg, pitch_deg, roll_deg)


def sharpness(chip: RGBImage) -> float:
    """How much fine detail an aligned 112-pixel chip (112, 112, 3) uint8 RGB has.

    The standard deviation of the Laplacian over the face, divided by that of the grey
    values, so that a dim or flat photo is not taken for a blurred one; 0 for a flat chip.
    """
    grey = cv2.cvtColor(chip, cv2.COLOR_RGB2GRAY).astype(np.float32)[24:104, 20:92]
    contrast = float(grey.std())
    if contrast < 1.0:
        return 0.0
    return float(cv2.Laplacian(grey, cv2.CV_32F).std()) / contrast
