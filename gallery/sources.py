"""What there is to index: a lazy stream over folders, archives, videos and manifests.

Files are found and named here, not decoded; only members of archives are read, because an
archive goes by once. What memory grows by: folders that wait for their turn, and which were
gone through; a number or two for each row of a manifest; the keys of one archive's members.
Imports the core and this package's archives, items, manifests, naming and values.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Protocol

from facerec.errors import GalleryError
from facerec.types import Failure
from gallery import archives
from gallery.archives import ArchiveError, Limits
from gallery.items import (
    MEMBER,
    ArchiveEnd,
    ArchiveStart,
    Found,
    Item,
    Unchanged,
    displayable,
    kind_of,
    path_key,
)
from gallery.manifests import Row, read_manifest
from gallery.naming import ANONYMOUS, Ambiguous, Naming, check_layout, check_roots, is_folder
from gallery.values import clean_name, metadata_json, name_key

_MAX_KEY_BYTES = 2048
"""Of a path: what every database can index."""
_ENTRIES_AT_ONCE = 4096
"""Of a folder: read, sorted and forgotten, so that a folder may hold millions."""


class Known(Protocol):
    """What was indexed before. The ledger says; see :class:`KnowsNothing`."""

    def archive(self, key: str, size: int, mtime_ns: int, naming: str) -> Unchanged | None:
        """The members of this archive that were indexed, if it is as it was; else None."""

    def member(self, key: str, size: int, mtime_ns: int, name: str | None) -> Unchanged | None:
        """This member of the archive last asked for, if it is as it was; else None."""


class KnowsNothing:
    """Everything is new."""

    def archive(self, key: str, size: int, mtime_ns: int, naming: str) -> Unchanged | None:
        return None

    def member(self, key: str, size: int, mtime_ns: int, name: str | None) -> Unchanged | None:
        return None


class Sources:
    """Iterate over it to find everything below ``roots``, then everything in ``manifests``.

    roots: folders, or single photos, videos and archives. ignored: files of other kinds that
    were passed over so far. found_below: root, or manifest -> files found
    there so far. only: look at these files and folders below the roots, and nowhere else.

    Raises ConfigError for roots within each other, and for a folder that cannot be meant with
    this ``naming``, before anything is looked at.
    """

    def __init__(
        self,
        roots: Sequence[str | Path],
        *,
        naming: Naming = ANONYMOUS,
        manifests: Sequence[Path] = (),
        known: Known | None = None,
        limits: Limits = archives.DEFAULT_LIMITS,
        only: Collection[Path] | None = None,
    ) -> None:
        self.roots = [Path(os.path.abspath(root)) for root in roots]  # noqa: PTH100, keeps links
        self.naming = naming
        absolute = (Path(os.path.abspath(path)) for path in manifests)  # noqa: PTH100
        self.manifests = list(dict.fromkeys(absolute))
        self.only = only
        self.ignored = 0
        self.found_below = dict.fromkeys([*self.roots, *self.manifests], 0)
        self._known = known or KnowsNothing()
        self._limits = limits
        self._folders_seen: set[tuple[int, int]] = set()
        # By hash: a million paths would take much memory.
        self._rows: dict[int, int] = {}  # path -> its line and manifest; see _manifest
        self._said: set[int] = set()  # (path, name, metadata), where several manifests could differ
        check_roots(self.roots)
        for root in self.roots if only is None else ():
            check_layout(root, naming)

    def __iter__(self) -> Iterator[Found]:
        if self.only is not None:
            for path in sorted(self.only):
                yield from self._part(path)
            return
        for root in self.roots:
            yield from self._counted(root, self._root(root))
        for manifest in self.manifests:
            yield from self._counted(manifest, self._manifest(manifest))

    def _counted(self, root: Path, found: Iterator[Found]) -> Iterator[Found]:
        for one in found:
            self.found_below[root] += isinstance(one, (Item, Unchanged, ArchiveStart))
            yield one

    def _root(self, root: Path) -> Iterator[Found]:
        try:
            status = root.stat()
        except (OSError, ValueError) as exc:
            yield _failure(root, "no_such_source", f"cannot be looked at ({_why(exc)})")
            return
        if stat.S_ISDIR(status.st_mode):
            yield from self._folder(root)
        else:
            yield from self._file(str(root), status, ())

    def _part(self, path: Path) -> Iterator[Found]:
        """A file or folder below a root; nothing, if it is gone."""
        for root in self.roots:
            if root not in (path, *path.parents):
                continue
            try:
                status = path.stat()
            except OSError:
                return
            below = path.relative_to(root).parts
            if stat.S_ISDIR(status.st_mode):
                yield from self._folder(path, below)
            elif kind_of(path.name) is not None or archives.is_archive(path.name):
                yield from self._file(str(path), status, below[:-1])

    def _folder(self, root: Path, below: tuple[str, ...] = ()) -> Iterator[Found]:
        """Depth first; links to folders last, and no folder twice, so that loops end."""
        waiting: list[tuple[str, tuple[str, ...]]] = [(str(root), below)]
        links: list[tuple[str, tuple[str, ...]]] = []
        while waiting or links:
            folder, below = waiting.pop() if waiting else links.pop(0)
            inside: list[tuple[str, tuple[str, ...]]] = []
            try:
                status = os.stat(folder)  # noqa: PTH116, by the million
                if (status.st_dev, status.st_ino) in self._folders_seen:
                    continue
                self._folders_seen.add((status.st_dev, status.st_ino))
                with os.scandir(folder) as entries:
                    while block := sorted(islice(entries, _ENTRIES_AT_ONCE), key=_name):
                        for entry in block:
                            if is_folder(entry):
                                into = links if entry.is_symlink() else inside
                                into.append((entry.path, (*below, entry.name)))
                            else:
                                yield from self._entry(entry, below)
            except OSError as exc:
                yield _failure(folder, "unreadable_folder", f"cannot be read ({_why(exc)})")
            waiting += sorted(inside, reverse=True)

    def _entry(self, entry: os.DirEntry[str], below: tuple[str, ...]) -> Iterator[Found]:
        if kind_of(entry.name) is None and not archives.is_archive(entry.name):
            self.ignored += 1
            return
        try:
            status = entry.stat()
        except OSError as exc:
            yield _failure(entry.path, "unreadable", f"cannot be looked at ({_why(exc)})")
            return
        yield from self._file(entry.path, status, below)

    def _file(
        self, path: str, status: os.stat_result, below: tuple[str, ...], row: Row | None = None
    ) -> Iterator[Found]:
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            yield _failure(path, "not_a_file", "is not a regular file")
            return
        if len(os.fsencode(path)) > _MAX_KEY_BYTES:
            yield _failure(path, "path_too_long", f"has more than {_MAX_KEY_BYTES} bytes as a path")
            return
        kind = kind_of(path)
        if kind is None:
            if archives.is_archive(path):
                yield from self._archive(Path(path), status, below, row)
            else:
                yield _failure(path, "unknown_kind", "is no photo, video or archive")
            return
        try:
            name = row.name if row else self.naming.of(below)
        except GalleryError as exc:
            yield _naming_failure(path, exc)
            return
        yield Item(
            key=path_key(path),
            kind=kind,
            size=status.st_size,
            mtime_ns=archives.storable_ns(status.st_mtime_ns),
            name=name,
            metadata=row.metadata if row else {},
        )

    def _archive(
        self, path: Path, status: os.stat_result, below: tuple[str, ...], row: Row | None
    ) -> Iterator[Found]:
        key = path_key(path)
        is_theirs = len(below) == 1 and self.naming.by_folder
        fixed = row.name if row else below[0] if is_theirs else None
        naming = self._naming_of_archive(fixed)
        mtime_ns = archives.storable_ns(status.st_mtime_ns)
        unchanged = self._known.archive(key, status.st_size, mtime_ns, naming)
        if unchanged is not None:
            yield unchanged
            return
        yield ArchiveStart(key, naming)
        seen: set[str] = set()
        try:
            for found in archives.members(path, self._wanted, self._limits):
                if isinstance(found, Failure):
                    source = displayable(path) + MEMBER + displayable(found.source)
                    yield Failure(source, found.code, displayable(found.reason))
                    continue
                member_key = path_key(path, found.name)
                seen.add(member_key)
                yield self._member(path, member_key, found, fixed, row)
        except ArchiveError as exc:
            yield Failure(displayable(path), exc.code, displayable(exc))
            return
        yield ArchiveEnd(key, status.st_size, mtime_ns, frozenset(seen))

    def _member(
        self, path: Path, key: str, member: archives.Member, fixed: str | None, row: Row | None
    ) -> Found:
        where = displayable(path) + MEMBER + displayable(member.name)
        if len(key.encode()) > _MAX_KEY_BYTES:
            return _failure(where, "path_too_long", f"has more than {_MAX_KEY_BYTES} bytes")
        if kind_of(member.name) == "video":
            reason = f"{where}: a video in an archive is not read. Unpack it first."
            return Failure(where, "video_in_archive", reason)
        try:
            name = self._name_of_member(path, member.name, fixed, row)
        except GalleryError as exc:
            return _naming_failure(where, exc)
        unchanged = self._known.member(key, member.size, member.mtime_ns, name)
        if unchanged is not None:
            return unchanged
        try:
            data = member.read()
        except ArchiveError as exc:
            if exc.code == archives.EXPLODES:
                raise
            return Failure(where, exc.code, displayable(exc))
        return Item(
            key=key,
            kind="photo",
            size=member.size,
            mtime_ns=member.mtime_ns,
            name=name,
            metadata=row.metadata if row else {},
            data=data,
            archive=path_key(path),
        )

    def _name_of_member(
        self, path: Path, member: str, fixed: str | None, row: Row | None
    ) -> str | None:
        """An archive in a person's folder is that person's; else its folders say."""
        if row is not None:
            return row.name
        if fixed is not None:
            return clean_name(fixed)
        folders = [part for part in member.split("/")[:-1] if part not in ("", ".")]
        if folders[:1] == [archives.stem(path.name)]:  # lfw.tgz holds lfw/NAME/1.jpg
            folders = folders[1:]
        return self.naming.of(folders)

    def _naming_of_archive(self, fixed: str | None) -> str:
        if fixed is not None:
            return f"person {fixed}"
        if self.naming.person is not None:
            return f"person {self.naming.person}"
        return "folders" if self.naming.by_folder else ""

    def _wanted(self, name: str) -> bool:
        wanted = kind_of(name) is not None
        self.ignored += not wanted
        return wanted

    def _manifest(self, manifest: Path) -> Iterator[Found]:
        """Each file once: a second row about it would undo the first at every run."""
        which, count = self.manifests.index(manifest), len(self.manifests)
        for row in read_manifest(manifest):
            if isinstance(row, Failure):
                yield Failure(displayable(row.source), row.code, displayable(row.reason))
                continue
            path = Path(os.path.abspath(row.path))  # noqa: PTH100, keeps links
            place = row.line * count + which
            before = self._rows.setdefault(hash(str(path)), place)
            said = hash((str(path), name_key(row.name), metadata_json(row.metadata)))
            if before != place:
                if before % count != which and said in self._said:
                    yield Unchanged(path_key(path))
                    continue
                where = f"{self.manifests[before % count]}:{before // count}"
                reason = f"{row.where}, column 'path': {path} is in {where} already."
                yield Failure(displayable(row.where), "twice", displayable(reason))
                continue
            if count > 1:
                self._said.add(said)
            try:
                status = path.stat()
            except (OSError, ValueError) as exc:
                problem = f"column 'path': {path} cannot be looked at ({_why(exc)})"
                yield Failure(displayable(row.where), "unreadable", f"{row.where}, {problem}")
                continue
            yield from self._file(str(path), status, (), row)


def count_files(roots: Sequence[Path]) -> Iterator[int]:
    """How many photos, videos and archives lie below ``roots``, folder by folder.

    For a bar of progress: links to folders are left out, and what cannot be read.
    """
    waiting = [str(root) for root in roots]
    while waiting:
        count = 0
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    count += kind_of(entry.name) is not None or archives.is_archive(entry.name)
        yield count


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _failure(path: str | Path, code: str, what: str) -> Failure:
    source = displayable(path)
    return Failure(source, code, f"{source}: {what}.")


def _naming_failure(path: str, exc: GalleryError) -> Failure:
    code = "ambiguous_layout" if isinstance(exc, Ambiguous) else "bad_name"
    return _failure(path, code, displayable(exc))


def _why(exc: OSError | ValueError) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
