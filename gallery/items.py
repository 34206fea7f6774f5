"""What a collection is made of, and how its files are called. Imports the core."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote_from_bytes, unquote_to_bytes

from facerec.image import SUFFIXES as PHOTO_SUFFIXES
from facerec.types import Failure

VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .3gp .mts .m2ts .ogv .flv".split()
)
"""File name endings that are taken for videos."""
MEMBER = "!/"
"""Between an archive and its member: ``holiday.zip!/beach/1.jpg``."""

Kind = Literal["photo", "video"]


@dataclass(frozen=True, eq=False)
class Item:
    """A photo or video to index.

    key: its absolute path as text, by which the ledger knows it. size: bytes. mtime_ns: since
    the epoch, within 64 bits. name: whom it shows; None where nobody says. metadata: of that
    person. data: a member's bytes; None for a file, which is yet to be read. archive: key of the
    archive that it is a member of.
    """

    key: str
    kind: Kind
    size: int
    mtime_ns: int
    name: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    data: bytes | None = None
    archive: str | None = None

    @property
    def path(self) -> Path:
        """Of its file; of the archive, for a member."""
        return Path(path_of_key(self.archive or self.key))


@dataclass(frozen=True)
class ArchiveStart:
    """The members that follow belong to this archive. naming: where their names come from."""

    key: str
    naming: str


@dataclass(frozen=True)
class ArchiveEnd:
    """The archive was read to its end. seen: the keys of its members.

    size: bytes. mtime_ns: as they were before it was read.
    """

    key: str
    size: int
    mtime_ns: int
    seen: frozenset[str]


@dataclass(frozen=True)
class Unchanged:
    """Files, or members of the archive ``key``, that need no look; ``count`` of them.

    failed: how many of them could not be read when they were looked at.
    """

    key: str
    count: int = 1
    failed: int = 0


Found = Item | ArchiveStart | ArchiveEnd | Unchanged | Failure


def kind_of(name: str) -> Kind | None:
    """What a file of that name is taken for, besides an archive; None for anything else."""
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122, by the million
    if ending in PHOTO_SUFFIXES:
        return "photo"
    return "video" if ending in VIDEO_SUFFIXES else None


def path_key(path: str | Path, member: str | None = None) -> str:
    """The path as text that every database takes; one path, one key.

    Bytes that are no UTF-8 come from the system as lone surrogates: such a path is spelt in
    percent codes, behind ``bytes:``, with which no absolute path begins.
    """
    text = str(path) if member is None else f"{path}{MEMBER}{member}"
    text = text.replace("\0", "\ufffd")
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        return "bytes:" + quote_from_bytes(text.encode("utf-8", "surrogateescape"))


def path_of_key(key: str) -> str:
    """The path that :func:`path_key` made a key of."""
    if not key.startswith("bytes:"):
        return key
    return unquote_to_bytes(key.removeprefix("bytes:")).decode("utf-8", "surrogateescape")


def displayable(text: object) -> str:
    r"""``text`` as any terminal and JSON file take it: lone surrogates as ``\udc80``."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")
