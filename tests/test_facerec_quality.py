"""The gate: pose against known rotations, sharpness against known blur, reasons for refusal."""

from __future__ import annotations

import dataclasses
import itertools
import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facerec.alignment import align
from facerec.pipeline import Pipeline
from facerec.quality import _HEAD_MM, Gate, head_pose, measure, sharpness
from facerec.types import Face, Rejection

NO_LIMITS = Gate(min_size_px=0, min_score=0, max_yaw_deg=180, max_pitch_deg=180, min_sharpness=0)


@pytest.fixture(scope="module")
def group_faces(pipeline: Pipeline, group_photo: np.ndarray) -> tuple[Face, ...]:
    [faces] = pipeline.extract([group_photo])
    return faces


@pytest.fixture(scope="module")
def astronaut_face(pipeline: Pipeline, astronaut: np.ndarray) -> Face:
    [[face, *_]] = pipeline.extract([astronaut])
    return face


def _codes(rejections: tuple[Rejection, ...]) -> set[str]:
    return {rejection.code for rejection in rejections}


# Pose


def _turned(points: np.ndarray, yaw_deg: float, pitch_deg: float, roll_deg: float) -> np.ndarray:
    """A head (x right, y down, z away) nods by ``pitch`` (chin down), turns by ``yaw`` (nose to
    the image's right), and is tilted by ``roll`` (clockwise on the screen); one after the other,
    around the camera's axes."""

    def rotate(points: np.ndarray, a: int, b: int, degrees: float) -> np.ndarray:
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        out = points.copy()
        out[:, a] = c * points[:, a] - s * points[:, b]
        out[:, b] = s * points[:, a] + c * points[:, b]
        return out

    nodded = rotate(points, 1, 2, pitch_deg)  # y down towards z away: the nose, at -z, goes down
    aside = rotate(nodded, 0, 2, yaw_deg)
    return rotate(aside, 0, 1, roll_deg)  # x right towards y down: clockwise


_yaw = st.floats(-80, 80)
_pitch = st.floats(-80, 80)
_roll = st.floats(-175, 175)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    yaw=_yaw,
    pitch=_pitch,
    roll=_roll,
    scale=st.floats(0.05, 20),
    x=st.floats(-1000, 1000),
    y=st.floats(-1000, 1000),
)
def test_pose_is_exact_under_scaled_orthographic_projection(
    yaw: float, pitch: float, roll: float, scale: float, x: float, y: float
) -> None:
    landmarks = _turned(_HEAD_MM, yaw, pitch, roll)[:, :2] * scale + (x, y)
    pose = head_pose(landmarks)
    assert pose.yaw_deg == pytest.approx(yaw, abs=1e-3)
    assert pose.pitch_deg == pytest.approx(pitch, abs=1e-3)
    assert pose.roll_deg == pytest.approx(roll, abs=1e-3)


def test_the_signs_are_those_of_the_documentation() -> None:
    """By where the nose goes, without any rotation matrix."""
    frontal = _HEAD_MM[:, :2] + 200
    for shift, check in [
        ((12, 0), lambda p: p.yaw_deg > 10),
        ((-12, 0), lambda p: p.yaw_deg < -10),
        ((0, 12), lambda p: p.pitch_deg > 10),
        ((0, -12), lambda p: p.pitch_deg < -10),
    ]:
        landmarks = frontal.copy()
        landmarks[2] += shift
        assert check(head_pose(landmarks)), shift
    clockwise = cv2.getRotationMatrix2D((200, 200), -25, 1)  # OpenCV's positive is the other way
    landmarks = frontal @ clockwise[:, :2].T + clockwise[:, 2]
    assert landmarks[1, 1] > landmarks[0, 1]
    assert head_pose(landmarks).roll_deg == pytest.approx(25, abs=0.1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    yaw=st.floats(-40, 40),
    pitch=st.floats(-30, 30),
    roll=st.floats(-30, 30),
    distance_mm=st.floats(600, 3000),
)
def test_pose_is_near_under_perspective(
    yaw: float, pitch: float, roll: float, distance_mm: float
) -> None:
    """A pinhole camera at arm's length and further."""
    head = _turned(_HEAD_MM, yaw, pitch, roll)
    landmarks = 1500 * head[:, :2] / (distance_mm + head[:, 2:]) + (640, 360)
    pose = head_pose(landmarks)
    assert pose.yaw_deg == pytest.approx(yaw, abs=5)
    assert pose.pitch_deg == pytest.approx(pitch, abs=5)
    assert pose.roll_deg == pytest.approx(roll, abs=5)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.floats(-1e4, 1e4), min_size=10, max_size=10))
def test_any_landmarks_have_a_finite_pose(values: list[float]) -> None:
    pose = head_pose(np.array(values).reshape(5, 2))
    assert all(math.isfinite(v) for v in dataclasses.astuple(pose))


def test_the_mirror_image_looks_the_other_way(
    group_faces: tuple[Face, ...], group_photo: np.ndarray
) -> None:
    for face in group_faces:
        mirrored = face.landmarks[[1, 0, 2, 4, 3]] * (-1, 1) + (group_photo.shape[1], 0)
        a, b = head_pose(face.landmarks), head_pose(mirrored)
        assert b.yaw_deg == pytest.approx(-a.yaw_deg, abs=1e-2)
        assert b.pitch_deg == pytest.approx(a.pitch_deg, abs=1e-2)
        assert b.roll_deg == pytest.approx(-a.roll_deg, abs=1e-2)


def test_a_tilted_photo_is_tilted_by_that_much(
    pipeline: Pipeline, astronaut: np.ndarray, astronaut_face: Face
) -> None:
    upright = head_pose(astronaut_face.landmarks)
    for degrees in (-20, 20):
        turn = cv2.getRotationMatrix2D((225, 120), -degrees, 1)
        [[face, *_]] = pipeline.extract([cv2.warpAffine(astronaut, turn, (512, 512))])
        found = head_pose(face.landmarks)
        assert found.roll_deg - upright.roll_deg == pytest.approx(degrees, abs=6)
        assert found.yaw_deg == pytest.approx(upright.yaw_deg, abs=15)


# Sharpness


def _blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma) if sigma else image


def test_blur_lowers_sharpness_every_time(
    group_photo: np.ndarray, group_faces: tuple[Face, ...]
) -> None:
    for face in group_faces:
        values = [
            measure(_blurred(group_photo, sigma), face).sharpness for sigma in (0, 1, 2, 3, 4, 6)
        ]
        assert all(b < a for a, b in itertools.pairwise(values)), values
        assert values[-1] < values[0] / 2


@pytest.mark.parametrize(("gain", "offset"), [(0.5, 0), (0.5, 60), (0.8, 40)])
def test_neither_light_nor_contrast_is_sharpness(
    group_photo: np.ndarray, group_faces: tuple[Face, ...], gain: float, offset: float
) -> None:
    changed = np.rint(group_photo * gain + offset).astype(np.uint8)
    for face in group_faces:
        expected = measure(group_photo, face).sharpness
        assert measure(changed, face).sharpness == pytest.approx(expected, rel=0.05)


def test_a_chip_without_contrast_has_no_sharpness() -> None:
    assert sharpness(np.full((112, 112, 3), 90, np.uint8)) == 0.0


def test_sharpness_is_that_of_the_face_and_not_of_what_is_around(
    group_photo: np.ndarray, group_faces: tuple[Face, ...]
) -> None:
    face = group_faces[0]
    [chip] = align(group_photo, face.landmarks[None], "arcface-112", 112)
    noisy = np.random.default_rng(0).integers(0, 256, chip.shape, dtype=np.uint8)
    noisy[12:108, 12:100] = chip[12:108, 12:100]
    assert sharpness(noisy) == pytest.approx(sharpness(chip), rel=0.05)


# The gate


def test_good_faces_pass(
    group_photo: np.ndarray,
    group_faces: tuple[Face, ...],
    astronaut: np.ndarray,
    astronaut_face: Face,
) -> None:
    assert Gate().check(astronaut, astronaut_face) == ()
    refused = [found for face in group_faces if (found := Gate().check(group_photo, face))]
    assert len(refused) <= 1  # one of the six looks at her neighbour
    for rejections in refused:
        assert _codes(rejections) == {"extreme_pose"}


def test_a_small_face_is_refused(
    pipeline: Pipeline, group_photo: np.ndarray, group_faces: tuple[Face, ...]
) -> None:
    small = cv2.resize(group_photo, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    [faces] = pipeline.extract([small])
    assert faces
    for face in faces:
        assert "too_small" in _codes(Gate().check(small, face))
    large_enough = Gate(min_size_px=1)
    assert "too_small" not in _codes(large_enough.check(small, faces[0]))


def test_size_is_the_shorter_side(astronaut: np.ndarray, astronaut_face: Face) -> None:
    wide = dataclasses.replace(astronaut_face, box_xyxy=np.array([100, 100, 300, 130]))
    assert measure(astronaut, wide).size_px == 30


def test_a_blurred_face_is_refused(astronaut: np.ndarray, astronaut_face: Face) -> None:
    blurred = _blurred(astronaut, 5)
    assert _codes(Gate().check(blurred, astronaut_face)) == {"blurred"}


def test_a_face_the_detector_doubts_is_refused(
    pipeline: Pipeline, astronaut: np.ndarray, astronaut_face: Face
) -> None:
    """A head disappears behind noise, until the detector finds it but no longer trusts it."""
    gate = dataclasses.replace(NO_LIMITS, min_score=0.85)
    noise = np.random.default_rng(0).normal(0, 1, astronaut.shape)
    scores = [astronaut_face.det_score]
    for strength in range(20, 200, 20):
        noisy = np.clip(astronaut + noise * strength, 0, 255).astype(np.uint8)
        [faces] = pipeline.extract([noisy])
        if not faces:
            break
        scores.append(faces[0].det_score)
        expected = {"low_score"} if faces[0].det_score < 0.85 else set()
        assert _codes(gate.check(noisy, faces[0])) == expected
    assert min(scores) < 0.85 < max(scores)


def test_a_face_that_looks_away_is_refused(astronaut: np.ndarray, astronaut_face: Face) -> None:
    for yaw, pitch, refused in [
        (0, 0, False),
        (25, 15, False),
        (-25, -15, False),
        (75, 0, True),
        (-75, 0, True),
        (0, 65, True),
        (0, -65, True),
    ]:
        points = _turned(_HEAD_MM, yaw, pitch, 0)[:, :2] + (225, 120)
        face = dataclasses.replace(astronaut_face, landmarks=points)
        gate = dataclasses.replace(Gate(), min_sharpness=0)
        assert _codes(gate.check(astronaut, face)) == ({"extreme_pose"} if refused else set())


def test_a_tilted_head_is_no_reason(astronaut: np.ndarray, astronaut_face: Face) -> None:
    """Alignment turns it upright."""
    points = _turned(_HEAD_MM, 0, 0, 80)[:, :2] + (225, 120)
    face = dataclasses.replace(astronaut_face, landmarks=points)
    assert "extreme_pose" not in _codes(Gate().check(astronaut, face))


def test_all_reasons_are_given_at_once_as_sentences(
    astronaut: np.ndarray, astronaut_face: Face
) -> None:
    points = _turned(_HEAD_MM * 0.6, 80, 0, 0)[:, :2] + (225, 120)
    face = Face(np.array([215, 110, 235, 130], np.float32), points, 0.31, astronaut_face.embedding)
    rejections = Gate().check(_blurred(astronaut, 8), face)
    assert _codes(rejections) == {"too_small", "low_score", "extreme_pose", "blurred"}
    for rejection in rejections:
        assert rejection.reason[0].isupper()
        assert rejection.reason.endswith(".")
        assert any(c.isdigit() for c in rejection.reason)
        assert "nan" not in rejection.reason


def test_a_gate_without_limits_refuses_nothing(astronaut: np.ndarray, astronaut_face: Face) -> None:
    points = _turned(_HEAD_MM / 10, 80, 0, 0)[:, :2] + (-5000, 120)
    face = dataclasses.replace(astronaut_face, landmarks=points)
    assert NO_LIMITS.check(astronaut, face) == ()
