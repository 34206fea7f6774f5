"""The index on disk: a copy of the store's vectors at one revision, to open faster.

Never trusted: a file that is missing, damaged, of another gallery or of a revision
that the store has not reached reads as None, and the caller rebuilds. Vectors are mapped
into memory, not read; what the process changes in them stays its own. Imports the
core, numpy, xxhash, and this package's engines.

Layout, little-endian: 8 bytes magic; XXH3 (128 bits) of all that follows; 8 bytes length of
the header; the header, JSON; and the arrays that it lists, each at a multiple of 64 bytes:
ids (n,) int64 ascending, owners (n,) int64, vectors (n, d) float32, and what the engine needs.
An engine other than flat has a FAISS index in a second file, whose length and XXH3 the header
has too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from facerec.errors import GalleryError
from facerec.types import FloatArray
from gallery.engines import Engine, FlatEngine, Kind, open_engine, save_engine
from gallery.index import IdArray
from gallery.scratch import scratch_folder, sweep
from gallery.sqlite import sync_folder

INDEX_NAME = "gallery.index"
UNNAMED_INDEX_NAME = "unnamed.index"
"""Of those who have no name yet; a gallery need not have one."""

_MAGIC = b"FRINDEX2"
_HASH = 16
_START = len(_MAGIC) + _HASH
_LENGTH = 8
_ALIGN = 64
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Header:
    """What the rows are a copy of."""

    gallery_uuid: str
    contract_id: str
    generation: int
    named: bool
    revision: int
    count: int
    dim: int
    kind: Kind = "flat"
    engine_bytes: int = 0
    engine_hash: str = ""
    arrays: dict[str, tuple[str, list[int], int]] = field(default_factory=dict)
    """name -> (dtype, shape, offset in the file)."""


@dataclass(frozen=True, eq=False)
class IndexFile:
    """A file that proved whole: (n,) ids ascending, (n,) owners, (n, d) vectors, mapped.

    engine: over the vectors; None where its own file is missing or damaged.
    """

    header: Header
    ids: IdArray
    owners: IdArray
    vectors: FloatArray
    engine: Engine | None


class Erased(OSError):
    """A removal took away what was written so far."""


class IndexWriter:
    """A new index file in the making; nothing is seen of it before :meth:`publish`.

    ::

        with IndexWriter(path) as writer:
            writer.write(header, ids, owners, iter([vectors]), make_engine("int8", vectors))
            file = writer.publish()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._scratch = ExitStack()

    def __enter__(self) -> IndexWriter:
        """Raises OSError."""
        self._folder = self._scratch.enter_context(scratch_folder(self.path))
        self._temporary = self._folder / self.path.name
        self._engine_temporary = engine_path(self._temporary)
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.close()

    def write(
        self,
        header: Header,
        ids: IdArray,
        owners: IdArray,
        vectors: Iterator[FloatArray],
        engine: Engine | None = None,
    ) -> None:
        """Write rows, and an engine over them if it is not flat. ``vectors``: in pieces.

        Raises OSError; Erased where a removal came between.
        """
        try:
            self._write(header, ids, owners, vectors, engine)
        except (OSError, GalleryError) as exc:
            if not self._folder.exists():
                raise Erased("a removal came between") from exc
            raise

    def _write(
        self,
        header: Header,
        ids: IdArray,
        owners: IdArray,
        vectors: Iterator[FloatArray],
        engine: Engine | None,
    ) -> None:
        extra: dict[str, NDArray[Any]] = {}
        about = asdict(header)
        if engine is not None and not isinstance(engine, FlatEngine):
            extra = save_engine(engine, self._engine_temporary)
            about["kind"] = engine.kind
            about["engine_bytes"] = self._engine_temporary.stat().st_size
            about["engine_hash"] = _hash_of(self._engine_temporary, 0)
            _sync_file(self._engine_temporary)
        arrays = {"ids": np.ascontiguousarray(ids, "<i8"),
                  "owners": np.ascontiguousarray(owners, "<i8"),
                  **extra}  # fmt: skip
        with self._temporary.open("w+b") as stream:
            _write_body(stream, about, arrays, vectors, header)
            stream.flush()
            os.fsync(stream.fileno())

    def publish(self) -> IndexFile:
        """Give the files their names: readers see the old ones or the new ones.

        Returns what was written, mapped. Raises OSError.
        """
        file = _open(self._temporary, self._engine_temporary)
        if self._engine_temporary.exists():
            self._engine_temporary.replace(engine_path(self.path))
        else:
            engine_path(self.path).unlink(missing_ok=True)
        self._temporary.replace(self.path)
        sync_folder(self.path.parent)
        return file


def name_of(named: bool) -> str:
    """Of the index file of people, or of those without a name."""
    return INDEX_NAME if named else UNNAMED_INDEX_NAME


def engine_path(path: Path) -> Path:
    """Of the FAISS index that belongs to the index file ``path``."""
    return path.with_name(path.name + ".engine")


def erase(path: Path) -> None:
    """Remove the file, and what anybody has written of a new one.

    Raises GalleryError where one cannot be removed.
    """
    try:
        for leftover in path.parent.glob(path.name + "*"):
            leftover.unlink(missing_ok=True)
        sweep(path.parent, path.name, in_use=True)
    except OSError as exc:
        raise GalleryError(
            f"{path}: cannot be removed ({exc.strerror or exc}). The gallery is unchanged."
        ) from exc


def read(path: Path) -> IndexFile | None:
    """The file, or None where there is none that is whole."""
    try:
        with path.open("rb") as stream:
            start = stream.read(_START)
        whole = start.startswith(_MAGIC) and len(start) == _START
        if not whole or _hash_of(path, _START) != start[len(_MAGIC) :].hex():
            return None
        return _open(path, engine_path(path))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _open(path: Path, engine_file: Path) -> IndexFile:
    """A file that is known to be whole."""
    with path.open("rb") as stream:
        stream.seek(_START)
        length = int.from_bytes(stream.read(_LENGTH), "little")
        header = Header(**json.loads(stream.read(length)))
    ids, owners = (_map(path, header, name).copy() for name in ("ids", "owners"))
    vectors = _map(path, header, "vectors")
    engine = _read_engine(path, engine_file, header, vectors)
    return IndexFile(header, ids, owners, vectors, engine)


def _read_engine(path: Path, file: Path, header: Header, vectors: FloatArray) -> Engine | None:
    if header.kind == "flat":
        return FlatEngine(vectors)
    try:
        if file.stat().st_size != header.engine_bytes or _hash_of(file, 0) != header.engine_hash:
            return None
        names = set(header.arrays) - {"ids", "owners", "vectors"}
        extra: Mapping[str, NDArray[Any]] = {n: _map(path, header, n).copy() for n in names}
        return open_engine(header.kind, vectors, file, extra)
    except (OSError, RuntimeError, KeyError):  # FAISS's word, and of an earlier version
        return None


def _map(path: Path, header: Header, name: str) -> NDArray[Any]:
    """An array of the file, mapped so that writing to it changes nothing but this process."""
    dtype, shape, offset = header.arrays[name]
    if os.name == "nt" or 0 in shape:  # Windows cannot replace a file that is mapped
        count = int(np.prod(shape))
        return np.fromfile(path, dtype, count, offset=offset).reshape(shape)
    mapped: NDArray[Any] = np.memmap(path, dtype, "c", offset, tuple(shape))
    return mapped.view(np.ndarray)


def _write_body(
    stream: Any,
    about: dict[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    vectors: Iterator[FloatArray],
    header: Header,
) -> None:
    listed = {name: (a.dtype.str, list(a.shape), a.nbytes) for name, a in arrays.items()}
    listed["vectors"] = ("<f4", [header.count, header.dim], 4 * header.count * header.dim)
    room = 4096 + 64 * len(listed)  # for the header, whose offsets are not known before its length
    offset, places = room, {}
    for name, (dtype, shape, size) in listed.items():
        places[name] = (dtype, shape, offset)
        offset += -(-size // _ALIGN) * _ALIGN
    text = json.dumps({**about, "arrays": places}).encode()
    if _START + _LENGTH + len(text) > room:
        raise ValueError(f"an index header of {len(text)} bytes")
    stream.write(_MAGIC + bytes(_HASH) + len(text).to_bytes(_LENGTH, "little") + text)
    for name, array in arrays.items():
        stream.seek(places[name][2])
        stream.write(array.data)
    stream.seek(places["vectors"][2])
    for piece in vectors:
        stream.write(np.ascontiguousarray(piece, "<f4").data)
    stream.truncate(offset)
    stream.flush()
    digest = _hash_of(Path(stream.name), _START)
    stream.seek(len(_MAGIC))
    stream.write(bytes.fromhex(digest))


def _hash_of(path: Path, start: int) -> str:
    """XXH3 of the file from ``start``, as hexadecimal digits."""
    digest = xxhash.xxh3_128()
    size = path.stat().st_size
    if size > start:
        data = np.memmap(path, np.uint8, "r")
        for offset in range(start, size, _BLOCK):
            digest.update(data[offset : offset + _BLOCK].data)
    return digest.hexdigest()


def _sync_file(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
