"""People in and out of a gallery, and who a probe is."""

from __future__ import annotations

import dataclasses
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timezone
from pathlib import Path

import numpy as np
import pytest

from facerec.errors import (
    ConfigError,
    ContractMismatch,
    FacerecError,
    GalleryError,
    IdentityExists,
    IdentityNotFound,
)
from facerec.types import ThresholdTable
from gallery import Gallery, NewTemplate
from gallery.index import ExactIndex
from tests.gallery_engines import engine, in_folders_only, place  # noqa: F401
from tests.gallery_samples import (
    CONTRACT,
    DIM,
    TABLE,
    fill,
    near,
    open_gallery,
    sha,
    template,
    unit,
)


@pytest.fixture
def gallery(tmp_path: Path, engine: str):  # noqa: F811
    with open_gallery(tmp_path / "people") as opened:
        yield opened


# Making and opening


def test_a_gallery_is_made_where_there_is_none_and_found_again(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with open_gallery(folder) as gallery:
        assert gallery.count() == (0, 0) and len(gallery) == 0
        vectors = fill(gallery, 3, 2)
        revision = gallery.revision
    with Gallery.open(place(folder)) as gallery:
        assert gallery.contract == CONTRACT
        assert (gallery.pack_name, gallery.thresholds) == ("sample", TABLE)
        assert gallery.count() == (3, 6) and len(gallery) == 6
        assert gallery.revision == revision
        [decision] = gallery.identify(vectors[1, 1][None])
        assert decision.match is not None and decision.match.name == "person 1"


def test_a_gallery_of_another_contract_is_refused_with_both_and_the_command(tmp_path) -> None:
    open_gallery(tmp_path).close()
    other = dataclasses.replace(CONTRACT, flip=False)
    with pytest.raises(ContractMismatch) as caught:
        Gallery.open(place(tmp_path), contract=other, pack_name="newer")
    message = str(caught.value)
    for part in ("'sample'", CONTRACT.contract_id, "'newer'", other.contract_id):
        assert part in message
    assert "facerec reembed --pack newer" in message
    open_gallery(tmp_path).close()


def test_nothing_is_made_unless_asked_and_told_of_what(tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match="no gallery here"):
        Gallery.open(place(tmp_path / "none"), contract=CONTRACT, create=False)
    with pytest.raises(GalleryError, match="no gallery here"):
        Gallery.open(place(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@in_folders_only
def test_a_folder_of_other_files_does_not_become_a_gallery(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(GalleryError, match="holds 'thesis"):
        open_gallery(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(GalleryError, match="this is a file"):
        open_gallery(tmp_path / "file")
    with pytest.raises(GalleryError, match="cannot be made"):
        open_gallery(tmp_path / "file" / "below")


@in_folders_only
def test_a_lost_database_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    with open_gallery(tmp_path) as gallery:
        fill(gallery, 3)
    (tmp_path / "gallery.db").unlink()
    with pytest.raises(GalleryError, match=r"no gallery\.db"):
        open_gallery(tmp_path)


@in_folders_only
def test_hidden_files_of_a_volume_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".DS_Store").touch()
    open_gallery(tmp_path).close()


def test_a_new_table_or_pack_name_of_the_same_contract_is_remembered(tmp_path: Path) -> None:
    open_gallery(tmp_path).close()
    finer = dataclasses.replace(TABLE, cosine=(0.21, 0.36, 0.51, 0.61))
    Gallery.open(place(tmp_path), contract=CONTRACT, thresholds=finer, pack_name="again").close()
    with Gallery.open(place(tmp_path)) as gallery:
        assert (gallery.thresholds, gallery.pack_name) == (finer, "again")
        revision = gallery.revision
    Gallery.open(place(tmp_path), contract=CONTRACT, thresholds=finer, pack_name="again").close()
    with Gallery.open(place(tmp_path), contract=CONTRACT, pack_name="again") as gallery:
        assert gallery.revision == revision and gallery.thresholds == finer


def test_a_closed_gallery_says_so(tmp_path: Path) -> None:
    gallery = open_gallery(tmp_path)
    gallery.close()
    gallery.close()
    for call in (gallery.count, gallery.people, lambda: gallery.identify(unit(0, 1))):
        with pytest.raises(GalleryError, match="closed"):
            call()


# Names


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        (" \t ", "empty"),
        ("\u200d", "empty"),
        ("a\0b", "U\\+0000"),
        ("a\x1bb", "U\\+001B"),
        ("\u202egnp.exe", "U\\+202E"),
        ("Ann\u200b", "U\\+200B"),
        ("\ud800", "U\\+D800"),
        ("x" * 201, "201 characters"),
    ],
)
def test_bad_names_are_refused(gallery: Gallery, name: str, reason: str) -> None:
    with pytest.raises(GalleryError, match=reason):
        gallery.enroll(name, [template(unit(0))])
    fill(gallery, 1)
    with pytest.raises(GalleryError, match=reason):
        gallery.rename("person 0", name)
    assert [p.name for p in gallery.people()] == ["person 0"]


def test_names_are_compared_without_regard_to_case_form_and_white_space(gallery: Gallery) -> None:
    first, _ = gallery.enroll("  Zoë   Straße ", [template(unit(0), "a")])
    assert first.name == "Zoë Straße"
    again, _ = gallery.enroll("ZOE\u0308 STRASSE", [template(unit(1), "b")])
    assert (again.id, again.name, again.template_count) == (first.id, "Zoë Straße", 2)
    with pytest.raises(IdentityExists, match="'Zoë Straße' is taken"):
        gallery.enroll("zoë strasse", [template(unit(2), "c")], must_be_new=True)
    assert gallery.person("zoë straße").id == first.id


def test_a_name_may_be_spelt_in_any_script_and_look_like_a_number(gallery: Gallery) -> None:
    names = ["می\u200cخواهم", "王小明", "O'Brien; DROP TABLE identities", "12", "%", "🙂"]
    for i, name in enumerate(names):
        gallery.enroll(name, [template(unit(i), name)])
    assert {p.name for p in gallery.people()} == set(names)
    assert gallery.person("12").name == "12"
    assert gallery.person(1).name == names[0]


# Enrolment


def test_a_photo_gives_a_person_one_template_and_may_show_others(gallery: Gallery) -> None:
    a, b = unit(0), unit(1)
    _, ids = gallery.enroll("Ann", [template(a, "group"), template(b, "group")])
    assert len(ids) == 1
    _, none = gallery.enroll("ann", [template(a, "group")])
    assert none == []
    _, others = gallery.enroll("Bob", [template(b, "group"), template(b, "other")])
    assert len(others) == 2 and gallery.count() == (2, 3)
    assert np.array_equal(gallery.identify(a[None])[0].candidates[0].template_id, ids[0])


def test_what_was_enrolled_can_be_read_back(gallery: Gallery) -> None:
    new = template(unit(0), "p", crop=b"pixels")
    person, [template_id] = gallery.enroll("Ann", [new], metadata={"badge": 7})
    assert (person.name, person.metadata, person.template_count) == ("Ann", {"badge": 7}, 1)
    assert person.created_at.tzinfo is timezone.utc
    [kept] = gallery.templates(person.id)
    assert (kept.id, kept.identity_id, kept.source) == (template_id, person.id, "p.jpg")
    assert (kept.content_sha256, kept.det_score, kept.has_crop) == (sha("p"), 0.9, True)
    assert np.array_equal(kept.landmarks, new.landmarks)
    assert gallery.crop(template_id) == new.crop_jpeg
    _, [bare] = gallery.enroll("Ann", [template(unit(1), "q")], metadata={"floor": 2})
    assert gallery.crop(bare) is None and not gallery.template(bare).has_crop
    assert gallery.person("Ann").metadata == {"badge": 7, "floor": 2}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"embedding": np.full(DIM, np.nan, np.float32)}, "NaN"),
        ({"embedding": np.ones(DIM, np.float32)}, "unit length"),
        ({"embedding": unit(0, 2)}, "shape"),
        ({"content_sha256": "short"}, "64 hexadecimal"),
        ({"det_score": 1.5}, "det_score"),
        ({"crop_jpeg": b"\xff\xd8\xff"}, "both|neither"),
        ({"crop_jpeg": b"GIF89a", "landmarks": np.zeros((5, 2))}, "not a JPEG"),
        ({"crop_jpeg": b"\xff\xd8\xff", "landmarks": np.zeros((4, 2))}, "landmarks"),
    ],
)
def test_a_bad_template_is_refused(change: dict, reason: str) -> None:
    good = {"embedding": unit(0), "source": "s", "content_sha256": sha("s"), "det_score": 0.5}
    NewTemplate(**good)
    with pytest.raises(GalleryError, match=reason):
        NewTemplate(**{**good, **change})


def test_a_source_of_undecodable_bytes_is_kept_readable(gallery: Gallery) -> None:
    new = dataclasses.replace(
        template(unit(0)), source=b"caf\xe9.jpg".decode(errors="surrogateescape")
    )
    gallery.enroll("Ann", [new])
    assert gallery.templates("Ann")[0].source == "caf\\udce9.jpg"


def test_enrolment_is_all_or_nothing(gallery: Gallery) -> None:
    with pytest.raises(ContractMismatch, match="16 dimensions"):
        gallery.enroll("Ann", [template(unit(0)), template(unit(0, dim=16), "b")])
    with pytest.raises(GalleryError, match="nothing to enrol"):
        gallery.enroll("Ann", [])
    with pytest.raises(GalleryError, match="JSON"):
        gallery.enroll("Ann", [template(unit(0))], metadata={"x": math.nan})
    with pytest.raises(GalleryError, match="65536"):
        gallery.enroll("Ann", [template(unit(0))], metadata={"x": "y" * 70000})
    assert gallery.count() == (0, 0)
    assert gallery.identify(unit(0, 1))[0].candidates == ()


# Identification


def test_a_decision_says_score_threshold_and_rates(gallery: Gallery) -> None:
    ann, bob = fill(gallery, 2)[:, 0]
    probe = near(ann, 0.8)
    [decision] = gallery.identify(probe[None], k=1)
    [candidate] = decision.candidates
    assert decision.match is candidate and candidate.name == "person 0"
    assert candidate.similarity == pytest.approx(0.8, abs=1e-5)
    assert decision.threshold == pytest.approx(0.5) and decision.fmr == 1e-3
    assert decision.fpir == pytest.approx(1 - (1 - 1e-3) ** 2) and decision.people == 2
    [stranger] = gallery.identify(near(bob, 0.45)[None])
    assert stranger.match is None and stranger.candidates[0].name == "person 1"
    assert gallery.identify(near(bob, 0.45)[None], fmr=1e-2)[0].match is not None


def test_the_threshold_for_a_search_takes_the_gallery_s_size(gallery: Gallery) -> None:
    vectors = fill(gallery, 20)
    [decision] = gallery.identify(vectors[0], fpir=0.05)
    assert decision.fmr == pytest.approx(1 - 0.95 ** (1 / 20))
    assert decision.fpir == pytest.approx(0.05)
    assert decision.threshold == pytest.approx(TABLE.cosine_at(decision.fmr))


def test_a_given_threshold_has_its_rate_read_back_where_it_was_measured(gallery: Gallery) -> None:
    vectors = fill(gallery, 2)
    [decision] = gallery.identify(vectors[0], threshold=0.35)
    assert decision.threshold == 0.35 and decision.fmr == pytest.approx(1e-2)
    for unmeasured in (-1.0, 0.1, 0.9, 1.0):
        [decision] = gallery.identify(vectors[0], threshold=unmeasured)
        assert decision.threshold == unmeasured
        assert math.isnan(decision.fmr) and math.isnan(decision.fpir)


def test_reading_a_rate_back_inverts_the_table() -> None:
    for fmr in (1e-1, 3e-2, 1e-2, 2e-3, 1e-3, 1e-4):
        assert TABLE.fmr_at(TABLE.cosine_at(fmr)) == pytest.approx(fmr)
    flat = ThresholdTable((1e-1, 1e-2, 1e-3), (0.2, 0.4, 0.4), (0, 0, 0), "made up")
    assert flat.fmr_at(0.4) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"fmr": 1e-9}, "this pack knows 0.0001 to 0.1"),
        ({"fmr": 0.0}, "between 0 and 1"),
        ({"fmr": math.nan}, "between 0 and 1"),
        ({"fpir": 1.0}, "between 0 and 1"),
        ({"fpir": 1e-6}, "FPIR 1e-06 among 2 people"),
        ({"threshold": 1.1}, "cosine in \\[-1, 1\\]"),
        ({"threshold": math.nan}, "cosine in \\[-1, 1\\]"),
        ({"fmr": 1e-3, "threshold": 0.5}, "FMR and threshold"),
        ({"fmr": 1e-3, "fpir": 0.1, "threshold": 0.5}, "FMR and FPIR and threshold"),
    ],
)
def test_an_operating_point_that_makes_no_sense_is_refused(gallery, asked, reason) -> None:
    fill(gallery, 2)
    with pytest.raises(ConfigError, match=reason):
        gallery.identify(unit(0, 1), **asked)


def test_without_a_table_the_message_names_the_command(tmp_path: Path) -> None:
    with Gallery.open(place(tmp_path), contract=CONTRACT, pack_name="fresh") as gallery:
        [vector] = fill(gallery, 1)[0]
        with pytest.raises(ConfigError, match=r"'fresh'.*facerec evaluate lfw DIR --write"):
            gallery.identify(vector[None])
        [decision] = gallery.identify(vector[None], threshold=0.4)
        assert decision.match is not None and math.isnan(decision.fmr)
        assert gallery.verify("person 0", vector, threshold=0.4).match is not None


@pytest.mark.parametrize(
    ("probes", "error", "reason"),
    [
        (unit(0), GalleryError, "shape"),
        (unit(0, 2, 16), ContractMismatch, "16 dimensions"),
        (np.full((1, DIM), np.inf), GalleryError, "infinity"),
        (2 * unit(0, 1), GalleryError, "unit length"),
        (np.zeros((1, DIM)), GalleryError, "unit length"),
        ([["a"] * DIM], GalleryError, "numbers"),
    ],
)
def test_a_bad_probe_is_refused(gallery: Gallery, probes, error, reason: str) -> None:
    with pytest.raises(error, match=reason):
        gallery.identify(probes)


def test_no_probe_no_decision_and_k_counts_from_one(gallery: Gallery) -> None:
    assert gallery.identify(np.empty((0, DIM), np.float32)) == []
    with pytest.raises(GalleryError, match="k counts people"):
        gallery.identify(unit(0, 1), k=0)


def test_an_empty_gallery_knows_nobody(gallery: Gallery) -> None:
    [decision] = gallery.identify(unit(0, 1))
    assert decision.candidates == () and decision.match is None
    assert (decision.threshold, decision.fpir, decision.people) == (0.5, 0.0, 0)


def test_k_people_not_k_templates(gallery: Gallery) -> None:
    centre = unit(7)
    crowd = [template(near(centre, 0.99, s), f"crowd {s}") for s in range(60)]
    gallery.enroll("many", crowd)
    gallery.enroll("second", [template(near(centre, 0.6, 100), "s")])
    gallery.enroll("third", [template(near(centre, 0.3, 101), "t")])
    [decision] = gallery.identify(centre[None], k=2)
    assert [c.name for c in decision.candidates] == ["many", "second"]
    [decision] = gallery.identify(centre[None], k=10)
    assert [c.name for c in decision.candidates] == ["many", "second", "third"]


def test_similarity_never_leaves_its_range(gallery: Gallery) -> None:
    vectors = fill(gallery, 30)[:, 0]
    for decision in gallery.identify(vectors, k=30):
        scores = [c.similarity for c in decision.candidates]
        assert max(scores) <= 1 and min(scores) >= -1 and scores[0] == pytest.approx(1)
        assert scores == sorted(scores, reverse=True)


def test_verification_compares_with_one_person_s_best_template(gallery: Gallery) -> None:
    a, b, c = unit(1), unit(2), unit(3)
    person, ids = gallery.enroll("Ann", [template(a, "a"), template(b, "b")])
    gallery.enroll("Bob", [template(c, "c")])
    decision = gallery.verify("ann", near(b, 0.7))
    [candidate] = decision.candidates
    assert (candidate.name, candidate.template_id) == ("Ann", ids[1])
    assert candidate.similarity == pytest.approx(0.7, abs=1e-5)
    assert decision.match == candidate and decision.fpir == pytest.approx(decision.fmr)
    assert gallery.verify(person.id, c).match is None
    assert gallery.verify(person.id, near(b, 0.45), fmr=1e-2).match is not None
    with pytest.raises(IdentityNotFound):
        gallery.verify("Eve", a)
    with pytest.raises(GalleryError, match="shape"):
        gallery.verify("Ann", a[None])


# Changes


def test_unknown_people_and_templates(gallery: Gallery) -> None:
    fill(gallery, 1)
    for call in (
        lambda: gallery.person("Eve"),
        lambda: gallery.person(99),
        lambda: gallery.person(-1),
        lambda: gallery.person(1 << 70),
        lambda: gallery.templates("Eve"),
        lambda: gallery.template(99),
        lambda: gallery.crop(99),
        lambda: gallery.rename("Eve", "Ann"),
        lambda: gallery.set_metadata("Eve", {}),
        lambda: gallery.merge("person 0", "Eve"),
        lambda: gallery.merge("Eve", "person 0"),
        lambda: gallery.remove("Eve"),
        lambda: gallery.remove(99),
        lambda: gallery.remove_template(99),
    ):
        with pytest.raises(IdentityNotFound, match=r"Eve|#"):
            call()
    assert gallery.count() == (1, 1)


def test_a_new_name_answers_at_once(gallery: Gallery) -> None:
    vectors = fill(gallery, 2)[:, 0]
    gallery.identify(vectors)
    with pytest.raises(IdentityExists, match="'person 1' is taken"):
        gallery.rename("person 0", "PERSON 1")
    assert gallery.rename("person 0", "Person 0").name == "Person 0"
    assert gallery.rename("person 0", "Ann").name == "Ann"
    assert [d.candidates[0].name for d in gallery.identify(vectors)] == ["Ann", "person 1"]
    with pytest.raises(IdentityNotFound):
        gallery.person("person 0")


def test_metadata_is_replaced(gallery: Gallery) -> None:
    gallery.enroll("Ann", [template(unit(0))], metadata={"a": 1})
    assert gallery.set_metadata("Ann", {"b": [2, None]}).metadata == {"b": [2, None]}
    with pytest.raises(GalleryError, match="text keys"):
        gallery.set_metadata("Ann", {1: "x"})  # type: ignore[dict-item]


def test_merged_people_are_one(gallery: Gallery) -> None:
    a, b, c = unit(1), unit(2), unit(3)
    gallery.enroll("Ann", [template(a, "a"), template(b, "both")], metadata={"x": 1})
    gallery.enroll("Anne", [template(c, "c"), template(b, "both")], metadata={"x": 2, "y": 3})
    merged = gallery.merge("Ann", "Anne")
    assert (merged.name, merged.template_count) == ("Ann", 3)
    assert merged.metadata == {"x": 1, "y": 3}
    assert gallery.count() == (1, 3)
    for decision in gallery.identify(np.stack([a, b, c])):
        assert [candidate.name for candidate in decision.candidates] == ["Ann"]
        assert decision.candidates[0].similarity == pytest.approx(1)
    with pytest.raises(GalleryError, match="itself"):
        gallery.merge("Ann", "ann")


def test_two_faces_of_one_photo_both_stay_when_people_merge(gallery: Gallery) -> None:
    """Of a group photo, or of a video: only the same face of it is there twice."""
    a, b, c = unit(1), unit(2), unit(3)
    second = dataclasses.replace(template(b, "group"), face=1)
    gallery.enroll("Ann", [template(a, "group")])
    gallery.enroll("Anne", [second, template(c, "c")])
    assert gallery.merge("Ann", "Anne").template_count == 3
    for decision in gallery.identify(np.stack([a, b, c])):
        assert decision.candidates[0].similarity == pytest.approx(1)


def test_removed_people_and_templates_answer_no_more(gallery: Gallery) -> None:
    vectors = fill(gallery, 3, 2)
    removal = gallery.remove("person 1")
    assert (removal.identity.name, removal.templates) == ("person 1", 2)
    assert removal.vacuumed == (gallery.location.milvus is None)
    [decision] = gallery.identify(vectors[1, 0][None])
    assert {c.name for c in decision.candidates} == {"person 0", "person 2"}
    first, second = gallery.templates("person 0")
    assert gallery.remove_template(first.id).templates == 1
    assert gallery.verify("person 0", vectors[0, 0]).candidates[0].template_id == second.id
    gallery.remove_template(second.id)
    assert gallery.person("person 0").template_count == 0
    assert gallery.verify("person 0", vectors[0, 0]).candidates == ()
    assert gallery.identify(vectors[0, :1])[0].people == 1
    assert gallery.count() == (2, 2)


def test_ids_are_not_given_twice(gallery: Gallery) -> None:
    fill(gallery, 2)
    gone = gallery.person("person 1")
    [template_gone] = gallery.templates("person 1")
    gallery.remove("person 1")
    person, [template_id] = gallery.enroll("person 1", [template(unit(9))])
    assert person.id > gone.id and template_id > template_gone.id


def test_people_are_listed_searched_and_paged(gallery: Gallery) -> None:
    for i, name in enumerate(["Émile", "bob", "Ann", "Annabel", "50%", "a_b"]):
        gallery.enroll(name, [template(unit(i), name)])
    assert [p.name for p in gallery.people()] == ["50%", "a_b", "Ann", "Annabel", "bob", "Émile"]
    assert [p.name for p in gallery.people(offset=2, limit=2)] == ["Ann", "Annabel"]
    assert [p.name for p in gallery.people("ANN")] == ["Ann", "Annabel"]
    assert [p.name for p in gallery.people("E\u0301M")] == ["Émile"]
    assert [p.name for p in gallery.people("%")] == ["50%"]
    assert [p.name for p in gallery.people("_")] == ["a_b"]
    assert gallery.people("nobody") == [] and gallery.people(offset=99) == []
    assert gallery.people(offset=1 << 70, limit=1 << 70) == []
    assert (gallery.count_people(), gallery.count_people("ann")) == (6, 2)
    with pytest.raises(GalleryError, match="not negative"):
        gallery.people(offset=-1)


# Index and threads


def test_the_exact_index_gives_the_same_decisions(tmp_path: Path) -> None:
    with open_gallery(tmp_path) as fast:
        vectors = fill(fast, 40, 3).reshape(-1, DIM)
        probes = np.concatenate([unit(5, 30), vectors[::7]])
        answers = fast.identify(probes, k=7)
        with Gallery.open(place(tmp_path), index_factory=ExactIndex) as exact:
            assert exact.identify(probes, k=7) == answers


def add_unnamed(gallery: Gallery) -> None:
    with gallery.writing() as change:
        [somebody] = change.add_unnamed(1)
        change.add_templates([(somebody, template(unit(60), "u"))])


def test_an_enrolment_waits_for_no_search_and_a_removal_for_all(tmp_path: Path) -> None:
    with Gallery.open(tmp_path / "people", contract=CONTRACT, thresholds=TABLE) as gallery:
        fill(gallery, 3)
        with ThreadPoolExecutor(1) as other:
            with gallery.live.searching() as state:
                enrolled = other.submit(gallery.enroll, "late", [template(unit(50), "l")])
                enrolled.result(timeout=20)
                assert state.people.people == 3 == len(state.people)
                [[hit]] = state.people.nearest(unit(50, 1), 1)
                assert hit.similarity < 0.9  # the search under way is of before
                [found] = gallery.identify(unit(50, 1))
                assert found.match is not None and found.match.name == "late"
                # Nor do faces without a name, which are none of this index.
                other.submit(add_unnamed, gallery).result(timeout=20)
                removed = other.submit(gallery.remove, "late")
                with pytest.raises(TimeoutError):
                    removed.result(timeout=0.5)
            removed.result(timeout=20)
        assert gallery.identify(unit(50, 1))[0].match is None


def test_threads_identify_while_others_write(tmp_path: Path) -> None:
    with open_gallery(tmp_path) as gallery:
        steady = fill(gallery, 20, seed=1)[:, 0]
        stop = threading.Event()
        wrong: list[object] = []

        def look() -> int:
            searches = 0
            while not stop.is_set():
                for i, decision in enumerate(gallery.identify(steady, k=2)):
                    if decision.match is None or decision.match.name != f"person {i}":
                        wrong.append((i, decision))
                searches += 1
            return searches

        def write(worker: int) -> None:
            for i in range(12):
                vector = unit(1000 + 100 * worker + i)
                name = f"guest {worker} {i}"
                gallery.enroll(name, [template(vector, name)])
                found = gallery.identify(vector[None], k=1)[0].match
                if found is None or found.name != name:
                    wrong.append((name, found))
                if i % 3 == 0:
                    gallery.remove(name)

        with ThreadPoolExecutor(5) as pool:
            readers = [pool.submit(look) for _ in range(3)]
            writers = [pool.submit(write, worker) for worker in range(2)]
            try:
                for writer in writers:
                    writer.result()
            finally:
                stop.set()
            assert all(reader.result() > 0 for reader in readers)
        assert wrong == []
        assert gallery.count() == (36, 36)
        gallery.check()


def test_ctrl_c_in_a_write_leaves_no_trace(gallery: Gallery) -> None:
    [kept] = fill(gallery, 1)[0]
    revision = gallery.revision
    with pytest.raises(KeyboardInterrupt), gallery.writing() as change:
        change.add_identity("half")
        raise KeyboardInterrupt
    assert gallery.revision == revision and gallery.count() == (1, 1)
    assert gallery.identify(kept[None])[0].match is not None
    gallery.enroll("half", [template(unit(3), "h")], must_be_new=True)


def test_ctrl_c_while_the_index_changes_is_mended_by_the_next_answer(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gallery.milvus import MilvusCollection
    from gallery.people import PeopleIndex

    def interrupted(self: object, *rows: object) -> None:
        raise KeyboardInterrupt

    vectors = fill(gallery, 3)[:, 0]
    with monkeypatch.context() as patch:
        patch.setattr(PeopleIndex, "put", interrupted)
        patch.setattr(MilvusCollection, "put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            gallery.enroll("late", [template(unit(50), "l")])
    found = gallery.identify(np.concatenate([vectors, unit(50, 1)]))
    assert [d.match and d.match.name for d in found] == [
        "person 0", "person 1", "person 2", "late",
    ]  # fmt: skip


def test_every_error_is_of_the_one_tree() -> None:
    for error in (GalleryError, IdentityExists, IdentityNotFound, ContractMismatch, ConfigError):
        assert issubclass(error, FacerecError)
