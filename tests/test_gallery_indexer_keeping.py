"""What is indexed again under another name, path or number loses nobody their faces."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import func, select

from gallery import Gallery, indexer, reading
from gallery.crew import Chunk
from gallery.index_report import IndexReport
from gallery.indexer import Indexer
from gallery.naming import Naming
from gallery.photo_work import Looked
from gallery.pruning import prune_below
from gallery.schema import NAMED, FileRow, PhotoRow, TemplateRow
from gallery.sources import Sources
from tests.gallery_crashes import Readers, open_it
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


@pytest.fixture
def gallery(tmp_path: Path, pipeline):
    with open_for(tmp_path / "people", pipeline) as opened:
        yield opened


@pytest.fixture
def photos(tmp_path: Path, people) -> Path:
    """Two people with two photos each."""
    make_collection(tmp_path / "photos", {n: people[n] for n in NAMES[:2]}, 2)
    return tmp_path / "photos"


def owners(gallery: Gallery, source: Path) -> list[tuple[int, bytes]]:
    """(identity, box) of the faces of a photo."""
    query = select(TemplateRow.identity_id, TemplateRow.box)
    with gallery.reading() as view:
        found = view.connection.execute(query.where(TemplateRow.source == str(source)))
        return [tuple(row) for row in found]


def name_face(gallery: Gallery, source: Path, name: str) -> None:
    """As somebody does who looks through the unknown."""
    [(identity, _)] = owners(gallery, source)
    with gallery.writing() as change:
        change.set_state(identity, NAMED, name)


def ids(gallery: Gallery, name: str) -> set[int]:
    return {t.id for t in gallery.templates(name)}


# Named in the gallery


def test_a_face_that_was_named_stays_when_its_folder_says_the_same(
    gallery, pipeline, photos
) -> None:
    index(gallery, pipeline, photos)
    name_face(gallery, photos / "Ada" / "0.jpg", "Ada")
    named = ids(gallery, "Ada")
    for unchanged in (0, 4):
        report = index(gallery, pipeline, photos, naming=BY_FOLDER)
        assert report.counts["unchanged"] == unchanged
        assert named < ids(gallery, "Ada") and len(rows(gallery)) == 4
        assert {row[0] for row in rows(gallery)} == {"Ada", "Bo"}
    (photos / "Ada" / "0.jpg").unlink()
    index(gallery, pipeline, photos, naming=BY_FOLDER, prune=True)
    assert gallery.person("Ada").template_count == 1
    gallery.check()


@pytest.mark.parametrize("named_first", [True, False])
def test_a_face_goes_when_the_last_copy_goes(
    gallery, pipeline, photos, people, tmp_path, named_first
) -> None:
    """One copy lies in the person's folder; of the other nobody says whom it shows."""
    copies = tmp_path / "copies"
    copies.mkdir()
    shutil.copy(photos / "Ada" / "0.jpg", copies / "0.jpg")
    (copies / "1.jpg").write_bytes(variation(people["Dee"], 0))

    def look(**options: bool) -> None:
        index(gallery, pipeline, copies, **options)
        index(gallery, pipeline, photos, naming=BY_FOLDER, **options)

    if named_first:
        index(gallery, pipeline, copies)
        name_face(gallery, copies / "0.jpg", "Ada")
    look()
    known = ids(gallery, "Ada")
    assert len(known) == 2
    first, last = copies / "0.jpg", photos / "Ada" / "0.jpg"
    if not named_first:
        first, last = last, first
    first.unlink()
    look(prune=True)
    assert ids(gallery, "Ada") == known
    assert {t.source for t in gallery.templates("Ada")} == {
        str(last),
        str(photos / "Ada" / "1.jpg"),
    }
    last.unlink()
    look(prune=True)
    assert len(ids(gallery, "Ada")) == 1
    gallery.check()


def by_area(owner: tuple[int, bytes]) -> float:
    box = np.frombuffer(owner[1], "<f4")
    return float((box[2:] - box[:2]).prod())


def test_those_named_in_a_group_photo_stay_when_it_is_taken_for_one_of_them(
    gallery, pipeline, people, tmp_path, group_photo_path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    group = folder / "group.jpg"
    shutil.copy(group_photo_path, group)
    (folder / "other.jpg").write_bytes(variation(people["Ada"], 0))
    index(gallery, pipeline, folder, force=True)  # the gate refuses the largest
    one, other = (i for i, box in sorted(owners(gallery, group), key=by_area)[:-3:-1])
    with gallery.writing() as change:
        change.set_state(one, NAMED, "Bo")
        change.set_state(other, NAMED, "Cy")
    known = ids(gallery, "Bo") | ids(gallery, "Cy")
    for duplicates, unchanged in ((1, 0), (0, 2)):
        report = index(gallery, pipeline, folder, naming=Naming(person="Bo"), force=True)
        assert report.counts["duplicate"] == duplicates
        assert report.counts["unchanged"] == unchanged
        assert known <= ids(gallery, "Bo") | ids(gallery, "Cy")
    group.unlink()
    index(gallery, pipeline, folder, naming=Naming(person="Bo"), force=True, prune=True)
    assert [(p.name, p.template_count) for p in gallery.people()] == [("Bo", 1), ("Cy", 0)]


def test_a_group_photo_moved_into_a_persons_folder_is_refused_and_keeps_its_faces(
    gallery, pipeline, photos, group_photo_path
) -> None:
    group = photos / "group.jpg"
    shutil.copy(group_photo_path, group)
    index(gallery, pipeline, photos)
    before = rows(gallery)
    with gallery.writing() as change:
        change.set_state(owners(gallery, group)[0][0], NAMED, "Cy")
    moved = group.rename(photos / "Ada" / "group.jpg")
    for refused, unchanged in ((1, 0), (0, 5)):
        report = index(gallery, pipeline, photos, naming=BY_FOLDER, prune=True)
        assert (report.counts["rejected"], report.counts["unchanged"]) == (refused, unchanged)
        assert [t.source for t in gallery.templates("Cy")] == [str(moved)]
        assert len(rows(gallery)) == len(before)
    moved.unlink()
    index(gallery, pipeline, photos, naming=BY_FOLDER, prune=True)
    assert len(rows(gallery)) == 4 and gallery.person("Cy").template_count == 0
    gallery.check()


# Renamed, or merged, in the gallery


@pytest.mark.parametrize("merged", [False, True])
def test_the_folder_may_follow_the_name_in_the_gallery(gallery, pipeline, photos, merged) -> None:
    index(gallery, pipeline, photos, naming=BY_FOLDER)
    before = ids(gallery, "Ada")
    name = "Bo" if merged else "Ada Lovelace"
    if merged:
        gallery.merge("Bo", "Ada")
    else:
        gallery.rename("Ada", name)
    (photos / name).mkdir(exist_ok=True)
    for photo in sorted((photos / "Ada").iterdir()):
        photo.rename(photos / name / f"ada {photo.name}")
    (photos / "Ada").rmdir()
    for unchanged in (2, 4):
        report = index(gallery, pipeline, photos, naming=BY_FOLDER, prune=True)
        assert report.counts["unchanged"] == unchanged
        assert before <= ids(gallery, name) and len(rows(gallery)) == 4
    assert all(Path(source).exists() for _, source, _, _ in rows(gallery))
    gallery.check()


def test_the_list_may_follow_the_name_in_the_gallery(gallery, pipeline, photos, tmp_path) -> None:
    listed = tmp_path / "people.csv"
    listed.write_text("path,name\nphotos/Ada/0.jpg,ada\n")
    index(gallery, pipeline, manifests=(listed,))
    before = ids(gallery, "ada")
    gallery.rename("ada", "Countess Lovelace")
    listed.write_text("path,name\nphotos/Ada/0.jpg,Countess Lovelace\n")
    for _ in range(2):
        index(gallery, pipeline, manifests=(listed,))
        assert ids(gallery, "Countess Lovelace") == before and len(rows(gallery)) == 1
    listed.write_text("path,name\nphotos/Ada/0.jpg,Somebody Else\n")
    index(gallery, pipeline, manifests=(listed,))
    assert [(p.name, p.template_count) for p in gallery.people()] == [
        ("Countess Lovelace", 0),
        ("Somebody Else", 1),
    ]


# Content that moves from file to file. A photo is the number of the only face on it.


@pytest.fixture
def numbers(tmp_path: Path):
    """A gallery for photos that are numbers."""
    with open_it(tmp_path / "numbers") as opened:
        yield opened


@pytest.fixture
def small_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer, "_COMMIT_FILES", 2)
    monkeypatch.setattr(indexer, "_COMMIT_PHOTOS", 1)
    monkeypatch.setattr(reading, "BATCH_PHOTOS", 1)


def write(place: Path, seeds: list[int], second: int = 0) -> None:
    """A folder, or zip archive, of files 000.jpg, 001.jpg and so on; ``second``: its age."""
    files = {f"{i:03}.jpg": str(seed) for i, seed in enumerate(seeds)}
    if place.suffix == ".zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name, text in files.items():
                archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, second)), text)
        return
    place.mkdir(exist_ok=True)
    for name, text in files.items():
        (place / name).write_text(text)


def look(
    gallery: Gallery, *roots: Path, crew: Readers | None = None, **options: object
) -> IndexReport:
    run = Indexer(gallery, crew or Readers())
    return run.run(Sources(roots, known=run.ledger()), **options)  # type: ignore[arg-type]


def contents(gallery: Gallery) -> dict[str, tuple[int, str | None]]:
    """content -> (template, name) of every template."""
    query = select(TemplateRow.content_sha256, TemplateRow.id, TemplateRow.identity_id)
    with gallery.reading() as view:
        found = view.connection.execute(query).all()
        names = {row.id: view.identity(row.identity_id).name for row in found}
    assert len({row[0] for row in found}) == len(found), "a photo's face is there twice"
    return {row[0]: (row[1], names[row[1]]) for row in found}


def count(gallery: Gallery, table: type) -> int:
    with gallery.reading() as view:
        return view.connection.execute(select(func.count()).select_from(table)).scalar_one()


def interrupt_after(photos: int) -> Callable[[IndexReport], None]:
    def progress(report: IndexReport) -> None:
        if report.photos >= photos:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("place", ["photos", "photos.zip"])
@pytest.mark.parametrize("interrupted", [False, True])
def test_renumbered_photos_keep_their_faces(
    numbers, small_commits, tmp_path, place, interrupted
) -> None:
    seeds = list(range(100, 112))
    write(tmp_path / place, seeds)
    look(numbers, tmp_path / place)
    with numbers.writing() as change:
        for identity in range(1, len(seeds) + 1):
            change.set_state(identity, NAMED, f"person {identity}")
    before = contents(numbers)
    assert len(before) == len(seeds)
    write(tmp_path / place, [99, *seeds], second=2)
    if interrupted:
        report = look(numbers, tmp_path / place, progress=interrupt_after(5))
        assert report.interrupted and before.items() <= contents(numbers).items()
    report = look(numbers, tmp_path / place)
    assert codes(report) == [] and report.counts["removed_templates"] == 0
    after = contents(numbers)
    assert before.items() <= after.items() and len(after) == len(seeds) + 1
    assert count(numbers, PhotoRow) == len(after)
    assert look(numbers, tmp_path / place).counts["unchanged"] == len(after)
    numbers.check()


def test_what_an_interrupted_run_left_goes_at_the_next(numbers, small_commits, tmp_path) -> None:
    write(tmp_path / "photos", list(range(8)))
    look(numbers, tmp_path / "photos")
    old = contents(numbers)
    write(tmp_path / "photos", list(range(100, 108)))
    assert look(numbers, tmp_path / "photos", progress=interrupt_after(3)).interrupted
    assert old.items() <= contents(numbers).items()
    report = look(numbers, tmp_path / "photos")
    assert report.counts["removed_templates"] == 8
    assert len(contents(numbers)) == 8 and not contents(numbers).keys() & old.keys()
    assert count(numbers, PhotoRow) == count(numbers, FileRow) == 8
    numbers.check()


class Meanwhile(Readers):
    """Before it looks at anything, something happens."""

    def __init__(self, happens: Callable[[], None]) -> None:
        self._happens = happens

    def submit(self, chunk: Chunk) -> Future[list[Looked]]:
        self._happens()
        return super().submit(chunk)


def test_an_archive_of_which_a_photo_was_passed_over_is_read_again(numbers, tmp_path) -> None:
    """The photo was known when it was read, and is not any more when it is its turn."""
    write(tmp_path / "photos", [7])
    look(numbers, tmp_path / "photos")
    write(tmp_path / "all.zip", [8, 7])

    def remove() -> None:
        shutil.rmtree(tmp_path / "photos")
        prune_below(numbers, tmp_path / "photos", IndexReport())

    report = look(numbers, tmp_path / "all.zip", crew=Meanwhile(remove))
    assert codes(report) == ["not_indexed"] and len(contents(numbers)) == 1
    report = look(numbers, tmp_path / "all.zip")
    assert codes(report) == [] and report.counts["enrolled"] == 1 and len(contents(numbers)) == 2
    assert look(numbers, tmp_path / "all.zip").counts["unchanged"] == 2
