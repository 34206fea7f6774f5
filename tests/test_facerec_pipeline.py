"""The pipeline as a whole: golden embeddings, people apart, threads, batches, bad packs.

The golden file holds landmarks and embeddings of the seven faces of two photos. To write it
anew after the bundled pack has changed on purpose:

    python -m tests.test_facerec_pipeline
"""

from __future__ import annotations

import itertools
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from facerec.alignment import align
from facerec.errors import ConfigError, ModelError
from facerec.image import load_image, to_jpeg
from facerec.packs.manifest import Pack
from facerec.pipeline import Pipeline
from facerec.types import Detections, Face

GOLDEN = Path(__file__).resolve().parent / "golden" / "pipeline_bundled.npz"


@pytest.fixture(scope="module")
def people(pipeline: Pipeline, group_photo: np.ndarray) -> tuple[Face, ...]:
    """The six of the group photo, left to right."""
    [faces] = pipeline.extract([group_photo])
    return tuple(sorted(faces, key=lambda face: float(face.box_xyxy[0])))


def _assert_equal(a: tuple[Face, ...], b: tuple[Face, ...]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one.box_xyxy, other.box_xyxy, atol=0.05)
        np.testing.assert_allclose(one.landmarks, other.landmarks, atol=0.05)
        assert one.det_score == pytest.approx(other.det_score, abs=1e-3)
        assert one.embedding @ other.embedding > 0.9999


# Golden vectors


def _as_kept(pipeline: Pipeline, photos: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What the golden file keeps: per photo, faces from left to right."""
    kept: dict[str, np.ndarray] = {"contract_id": np.array(pipeline.contract.contract_id)}
    for name, found in zip(("group", "astronaut"), pipeline.extract(photos), strict=True):
        faces = sorted(found, key=lambda face: float(face.box_xyxy[0]))
        kept[f"{name}_landmarks"] = np.stack([face.landmarks for face in faces])
        kept[f"{name}_embeddings"] = np.stack([face.embedding for face in faces])
    return kept


def test_embeddings_are_the_golden_ones(
    pipeline: Pipeline, group_photo: np.ndarray, astronaut: np.ndarray
) -> None:
    """At the golden landmarks, so that only alignment and embedder are on trial."""
    contract = pipeline.contract
    with np.load(GOLDEN) as golden:
        assert str(golden["contract_id"]) == contract.contract_id, "another pack: see the docstring"
        for name, photo in (("group", group_photo), ("astronaut", astronaut)):
            chips = align(
                photo, golden[f"{name}_landmarks"], contract.template, contract.input_size
            )
            found = pipeline.embedder.embed(chips)
            cosine = (found * golden[f"{name}_embeddings"]).sum(axis=1)
            assert cosine.min() > 0.9995


def test_the_whole_pipeline_arrives_near_the_golden_embeddings(
    pipeline: Pipeline, group_photo: np.ndarray, astronaut: np.ndarray
) -> None:
    """Wider, for the detector's settings may be tuned."""
    now = _as_kept(pipeline, [group_photo, astronaut])
    with np.load(GOLDEN) as golden:
        for name, count in (("group", 6), ("astronaut", 1)):
            assert len(now[f"{name}_landmarks"]) == count
            away = np.linalg.norm(now[f"{name}_landmarks"] - golden[f"{name}_landmarks"], axis=2)
            eyes = golden[f"{name}_landmarks"][:, 0] - golden[f"{name}_landmarks"][:, 1]
            assert (away.mean(axis=1) / np.linalg.norm(eyes, axis=1)).max() < 0.1
            cosine = (now[f"{name}_embeddings"] * golden[f"{name}_embeddings"]).sum(axis=1)
            assert cosine.min() > 0.98


# People


def _turned(degrees: float) -> np.ndarray:
    return cv2.getRotationMatrix2D((640, 443), degrees, 1)


_VARIANTS = {
    "half": np.array([[0.5, 0, 0], [0, 0.5, 0]]),
    "three quarters": np.array([[0.75, 0, 0], [0, 0.75, 0]]),
    "enlarged": np.array([[1.5, 0, 0], [0, 1.5, 0]]),
    "turned left": _turned(15),
    "turned right": _turned(-15),
    "turned and small": _turned(-8) * 0.6,
}


def _same_and_different(
    pipeline: Pipeline, people: tuple[Face, ...], photo: np.ndarray, transform: np.ndarray
) -> tuple[list[float], list[float]]:
    """Cosines of every face of ``photo`` with itself in the original, and with the others."""
    centres = np.array([(f.box_xyxy[:2] + f.box_xyxy[2:]) / 2 for f in people])
    expected = centres @ transform[:, :2].T + transform[:, 2]
    embeddings = np.stack([f.embedding for f in people])
    [faces] = pipeline.extract([photo])
    assert len(faces) == len(people)
    same, different, seen = [], [], set()
    for face in faces:
        centre = (face.box_xyxy[:2] + face.box_xyxy[2:]) / 2
        who = int(np.linalg.norm(expected - centre, axis=1).argmin())
        seen.add(who)
        cosines = embeddings @ face.embedding
        same.append(float(cosines[who]))
        different.extend(float(c) for c in np.delete(cosines, who))
    assert seen == set(range(len(people)))
    return same, different


@pytest.mark.parametrize("variant", _VARIANTS)
def test_everybody_is_known_again_and_nobody_taken_for_another(
    pipeline: Pipeline, people: tuple[Face, ...], group_photo: np.ndarray, variant: str
) -> None:
    transform = _VARIANTS[variant]
    factor = float(np.hypot(transform[0, 0], transform[1, 0]))
    size = tuple(round(side * factor) for side in group_photo.shape[1::-1])
    blurred = cv2.GaussianBlur(group_photo, (0, 0), 0.5 / factor) if factor < 1 else group_photo
    photo = cv2.warpAffine(blurred, transform, size, flags=cv2.INTER_LINEAR)
    same, different = _same_and_different(pipeline, people, photo, transform)
    assert min(same) > max(different) + 0.01
    assert min(same) > 0.97


def test_poor_jpeg_and_poor_light_change_little(
    pipeline: Pipeline, people: tuple[Face, ...], group_photo: np.ndarray
) -> None:
    for photo in (
        load_image(to_jpeg(group_photo, quality=30)),
        (group_photo * 0.6).astype(np.uint8),
        np.clip(group_photo * 1.3, 0, 255).astype(np.uint8),
    ):
        same, different = _same_and_different(pipeline, people, photo, np.eye(2, 3))
        assert min(same) > max(different)


def test_different_people_differ_more_than_a_person_from_the_mirror_image(
    pipeline: Pipeline, people: tuple[Face, ...], group_photo: np.ndarray
) -> None:
    mirrored = np.ascontiguousarray(group_photo[:, ::-1])
    transform = np.array([[-1.0, 0, group_photo.shape[1] - 1], [0, 1, 0]])
    same, _ = _same_and_different(pipeline, people, mirrored, transform)
    pairs = [float(a.embedding @ b.embedding) for a, b in itertools.combinations(people, 2)]
    assert np.mean(same) > max(pairs)


# Extraction


def test_faces_are_complete_and_best_first(pipeline: Pipeline, group_photo: np.ndarray) -> None:
    [faces] = pipeline.extract([group_photo])
    assert isinstance(faces, tuple)
    scores = [face.det_score for face in faces]
    assert scores == sorted(scores, reverse=True)
    for face in faces:
        assert face.embedding.shape == (pipeline.contract.dim,)
        assert np.linalg.norm(face.embedding) == pytest.approx(1, abs=1e-5)
        assert 0 < face.det_score <= 1


def test_every_image_has_an_entry(pipeline: Pipeline, astronaut: np.ndarray) -> None:
    blank = np.zeros((40, 60, 3), np.uint8)
    assert pipeline.extract([]) == []
    assert pipeline.extract([blank]) == [()]
    found = pipeline.extract([blank, astronaut, blank])
    assert [len(faces) for faces in found] == [0, 1, 0]


def test_many_equal_one_by_one(
    pipeline: Pipeline, group_photo: np.ndarray, astronaut: np.ndarray, close_up: np.ndarray
) -> None:
    images = [
        group_photo[:, :700],
        astronaut,
        np.zeros((9, 9, 3), np.uint8),
        close_up,
        np.ascontiguousarray(astronaut[:, ::-1]),
        astronaut[40:200, 150:310],
    ]
    together = pipeline.extract(images)
    assert len(together) == len(images)
    for image, faces in zip(images, together, strict=True):
        [alone] = pipeline.extract([image])
        _assert_equal(faces, alone)


def test_images_are_not_written_to(pipeline: Pipeline, astronaut: np.ndarray) -> None:
    mine = astronaut.copy()
    mine.flags.writeable = False
    [faces] = pipeline.extract([mine])
    assert len(faces) == 1
    np.testing.assert_array_equal(mine, astronaut)


def test_threads_change_nothing(
    bundled_pack: Pack, pipeline: Pipeline, group_photo: np.ndarray, astronaut: np.ndarray
) -> None:
    images = [group_photo[::2, ::2], astronaut]
    single = Pipeline.load(bundled_pack, device="cpu", threads=1).extract(images)
    for a, b in zip(single, pipeline.extract(images), strict=True):
        _assert_equal(a, b)


def test_eight_threads_share_a_pipeline(
    pipeline: Pipeline, group_photo: np.ndarray, astronaut: np.ndarray, close_up: np.ndarray
) -> None:
    small = cv2.resize(group_photo, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    jobs = [[astronaut], [small], [close_up, astronaut], [np.zeros((50, 50, 3), np.uint8), small]]
    expected = [pipeline.extract(job) for job in jobs]
    ready = threading.Barrier(8)

    def work(i: int) -> list[tuple[Face, ...]]:
        ready.wait()
        return pipeline.extract(jobs[i % 4])

    with ThreadPoolExecutor(8) as pool:
        for i, found in enumerate(pool.map(work, range(8))):
            for a, b in zip(found, expected[i % 4], strict=True):
                _assert_equal(a, b)


def test_given_detections_are_embedded_in_their_order(
    pipeline: Pipeline, group_photo: np.ndarray, people: tuple[Face, ...]
) -> None:
    detections = Detections(
        np.stack([face.box_xyxy for face in people]),
        np.array([face.det_score for face in people]),
        np.stack([face.landmarks for face in people]),
    )
    found = pipeline.embed_detected(
        [group_photo, group_photo], [detections.take([4, 1]), Detections.empty()]
    )
    assert found[1] == ()
    _assert_equal(found[0], (people[4], people[1]))
    with pytest.raises(ValueError, match="zip"):
        pipeline.embed_detected([group_photo], [detections, detections])


def test_the_pack_speaks_through_the_pipeline(pipeline: Pipeline, bundled_pack: Pack) -> None:
    assert pipeline.pack is bundled_pack
    assert pipeline.contract == bundled_pack.contract
    assert pipeline.thresholds == bundled_pack.thresholds
    assert pipeline.device == "cpu"


def test_the_threshold_of_the_pack_accepts_the_same_photo_and_refuses_most_others(
    pipeline: Pipeline, people: tuple[Face, ...]
) -> None:
    """Fifteen pairs of strangers, of one cast and one light, say no more than 'most'."""
    if pipeline.thresholds is None:
        pytest.skip("the bundled pack has no thresholds yet")
    threshold = pipeline.thresholds.cosine_at(1e-3)
    pairs = [float(a.embedding @ b.embedding) for a, b in itertools.combinations(people, 2)]
    assert np.mean(np.array(pairs) >= threshold) <= 1 / 15
    assert threshold < 1


# Bad packs


@pytest.fixture
def copied_pack(tmp_path: Path, bundled_pack: Pack) -> Path:
    folder = tmp_path / "pack"
    shutil.copytree(bundled_pack.folder, folder)
    return folder


@pytest.mark.parametrize("which", ["detector", "embedder"])
def test_a_damaged_model_file_is_refused(copied_pack: Path, which: str) -> None:
    pack = Pack.load(copied_pack)
    path = pack.detector_path if which == "detector" else pack.embedder_path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"SHA-256 is .* but .*pack\.toml says") as caught:
        Pipeline.load(pack, device="cpu", threads=1)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("which", ["detector", "embedder"])
def test_a_missing_model_file_is_refused(copied_pack: Path, which: str) -> None:
    pack = Pack.load(copied_pack)
    path = pack.detector_path if which == "detector" else pack.embedder_path
    path.unlink()
    with pytest.raises(ModelError, match="is missing") as caught:
        Pipeline.load(pack, device="cpu", threads=1)
    assert str(path) in str(caught.value)


def test_an_unknown_device_is_refused(bundled_pack: Pack) -> None:
    with pytest.raises(ConfigError, match="auto, cpu or cuda"):
        Pipeline.load(bundled_pack, device="tpu")


def _write_golden() -> None:
    import importlib.util

    from facerec.packs import find_pack

    photos = []
    for package, relative in (
        ("insightface", "data/images/t1.jpg"),
        ("skimage", "data/astronaut.png"),
    ):
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        photos.append(load_image(Path(spec.origin).parent / relative))
    pipeline = Pipeline.load(find_pack("bundled"), device="cpu")
    np.savez_compressed(GOLDEN, **_as_kept(pipeline, photos))


if __name__ == "__main__":
    _write_golden()
