"""What there is to index: folders, archives and manifests, and what is wrong with them."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facerec.errors import ConfigError, GalleryError
from facerec.types import Failure
from gallery.archives import Limits
from gallery.items import (
    ArchiveEnd,
    ArchiveStart,
    Item,
    Unchanged,
    displayable,
    path_key,
    path_of_key,
)
from gallery.manifests import read_manifest
from gallery.naming import Naming
from gallery.sources import KnowsNothing, Sources, count_files
from tests.index_samples import peak_of

REPOSITORY = Path(__file__).resolve().parent.parent
BY_FOLDER = Naming(by_folder=True)
posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX paths")


def touch(*paths: Path, data: bytes = b"photo") -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def items(found: Iterable[object]) -> list[Item]:
    return [one for one in found if isinstance(one, Item)]


def failures(found: Iterable[object]) -> list[Failure]:
    return [one for one in found if isinstance(one, Failure)]


def codes(found: Iterable[object]) -> list[str]:
    return [failure.code for failure in failures(found)]


# Folders


def test_a_folder_gives_photos_and_videos_in_order_and_counts_the_rest(tmp_path: Path) -> None:
    touch(tmp_path / "b.JPG", tmp_path / "a" / "2.png", tmp_path / "a" / "1.webp")
    touch(tmp_path / "clip.mp4", tmp_path / "notes.txt", tmp_path / "a" / "noending")
    sources = Sources([tmp_path])
    found = items(sources)
    assert [(one.path.relative_to(tmp_path).as_posix(), one.kind) for one in found] == [
        ("b.JPG", "photo"),
        ("clip.mp4", "video"),
        ("a/1.webp", "photo"),
        ("a/2.png", "photo"),
    ]
    assert sources.ignored == 2 and sources.found_below == {tmp_path: 4}
    assert all(one.name is None and one.size == 5 and one.data is None for one in found)
    assert found[0].mtime_ns == (tmp_path / "b.JPG").stat().st_mtime_ns
    assert sum(count_files([tmp_path])) == 4


def test_people_are_named_after_the_folders_below_the_root(tmp_path: Path) -> None:
    touch(tmp_path / "Ada Lovelace" / "1.jpg", tmp_path / "Zoë" / "1.jpg")
    touch(tmp_path / "stray.jpg", tmp_path / "Ada Lovelace" / "1843" / "2.jpg")
    found = list(Sources([tmp_path], naming=BY_FOLDER))
    assert sorted(one.name or "" for one in items(found)) == ["Ada Lovelace", "Zoë"]
    assert codes(found) == ["ambiguous_layout"] * 2
    assert "'Ada Lovelace' or '1843'" in "".join(f.reason for f in failures(found))
    assert all(str(tmp_path) in failure.reason for failure in failures(found))


def test_a_bad_folder_name_is_the_failure_of_its_photos_only(tmp_path: Path) -> None:
    touch(tmp_path / "good" / "1.jpg", tmp_path / "bad\u202ename" / "1.jpg")
    found = list(Sources([tmp_path], naming=BY_FOLDER))
    assert [one.name for one in items(found)] == ["good"] and codes(found) == ["bad_name"]
    assert "U+202E" in failures(found)[0].reason


def test_layouts_that_cannot_be_meant_are_refused_at_once(tmp_path: Path) -> None:
    touch(tmp_path / "Ada" / "1.jpg", tmp_path / "Ada" / "2.jpg")
    with pytest.raises(ConfigError, match=r"no folders.*--person 'Ada'"):
        Sources([tmp_path / "Ada"], naming=BY_FOLDER)
    with pytest.raises(ConfigError, match=r"holds the folder 'Ada'.*--by-folder"):
        Sources([tmp_path], naming=Naming(person="Ada"))
    with pytest.raises(ConfigError, match="not both"):
        Naming(by_folder=True, person="Ada")
    with pytest.raises(GalleryError, match="empty"):
        Naming(person=" ")
    with pytest.raises(ConfigError, match="would be indexed twice"):
        Sources([tmp_path, tmp_path / "Ada"])
    with pytest.raises(ConfigError, match="would be indexed twice"):
        Sources([tmp_path / "Ada", tmp_path / "Ada"])
    [one, two] = items(Sources([tmp_path / "Ada"], naming=Naming(person=" Ada  Lovelace ")))
    assert one.name == two.name == "Ada Lovelace"


@pytest.mark.parametrize("archive_first", [True, False])
def test_folders_beside_an_archive_are_seen_in_whatever_order_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive_first: bool
) -> None:
    touch(tmp_path / "bob" / "1.jpg")
    make_zip(tmp_path / "x.zip", {"1.jpg": b"x"})
    scandir = os.scandir

    class Sorted:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self._entries = sorted(entries, key=lambda e: e.name, reverse=archive_first)

        def __enter__(self):
            return iter(self._entries)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Sorted)
    with pytest.raises(ConfigError, match="holds the folder 'bob'"):
        Sources([tmp_path], naming=Naming(person="Ada"))
    Sources([tmp_path], naming=BY_FOLDER)


def test_each_of_many_roots_is_held_against_its_own_parents_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    parents = PurePath.parents

    def counting(self: PurePath):
        nonlocal asked
        asked += 1
        return parents.__get__(self)

    monkeypatch.setattr(PurePath, "parents", property(counting))
    Sources([tmp_path / str(i) for i in range(200)])
    assert asked <= 200
    for inner in (tmp_path / "3" / "a" / "b", tmp_path / "3"):
        for roots in ([tmp_path / "3", inner], [inner, tmp_path / "3"]):
            with pytest.raises(ConfigError, match=f"^{inner} lies in {tmp_path / '3'}, and would"):
                Sources(roots)


@posix_only
def test_loops_of_links_end_and_broken_links_are_reported(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "1.jpg", tmp_path / "b" / "2.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "self").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "other").symlink_to(tmp_path / "a")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a" / "1.jpg")
    found = list(Sources([tmp_path]))
    assert [one.path.name for one in items(found)] == ["link.jpg", "1.jpg", "2.jpg"]
    assert codes(found) == ["unreadable", "unreadable"]
    elsewhere = tmp_path.with_name(tmp_path.name + "-elsewhere")
    touch(elsewhere / "3.jpg")
    (tmp_path / "out").symlink_to(elsewhere)
    assert [one.path.name for one in items(Sources([tmp_path]))][-1] == "3.jpg"


@posix_only
def test_pipes_are_not_read_and_unreadable_folders_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "good.jpg", tmp_path / "locked" / "1.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    scandir = os.scandir

    def refusing(path: str):  # root may read everything, so the test cannot lock a folder
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = list(Sources([tmp_path]))
    assert [one.path.name for one in items(found)] == ["good.jpg"]
    assert sorted(codes(found)) == ["not_a_file", "unreadable_folder"]
    assert any("Permission denied" in failure.reason for failure in failures(found))


@posix_only
def test_odd_names_come_through_and_back(tmp_path: Path) -> None:
    names = [b"caf\xe9.jpg", "日本 ☃.jpg".encode(), b"new\nline.jpg", b"100%.jpg", b"-x.jpg"]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"x")
    found = items(Sources([tmp_path]))
    assert sorted(os.fsencode(one.path.name) for one in found) == sorted(names)
    for one in found:
        assert one.path.read_bytes() == b"x"
        one.key.encode("utf-8")
        displayable(one.path).encode("utf-8")
    assert len({one.key for one in found}) == len(names)


@given(st.binary(min_size=1, max_size=40).filter(lambda b: b"\0" not in b))
def test_a_path_has_one_key_and_comes_back_from_it(name: bytes) -> None:
    path = "/" + name.decode("utf-8", "surrogateescape")
    key = path_key(path)
    assert path_of_key(key) == path
    key.encode("utf-8")
    assert key == path or key.startswith(("bytes:%", "bytes:/"))


def test_a_path_too_long_for_a_database_is_a_failure(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(10):
        deep = deep / ("d" * 220)
    try:
        touch(deep / "1.jpg")
    except OSError:
        pytest.skip("this file system has no such paths")
    assert codes(Sources([tmp_path])) == ["path_too_long"]


def test_a_root_that_is_not_there_or_no_photo_is_reported(tmp_path: Path) -> None:
    touch(tmp_path / "notes.txt", tmp_path / "1.jpg")
    roots = [tmp_path / "nowhere", tmp_path / "notes.txt", tmp_path / "1.jpg"]
    found = list(Sources(roots))
    assert codes(found) == ["no_such_source", "unknown_kind"]
    assert [one.path for one in items(found)] == [tmp_path / "1.jpg"]


def test_a_folder_of_many_files_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries without end, of one real file: what is kept of each would be seen."""
    touch(tmp_path / "1.jpg")
    scandir = os.scandir
    count = 30_000

    class Many:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self._entry = next(entries)

        def __enter__(self):
            return iter(self)

        def __exit__(self, *_: object) -> None:
            pass

        def __iter__(self):
            return (self._entry for _ in range(count))

    monkeypatch.setattr(os, "scandir", Many)

    def go_through() -> None:
        assert sum(isinstance(one, Item) for one in Sources([tmp_path])) == count

    assert peak_of(go_through) < 2_000_000


def test_only_what_changed_is_looked_at_when_told_so(tmp_path: Path) -> None:
    touch(tmp_path / "Ada" / "1.jpg", tmp_path / "Ada" / "2.jpg", tmp_path / "Bo" / "1.jpg")
    gone = tmp_path / "Ada" / "9.jpg"
    only = [tmp_path / "Ada" / "2.jpg", tmp_path / "Bo", gone, tmp_path.parent / "else.jpg"]
    found = list(Sources([tmp_path], naming=BY_FOLDER, only=only))
    assert [(one.name, one.path.name) for one in items(found)] == [
        ("Ada", "2.jpg"),
        ("Bo", "1.jpg"),
    ]


# Archives


@pytest.mark.parametrize(
    ("name", "mode"),
    [("p.zip", ""), ("p.tar", "w"), ("p.tar.gz", "w:gz"), ("p.tbz2", "w:bz2"), ("p.txz", "w:xz")],
)
def test_members_stream_out_of_every_kind_of_archive(tmp_path: Path, name: str, mode: str) -> None:
    members = {"Ada/1.jpg": b"one", "Bo/2.png": b"two" * 1000, "notes.txt": b"no", "Bo/c.mp4": b"v"}
    path = tmp_path / name
    if mode:
        make_tar(path, members, mode)
    else:
        make_zip(path, members)
    sources = Sources([path], naming=BY_FOLDER)
    found = list(sources)
    assert isinstance(found[0], ArchiveStart) and isinstance(found[-1], ArchiveEnd)
    photos = items(found)
    assert [(p.name, p.data) for p in photos] == [("Ada", b"one"), ("Bo", b"two" * 1000)]
    assert [p.key for p in photos] == [f"{path}!/Ada/1.jpg", f"{path}!/Bo/2.png"]
    assert {p.archive for p in photos} == {str(path)}
    assert codes(found) == ["video_in_archive"] and sources.ignored == 1
    assert found[-1].seen == {p.key for p in photos} | {f"{path}!/Bo/c.mp4"}


def test_an_archive_in_a_persons_folder_is_theirs_and_its_own_name_is_no_persons(
    tmp_path: Path,
) -> None:
    (tmp_path / "Ada").mkdir()
    make_zip(tmp_path / "Ada" / "2019.zip", {"beach/1.jpg": b"1", "2.jpg": b"2"})
    make_tar(tmp_path / "people.tar", {"people/Bo/1.jpg": b"3", "people/x.jpg": b"4"})
    found = list(Sources([tmp_path], naming=BY_FOLDER))
    assert sorted((one.name, one.data) for one in items(found)) == [
        ("Ada", b"1"),
        ("Ada", b"2"),
        ("Bo", b"3"),
    ]
    assert codes(found) == ["ambiguous_layout"]


def test_an_archive_deeper_than_a_persons_folder_is_not_the_outer_folders(tmp_path: Path) -> None:
    """A photo there could be two people's; of an archive its own folders say."""
    for folder in ("group/ada", "group/bo"):
        (tmp_path / folder).mkdir(parents=True)
    make_zip(tmp_path / "group" / "ada" / "p.zip", {"p/Ada/1.jpg": b"1", "Bo/2.jpg": b"2"})
    make_zip(tmp_path / "group" / "bo" / "p.zip", {"3.jpg": b"3"})
    touch(tmp_path / "group" / "bo" / "4.jpg")
    found = list(Sources([tmp_path], naming=BY_FOLDER))
    assert [(one.name, one.data) for one in items(found)] == [("Ada", b"1"), ("Bo", b"2")]
    assert codes(found) == ["ambiguous_layout"] * 2


def test_times_that_no_database_keeps_are_cut_to_those_that_one_does(tmp_path: Path) -> None:
    most = 2**63 - 1
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for i, when in enumerate(("1e40", "-1e40", "inf", "nan", "2.5")):
            info = tarfile.TarInfo(f"{i}.jpg")
            info.size, info.pax_headers = 1, {"mtime": when}
            archive.addfile(info, io.BytesIO(b"x"))
    found = list(Sources([tmp_path / "a.tar"]))
    assert [one.mtime_ns for one in items(found)] == [most, -most, 0, 0, 2_500_000_000]
    assert not codes(found)
    far = 15_000_000_000  # in the year 2445
    touch(tmp_path / "1.jpg")
    for name in ("1.jpg", "a.tar"):
        os.utime(tmp_path / name, (far, far))
    if (tmp_path / "1.jpg").stat().st_mtime_ns <= most:
        pytest.skip("this file system has no such times")
    found = list(Sources([tmp_path]))
    assert {one.mtime_ns for one in found if isinstance(one, ArchiveEnd)} == {most}
    assert {one.mtime_ns for one in items(found) if one.archive is None} == {most}


@pytest.mark.parametrize(
    "name", ["../up.jpg", "a/../../up.jpg", "/etc/up.jpg", "C:\\up.jpg", "..\\up.jpg"]
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_that_climb_out_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / f"evil.{kind}"
    (make_zip if kind == "zip" else make_tar)(path, {name: b"x", "good.jpg": b"y"})
    found = list(Sources([path]))
    assert [one.data for one in items(found)] == [b"y"]
    assert codes(found) == ["escapes_archive"] and "Not read" in failures(found)[0].reason
    assert isinstance(found[-1], ArchiveEnd)


def test_links_and_devices_in_archives_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        for name, kind in (("s.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        device = tarfile.TarInfo("d.jpg")
        device.type = tarfile.CHRTYPE
        archive.addfile(device)
    with zipfile.ZipFile(tmp_path / "links.zip", "w") as archive:
        info = zipfile.ZipInfo("s.jpg")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    found = list(Sources([tmp_path]))
    assert not items(found) and codes(found) == ["not_a_file"] * 4


SMALL = Limits(member=1000, total_floor=3000, ratio=1)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_bombs_are_stopped_at_the_limits(tmp_path: Path, kind: str) -> None:
    big = tmp_path / f"big.{kind}"
    many = tmp_path / f"many.{kind}"
    hidden = {f"{i}.txt": bytes(1000) for i in range(50)}
    if kind == "zip":
        make_zip(big, {"big.jpg": bytes(100_000), "small.jpg": b"x"})
        make_zip(many, {f"{i}.jpg": bytes(900) for i in range(50)})
    else:
        make_tar(big, {"big.jpg": bytes(1001), "small.jpg": b"x"}, "w:gz")
        make_tar(many, {**hidden, "last.jpg": b"x"}, "w:gz")
    limits = SMALL if kind == "zip" else Limits(member=1000, total_floor=15_000, ratio=10)
    found = list(Sources([big], limits=limits))
    assert codes(found) == ["too_large"] and [one.data for one in items(found)] == [b"x"]
    found = list(Sources([many], limits=limits))
    assert codes(found) == ["archive_explodes"] and len(items(found)) < 10
    assert not isinstance(found[-1], ArchiveEnd)
    assert sum(len(one.data or b"") for one in items(found)) <= max(
        limits.total_floor, limits.ratio * many.stat().st_size
    )


def test_a_member_that_lies_about_its_size_is_cut_off(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "lies.zip", {"1.jpg": bytes(50_000)})
    raw = path.read_bytes()
    path.write_bytes(raw.replace((50_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    found = list(Sources([path], limits=SMALL))
    assert not [one for one in items(found) if len(one.data or b"") > 1000]
    assert len(failures(found)) == 1


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_damage_anywhere_is_reported_and_nothing_false_comes_out(tmp_path: Path, kind: str) -> None:
    good = {f"{i}.jpg": os.urandom(3000) for i in range(5)}
    path = tmp_path / f"a.{kind}"
    mode = {"tar": "w", "tar.gz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}
    raw = (make_zip(path, good) if kind == "zip" else make_tar(path, good, mode[kind])).read_bytes()
    for keep in (0, 1, 100, len(raw) // 2, len(raw) * 3 // 5):
        path.write_bytes(raw[:keep])
        found = list(Sources([path]))
        assert failures(found), keep
        assert not isinstance(found[-1], ArchiveEnd)
        assert all(good[one.key.rsplit("/", 1)[1]] == one.data for one in items(found))
    path.write_bytes(b"no archive at all" * 1000)
    assert codes(Sources([path])) == ["broken_archive"]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_whatever_is_wrong_with_an_archive_is_a_failure(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    good = {f"d/{i}.jpg": os.urandom(200) for i in range(4)}
    raw = make_zip(path, good) if kind == "zip" else make_tar(path, good, f"w:{kind[4:]}")
    whole, chance = raw.read_bytes(), random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 2, 20])):
            damaged[chance.randrange(len(damaged))] = chance.choice([0, 255, 47])
        path.write_bytes(damaged)
        for one in Sources([path], limits=Limits(2000, 20_000, 1)):
            assert isinstance(one, (Item, Failure, ArchiveStart, ArchiveEnd))


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", {f"{i}.jpg": bytes([i]) * 600 for i in range(4)})
    raw = bytearray(path.read_bytes())
    raw[2 * 1536 + 20] ^= 0xFF  # a header and two blocks for each member
    path.write_bytes(raw)
    found = list(Sources([path]))
    assert len(items(found)) == 2 and codes(found) == ["broken_archive"]


def test_a_member_of_less_than_no_bytes_is_damage(tmp_path: Path) -> None:
    """Such a number may be too large for a database, too."""
    info = tarfile.TarInfo("1.jpg")
    for size in (-5, -(2**70)):
        header = bytearray(info.tobuf())
        header[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        (tmp_path / "a.tar").write_bytes(header + bytes(2048))
        found = list(Sources([tmp_path / "a.tar"]))
        assert not items(found) and codes(found) == ["broken_archive"]


def test_encrypted_members_are_reported_once_and_others_read(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "secret.zip", {"1.jpg": b"a", "2.jpg": b"b", "open.jpg": b"c"})
    raw = bytearray(path.read_bytes())
    for name in (b"1.jpg", b"2.jpg"):
        at = raw.find(b"PK\x01\x02")
        while raw[at + 46 : at + 46 + len(name)] != name:
            at = raw.find(b"PK\x01\x02", at + 1)
        raw[at + 8] |= 1
    path.write_bytes(raw)
    found = list(Sources([path]))
    assert [one.data for one in items(found)] == [b"c"]
    assert codes(found) == ["encrypted_archive"] and "2 of its photos" in failures(found)[0].reason


def test_an_archive_and_members_that_are_known_are_not_read(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"1.jpg": b"a", "2.jpg": b"b"})

    class Knows(KnowsNothing):
        def archive(self, key: str, size: int, mtime_ns: int, naming: str) -> Unchanged | None:
            assert (key, size) == (str(path), path.stat().st_size)
            return Unchanged(key, 2, 1)

    assert list(Sources([path], known=Knows())) == [Unchanged(str(path), 2, 1)]

    class KnowsOne(KnowsNothing):
        def member(self, key: str, size: int, mtime_ns: int, name: str | None) -> Unchanged | None:
            is_known = key.endswith("1.jpg") and size == 1 and name == "Ada"
            return Unchanged(key, failed=1) if is_known else None

    found = list(Sources([path], known=KnowsOne(), naming=Naming(person="Ada")))
    assert [one.data for one in items(found)] == [b"b"]
    assert Unchanged(f"{path}!/1.jpg", failed=1) in found


def test_a_gzip_that_is_no_tar_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.tgz"
    path.write_bytes(gzip.compress(b"not a tar at all" * 100))
    assert codes(Sources([path])) == ["broken_archive"]


# Manifests


def test_a_manifest_names_people_and_carries_metadata(tmp_path: Path) -> None:
    touch(tmp_path / "photos" / "a.jpg", tmp_path / "b.jpg")
    listed = tmp_path / "people.csv"
    listed.write_text(
        "path,name,badge\r\nphotos/a.jpg,Ada  Lovelace,7\r\n"
        f'{tmp_path / "b.jpg"},"Ó Brien, Léa",\r\n',
        encoding="utf-8-sig",
    )
    found = items(Sources([], manifests=[listed]))
    assert [(one.name, dict(one.metadata)) for one in found] == [
        ("Ada Lovelace", {"badge": "7"}),
        ("Ó Brien, Léa", {}),
    ]
    lines = tmp_path / "people.jsonl"
    lines.write_text(
        json.dumps({"path": "photos/a.jpg", "name": "Ada", "badge": 7, "tags": ["x"]}) + "\n\n"
    )
    [one] = items(Sources([], manifests=[lines]))
    assert (one.name, dict(one.metadata)) == ("Ada", {"badge": 7, "tags": ["x"]})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "path,person\na.jpg,Ada\n",
            r"people.csv:1: there is no column 'name'; found path, person",
        ),
        ("", r"people.csv:1: there is no column 'path'; found none"),
        ("path,name,name\n", r"column 'name' is there twice"),
        ('path,name\n"a.jpg,Ada\n' + "x" * 200_000, r"people.csv:\d+: not CSV"),
    ],
)
def test_a_manifest_without_its_columns_is_refused(tmp_path: Path, text: str, said: str) -> None:
    listed = tmp_path / "people.csv"
    listed.write_text(text)
    with pytest.raises(ConfigError, match=said):
        list(read_manifest(listed))


def test_files_that_are_no_manifest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        list(read_manifest(tmp_path / "nowhere.csv"))
    with pytest.raises(ConfigError, match=r"ends with \.csv"):
        list(read_manifest(tmp_path / "people.xlsx"))
    latin = tmp_path / "latin.csv"
    latin.write_bytes("path,name\na.jpg,Zo\xeb\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        list(read_manifest(latin))


def test_a_bad_row_is_named_by_file_line_and_column_and_stops_no_other(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg")
    listed = tmp_path / "people.csv"
    listed.write_text(
        "path,name\nlost.jpg,Ada\na.jpg,\na.jpg,bad\u202ename\na.jpg\na.jpg,Ada\na.jpg,Bo\n"
    )
    found = list(Sources([], manifests=[listed]))
    assert [one.name for one in items(found)] == ["Ada"]
    assert codes(found) == ["no_such_file", "bad_row", "bad_row", "bad_row", "twice"]
    said = [failure.reason for failure in failures(found)]
    assert f"{listed}:2, column 'path': no such file" in said[0]
    assert f"{listed}:3, column 'name': is empty" in said[1]
    assert f"{listed}:4, column 'name'" in said[2] and "U+202E" in said[2]
    assert f"{listed}:5: has 1 columns" in said[3]
    assert f"{listed}:7, column 'path'" in said[4] and f"{listed}:6" in said[4]
    lines = tmp_path / "people.jsonl"
    lines.write_text('{"path": "a.jpg"}\n{nonsense\n[1]\n{"path": "a.jpg", "name": "Ada"}\n')
    found = list(Sources([], manifests=[lines]))
    assert [one.name for one in items(found)] == ["Ada"] and codes(found) == ["bad_row"] * 3
    assert "people.jsonl:1, column 'name': is missing" in failures(found)[0].reason


def test_a_file_that_two_manifests_name_is_given_out_once(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg", tmp_path / "b.jpg", tmp_path / "c.jpg")
    one, two = tmp_path / "one.csv", tmp_path / "two.jsonl"
    one.write_text("path,name,badge\na.jpg,Ada,1\nb.jpg,Bo,\n")
    rows = [
        {"path": "c.jpg", "name": "Cy"},
        {"path": str(tmp_path / "a.jpg"), "name": "ADA", "badge": "1"},  # the same, spelt otherwise
        {"path": "./b.jpg", "name": "Cy"},
        {"path": "b.jpg", "name": "Cy"},
        {"path": "a.jpg", "name": "Ada", "badge": "2"},
    ]
    two.write_text("".join(json.dumps(row) + "\n" for row in rows))
    three = tmp_path / "three.csv"
    three.write_text("path,name\nb.jpg,Cy\n")  # as the second, but the first counts
    sources = Sources([], manifests=[one, two, one, three])
    found = list(sources)
    assert [(item.path.name, item.name) for item in items(found)] == [
        ("a.jpg", "Ada"),
        ("b.jpg", "Bo"),
        ("c.jpg", "Cy"),
    ]
    assert Unchanged(str(tmp_path / "a.jpg")) in found
    assert [(f.source, f.code) for f in failures(found)] == [
        *((f"{two}:{line}", "twice") for line in (3, 4, 5)),
        (f"{three}:2", "twice"),
    ]
    for failure, line in zip(failures(found), (3, 3, 2, 3), strict=True):
        assert f"is in {one}:{line} already" in failure.reason
    assert sources.found_below == {one: 2, two: 2, three: 0}


MEMORY_OF_ROWS = """
import gc, sys, tracemalloc
from pathlib import Path
from gallery.items import Item
from gallery.sources import Sources

sources, count = Sources([], manifests=[Path(sys.argv[1])]), int(sys.argv[2])
gc.collect()
tracemalloc.start()
rows = iter(sources)
for _ in range(count):
    assert isinstance(next(rows), Item)
gc.collect()  # how much waits for that is the interpreter's affair
print(tracemalloc.get_traced_memory()[0])
"""


def test_of_a_row_of_a_manifest_little_stays_in_memory(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100)
    touch(folder / "0.jpg")
    count = 5_000
    for i in range(1, count):
        os.link(folder / "0.jpg", folder / f"{i}.jpg")
    listed = folder / "people.csv"
    listed.write_text("path,name\n" + "".join(f"{i}.jpg,Ada\n" for i in range(count)))
    # By itself: other tests' threads and imports are not what a row costs.
    words = [sys.executable, "-c", MEMORY_OF_ROWS, str(listed), str(count)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 220 * count
