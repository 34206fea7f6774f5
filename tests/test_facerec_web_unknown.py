"""The page of the unknown: what it can do, and its HTML."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from facerec.errors import GalleryError
from facerec.image import to_jpeg
from facerec.web import render
from facerec.web.unknown import PAGE_SIZE, UnknownService
from gallery import Gallery, NewTemplate
from gallery.unknown import Unknown
from tests.gallery_samples import near, open_gallery, sha, template, unit

EVIL = "<img src=x onerror=alert(1)>"


def faces(person: int, count: int, dim: int, first: int = 0) -> list[NewTemplate]:
    """Of one person; each has a crop, of a colour of its own."""
    found = []
    for i in range(first, first + count):
        vector = near(unit(person, dim=dim), 0.995 if dim == 128 else 0.95, 100 * person + i)
        picture = np.full((64, 64, 3), (40 * person) % 256, np.uint8)
        found.append(
            NewTemplate(
                vector,
                f"{person}-{i}{EVIL}.jpg",
                sha(f"{person}-{i}"),
                0.9,
                crop_jpeg=to_jpeg(picture, 90),
                landmarks=np.full((5, 2), 20, np.float32),
            )
        )
    return found


def add(gallery: Gallery, new: list[NewTemplate]) -> list[int]:
    with gallery.writing() as change:
        ids = change.add_unnamed(len(new))
        change.add_templates(list(zip(ids, new, strict=True)))
    return ids


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    with open_gallery(tmp_path / "g") as opened:
        yield opened


def test_faces_are_grouped_listed_and_named(gallery: Gallery) -> None:
    gallery.enroll("Ada", [template(near(unit(1), 0.95, 7), "ada")])
    [first, *_] = add(gallery, faces(1, 4, 32))
    add(gallery, faces(2, 1, 32))
    service = UnknownService(gallery)
    assert service.page().rows == ()
    assert service.run() == "5 unknown faces compared, 1 group."
    [row] = service.page().rows
    assert (row.id, row.faces, row.probably, len(row.crops)) == (first, 4, "Ada", 3)
    view = service.group(first)
    assert view.probably == "Ada" and "4 of 4 faces" in view.reason
    assert len(view.templates) == 4
    assert service.name(first, "Ada") == "This is Ada, with 5 photos now."
    assert (service.page().rows, service.page().single) == ((), 1)


def test_groups_are_split_merged_refused_and_dismissed(gallery: Gallery) -> None:
    gallery.enroll("Ada", [template(near(unit(1), 0.95, 7), "ada")])
    [a, *_] = add(gallery, faces(1, 4, 32))
    [b, *_] = add(gallery, faces(2, 3, 32))
    service = UnknownService(gallery)
    service.run()
    assert service.others(a) == ((f"unknown #{b}, 3 faces", b),)
    assert "stays apart" in service.split(a, gallery.templates(a)[0].id)
    assert service.merge(a, b) == f"Now unknown #{a}, 6 faces."
    with pytest.raises(GalleryError, match="choose the group"):
        service.merge(a, None)
    assert service.group(a).probably == "Ada"
    assert "Ada is not suggested" in service.refuse(a, service.group(a).probably_id)
    assert service.group(a).probably is None
    with pytest.raises(GalleryError, match="nobody is suggested"):
        service.refuse(a, service.group(a).probably_id)
    assert f"dismiss {a} --undo" in service.dismiss(a)
    assert service.page().rows == ()


def test_who_was_shown_is_refused_whoever_is_suggested_by_now(gallery: Gallery) -> None:
    gallery.enroll("Ada", [template(near(unit(1), 0.7, 7), "ada")])
    [a, *_] = add(gallery, faces(1, 3, 32))
    service = UnknownService(gallery)
    service.run()
    shown = service.group(a)
    gallery.enroll("Bea", [template(near(unit(1), 0.95, 8), "bea")])
    assert (shown.probably, service.group(a).probably) == ("Ada", "Bea")
    assert "Ada is not suggested" in service.refuse(a, shown.probably_id)
    assert service.group(a).probably == "Bea"


def test_the_list_is_paged_and_an_offset_that_is_gone_is_brought_back(gallery: Gallery) -> None:
    for person in range(PAGE_SIZE + 1):
        ids = add(gallery, faces(person, 2, 32))
        Unknown(gallery).merge(ids[0], ids[1:])
    service = UnknownService(gallery)
    assert len(service.page().rows) == PAGE_SIZE
    second = service.page(PAGE_SIZE)
    assert len(second.rows) == 1
    assert 'data-offset="0"' in render.groups(second)
    service.dismiss(second.rows[0].id)
    assert service.page(PAGE_SIZE).offset == 0


def test_sources_and_names_are_escaped(gallery: Gallery) -> None:
    gallery.enroll(EVIL, [template(near(unit(1), 0.95, 7), "ada")])
    [first, *_] = add(gallery, faces(1, 2, 32))
    service = UnknownService(gallery)
    service.run()
    for html in (render.groups(service.page()), render.group(service.group(first))):
        assert EVIL not in html and "&lt;img src=x" in html
