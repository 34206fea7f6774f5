"""Files that are gone, after a look at everything and after news of some paths; without a model."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from gallery import Gallery, pruning
from gallery.index_report import IndexReport
from gallery.indexer import Indexer
from gallery.sources import Sources
from tests.gallery_crashes import Readers, open_it
from tests.index_samples import codes, rows


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    with open_it(tmp_path / "people") as opened:
        yield opened


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write(tmp_path / "photos", "Ada/1.jpg", "Ada/2.jpg", "Ada/old/3.jpg", "Bo/4.jpg")


def write(root: Path, *names: str) -> Path:
    """Photos as :class:`Readers` reads them, each with another content."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(abs(hash(str(path))) % 10**9))
    return root


def run(gallery: Gallery, *roots: Path, only: list[Path] | None = None) -> IndexReport:
    """Index, as --prune does; ``only``: as --watch does at news of these."""
    indexer = Indexer(gallery, Readers())
    sources = Sources(roots, known=indexer.ledger(), only=only)
    return indexer.run(sources, prune_gone=True)


def left(gallery: Gallery, below: Path) -> set[str]:
    return {source for _, source, _, _ in rows(gallery, below)}


@contextmanager
def statements() -> Iterator[list[tuple[str, Any]]]:
    """Those that are run, with their values."""
    seen: list[tuple[str, Any]] = []

    def note(_: object, __: object, statement: str, values: Any, *___: object) -> None:
        seen.append((statement, values))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def everything_below(root: Path) -> list[Path]:
    """As a watcher that polls reports a disk that went."""
    return [root, *root.rglob("*")]


# News of some paths


@pytest.mark.parametrize("what", ["renamed", "unmounted", "no photo"])
def test_a_watched_root_that_is_gone_loses_nobody(gallery, photos, tmp_path, what) -> None:
    write(tmp_path / "other", "Cy/1.jpg", "Cy/2.jpg")
    run(gallery, photos, tmp_path / "other")
    before = left(gallery, tmp_path)
    news = [photos] if what == "renamed" else everything_below(photos)[1:]
    photos.rename(tmp_path / "elsewhere")
    if what != "renamed":
        photos.mkdir()
    if what == "no photo":
        (photos / "lost+found").mkdir()
        (photos / "README.txt").write_text("mount the disk here")
    (tmp_path / "other" / "Cy" / "1.jpg").unlink()
    news.append(tmp_path / "other" / "Cy" / "1.jpg")
    report = run(gallery, photos, tmp_path / "other", only=news)
    assert codes(report) == ["nothing_left"] and next(iter(report.failed))["photo"] == str(photos)
    assert left(gallery, tmp_path) == before - {"other/Cy/1.jpg"}


def test_files_folders_and_archives_that_news_say_are_gone_are_pruned(
    gallery, photos, tmp_path
) -> None:
    odd = photos / "Ada" / os.fsdecode(b"caf\xe9.jpg")
    write(photos, "Ada 2/5.jpg", "Ada.jpg", "Ad_/6.jpg", odd.name, f"Ada/{odd.name}")
    with zipfile.ZipFile(photos / "Bo" / "all.zip", "w") as archive:
        archive.writestr("7.jpg", "7")
        archive.writestr("8.jpg", "8")
    run(gallery, photos)
    assert len(left(gallery, photos)) == 11
    (photos / "Bo" / "all.zip").unlink()
    report = run(gallery, photos, only=[photos / "Bo" / "all.zip", tmp_path / "not ours.jpg"])
    assert report.to_dict()["removed_templates"] == 2 and len(left(gallery, photos)) == 9
    news = everything_below(photos / "Ada")
    shutil.rmtree(photos / "Ada")
    report = run(gallery, photos, only=[*news, photos / "never.tmp"])
    assert report.to_dict()["pruned_files"] == 4 and not codes(report)
    assert {name[:7] for name in left(gallery, photos)} == {
        "Ada 2/5", "Ada.jpg", "Ad_/6.j", "Bo/4.jp", r"caf\udc"
    }  # fmt: skip
    shutil.rmtree(photos / "Ad_")
    run(gallery, photos, only=[photos / "Ad_"])  # only the folder, as some systems report it
    assert len(left(gallery, photos)) == 4


def test_what_is_still_there_is_not_pruned_whatever_the_news(gallery, photos) -> None:
    run(gallery, photos)
    report = run(gallery, photos, only=everything_below(photos))
    assert report.counts["pruned_files"] == 0 and len(left(gallery, photos)) == 4


def test_news_of_many_deleted_files_take_few_questions(gallery, tmp_path) -> None:
    """One for each path would be a look at all files for each."""
    photos = write(tmp_path / "photos", "Bo/1.jpg", *(f"Ada/{i}.jpg" for i in range(300)))
    run(gallery, photos)
    news = everything_below(photos / "Ada")
    shutil.rmtree(photos / "Ada")
    with statements() as asked:
        report = run(gallery, photos, only=news)
    assert report.counts["pruned_files"] == 300 and left(gallery, photos) == {"Bo/1.jpg"}
    assert len(asked) < 100


def test_the_files_of_a_folder_are_found_by_the_index_on_paths(gallery, photos) -> None:
    run(gallery, photos)
    shutil.rmtree(photos / "Ada")
    with statements() as asked:
        run(gallery, photos, only=[photos / "Ada"])
    found = [(statement, values) for statement, values in asked if "files.path <" in statement]
    assert found and left(gallery, photos) == {"Bo/4.jpg"}
    with gallery.reading() as view:
        for statement, values in found:
            plan = view.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
            steps = [row[3] for row in plan]
            assert "(path>? AND path<?)" in steps[0], steps
            assert not any("TEMP B-TREE" in step for step in steps), steps


# A look at everything


def test_all_pages_of_a_collection_are_gone_through(
    gallery, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "_PAGE", 2)
    odd = os.fsdecode(b"caf\xe9")
    names = [f"{folder}/{i}.jpg" for folder in ("Ada", odd, "x%y_z") for i in range(5)]
    photos = write(tmp_path / "ph%tos", *names)
    run(gallery, photos)
    for name in names[::2]:
        (photos / name).unlink()
    report = run(gallery, photos)
    assert report.counts["pruned_files"] == report.counts["removed_templates"] == 8
    assert len(left(gallery, photos)) == 7
    shutil.rmtree(photos)
    assert codes(run(gallery, photos)) == ["no_such_source", "nothing_left"]


def test_another_folder_whose_name_begins_or_is_spelt_alike_is_left_alone(
    gallery, tmp_path
) -> None:
    if (tmp_path / "PEOPLE").exists():
        pytest.skip("this file system takes them for one")
    roots = [write(tmp_path / name, "1.jpg", "2.jpg") for name in ("photos", "photos 2", "Photos")]
    run(gallery, *roots)
    for root in roots:
        (root / "1.jpg").unlink()
    assert run(gallery, roots[0]).counts["pruned_files"] == 1
    assert len(left(gallery, tmp_path)) == 5
