"""The indexer's ledger on every engine: what it writes, follows and forgets is the same."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from gallery import Gallery, pruning
from tests.gallery_engines import engine, place  # noqa: F401
from tests.gallery_samples import CONTRACT, TABLE
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
from tests.test_gallery_pruning import everything_below, left, run, write


def test_a_collection_is_indexed_followed_and_forgotten(pipeline, people, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    make_collection(photos, {name: people[name] for name in NAMES[:3]}, 3)
    (photos / "Ada" / "torn 100%_.jpg").write_bytes(b"torn")
    (photos / "Ada" / "caf\udce9.jpg").write_bytes(variation(people["Ada"], 8))
    with open_for(tmp_path / "people", pipeline) as gallery:
        first = index(gallery, pipeline, photos, naming=BY_FOLDER)
        assert first.counts["enrolled"] == 10 and codes(first) == ["unreadable"]
        assert index(gallery, pipeline, photos, naming=BY_FOLDER).counts["unchanged"] == 11
        (photos / "Ada" / "0.jpg").rename(photos / "Ada" / "moved.jpg")
        (photos / "Bo" / "0.jpg").rename(photos / "Cy" / "9.jpg")
        (photos / "Bo" / "1.jpg").write_bytes(variation(people["Bo"], 9))
        (photos / "Bo" / "2.jpg").unlink()
        report = index(gallery, pipeline, photos, naming=BY_FOLDER, prune=True)
        counts = {key: report.counts[key] for key in ("moved", "changed", "pruned_files")}
        assert counts == {"moved": 1, "changed": 1, "pruned_files": 1}
        assert [(p.name, p.template_count) for p in gallery.people()] == [
            ("Ada", 4),
            ("Bo", 1),
            ("Cy", 4),
        ]
        [[face]] = pipeline.extract([people["Cy"]])
        match = gallery.identify(face.embedding[None])[0].match
        assert match is not None and match.name == "Cy"
        gallery.remove("Cy")
        report = index(gallery, pipeline, photos, naming=BY_FOLDER)
        assert report.counts["removed"] == 4 and [p.name for p in gallery.people()] == ["Ada", "Bo"]
        assert not any("/Cy/" in source for _, source, _, _ in rows(gallery))
        gallery.check()


def test_everybody_unknown_and_then_named_by_folders(pipeline, people, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    make_collection(photos, {name: people[name] for name in NAMES[:2]}, 2)
    shutil.make_archive(str(photos / "more"), "zip", photos)
    shutil.rmtree(photos / "Bo")
    with open_for(tmp_path / "people", pipeline) as gallery:
        report = index(gallery, pipeline, photos)
        assert (report.counts["enrolled"], report.counts["duplicate"]) == (4, 2)
        assert gallery.people() == []
        index(gallery, pipeline, photos, naming=BY_FOLDER)
        assert [(p.name, p.template_count) for p in gallery.people()] == [("Ada", 2), ("Bo", 2)]
        assert len(rows(gallery)) == 4
        (photos / "more.zip").unlink()
        index(gallery, pipeline, photos, naming=BY_FOLDER, prune=True)
        assert [(p.name, p.template_count) for p in gallery.people()] == [("Ada", 2), ("Bo", 0)]
        gallery.check()


def test_what_is_gone_is_found_page_by_page_and_by_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "_PAGE", 2)
    folders = ("Ada", "Ad_", "Ada 2", "_d%", os.fsdecode(b"caf\xe9"))
    names = [f"{folder}/{i}.jpg" for folder in folders for i in range(4)]
    photos = write(tmp_path / "photos", *names)
    with Gallery.open(
        place(tmp_path / "people"), contract=CONTRACT, thresholds=TABLE, pack_name="sample"
    ) as gallery:
        run(gallery, photos)
        for name in names[::2]:
            (photos / name).unlink()
        assert run(gallery, photos).counts["removed_templates"] == 10
        news = everything_below(photos / "Ada")
        shutil.rmtree(photos / "Ada")
        shutil.rmtree(photos / folders[-1])
        report = run(gallery, photos, only=[*news, photos / folders[-1]])
        assert report.counts["removed_templates"] == 4 and not codes(report)
        assert {name[:-6] for name in left(gallery, photos)} == {"Ad_", "Ada 2", "_d%"}
        assert run(gallery, photos).counts["pruned_files"] == 0
