"""A collection into a gallery: every photo once, whatever happens to the run or to the files."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import func, select

from facerec.errors import ModelError
from facerec.image import load_image, to_jpeg
from facerec.packs import find_pack
from facerec.pipeline import Pipeline
from facerec.quality import Gate
from facerec.types import RGBImage
from gallery import Gallery
from gallery.crew import Chunk, Threads, look_at
from gallery.enrolment import enrol_photos
from gallery.indexer import Indexer
from gallery.ledger import faces_of
from gallery.naming import Naming
from gallery.photo_work import Looked, LookOptions, PhotoWork
from gallery.schema import NAMED, FileRow, IdentityRow, PhotoRow
from gallery.sources import Sources
from gallery.watching import watch
from tests.index_samples import (
    BY_FOLDER,
    NAMES,
    codes,
    index,
    make_collection,
    open_for,
    rows,
    variation,
)
from tests.test_gallery_videos import write_video

ROOT = Path(__file__).resolve().parent.parent
EACH = 3


@pytest.fixture
def gallery(tmp_path: Path, pipeline: Pipeline):
    with open_for(tmp_path / "people", pipeline) as opened:
        yield opened


@pytest.fixture
def photos(tmp_path: Path, people: dict[str, RGBImage]) -> Path:
    """Three people with EACH photos."""
    make_collection(tmp_path / "photos", {n: people[n] for n in NAMES[:3]}, EACH)
    return tmp_path / "photos"


@pytest.fixture(scope="session")
def no_face() -> bytes:
    ramp = np.linspace(0, 255, 300, dtype=np.uint8)
    return to_jpeg(np.repeat(np.tile(ramp, (200, 1))[..., None], 3, axis=2))


def idle() -> Threads:
    """A crew that must not be given work."""

    def no_work() -> PhotoWork:
        raise AssertionError("no photo should have been looked at")

    return Threads(no_work, 1)


def count(gallery: Gallery, table: type) -> int:
    with gallery.reading() as view:
        return view.connection.execute(select(func.count()).select_from(table)).scalar_one()


# What comes in


def test_folders_of_people_become_people(gallery, pipeline, photos, people) -> None:
    report = index(gallery, pipeline, photos, naming=BY_FOLDER)
    assert report.to_dict() | {"seconds": 0, "photos_per_s": 0, "faces_per_s": 0} == {
        "interrupted": False,
        "notes": [],
        "photos": 9,
        "enrolled": 9,
        "templates": 9,
        "new_people": 3,
        "skipped": {"unchanged": 0, "failed_before": 0, "removed_before": 0},
        "duplicates": 0,
        "moved": 0,
        "changed": 0,
        "no_face": 0,
        "rejections": {},
        "ignored_files": 0,
        "pruned_files": 0,
        "removed_templates": 0,
        "faces": 9,
        "seconds": 0,
        "photos_per_s": 0,
        "faces_per_s": 0,
    }
    assert [(p.name, p.template_count) for p in gallery.people()] == [(n, 3) for n in NAMES[:3]]
    for name in NAMES[:3]:
        [[face]] = pipeline.extract([load_image(variation(people[name], 9))])
        match = gallery.identify(face.embedding[None])[0].match
        assert match is not None and match.name == name
    [template] = [t for t in gallery.templates("Ada") if t.source.endswith("/0.jpg")]
    data = (photos / "Ada" / "0.jpg").read_bytes()
    assert template.source == str(photos / "Ada" / "0.jpg")
    assert template.content_sha256 == hashlib.sha256(data).hexdigest()
    assert template.has_crop and template.box_xyxy is not None


def test_indexing_keeps_what_enrolling_keeps(gallery, pipeline, photos, tmp_path) -> None:
    index(gallery, pipeline, photos, naming=BY_FOLDER)
    with open_for(tmp_path / "enrolled", pipeline) as enrolled:
        for name in NAMES[:3]:
            files = sorted((photos / name).iterdir())
            enrol_photos(enrolled, pipeline, name, [(str(p), p) for p in files])
        assert rows(enrolled) == rows(gallery)
        contents = {row[2] for row in rows(gallery)}
        with enrolled.reading() as one, gallery.reading() as two:
            ours, theirs = faces_of(one, contents), faces_of(two, contents)
        for content in contents:
            assert float(ours[content][0].vector @ theirs[content][0].vector) > 0.9999


def test_without_names_every_face_becomes_somebody_unknown(
    gallery, pipeline, tmp_path, group_photo_path, no_face, people
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(group_photo_path, folder / "group.jpg")
    (folder / "street.jpg").write_bytes(no_face)
    (folder / "one.jpg").write_bytes(variation(people["Ada"], 0))
    report = index(gallery, pipeline, folder)
    counts = report.to_dict()
    image = load_image(group_photo_path)
    [faces] = pipeline.extract([image])
    good = [i for i, face in enumerate(faces) if not Gate().check(image, face)]
    assert 1 < len(good) < 6 and counts["faces"] == 7
    assert sum(counts["rejections"].values()) == 6 - len(good)
    [partly] = list(report.rejected)
    assert partly["kept"] == len(good) and len(partly["reasons"]) == 6 - len(good)
    assert (counts["photos"], counts["enrolled"]) == (3, 2)
    assert counts["templates"] == len(good) + 1
    assert counts["no_face"] == 1 and not len(report.failed) and counts["new_people"] == 0
    assert gallery.count() == (0, 0)
    unnamed = rows(gallery, folder)
    assert [(name, source, face) for name, source, _, face in unnamed] == [
        *((None, "group.jpg", i) for i in good),
        (None, "one.jpg", 0),
    ]
    assert count(gallery, IdentityRow) == len(good) + 1


def test_what_is_wrong_with_a_photo_is_said_and_stops_no_other(
    gallery, pipeline, photos, no_face, group_photo_path
) -> None:
    (photos / "Ada" / "torn.jpg").write_bytes((photos / "Ada" / "0.jpg").read_bytes()[:2000])
    (photos / "Ada" / "street.jpg").write_bytes(no_face)
    (photos / "Ada" / "empty.jpg").write_bytes(b"")
    shutil.copy(group_photo_path, photos / "Ada" / "group.jpg")
    (photos / "bad\u202ename").mkdir()
    shutil.copy(photos / "Bo" / "0.jpg", photos / "bad\u202ename" / "0.jpg")
    (photos / "notes.txt").write_text("not a photo")
    report = index(gallery, pipeline, photos, naming=BY_FOLDER)
    assert sorted(codes(report)) == ["bad_name", "no_face", "unreadable", "unreadable"]
    [torn] = [f for f in report.failed if "torn" in f["photo"]]
    assert torn["reason"].startswith(f"{photos}/Ada/torn.jpg: damaged or truncated")
    [refused] = list(report.rejected)
    assert refused["photo"] == f"{photos}/Ada/group.jpg"
    assert [reason["code"] for reason in refused["reasons"]] == ["several_faces"]
    assert report.to_dict()["rejections"] == {"several_faces": 1}
    assert report.counts["enrolled"] == 9 and report.ignored == 1
    stream = io.StringIO()
    report.write_json(stream)
    said = json.loads(stream.getvalue())
    assert len(said["failed"]) == 4 and said["rejected"] == [refused] and said["photos"] == 14
    text = "\n".join(report.lines())
    assert "9 enrolled" in text and "1 refused, 4 failed" in text and "[several_faces]" in text
    again = index(gallery, pipeline, photos, naming=BY_FOLDER)
    assert again.counts["unchanged"] == 13 and codes(again) == ["bad_name"]
    assert again.to_dict()["skipped"]["failed_before"] == 3
    forced = index(gallery, pipeline, photos, naming=BY_FOLDER, retry=True, force=True)
    assert forced.counts["enrolled"] == 1 and sorted(codes(forced)) == sorted(codes(report))


def test_the_gate_judges_faces_and_a_crop_is_kept_only_if_wanted(gallery, pipeline, photos) -> None:
    strict = LookOptions(one_person=True, gate=Gate(min_size_px=4000))
    report = index(gallery, pipeline, photos, naming=BY_FOLDER, options=strict)
    assert report.to_dict()["rejections"] == {"too_small": 9} and gallery.count() == (0, 0)
    bare = LookOptions(one_person=True, keep_crops=False)
    again = index(gallery, pipeline, photos, naming=BY_FOLDER, options=bare, retry=True)
    assert again.counts["enrolled"] == 9
    assert not any(t.has_crop for t in gallery.templates("Ada"))


def test_a_manifest_names_people_and_a_corrected_one_moves_the_photo(
    gallery, pipeline, photos, tmp_path
) -> None:
    listed = tmp_path / "people.csv"
    listed.write_text("path,name,badge\nphotos/Ada/0.jpg,Ada,1\nphotos/Bo/0.jpg,Ada,1\n")
    index(gallery, pipeline, manifests=(listed,))
    assert [(p.name, p.template_count) for p in gallery.people()] == [("Ada", 2)]
    assert gallery.person("Ada").metadata == {"badge": "1"}
    listed.write_text("path,name,badge\nphotos/Ada/0.jpg,Ada,1\nphotos/Bo/0.jpg,Bo,2\n")
    report = index(gallery, pipeline, manifests=(listed,))
    assert (report.counts["changed"], report.counts["unchanged"]) == (1, 1)
    assert [(p.name, p.template_count) for p in gallery.people()] == [("Ada", 1), ("Bo", 1)]
    assert index(gallery, pipeline, manifests=(listed,)).counts["unchanged"] == 2
    (photos / "Bo" / "0.jpg").unlink()
    report = index(gallery, pipeline, manifests=(listed,), prune=True)
    assert codes(report) == ["no_such_file"] and report.counts["removed_templates"] == 1
    assert [(p.name, p.template_count) for p in gallery.people()] == [("Ada", 1), ("Bo", 0)]
    gallery.check()


def test_a_video_gives_its_people(gallery, pipeline, tmp_path, people) -> None:
    folder = tmp_path / "photos"
    (folder / "Ada").mkdir(parents=True)
    write_video(folder / "Ada" / "clip.avi", [people["Ada"]] * 8)
    report = index(gallery, pipeline, folder, naming=BY_FOLDER)
    assert report.counts["enrolled"] == 1 and report.photos == 1
    [template] = gallery.templates("Ada")
    assert template.source.startswith(f"{folder}/Ada/clip.avi#t=0.")
    assert index(gallery, pipeline, folder, naming=BY_FOLDER).counts["unchanged"] == 1


# Again


def test_an_unchanged_collection_is_not_read_again(gallery, pipeline, photos) -> None:
    index(gallery, pipeline, photos, naming=BY_FOLDER)
    before, revision = rows(gallery), gallery.revision
    indexer = Indexer(gallery, idle())
    for path in photos.rglob("*.jpg"):  # not even opened: other bytes, as large and as old
        old = path.stat()
        path.write_bytes(bytes(old.st_size))
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    report = indexer.run(Sources([photos], naming=BY_FOLDER, known=indexer.ledger()))
    assert report.counts["unchanged"] == report.photos == 9
    assert rows(gallery) == before and gallery.revision == revision


def test_a_touched_file_is_hashed_and_no_more(gallery, pipeline, photos) -> None:
    index(gallery, pipeline, photos, naming=BY_FOLDER)
    before = rows(gallery)
    for path in photos.rglob("*.jpg"):
        os.utime(path, (1, 1))
    for _ in range(2):
        indexer = Indexer(gallery, idle())
        report = indexer.run(Sources([photos], naming=BY_FOLDER, known=indexer.ledger()))
        assert report.counts["unchanged"] == report.photos == 9
    assert rows(gallery) == before


def test_content_that_lies_in_two_places_is_one(gallery, pipeline, photos) -> None:
    shutil.copy(photos / "Ada" / "0.jpg", photos / "Ada" / "copy.jpg")
    report = index(gallery, pipeline, photos, naming=BY_FOLDER)
    assert (report.counts["enrolled"], report.counts["duplicate"]) == (9, 1)
    assert index(gallery, pipeline, photos, naming=BY_FOLDER).counts["unchanged"] == 10
    (photos / "Ada" / "0.jpg").unlink()
    report = index(gallery, pipeline, photos, naming=BY_FOLDER, prune=True)
    assert report.counts["pruned_files"] == 1 and report.counts["removed_templates"] == 0
    assert len(rows(gallery)) == 9
    (photos / "Ada" / "copy.jpg").unlink()
    report = index(gallery, pipeline, photos, naming=BY_FOLDER, prune=True)
    assert report.counts["removed_templates"] == 1 and len(rows(gallery)) == 8


def test_one_photo_of_two_people_is_the_first_ones(gallery, pipeline, photos) -> None:
    shutil.copy(photos / "Ada" / "0.jpg", photos / "Bo" / "ada.jpg")
    report = index(gallery, pipeline, photos, naming=BY_FOLDER)
    [refused] = list(report.rejected)
    assert [r["code"] for r in refused["reasons"]] == ["enrolled_as_another"]
    assert refused["photo"].endswith("Bo/ada.jpg") and "'Ada'" in refused["reasons"][0]["reason"]
    assert index(gallery, pipeline, photos, naming=BY_FOLDER).counts["unchanged"] == 10


def test_a_changed_file_replaces_what_it_was(gallery, pipeline, photos, people) -> None:
    index(gallery, pipeline, photos, naming=BY_FOLDER)
    old = {row[2] for row in rows(gallery)}
    (photos / "Ada" / "0.jpg").write_bytes(variation(people["Ada"], 11))
    report = index(gallery, pipeline, photos, naming=BY_FOLDER)
    assert (report.counts["changed"], report.counts["removed_templates"]) == (1, 1)
    new = {row[2] for row in rows(gallery)}
    assert len(new) == 9 and len(new & old) == 8
    (photos / "Ada" / "0.jpg").write_bytes(b"no photo any more")
    report = index(gallery, pipeline, photos, naming=BY_FOLDER)
    assert codes(report) == ["unreadable"] and report.counts["removed_templates"] == 1
    assert len(rows(gallery)) == 8
    gallery.check()


def test_a_moved_file_keeps_its_templates(gallery, pipeline, photos) -> None:
    index(gallery, pipeline, photos, naming=BY_FOLDER)
    ids = {t.id for t in gallery.templates("Ada")}
    (photos / "Ada" / "0.jpg").rename(photos / "Ada" / "portrait.jpg")
    indexer = Indexer(gallery, idle())
    report = indexer.run(
        Sources([photos], naming=BY_FOLDER, known=indexer.ledger()), prune_gone=True
    )
    assert report.counts["moved"] == 1 and report.counts["removed_templates"] == 0
    assert {t.id for t in gallery.templates("Ada")} == ids
    assert f"{photos}/Ada/portrait.jpg" in {t.source for t in gallery.templates("Ada")}
    assert count(gallery, FileRow) == 9


def test_a_file_moved_to_another_person_is_theirs(gallery, pipeline, photos) -> None:
    index(gallery, pipeline, photos, naming=BY_FOLDER)
    (photos / "Ada" / "0.jpg").rename(photos / "Bo" / "9.jpg")
    report = index(gallery, pipeline, photos, naming=BY_FOLDER)
    assert report.counts["enrolled"] == 1 and report.counts["removed_templates"] == 1
    assert [(p.name, p.template_count) for p in gallery.people()][:2] == [("Ada", 2), ("Bo", 4)]
    assert count(gallery, FileRow) == 9


def test_deleted_files_are_pruned_and_others_left_alone(
    gallery, pipeline, photos, tmp_path
) -> None:
    other = tmp_path / "photos-of-others"
    shutil.move(photos / "Cy", other / "Cy")
    index(gallery, pipeline, photos, other, naming=BY_FOLDER)
    shutil.rmtree(photos / "Ada")
    shutil.rmtree(other / "Cy")
    assert index(gallery, pipeline, photos, naming=BY_FOLDER).counts["pruned_files"] == 0
    report = index(gallery, pipeline, photos, naming=BY_FOLDER, prune=True)
    assert (report.counts["pruned_files"], report.counts["removed_templates"]) == (3, 3)
    assert [(p.name, p.template_count) for p in gallery.people()] == [
        ("Ada", 0),
        ("Bo", 3),
        ("Cy", 3),
    ]
    assert count(gallery, PhotoRow) == 6 and not report.notes
    gallery.check()


def test_a_disk_that_is_not_mounted_loses_nobody(gallery, pipeline, photos) -> None:
    index(gallery, pipeline, photos, naming=BY_FOLDER)
    shutil.rmtree(photos)
    for there in (False, True):
        if there:
            photos.mkdir()
        report = index(gallery, pipeline, photos, naming=BY_FOLDER, prune=True)
        assert "nothing_left" in codes(report) and len(rows(gallery)) == 9
    (photos.parent / "other.jpg").write_bytes(b"x")
    report = index(gallery, pipeline, photos.parent, prune=True)
    assert report.counts["removed_templates"] == 9 and rows(gallery) == []


def test_nobody_without_a_name_is_left_when_their_photo_is_gone(gallery, pipeline, photos) -> None:
    index(gallery, pipeline, photos)
    assert count(gallery, IdentityRow) == 9
    (photos / "Ada" / "0.jpg").unlink()
    index(gallery, pipeline, photos, prune=True)
    assert count(gallery, IdentityRow) == 8


# Names


def test_looking_without_names_takes_no_name_away(gallery, pipeline, photos) -> None:
    index(gallery, pipeline, photos, naming=BY_FOLDER)
    before = rows(gallery)
    assert index(gallery, pipeline, photos).counts["unchanged"] == 9
    shutil.copy(photos / "Ada" / "0.jpg", photos / "copy.jpg")
    assert index(gallery, pipeline, photos).counts["duplicate"] == 1
    assert rows(gallery) == before


def test_names_of_folders_replace_those_who_had_none(gallery, pipeline, photos) -> None:
    index(gallery, pipeline, photos)
    report = index(gallery, pipeline, photos, naming=BY_FOLDER)
    assert report.counts["enrolled"] == 9 and len(rows(gallery)) == 9
    assert {row[0] for row in rows(gallery)} == set(NAMES[:3])
    assert count(gallery, IdentityRow) == 3


def test_a_name_that_a_person_gave_stays(gallery, pipeline, photos) -> None:
    index(gallery, pipeline, photos)
    [(identity, source)] = _unnamed(gallery, f"{photos}/Ada/0.jpg")
    with gallery.writing() as change:
        change.set_state(identity, NAMED, "Countess Lovelace")
    for _ in range(2):
        report = index(gallery, pipeline, photos, naming=BY_FOLDER)
        assert [t.source for t in gallery.templates("Countess Lovelace")] == [source]
        assert gallery.person("Ada").template_count == 2
    assert report.counts["enrolled"] == 0 and not len(report.failed)


def test_who_was_removed_does_not_come_back_unless_asked(gallery, pipeline, photos) -> None:
    (photos / "Ada").rename(photos / "Ada Lovelace")
    index(gallery, pipeline, photos, naming=BY_FOLDER)
    assert gallery.remove("Ada Lovelace").templates == 3
    database = (gallery.folder / "gallery.db").read_bytes()
    assert b"Lovelace" not in database and b"Bo/0.jpg" in database
    for _ in range(2):
        report = index(gallery, pipeline, photos, naming=BY_FOLDER, prune=True)
        assert report.to_dict()["skipped"] == {
            "unchanged": 6,
            "failed_before": 0,
            "removed_before": 3,
        }
        assert [p.name for p in gallery.people()] == ["Bo", "Cy"]
    report = index(gallery, pipeline, photos, naming=BY_FOLDER, retry=True)
    assert report.counts["enrolled"] == 3 and gallery.person("Ada Lovelace").template_count == 3


def test_a_file_that_came_to_show_who_was_removed_is_forgotten_too(
    gallery, pipeline, photos
) -> None:
    index(gallery, pipeline, photos)
    [(identity, _)] = _unnamed(gallery, f"{photos}/Ada/0.jpg")
    with gallery.writing() as change:
        change.set_state(identity, NAMED, "Ada")
    gallery.remove("Ada")
    shutil.copy(photos / "Ada" / "0.jpg", photos / "Bo" / "0.jpg")
    report = index(gallery, pipeline, photos)
    assert report.counts["removed"] == 2 and report.counts["removed_templates"] == 1
    assert len(rows(gallery)) == count(gallery, FileRow) == 7


def _unnamed(gallery: Gallery, source: str) -> list[tuple[int, str]]:
    from gallery.schema import TemplateRow

    query = select(TemplateRow.identity_id, TemplateRow.source).where(TemplateRow.source == source)
    with gallery.reading() as view:
        return [tuple(row) for row in view.connection.execute(query)]


# Archives


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data)
    return path


def test_an_archive_is_indexed_and_followed(gallery, pipeline, people, tmp_path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    files = {f"{name}/{i}.jpg": variation(people[name], i) for name in NAMES[:2] for i in range(3)}
    path = zipped(folder / "all.zip", files)
    report = index(gallery, pipeline, folder, naming=BY_FOLDER)
    assert report.counts["enrolled"] == 6
    assert {s for _, s, _, _ in rows(gallery, folder)} == {f"all.zip!/{name}" for name in files}
    indexer = Indexer(gallery, idle())
    again = indexer.run(Sources([folder], naming=BY_FOLDER, known=indexer.ledger()))
    assert again.counts["unchanged"] == again.photos == 6
    del files["Ada/0.jpg"]
    files["Ada/9.jpg"] = variation(people["Ada"], 9)
    zipped(path, files)
    report = index(gallery, pipeline, folder, naming=BY_FOLDER)
    assert report.counts["enrolled"] == 1 and report.counts["removed_templates"] == 1
    assert report.counts["unchanged"] == 5
    path.rename(folder / "moved.zip")
    report = index(gallery, pipeline, folder, naming=BY_FOLDER, prune=True)
    assert report.counts["moved"] == 6 and len(rows(gallery)) == 6
    (folder / "moved.zip").unlink()
    (folder / "x.jpg").write_bytes(b"x")
    index(gallery, pipeline, folder, prune=True)
    assert rows(gallery) == [] and count(gallery, FileRow) == 1


def test_a_truncated_archive_gives_what_it_has_and_loses_nothing(
    gallery, pipeline, people, tmp_path
) -> None:
    path = tmp_path / "all.tar"
    with tarfile.open(path, "w") as archive:
        for i in range(3):
            data = variation(people["Ada"], i)
            info = tarfile.TarInfo(f"Ada/{i}.jpg")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    report = index(gallery, pipeline, path, naming=BY_FOLDER)
    assert codes(report) == ["broken_member", "broken_archive"]
    assert report.counts["enrolled"] == 1
    path.write_bytes(whole)
    report = index(gallery, pipeline, path, naming=BY_FOLDER)
    assert (report.counts["unchanged"], report.counts["enrolled"]) == (1, 2)
    path.write_bytes(whole[:700])
    report = index(gallery, pipeline, path, naming=BY_FOLDER, prune=True)
    assert codes(report) == ["broken_archive"] and len(rows(gallery)) == 3


def test_members_that_failed_before_are_counted_as_such(
    gallery, pipeline, people, tmp_path
) -> None:
    files = {"Ada/0.jpg": variation(people["Ada"], 0), "Ada/1.jpg": b"torn", "Ada/2.jpg": b"worn"}
    path = zipped(tmp_path / "all.zip", files)
    assert codes(index(gallery, pipeline, path, naming=BY_FOLDER)) == ["unreadable"] * 2
    again = index(gallery, pipeline, path, naming=BY_FOLDER).to_dict()
    assert again["skipped"] == {"unchanged": 3, "failed_before": 2, "removed_before": 0}
    zipped(path, {**files, "Ada/3.jpg": variation(people["Ada"], 3)})
    again = index(gallery, pipeline, path, naming=BY_FOLDER).to_dict()
    assert again["skipped"] == {"unchanged": 3, "failed_before": 2, "removed_before": 0}
    assert again["enrolled"] == 1


def test_a_file_and_a_member_from_the_far_future_are_indexed_once(
    gallery, pipeline, people, tmp_path
) -> None:
    folder = tmp_path / "photos" / "Ada"
    folder.mkdir(parents=True)
    (folder / "0.jpg").write_bytes(variation(people["Ada"], 0))
    os.utime(folder / "0.jpg", (15_000_000_000, 15_000_000_000))  # in the year 2445
    with tarfile.open(folder / "all.tar", "w") as archive:
        info = tarfile.TarInfo("1.jpg")
        data = variation(people["Ada"], 1)
        info.size, info.mtime = len(data), 2**40
        archive.addfile(info, io.BytesIO(data))
    os.utime(folder / "all.tar", (15_000_000_000, 15_000_000_000))
    assert index(gallery, pipeline, folder.parent, naming=BY_FOLDER).counts["enrolled"] == 2
    assert index(gallery, pipeline, folder.parent, naming=BY_FOLDER).counts["unchanged"] == 2


# While it runs


class Slow:
    """A crew that does nothing until it is told to, and notes how much waits for it."""

    width = 2

    def __init__(self, work: PhotoWork) -> None:
        self._work = work
        self.waiting: list[tuple[Chunk, Future[list[Looked]]]] = []
        self.most = 0

    def submit(self, chunk: Chunk) -> Future[list[Looked]]:
        future: Future[list[Looked]] = Future()
        self.waiting.append((chunk, future))
        self.most = max(self.most, len(self.waiting))
        return future

    def work_off(self, stop: threading.Event) -> None:
        while not stop.wait(0.05):
            if self.waiting:
                chunk, future = self.waiting[0]
                future.set_result(look_at(self._work, chunk))
                del self.waiting[0]

    def close(self) -> None:
        pass


def test_only_so_much_is_read_ahead(gallery, pipeline, photos, people) -> None:
    for i in range(150):
        (photos / "Ada" / f"x{i}.jpg").write_bytes(b"no photo %d" % i)
    crew = Slow(PhotoWork(pipeline, LookOptions(one_person=True)))
    stop = threading.Event()
    worker = threading.Thread(target=crew.work_off, args=(stop,))
    worker.start()
    indexer = Indexer(gallery, crew)
    report = indexer.run(Sources([photos], naming=BY_FOLDER, known=indexer.ledger()))
    stop.set()
    worker.join()
    assert report.counts["enrolled"] == 9 and report.counts["failed"] == 150
    assert crew.most <= crew.width + 2


def test_a_model_that_fails_ends_the_run_and_what_was_done_stays(gallery, pipeline, photos) -> None:
    class Failing(Slow):
        def submit(self, chunk: Chunk) -> Future[list[Looked]]:
            future: Future[list[Looked]] = Future()
            if chunk.video is None:
                future.set_result(look_at(self._work, chunk))
            else:
                future.set_exception(ModelError("the network broke"))
            return future

    (photos / "Cy" / "zz.mp4").write_bytes(b"v")
    indexer = Indexer(gallery, Failing(PhotoWork(pipeline, LookOptions(one_person=True))))
    with pytest.raises(ModelError, match="broke"):
        indexer.run(Sources([photos], naming=BY_FOLDER, known=indexer.ledger()))
    assert len(rows(gallery)) == 9


def test_a_photo_that_breaks_the_pipeline_fails_alone(gallery, pipeline, photos) -> None:
    class Touchy:
        def __init__(self) -> None:
            self.thresholds = pipeline.thresholds

        def extract(self, images: list[RGBImage]):
            if any(image.shape[0] == 123 for image in images):
                raise ValueError("cannot be reshaped")
            return pipeline.extract(images)

    (photos / "Bo" / "odd.jpg").write_bytes(to_jpeg(np.zeros((123, 50, 3), np.uint8)))
    crew = Threads(lambda: PhotoWork(Touchy(), LookOptions(one_person=True)), 2)  # type: ignore[arg-type]
    indexer = Indexer(gallery, crew)
    report = indexer.run(Sources([photos], naming=BY_FOLDER, known=indexer.ledger()))
    assert report.counts["enrolled"] == 9 and codes(report) == ["unusable"]
    crew.close()


def test_ctrl_c_commits_what_is_finished_and_the_next_run_goes_on(
    gallery, pipeline, photos
) -> None:
    crew = Threads(lambda: PhotoWork(pipeline, LookOptions(one_person=True)), 1)
    indexer = Indexer(gallery, crew)

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    found = Sources([photos], naming=BY_FOLDER, known=indexer.ledger())
    report = indexer.run(found, progress=interrupt)
    crew.close()
    assert report.interrupted and len(rows(gallery)) == report.counts["enrolled"]
    rest = index(gallery, pipeline, photos, naming=BY_FOLDER)
    assert rest.counts["enrolled"] + report.counts["enrolled"] == 9 == len(rows(gallery))


def test_a_watched_folder_is_kept_indexed(gallery, pipeline, photos, people) -> None:
    crew = Threads(lambda: PhotoWork(pipeline, LookOptions(one_person=True)), 2)
    indexer = Indexer(gallery, crew)
    stop = threading.Event()

    def run(only):
        known = indexer.ledger()
        found = Sources([photos], naming=BY_FOLDER, known=known, only=only)
        return not indexer.run(found, prune_gone=True).interrupted

    watcher = threading.Thread(target=watch, args=([photos], run, stop))
    watcher.start()
    try:
        until(lambda: len(rows(gallery)) == 9)
        (photos / "Dee").mkdir()
        (photos / "Dee" / "0.jpg").write_bytes(variation(people["Dee"], 0))
        until(lambda: len(rows(gallery)) == 10)
        (photos / "Ada" / "0.jpg").unlink()
        until(lambda: len(rows(gallery)) == 9)
        (photos / "Bo" / "0.jpg").rename(photos / "Bo" / "first.jpg")
        until(lambda: any(s == "Bo/first.jpg" for _, s, _, _ in rows(gallery, photos)))
        shutil.rmtree(photos / "Cy")
        until(lambda: len(rows(gallery)) == 6)
    finally:
        stop.set()
        watcher.join()
        crew.close()
    assert {s for _, s, _, _ in rows(gallery, photos)} == {
        "Ada/1.jpg",
        "Ada/2.jpg",
        "Bo/1.jpg",
        "Bo/2.jpg",
        "Bo/first.jpg",
        "Dee/0.jpg",
    }


def until(true, seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def index_it(gallery_folder: str, photos: str, names: bool) -> dict[str, object]:
    """In a process of its own."""
    pipeline = Pipeline.load(find_pack("bundled"), device="cpu", threads=1)
    naming = BY_FOLDER if names else Naming()
    with open_for(Path(gallery_folder), pipeline) as gallery:
        report = index(gallery, pipeline, Path(photos), naming=naming)
        return {**report.counts, "failed": len(report.failed)}


@pytest.mark.parametrize("names", [True, False])
def test_two_indexers_at_once_do_each_photo_once(tmp_path, people, pipeline, names) -> None:
    photos = tmp_path / "photos"
    make_collection(photos, people, 6)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        jobs = [
            pool.apply_async(index_it, (str(tmp_path / "people"), str(photos), names))
            for _ in range(2)
        ]
        reports = [job.get(timeout=120) for job in jobs]
    assert sum(report.get("enrolled", 0) for report in reports) == 36
    assert not any(report["failed"] for report in reports)
    with open_for(tmp_path / "people", pipeline) as gallery:
        assert len(rows(gallery)) == 36 == len({row[1] for row in rows(gallery)})
        assert count(gallery, PhotoRow) == count(gallery, FileRow) == 36
        assert count(gallery, IdentityRow) == (6 if names else 36)
        gallery.check()


def committed(folder: Path) -> int:
    """Files in the ledger, as another process sees them."""
    database = folder / "gallery.db"
    if not database.exists():
        return 0
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT count(*) FROM files").fetchone()[0]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_killed_run_loses_and_doubles_nothing(tmp_path, people, pipeline) -> None:
    """SIGKILL again and again, soon after a commit, until a run gets through."""
    photos, folder = tmp_path / "photos", tmp_path / "people"
    make_collection(photos, people, 12)
    code = (
        "import gallery.indexer as i, tests.test_gallery_indexer as t, sys\n"
        "i._COMMIT_PHOTOS = 5\n"  # many commits, so that kills meet them
        "t.index_it(sys.argv[1], sys.argv[2], True)\n"
    )
    command = [sys.executable, "-c", code, str(folder), str(photos)]
    moments = np.random.default_rng(0).uniform(0, 0.2, 4)
    for moment in moments:
        seen = committed(folder)
        process = subprocess.Popen(command, cwd=ROOT)
        until(lambda: process.poll() is not None or committed(folder) > seen)  # noqa: B023
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with open_for(folder, pipeline) as gallery:
            found = rows(gallery)
            assert len(found) > seen or seen == 72
            assert len({row[1] for row in found}) == len(found)
            assert count(gallery, FileRow) == count(gallery, PhotoRow) == len(found)
    with open_for(folder, pipeline) as gallery, open_for(tmp_path / "whole", pipeline) as whole:
        report = index(gallery, pipeline, photos, naming=BY_FOLDER)
        assert report.photos == 72 and report.counts["unchanged"] > 0
        index(whole, pipeline, photos, naming=BY_FOLDER)
        assert rows(gallery) == rows(whole) and len(rows(whole)) == 72
        gallery.check()
