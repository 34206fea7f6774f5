"""Export and import: a whole gallery through one file, and files that are not one."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete, insert

from facerec.errors import ContractMismatch, GalleryError, IdentityExists
from gallery import Gallery, from_export, read_manifest
from gallery.schema import EmbeddingRow, UnembeddedRow
from gallery.sqlite import DB_NAME
from tests.gallery_samples import CONTRACT, DIM, TABLE, fill, open_gallery, template, unit


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five people, one without a template, three templates with crops."""
    folder = tmp_path_factory.mktemp("exported")
    with open_gallery(folder / "people") as gallery:
        fill(gallery, 4, 2)
        crops = [template(unit(90 + i), f"c{i}", bytes([i]) * 5000) for i in range(3)]
        gallery.enroll("Zoë", crops, metadata={"badge": 7, "äöü": None})
        gallery.remove("person 1")
        gallery.enroll("empty", [template(unit(70))])
        gallery.remove_template(gallery.templates("empty")[0].id)
        return gallery.export(folder / "people.facerec")


def state(gallery: Gallery) -> list[object]:
    """All that can be read of a gallery, apart from ids."""
    people = []
    for person in gallery.people():
        kept = gallery.templates(person.id)
        people.append(
            (
                person.name,
                person.metadata,
                person.created_at,
                [(t.source, t.content_sha256, t.det_score, t.created_at) for t in kept],
                [None if t.landmarks is None else t.landmarks.tolist() for t in kept],
                [gallery.crop(t.id) for t in kept],
            )
        )
    return people


def test_a_gallery_survives_the_journey(exported: Path, tmp_path: Path) -> None:
    with (
        from_export(exported, tmp_path / "new") as new,
        Gallery.open(exported.parent / "people") as old,
    ):
        assert state(new) == state(old)
        assert (new.contract, new.thresholds, new.pack_name) == (CONTRACT, TABLE, "sample")
        probes = np.concatenate([unit(0, 8), unit(90)[None]])
        for a, b in zip(new.identify(probes, 9), old.identify(probes, 9), strict=True):
            assert [(c.name, c.similarity) for c in a.candidates] == [
                (c.name, c.similarity) for c in b.candidates
            ]
        new.check()


def test_the_same_people_give_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    with Gallery.open(exported.parent / "people") as gallery:
        again = gallery.export(tmp_path / "again")
    assert again.read_bytes() == exported.read_bytes()


def test_the_file_can_be_read_with_everyday_tools(exported: Path) -> None:
    with zipfile.ZipFile(exported) as archive:
        assert archive.testzip() is None
        vectors = np.load(io.BytesIO(archive.read("vectors.npy")))
        lines = archive.read("templates.jsonl").decode().splitlines()
        people = [json.loads(x) for x in archive.read("identities.jsonl").decode().splitlines()]
        manifest = json.loads(archive.read("manifest.json"))
    assert vectors.shape == (9, DIM) and vectors.dtype == np.float32
    assert len(lines) == 9 and len(people) == 5
    zoe = [i for i, line in enumerate(lines) if people[json.loads(line)["person"]]["name"] == "Zoë"]
    assert np.array_equal(vectors[zoe], np.stack([unit(90), unit(91), unit(92)]))
    assert (manifest["people"], manifest["templates"], manifest["crops"]) == (5, 9, 3)
    about = read_manifest(exported)
    assert (about.people, about.templates, about.crops) == (5, 9, 3)
    assert (about.contract, about.pack_name, about.thresholds) == (CONTRACT, "sample", TABLE)


def test_two_faces_of_one_photo_travel_with_their_places(tmp_path: Path) -> None:
    box = np.array([1, 2, 30.5, 40], np.float32)
    faces = [
        dataclasses.replace(template(unit(i), "video"), face=i, box_xyxy=box + i) for i in range(3)
    ]
    with open_gallery(tmp_path / "old") as gallery:
        gallery.enroll("Ada", faces)
        gallery.export(tmp_path / "people.facerec")
    with from_export(tmp_path / "people.facerec", tmp_path / "new") as new:
        kept = new.templates("Ada")
        assert [t.face for t in kept] == [0, 1, 2]
        assert all(np.array_equal(t.box_xyxy, box + i) for i, t in enumerate(kept))


def test_a_view_without_a_vector_is_left_out_and_the_rest_travels(tmp_path: Path) -> None:
    """As a move to another model leaves it, of a photo that it could not use."""
    with open_gallery(tmp_path / "old") as gallery:
        vectors = fill(gallery, 3, 2)
        with gallery.writing() as change:
            lost = gallery.templates("person 1")[0].id
            values = {"template_id": lost, "generation": 1}
            change.connection.execute(delete(EmbeddingRow).where(EmbeddingRow.template_id == lost))
            change.connection.execute(insert(UnembeddedRow).values(**values, reason="no face"))
        gallery.export(tmp_path / "people.facerec")
    assert read_manifest(tmp_path / "people.facerec").templates == 5
    with from_export(tmp_path / "people.facerec", tmp_path / "new") as new:
        assert new.count() == (3, 5)
        assert new.identify(vectors[1, 1][None])[0].match.name == "person 1"


def test_an_empty_gallery_without_a_table_travels_too(tmp_path: Path) -> None:
    with Gallery.open(tmp_path / "a", contract=CONTRACT) as gallery:
        gallery.export(tmp_path / "file")
    with from_export(tmp_path / "file", tmp_path / "b") as gallery:
        assert gallery.count() == (0, 0) and gallery.thresholds is None


def test_a_gallery_larger_than_a_batch_travels(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("gallery.records.READ_BATCH", 7)
    monkeypatch.setattr("gallery.archive.READ_BATCH", 5)
    with open_gallery(tmp_path / "a") as gallery:
        vectors = fill(gallery, 20)
        gallery.export(tmp_path / "file")
    with from_export(tmp_path / "file", tmp_path / "b") as gallery:
        found = gallery.identify(vectors[:, 0], k=1)
        assert [d.match and d.match.name for d in found] == [f"person {i}" for i in range(20)]


# Names that are taken


@pytest.fixture
def other(tmp_path: Path):
    with open_gallery(tmp_path / "other") as gallery:
        gallery.enroll("ZOË", [template(unit(90), "c0"), template(unit(40), "own")])
        gallery.set_metadata("ZOË", {"badge": 8})
        yield gallery


def test_taken_names_stop_the_import(other: Gallery, exported: Path) -> None:
    before = state(other)
    with pytest.raises(IdentityExists, match=r"Zoë.*unchanged"):
        other.import_(exported)
    assert state(other) == before and other.count() == (1, 2)
    assert other.identify(unit(0, 1))[0].match is None


def test_taken_names_can_be_merged(other: Gallery, exported: Path) -> None:
    result = other.import_(exported, on_conflict="merge")
    assert (result.people_added, result.people_merged) == (4, 1)
    assert (result.templates_added, result.duplicates, result.renamed) == (8, 1, {})
    zoe = other.person("zoë")
    assert (zoe.name, zoe.template_count) == ("ZOË", 4)
    assert zoe.metadata == {"badge": 8, "äöü": None}
    again = other.import_(exported, on_conflict="merge")
    assert (again.templates_added, again.duplicates) == (0, 9)


def test_taken_names_can_be_numbered(other: Gallery, exported: Path) -> None:
    other.enroll("Zoë (2)", [template(unit(41))])
    result = other.import_(exported, on_conflict="rename")
    assert (result.people_added, result.people_merged) == (5, 0)
    assert result.renamed == {"Zoë": "Zoë (3)"}
    assert other.person("Zoë (3)").template_count == 3
    [decision] = other.identify(unit(91)[None])
    assert decision.match is not None and decision.match.name == "Zoë (3)"
    with pytest.raises(GalleryError, match="not 'overwrite'"):
        other.import_(exported, on_conflict="overwrite")  # type: ignore[arg-type]


def test_an_import_answers_at_once_and_in_other_openings(exported: Path, tmp_path: Path) -> None:
    with open_gallery(tmp_path) as gallery, open_gallery(tmp_path) as elsewhere:
        gallery.import_(exported)
        for opened in (gallery, elsewhere):
            [decision] = opened.identify(unit(91)[None])
            assert decision.match is not None and decision.match.name == "Zoë"


# Files that are refused


def test_another_contract_is_refused(exported: Path, tmp_path: Path) -> None:
    contract = dataclasses.replace(CONTRACT, flip=False)
    with Gallery.open(tmp_path, contract=contract, pack_name="newer") as gallery:
        with pytest.raises(ContractMismatch) as caught:
            gallery.import_(exported)
        assert gallery.count() == (0, 0)
    for part in ("'sample'", "'newer'", CONTRACT.contract_id, contract.contract_id, "reembed"):
        assert part in str(caught.value)


def test_no_file_a_folder_and_something_else(other: Gallery, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "nothing").touch()
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    for name, reason in [
        ("absent", "no such file"),
        ("other", "not a whole gallery export"),
        ("text", "not a whole gallery export"),
        ("nothing", "not a whole gallery export"),
        ("zip", "'a.txt' does not belong there"),
    ]:
        with pytest.raises(GalleryError, match=reason):
            other.import_(tmp_path / name)


Members = dict[str, bytes]


def rewritten(exported: Path, target: Path, change: Callable[[Members], object]) -> Path:
    """The export with its members changed, and the manifest's checksums made right again."""
    with zipfile.ZipFile(exported) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    if members.get("manifest.json", b"").startswith(b"{"):
        manifest = json.loads(members["manifest.json"])
        for name in manifest.get("sha256", ()):
            if name in members:
                manifest["sha256"][name] = hashlib.sha256(members[name]).hexdigest()
        members["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target


def in_manifest(**values: object) -> Callable[[Members], object]:
    def change(members: Members) -> None:
        members["manifest.json"] = json.dumps(
            {**json.loads(members["manifest.json"]), **values}
        ).encode()

    return change


def in_line(member: str, line: int, **values: object) -> Callable[[Members], object]:
    def change(members: Members) -> None:
        lines = members[member].decode().splitlines()
        lines[line] = json.dumps({**json.loads(lines[line]), **values})
        members[member] = "\n".join(lines).encode() + b"\n"

    return change


def vector(row: int, value: float) -> Callable[[Members], object]:
    def change(members: Members) -> None:
        array = np.load(io.BytesIO(members["vectors.npy"])).copy()
        array[row] = value
        buffer = io.BytesIO()
        np.save(buffer, array)
        members["vectors.npy"] = buffer.getvalue()

    return change


def wider(members: Members) -> None:
    buffer = io.BytesIO()
    np.save(buffer, unit(0, 9, 16))
    members["vectors.npy"] = buffer.getvalue()


def pickled(members: Members) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    members["vectors.npy"] = buffer.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        in_manifest(format="other"),
        in_manifest(version=2),
        in_manifest(people=4),
        in_manifest(templates=8),
        in_manifest(crops=2),
        in_manifest(contract_id="0" * 16),
        in_manifest(contract={"dim": 32}),
        in_manifest(thresholds={"fmr": [0.1]}),
        lambda members: members.pop("manifest.json"),
        lambda members: members.pop("vectors.npy"),
        lambda members: members.pop("templates.jsonl"),
        lambda members: members.pop(next(n for n in members if n.startswith("crops/"))),
        lambda members: members.update({"crops/99.jpg": b"\xff\xd8\xff"}),
        lambda members: members.update({"../../escape": b"x"}),
        lambda members: members.update({"/etc/passwd": b"x"}),
        lambda members: members.update({"manifest.json": b"[]"}),
        lambda members: members.update({"manifest.json": b"[" * 100_000}),
        lambda members: members.update({"identities.jsonl": b"\xff\n"}),
        lambda members: members.update({"identities.jsonl": b"3\n"}),
        in_line("identities.jsonl", 0, name="Zoë"),
        in_line("identities.jsonl", 0, name=""),
        in_line("identities.jsonl", 0, created_at="yesterday"),
        in_line("identities.jsonl", 0, created_at="2026-01-01T00:00:00"),
        in_line("identities.jsonl", 0, metadata="text"),
        in_line("templates.jsonl", 0, person=5),
        in_line("templates.jsonl", 0, person=-1),
        in_line("templates.jsonl", 0, content_sha256="abc"),
        in_line("templates.jsonl", 0, det_score=7),
        in_line("templates.jsonl", 8, crop="crops/../../x.jpg"),
        in_line("templates.jsonl", 8, crop_sha256="0" * 64),
        in_line("templates.jsonl", 8, landmarks=[[1, 2]]),
        vector(3, 0.0),
        vector(3, 5.0),
        vector(3, float("nan")),
        wider,
        pickled,
    ],
)
def test_a_file_that_breaks_the_rules_changes_nothing(other, exported, tmp_path, change) -> None:
    before = state(other)
    broken = rewritten(exported, tmp_path / "broken", change)
    with pytest.raises(GalleryError, match="broken: "):
        other.import_(broken, on_conflict="merge")
    assert state(other) == before
    with pytest.raises(GalleryError, match="broken: "):
        from_export(broken, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_rewritten_file_is_good_when_nothing_is_changed(other, exported, tmp_path) -> None:
    same = rewritten(exported, tmp_path / "same", lambda members: None)
    assert other.import_(same, on_conflict="merge").templates_added == 8


def test_a_flipped_byte_is_noticed_or_means_nothing(exported: Path, tmp_path: Path) -> None:
    with Gallery.open(exported.parent / "people") as gallery:
        original = state(gallery)
    data = exported.read_bytes()
    with zipfile.ZipFile(exported) as archive:
        directory = archive.start_dir
    refused = 0
    for i, position in enumerate(np.linspace(0, len(data) - 1, 60).astype(int)):
        damaged = bytearray(data)
        damaged[position] ^= 0x21
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            with from_export(tmp_path / "damaged", tmp_path / str(i)) as gallery:
                assert position > directory, "only dates and modes in ZIP's directory mean nothing"
                assert state(gallery) == original
        except GalleryError:
            refused += 1
            assert not (tmp_path / str(i)).exists()
    assert refused > 50


@pytest.mark.parametrize("keep", [0.2, 0.9, 0.999])
def test_a_truncated_file_is_refused(other: Gallery, exported: Path, tmp_path, keep) -> None:
    data = exported.read_bytes()
    (tmp_path / "cut").write_bytes(data[: int(keep * len(data))])
    with pytest.raises(GalleryError, match="not a whole gallery export"):
        other.import_(tmp_path / "cut")


def test_a_bomb_is_not_unpacked(other: Gallery, exported: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(exported) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr("crops/999.jpg", bytes(50_000_000))
    with pytest.raises(GalleryError, match="compressed"):
        other.import_(tmp_path / "bomb")


def test_two_members_of_one_name_are_refused(other: Gallery, exported: Path, tmp_path) -> None:
    twice = tmp_path / "twice"
    twice.write_bytes(exported.read_bytes())
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("manifest.json", "{}")
    with pytest.raises(GalleryError, match="same name"):
        other.import_(twice)


# Where to


def test_nothing_is_overwritten_unasked(exported: Path, tmp_path: Path) -> None:
    with Gallery.open(exported.parent / "people") as gallery:
        (tmp_path / "file").write_text("precious")
        with pytest.raises(GalleryError, match="exists already"):
            gallery.export(tmp_path / "file")
        assert (tmp_path / "file").read_text() == "precious"
        gallery.export(tmp_path / "file", overwrite=True)
        with pytest.raises(GalleryError, match="own folder"):
            gallery.export(gallery.folder / "sub" / ".." / "file")
        with pytest.raises(GalleryError, match="cannot be written"):
            gallery.export(tmp_path / "absent" / "file")
        for impossible in (tmp_path / "file" / "below", tmp_path / ("x" * 300)):
            with pytest.raises(GalleryError, match="cannot be written"):
                gallery.export(impossible)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]
    with open_gallery(tmp_path / "there") as there:
        fill(there, 1)
    with pytest.raises(GalleryError, match="holds a gallery already"):
        from_export(tmp_path / "file", tmp_path / "there")


def test_an_import_that_fails_midway_leaves_no_trace(exported: Path, tmp_path: Path) -> None:
    from gallery.records import WriteTransaction

    with open_gallery(tmp_path) as gallery:
        vectors = fill(gallery, 2, seed=8)
        before, revision = state(gallery), gallery.revision

        def interrupted(self: WriteTransaction, new: object) -> list[int | None]:
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(WriteTransaction, "add_templates", interrupted)
            with pytest.raises(KeyboardInterrupt):
                gallery.import_(exported, on_conflict="rename")
        assert (state(gallery), gallery.revision) == (before, revision)
        assert gallery.identify(vectors[0])[0].people == 2
    assert (tmp_path / DB_NAME).exists()
