"""Detectors of all three kinds on real photos, and what they share on made-up networks.

CenterFace is the bundled pack's; SCRFD and YuNet come from ../shared/models, where there
is one. Every kind must find the same faces whatever the size and surroundings of the photo.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from facerec.detection import NetworkDetector, load_detector
from facerec.detection.base import suppress
from facerec.errors import ModelError
from facerec.packs.manifest import Pack
from facerec.runtime import Workers
from facerec.types import Detections

MAX_SIDE = 640

KINDS = {
    "centerface": ("centerface", None, 0.5),
    "yunet": ("yunet", "face_detection_yunet_2026may.onnx", 0.7),
    "scrfd": ("scrfd", "scrfd_2.5g_bnkps.onnx", 0.5),
    "scrfd-fixed": ("scrfd", "scrfd_500m_bnkps.onnx", 0.5),
}
"""Name -> kind in pack.toml, file and score threshold; the last demands 640x640."""


def _pack(folder: Path, kind: str, file: Path, score_threshold: float = 0.5) -> Pack:
    """A pack written by hand around a detector, the way the documentation says."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, folder / "detector.onnx")
    (folder / "pack.toml").write_text(
        f"""
        name = "by-hand"
        licence = "as the file's"
        source = "a test"
        [detector]
        kind = "{kind}"
        file = "detector.onnx"
        max_side = {MAX_SIDE}
        score_threshold = {score_threshold}
        [embedder]
        file = "absent.onnx"
        template = "arcface-112"
        input_size = 112
        mean = 127.5
        scale = 0.0078125
        dim = 8
        """
    )
    return Pack.load(folder)


@pytest.fixture(scope="module")
def workers() -> Workers:
    return Workers(2)


Load = Callable[[str], NetworkDetector]


@pytest.fixture(scope="module")
def load(
    tmp_path_factory: pytest.TempPathFactory, bundled_pack: Pack, workers: Workers
) -> Iterator[Load]:
    """The detector of a name in ``KINDS``, made once; skips where its file is not there."""
    made: dict[str, NetworkDetector] = {}

    def load_one(name: str) -> NetworkDetector:
        if name not in made:
            kind, file_name, score_threshold = KINDS[name]
            path = bundled_pack.detector_path
            if file_name is not None:
                path = Path(__file__).resolve().parents[2] / "shared" / "models" / file_name
                if not path.is_file():
                    pytest.skip(f"needs ../shared/models/{file_name}, not part of the project")
            pack = _pack(tmp_path_factory.mktemp(name), kind, path, score_threshold)
            detector = load_detector(pack, "cpu", 2, workers)
            assert isinstance(detector, NetworkDetector)
            made[name] = detector
        return made[name]

    yield load_one
    made.clear()


@pytest.fixture(params=sorted(KINDS))
def detector(request: pytest.FixtureRequest, load: Load) -> NetworkDetector:
    return load(request.param)


def _left_to_right(faces: Detections) -> Detections:
    return faces.take(np.argsort(faces.boxes_xyxy[:, 0]))


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(0.0, width) * max(0.0, height)
    area_a, area_b = ((v[2] - v[0]) * (v[3] - v[1]) for v in (a, b))
    union = area_a + area_b - overlap
    return float(overlap / union) if union > 0 else 0.0


def _eye_distance(landmarks: np.ndarray) -> np.ndarray:
    """Per face, pixels; (N, 5, 2) in, (N,) out."""
    return np.linalg.norm(landmarks[:, 0] - landmarks[:, 1], axis=1)


def _assert_same_faces(found: Detections, expected: Detections, within: float = 0.1) -> None:
    """As many faces, boxes that overlap, landmarks within a share of the eye distance."""
    assert len(found) == len(expected)
    found, expected = _left_to_right(found), _left_to_right(expected)
    for a, b in zip(found.boxes_xyxy, expected.boxes_xyxy, strict=True):
        assert _iou(a, b) > 0.75
    away = np.linalg.norm(found.landmarks - expected.landmarks, axis=2).mean(axis=1)
    assert (away / _eye_distance(expected.landmarks)).max() < within


def _moved(faces: Detections, scale: float, x: float, y: float) -> Detections:
    shift = np.array([x, y], np.float32)
    return Detections(
        faces.boxes_xyxy * scale + np.tile(shift, 2), faces.scores, faces.landmarks * scale + shift
    )


# Real faces


def test_six_faces_of_the_group_photo(detector: NetworkDetector, group_photo: np.ndarray) -> None:
    [faces] = detector.detect([group_photo])
    assert len(faces) == 6
    assert (faces.scores >= 0.5).all()
    assert (np.diff(faces.scores) <= 0).all()
    for box, _, points in faces:
        assert 60 < box[2] - box[0] < 160
        inside = (points > box[:2]) & (points < box[2:])
        assert inside.all()
        left_eye, right_eye, nose, left_mouth, right_mouth = points
        assert left_eye[0] < right_eye[0]
        assert left_mouth[0] < right_mouth[0]
        assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


@pytest.mark.parametrize("name", ["yunet", "scrfd", "scrfd-fixed"])
def test_the_kinds_agree_with_each_other(name: str, load: Load, group_photo: np.ndarray) -> None:
    [ours] = load("centerface").detect([group_photo])
    [theirs] = load(name).detect([group_photo])
    ours, theirs = _left_to_right(ours), _left_to_right(theirs)
    assert min(map(_iou, ours.boxes_xyxy, theirs.boxes_xyxy)) > 0.7
    away = np.linalg.norm(ours.landmarks - theirs.landmarks, axis=2)
    away /= _eye_distance(ours.landmarks)[:, None]
    assert away.mean() < 0.2
    assert np.median(away) < 0.15


@pytest.mark.parametrize(
    ("top", "left", "bottom", "right", "within"),
    [
        (0, 0, 1, 1, 0.1),
        (0, 0, 37, 120, 0.1),
        (64, 32, 0, 0, 0.1),  # whole cells of every stride
        (50, 33, 0, 0, 0.25),  # the cells fall elsewhere on faces of 40 pixels
        (7, 111, 170, 5, 0.25),
    ],
)
def test_padding_does_not_move_faces(
    detector: NetworkDetector,
    group_photo: np.ndarray,
    top: int,
    left: int,
    bottom: int,
    right: int,
    within: float,
) -> None:
    """Of a photo that fits the network, so that padding changes nothing but the place."""
    small = cv2.resize(group_photo, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA)
    [expected] = detector.detect([small])
    padded = cv2.copyMakeBorder(small, top, bottom, left, right, cv2.BORDER_CONSTANT)
    assert max(padded.shape) <= MAX_SIDE
    [found] = detector.detect([padded])
    _assert_same_faces(found, _moved(expected, 1, left, top), within)


@pytest.mark.parametrize("scale", [0.5, 0.61, 0.75, 0.9])
def test_a_smaller_photo_gives_the_same_faces_smaller(
    detector: NetworkDetector, group_photo: np.ndarray, scale: float
) -> None:
    [expected] = detector.detect([group_photo])
    small = cv2.resize(group_photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    [found] = detector.detect([small])
    _assert_same_faces(found, _moved(expected, scale, 0, 0))


@pytest.mark.parametrize("shape", [(40, 3000), (3000, 40), (90, 2000), (2000, 90)])
def test_a_face_in_a_strip_is_not_distorted(
    detector: NetworkDetector, astronaut: np.ndarray, shape: tuple[int, int]
) -> None:
    """A strip is scaled by its longer side, so a face is found if that leaves it large enough,
    and then where it is."""
    side = min(shape)
    head = cv2.resize(astronaut[40:200, 145:305], (side, side), interpolation=cv2.INTER_AREA)
    strip = np.full((*shape, 3), 90, np.uint8)
    strip[:side, :side] = head
    [faces] = detector.detect([strip])
    assert len(faces) <= 1
    for box, _, points in faces:
        assert 0.2 * side < np.mean([box[::2].mean(), box[1::2].mean()]) < 0.8 * side
        assert 0.5 < (box[2] - box[0]) / (box[3] - box[1]) < 1.1
        assert ((points > 0) & (points < side)).all()


@pytest.mark.parametrize("size", [32, 64, 112, 200, 450, 640, 1000, 1500])
def test_a_face_that_fills_the_frame_is_found_once(
    detector: NetworkDetector, astronaut: np.ndarray, close_up: np.ndarray, size: int
) -> None:
    head = astronaut[55:180, 170:290]
    for photo in (head, close_up):
        scale = size / max(photo.shape)
        if detector.network.fixed_size_hw and size < 48:
            continue  # the smaller SCRFD does not see faces of 30 pixels
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        resized = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=method)
        [faces] = detector.detect([resized])
        assert len(faces) == 1, resized.shape
        middle = faces.landmarks[0, 2] / resized.shape[1::-1]
        np.testing.assert_allclose(middle, 0.5, atol=0.25)


def test_tight_crops_of_every_face_of_the_group_photo(
    detector: NetworkDetector, group_photo: np.ndarray
) -> None:
    [faces] = detector.detect([group_photo])
    errors = []
    for box, _, landmarks in faces:
        x0, y0, x1, y1 = (max(0, round(float(v))) for v in box)
        crop = group_photo[y0:y1, x0:x1]
        for factor in (1, 8):
            large = cv2.resize(crop, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
            [found] = detector.detect([large])
            assert len(found) == 1
            away = np.linalg.norm(found.landmarks[0] / factor - (landmarks - (x0, y0)), axis=1)
            errors.append(away.mean() / _eye_distance(landmarks[None])[0])
    assert max(errors) < 0.35
    assert np.mean(errors) < 0.2


def test_a_large_face_does_not_hide_the_small_ones(load: Load, astronaut: np.ndarray) -> None:
    """Beside a face that gets a second look from further away stands one that it would miss."""
    head = astronaut[30:210, 135:315]
    photo = np.full((640, 640, 3), 120, np.uint8)
    photo[:560, :560] = cv2.resize(head, (560, 560), interpolation=cv2.INTER_CUBIC)
    photo[570:630, 570:630] = cv2.resize(head, (60, 60), interpolation=cv2.INTER_AREA)
    [faces] = load("centerface").detect([photo])
    sides = np.sort((faces.boxes_xyxy[:, 2:] - faces.boxes_xyxy[:, :2]).max(axis=1))
    assert len(faces) == 2
    assert sides[0] < 60
    assert sides[1] > 300


def test_nothing_where_nothing_is(detector: NetworkDetector) -> None:
    rng = np.random.default_rng(0)
    images = [np.full((480, 640, 3), grey, np.uint8) for grey in (0, 128, 255)]
    images += [
        rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((480, 640, 3), (112, 112, 3))
    ]
    images += [np.full(shape, 77, np.uint8) for shape in ((1, 1, 3), (1, 5000, 3), (20, 20, 3))]
    for faces in detector.detect(images):
        assert len(faces) == 0
        assert faces.boxes_xyxy.shape == (0, 4)
        assert faces.landmarks.shape == (0, 5, 2)


def test_of_no_image_there_is_no_result(detector: NetworkDetector) -> None:
    assert detector.detect([]) == []


def test_many_equal_one_by_one_in_order(
    detector: NetworkDetector,
    group_photo: np.ndarray,
    astronaut: np.ndarray,
    close_up: np.ndarray,
) -> None:
    """Mixed shapes, equal shapes, an image without a face and one that needs a second look."""
    images = [
        astronaut,
        np.zeros((50, 70, 3), np.uint8),
        group_photo[::2, ::2],
        np.ascontiguousarray(astronaut[:, ::-1]),
        close_up,
        astronaut[40:200, 150:310],
        astronaut,
    ]
    together = detector.detect(images)
    assert [len(faces) > 0 for faces in together] == [True, False, *[True] * 5]
    for image, faces in zip(images, together, strict=True):
        [alone] = detector.detect([image])
        for a, b in zip(
            (faces.boxes_xyxy, faces.scores, faces.landmarks),
            (alone.boxes_xyxy, alone.scores, alone.landmarks),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, atol=0.05)


# What reaches the network


def _shapes_seen(detector: NetworkDetector, monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    seen: list[tuple] = []
    run = detector.network.run

    def spy(batch: np.ndarray, *, wide: bool) -> list[np.ndarray]:
        seen.append(batch.shape)
        return run(batch, wide=wide)

    monkeypatch.setattr(detector.network, "run", spy)
    return seen


@pytest.mark.parametrize(
    "shape", [(1, 1), (20, 20), (33, 31), (250, 250), (639, 641), (886, 1280), (3000, 40)]
)
def test_images_are_bounded_and_never_enlarged(
    load: Load, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    detector = load("centerface")
    seen = _shapes_seen(detector, monkeypatch)
    detector.detect([np.zeros((*shape, 3), np.uint8)])
    batch, channels, height, width = seen[0]
    assert (batch, channels) == (1, 3)
    assert height % 32 == width % 32 == 0
    shrink = min(1, MAX_SIDE / max(shape))
    for side, got in zip(shape, (height, width), strict=True):
        assert side * shrink - 1 <= got <= max(1, side * shrink) + 32
        assert got <= MAX_SIDE
    # The second look, for nothing was found, is no larger than what a small photo costs.
    assert len(seen) == 2
    assert max(seen[1][2:]) <= 320


@pytest.mark.parametrize("name", ["centerface", "yunet", "scrfd", "scrfd-fixed"])
def test_what_fits_reaches_the_network_pixel_by_pixel(
    name: str, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the colours and the range that the kind was trained with, the rest black."""
    detector = load(name)
    image = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    batches: list[np.ndarray] = []
    run = detector.network.run

    def spy(batch: np.ndarray, *, wide: bool) -> list[np.ndarray]:
        batches.append(batch.copy())
        return run(batch, wide=wide)

    monkeypatch.setattr(detector.network, "run", spy)
    detector.detect([image])
    padded = np.zeros((*(detector.network.fixed_size_hw or (96, 128)), 3))
    padded[:70, :100] = image
    expected = {
        "centerface": padded,
        "yunet": padded[..., ::-1],
        "scrfd": (padded - 127.5) / 128,
        "scrfd-fixed": (padded - 127.5) / 128,
    }[name]
    np.testing.assert_allclose(batches[0][0].transpose(1, 2, 0), expected, atol=1e-5)


def test_a_photo_with_faces_of_usual_size_is_looked_at_once(
    load: Load, monkeypatch: pytest.MonkeyPatch, group_photo: np.ndarray
) -> None:
    detector = load("centerface")
    seen = _shapes_seen(detector, monkeypatch)
    detector.detect([group_photo])
    assert len(seen) == 1


# Made-up networks


def _centerface_onnx(
    path: Path,
    *,
    heat: float = 0.9,
    log_size: float = 2.0,
    landmark: float | None = None,
    batch: int | str = "n",
    size_hw: tuple[int | str, int | str] = ("h", "w"),
) -> Path:
    """A network of CenterFace's form whose heatmap is ``heat`` in white cells (4x4 pixels)
    of its input; size and landmarks are the same everywhere."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, *size_hw])]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", channels, "rows", "columns"])
        for name, channels in (("heat", 1), ("size", 2), ("offset", 2), ("points", 10))
    ]
    places = [0.3, 0.3, 0.3, 0.7, 0.5, 0.5, 0.7, 0.35, 0.7, 0.65]
    if landmark is not None:
        places = [landmark] * 10

    def constant(name: str, values: list[float]) -> onnx.TensorProto:
        return helper.make_tensor(name, TensorProto.FLOAT, [1, len(values), 1, 1], values)

    initialisers = [
        constant("zero", [0.0]),
        constant("heat_of_white", [heat / 255]),
        constant("sizes", [log_size, log_size]),
        constant("offsets", [0.0, 0.0]),
        constant("places", places),
    ]
    nodes = [
        helper.make_node("AveragePool", ["x"], ["cells"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("ReduceMean", ["cells"], ["grey"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["grey", "heat_of_white"], ["heat"]),
        helper.make_node("Mul", ["grey", "zero"], ["blank"]),
        helper.make_node("Add", ["blank", "sizes"], ["size"]),
        helper.make_node("Add", ["blank", "offsets"], ["offset"]),
        helper.make_node("Add", ["blank", "places"], ["points"]),
    ]
    graph = helper.make_graph(nodes, "made-up", inputs, outputs, initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def _made_up(tmp_path: Path, workers: Workers, **options: object) -> NetworkDetector:
    path = _centerface_onnx(tmp_path / "made-up.onnx", **options)
    pack = _pack(tmp_path / "pack", "centerface", path)
    detector = load_detector(pack, "cpu", 2, workers)
    assert isinstance(detector, NetworkDetector)
    return detector


def _white_cells(shape: tuple[int, int], *cells: tuple[int, int]) -> np.ndarray:
    image = np.zeros((*shape, 3), np.uint8)
    for row, column in cells:
        image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 255
    return image


def test_the_arithmetic_of_centerface(tmp_path: Path, workers: Workers) -> None:
    """Written out from the paper: exp(2) cells of 4 pixels a side around the cell's middle."""
    detector = _made_up(tmp_path, workers)
    [faces] = detector.detect([_white_cells((160, 200), (10, 30))])
    side = np.exp(2.0) * 4
    left, top = (30 + 0.5) * 4 - side / 2, (10 + 0.5) * 4 - side / 2
    np.testing.assert_allclose(faces.boxes_xyxy, [[left, top, left + side, top + side]], rtol=1e-5)
    np.testing.assert_allclose(faces.scores, [0.9], rtol=1e-5)
    places_xy = np.array([[0.3, 0.3], [0.7, 0.3], [0.5, 0.5], [0.35, 0.7], [0.65, 0.7]])
    np.testing.assert_allclose(faces.landmarks[0], places_xy * side + (left, top), rtol=1e-5)


@pytest.mark.parametrize("shape", [(1280, 1280), (1280, 957), (1920, 1437), (640, 2560)])
def test_coordinates_come_back_from_a_shrunk_photo(
    tmp_path: Path, workers: Workers, shape: tuple[int, int]
) -> None:
    detector = _made_up(tmp_path, workers)
    factor = max(shape) / MAX_SIDE
    image = np.zeros((*shape, 3), np.uint8)
    block = round(factor * 4)
    row, column = 8, 16
    image[row * block : (row + 1) * block, column * block : (column + 1) * block] = 255
    [faces] = detector.detect([image])
    best = faces.boxes_xyxy[0]
    middle = (best[:2] + best[2:]) / 2
    np.testing.assert_allclose(
        middle, ((column + 0.5) * block, (row + 0.5) * block), atol=factor * 2.1
    )
    np.testing.assert_allclose(best[2:] - best[:2], np.exp(2.0) * 4 * factor, rtol=3e-3)


@pytest.mark.parametrize("size_hw", [(64, 64), (96, 160), (640, 640)])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_network_of_fixed_shape_takes_any_image(
    tmp_path: Path, workers: Workers, size_hw: tuple[int, int], batch: int
) -> None:
    detector = _made_up(tmp_path, workers, size_hw=size_hw, batch=batch)
    rows = [(3, 7), (5, 2), (9, 9)]
    images = [_white_cells((64, 64), cell) for cell in rows]
    found = detector.detect([*images, np.zeros((500, 30, 3), np.uint8)])
    assert [len(faces) for faces in found] == [1, 1, 1, 0]
    for (row, column), faces in zip(rows, found, strict=False):
        box = faces.boxes_xyxy[0]
        np.testing.assert_allclose(
            (box[:2] + box[2:]) / 2, ((column + 0.5) * 4, (row + 0.5) * 4), atol=1e-3
        )


@pytest.mark.parametrize("options", [{"heat": np.nan}, {"log_size": np.nan}, {"landmark": np.nan}])
def test_nan_from_a_network_is_an_error_and_not_an_empty_photo(
    tmp_path: Path, workers: Workers, options: dict[str, float]
) -> None:
    detector = _made_up(tmp_path, workers, **options)
    with pytest.raises(ModelError, match=r"detector\.onnx: gave NaN"):
        detector.detect([_white_cells((64, 64), (3, 7))])


@pytest.mark.parametrize("name", ["yunet", "scrfd"])
def test_nan_from_the_other_kinds(
    name: str, load: Load, monkeypatch: pytest.MonkeyPatch, astronaut: np.ndarray
) -> None:
    detector = load(name)
    run = detector.network.run

    def broken(batch: np.ndarray, *, wide: bool) -> list[np.ndarray]:
        return [output * np.nan for output in run(batch, wide=wide)]

    monkeypatch.setattr(detector.network, "run", broken)
    with pytest.raises(ModelError, match=r"detector\.onnx: gave NaN"):
        detector.detect([astronaut])


@pytest.mark.parametrize("options", [{"log_size": -30.0}, {"landmark": 0.5}])
def test_a_face_smaller_than_a_pixel_is_no_face(
    tmp_path: Path, workers: Workers, options: dict[str, float]
) -> None:
    """It could not be aligned, and would fail every other face of its batch."""
    detector = _made_up(tmp_path, workers, **options)
    [faces] = detector.detect([_white_cells((64, 64), (3, 7))])
    assert len(faces) == 0


def test_scores_are_clipped_to_one(tmp_path: Path, workers: Workers) -> None:
    detector = _made_up(tmp_path, workers, heat=1.5)
    [faces] = detector.detect([_white_cells((64, 64), (3, 7))])
    assert faces.scores.tolist() == [1.0]


# Wrong packs


@pytest.mark.parametrize("kind", ["yunet", "scrfd"])
def test_centerface_under_another_kind_is_refused(
    kind: str, tmp_path: Path, bundled_pack: Pack, workers: Workers
) -> None:
    pack = _pack(tmp_path / "pack", kind, bundled_pack.detector_path)
    with pytest.raises(
        ModelError, match=r"detector\.onnx: (expected 12 outputs, got 4|not an SCR)"
    ):
        load_detector(pack, "cpu", 1, workers)


def test_an_embedder_as_a_detector_is_refused(
    tmp_path: Path, bundled_pack: Pack, workers: Workers
) -> None:
    for kind in ("centerface", "yunet", "scrfd"):
        pack = _pack(tmp_path / kind, kind, bundled_pack.embedder_path)
        with pytest.raises(ModelError, match=r"detector\.onnx"):
            load_detector(pack, "cpu", 1, workers)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path, workers: Workers) -> None:
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"not a model")
    with pytest.raises(ModelError, match="not a model that onnxruntime can load"):
        load_detector(_pack(tmp_path / "pack", "centerface", junk), "cpu", 1, workers)
    pack = _pack(tmp_path / "pack", "centerface", junk)
    (tmp_path / "pack" / "detector.onnx").unlink()
    with pytest.raises(ModelError, match=r"detector\.onnx is missing"):
        load_detector(pack, "cpu", 1, workers)


# Suppression


def _suppressed_one_by_one(boxes: np.ndarray, scores: np.ndarray, max_iou: float) -> list[int]:
    """The definition, with scalars."""
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        overlaps = False
        for k in kept:
            a, b = boxes[i].astype(float), boxes[k].astype(float)
            width = min(a[2], b[2]) - max(a[0], b[0])
            height = min(a[3], b[3]) - max(a[1], b[1])
            shared = max(0.0, width) * max(0.0, height)
            area_a = max(0.0, a[2] - a[0]) * max(0.0, a[3] - a[1])
            area_b = max(0.0, b[2] - b[0]) * max(0.0, b[3] - b[1])
            if shared > max_iou * (area_a + area_b - shared):
                overlaps = True
        if not overlaps:
            kept.append(i)
    return kept


_corner = st.integers(0, 12)
_box = st.tuples(_corner, _corner, st.integers(-1, 8), st.integers(-1, 8))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    boxes=st.lists(_box, max_size=25),
    scores=st.data(),
    max_iou=st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.99]),
)
def test_suppression_equals_its_definition(
    boxes: list[tuple[int, int, int, int]], scores: st.DataObject, max_iou: float
) -> None:
    """Whole numbers, so that ties and touching boxes occur; sides of zero and below too."""
    marks = scores.draw(
        st.lists(st.sampled_from([0.5, 0.6, 0.7, 0.9]), min_size=len(boxes), max_size=len(boxes))
    )
    corners = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes], np.float32).reshape(-1, 4)
    values = np.array(marks, np.float32)
    kept = suppress(corners, values, max_iou)
    assert kept.dtype == np.intp
    assert kept.tolist() == _suppressed_one_by_one(corners, values, max_iou)


def test_suppression_keeps_the_order_of_equal_scores() -> None:
    boxes = np.array([[20 * i, 0, 20 * i + 10, 10] for i in range(50)], np.float32)
    assert suppress(boxes, np.full(50, 0.5, np.float32), 0.3).tolist() == list(range(50))
