"""Frames at a rate, tracks, and the best shot of each; videos are made from real photos."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facerec.errors import ImageError
from facerec.image import to_jpeg
from facerec.pipeline import Pipeline
from facerec.quality import Gate, Pose, Quality
from facerec.types import Face, RGBImage
from gallery.crew import Chunk, Threads
from gallery.photo_work import LookOptions, PhotoWork
from gallery.videos import Frame, Likeness, Shot, Tracks, Video, batches, iou, shot_quality
from tests.gallery_samples import near, unit

FPS = 10


def write_video(path: Path, frames: Sequence[RGBImage]) -> Path:
    """MJPG for .avi, mp4v for .mp4; FPS frames a second."""
    code = {".avi": "MJPG", ".mp4": "mp4v"}[path.suffix]
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), FPS, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


def blurred(image: RGBImage) -> RGBImage:
    return cv2.GaussianBlur(image, (0, 0), 6)


@pytest.fixture(scope="module")
def portrait(astronaut: RGBImage) -> RGBImage:
    return np.ascontiguousarray(astronaut[:320, 60:380])


@pytest.fixture(scope="module")
def others(group_photo: RGBImage, pipeline: Pipeline) -> list[RGBImage]:
    """Six people, 320x320 each."""
    [found] = pipeline.detector.detect([group_photo])
    photos = []
    for box in found.boxes_xyxy[np.argsort(found.boxes_xyxy[:, 0])]:
        centre, half = (box[:2] + box[2:]) / 2, 0.9 * float(max(box[2:] - box[:2]))
        x0, y0 = np.maximum(0, centre - half).astype(int)
        x1, y1 = (centre + half).astype(int)
        photos.append(cv2.resize(group_photo[y0:y1, x0:x1], (320, 320)))
    return photos


@pytest.fixture(scope="module")
def work(pipeline: Pipeline) -> PhotoWork:
    return PhotoWork(pipeline, LookOptions())


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_frames_come_at_the_rate_that_was_asked_for(
    tmp_path: Path, portrait: RGBImage, suffix: str
) -> None:
    path = write_video(tmp_path / f"clip{suffix}", [portrait] * 30)
    for fps, times in ((2.0, [0, 0.5, 1, 1.5, 2, 2.5]), (1.0, [0, 1, 2]), (1000, None)):
        frames = list(Video(path, fps, 10**6))
        if times is None:
            assert len(frames) == 30
        else:
            assert [frame.t_s for frame in frames] == pytest.approx(times, abs=0.06)
    assert frames[0].image.shape == portrait.shape
    assert float(np.abs(frames[0].image.astype(int) - portrait).mean()) < 12  # RGB, not BGR


def test_the_best_shot_of_a_person_stands_for_the_track(
    tmp_path: Path, portrait: RGBImage, work: PhotoWork
) -> None:
    moving = [np.roll(portrait, 2 * i, axis=1) for i in range(5)]
    frames = [blurred(f) for f in moving for _ in range(2)] + moving * 2 + [blurred(portrait)] * 8
    looked = work.watch(write_video(tmp_path / "clip.avi", frames))
    assert looked.seen == 1 and looked.problem is None
    [face] = looked.faces
    assert face.objections == () and face.crop_jpeg is not None and face.t_s is not None
    assert 1.0 <= face.t_s < 2.0
    assert face.template("clip.mp4", "ab" * 32).source == f"clip.mp4#t={face.t_s:.2f}"
    [still] = work.look([to_jpeg(portrait)])
    assert float(face.face.embedding @ still.faces[0].face.embedding) > 0.95
    again = pickle.loads(pickle.dumps(looked))
    assert np.array_equal(again.faces[0].face.embedding, face.face.embedding)


def test_people_are_told_apart_and_known_again(
    tmp_path: Path, others: list[RGBImage], work: PhotoWork
) -> None:
    a, b = others[0], others[3]
    side_by_side = np.ascontiguousarray(np.hstack([a, b]))
    empty = np.full_like(side_by_side, 90)
    swapped = np.ascontiguousarray(np.hstack([b, a]))
    frames = [side_by_side] * 10 + [empty] * 10 + [swapped] * 10
    looked = work.watch(write_video(tmp_path / "clip.avi", frames))
    assert looked.seen == 2
    assert [face.number for face in looked.faces] == [0, 1]
    one, two = (face.face.embedding for face in looked.faces)
    assert float(one @ two) < work.pipeline.thresholds.cosine[0]


def test_a_video_that_is_to_show_one_person_and_shows_two_is_refused(
    tmp_path: Path, others: list[RGBImage], pipeline: Pipeline
) -> None:
    frame = np.ascontiguousarray(np.hstack([others[0], others[3]]))
    path = write_video(tmp_path / "clip.avi", [frame] * 5)
    looked = PhotoWork(pipeline, LookOptions(one_person=True)).watch(path)
    assert [r.code for r in looked.objections] == ["several_faces"] and not looked.faces
    forced = PhotoWork(pipeline, LookOptions(one_person=True, gate=None)).watch(path)
    assert len(forced.faces) == 1


def test_a_track_without_a_good_shot_keeps_the_gates_reasons(
    tmp_path: Path, portrait: RGBImage, pipeline: Pipeline
) -> None:
    strict = LookOptions(gate=Gate(min_size_px=1000))
    looked = PhotoWork(pipeline, strict).watch(write_video(tmp_path / "a.avi", [portrait] * 5))
    assert [r.code for r in looked.faces[0].objections] == ["too_small"]
    assert looked.faces[0].crop_jpeg is None


def test_what_is_no_video_is_said_and_half_of_one_is_used(
    tmp_path: Path, portrait: RGBImage, work: PhotoWork
) -> None:
    whole = write_video(tmp_path / "whole.avi", [portrait] * 40).read_bytes()
    for name, data, said in (
        ("empty.mp4", b"", "empty"),
        ("noise.mp4", bytes(range(256)) * 40, "not a video"),
        ("list.avi", b"#EXTM3U\nhttp://localhost/x\n", "text"),
        ("list.mkv", b"ffconcat version 1.0\nfile /etc/passwd\n", "text"),
    ):
        (tmp_path / name).write_bytes(data)
        looked = work.watch(tmp_path / name)
        assert looked.problem is not None and looked.problem[0] == "unreadable"
        assert said in looked.problem[1] and not looked.faces
    missing = work.watch(tmp_path / "nowhere.mp4")
    assert missing.problem is not None and "No such file" in missing.problem[1]
    (tmp_path / "half.avi").write_bytes(whole[: len(whole) // 2])
    half = work.watch(tmp_path / "half.avi")
    assert half.problem is not None and half.problem[0] == "damaged_video" and half.seen == 1
    with pytest.raises(ImageError, match="more than the limit"):
        list(Video(tmp_path / "whole.avi", 1.0, 320 * 320 - 1))


class Wrapped:
    """A pipeline that does something else first."""

    def __init__(self, pipeline: Pipeline, first: Callable[[], object]) -> None:
        self.thresholds = pipeline.thresholds
        self._pipeline = pipeline
        self._first = first

    def extract(self, images: Sequence[RGBImage]) -> object:
        self._first()
        return self._pipeline.extract(images)


@pytest.mark.parametrize("error", [ValueError("odd"), MemoryError("odd"), cv2.error("odd")])
def test_a_video_with_a_frame_that_breaks_the_pipeline_is_said_to_be_unusable(
    tmp_path: Path, portrait: RGBImage, pipeline: Pipeline, error: Exception
) -> None:
    def broken() -> None:
        raise error

    path = write_video(tmp_path / "clip.avi", [portrait] * 3)
    looked = PhotoWork(Wrapped(pipeline, broken), LookOptions()).watch(path)  # type: ignore[arg-type]
    assert looked.problem is not None and looked.problem[0] == "unusable"
    assert looked.problem[1].startswith(f"{path}: ") and "odd" in looked.problem[1]
    assert not looked.faces and not looked.seen


def test_a_crew_that_is_closed_does_not_wait_for_the_end_of_a_video(
    tmp_path: Path, portrait: RGBImage, pipeline: Pipeline
) -> None:
    batches_seen = 0

    def close_first() -> None:
        nonlocal batches_seen
        batches_seen += 1
        closing.start()
        with suppress(RuntimeError):  # when it takes no more work, it is being closed
            while True:
                crew.submit(Chunk()).cancel()

    path = write_video(tmp_path / "clip.avi", [portrait] * 40)
    work = PhotoWork(Wrapped(pipeline, close_first), LookOptions(video_fps=1000))  # type: ignore[arg-type]
    crew = Threads(lambda: work, 1)
    closing = threading.Thread(target=crew.close)
    looked = crew.submit(Chunk(video=path))
    with pytest.raises(CancelledError):
        looked.result(timeout=60)
    closing.join(timeout=60)
    assert batches_seen == 1 and not closing.is_alive()


def test_odd_names_of_videos_are_read(tmp_path: Path, portrait: RGBImage, work: PhotoWork) -> None:
    made = write_video(tmp_path / "plain.avi", [portrait] * 3)
    for name in ("100%03d.avi", "caf\udce9 ☃.avi"):
        path = tmp_path / name
        path.write_bytes(made.read_bytes())
        assert work.watch(path).seen == 1


def test_frames_are_batched_by_number_and_by_size() -> None:
    def lengths(side: int, count: int) -> list[int]:
        image = np.zeros((side, side, 3), np.uint8)
        return [len(batch) for batch in batches(Frame(0.0, image) for _ in range(count))]

    assert lengths(8, 40) == [16, 16, 8]
    assert lengths(4000, 9) == [4, 4, 1]
    assert lengths(9000, 2) == [1, 1]
    assert lengths(8, 0) == []


def shot(embedding: np.ndarray, box: Sequence[float], quality: float = 0.5) -> Shot:
    points = np.zeros((5, 2), np.float32)
    return Shot(Face(np.array(box, np.float32), points, 0.9, embedding), 0.0, (True, quality))


def test_faces_at_one_place_are_one_track_unless_they_differ_too_much() -> None:
    person, here = unit(1), (0, 0, 10, 10)
    tracks = Tracks(Likeness(loose=0.3, strict=0.8))
    [first] = tracks.add([shot(person, here)])
    assert tracks.add([shot(near(person, 0.5), (1, 0, 11, 10))]) == [first]
    [other] = tracks.add([shot(near(person, 0.1, 5), (2, 0, 12, 10))])
    assert other is not first
    [elsewhere] = tracks.add([shot(near(person, 0.5, 3), (100, 0, 110, 10))])
    assert elsewhere not in (first, other)
    tracks.add([])
    assert tracks.add([shot(near(person, 0.9), (200, 0, 210, 10))]) == [first]
    assert len(tracks.all) == 3


def test_two_faces_of_a_frame_are_never_one_track() -> None:
    person = unit(1)
    tracks = Tracks(Likeness(loose=0.3, strict=0.8))
    assert len({id(t) for t in tracks.add([shot(person, (0, 0, 9, 9))] * 2)}) == 2
    both = tracks.add([shot(person, (0, 0, 9, 9)), shot(person, (1, 0, 10, 9))])
    assert {id(t) for t in both} == {id(t) for t in tracks.all} and len(tracks.all) == 2


def test_the_best_of_a_track_is_kept() -> None:
    tracks = Tracks(Likeness(0.3, 0.8))
    shots = [shot(unit(1), (0, 0, 9, 9), q) for q in (0.2, 0.9, 0.4)]
    for one in shots:
        tracks.add([one])
    assert tracks.all[0].best is shots[1] and tracks.all[0].frames == 3


boxes = st.tuples(*[st.floats(0, 100, width=32)] * 4).map(
    lambda v: np.array([v[0], v[1], v[0] + v[2] + 1, v[1] + v[3] + 1], np.float32)
)


@given(boxes, boxes)
def test_intersection_over_union_is_what_it_says(a: np.ndarray, b: np.ndarray) -> None:
    def overlap(lo: int, hi: int) -> float:
        return max(0.0, float(min(a[hi], b[hi])) - float(max(a[lo], b[lo])))

    def size(box: np.ndarray) -> float:
        return float(box[2] - box[0]) * float(box[3] - box[1])

    shared = overlap(0, 2) * overlap(1, 3)
    assert iou(a, b) == pytest.approx(shared / (size(a) + size(b) - shared), abs=1e-3)
    assert iou(a, b) == pytest.approx(iou(b, a)) and 0 <= iou(a, b) <= 1 + 1e-6
    assert iou(a, a) == pytest.approx(1)


@pytest.mark.parametrize(
    "worse",
    [
        lambda q: Quality(q.size_px / 2, q.det_score, q.pose, q.sharpness),
        lambda q: Quality(q.size_px, q.det_score / 2, q.pose, q.sharpness),
        lambda q: Quality(q.size_px, q.det_score, Pose(60, 0, 0), q.sharpness),
        lambda q: Quality(q.size_px, q.det_score, Pose(0, 40, 0), q.sharpness),
        lambda q: Quality(q.size_px, q.det_score, q.pose, q.sharpness / 4),
    ],
)
def test_a_shot_is_worse_for_each_fault(worse: Callable[[Quality], Quality]) -> None:
    good = Quality(120.0, 0.9, Pose(0, 0, 0), 0.3)
    assert 0 <= shot_quality(worse(good)) < shot_quality(good) <= 1
