"""MXNet RecordIO (``.rec`` with ``.idx``), read and written without mxnet.

Imports the core and NumPy. The format, from the description in dmlc-core's recordio.h:

- a record is one or more parts; a part is ``magic`` and ``lrec`` (both uint32, little endian),
  the payload, and zeros up to a multiple of 4 bytes. ``lrec`` holds the payload's length in its
  lower 29 bits, above them 0 for a whole record, 1, 2, 3 for the first, a middle and the last
  part. A record is cut where its payload holds the magic word at a multiple of 4 bytes, and
  that word is left out: the reader puts it back between two parts.
- an image record starts with a header: ``flag`` uint32, ``label`` float32, ``id`` and ``id2``
  uint64; with flag > 0 the label is an array of ``flag`` float32 behind the header. Then comes
  the encoded image.
- face sets (insightface's) have a header record at key 0, whose label array is (a, b): the
  images are at keys 1..a-1, and keys a..b-1 hold a record per identity, without an image,
  whose label array is the range of its images' keys. Others have images only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facerec.errors import ConfigError, ImageError
from facerec.types import Failure
from training.data.positional import PositionalFile
from training.data.sources import FaceSource, PackedStrings

MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", MAGIC)
_PART = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
_LENGTH_BITS = 29
_MAX_LENGTH = (1 << _LENGTH_BITS) - 1
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_EXACT_FLOAT32 = 1 << 24
_LARGEST_KEY = 1 << 40
_GUESS = 16 * 1024
"""Bytes of a first read where no index says how long a record is."""


@dataclass(frozen=True, eq=False)
class Record:
    """labels: (k,) float32, k >= 1. payload: the encoded image, empty for identity records."""

    labels: NDArray[np.float32]
    payload: bytes
    has_label_array: bool


def pack_record(labels: ArrayLike, key: int, payload: bytes, *, as_array: bool = False) -> bytes:
    """A record's content: header, labels, payload. One label goes into the header itself,
    unless ``as_array``."""
    values = np.atleast_1d(np.asarray(labels, dtype="<f4"))
    if len(values) == 1 and not as_array:
        return _HEADER.pack(0, float(values[0]), key, 0) + payload
    return _HEADER.pack(len(values), 0.0, key, 0) + values.tobytes() + payload


def unpack_record(content: bytes) -> Record:
    """What :func:`pack_record` made. Raises ValueError for a header that does not fit."""
    if len(content) < _HEADER.size:
        raise ValueError(f"{len(content)} bytes are too few for a header")
    flag, label, _, _ = _HEADER.unpack_from(content)
    if flag == 0:
        return Record(np.array([label], np.float32), content[_HEADER.size :], False)
    end = _HEADER.size + 4 * flag
    if end > len(content):
        raise ValueError(f"header announces {flag} labels, more than the record holds")
    labels = np.frombuffer(content, "<f4", flag, _HEADER.size).astype(np.float32)
    return Record(labels, content[end:], True)


class RecordFile:
    """Random access to the records of a ``.rec`` file, by key.

    keys: (n,) int64, ascending; without an ``.idx`` file the records are found by walking
    through the whole file and numbered from 0. damage: what the walk stumbled over, if
    anything, and what it could not reach. No record stays in memory. Raises ConfigError for files
    that are missing or of another format.
    """

    def __init__(self, path: Path, index: Path | None = None) -> None:
        self.path = Path(path)
        self.damage: str | None = None
        try:
            self._file = PositionalFile(self.path)
        except OSError as exc:
            raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
        if index is None and self.path.with_suffix(".idx").is_file():
            index = self.path.with_suffix(".idx")
        self.keys, self.offsets = _read_index(index) if index else self._walk()
        looks = self.offsets[:: max(1, len(self.offsets) // 8)].tolist()
        if not any(self._file.read(offset, 4) == _MAGIC_BYTES for offset in looks):
            raise ConfigError(
                f"{path}: not a RecordIO file (no magic word at its start"
                + (f", nor where {index} points)" if index else ")")
            )
        if not 0 <= self.offsets.min() <= self.offsets.max() < self._file.size:
            raise ConfigError(f"{index}: points beyond the end of {path}: of another file, or cut")

    def read(self, key: int) -> bytes:
        """The content of a record. Raises ImageError where the file is damaged there."""
        offset = self._offset(key)
        try:
            return self._content(offset)
        except (ValueError, OSError) as exc:
            raise ImageError(f"{self.path}, record {key} at byte {offset}: damaged: {exc}") from exc

    def read_labels(self, key: int) -> tuple[NDArray[np.float32], bool]:
        """(labels, whether an image follows them), of a record whose image is not read.

        Raises ImageError as ``read``.
        """
        head = self._file.read(self._offset(key), _PART.size + _HEADER.size + 8)
        if len(head) >= _PART.size + _HEADER.size:
            magic, lrec = _PART.unpack_from(head)
            flag, label, _, _ = _HEADER.unpack_from(head, _PART.size)
            end = _HEADER.size + 4 * flag
            length = lrec & _MAX_LENGTH
            if (magic, lrec >> _LENGTH_BITS) == (MAGIC, _WHOLE) and end <= min(length, 32):
                behind = head[_PART.size + _HEADER.size :]
                labels = np.frombuffer(behind, "<f4", flag) if flag else np.array([label])
                return labels.astype(np.float32), length > end
        try:  # in parts, of many labels, or damaged
            record = unpack_record(self.read(key))
        except ValueError as exc:
            raise ImageError(f"{self.path}, record {key}: damaged: {exc}") from exc
        return record.labels, bool(record.payload)

    def _offset(self, key: int) -> int:
        at = int(np.searchsorted(self.keys, key))
        if at == len(self.keys) or self.keys[at] != key:
            raise ImageError(f"{self.path}, record {key}: the index has no such key")
        return int(self.offsets[at])

    def _content(self, offset: int) -> bytes:
        parts: list[bytes] = []
        while True:
            block = self._file.read(offset, _GUESS)
            if len(block) < _PART.size:
                raise ValueError("the file ends here")
            magic, lrec = _PART.unpack_from(block)
            if magic != MAGIC:
                raise ValueError(f"expected the magic word, found {block[:4].hex()}")
            kind, length = lrec >> _LENGTH_BITS, lrec & _MAX_LENGTH
            if kind not in ((_MIDDLE, _LAST) if parts else (_WHOLE, _FIRST)):
                raise ValueError(f"a part of kind {kind} after {len(parts)} parts")
            payload = block[_PART.size : _PART.size + length]
            if len(payload) < length:
                payload += self._file.read(offset + len(block), length - len(payload))
            if len(payload) < length:
                raise ValueError(f"{length} bytes announced, the file ends after {len(payload)}")
            parts.append(payload)
            if kind in (_WHOLE, _LAST):
                return _MAGIC_BYTES.join(parts)
            offset += _PART.size + (length + 3) // 4 * 4

    def _walk(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Keys and offsets by going from part to part; stops where the file is damaged."""
        offsets: list[int] = []
        offset, size = 0, self._file.size
        while offset < size:
            block = self._file.read(offset, _PART.size)
            _, lrec = _PART.unpack(block) if len(block) == _PART.size else (0, 0)
            length = lrec & _MAX_LENGTH
            whole = block.startswith(_MAGIC_BYTES) and offset + _PART.size + length <= size
            if not whole:
                self.damage = (
                    f"no whole record {len(offsets)} at byte {offset}; the {size - offset:,} bytes "
                    f"from there (of {size:,}) are out of reach without an .idx file"
                )
                break
            if lrec >> _LENGTH_BITS in (_WHOLE, _FIRST):
                offsets.append(offset)
            offset += _PART.size + (length + 3) // 4 * 4
        return np.arange(len(offsets), dtype=np.int64), np.array(offsets, dtype=np.int64)


def _read_index(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(keys, offsets) of lines ``key<TAB>offset``, by key."""
    try:
        if not path.stat().st_size:
            raise ConfigError(f"{path}: empty")
        table = np.loadtxt(path, dtype=np.int64, ndmin=2)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: not an index of lines 'key<TAB>offset': {exc}") from exc
    if table.shape[1] != 2:
        raise ConfigError(f"{path}: not an index of lines 'key<TAB>offset'")
    order = np.argsort(table[:, 0], kind="stable")
    keys, offsets = table[order, 0], table[order, 1]
    if (keys[1:] == keys[:-1]).any():
        raise ConfigError(f"{path}: a key occurs twice")
    return keys, offsets


class RecordWriter:
    """Writes a ``.rec`` file and its ``.idx``; a context manager."""

    def __init__(self, path: Path) -> None:
        self._records: BinaryIO = Path(path).open("wb")  # noqa: SIM115 - closed by close()
        self._index = Path(path).with_suffix(".idx").open("w", encoding="ascii")

    def write(self, key: int, content: bytes) -> None:
        """Append a record. Raises ValueError for one of 512 MiB or more."""
        if len(content) > _MAX_LENGTH:
            raise ValueError(f"a record of {len(content)} bytes is more than the format can hold")
        self._index.write(f"{key}\t{self._records.tell()}\n")
        pieces = list(_split_at_magic(content))
        for number, piece in enumerate(pieces):
            first, last = number == 0, number == len(pieces) - 1
            kind = (_WHOLE if last else _FIRST) if first else (_LAST if last else _MIDDLE)
            self._records.write(_PART.pack(MAGIC, kind << _LENGTH_BITS | len(piece)))
            self._records.write(piece + bytes(-len(piece) % 4))

    def close(self) -> None:
        self._records.close()
        self._index.close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _split_at_magic(content: bytes) -> Iterator[bytes]:
    """``content`` without the magic words that stand at multiples of 4."""
    start = at = 0
    while (at := content.find(_MAGIC_BYTES, at)) >= 0:
        if at % 4:
            at += 1
            continue
        yield content[start:at]
        start = at = at + 4
    yield content[start:]


def write_face_records(
    path: Path, samples: Iterable[tuple[int, bytes]], *, header: bool = True
) -> int:
    """Write (label, encoded image) pairs, grouped by label; returns the number of images.

    header: with the records at key 0 and per identity that insightface's sets have, which
    make a file open quickly; without, images alone, from key 0. Samples of a label must
    follow each other where there is a header.
    """
    ranges: list[tuple[int, int]] = []
    with RecordWriter(path) as writer:
        if header:  # its label is not known yet: a placeholder of the same length
            writer.write(0, pack_record([0, 0], 0, b""))
        key = 1 if header else 0
        for label, group in groupby(samples, key=lambda sample: sample[0]):
            start = key
            for _, payload in group:
                writer.write(key, pack_record([label], key, payload))
                key += 1
            ranges.append((start, key))
        if header:
            for number, bounds in enumerate(ranges):
                writer.write(key + number, pack_record(bounds, key + number, b""))
    if header:
        with Path(path).open("r+b") as stream:
            content = pack_record([key, key + len(ranges)], 0, b"")
            stream.write(_PART.pack(MAGIC, len(content)) + content)
    return key - (1 if header else 0)


class RecordSource(FaceSource):
    """The images of a ``.rec`` file. template, size: how they are aligned.

    Records whose label cannot be read are left out and listed in ``failures``. Raises
    ConfigError where that leaves nothing, or more than ``max_failures`` are unreadable (None:
    1 % of the records, at least 10), and for a damaged or cut file without an ``.idx``: how many
    records lie behind the damage nobody knows.
    """

    def __init__(
        self,
        path: Path,
        template: str = "arcface-112",
        size: int = 112,
        *,
        max_failures: int | None = None,
    ) -> None:
        self.origin = str(path)
        self.template = template
        self.size = size
        self.file = RecordFile(Path(path))
        if self.file.damage:
            raise ConfigError(
                f"{path}: damaged or cut: {self.file.damage}. Put the set's .idx beside it, or get "
                "the file again; cut it at that byte to learn only from what is before."
            )
        limit = max(10, len(self.file.keys) // 100) if max_failures is None else max_failures
        failures: list[Failure] = []
        keys, raw = self._labels(failures, limit)
        if not len(keys):
            raise ConfigError(f"{path}: holds no image record with a readable label")
        values, dense = np.unique(raw, return_inverse=True)
        self._keys = keys
        self._class = values
        self.labels = dense.astype(np.int64)
        self.identities = PackedStrings(str(int(v)) for v in values)
        self.failures = tuple(failures)

    def encoded(self, index: int) -> bytes:
        key = int(self._keys[index])
        content = self.file.read(key)
        try:
            record = unpack_record(content)
        except ValueError as exc:
            raise ImageError(f"{self.name(index)}: damaged: {exc}") from exc
        if _whole_number(record.labels[0], self.name(index)) != self._class[self.labels[index]]:
            raise ImageError(
                f"{self.name(index)}: its label is {record.labels[0]:g}, but its neighbours' and "
                f"the index say {self._class[self.labels[index]]}"
            )
        return record.payload

    def name(self, index: int) -> str:
        return f"{self.origin}, record {int(self._keys[index])}"

    def _labels(
        self, failures: list[Failure], limit: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(keys, labels) of the images, both (n,) int64, by key."""
        all_keys = self.file.keys
        header = self._header()
        if header is None:
            return self._read_labels(all_keys, failures, limit)
        images_end, identities_end = header
        if images_end > _EXACT_FLOAT32:  # Glint360K: ranges in float32 are off by one there
            return self._read_labels(
                all_keys[(all_keys > 0) & (all_keys < images_end)], failures, limit
            )
        keys_found, labels_found = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for identity in all_keys[(all_keys >= images_end) & (all_keys < identities_end)].tolist():
            try:
                bounds = self._bounds(identity)
            except ImageError as exc:
                _note(failures, limit, f"{self.origin}, record {identity}", str(exc))
                continue
            keys = all_keys[slice(*np.searchsorted(all_keys, bounds))]
            # One image says which label the record stands for; the others have the same.
            first, value = self._read_labels(keys[:1], failures, limit)
            if len(first):
                value = np.repeat(value, len(keys))
            else:
                keys, value = self._read_labels(keys[1:], failures, limit)
            keys_found.append(keys)
            labels_found.append(value)
        return np.concatenate(keys_found), np.concatenate(labels_found)

    def _header(self) -> tuple[int, int] | None:
        """(end of the images' keys, end of the identities' keys), if the file has a header.

        Raises ConfigError where it had one that is damaged: its last record has no image.
        """
        if self.file.keys[0] == 0:
            with suppress(ImageError):
                labels, has_image = self.file.read_labels(0)
                if not has_image and len(labels) == 2:
                    return _range(labels, self.origin)
        with suppress(ImageError):
            labels, has_image = self.file.read_labels(int(self.file.keys[-1]))
            if not has_image:
                raise ConfigError(
                    f"{self.origin}: has records of identities, but the header record that says "
                    "where they start (key 0) is missing or damaged"
                )
        return None

    def _bounds(self, identity: int) -> tuple[int, int]:
        """The range of an identity's keys. Raises ImageError for a record that says none."""
        where = f"{self.origin}, record {identity}"
        labels, has_image = self.file.read_labels(identity)
        if has_image or len(labels) < 2:
            raise ImageError(f"{where}: damaged: no range of an identity's images")
        return _range(labels, where)

    def _read_labels(
        self, keys: NDArray[np.int64], failures: list[Failure], limit: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Those of ``keys`` whose record has an image and a label, and the labels."""
        labels = np.empty(len(keys), dtype=np.int64)
        readable = np.ones(len(keys), dtype=bool)
        for row, key in enumerate(keys.tolist()):
            where = f"{self.origin}, record {key}"
            try:
                values, has_image = self.file.read_labels(key)
                if not has_image:
                    raise ImageError(f"{where}: no image")
                label = _whole_number(values[0], where)
            except ImageError as exc:
                readable[row] = False
                _note(failures, limit, where, str(exc))
            else:
                labels[row] = label
        return keys[readable], labels[readable]


def _range(labels: NDArray[np.float32], where: str) -> tuple[int, int]:
    """Two keys, which may be beyond what float32 holds exactly; ImageError as ``_whole_number``."""
    first, end = (_whole_number(label, where, "key", _LARGEST_KEY) for label in labels[:2])
    return first, end


def _whole_number(
    value: np.float32, where: str, what: str = "label", most: int = _EXACT_FLOAT32
) -> int:
    """A class, or a key. Raises ImageError for a damaged one: not a whole number in the range."""
    if not (float(value).is_integer() and 0 <= value <= most):  # neither of NaN and infinity is
        raise ImageError(f"{where}: its {what} {value:g} is no whole number from 0 to {most}")
    return int(value)


def _note(failures: list[Failure], limit: int, source: str, reason: str) -> None:
    failures.append(Failure(source, "damaged", reason))
    if len(failures) > limit:
        raise ConfigError(
            f"{len(failures)} damaged records, more than the limit of {limit}; the first: "
            f"{failures[0].reason}. Is the .idx file that of another .rec file?"
        )
