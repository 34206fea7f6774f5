"""Photos in, templates out: every photo has an outcome."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facerec.alignment import align
from facerec.errors import ContractMismatch, GalleryError
from facerec.image import load_image, to_jpeg
from facerec.pipeline import Pipeline
from facerec.quality import Gate
from facerec.types import RGBImage
from gallery import Gallery
from gallery.enrolment import enrol_photos
from tests.gallery_samples import CONTRACT


@pytest.fixture
def gallery(tmp_path: Path, pipeline: Pipeline):
    with Gallery.open(
        tmp_path / "people",
        contract=pipeline.contract,
        thresholds=pipeline.thresholds,
        pack_name=pipeline.pack.name,
    ) as opened:
        yield opened


@pytest.fixture(scope="session")
def mirrored(astronaut: RGBImage) -> bytes:
    """Another photo of the astronaut."""
    return to_jpeg(np.ascontiguousarray(astronaut[:, ::-1]))


@pytest.fixture(scope="session")
def no_face() -> bytes:
    rows = np.linspace(0, 255, 300, dtype=np.uint8)
    return to_jpeg(np.repeat(np.tile(rows, (200, 1))[..., None], 3, axis=2))


def test_every_photo_has_an_outcome_and_the_good_ones_are_enrolled(
    gallery, pipeline, astronaut_path, mirrored, no_face, group_photo_path, tmp_path
) -> None:
    said: list[str] = []
    result = enrol_photos(
        gallery,
        pipeline,
        "Eileen Collins",
        [
            ("portrait", astronaut_path),
            ("again", str(astronaut_path)),
            ("mirrored", mirrored),
            ("group", group_photo_path),
            ("empty street", no_face),
            ("torn", mirrored[:3000]),
            ("text", b"hello"),
            ("lost", tmp_path / "lost.jpg"),
        ],
        metadata={"badge": 1},
        progress=said.append,
    )
    assert [source for source, _ in result.enrolled] == ["portrait", "mirrored"]
    assert result.duplicates == ("again",)
    assert {s: [r.code for r in rs] for s, rs in result.rejected.items()} == {
        "group": ["several_faces"]
    }
    assert "6 faces; choose one" in result.rejected["group"][0].reason
    assert {f.source: f.code for f in result.failed} == {
        "empty street": "no_face",
        "torn": "unreadable",
        "text": "unreadable",
        "lost": "unreadable",
    }
    assert result.overridden == {}
    assert result.identity is not None
    assert (result.identity.name, result.identity.template_count) == ("Eileen Collins", 2)
    assert result.identity.metadata == {"badge": 1}
    assert sorted(said) == sorted(
        ["portrait", "again", "mirrored", "group", "empty street", "torn", "text", "lost"]
    )
    assert [(t.source, t.id) for t in gallery.templates("Eileen Collins")] == list(result.enrolled)


def test_an_enrolled_person_is_recognised_and_others_are_not(
    gallery, pipeline, astronaut_path, mirrored, group_photo
) -> None:
    enrol_photos(gallery, pipeline, "Eileen Collins", [("portrait", astronaut_path)])
    [[face], group] = pipeline.extract([load_image(mirrored), group_photo])
    [decision] = gallery.identify(face.embedding[None])
    assert decision.match is not None and decision.match.name == "Eileen Collins"
    strangers = gallery.identify(np.stack([f.embedding for f in group]))
    assert [d.match for d in strangers] == [None] * 6


def test_nobody_is_made_when_nothing_is_accepted(gallery, pipeline, no_face) -> None:
    result = enrol_photos(gallery, pipeline, "Nobody", [("street", no_face), ("text", b"")])
    assert result.identity is None and result.enrolled == () and len(result.failed) == 2
    assert enrol_photos(gallery, pipeline, "Nobody", []).identity is None
    assert gallery.count() == (0, 0) and gallery.people() == []


def test_photos_that_a_person_has_are_duplicates_without_a_write(
    gallery, pipeline, astronaut_path
) -> None:
    photos = [("portrait", astronaut_path)]
    first = enrol_photos(gallery, pipeline, "Eileen Collins", photos)
    revision = gallery.revision
    second = enrol_photos(gallery, pipeline, "EILEEN COLLINS", photos)
    assert second.duplicates == ("portrait",) and second.enrolled == ()
    assert second.identity == first.identity and gallery.revision == revision


def test_the_gate_refuses_and_force_overrides_it_and_says_so(
    gallery, pipeline, astronaut_path
) -> None:
    strict = Gate(min_size_px=4000.0)
    photos = [("portrait", astronaut_path)]
    refused = enrol_photos(gallery, pipeline, "Eileen", photos, gate=strict)
    [reason] = refused.rejected["portrait"]
    assert reason.code == "too_small" and refused.identity is None
    forced = enrol_photos(gallery, pipeline, "Eileen", photos, gate=strict, force=True)
    assert len(forced.enrolled) == 1 and forced.rejected == {}
    assert forced.overridden == {"portrait": (reason,)}


def test_force_takes_the_largest_of_several_faces_but_no_photo_without_one(
    gallery, pipeline, group_photo_path, group_photo, no_face
) -> None:
    photos = [("group", group_photo_path), ("street", no_face)]
    result = enrol_photos(gallery, pipeline, "Guest", photos, force=True)
    assert [source for source, _ in result.enrolled] == ["group"]
    assert result.overridden["group"][0].code == "several_faces"
    assert "the largest was taken" in result.overridden["group"][0].reason
    assert [(f.source, f.code) for f in result.failed] == [("street", "no_face")]
    [faces] = pipeline.extract([group_photo])
    largest = max(faces, key=lambda f: float(np.prod(f.box_xyxy[2:] - f.box_xyxy[:2])))
    assert gallery.verify("Guest", largest.embedding).candidates[0].similarity > 0.999


def test_a_chosen_face_of_a_group_photo(gallery, pipeline, group_photo_path, group_photo) -> None:
    [faces] = pipeline.extract([group_photo])
    photos = [("group", group_photo_path)]
    for i, face in enumerate(faces):
        result = enrol_photos(
            gallery, pipeline, f"guest {i}", photos, faces={"group": i}, force=True
        )
        assert len(result.enrolled) == 1
        assert all(r.code != "several_faces" for r in result.overridden.get("group", ()))
        assert gallery.verify(f"guest {i}", face.embedding).candidates[0].similarity > 0.999
    for wrong in (6, -1):
        result = enrol_photos(gallery, pipeline, "guest 9", photos, faces={"group": wrong})
        assert [f.code for f in result.failed] == ["no_such_face"]
    assert gallery.count() == (6, 6)


def test_one_face_of_one_photo_is_not_two_people(gallery, pipeline, astronaut_path) -> None:
    photos = [("portrait", astronaut_path)]
    enrol_photos(gallery, pipeline, "Eileen", photos)
    result = enrol_photos(gallery, pipeline, "Ellen", photos)
    [reason] = result.rejected["portrait"]
    assert reason.code == "enrolled_as_another" and "'Eileen'" in reason.reason
    assert result.identity is None
    forced = enrol_photos(gallery, pipeline, "Ellen", photos, force=True)
    assert len(forced.enrolled) == 1 and forced.overridden == {"portrait": (reason,)}


def test_the_crop_that_is_kept_can_be_embedded_again(gallery, pipeline, astronaut_path) -> None:
    enrol_photos(gallery, pipeline, "Eileen", [("portrait", astronaut_path)])
    [template] = gallery.templates("Eileen")
    jpeg = gallery.crop(template.id)
    assert jpeg is not None and template.landmarks is not None
    crop = load_image(jpeg)
    assert max(crop.shape) <= 256
    spec = pipeline.contract
    chips = align(crop, template.landmarks[None], spec.template, spec.input_size)
    [again] = pipeline.embedder.embed(chips)
    assert gallery.verify("Eileen", again).candidates[0].similarity > 0.95


def test_no_crop_is_kept_when_none_is_wanted(gallery, pipeline, astronaut_path) -> None:
    photos = [("portrait", astronaut_path)]
    enrol_photos(gallery, pipeline, "Eileen", photos, keep_crops=False)
    [template] = gallery.templates("Eileen")
    assert not template.has_crop and gallery.crop(template.id) is None


def test_a_pixel_limit_is_a_failure_of_that_photo(gallery, pipeline, astronaut_path) -> None:
    result = enrol_photos(
        gallery, pipeline, "Eileen", [("portrait", astronaut_path)], max_pixels=1000
    )
    [failure] = result.failed
    assert failure.code == "unreadable" and "limit" in failure.reason


def test_bad_names_and_other_packs_are_found_out_before_any_work(
    gallery, pipeline, astronaut_path, tmp_path
) -> None:
    def photos():
        raise AssertionError("no photo should have been looked at")
        yield

    with pytest.raises(GalleryError, match="empty"):
        enrol_photos(gallery, pipeline, " ", photos())
    other = dataclasses.replace(CONTRACT, dim=pipeline.contract.dim)
    with (
        Gallery.open(tmp_path / "other", contract=other, pack_name="other") as theirs,
        pytest.raises(ContractMismatch, match=r"'other'.*reembed --pack bundled"),
    ):
        enrol_photos(theirs, pipeline, "Eileen", photos())


def test_more_photos_than_a_batch(gallery, pipeline, astronaut: RGBImage) -> None:
    photos = []
    for i in range(20):
        buffer = io.BytesIO()
        Image.fromarray(astronaut).resize((256, 256)).save(buffer, "JPEG", quality=60 + i)
        photos.append((f"photo {i}", buffer.getvalue()))
    result = enrol_photos(gallery, pipeline, "Eileen", photos)
    assert [source for source, _ in result.enrolled] == [f"photo {i}" for i in range(20)]
    assert gallery.count() == (1, 20)
