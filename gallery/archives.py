"""The files in zip and tar archives, one after the other, and never on the disk.

An archive comes from anywhere: names that climb out of it, links, and archives that unfold
to more than they can be meant to are refused, each with a reason. Imports the core.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, cast

from facerec.errors import ImageError
from facerec.types import Failure

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""File name endings that are taken for archives."""

EXPLODES = "archive_explodes"
"""Code of the one reason that ends the reading of a whole archive besides damage."""

_MEMBERS = 1_000_000
"""A zip's list of contents is read into memory at once."""
_TAR_BUFFER = 1 << 20
_DRIVE = re.compile(r"[A-Za-z]:")
_MAX_NS = 2**63 - 1  # in the year 2262


class ArchiveError(ImageError):
    """A member, or an archive, that is not read. ``code``: which reason."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True)
class Limits:
    """How far an archive may unfold, bytes.

    member: the largest member that is read. The members of an archive together may have
    ``ratio`` times the archive's size, or ``total_floor`` if that is more.
    """

    member: int = 256 << 20
    total_floor: int = 256 << 20
    ratio: int = 100


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Member:
    """A regular file in an archive.

    name: its path there, with slashes. size: bytes, as the archive says. mtime_ns: since the
    epoch, 0 where unknown, within 64 bits. read: its bytes, at most ``Limits.member``; to be
    called before the iteration goes on. Raises ArchiveError.
    """

    name: str
    size: int
    mtime_ns: int
    read: Callable[[], bytes]


def storable_ns(time_ns: int) -> int:
    """The time, or the nearest that 64 bits hold, as databases do: files claim any."""
    return max(-_MAX_NS, min(_MAX_NS, time_ns))


def is_archive(name: str) -> bool:
    """Whether a file of that name is taken for an archive."""
    return name.lower().endswith(SUFFIXES)


def stem(name: str) -> str:
    """The archive's name without its ending: "lfw" for "lfw.tar.gz"."""
    ending = max((s for s in SUFFIXES if name.lower().endswith(s)), key=len, default="")
    return name[: len(name) - len(ending)]


def members(
    path: Path, wanted: Callable[[str], bool], limits: Limits = DEFAULT_LIMITS
) -> Iterator[Member | Failure]:
    """The members whose name is ``wanted``, in the archive's order, and what was refused.

    A Failure's source is the member's name. Raises ArchiveError where the archive itself
    cannot be read, or not to its end; what was given out before was sound.
    """
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
            budget = _Budget(path, max(limits.total_floor, limits.ratio * size))
            inside = _zip_members if path.name.lower().endswith(".zip") else _tar_members
            yield from inside(path, stream, wanted, limits, budget)
    except ArchiveError:
        raise
    except Exception as exc:  # zipfile, tarfile and zlib raise whatever they trip over
        raise ArchiveError(
            "broken_archive", f"{path}: the archive is damaged, or cannot be read: {_said(exc)}"
        ) from exc


class _Budget:
    """How many bytes may still come out of one archive."""

    def __init__(self, path: Path, total: int) -> None:
        self._path = path
        self._total = total
        self._left = total

    def spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ArchiveError(
                EXPLODES,
                f"{self._path}: unfolds to more than {self._total >> 20} MiB, far more than a "
                "file of its size holds in photos; the rest was not read. Unpack it yourself if "
                "you trust it.",
            )


def _zip_members(
    path: Path,
    stream: IO[bytes],
    wanted: Callable[[str], bool],
    limits: Limits,
    budget: _Budget,
) -> Iterator[Member | Failure]:
    with zipfile.ZipFile(stream) as archive:
        listed = archive.infolist()
        if len(listed) > _MEMBERS:
            raise ArchiveError(
                EXPLODES,
                f"{path}: holds {len(listed):,} files; more than {_MEMBERS:,} are refused. "
                "Split it, or unpack it.",
            )
        encrypted = [info for info in listed if info.flag_bits & 1 and wanted(info.filename)]
        if encrypted:
            yield Failure(
                encrypted[0].filename,
                "encrypted_archive",
                f"{path}: {len(encrypted)} of its photos are encrypted, the first is "
                f"{encrypted[0].filename!r}. Unpack the archive with its password.",
            )
        for info in listed:
            if info.is_dir() or info.flag_bits & 1 or not wanted(info.filename):
                continue
            is_link = stat.S_ISLNK(info.external_attr >> 16)
            if refusal := _refusal(path, info.filename, info.file_size, limits, is_link):
                yield refusal
                continue

            def read(info: zipfile.ZipInfo = info) -> bytes:
                with archive.open(info) as member:
                    return _read(path, info.filename, member, limits, budget)

            yield Member(info.filename, info.file_size, _zip_mtime_ns(info), _guarded(path, read))


def _tar_members(
    path: Path,
    stream: IO[bytes],
    wanted: Callable[[str], bool],
    limits: Limits,
    budget: _Budget,
) -> Iterator[Member | Failure]:
    counted = cast(IO[bytes], _Counted(_unpacked(stream), budget))
    # As a stream, so that what is skipped is counted too, and nothing is kept.
    with tarfile.open(
        fileobj=counted, mode="r|", bufsize=_TAR_BUFFER, tarinfo=_StrictInfo
    ) as archive:
        for info in archive:
            vars(archive)["members"] = []  # tarfile would keep them all
            if info.isdir() or not wanted(info.name):
                continue
            odd = not info.isreg() or info.issparse()
            if refusal := _refusal(path, info.name, info.size, limits, odd):
                yield refusal
                continue

            def read(info: tarfile.TarInfo = info) -> bytes:
                member = archive.extractfile(info)
                assert member is not None  # it is a regular file
                return _read(path, info.name, member, limits, None)

            yield Member(info.name, info.size, _tar_mtime_ns(info), _guarded(path, read))


def _refusal(path: Path, name: str, size: int, limits: Limits, odd: bool) -> Failure | None:
    """Why a member is not even opened."""
    where = f"{path}: member {name!r}"
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or _DRIVE.match(name):
        reason = f"{where} has an absolute path, as nothing in an archive should. Not read."
        return Failure(name, "escapes_archive", reason)
    if ".." in parts:
        reason = f"{where} would lie outside of the archive's folder. Not read."
        return Failure(name, "escapes_archive", reason)
    if odd:
        return Failure(name, "not_a_file", f"{where} is a link or a special file. Not read.")
    if size > limits.member:
        return Failure(name, "too_large", _too_large(where, limits))
    return None


def _read(
    path: Path, name: str, member: IO[bytes], limits: Limits, budget: _Budget | None
) -> bytes:
    """All of a member, whatever its header says of its size."""
    data = member.read(limits.member + 1)
    if len(data) > limits.member:
        raise ArchiveError("too_large", _too_large(f"{path}: member {name!r}", limits))
    if budget is not None:
        budget.spend(len(data))
    return data


def _guarded(path: Path, read: Callable[[], bytes]) -> Callable[[], bytes]:
    def guarded() -> bytes:
        try:
            return read()
        except ArchiveError:
            raise
        except Exception as exc:  # as above
            reason = f"{path}: a member is damaged, or cannot be read: {_said(exc)}"
            raise ArchiveError("broken_member", reason) from exc

    return guarded


class _Counted:
    """A stream of which every byte is paid for."""

    def __init__(self, stream: IO[bytes], budget: _Budget) -> None:
        self._stream = stream
        self._budget = budget

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._budget.spend(len(data))
        return data


class _StrictInfo(tarfile.TarInfo):
    """tarfile takes a damaged header for the end of the archive; here it is an error."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _StrictInfo:
        ends: Any = tarfile  # its errors of headers are not in its type stubs
        try:
            info = super().fromtarfile(tarfile_)
        except ends.EOFHeaderError:
            raise
        except ends.HeaderError as exc:
            empty = isinstance(exc, ends.EmptyHeaderError)
            raise tarfile.ReadError("it ends too early" if empty else str(exc)) from exc
        if info.size < 0:
            raise tarfile.ReadError(f"a member of {info.size} bytes")
        return info


def _unpacked(stream: IO[bytes]) -> IO[bytes]:
    """The tar inside of a compressed one, told by its first bytes."""
    head = stream.read(6)
    stream.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=stream))
    if head.startswith(b"BZh"):
        return cast(IO[bytes], bz2.BZ2File(stream))
    if head.startswith(b"\xfd7zXZ\0"):
        return cast(IO[bytes], lzma.LZMAFile(stream))
    return stream


def _tar_mtime_ns(info: tarfile.TarInfo) -> int:
    time_ns = float(info.mtime) * 1e9
    return storable_ns(int(time_ns)) if math.isfinite(time_ns) else 0


def _zip_mtime_ns(info: zipfile.ZipInfo) -> int:
    try:
        year, month, day, hour, minute, second = info.date_time
        when = datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc)
    except ValueError:  # a field out of its range
        return 0
    return int(when.timestamp()) * 1_000_000_000


def _too_large(where: str, limits: Limits) -> str:
    return f"{where} has more than {limits.member >> 20} MiB, more than any photo. Not read."


def _said(exc: BaseException) -> str:
    return str(exc) or type(exc).__name__
