"""Moving to another model on every engine that a gallery may lie on."""

from __future__ import annotations

from pathlib import Path

import pytest

from facerec.errors import ContractMismatch
from facerec.pipeline import Pipeline
from gallery import Gallery
from gallery.reembed import discard, move, roll_back, status
from tests.gallery_engines import engine, place  # noqa: F401
from tests.reembed_samples import (  # noqa: F401
    Views,
    embed_crops,
    faces_fixture,
    other_fixture,
    other_pack_fixture,
    views_fixture,
)


def opened(where: Path | str, pipeline: Pipeline) -> Gallery:
    return Gallery.open(where, contract=pipeline.contract, pack_name=pipeline.pack.name)


def found(gallery: Gallery, pipeline: Pipeline, view) -> tuple[str | None, int]:
    """Who the template's crop shows, and how many were searched."""
    [row] = embed_crops(pipeline, [view.crop_jpeg], view.landmarks)
    [decision] = gallery.identify(row[None], k=1, threshold=0.99)
    return decision.match and decision.match.name, decision.people


def test_there_with_a_change_on_the_way_and_back(
    tmp_path: Path,
    pipeline: Pipeline,
    other: Pipeline,
    views: Views,
) -> None:
    where = place(tmp_path / "people")
    people = [views(who, 2) for who in range(3)]
    with opened(where, pipeline) as gallery:
        for who in (0, 1):
            gallery.enroll(f"person {who}", people[who])

        def change(done: int, total: int) -> None:
            if done == 0:
                gallery.remove("person 0")
                gallery.enroll("person 2", people[2])
                assert found(gallery, pipeline, people[1][0]) == ("person 1", 2)

        assert move(where, other, progress=change).switched
        with pytest.raises(ContractMismatch):
            gallery.people()
    with opened(where, other) as gallery:
        assert gallery.count() == (2, 4)
        for who in (1, 2):
            assert found(gallery, other, people[who][1]) == (f"person {who}", 2)
        gallery.check()
    assert status(where).missing == 0
    assert roll_back(where, None).unembedded == ()
    with opened(where, pipeline) as gallery:
        assert found(gallery, pipeline, people[2][0]) == ("person 2", 2)
        gallery.check()
    assert discard(where).pack_name == "unflipped"
    assert status(where).other is None
