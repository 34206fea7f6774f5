"""Alignment: the transform against Umeyama's, the chips against plain warps, the loose crop."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import SimilarityTransform

from facerec.alignment import TEMPLATES, align, find_template, loose_crop, similarity_transform
from facerec.errors import ConfigError
from facerec.pipeline import Pipeline
from facerec.types import Face

ARCFACE = TEMPLATES["arcface-112"]
DLIB = TEMPLATES["dlib-150"]

# What insightface (utils/face_align.py) and DESIGN's source say, typed in a second time.
ARCFACE_POINTS = [
    [38.2946, 51.6963],
    [73.5318, 51.5014],
    [56.0252, 71.7366],
    [41.5493, 92.3655],
    [70.7299, 92.2041],
]

angles = st.floats(-math.pi, math.pi)
scales = st.floats(0.01, 50)
shifts = st.floats(-5000, 5000)
noise = st.lists(st.floats(-20, 20), min_size=10, max_size=10).map(
    lambda v: np.array(v).reshape(5, 2)
)
templates = st.sampled_from(sorted(TEMPLATES))


def _similarity(angle: float, scale: float, x: float, y: float) -> np.ndarray:
    """(2, 3): rotation by ``angle``, then ``scale``, then a shift."""
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    return np.array([[c, -s, x], [s, c, y]])


def _apply(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ transform[:, :2].T + transform[:, 2]


def _inverse(transform: np.ndarray) -> np.ndarray:
    linear = np.linalg.inv(transform[:, :2])
    return np.column_stack([linear, -linear @ transform[:, 2]])


# Templates


def test_the_arcface_template_is_insightfaces() -> None:
    from insightface.utils.face_align import arcface_dst

    np.testing.assert_allclose(ARCFACE.points, arcface_dst, atol=1e-4)
    np.testing.assert_allclose(ARCFACE.points, ARCFACE_POINTS)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_templates_are_upright_faces_inside_their_chip(name: str) -> None:
    template = find_template(name)
    points = template.scaled_to(template.size)
    assert template.name == name
    assert ((points > 0) & (points < template.size)).all()
    left_eye, right_eye, nose, left_mouth, right_mouth = points
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
    np.testing.assert_allclose(template.scaled_to(3 * template.size), 3 * points)


def test_an_unknown_template_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'mtcnn'.*arcface-112, dlib-150"):
        find_template("mtcnn")


# The transform


@settings(max_examples=200, deadline=None, derandomize=True)
@given(angle=angles, scale=scales, x=shifts, y=shifts, name=templates)
def test_an_exact_similarity_is_recovered(
    angle: float, scale: float, x: float, y: float, name: str
) -> None:
    points = np.array(TEMPLATES[name].points)
    expected = _similarity(angle, scale, x, y)
    landmarks = _apply(_inverse(expected), points)
    found = similarity_transform(landmarks, points)
    assert found.shape == (2, 3)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found[:, :2], expected[:, :2], atol=1e-8 * scale)
    np.testing.assert_allclose(_apply(found, landmarks), points, atol=1e-6)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(angle=angles, scale=st.floats(0.1, 10), x=shifts, y=shifts, noise=noise)
def test_noisy_landmarks_give_what_umeyama_gives(
    angle: float, scale: float, x: float, y: float, noise: np.ndarray
) -> None:
    """scikit-image solves it by singular values; the residuals must agree, and the matrices."""
    points = np.array(ARCFACE.points)
    landmarks = _apply(_similarity(angle, scale, x, y), points) + noise
    oracle = SimilarityTransform.from_estimate(landmarks, points)
    assert oracle
    np.testing.assert_allclose(
        similarity_transform(landmarks, points), oracle.params[:2], rtol=1e-6, atol=1e-6
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(noise=noise, angle=angles, scale=scales, x=shifts, y=shifts)
def test_no_other_similarity_fits_better(
    noise: np.ndarray, angle: float, scale: float, x: float, y: float
) -> None:
    points = np.array(ARCFACE.points)
    landmarks = points * 2 + 30 + noise
    found = similarity_transform(landmarks, points)

    def cost(transform: np.ndarray) -> float:
        return float(((_apply(transform, landmarks) - points) ** 2).sum())

    best = cost(found)
    for amount in (1e-4, 1e-2):
        step = _similarity(angle * amount, 1 + (scale - 1) * amount / 50, x * amount, y * amount)
        turned = np.column_stack([step[:, :2] @ found[:, :2], _apply(step, found[:, 2])])
        assert cost(turned) >= best * (1 - 1e-9)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(noise=noise, mirrored=st.booleans(), angle=angles)
def test_it_never_reflects_and_never_shears(
    noise: np.ndarray, mirrored: bool, angle: float
) -> None:
    points = np.array(ARCFACE.points)
    landmarks = _apply(_similarity(angle, 1, 0, 0), points * ((-1, 1) if mirrored else (1, 1)))
    linear = similarity_transform(landmarks + noise, points)[:, :2]
    assert np.linalg.det(linear) >= 0
    np.testing.assert_allclose(
        linear @ linear.T,
        np.linalg.det(linear) * np.eye(2),
        atol=1e-9 * max(1, np.abs(linear).max()),
    )


def test_a_batch_of_any_shape_equals_one_by_one() -> None:
    rng = np.random.default_rng(0)
    landmarks = rng.uniform(0, 500, (3, 4, 5, 2))
    points = DLIB.scaled_to(150)
    together = similarity_transform(landmarks, points)
    assert together.shape == (3, 4, 2, 3)
    for i in np.ndindex(3, 4):
        np.testing.assert_allclose(
            together[i], similarity_transform(landmarks[i], points), rtol=1e-12
        )
    assert similarity_transform(np.zeros((0, 5, 2)), points).shape == (0, 2, 3)


@pytest.mark.parametrize(
    "landmarks",
    [
        np.zeros((5, 2)),
        np.full((5, 2), 17.25),
        np.full((5, 2), np.nan),
        np.full((5, 2), np.inf),
        np.array([[1, 2], [3, 4], [5, np.nan], [7, 8], [9, 10]]),
        np.array([[1, 2], [3, 4], [5, 6], [7, np.inf], [9, 10]]),
    ],
)
def test_degenerate_landmarks_are_refused(landmarks: np.ndarray) -> None:
    points = ARCFACE.scaled_to(112)
    for value in (landmarks, np.stack([np.array(ARCFACE_POINTS), landmarks])):
        with (
            np.errstate(invalid="ignore"),
            pytest.raises(ValueError, match="in one point, or not finite"),
        ):
            similarity_transform(value, points)


# Chips


def _landmarks_for(name: str, size: int, transform: np.ndarray) -> np.ndarray:
    """(1, 5, 2) float32: where the landmarks lie if ``transform`` takes the image to the chip."""
    points = find_template(name).scaled_to(size)
    return _apply(_inverse(transform), points)[None].astype(np.float32)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize(("scale", "degrees"), [(0.6, 10), (0.9, -35), (1.0, 0), (2.5, 170)])
def test_small_faces_are_warped_plainly(
    astronaut: np.ndarray, name: str, scale: float, degrees: float
) -> None:
    size = find_template(name).size
    centre = np.array([225.0, 115.0])
    transform = _similarity(math.radians(degrees), scale, 0, 0)
    transform[:, 2] = size / 2 - transform[:, :2] @ centre
    [chip] = align(astronaut, _landmarks_for(name, size, transform), name, size)
    assert chip.shape == (size, size, 3)
    expected = cv2.warpAffine(astronaut, transform, (size, size), flags=cv2.INTER_LINEAR)
    assert np.abs(chip.astype(int) - expected).max() <= 1


def test_landmarks_land_on_the_template() -> None:
    """Five dots in an image; their centroids in the chip are the template's points."""
    size = 112
    transform = _similarity(math.radians(20), 0.7, 25, -12)
    [landmarks] = _landmarks_for("arcface-112", size, transform)
    image = np.zeros((400, 400, 3), np.uint8)
    y, x = np.mgrid[:400, :400]
    for k, point in enumerate(landmarks):
        dot = np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / 8)
        image[..., k % 3] = np.maximum(image[..., k % 3], (250 * dot).astype(np.uint8))
    [chip] = align(image, landmarks[None], "arcface-112", size)
    rows, columns = np.mgrid[:size, :size]
    for k, (px, py) in enumerate(ARCFACE.points):
        near = (np.abs(columns - px) < 6) & (np.abs(rows - py) < 6)
        weight = chip[..., k % 3].astype(float) * near
        found = (weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()
        np.testing.assert_allclose(found, (px, py), atol=0.25)


@pytest.mark.parametrize("factor", [3, 4, 6, 8])
def test_a_large_face_gives_the_chip_of_the_small_one(
    astronaut: np.ndarray, pipeline: Pipeline, factor: int
) -> None:
    """Enlarged, then aligned, is aligned; position and grey values must not drift."""
    [[face, *_]] = pipeline.extract([astronaut])
    head = astronaut[40:200, 150:310]
    in_head = face.landmarks - (150, 40)
    large = cv2.resize(head, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    [expected] = align(head, in_head[None], "arcface-112", 112)
    in_large = ((in_head + 0.5) * factor - 0.5).astype(np.float32)
    [chip] = align(large, in_large[None], "arcface-112", 112)
    inside = np.s_[16:-16, 16:-16]
    error = np.abs(chip[inside].astype(int) - expected[inside])
    shifted = np.abs(np.roll(chip, 1, axis=1)[inside].astype(int) - expected[inside])
    assert error.mean() < 3
    assert error.mean() < shifted.mean() / 2
    chips = [align(i, p[None], "dlib-150", 150)[0] for i, p in ((head, in_head), (large, in_large))]
    a, b = pipeline.embedder.embed(np.stack(chips))
    assert a @ b > 0.995


@pytest.mark.parametrize("scale", [0.45, 0.3, 0.21, 0.1, 0.04])
def test_a_large_face_is_averaged_and_not_sampled(scale: float) -> None:
    """Fine noise must average out; bilinear sampling alone lets nearly all of it through."""
    size = 112
    side = int(size / scale) + 40
    rng = np.random.default_rng(1)
    smooth = np.tile(np.linspace(60, 190, side), (side, 1))
    noisy = np.clip(smooth + rng.normal(0, 25, (side, side)), 0, 255).astype(np.uint8)
    image = np.repeat(noisy[..., None], 3, axis=2)
    transform = _similarity(math.radians(7), scale, 0, 0)
    transform[:, 2] = size / 2 - transform[:, :2] @ np.array([side / 2, side / 2])
    [chip] = align(image, _landmarks_for("arcface-112", size, transform), "arcface-112", size)
    columns, rows = np.meshgrid(np.arange(size), np.arange(size))
    x = _apply(_inverse(transform), np.stack([columns, rows], -1).reshape(-1, 2).astype(float))
    expected = np.interp(x[:, 0], np.arange(side), smooth[0]).reshape(size, size)
    plain = cv2.warpAffine(image, transform, (size, size), flags=cv2.INTER_LINEAR)
    inside = np.s_[12:-12, 12:-12, 0]
    error = (chip.astype(float)[inside] - expected[inside[:2]]).std()
    unfiltered = (plain.astype(float)[inside] - expected[inside[:2]]).std()
    assert error < 0.75 * unfiltered
    assert error < 25 * 2.2 * scale + 0.7  # the mean over 1 / scale^2 pixels, and rounding
    assert abs((chip.astype(float)[inside] - expected[inside[:2]]).mean()) < 1  # no drift


def test_outside_of_the_image_is_black() -> None:
    image = np.full((512, 512, 3), 200, np.uint8)
    for scale in (0.9, 0.2):
        transform = _similarity(0.2, scale, 0, 0)
        for corner in ((0, 0), (512, 512), (0, 512), (512, 0)):
            transform[:, 2] = 56 - transform[:, :2] @ np.array(corner)
            points = _landmarks_for("arcface-112", 112, transform)
            [chip] = align(image, points, "arcface-112", 112)
            seen = cv2.warpAffine(np.full((512, 512), 255, np.uint8), transform, (112, 112))
            margin = np.ones((9, 9), np.uint8)
            outside = cv2.dilate(seen, margin) == 0
            assert outside.mean() > 0.2
            assert (chip[outside] == 0).all()
            inside = cv2.erode(seen, margin) == 255
            assert (chip[inside] == 200).all()


@pytest.mark.parametrize("scale", [0.9, 0.2, 0.02])
@pytest.mark.parametrize("where", [(-1e5, 0), (1e6, 1e6), (0, -3e4), (-2000, -2000)])
def test_a_face_wholly_outside_is_a_black_chip(
    astronaut: np.ndarray, scale: float, where: tuple[float, float]
) -> None:
    transform = _similarity(0, scale, 0, 0)
    transform[:, 2] = 56 - scale * np.array(where)
    points = _landmarks_for("arcface-112", 112, transform)
    far = scale * np.linalg.norm(where) > 120 + 512 * scale
    [chip] = align(astronaut, points, "arcface-112", 112)
    assert not far or not chip.any()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    landmarks=st.lists(st.floats(-2000, 2000, width=32), min_size=10, max_size=10),
)
def test_any_landmarks_in_any_image_give_a_chip(
    height: int, width: int, landmarks: list[float]
) -> None:
    points = np.array(landmarks, np.float32).reshape(1, 5, 2)
    if np.ptp(points, axis=1).max() == 0:
        return
    image = np.full((height, width, 3), 200, np.uint8)
    chips = align(image, points, "dlib-150", 64)
    assert chips.shape == (1, 64, 64, 3)
    assert chips.max() <= 200


def test_landmarks_whose_best_scale_is_zero_give_a_chip() -> None:
    """A square's corners against its mirror image: no similarity is better than a point."""
    template = np.array(ARCFACE.points)
    w = (template - template.mean(0)) @ (1, 1j)
    # z with sum(conj(z) w) = 0, so that the least-squares scale is 0.
    z = np.array([w[1], -w[0], 0, 0, 0]).conj()
    z -= z.mean()
    z = z - w * (np.vdot(w, z) / np.vdot(w, w))
    landmarks = np.stack([z.real, z.imag], 1)[None] + 100
    image = np.full((200, 200, 3), 255, np.uint8)
    assert align(image, landmarks, "arcface-112", 112).shape == (1, 112, 112, 3)


def test_many_faces_equal_one_by_one_and_none_is_an_empty_array(
    group_photo: np.ndarray, pipeline: Pipeline
) -> None:
    [faces] = pipeline.extract([group_photo])
    landmarks = np.stack([face.landmarks for face in faces])
    for template in TEMPLATES.values():
        together = align(group_photo, landmarks, template.name, template.size)
        assert together.shape == (6, template.size, template.size, 3)
        for chip, points in zip(together, landmarks, strict=True):
            [alone] = align(group_photo, points[None], template.name, template.size)
            np.testing.assert_array_equal(chip, alone)
    assert align(group_photo, landmarks[:0], "dlib-150", 150).shape == (0, 150, 150, 3)


@pytest.mark.parametrize("shape", [(40, 32_767), (32_767, 40)])
def test_the_longest_side_that_load_image_lets_through(shape: tuple[int, int]) -> None:
    """A face at the far end of a strip, at the limit of OpenCV's addresses."""
    image = np.full((*shape, 3), 200, np.uint8)
    centre = np.array([shape[1], shape[0]]) - 20.0
    for scale in (0.8, 0.3):
        transform = _similarity(0, scale, 0, 0)
        transform[:, 2] = 56 - scale * centre
        points = _landmarks_for("arcface-112", 112, transform)
        [chip] = align(image, points, "arcface-112", 112)
        assert (chip[56, 56] == 200).all()


# The loose crop


def _embedding_from_crop(pipeline: Pipeline, crop: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    contract = pipeline.contract
    chips = align(crop, landmarks[None], contract.template, contract.input_size)
    return pipeline.embedder.embed(chips)[0]


@pytest.fixture(scope="module")
def faces(group_photo: np.ndarray, pipeline: Pipeline) -> tuple[Face, ...]:
    [found] = pipeline.extract([group_photo])
    assert len(found) == 6
    return found


def test_a_crop_re_embeds_to_nearly_the_same(
    group_photo: np.ndarray, pipeline: Pipeline, faces: tuple[Face, ...]
) -> None:
    for face in faces:
        crop, landmarks = loose_crop(group_photo, face.box_xyxy, face.landmarks)
        assert max(crop.shape[:2]) <= 256
        assert landmarks.dtype == np.float32
        assert _embedding_from_crop(pipeline, crop, landmarks) @ face.embedding > 0.99


def test_a_shrunk_crop_of_a_large_face_re_embeds_too(
    group_photo: np.ndarray, pipeline: Pipeline, faces: tuple[Face, ...]
) -> None:
    large = cv2.resize(group_photo, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    for face in faces:
        points = (face.landmarks + 0.5) * 3 - 0.5
        crop, landmarks = loose_crop(large, face.box_xyxy * 3, points.astype(np.float32))
        assert max(crop.shape[:2]) == 256
        assert _embedding_from_crop(pipeline, crop, landmarks) @ face.embedding > 0.98


def test_landmarks_point_at_the_same_pixels_of_the_crop() -> None:
    """Coordinates drawn into the image as colours are read off the crop."""
    y, x = np.mgrid[:600, :800]
    image = np.stack([x * 255 / 799, y * 255 / 599, np.zeros((600, 800))], 2).astype(np.uint8)
    box = np.array([300, 150, 500, 420], np.float32)
    landmarks = np.array([[340, 240], [450, 235], [400, 300], [350, 360], [440, 366]], np.float32)
    for max_side in (256, 100, 1000):
        crop, moved = loose_crop(image, box, landmarks, max_side=max_side)
        assert max(crop.shape[:2]) == min(max_side, 432)
        for (cx, cy), (px, py) in zip(moved, landmarks, strict=True):
            red, green, _ = cv2.getRectSubPix(crop, (1, 1), (float(cx), float(cy)))[0, 0]
            assert abs(red - px * 255 / 799) < 1.6
            assert abs(green - py * 255 / 599) < 1.6


def test_the_crop_is_the_scaled_square_cut_at_the_border() -> None:
    image = np.zeros((400, 400, 3), np.uint8)
    points = np.zeros((5, 2), np.float32)
    crop, _ = loose_crop(image, np.array([100, 100, 200, 180], np.float32), points, scale=1.6)
    assert crop.shape[:2] == (160, 160)
    crop, moved = loose_crop(image, np.array([-20, 350, 60, 450], np.float32), points)
    assert crop.shape[:2] == (80, 100)
    np.testing.assert_allclose(moved, points - (0, 320))
    assert crop.flags.c_contiguous
    assert not np.shares_memory(crop, image)


@pytest.mark.parametrize(
    "box", [[-50, -50, -20, -20], [500, 10, 560, 60], [10, 900, 40, 960], [-1e6, 0, -1e6 + 5, 5]]
)
def test_a_box_outside_the_image_is_refused(box: list[float]) -> None:
    with pytest.raises(ValueError, match="outside the 400x300 image"):
        loose_crop(
            np.zeros((300, 400, 3), np.uint8),
            np.array(box, np.float32),
            np.zeros((5, 2), np.float32),
        )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    centre=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    side=st.floats(1, 2000),
    aspect=st.floats(0.2, 5),
    max_side=st.integers(1, 300),
)
def test_a_box_that_meets_the_image_gives_a_crop_within_the_limits(
    height: int,
    width: int,
    centre: tuple[float, float],
    side: float,
    aspect: float,
    max_side: int,
) -> None:
    x, y = centre[0] * width, centre[1] * height
    half = np.array([side, side * aspect]) / 2
    box = np.array([x - half[0], y - half[1], x + half[0], y + half[1]], np.float32)
    image = np.zeros((height, width, 3), np.uint8)
    crop, landmarks = loose_crop(image, box, np.zeros((5, 2), np.float32), max_side=max_side)
    assert min(crop.shape[:2]) >= 1
    assert max(crop.shape[:2]) <= max_side
    assert np.isfinite(landmarks).all()
