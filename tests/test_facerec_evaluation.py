"""The LFW runner: protocol files, photos, the report, its picture and its thresholds."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from facerec import metrics
from facerec.errors import ConfigError, ImageError, ModelError
from facerec.evaluation import LfwReport, assess, evaluate_lfw
from facerec.files import write_atomically
from facerec.image import load_image, to_jpeg
from facerec.lfw import Protocol, embed_central_faces, find_photos, read_protocol
from facerec.packs.manifest import Pack
from facerec.pairs import pair_scores
from facerec.pipeline import Pipeline
from facerec.plots import save_roc
from facerec.reporting import format_table, write_thresholds
from facerec.types import ThresholdTable

# --- made data ---------------------------------------------------------------------------


def write_pairs(path: Path, people: list[str], photos: int, folds: int, count: int) -> None:
    """A protocol file over ``people`` with ``photos`` each, folds x (count + count) pairs."""
    rng = np.random.default_rng(11)
    lines = [f"{folds}\t{count}"]
    for _ in range(folds):
        for _ in range(count):
            i, j = sorted(rng.choice(np.arange(1, photos + 1), 2, replace=False))
            lines.append(f"{rng.choice(people)}\t{i}\t{j}")
        for _ in range(count):
            a, b = rng.choice(people, 2, replace=False)
            i, j = rng.integers(1, photos + 1, 2)
            lines.append(f"{a}\t{i}\t{b}\t{j}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def augmented(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same face in another light: mirrored perhaps, brighter or darker, noisy."""
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    gain, noise = rng.uniform(0.6, 1.2), rng.normal(0, 4, crop.shape)
    return np.clip(crop * gain + noise, 0, 255).astype(np.uint8)


def loose_crops(pipeline: Pipeline, image: np.ndarray) -> list[np.ndarray]:
    """Each face in the middle of a square 2.2 times its size, leftmost face first."""
    crops = []
    for face in sorted(pipeline.extract([image])[0], key=lambda face: face.box_xyxy[0]):
        x1, y1, x2, y2 = (float(v) for v in face.box_xyxy)
        half = round(1.1 * max(x2 - x1, y2 - y1))
        padded = np.pad(image, ((half, half), (half, half), (0, 0)), mode="edge")
        x, y = round((x1 + x2) / 2), round((y1 + y2) / 2)  # the corner, once padded
        crops.append(padded[y : y + 2 * half, x : x + 2 * half])
    return crops


NAMES = ["Ada B", "Bo", "Cy", "Dot", "Eve", "Zoë"]
PHOTOS = 4


@pytest.fixture(scope="module")
def album(tmp_path_factory, pipeline: Pipeline, group_photo: np.ndarray) -> Path:
    """LFW's layout with six people, four photos each, and a protocol of 3 x (8 + 8) pairs."""
    folder, rng = tmp_path_factory.mktemp("album"), np.random.default_rng(3)
    crops = loose_crops(pipeline, group_photo)
    assert len(crops) == len(NAMES)
    for name, crop in zip(NAMES, crops, strict=True):
        (folder / name).mkdir()
        for number in range(1, PHOTOS + 1):
            jpeg = to_jpeg(augmented(crop, rng))
            (folder / name / f"{name}_{number:04d}.jpg").write_bytes(jpeg)
    write_pairs(folder / "pairs.txt", NAMES, PHOTOS, folds=3, count=8)
    return folder


@pytest.fixture(scope="module")
def album_report(album: Path, pipeline: Pipeline) -> LfwReport:
    return evaluate_lfw(pipeline, album, batch_size=5)


def made_embeddings(protocol: Protocol, noise: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(protocol.labels.max() + 1, 32))
    rows = centres[protocol.labels] + noise * rng.normal(size=(len(protocol.photos), 32))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def made_protocol(folder: Path, people: int = 60, photos: int = 5) -> Protocol:
    names = [f"P{at:03d}" for at in range(people)]
    write_pairs(folder / "pairs.txt", names, photos, folds=5, count=80)
    return read_protocol(folder / "pairs.txt")


def made_report(protocol: Protocol, rows: np.ndarray, found: np.ndarray) -> LfwReport:
    return assess(
        protocol, rows, found, pack="made", contract_id="0123", data="made data", seconds=1.5
    )


# --- the protocol file -------------------------------------------------------------------

GOOD = "2\t1\nAnn\t1\t2\nAnn\t1\tBob\t1\nBob\t2\t1\nCy\t10\tAnn\t2\n"


def test_a_protocol_lists_each_photo_once_and_its_pairs_by_fold(tmp_path):
    (tmp_path / "pairs.txt").write_text(GOOD.replace("\n", "\r\n"))
    protocol = read_protocol(tmp_path / "pairs.txt")
    assert protocol.photos == (("Ann", 1), ("Ann", 2), ("Bob", 1), ("Bob", 2), ("Cy", 10))
    pairs = [
        (protocol.photos[a], protocol.photos[b])
        for a, b in zip(protocol.left, protocol.right, strict=True)
    ]
    assert pairs == [
        (("Ann", 1), ("Ann", 2)),
        (("Ann", 1), ("Bob", 1)),
        (("Bob", 2), ("Bob", 1)),
        (("Cy", 10), ("Ann", 2)),
    ]
    assert protocol.same.tolist() == [True, False, True, False]
    assert protocol.fold.tolist() == [0, 0, 1, 1]
    assert protocol.labels.tolist() == [0, 0, 1, 1, 2]
    assert not protocol.is_lfw_view_2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2\t1\n", "2\n", r"line 1: expected the number of folds.*'2'"),
        ("2\t1\n", "1\t2\n", r"line 1: at least 2 folds"),
        ("2\t1\n", "2\t2\n", r"line 1 announces 2 folds of 2.*9 lines.*has 5"),
        ("Ann\t1\t2", "Ann\t1", r"line 2: expected a genuine pair"),
        ("Ann\t1\t2", "Ann 1 2", r"line 2: expected a genuine pair"),
        ("Ann\t1\tBob\t1", "Ann\t1\t2", r"line 3: expected an impostor pair"),
        ("Ann\t1\tBob\t1", "Ann\t1\tAnn\t2", r"line 3: an impostor pair of one person, 'Ann'"),
        ("Bob\t2\t1", "Bob\t2\t2", r"line 4: a pair of one photo with itself"),
        ("Bob\t2\t1", "Bob\t0\t1", r"line 4: photos are numbered from 1, got '0'"),
        ("Bob\t2\t1", "Bob\tx\t1", r"line 4: photos are numbered from 1, got 'x'"),
        ("Cy\t10", "../Cy\t10", r"line 5: '../Cy' is no name of a folder"),
        ("Cy\t10", "\t10", r"line 5: '' is no name of a folder"),
        (GOOD, "", r"line 1: expected"),
    ],
)
def test_a_wrong_protocol_is_refused_with_file_and_line(tmp_path, old, new, message):
    path = tmp_path / "pairs.txt"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        read_protocol(path)
    assert str(caught.value).startswith(str(path))


def test_a_protocol_that_cannot_be_read_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="no such file; the protocol"):
        read_protocol(tmp_path / "pairs.txt")
    (tmp_path / "pairs.txt").write_bytes(b"2\t1\n\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_protocol(tmp_path / "pairs.txt")


def test_missing_photos_are_counted_and_the_first_is_named(tmp_path, album):
    protocol = read_protocol(album / "pairs.txt")
    assert all(path.is_file() for path in find_photos(protocol, album))
    name, number = protocol.photos[0]
    with pytest.raises(ConfigError) as caught:
        find_photos(protocol, tmp_path)
    total = len(protocol.photos)
    assert f"{total} of the {total} photos" in str(caught.value)
    assert str(tmp_path / name / f"{name}_{number:04d}.jpg") in str(caught.value)


# --- from photos to embeddings -----------------------------------------------------------


def test_the_most_central_face_counts_not_the_best_detected(tmp_path, pipeline, group_photo):
    faces = pipeline.extract([group_photo])[0]
    paths = []
    for at, face in enumerate(faces):  # each face once in the middle, its neighbours in view
        x, y = (face.box_xyxy[:2] + face.box_xyxy[2:]).astype(int) // 2
        reach = 320
        padded = np.pad(group_photo, ((reach, reach), (reach, reach), (0, 0)))
        paths.append(tmp_path / f"{at}.jpg")
        paths[-1].write_bytes(to_jpeg(padded[y : y + 2 * reach, x : x + 2 * reach], 95))
    views = pipeline.extract([load_image(path) for path in paths])
    assert sum(len(found) > 1 for found in views) >= 4
    rows, found = embed_central_faces(pipeline, paths)
    assert found.all()
    similarity = rows @ np.stack([face.embedding for face in faces]).T
    assert similarity.argmax(axis=1).tolist() == list(range(len(faces)))
    assert similarity.diagonal().min() > 0.97
    best_detected = np.stack([found[0].embedding for found in views])
    assert ((best_detected * rows).sum(axis=1) < 0.97).any(), "the rule made no difference"


def test_batches_do_not_change_the_embeddings_and_progress_is_told(album, pipeline):
    paths = find_photos(read_protocol(album / "pairs.txt"), album)[:7]
    told: list[tuple[int, int]] = []
    rows, found = embed_central_faces(
        pipeline, paths, batch_size=3, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(3, 7), (6, 7), (7, 7)]
    at_once, also_found = embed_central_faces(pipeline, paths, batch_size=64)
    assert (found == also_found).all()
    assert (rows * at_once).sum(axis=1).min() > 1 - 1e-4
    with pytest.raises(ConfigError, match="batch_size"):
        embed_central_faces(pipeline, paths, batch_size=0)


def test_a_run_can_be_stopped_and_leaves_nothing_behind(album, pipeline, tmp_path):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    kept = tmp_path / "kept.npz"
    with pytest.raises(KeyboardInterrupt):
        evaluate_lfw(pipeline, album, batch_size=2, progress=stop, embeddings_file=kept)
    assert list(tmp_path.iterdir()) == []
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


def test_a_photo_without_a_face_is_listed_and_its_genuine_pairs_are_errors(
    album, album_report, pipeline, tmp_path
):
    copy = tmp_path / "album"
    for path in album.rglob("*.*"):
        target = copy / path.relative_to(album)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (copy / "Bo" / "Bo_0002.jpg").write_bytes(to_jpeg(np.full((90, 90, 3), 127, np.uint8)))
    report = evaluate_lfw(pipeline, copy)
    assert report.missed == ("Bo_0002",)
    assert "no face in 1: Bo_0002" in format_table(report)
    lost = PHOTOS - 1  # Bo_0002 with each other photo of Bo, below every threshold
    assert report.all_pairs.curve.genuine == album_report.all_pairs.curve.genuine
    share = lost / report.all_pairs.curve.genuine
    assert report.all_pairs.points[0].point.fnmr == pytest.approx(
        album_report.all_pairs.points[0].point.fnmr + share
    )
    assert report.all_pairs.curve.impostor == 276 - 36 - 20  # Bo_0002 with the 20 of others


def test_a_photo_that_cannot_be_read_stops_the_measurement(album, pipeline, tmp_path):
    broken = tmp_path / "x.jpg"
    broken.write_bytes(b"not a photo")
    with pytest.raises(ImageError, match=r"x\.jpg"):
        embed_central_faces(pipeline, [broken])


def test_embeddings_are_kept_and_read_back_only_by_the_same_pack(
    album, album_report, pipeline, tmp_path, monkeypatch
):
    kept = tmp_path / "kept.npz"
    first = evaluate_lfw(pipeline, album, embeddings_file=kept)

    def must_not_run(*_: object, **__: object) -> None:
        raise AssertionError("embedded again")

    with monkeypatch.context() as patch:
        patch.setattr("facerec.embedded.embed_central_faces", must_not_run)
        assert evaluate_lfw(pipeline, album, embeddings_file=kept) == first
    assert first.accuracy == album_report.accuracy
    manifest = pipeline.pack.manifest
    other = manifest.model_copy(
        update={"detector": manifest.detector.model_copy(update={"max_side": 320})}
    )
    altered = Pipeline(
        Pack(pipeline.pack.folder, other),
        pipeline.detector,
        pipeline.embedder,
        pipeline.device,
        pipeline._workers,
    )
    with pytest.raises(ConfigError, match="made by another pack"):
        evaluate_lfw(altered, album, embeddings_file=kept)
    kept.write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(ConfigError, match="not a file of embeddings"):
        evaluate_lfw(pipeline, album, embeddings_file=kept)
    with pytest.raises(ConfigError, match="no such folder"):
        evaluate_lfw(pipeline, album, embeddings_file=tmp_path / "nowhere" / "kept.npz")


# --- the report --------------------------------------------------------------------------


def test_six_people_of_one_photo_are_told_apart(album_report):
    assert album_report.accuracy.mean == 1.0
    assert album_report.missed == ()
    assert (album_report.photos, album_report.people) == (24, 6)
    assert album_report.all_pairs.curve.genuine == 36
    assert album_report.all_pairs.curve.impostor == 276 - 36
    assert album_report.all_pairs.eer == 0
    assert album_report.thresholds is None, "240 impostor pairs cannot show FMR 1e-2"
    assert album_report.open_set is None, "nobody is a stranger"
    assert all(point.fnmr_interval is None for point in album_report.all_pairs.points)
    assert "(LFW layout)" in album_report.data


def test_the_report_holds_what_the_metrics_say(tmp_path):
    protocol = made_protocol(tmp_path)
    rows = made_embeddings(protocol, 0.9)
    report = made_report(protocol, rows, np.ones(len(rows), bool))
    scores = (rows[protocol.left] * rows[protocol.right]).sum(axis=1)
    accuracy = metrics.kfold_accuracy(scores, protocol.same, protocol.fold)
    assert report.accuracy.mean == pytest.approx(accuracy.mean, abs=1e-9)
    assert report.accuracy.mean < 1
    genuine, impostor = pair_scores(rows, protocol.labels)
    result = report.all_pairs
    assert (result.curve.genuine, result.curve.impostor) == (len(genuine), len(impostor))
    assert result.eer == metrics.eer(genuine, impostor)
    assert result.auc == metrics.auc(genuine, impostor)
    assert tuple(p.point for p in result.points) == metrics.operating_points(genuine, impostor)
    assert [p.point.is_measured for p in result.points] == [True, True, True, False, False, False]
    assert [p.fnmr_interval is None for p in result.points] == [
        True,
        False,
        False,
        True,
        True,
        True,
    ]
    for p in result.points:
        if p.fnmr_interval is not None:
            assert p.fnmr_interval.low <= p.point.fnmr <= p.fnmr_interval.high
            assert p.fnmr_interval.low < p.fnmr_interval.high
    for far, tar in zip(result.curve.far[:-1:40], result.curve.tar[:-1:40], strict=True):
        assert tar == pytest.approx(metrics.tar_at_far(genuine, impostor, far), abs=2e-3)
    assert result.curve.far[0] == pytest.approx(1 / len(impostor), rel=0.05)
    assert (result.curve.far[-1], result.curve.tar[-1]) == (1, 1)
    assert [p.point.fmr for p in report.protocol.points] == [1e-1, 1e-2]
    assert report.thresholds == metrics.threshold_table(
        genuine, impostor, (1e-1, 1e-2, 1e-3), measured_on=report.thresholds.measured_on
    )
    assert "facerec evaluate lfw DIR --pack made" in report.thresholds.measured_on
    assert f"{len(impostor):,} impostor" in report.thresholds.measured_on
    assert report == made_report(protocol, rows, np.ones(len(rows), bool)), "not reproducible"


def test_a_missed_face_counts_against_genuine_pairs_only(tmp_path):
    protocol = made_protocol(tmp_path)
    rows = made_embeddings(protocol, 0.2)
    everything = np.ones(len(rows), bool)
    full = made_report(protocol, rows, everything)
    assert full.accuracy.mean == 1
    found = everything.copy()
    found[:5] = False  # all photos of one person
    report = made_report(protocol, rows, found)  # what stands in those rows is ignored
    touched = ~(found[protocol.left] & found[protocol.right])
    errors = int((touched & protocol.same).sum())
    assert errors > 0
    assert 1 - report.accuracy.mean == pytest.approx(errors / len(touched))
    assert len(report.missed) == 5
    assert report.all_pairs.curve.genuine == full.all_pairs.curve.genuine
    assert report.all_pairs.points[0].point.fnmr == pytest.approx(10 / len_genuine(protocol))
    with pytest.raises(ImageError, match="nothing can be compared"):
        made_report(protocol, rows, np.arange(len(rows)) < 3)
    with pytest.raises(ValueError, match="expected"):
        made_report(protocol, rows[1:], everything)


def len_genuine(protocol: Protocol) -> int:
    counts = np.bincount(protocol.labels)
    return int((counts * (counts - 1) // 2).sum())


def test_the_closest_pairs_show_a_person_filed_under_two_names(tmp_path):
    protocol = made_protocol(tmp_path)
    rows = made_embeddings(protocol, 0.3)
    a = protocol.photos.index(("P007", 2))
    b = protocol.photos.index(("P031", 4))
    rows[b] = rows[a]
    report = made_report(protocol, rows, np.ones(len(rows), bool))
    first = report.closest[0]
    assert (first.photo, first.other, first.cosine) == (
        "P007_0002",
        "P031_0004",
        pytest.approx(1),
    )
    cosines = [pair.cosine for pair in report.closest]
    assert len(cosines) == 20
    assert cosines == sorted(cosines, reverse=True)
    assert "P007_0002  P031_0004" in format_table(report)


def test_open_set_enrols_first_photos_and_searches_the_rest(tmp_path):
    # A and B have two and three photos, 30 others one each: strangers.
    lines = ["2\t15"]
    names = [f"S{at:02d}" for at in range(30)]
    for fold in range(2):
        lines += [
            "A\t1\t2" if at % 2 else f"B\t{1 + at % 3}\t{1 + (at + 1) % 3}" for at in range(15)
        ]
        lines += [f"A\t1\t{name}\t1" for name in names[15 * fold : 15 * fold + 15]]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    protocol = read_protocol(tmp_path / "pairs.txt")
    rows = np.zeros((len(protocol.photos), 40), np.float32)
    for at, label in enumerate(protocol.labels):
        rows[at, label] = 1
    swapped = protocol.photos.index(("B", 3))
    rows[swapped] = rows[protocol.photos.index(("A", 1))]  # this photo of B looks like A
    report = made_report(protocol, rows, np.ones(len(rows), bool))
    assert report.open_set is not None
    assert report.open_set.enrolled == 2
    assert report.open_set.hit_rates == ((1, pytest.approx(2 / 3)), (5, 1), (10, 1))
    assert report.open_set.points == (), "30 strangers cannot show FPIR 0.1"
    for missed in (("A", 1), ("A", 2)):  # enrolled by the other photo, but never found by this
        found = np.array([photo != missed for photo in protocol.photos])
        lost = made_report(protocol, rows, found).open_set
        assert lost is not None
        assert lost.enrolled == 2
        assert lost.hit_rates[0] == (1, pytest.approx(1 / 3))


def test_the_report_as_json_and_as_text(tmp_path):
    protocol = made_protocol(tmp_path)
    rows = made_embeddings(protocol, 0.9)
    report = made_report(protocol, rows, np.ones(len(rows), bool))
    raw = json.loads(report.to_json())
    assert raw["accuracy"]["mean"] == report.accuracy.mean
    assert raw["all_pairs"]["points"][0]["point"]["fmr"] == 0.1
    assert raw["protocol"]["curve"]["far"][-1] == 1
    text = format_table(report)
    assert max(map(len, text.splitlines())) <= 90
    assert f"{100 * report.accuracy.mean:.2f} ± {100 * report.accuracy.std:.2f} %" in text
    assert "1e-6*" in text
    assert "* not measured" in text
    assert "no face in none" in text
    many = replace(report, missed=tuple(f"X_{at:04d}" for at in range(13)))
    assert "no face in 13: X_0000, " in format_table(many)
    assert " and 3 more" in format_table(many)


def test_the_picture_shows_both_curves_and_needs_no_display(tmp_path, monkeypatch):
    import sys

    protocol = made_protocol(tmp_path)
    rows = made_embeddings(protocol, 0.9)
    report = made_report(protocol, rows, np.ones(len(rows), bool))
    save_roc(report, tmp_path / "roc.png")
    picture = load_image(tmp_path / "roc.png")
    assert picture.shape[0] > 600
    assert picture.shape[1] > 1000
    for colour in ((31, 95, 168), (217, 119, 28)):  # every pair, protocol
        assert (np.abs(picture.astype(int) - colour).max(axis=2) < 8).sum() > 500
    with pytest.raises(ConfigError, match="cannot be written"):
        save_roc(report, tmp_path / "nowhere" / "roc.png")
    with pytest.raises(ConfigError, match="cannot be written"):
        save_roc(report, tmp_path / "roc.docx")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match="pip install matplotlib"):
        save_roc(report, tmp_path / "roc.png")


# --- thresholds into the pack ------------------------------------------------------------

TABLE = ThresholdTable(
    fmr=(1e-1, 1e-6),
    cosine=(float(np.float32(0.9)), float(np.nextafter(np.float32(0.95), np.float32(2)))),
    fnmr=(0.0013578570546846067, 0.5),
    measured_on='made data, "quoted"; facerec evaluate lfw DIR --pack made',
)


@pytest.fixture
def pack_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "pack.toml").write_text(
        '# first comment\nname = "made"\nlicence = "MIT"\nsource = "here"\n\n'
        '[detector]  # beside\nkind = "yunet"\nfile = "d.onnx"\n\n'
        '[thresholds]\nmeasured_on = "older"\nfmr = [0.2,\n  0.1]\ncosine = [0.1, 0.2]\n'
        "fnmr = [0.0, 0.0]\n\n# before the embedder\n"
        '[embedder]\nfile = "e.onnx"\ntemplate = "arcface-112"\ninput_size = 112\n'
        "mean = 127.5\nscale = 0.0078 # 1 / 128\ndim = 128\n",
        encoding="utf-8",
    )
    return folder


def test_thresholds_replace_the_table_and_nothing_else(pack_folder):
    path = pack_folder / "pack.toml"
    path.chmod(0o640)
    before = Pack.load(pack_folder).manifest
    write_thresholds(pack_folder, TABLE, lfw_accuracy=0.991166666)
    after = Pack.load(pack_folder).manifest
    assert after.thresholds is not None
    table = after.thresholds.table()
    assert (table.fmr, table.measured_on) == (TABLE.fmr, TABLE.measured_on)
    assert table.fnmr == (0.001358, 0.5)
    for written, meant in zip(table.cosine, TABLE.cosine, strict=True):
        near = np.float32(meant)
        for score in (np.nextafter(near, np.float32(-2)), near, np.nextafter(near, np.float32(2))):
            assert (float(score) >= written) == (float(score) >= meant)
            assert (score >= np.float32(written)) == (float(score) >= meant)
    assert after.lfw_accuracy == 0.99117
    same = {"thresholds": None, "lfw_accuracy": None}
    assert after.model_copy(update=same) == before.model_copy(update=same)
    text = path.read_text(encoding="utf-8")
    for comment in ("# first comment", "[detector]  # beside", "# 1 / 128"):
        assert comment in text
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in pack_folder.iterdir()] == ["pack.toml"]
    write_thresholds(pack_folder, TABLE)
    assert path.read_text(encoding="utf-8") == text, "writing twice is writing once"


def test_thresholds_are_added_where_there_were_none(pack_folder):
    path = pack_folder / "pack.toml"
    text = path.read_text(encoding="utf-8")
    start, end = text.index("[thresholds]"), text.index("# before")
    path.write_text(text[:start] + text[end:], encoding="utf-8")
    assert Pack.load(pack_folder).thresholds is None
    write_thresholds(pack_folder, TABLE)
    found = Pack.load(pack_folder).thresholds
    assert found is not None
    assert found.fmr == TABLE.fmr


def test_a_pack_that_cannot_take_thresholds_keeps_what_it_had(pack_folder, tmp_path, monkeypatch):
    path = pack_folder / "pack.toml"
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("facerec.files.os.fsync", full)
        with pytest.raises(ModelError, match=r"cannot be written: .*No space left"):
            write_thresholds(pack_folder, TABLE)
    assert path.read_bytes() == before
    assert [p.name for p in pack_folder.iterdir()] == ["pack.toml"]
    with pytest.raises(ModelError, match="cannot be read"):
        write_thresholds(tmp_path, TABLE)
    path.write_text("name = 'half", encoding="utf-8")
    with pytest.raises(ModelError, match="not valid TOML"):
        write_thresholds(pack_folder, TABLE)


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "f"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


# --- the real thing ----------------------------------------------------------------------


@pytest.mark.slow
def test_the_bundled_pack_on_lfw(shared_dir, pipeline, tmp_path):
    """LFW View 2 from the raw photos: about two minutes on two cores."""
    report = evaluate_lfw(pipeline, shared_dir / "data" / "lfw")
    assert report.data == "LFW View 2"
    assert report.missed == ()
    assert report.accuracy.mean >= 0.990
    assert len(report.accuracy.per_fold) == 10
    assert report.all_pairs.curve.impostor == 29_640_749
    measured, shipped = report.thresholds, pipeline.thresholds
    assert measured is not None
    assert shipped is not None
    assert measured.fmr == shipped.fmr == metrics.DECADES
    assert measured.cosine == pytest.approx(shipped.cosine, abs=2e-3)
    assert measured.measured_on == shipped.measured_on
