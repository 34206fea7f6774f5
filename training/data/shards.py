"""WebDataset tar shards with random access. Imports the core and NumPy.

A shard is an uncompressed tar; the files of one sample follow each other and share their name
up to the first dot: ``0001.jpg`` and ``0001.cls``. Only the tars' directories are read when a
set is opened; images are then read by position. So shards get the same samplers as every other
source: no sample twice or lost over ranks and workers, and resuming to the exact sample, where
a stream can only start a shard again.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facerec.errors import ConfigError, ImageError
from facerec.image import SUFFIXES
from facerec.types import Failure
from training.data.positional import PositionalFile
from training.data.sources import FaceSource, PackedStrings, SubsetSource

_LABEL_SUFFIXES = (".cls", ".json")
_JSON_KEYS = ("label", "identity", "cls", "id")
_MAX_LABEL_BYTES = 1 << 20


@dataclass(frozen=True)
class _Sample:
    """Where a sample's image lies in its shard, and whose it is."""

    key: str
    offset: int
    length: int
    label: str


class ShardSource(FaceSource):
    """The samples of tar shards: an image (``.jpg``, ``.png``, ...) and ``.cls`` or ``.json``.

    paths: the shards, in the order given. ``.cls`` holds the label as text; ``.json`` an object
    with one of the keys label, identity, cls, id. shard_starts: (s,) int64, index of the first
    sample of each shard: samplers keep near each other what lies near each other.

    Samples without an image or a label are left out and listed in ``failures``, as is what
    lies behind a shard's damage. Raises ConfigError for shards that are missing or compressed,
    and where no sample or more than ``max_failures`` unusable ones are found (None: 1 % of the
    samples, at least 10).
    """

    def __init__(
        self,
        paths: Sequence[Path],
        template: str = "arcface-112",
        size: int = 112,
        *,
        max_failures: int | None = None,
    ) -> None:
        if not paths:
            raise ConfigError("no tar shards were named")
        self.origin = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        self.template = template
        self.size = size
        failures: list[Failure] = []
        samples: list[_Sample] = []
        starts = []
        self._files = [_open(path) for path in paths]
        for path in paths:
            starts.append(len(samples))
            samples += _index(Path(path), failures)
        limit = max(10, len(samples) // 100) if max_failures is None else max_failures
        if len(failures) > limit:
            raise ConfigError(
                f"{self.origin}: {len(failures)} samples cannot be used, more than the limit of "
                f"{limit}; the first: {failures[0].reason}"
            )
        if not samples:
            raise ConfigError(
                f"{self.origin}: no samples; a sample is an image and a label, as in 0001.jpg and "
                "0001.cls" + (f". The first problem: {failures[0].reason}" if failures else "")
            )
        names = sorted({s.label for s in samples}, key=_numbers_first)
        number = {name: at for at, name in enumerate(names)}
        self.shard_starts = np.array(starts, dtype=np.int64)
        self.labels = np.array([number[s.label] for s in samples], dtype=np.int64)
        self.identities = PackedStrings(names)
        self.failures = tuple(failures)
        self._offsets = np.array([s.offset for s in samples], dtype=np.int64)
        self._lengths = np.array([s.length for s in samples], dtype=np.int64)
        self._keys = PackedStrings(s.key for s in samples)

    def encoded(self, index: int) -> bytes:
        shard = self._shard(index)
        length = int(self._lengths[index])
        try:
            data = self._files[shard].read(int(self._offsets[index]), length)
        except OSError as exc:
            raise ImageError(f"{self.name(index)}: cannot be read: {exc}") from exc
        if len(data) < length:
            raise ImageError(f"{self.name(index)}: the shard ends inside it")
        return data

    def name(self, index: int) -> str:
        return f"{self._files[self._shard(index)].path}, sample {self._keys[index]}"

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self.shard_starts, index, side="right")) - 1


def _open(path: Path) -> PositionalFile:
    try:
        return PositionalFile(path)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc


def _index(path: Path, failures: list[Failure]) -> list[_Sample]:
    """The usable samples of a shard, in order."""
    samples = []
    try:
        with tarfile.open(path, "r:") as tar:
            for key, members in _by_key(tar):
                try:
                    samples.append(_sample(tar, key, members))
                except ValueError as exc:
                    where = f"{path}, sample {key}"
                    failures.append(Failure(where, "damaged", f"{where}: {exc}"))
            problem = _problem_at_end(path, tar.offset)
    except (tarfile.TarError, EOFError) as exc:
        if not samples:
            raise ConfigError(
                f"{path}: not an uncompressed tar file: {exc}. Compressed shards have no random "
                "access: decompress them (images are compressed anyway)."
            ) from exc
        problem = f": {exc}"
    if problem:
        behind = f"behind {samples[-1].key}" if samples else "from its start"
        failures.append(Failure(str(path), "damaged", f"{path}: unreadable {behind}{problem}"))
    return samples


def _problem_at_end(path: Path, offset: int) -> str:
    """What is wrong with the end of the tar where its directory was read up to ``offset``; "" if
    nothing is.

    A tar ends with blocks of zeros, and tarfile takes every header that it cannot read for the
    end, as it takes the end of the file. Behind a hole of zeros something else follows.
    """
    found = 0
    with path.open("rb") as stream:
        stream.seek(offset)
        while piece := stream.read(1 << 20):
            if piece.count(0) < len(piece):
                return f", {path.stat().st_size - offset:,} bytes lost: no header at byte {offset}"
            found += len(piece)
    return "" if found >= tarfile.BLOCKSIZE else f": the file is cut at byte {offset}"


def _by_key(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """(key, files by suffix in lower case) of each sample."""
    key, members = None, dict[str, tarfile.TarInfo]()
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every entry
        folder, _, file = member.name.rpartition("/")
        stem, dot, suffix = file.partition(".")
        if not member.isfile() or not stem or not dot:
            continue
        this = f"{folder}/{stem}" if folder else stem
        if this != key and key is not None:
            yield key, members
            members = {}
        key = this
        members[f".{suffix.lower()}"] = member
    if key is not None:
        yield key, members


def _sample(tar: tarfile.TarFile, key: str, members: dict[str, tarfile.TarInfo]) -> _Sample:
    images = [m for suffix, m in members.items() if suffix in SUFFIXES]
    if not images:
        raise ValueError("no image")
    for suffix in _LABEL_SUFFIXES:
        if suffix in members:
            label = _label(tar, members[suffix], suffix)
            return _Sample(key, images[0].offset_data, images[0].size, label)
    raise ValueError("no label: neither .cls nor .json")


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> str:
    stream = tar.extractfile(member)
    if stream is None or member.size > _MAX_LABEL_BYTES:
        raise ValueError(f"{member.name} is no label")
    try:
        text = stream.read().decode("utf-8").strip()
        value: Any = json.loads(text) if suffix == ".json" else text
    except ValueError as exc:
        raise ValueError(f"{member.name} cannot be read: {exc}") from exc
    if isinstance(value, dict):
        value = next((value[k] for k in _JSON_KEYS if k in value), None)
    if not isinstance(value, (str, int)) or value == "":
        raise ValueError(f"{member.name} names no identity ({', '.join(_JSON_KEYS)})")
    return str(value)


def _numbers_first(label: str) -> tuple[bool, int, str]:
    """Numbers in their order, then names in theirs."""
    is_number = label.isdecimal()
    return (not is_number, int(label) if is_number else 0, label)


def expand_shards(pattern: str) -> list[Path]:
    """The shards that a pattern names: a file, a folder of ``*.tar``, a glob, or a range in
    braces as in ``faces-{000..127}.tar``. Sorted. Raises ConfigError if there is none."""
    head, brace, rest = pattern.partition("{")
    if brace:
        span, _, tail = rest.partition("}")
        first, dots, last = span.partition("..")
        if not (dots and first.isdecimal() and last.isdecimal()):
            raise ConfigError(
                f"{pattern}: expected a range of numbers, as in faces-{{000..127}}.tar"
            )
        found = [
            Path(f"{head}{number:0{len(first)}d}{tail}")
            for number in range(int(first), int(last) + 1)
        ]
    elif Path(pattern).is_dir():
        found = sorted(Path(pattern).glob("*.tar"))
    elif set(pattern) & set("*?["):
        path = Path(pattern)
        found = sorted(path.parent.glob(path.name))
    else:
        found = [Path(pattern)]
    if not found:
        raise ConfigError(f"{pattern}: no tar shards there")
    return found


def write_shard(path: Path, samples: Iterable[tuple[str, str, bytes]]) -> None:
    """Write (key, identity, JPEG) triples as one shard of ``KEY.jpg`` and ``KEY.cls``."""
    with tarfile.open(path, "w") as tar:
        for key, identity, image in samples:
            for name, content in ((f"{key}.jpg", image), (f"{key}.cls", identity.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def shard_blocks(source: FaceSource) -> NDArray[np.int64] | None:
    """Where shards start in the order of ``source``'s samples; None for other sources, and for
    a subset in another order."""
    if isinstance(source, ShardSource):
        return source.shard_starts
    if not (type(source) is SubsetSource and isinstance(source.base, ShardSource)):
        return None
    if (np.diff(source.indices) <= 0).any():
        return None
    return np.searchsorted(source.indices, source.base.shard_starts).astype(np.int64)
