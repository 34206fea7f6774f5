"""The cluster commands, as a user types them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from facerec import cli
from gallery import Gallery
from tests.gallery_samples import CONTRACT, near, open_gallery, template, unit


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A gallery with Ada, four unnamed faces of hers, three of another's, and a single one."""
    place = tmp_path / "g"
    with open_gallery(place) as gallery:
        gallery.enroll("Ada", [template(near(unit(1), 0.95, 99), "ada")])
        for person, count in ((1, 4), (2, 3), (3, 1)):
            views = [
                template(near(unit(person), 0.95, i), f"{person}-{i}", b"crop")
                for i in range(count)
            ]
            with gallery.writing() as change:
                ids = change.add_unnamed(count)
                change.add_templates(list(zip(ids, views, strict=True)))
    return place


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: Path
) -> Callable[..., Ran]:
    """Run ``facerec cluster`` with the given words on that gallery."""
    monkeypatch.setenv("FACEREC_GALLERY", str(folder))

    def call(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["facerec", "cluster", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capfd.readouterr()
        return Ran(int(stopped.value.code or 0), out, err)

    return call


def groups(run: Callable[..., Ran], *words: object) -> dict[int, dict[str, Any]]:
    listed = run("list", "--json", *words).json["groups"]
    return {group["id"]: group for group in listed}


@pytest.mark.parametrize("words", [(), ("run",)])
def test_cluster_groups_and_says_at_what_threshold(run, words) -> None:
    ran = run(*words)
    assert ran.code == 0, ran.err
    assert "8 unnamed faces compared" in ran.out
    assert "linked from 0.5000 (FMR 0.001)" in ran.out
    assert "5 joined others; 2 groups of two or more" in ran.out
    again = run(*words, "--json").json
    assert (again["faces"], again["joined"], again["groups"]) == (8, 0, 2)


def test_list_shows_sizes_sources_and_whom_a_group_resembles(run) -> None:
    run()
    found = groups(run)
    assert sorted(g["faces"] for g in found.values()) == [3, 4]
    [first] = [g for g in found.values() if g["faces"] == 4]
    assert first["suggestion"]["name"] == "Ada"
    assert first["suggestion"]["votes"] == first["suggestion"]["asked"] == 4
    assert [view["source"] for view in first["views"]] == ["1-0.jpg", "1-1.jpg", "1-2.jpg"]
    text = run("list").out
    assert "Ada" in text and "1-0.jpg" in text
    assert "2 shown; 2 groups and 1 single faces in all, 0 dismissed." in text
    assert len(groups(run, "--min", 1)) == 3
    assert len(groups(run, "--min", 1, "--limit", 1, "--offset", 1)) == 1
    assert all(g["suggestion"] is None for g in groups(run, "--no-suggest").values())


def test_show_lists_the_faces_and_saves_their_crops(run, tmp_path) -> None:
    run()
    [group_id] = [i for i, g in groups(run).items() if g["faces"] == 4]
    text = run("show", group_id, "--crops", tmp_path / "crops").out
    assert text.startswith(f"unknown #{group_id}, 4 faces\n  probably Ada: 4 of 4 faces at FMR")
    assert len(list((tmp_path / "crops").glob("*.jpg"))) == 4
    (tmp_path / "file").touch()
    refused = run("show", group_id, "--crops", tmp_path / "file")
    assert (refused.code, "file: cannot be written" in refused.err) == (2, True)
    views = run("show", group_id, "--json").json["views"]
    assert {view["source"] for view in views} == {f"1-{i}.jpg" for i in range(4)}


def test_a_group_gets_a_name_and_a_name_gets_a_group(run, folder) -> None:
    run()
    found = groups(run)
    [four] = [i for i, g in found.items() if g["faces"] == 4]
    [three] = [i for i, g in found.items() if g["faces"] == 3]
    assert "is Ada, who has 5 views now" in run("name", four, "ada").out
    named = run("name", three, "Grace Hopper", "--json").json
    assert (named["id"], named["name"], named["views"]) == (three, "Grace Hopper", 3)
    assert groups(run) == {}
    with Gallery.open(folder, create=False) as gallery:
        assert [p.name for p in gallery.people()] == ["Ada", "Grace Hopper"]


def test_merge_split_apart_and_dismiss(run) -> None:
    run()
    found = groups(run)
    a, b = sorted(found)
    assert run("merge", a, b, "--json").json["faces"] == 7
    views = [v["id"] for v in run("show", a, "--json").json["views"]]
    split = run("split", f"#{a}", "--view", views[0], "--view", views[1], "--json").json
    new = split["new"]["id"]
    assert split["new"]["faces"] == 2
    run("run")
    assert {i: g["faces"] for i, g in groups(run).items()} == {a: 5, new: 2}
    assert run("apart", a, "Ada").out == f"unknown #{a} is not Ada.\n"
    assert groups(run)[a]["suggestion"] is None
    assert (
        run("dismiss", a, new).out == f"unknown #{a} is dismissed.\nunknown #{new} is dismissed.\n"
    )
    assert groups(run) == {}
    assert groups(run, "--dismissed").keys() == {a, new}
    assert run("dismiss", a, "--undo").out == f"unknown #{a} is back.\n"
    assert groups(run).keys() == {a}


def test_views_of_a_person_are_split_off_by_name(run, folder) -> None:
    run()
    [four] = [i for i, g in groups(run).items() if g["faces"] == 4]
    run("name", four, "Ada")
    with Gallery.open(folder, create=False) as gallery:
        view = gallery.templates("Ada")[2].id
    out = run("split", "Ada", "--view", view).out
    assert "has 1 faces; Ada keeps 4. They stay apart." in out


def test_a_number_is_a_person_of_that_name_before_it_is_an_unknown(run, folder) -> None:
    run()
    [a, b] = groups(run)
    with Gallery.open(folder, create=False) as gallery:
        person, _ = gallery.enroll(str(b), [template(unit(50 + i), str(i)) for i in range(2)])
        view = gallery.templates(person.id)[0].id
    assert run("apart", a, b, "--json").json["apart"] == [a, person.id]
    assert run("apart", a, f"#{b}", "--json").json["apart"] == [a, b]
    assert run("apart", a, f"unknown #{b}").out == f"unknown #{a} is not unknown #{b}.\n"
    assert run("split", b, "--view", view, "--json").json["old"] == {
        "id": person.id,
        "name": str(b),
    }
    assert "'facerec people show' lists them" in run("split", b, "--view", 9999).err
    assert "'facerec cluster show' lists them" in run("split", f"#{b}", "--view", 9999).err
    assert run("split", a, "--view", 9999).err.count(f"unknown #{a}") == 1, "nobody is called so"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("show", 999), 5, "there is no unknown #999"),
        (("name", 1, "Eve"), 5, "#1 has a name: Ada"),
        (("name", 2, " "), 5, "the name is empty"),
        (("merge", 2, 2), 5, "cannot be merged with itself"),
        (("split", 2, "--view", 999), 5, "has no view 999"),
        (("dismiss", 1), 5, "#1 has a name: Ada"),
        (("apart", 2, "Nobody"), 5, "no person named 'Nobody'"),
        (("run", "--fmr", 1e-9), 2, "no threshold was measured"),
        (("run", "--fmr", 0.01, "--threshold", 0.5), 2, "give one of"),
        (("--json", "list"), 2, "options come after the command"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_an_exit_code(run, words, code, says) -> None:
    ran = run(*words)
    assert ran.code == code
    assert says in ran.err + ran.out


def test_a_rate_can_be_asked_for(run) -> None:
    report = run("run", "--fmr", 0.01, "--json").json
    assert (report["fmr"], report["threshold"]) == (0.01, pytest.approx(0.35))
    assert run("--threshold", 0.45, "--json").json["threshold"] == 0.45


def test_unmeasured_is_null_in_json(run, monkeypatch, tmp_path) -> None:
    Gallery.open(tmp_path / "bare", contract=CONTRACT, pack_name="bare").close()
    report = run("run", "-g", tmp_path / "bare", "--threshold", 0.5, "--json").json
    assert report["fmr"] is None
    assert "no threshold table" in run("run", "-g", tmp_path / "bare").err


def test_an_export_says_whom_it_leaves_out(run, monkeypatch, capfd, folder, tmp_path) -> None:
    def exported(*words: object) -> str:
        words = ("people", "export", tmp_path / "people.facerec", "--overwrite", *words)
        monkeypatch.setattr(sys, "argv", ["facerec", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code
        return capfd.readouterr().out

    said = exported()
    assert "1 people with 1 views" in said
    assert "8 views of nobody with a name, or without a vector, are not" in said
    assert json.loads(exported("--json"))["left_out"] == 8
    with open_gallery(folder) as gallery:
        with gallery.unnamed.searching() as state:
            nobody = set(state.people.owners[1].tolist())
        with gallery.writing() as change:
            for identity in nobody:
                change.remove_identity(identity)
    assert "not" not in exported()
