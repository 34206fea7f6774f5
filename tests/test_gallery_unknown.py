"""The unnamed of a gallery: grouped, added to, and never against what a person decided."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import event

from facerec.errors import ConfigError, GalleryError, IdentityNotFound
from facerec.types import FloatArray
from gallery import Gallery, NewTemplate, grouping
from gallery.grouping import GroupReport, group_unknown
from gallery.unknown import Unknown
from tests.gallery_engines import engine, in_folders_only  # noqa: F401
from tests.gallery_samples import CONTRACT, near, open_gallery, sha, template, unit

ALIKE = 0.95
"""Of a face with the middle of its person; two of one person are at about 0.9."""


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    with open_gallery(tmp_path / "g") as opened:
        yield opened


def faces(person: int, count: int, first: int = 0) -> list[FloatArray]:
    return [near(unit(person), ALIKE, 100 * person + i) for i in range(first, first + count)]


def add(gallery: Gallery, *new: NewTemplate) -> list[int]:
    """Each as an identity of its own, as the indexer does it; their ids."""
    with gallery.writing() as change:
        ids = change.add_unnamed(len(new))
        change.add_templates(list(zip(ids, new, strict=True)))
    return ids


def add_person(gallery: Gallery, person: int, count: int, first: int = 0) -> list[int]:
    rows = faces(person, count, first)
    return add(gallery, *(template(v, f"{person}-{first + i}") for i, v in enumerate(rows)))


def sizes(gallery: Gallery) -> dict[int, int]:
    return {g.id: g.template_count for g in Unknown(gallery).groups(at_least=1, limit=1000)}


def sources(gallery: Gallery, who: int | str) -> set[str]:
    return {t.source for t in gallery.templates(who)}


def test_faces_become_groups_under_the_oldest_number(gallery: Gallery) -> None:
    a, b = add_person(gallery, 1, 5), add_person(gallery, 2, 3)
    [single] = add_person(gallery, 3, 1)
    told: list[tuple[str, int, int]] = []
    report = group_unknown(gallery, progress=lambda *what: told.append(what))
    assert sizes(gallery) == {a[0]: 5, b[0]: 3, single: 1}
    assert (report.faces, report.groups, report.joined, report.overtaken) == (9, 2, 6, 0)
    assert report.threshold == pytest.approx(0.5), "FMR 1e-3: the gallery is small"
    assert told[0][0] == "comparing" and told[-1] == ("joining", 6, 6)
    counts = Unknown(gallery).count()
    assert (counts.groups, counts.single, counts.faces, counts.dismissed) == (2, 1, 9, 0)
    assert [g.name for g in Unknown(gallery).groups()] == [f"unknown #{a[0]}", f"unknown #{b[0]}"]
    gallery.check()


def test_a_second_run_changes_nothing(gallery: Gallery) -> None:
    add_person(gallery, 1, 4)
    group_unknown(gallery)
    revision = gallery.revision
    assert group_unknown(gallery).joined == 0
    assert gallery.revision == revision


def test_an_empty_gallery_has_nobody_to_group(gallery: Gallery) -> None:
    assert group_unknown(gallery).groups == 0
    assert Unknown(gallery).groups() == []


def test_new_faces_join_groups_that_keep_their_numbers(gallery: Gallery) -> None:
    early = add_person(gallery, 1, 1)  # older than the group that its person will have
    add_person(gallery, 5, 2)
    later = add_person(gallery, 2, 3)
    group_unknown(gallery)
    add_person(gallery, 2, 2, first=10)
    add_person(gallery, 1, 1, first=10)
    group_unknown(gallery)
    assert sizes(gallery)[later[0]] == 5
    assert sizes(gallery)[early[0]] == 2


def test_named_people_are_left_alone_and_groups_are_not_named_by_themselves(
    gallery: Gallery,
) -> None:
    ada, _ = gallery.enroll("Ada", [template(v, f"ada{i}") for i, v in enumerate(faces(1, 3))])
    [first, *_] = add_person(gallery, 1, 4, first=10)
    add_person(gallery, 2, 2)
    group_unknown(gallery)
    assert gallery.person("Ada").template_count == 3
    suggestion = Unknown(gallery).suggestion(first)
    assert suggestion is not None
    assert (suggestion.person_id, suggestion.name) == (ada.id, "Ada")
    assert (suggestion.votes, suggestion.asked) == (4, 4)
    assert gallery.identify(faces(2, 1))[0].match is None
    [other] = [i for i in sizes(gallery) if i != first]
    assert Unknown(gallery).suggestion(other) is None


def test_a_name_makes_a_group_a_person_who_is_identified_from_then_on(gallery: Gallery) -> None:
    [first, *_] = add_person(gallery, 1, 3)
    group_unknown(gallery)
    person, joined = Unknown(gallery).name(first, " Ada  Lovelace ")
    assert (person.id, person.name, joined.moved) == (first, "Ada Lovelace", 3)
    match = gallery.identify(faces(1, 1, first=20))[0].match
    assert match is not None and match.name == "Ada Lovelace"
    assert sizes(gallery) == {}
    add_person(gallery, 1, 2, first=30)
    group_unknown(gallery)
    assert gallery.person("Ada Lovelace").template_count == 3
    gallery.check()


def test_a_name_that_is_there_takes_the_group_in(gallery: Gallery) -> None:
    gallery.enroll("Ada", [template(faces(1, 1)[0], "ada")], metadata={"team": "engines"})
    [first, *_] = add_person(gallery, 1, 3, first=10)
    group_unknown(gallery)
    person, joined = Unknown(gallery).name(first, "ADA")
    assert (person.name, person.template_count, joined.moved) == ("Ada", 4, 3)
    assert person.metadata == {"team": "engines"}
    with pytest.raises(IdentityNotFound, match="may have become part of another"):
        Unknown(gallery).group(first)
    with pytest.raises(GalleryError, match="has a name: Ada"):
        Unknown(gallery).name(person.id, "Eve")


@pytest.mark.parametrize("dismissed", [False, True])
def test_renaming_somebody_without_a_name_makes_a_person_of_them(
    gallery: Gallery, dismissed: bool
) -> None:
    first, second = add_person(gallery, 1, 2)
    if dismissed:
        Unknown(gallery).dismiss([second])
    assert gallery.identify(faces(1, 1, first=20))[0].match is None
    person = gallery.rename(second, "Ada")
    assert (person.id, person.name, person.state) == (second, "Ada", "named")
    match = gallery.identify(faces(1, 1, first=20))[0].match
    assert match is not None and match.name == "Ada"
    group_unknown(gallery)
    assert gallery.person("Ada").template_count == 1
    assert sizes(gallery) == {first: 1}
    gallery.check()


def test_nobody_is_merged_into_somebody_without_a_name(gallery: Gallery) -> None:
    gallery.enroll("Ada", [template(faces(1, 1)[0], "ada")])
    [first] = add_person(gallery, 1, 1, first=10)
    with pytest.raises(GalleryError, match=f"who has no name.*cluster name {first} NAME"):
        gallery.merge(first, "Ada")
    assert (gallery.person("Ada").template_count, sizes(gallery)) == (1, {first: 1})
    assert gallery.merge("Ada", first).template_count == 2
    gallery.check()


def test_two_faces_of_a_photo_are_two_people_however_alike(gallery: Gallery) -> None:
    add(gallery, *(replace(template(v, "twins"), face=i) for i, v in enumerate(faces(1, 2))))
    add_person(gallery, 1, 3, first=10)
    group_unknown(gallery)
    assert sorted(sizes(gallery).values()) == [1, 4]
    assert all("twins.jpg" in sources(gallery, group_id) for group_id in sizes(gallery))


def test_frames_of_a_video_are_not_one_photo(gallery: Gallery) -> None:
    shots = [
        replace(template(v, "film"), source=f"film.mp4#t={i}.00", face=i)
        for i, v in enumerate(faces(1, 3))
    ]
    add(gallery, *shots)
    group_unknown(gallery)
    assert list(sizes(gallery).values()) == [3]


def test_a_face_that_was_found_twice_in_a_photo_is_kept_once(gallery: Gallery) -> None:
    [face] = faces(1, 1)
    add(gallery, *(replace(template(face, "one"), face=i) for i in range(2)))
    report = group_unknown(gallery)
    assert report.joined == 1
    assert list(sizes(gallery).values()) == [1]
    gallery.check()


def test_naming_leaves_out_faces_of_photos_that_show_the_person_already(gallery: Gallery) -> None:
    gallery.enroll("Ada", [template(faces(1, 1)[0], "party")])
    beside = replace(template(faces(1, 1, first=5)[0], "party"), face=1)
    again = replace(template(faces(1, 1)[0], "party"), face=2)
    ids = add(gallery, beside, again)
    ids += add_person(gallery, 1, 2, first=10)
    unknown = Unknown(gallery)
    group, _ = unknown.merge(ids[0], ids[2:])
    assert unknown.merge(ids[0], [ids[1]])[1].left == 1, "two faces of one photo"
    person, joined = unknown.name(group.id, "Ada")
    assert (joined.moved, joined.same, joined.left) == (2, 0, 1)
    assert unknown.name(ids[1], "Ada")[1].same == 1, "the very face that Ada has"
    assert person.template_count == 3
    assert sources(gallery, group.id) == {"party.jpg"}
    group_unknown(gallery)
    assert unknown.suggestion(group.id) is None, "that face is not Ada"
    gallery.check()


def test_what_was_merged_stays_together(gallery: Gallery) -> None:
    child, adult = add_person(gallery, 1, 3), add_person(gallery, 2, 3)
    group_unknown(gallery)
    group, joined = Unknown(gallery).merge(adult[0], [child[0]])
    assert (group.id, group.template_count, joined.moved) == (adult[0], 6, 3)
    add_person(gallery, 1, 1, first=10)  # alike to a part of the group only
    add_person(gallery, 2, 1, first=10)
    group_unknown(gallery)
    assert sizes(gallery) == {adult[0]: 8}


def test_what_was_split_stays_apart_also_from_what_it_becomes_part_of(gallery: Gallery) -> None:
    [first, *_] = add_person(gallery, 1, 6)
    group_unknown(gallery)
    unknown = Unknown(gallery)
    some = [t.id for t in gallery.templates(first)][:3]
    new = unknown.split(first, some)
    assert new.template_count == 3
    group_unknown(gallery)
    assert sizes(gallery) == {first: 3, new.id: 3}
    older = add_person(gallery, 9, 2)
    unknown.merge(older[0], [new.id])
    unknown.merge(older[0], [older[1]])
    add_person(gallery, 1, 2, first=10)
    group_unknown(gallery)
    assert sizes(gallery).keys() == {first, older[0]}
    assert sum(sizes(gallery).values()) == 10
    unknown.merge(first, [older[0]])  # the later word counts
    assert sizes(gallery) == {first: 10}


def test_a_single_face_that_was_split_off_stays_apart(gallery: Gallery) -> None:
    [first, *_] = add_person(gallery, 1, 4)
    group_unknown(gallery)
    new = Unknown(gallery).split(first, [gallery.templates(first)[2].id])
    group_unknown(gallery)
    assert sizes(gallery) == {first: 3, new.id: 1}


def test_views_of_a_named_person_can_be_split_off(gallery: Gallery) -> None:
    gallery.enroll("Ada", [template(v, f"a{i}") for i, v in enumerate(faces(1, 3))])
    wrong = gallery.templates("Ada")[1]
    new = Unknown(gallery).split("Ada", [wrong.id])
    assert gallery.person("Ada").template_count == 2
    assert sources(gallery, new.id) == {wrong.source}
    assert Unknown(gallery).suggestion(new.id) is None, "it is not Ada, somebody said"
    gallery.check()


@pytest.mark.parametrize("which", ["none", "all", "another's"])
def test_a_split_takes_some_of_the_faces(gallery: Gallery, which: str) -> None:
    [first, *_] = add_person(gallery, 1, 3)
    [other] = add_person(gallery, 2, 1)
    group_unknown(gallery)
    ids = [t.id for t in gallery.templates(first)]
    wanted = {"none": [], "all": ids, "another's": [gallery.templates(other)[0].id]}[which]
    with pytest.raises(GalleryError, match=r"views to split off|has no view"):
        Unknown(gallery).split(first, wanted)
    assert sizes(gallery) == {first: 3, other: 1}


def test_the_dismissed_stay_away_and_take_their_new_faces_with_them(gallery: Gallery) -> None:
    [first, *_] = add_person(gallery, 1, 3)
    group_unknown(gallery)
    unknown = Unknown(gallery)
    [gone] = unknown.dismiss([first])
    assert gone.state == "dismissed"
    add_person(gallery, 1, 2, first=10)
    group_unknown(gallery)
    assert sizes(gallery) == {}
    assert [(g.id, g.template_count) for g in unknown.groups(dismissed=True)] == [(first, 5)]
    assert unknown.count().dismissed == 1
    unknown.dismiss([first], undo=True)
    assert sizes(gallery) == {first: 5}


def test_a_group_is_not_joined_with_a_dismissed_one(gallery: Gallery) -> None:
    a, b = add_person(gallery, 1, 2), add_person(gallery, 1, 2, first=10)
    unknown = Unknown(gallery)
    unknown.merge(a[0], a[1:])
    unknown.merge(b[0], b[1:])
    unknown.dismiss([a[0]])
    group_unknown(gallery)
    assert sizes(gallery) == {b[0]: 2}


def test_groups_that_have_come_to_resemble_each_other_become_the_older(gallery: Gallery) -> None:
    a, b = add_person(gallery, 1, 2), add_person(gallery, 1, 2, first=10)
    unknown = Unknown(gallery)
    unknown.merge(a[0], a[1:])
    unknown.merge(b[0], b[1:])
    group_unknown(gallery)
    assert sizes(gallery) == {a[0]: 4}


def test_who_was_said_to_be_somebody_else_is_not_suggested_or_joined(gallery: Gallery) -> None:
    gallery.enroll("Ada", [template(faces(1, 1)[0], "ada")])
    gallery.enroll("Bea", [template(near(unit(1), 0.85, 7), "bea")])
    [first, *rest] = add_person(gallery, 1, 2, first=10)
    unknown = Unknown(gallery)
    unknown.keep_apart(first, rest[0])
    unknown.keep_apart(first, "Ada")
    group_unknown(gallery)
    assert sizes(gallery) == {first: 1, rest[0]: 1}
    assert [unknown.suggestion(i).name for i in (first, rest[0])] == ["Bea", "Ada"]  # type: ignore[union-attr]
    with pytest.raises(GalleryError, match="from itself"):
        unknown.keep_apart(first, first)


def test_many_are_suggested_as_each_alone(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    for person, name in enumerate(("Ada", "Bea", "Cleo"), start=1):
        gallery.enroll(name, [template(faces(person, 1)[0], name)])
    ids = [add_person(gallery, person, 3, first=10)[0] for person in (1, 2, 3, 4)]
    group_unknown(gallery)
    unknown = Unknown(gallery)
    unknown.keep_apart(ids[1], "Bea")
    unknown.keep_apart(ids[1], "Ada")
    monkeypatch.setattr("gallery.unknown._TOGETHER", 3)
    found = unknown.suggestions(ids)
    assert [hint and hint.name for hint in found.values()] == ["Ada", None, "Cleo", None]
    for one, hint in found.items():
        alone = unknown.suggestion(one)
        assert (hint is None) == (alone is None)
        if hint and alone:
            assert replace(hint, similarity=alone.similarity) == alone
            assert hint.similarity == pytest.approx(alone.similarity, abs=1e-6)
    assert unknown.suggestions([]) == {}
    with pytest.raises(IdentityNotFound):
        unknown.suggestions([ids[0], 999])


def test_the_first_faces_of_somebody_come_without_the_rest(gallery: Gallery) -> None:
    [first, *_] = add_person(gallery, 1, 5)
    group_unknown(gallery)
    every = [t.id for t in gallery.templates(first)]
    assert len(every) == 5
    for limit in (0, 1, 3, 9):
        assert [t.id for t in gallery.templates(first, limit=limit)] == every[:limit]
    with pytest.raises(GalleryError, match="limit is not negative"):
        gallery.templates(first, limit=-1)


@in_folders_only
def test_counting_goes_by_the_index_on_states(gallery: Gallery) -> None:
    asked: list[str] = []
    with gallery.reading() as view:
        database = view.connection.engine
    event.listen(database, "before_cursor_execute", lambda *about: asked.append(about[2]))
    Unknown(gallery).count()
    [query] = [text for text in asked if "GROUP BY" in text]
    with gallery.reading() as view:
        wanted = ("unnamed", "dismissed")
        plan = view.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", wanted).all()
    looks_up = "SEARCH identities USING COVERING INDEX ix_identities_state"
    assert any(looks_up in row[3] for row in plan), plan


def changed_meanwhile(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch, act: object
) -> GroupReport:
    """A run during which, between comparing and writing, ``act`` happens."""
    real = grouping._plans

    def plans_and_act(*args):  # type: ignore[no-untyped-def]
        found = real(*args)
        act()  # type: ignore[operator]
        return found

    monkeypatch.setattr(grouping, "_plans", plans_and_act)
    report = group_unknown(gallery)
    monkeypatch.setattr(grouping, "_plans", real)
    return report


def test_what_people_do_during_a_run_is_not_undone(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c, d = (add_person(gallery, i, 3) for i in (1, 2, 3, 4))
    unknown = Unknown(gallery)

    def act() -> None:
        unknown.name(a[0], "Ada")  # whom others were to become part of
        unknown.name(b[1], "Bea")  # who was to become part of another
        gallery.remove(c[2])
        unknown.keep_apart(d[0], d[1])

    report = changed_meanwhile(gallery, monkeypatch, act)
    assert (report.joined, report.overtaken) == (3, 5)
    assert gallery.person("Ada").template_count == gallery.person("Bea").template_count == 1
    assert sizes(gallery) == {a[1]: 1, a[2]: 1, b[0]: 2, c[0]: 2, d[0]: 2, d[1]: 1}
    group_unknown(gallery)
    assert sizes(gallery) == {a[1]: 2, b[0]: 2, c[0]: 2, d[0]: 2, d[1]: 1}
    gallery.check()


def test_a_group_that_grew_meanwhile_keeps_what_it_got(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    [first, *_] = add_person(gallery, 1, 3)
    [other] = add(gallery, replace(template(unit(9), "1-1"), face=1))  # in a photo of the group

    report = changed_meanwhile(gallery, monkeypatch, lambda: Unknown(gallery).merge(first, [other]))
    assert sizes(gallery)[first] == 3, "its own, the one merged, and not the one beside that"
    assert (report.joined, report.overtaken) == (1, 1)
    assert sum(sizes(gallery).values()) == 4
    gallery.check()


def test_a_group_that_was_split_meanwhile_gets_nothing_until_it_is_compared_again(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    [first, *_] = add_person(gallery, 1, 4)
    group_unknown(gallery)
    add_person(gallery, 1, 2, first=10)
    [wrong, *_] = [t.id for t in gallery.templates(first)]
    report = changed_meanwhile(gallery, monkeypatch, lambda: Unknown(gallery).split(first, [wrong]))
    assert (report.joined, report.overtaken) == (0, 2)
    assert sorted(sizes(gallery).values()) == [1, 1, 1, 3]
    report = group_unknown(gallery)
    assert (report.joined, report.overtaken) == (2, 0)
    assert len(sizes(gallery)) == 2
    gallery.check()


def test_a_run_that_is_stopped_goes_on_where_it_was(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "_COMMIT", 4)
    ids = [add_person(gallery, i, 4)[0] for i in range(1, 7)]

    def stop(what: str, done: int, total: int) -> None:
        if what == "joining" and done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        group_unknown(gallery, progress=stop)
    assert sum(sizes(gallery).values()) == 24
    assert len(sizes(gallery)) == 24 - 8
    report = group_unknown(gallery)
    assert sizes(gallery) == dict.fromkeys(ids, 4)
    assert report.joined == 10


def test_a_large_group_is_written_in_several_transactions(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "_COMMIT", 5)
    before = gallery.revision
    [first, *_] = add_person(gallery, 1, 23)
    group_unknown(gallery)
    assert sizes(gallery) == {first: 23}
    assert gallery.revision == before + 1 + 5


def test_without_a_table_a_cosine_must_be_given(tmp_path: Path) -> None:
    with Gallery.open(tmp_path / "g", contract=CONTRACT, pack_name="unmeasured") as gallery:
        add_person(gallery, 1, 3)
        with pytest.raises(ConfigError, match="no threshold table"):
            group_unknown(gallery)
        report = group_unknown(gallery, threshold=0.5)
        assert (report.groups, report.threshold) == (1, 0.5)
        assert np.isnan(report.fmr)
        [first] = sizes(gallery)
        assert Unknown(gallery).suggestion(first) is None


def test_removing_a_group_forgets_what_was_said_of_it(gallery: Gallery) -> None:
    ids = add_person(gallery, 1, 2)
    unknown = Unknown(gallery)
    unknown.keep_apart(*ids)
    gallery.remove(ids[0])
    group_unknown(gallery)
    assert sizes(gallery) == {ids[1]: 1}
    assert sha("1-0") not in {t.content_sha256 for t in gallery.templates(ids[1])}
    gallery.check()


def test_merging_people_keeps_what_was_said_of_either(gallery: Gallery) -> None:
    gallery.enroll("Ada", [template(faces(1, 1)[0], "ada")])
    gallery.enroll("A. Lovelace", [template(faces(1, 1, first=1)[0], "lovelace")])
    [first] = add_person(gallery, 1, 1, first=10)
    unknown = Unknown(gallery)
    unknown.keep_apart(first, "A. Lovelace")
    assert unknown.suggestion(first) is not None
    gallery.merge("Ada", "A. Lovelace")
    assert unknown.suggestion(first) is None
    gallery.check()


def test_two_runs_at_once_beside_an_indexer_come_to_one_result(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "_COMMIT", 3)
    for person in range(1, 5):
        add_person(gallery, person, 5)
    with ThreadPoolExecutor(3) as threads:
        runs = [threads.submit(group_unknown, gallery) for _ in range(2)]
        for person in range(1, 5):
            add_person(gallery, person, 2, first=10)
        reports = [run.result() for run in runs]
    assert sum(sizes(gallery).values()) == 4 * 7
    last = group_unknown(gallery)
    assert sorted(sizes(gallery).values()) == [7, 7, 7, 7]
    assert last.overtaken == 0
    assert sum(report.joined for report in (*reports, last)) == 4 * 6
    gallery.check()
