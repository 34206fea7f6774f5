"""Galleries that move between engines, and the commands on a gallery at a URL.

That one engine behaves as another is tested by the modules that import a fixture of
:mod:`tests.gallery_engines`.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from facerec.errors import GalleryError, IdentityExists
from gallery import Gallery, from_export
from tests.gallery_engines import (
    PASSWORD,
    PostgresServer,
    engine,  # noqa: F401
    in_folders_only,
    place,
)
from tests.gallery_samples import fill, open_gallery, template, unit

_names = itertools.count()


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """Of a gallery in a folder, with crops, metadata and a person without a view."""
    with Gallery.open(tmp_path / "source", create=True, **_about()) as source:
        fill(source, 3, 2)
        source.enroll("Ann", [template(unit(9), "a", crop=b"jpeg")], metadata={"team": "red"})
        _, [only] = source.enroll("gone", [template(unit(8), "g")])
        source.remove_template(only)
        return source.export(tmp_path / "people.facerec")


def _about() -> dict[str, object]:
    from tests.gallery_samples import CONTRACT, TABLE

    return {"contract": CONTRACT, "thresholds": TABLE, "pack_name": "sample"}


def test_an_export_is_the_same_bytes_from_every_engine(exported: Path, tmp_path: Path) -> None:
    with from_export(exported, place(tmp_path / "copy")) as copy:
        again = copy.export(tmp_path / "again.facerec")
        assert copy.person("ann").metadata == {"team": "red"}
        assert copy.count() == (5, 7)
    assert again.read_bytes() == exported.read_bytes()
    with pytest.raises(GalleryError, match="holds a gallery already"):
        from_export(exported, place(tmp_path / "copy"))


def test_an_import_answers_at_once_and_elsewhere(exported: Path, tmp_path: Path) -> None:
    with open_gallery(tmp_path / "g") as gallery, open_gallery(tmp_path / "g") as elsewhere:
        gallery.enroll("Ann", [template(unit(1), "other")])
        with pytest.raises(IdentityExists):
            gallery.import_(exported)
        assert gallery.count() == (1, 1)
        result = gallery.import_(exported, on_conflict="merge")
        assert (result.people_added, result.people_merged, result.templates_added) == (4, 1, 7)
        for opened in (gallery, elsewhere):
            match = opened.identify(unit(9)[None], threshold=0.99)[0].match
            assert match is not None and match.name == "Ann"


def test_an_import_that_fails_midway_leaves_no_trace(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gallery.records import WriteTransaction

    def interrupted(self: WriteTransaction, new: object) -> list[int | None]:
        raise KeyboardInterrupt

    with open_gallery(tmp_path / "g") as gallery:
        vectors = fill(gallery, 2, seed=5)[:, 0]
        revision = gallery.revision
        with monkeypatch.context() as patch:
            patch.setattr(WriteTransaction, "add_templates", interrupted)
            with pytest.raises(KeyboardInterrupt):
                gallery.import_(exported, on_conflict="rename")
        assert gallery.count() == (2, 2) and gallery.revision == revision
        assert [d.match and d.match.name for d in gallery.identify(vectors)] == [
            "person 0", "person 1",
        ]  # fmt: skip


def test_faces_without_a_name_are_apart_until_they_have_one(tmp_path: Path) -> None:
    with open_gallery(tmp_path / "g") as gallery, open_gallery(tmp_path / "g") as elsewhere:
        fill(gallery, 2)
        with gallery.writing() as change:
            [somebody] = change.add_unnamed(1)
            change.add_templates([(somebody, template(unit(70), "s"))])
        for opened in (gallery, elsewhere):
            assert opened.identify(unit(70)[None], threshold=0.99)[0].match is None
            with opened.unnamed.searching() as state:
                assert state.people.nearest(unit(70)[None], 1)[0][0].identity_id == somebody
        with gallery.writing() as change:
            change.set_state(somebody, "named", "Carol")
        for opened in (gallery, elsewhere):
            match = opened.identify(unit(70)[None], threshold=0.99)[0].match
            assert match is not None and match.name == "Carol"
            with opened.unnamed.searching() as state:
                assert len(state.people) == 0
        with gallery.writing() as change:
            change.set_state(somebody, "unnamed")
        for opened in (gallery, elsewhere):
            assert opened.identify(unit(70)[None], threshold=0.99)[0].match is None
            opened.check()


@in_folders_only
def test_commands_take_a_url_and_never_show_its_password(
    postgres_server: PostgresServer, tmp_path: Path, exported: Path
) -> None:
    url = postgres_server.url(f"commands_{next(_names)}")

    def facerec(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "facerec.cli", *arguments, "--gallery", url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for secret in (PASSWORD, "se%20cret"):
            assert secret not in done.stdout + done.stderr
        return done

    missing = facerec("people", "list")
    assert missing.returncode == 5 and "there is no gallery here" in missing.stderr
    made = facerec("people", "import", str(exported))
    assert made.returncode == 0 and "with 5 people and 7 views" in made.stdout, made.stderr
    listed = facerec("people", "list")
    assert listed.returncode == 0 and "person 2" in listed.stdout
    removed = facerec("people", "remove", "person 1", "--yes")
    assert removed.returncode == 0 and "Removed person 1 with 2 views" in removed.stdout
    refused = facerec("people", "show", "person 1")
    assert refused.returncode == 5 and "no person named 'person 1'" in refused.stderr
