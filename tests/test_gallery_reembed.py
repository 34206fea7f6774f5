"""A gallery moves to another model and back: nobody is lost, whatever happens on the way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import func, select, update

from facerec.errors import ContractMismatch, GalleryError
from facerec.image import load_image, to_jpeg
from facerec.packs.manifest import Pack
from facerec.pipeline import Pipeline
from facerec.types import Face, FloatArray
from gallery import Gallery, NewTemplate, generations, reembed
from gallery.location import Location
from gallery.reembed import discard, move, roll_back, status
from gallery.schema import EmbeddingRow
from gallery.store import Store
from gallery.stored_faces import Reembedder, same_detector
from tests.gallery_samples import sha
from tests.reembed_samples import (  # noqa: F401
    Views,
    embed_crops,
    faces_fixture,
    other_fixture,
    other_pack_fixture,
    views_fixture,
)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def third(tmp_path_factory: pytest.TempPathFactory, bundled_pack: Pack) -> Pipeline:
    """One more contract: another scale."""
    folder = tmp_path_factory.mktemp("packs") / "third"
    shutil.copytree(bundled_pack.folder, folder)
    text = (folder / "pack.toml").read_text().replace('name = "bundled"', 'name = "third"')
    (folder / "pack.toml").write_text(text.replace('colour = "RGB"', 'colour = "BGR"'))
    return Pipeline.load(Pack.load(folder), device="cpu", threads=2)


def opened(folder: Path, pipeline: Pipeline) -> Gallery:
    return Gallery.open(
        folder,
        contract=pipeline.contract,
        thresholds=pipeline.thresholds,
        pack_name=pipeline.pack.name,
    )


def filled(folder: Path, pipeline: Pipeline, views: Views, each: int = 3) -> list[NewTemplate]:
    """A gallery of "person 0" to "person 5"; returns what was enrolled, in order."""
    everything = []
    with opened(folder, pipeline) as gallery:
        for who in range(6):
            some = views(who, each)
            gallery.enroll(f"person {who}", some, metadata={"seat": who})
            everything += some
    return everything


def vectors_of(folder: Path) -> dict[int, FloatArray]:
    """Template id -> vector, of the generation that answers."""
    store = Store.open(Location.of(folder))
    try:
        with store.reading() as view:
            batches = [b for named in (True, False) for b in view.vectors_since(0, named=named)]
    finally:
        store.close()
    return {int(i): v for b in batches for i, v in zip(b.ids, b.vectors, strict=True)}


def who_is(gallery: Gallery, vector: FloatArray) -> str | None:
    match = gallery.identify(vector[None], k=1, threshold=0.9)[0].match
    return None if match is None else match.name


# --- the move ----------------------------------------------------------------------------


def test_after_the_move_everybody_answers_by_the_new_model(
    tmp_path: Path, pipeline: Pipeline, other: Pipeline, views: Views
) -> None:
    enrolled = filled(tmp_path, pipeline, views)
    before = vectors_of(tmp_path)
    told: list[tuple[int, int]] = []
    done = move(tmp_path, other, progress=lambda at, total: told.append((at, total)))
    assert (done.embedded, done.unembedded, done.switched) == (18, (), True)
    assert done.active.contract == other.contract
    assert done.active.pack_name == "unflipped"
    assert told[0] == (0, 18) and told[-1] == (18, 18)
    after = vectors_of(tmp_path)
    assert after.keys() == before.keys()
    for (template_id, vector), new in zip(sorted(after.items()), enrolled, strict=True):
        assert new.crop_jpeg is not None and new.landmarks is not None
        [expected] = embed_crops(other, [new.crop_jpeg], new.landmarks)
        assert vector @ expected == pytest.approx(1, abs=1e-5)
        assert vector @ before[template_id] < 0.9999, "the old vector"
    with opened(tmp_path, other) as gallery:
        assert gallery.pack_name == "unflipped"
        assert gallery.thresholds == other.thresholds
        assert gallery.count() == (6, 18)
        for who in range(6):
            person = gallery.person(f"person {who}")
            assert person.metadata == {"seat": who}
            assert [t.source for t in gallery.templates(person.id)] == [
                f"{who}-{i}.jpg" for i in range(3)
            ]
        for template_id, vector in after.items():
            owner = gallery.template(template_id).identity_id
            assert who_is(gallery, vector) == gallery.person(owner).name
        gallery.check()
    with pytest.raises(ContractMismatch, match="facerec reembed --pack bundled"):
        opened(tmp_path, pipeline)


def test_the_old_model_answers_until_the_switch_and_no_change_meanwhile_is_lost(
    tmp_path: Path,
    pipeline: Pipeline,
    other: Pipeline,
    views: Views,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    filled(tmp_path, pipeline, views)
    monkeypatch.setattr(reembed, "BATCH", 4)
    late = [views(who, 8)[3:] for who in range(6)]
    with opened(tmp_path, pipeline) as meanwhile:

        def look(done: int, total: int) -> None:
            assert who_is(meanwhile, late[2][0].embedding) == "person 2"
            if done == 0:
                assert status(tmp_path).other is not None
                meanwhile.remove("person 1")  # whose faces are being aligned
            if done == 8:
                meanwhile.enroll("newcomer", late[1])
                meanwhile.merge("person 3", "person 4")

        prove = reembed._prove

        def and_then(*arguments: object) -> None:
            prove(*arguments)  # type: ignore[arg-type]
            for who in (0, 2, 3, 5):  # 20: more than fit into the switch itself
                meanwhile.enroll(f"late {who}", late[who])

        monkeypatch.setattr(reembed, "_prove", and_then)
        done = move(tmp_path, other, progress=look)
        with pytest.raises(ContractMismatch, match="moved from pack 'bundled' to pack 'unflipped'"):
            who_is(meanwhile, late[2][0].embedding)
    assert done.unembedded == ()
    with opened(tmp_path, other) as gallery:
        names = [person.name for person in gallery.people()]
        people = ["person 0", "person 2", "person 3", "person 5"]
        assert names == ["late 0", "late 2", "late 3", "late 5", "newcomer", *people]
        assert gallery.person("person 3").template_count == 6
        assert gallery.count() == (9, 3 * 5 + 5 + 20)
        for new, name in ((late[1][0], "newcomer"), (late[5][4], "late 5")):
            assert new.crop_jpeg is not None and new.landmarks is not None
            [row] = embed_crops(other, [new.crop_jpeg], new.landmarks)
            assert who_is(gallery, row) == name
        gallery.check()
    assert status(tmp_path).missing == 0 or status(tmp_path).other is not None


def test_faces_without_a_name_move_too(
    tmp_path: Path, pipeline: Pipeline, other: Pipeline, views: Views
) -> None:
    filled(tmp_path, pipeline, views, each=1)
    with opened(tmp_path, pipeline) as gallery, gallery.writing() as change:
        [unknown] = change.add_unnamed(1)
        change.add_templates([(unknown, views(0, 2)[1])])
    assert move(tmp_path, other).embedded == 7
    assert len(vectors_of(tmp_path)) == 7


MOVE = """
import sys
from pathlib import Path
from facerec.packs.manifest import Pack
from facerec.pipeline import Pipeline
from gallery import reembed
reembed.BATCH = 5
pipeline = Pipeline.load(Pack.load(Path(sys.argv[2])), device="cpu", threads=1)
def tell(done, total):
    print(done, flush=True)
done = reembed.move(sys.argv[1], pipeline, progress=tell)
print("moved", done.embedded, flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_killed_again_and_again_it_goes_on_where_it_was(
    tmp_path: Path, pipeline: Pipeline, other: Pipeline, views: Views
) -> None:
    enrolled = filled(tmp_path, pipeline, views, each=10)

    def run(kill_after: int) -> str:
        """Until as many templates are done; what it said last."""
        words = [sys.executable, "-c", MOVE, str(tmp_path), str(other.pack.folder)]
        child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert child.stdout is not None
        line = ""
        for line in child.stdout:
            if line.strip().isdigit() and int(line) >= kill_after:
                child.send_signal(signal.SIGKILL)
                break
        child.stdout.close()
        child.wait(timeout=60)
        return line.strip()

    reached = 0
    for kill_after in (5, 30, 60):
        said = int(run(kill_after))
        now = status(tmp_path)
        if now.active.contract == other.contract:  # it was quicker than the signal
            break
        assert now.other is not None
        assert said <= now.other.embedded <= said + 2 * 5, "what was reported is kept"
        assert reached <= now.other.embedded
        assert now.other.embedded + now.missing == now.templates == 60
        reached = now.other.embedded
        with opened(tmp_path, pipeline) as gallery:
            assert who_is(gallery, enrolled[42].embedding) == "person 4"
    assert run(99) == f"moved {60 - reached}", "nothing was done twice"
    after = vectors_of(tmp_path)
    assert len(after) == 60
    for (_, vector), new in zip(sorted(after.items()), enrolled, strict=True):
        assert new.crop_jpeg is not None and new.landmarks is not None
        [expected] = embed_crops(other, [new.crop_jpeg], new.landmarks)
        assert vector @ expected == pytest.approx(1, abs=1e-5)
    with opened(tmp_path, other) as gallery:
        gallery.check()


def test_an_interruption_leaves_the_old_model_in_charge(
    tmp_path: Path,
    pipeline: Pipeline,
    other: Pipeline,
    views: Views,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    enrolled = filled(tmp_path, pipeline, views)
    monkeypatch.setattr(reembed, "BATCH", 4)

    def stop(done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        move(tmp_path, other, progress=stop)
    now = status(tmp_path)
    assert now.other is not None
    assert (now.other.state, now.other.embedded, now.missing) == ("staging", 8, 10)
    with opened(tmp_path, pipeline) as gallery:
        assert who_is(gallery, enrolled[0].embedding) == "person 0"
    assert move(tmp_path, other).embedded == 10


# --- other processes ---------------------------------------------------------------------

STAY = """
import sys
from pathlib import Path
import numpy as np
from facerec.errors import ContractMismatch
from gallery import Gallery, NewTemplate
probe = np.load(sys.argv[2])
with Gallery.open(sys.argv[1], create=False) as gallery:
    print(gallery.identify(probe[None], threshold=0.9)[0].match.name, flush=True)
    sys.stdin.readline()
    calls = (
        lambda: gallery.identify(probe[None], threshold=0.9),
        lambda: gallery.verify("person 0", probe, threshold=0.9),
        lambda: gallery.enroll("late", [NewTemplate(probe, "late.jpg", "0" * 64, 0.9)]),
        lambda: gallery.remove("person 0"),
        lambda: gallery.people(),
    )
    for call in calls:
        try:
            call()
        except ContractMismatch as exc:
            print("refused:", exc, flush=True)
        else:
            print("went through", flush=True)
print("closed", flush=True)
"""


def test_a_process_with_the_old_model_is_told_and_changes_nothing(
    tmp_path: Path, pipeline: Pipeline, other: Pipeline, views: Views
) -> None:
    folder = tmp_path / "people"
    enrolled = filled(folder, pipeline, views, each=1)
    np.save(tmp_path / "probe.npy", enrolled[0].embedding)
    child = subprocess.Popen(
        [sys.executable, "-c", STAY, str(folder), str(tmp_path / "probe.npy")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert child.stdout is not None and child.stdin is not None
    assert child.stdout.readline().strip() == "person 0"
    move(folder, other)
    out, _ = child.communicate("go on\n", timeout=60)
    lines = out.splitlines()
    assert len(lines) == 6 and lines[5] == "closed"
    for line in lines[:5]:
        assert line.startswith("refused:")
        assert "from pack 'bundled' to pack 'unflipped'" in line and "Open it again" in line
    assert child.returncode == 0
    with opened(folder, other) as gallery:
        assert [person.name for person in gallery.people()] == [f"person {i}" for i in range(6)]
        gallery.check()


# --- photos in place of crops ------------------------------------------------------------


def without_crop(face: Face, source: Path, box: bool = True, number: int = 0) -> NewTemplate:
    import hashlib

    return NewTemplate(
        face.embedding,
        str(source),
        hashlib.sha256(source.read_bytes()).hexdigest() if source.exists() else sha("gone"),
        0.9,
        face=number,
        box_xyxy=face.box_xyxy if box else None,
    )


def test_without_crops_the_photos_serve_and_the_box_says_which_face(
    tmp_path: Path,
    pipeline: Pipeline,
    other: Pipeline,
    faces: tuple[Face, ...],
    group_photo_path: Path,
    astronaut_path: Path,
    astronaut: np.ndarray,
) -> None:
    folder = tmp_path / "people"
    [[eileen]] = pipeline.extract([astronaut])
    with opened(folder, pipeline) as gallery:
        for at, face in enumerate(faces):
            gallery.enroll(f"seat {at}", [without_crop(face, group_photo_path)])
        gallery.enroll("Eileen", [without_crop(eileen, astronaut_path, box=False)])
        largest = max(faces, key=lambda face: float(np.prod(face.box_xyxy[2:] - face.box_xyxy[:2])))
        gallery.enroll("largest", [without_crop(largest, group_photo_path, box=False)])
    done = move(folder, other)
    assert (done.embedded, done.unembedded) == (8, ())
    vectors = [vector for _, vector in sorted(vectors_of(folder).items())]
    again = other.extract([load_image(group_photo_path), astronaut])
    by_place = sorted(again[0], key=lambda face: face.box_xyxy[0])
    expected = [face.embedding for face in by_place] + [again[1][0].embedding]
    for vector, row in zip(vectors[:7], expected, strict=True):
        assert vector @ row == pytest.approx(1, abs=1e-4)
    assert np.argmax(np.stack(vectors[:6]) @ vectors[7]) == faces.index(largest)


def test_what_cannot_be_embedded_is_listed_keeps_its_people_and_can_be_tried_again(
    tmp_path: Path,
    pipeline: Pipeline,
    other: Pipeline,
    views: Views,
    faces: tuple[Face, ...],
    group_photo_path: Path,
    astronaut: np.ndarray,
) -> None:
    folder, photos = tmp_path / "people", tmp_path / "photos"
    filled(folder, pipeline, views, each=1)
    photos.mkdir()
    moved, changed, blank = photos / "moved.jpg", photos / "changed.jpg", photos / "blank.jpg"
    for path in (moved, changed):
        shutil.copy(group_photo_path, path)
    blank.write_bytes(to_jpeg(np.full((200, 200, 3), 90, np.uint8)))
    with opened(folder, pipeline) as gallery:
        gallery.enroll("moved", [without_crop(faces[0], moved)])
        gallery.enroll("changed", [without_crop(faces[1], changed)])
        gallery.enroll("blank", [without_crop(faces[2], blank)])
        video = without_crop(faces[3], tmp_path / "film.mp4#t=1.00")
        gallery.enroll("film", [video])
    (photos / "elsewhere").mkdir()
    moved.rename(photos / "elsewhere" / "moved.jpg")
    changed.write_bytes(to_jpeg(astronaut))
    done = move(folder, other)
    assert done.switched and done.embedded == 6
    reasons = {u.name: u.reason for u in done.unembedded}
    assert list(reasons) == ["blank", "changed", "film", "moved"]
    assert str(moved) in reasons["moved"] and "not there" in reasons["moved"]
    assert str(changed) in reasons["changed"] and "has changed" in reasons["changed"]
    assert "the face is not found" in reasons["blank"]
    assert "frame of a video" in reasons["film"]
    with opened(folder, other) as gallery:
        assert gallery.count() == (10, 10)
        assert gallery.person("moved").template_count == 1
        [again] = other.extract([load_image(group_photo_path)])
        row = min(again, key=lambda face: face.box_xyxy[0]).embedding
        assert gallery.identify(row[None], threshold=0.5)[0].people == 6
        gallery.check()
        tried = move(folder, other, photos=[photos])
        assert (tried.embedded, tried.switched) == (1, False)
        assert [u.name for u in tried.unembedded] == ["blank", "changed", "film"]
        names = [c.name for c in gallery.identify(row[None], threshold=0.5)[0].candidates[:2]]
        assert "moved" in names, "it answers where the gallery is open, too"
        gallery.check()
        if os.name != "nt":
            odd = tmp_path / os.fsdecode(b"\xe9")  # bytes that are no UTF-8
            odd.mkdir()
            shutil.copy(changed, odd)
            changed.unlink()
            tried = move(folder, other, photos=[odd])
            reasons = {u.name: u.reason for u in tried.unembedded}
            assert str(tmp_path / "\\udce9" / "changed.jpg") in reasons["changed"]


def test_no_switch_silences_most_of_a_gallery_unless_told_to(
    tmp_path: Path, pipeline: Pipeline, other: Pipeline, views: Views, faces: tuple[Face, ...]
) -> None:
    with opened(tmp_path, pipeline) as gallery:
        gallery.enroll("person 0", views(0, 1))
        for at in (1, 2):
            gallery.enroll(f"person {at}", [without_crop(faces[at], tmp_path / f"{at}.jpg")])
    with pytest.raises(GalleryError, match="2 of 3 templates cannot be embedded"):
        move(tmp_path, other)
    assert status(tmp_path).active.contract == pipeline.contract
    assert len(status(tmp_path).unembedded_there) == 2
    assert move(tmp_path, other, anyway=True).switched


def test_a_face_outside_its_picture_or_without_landmarks_to_speak_of_is_listed(
    pipeline: Pipeline, views: Views
) -> None:
    [view] = views(0, 1)
    face = generations.StoredFace(1, "a.jpg", "0" * 64, None, view.crop_jpeg, np.ones((5, 2)))
    broken = generations.StoredFace(2, "b.jpg", "0" * 64, None, b"\xff\xd8\xff", view.landmarks)
    result = Reembedder(pipeline).embed([face, broken])
    assert result.vectors == ()
    assert [i for i, _ in result.reasons] == [1, 2]
    assert "cannot be used" in result.reasons[0][1]
    assert "b.jpg" in result.reasons[1][1]


# --- landmarks of another detector -------------------------------------------------------


def test_another_detector_looks_for_its_own_landmarks_in_the_crop(
    pipeline: Pipeline, views: Views, bundled_pack: Pack, other_pack: Pack
) -> None:
    assert same_detector(bundled_pack, other_pack)
    spec = other_pack.manifest.detector.model_copy(update={"kind": "scrfd"})
    assert not same_detector(
        bundled_pack,
        Pack(other_pack.folder, other_pack.manifest.model_copy(update={"detector": spec})),
    )
    [view] = views(0, 1)
    assert view.crop_jpeg is not None and view.landmarks is not None
    off = view.landmarks + np.float32((8, -6))  # as another detector might see it
    [seen] = pipeline.detector.detect([load_image(view.crop_jpeg)])

    def embedded(landmarks: FloatArray, *, detect: bool) -> FloatArray:
        face = generations.StoredFace(1, "a.jpg", "0" * 64, None, view.crop_jpeg, landmarks)
        [(_, row)] = Reembedder(pipeline, detect=detect).embed([face]).vectors
        return row

    def alike(row: FloatArray, landmarks: FloatArray) -> bool:
        [expected] = embed_crops(pipeline, [view.crop_jpeg or b""], landmarks)
        return float(row @ expected) > 1 - 1e-5

    assert alike(embedded(off, detect=True), seen.landmarks[0])
    assert alike(embedded(off, detect=False), off)
    assert not alike(embedded(off, detect=True), off)
    far = view.landmarks + np.float32((120, 0))
    assert alike(embedded(far, detect=True), far), "that is another face"


# --- back, and out -----------------------------------------------------------------------


def test_back_to_the_model_before_with_those_who_came_since(
    tmp_path: Path, pipeline: Pipeline, other: Pipeline, views: Views
) -> None:
    filled(tmp_path, pipeline, views, each=2)
    before = vectors_of(tmp_path)
    move(tmp_path, other)
    late = views(2, 3)[2]
    assert late.crop_jpeg is not None and late.landmarks is not None
    [by_other] = embed_crops(other, [late.crop_jpeg], late.landmarks)
    with opened(tmp_path, other) as gallery:
        new = NewTemplate(by_other, "late.jpg", sha("late"), 0.9, late.crop_jpeg, late.landmarks)
        gallery.enroll("late", [new])
        gallery.remove("person 5")
    assert status(tmp_path).missing == 1
    with pytest.raises(ContractMismatch, match="the earlier generation is of pack 'bundled'"):
        roll_back(tmp_path, other)
    done = roll_back(tmp_path, pipeline)
    assert (done.embedded, done.unembedded, done.switched) == (1, (), True)
    after = vectors_of(tmp_path)
    for template_id, vector in after.items():
        if template_id in before:
            assert (vector == before[template_id]).all(), "the very vectors of then"
    with opened(tmp_path, pipeline) as gallery:
        assert gallery.thresholds == pipeline.thresholds
        assert gallery.count() == (6, 11)
        assert who_is(gallery, late.embedding) == "late"
        gallery.check()
    forward = roll_back(tmp_path, None)
    assert forward.active.contract == other.contract
    assert forward.unembedded == (), "everybody has a vector of both"


def test_back_without_the_pack_lists_those_who_came_since(
    tmp_path: Path, pipeline: Pipeline, other: Pipeline, views: Views
) -> None:
    filled(tmp_path, pipeline, views, each=1)
    move(tmp_path, other)
    with opened(tmp_path, other) as gallery:
        gallery.enroll("late", [views(0, 2)[1]])
    done = roll_back(tmp_path, None)
    assert [u.name for u in done.unembedded] == ["late"]
    assert "came after the move from pack 'bundled'" in done.unembedded[0].reason
    with opened(tmp_path, pipeline) as gallery:
        assert gallery.count() == (7, 7)
        gallery.check()
    assert move(tmp_path, pipeline).embedded == 1, "tried again with the pack"


def test_one_move_at_a_time_and_what_is_kept_is_dropped_by_hand(
    tmp_path: Path,
    pipeline: Pipeline,
    other: Pipeline,
    third: Pipeline,
    views: Views,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    filled(tmp_path, pipeline, views)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(GalleryError, match="no other generation to discard"):
        discard(tmp_path)
    with pytest.raises(GalleryError, match="no earlier generation"):
        roll_back(tmp_path, None)
    with pytest.raises(KeyboardInterrupt):
        move(tmp_path, other, progress=stop)
    with pytest.raises(GalleryError, match=r"a move to pack 'unflipped' is under way.*--discard"):
        move(tmp_path, third)
    with pytest.raises(GalleryError, match="no earlier generation"):
        roll_back(tmp_path, None)
    assert discard(tmp_path).pack_name == "unflipped"
    assert status(tmp_path).other is None
    move(tmp_path, other)
    with pytest.raises(GalleryError, match=r"of pack 'bundled' are still kept.*--discard"):
        move(tmp_path, third)
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(generations, "ERASED_AT_ONCE", 4)
    gone = discard(tmp_path, lambda done, total: told.append((done, total)))
    assert (gone.pack_name, gone.state) == ("bundled", "retired")
    assert told == [(4, 18), (8, 18), (12, 18), (16, 18), (18, 18), (18, 18)]
    store = Store.open(Location.of(tmp_path))
    with store.reading() as view:
        kept = select(func.count()).select_from(EmbeddingRow)
        assert view.connection.execute(kept).scalar_one() == 18
    store.close()
    assert move(tmp_path, third).active.pack_name == "third"
    back = move(tmp_path, other)  # to a model that is kept: nothing is embedded again
    assert (back.embedded, back.switched) == (0, True)


def test_vectors_that_do_not_prove_right_never_answer(
    tmp_path: Path,
    pipeline: Pipeline,
    other: Pipeline,
    views: Views,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    enrolled = filled(tmp_path, pipeline, views)

    def spoil(done: int, total: int) -> None:
        if done == total:
            store = Store.open(Location.of(tmp_path))
            with store.writing() as change:
                wrong = np.eye(1, other.contract.dim, dtype="<f4")[0].tobytes()
                change.connection.execute(
                    update(EmbeddingRow)
                    .where(EmbeddingRow.generation != store.generation)
                    .where(EmbeddingRow.template_id == 7)
                    .values(vector=wrong)
                )
            store.close()

    with pytest.raises(GalleryError, match="1 of 18 templates, first #7, were embedded differ"):
        move(tmp_path, other, progress=spoil)
    with opened(tmp_path, pipeline) as gallery:
        assert who_is(gallery, enrolled[6].embedding) == "person 2"
    discard(tmp_path)
    assert move(tmp_path, other).switched


def test_a_move_whose_vectors_are_discarded_meanwhile_ends_with_a_sentence(
    tmp_path: Path,
    pipeline: Pipeline,
    other: Pipeline,
    views: Views,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    filled(tmp_path, pipeline, views)
    monkeypatch.setattr(reembed, "BATCH", 4)

    def drop(done: int, total: int) -> None:
        if done == 4:
            discard(tmp_path)

    with pytest.raises(GalleryError, match="discarded meanwhile"):
        move(tmp_path, other, progress=drop)
    assert status(tmp_path).other is None


def test_a_discard_cut_short_goes_on_and_until_then_there_is_a_way_back(
    tmp_path: Path,
    pipeline: Pipeline,
    other: Pipeline,
    views: Views,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    filled(tmp_path, pipeline, views)
    move(tmp_path, other)
    monkeypatch.setattr(generations, "ERASED_AT_ONCE", 4)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        discard(tmp_path, stop)
    now = status(tmp_path)
    assert now.other is not None and (now.other.embedded, now.missing) == (14, 4)
    assert roll_back(tmp_path, pipeline).embedded == 4
    with opened(tmp_path, pipeline) as gallery:
        assert len(vectors_of(tmp_path)) == 18
        gallery.check()
    discard(tmp_path)
    assert status(tmp_path).other is None


def test_of_two_moves_at_once_the_slower_finds_the_work_done(
    tmp_path: Path,
    pipeline: Pipeline,
    other: Pipeline,
    third: Pipeline,
    views: Views,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    filled(tmp_path, pipeline, views)
    monkeypatch.setattr(reembed, "BATCH", 4)

    def overtake(done: int, total: int) -> None:
        if done == 8:
            move(tmp_path, other)

    slower = move(tmp_path, other, progress=overtake)
    assert slower.active.contract == other.contract and slower.switched
    assert len(vectors_of(tmp_path)) == 18

    def overtake_elsewhere(done: int, total: int) -> None:
        if done == 8:
            discard(tmp_path)
            move(tmp_path, third)

    discard(tmp_path)
    with pytest.raises(ContractMismatch, match="to pack 'third'"):
        move(tmp_path, pipeline, progress=overtake_elsewhere)


def test_no_gallery_is_a_sentence(tmp_path: Path, other: Pipeline) -> None:
    with pytest.raises(GalleryError, match="there is no gallery here"):
        move(tmp_path / "none", other)
