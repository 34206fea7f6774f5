"""The index on disk: a copy of the store's vectors at one revision, to open faster.

Never trusted: a file that is missing, damaged, of another gallery or of a revision
that the store has not reached reads as None, and the caller rebuilds. Imports the
core and numpy only.

Layout, little-endian: 8 bytes magic; SHA-256 of all that follows; 4 bytes length of the
header; the header, JSON, padded so that what follows begins at a multiple of 64 bytes;
(n,) int64 ids; (n,) int64 owners; (n, d) float32 vectors.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from facerec.types import FloatArray
from gallery.index import IdArray
from gallery.sqlite import sync_folder

INDEX_NAME = "gallery.index"

_MAGIC = b"FRINDEX1"
_HASH = 32
_START = len(_MAGIC) + _HASH
_LENGTH = 4
_ALIGN = 64


@dataclass(frozen=True)
class Header:
    """What the rows are a copy of."""

    gallery_uuid: str
    contract_id: str
    revision: int
    count: int
    dim: int


@dataclass(frozen=True, eq=False)
class IndexFile:
    """A file that proved whole: (n,) ids ascending, (n,) owners, (n, d) vectors."""

    header: Header
    ids: IdArray
    owners: IdArray
    vectors: FloatArray


def write(path: Path, header: Header, ids: IdArray, owners: IdArray, vectors: FloatArray) -> None:
    """Replace the file at once: readers see the old one or the new one. Raises OSError."""
    text = json.dumps(asdict(header)).encode()
    text += b" " * (-(_START + _LENGTH + len(text)) % _ALIGN)
    parts: list[bytes | memoryview] = [
        len(text).to_bytes(_LENGTH, "little"),
        text,
        np.ascontiguousarray(ids, "<i8").data,
        np.ascontiguousarray(owners, "<i8").data,
        np.ascontiguousarray(vectors, "<f4").data,
    ]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(_MAGIC + digest.digest())
            for part in parts:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def erase(path: Path) -> None:
    """Remove the file, and those that writers which died left half-written. Raises OSError."""
    for leftover in path.parent.glob(path.name + "*"):
        leftover.unlink(missing_ok=True)


def read(path: Path) -> IndexFile | None:
    """The file, or None where there is none that is whole."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError:
        return None
    if len(data) < _START + _LENGTH or data[: len(_MAGIC)].tobytes() != _MAGIC:
        return None
    if hashlib.sha256(data[_START:].data).digest() != data[len(_MAGIC) : _START].tobytes():
        return None
    body = _START + _LENGTH
    body += int.from_bytes(data[_START:body].tobytes(), "little")
    header = Header(**json.loads(data[_START + _LENGTH : body].tobytes()))
    n = header.count
    numbers = data[body : body + 16 * n].view("<i8").astype(np.int64, copy=False)
    vectors = data[body + 16 * n :].view("<f4").astype(np.float32, copy=False)
    return IndexFile(header, numbers[:n], numbers[n:], vectors.reshape(n, header.dim))
