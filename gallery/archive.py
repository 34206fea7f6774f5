"""The file of an export: how a gallery is laid out in it, written, and read back.

The file is a ZIP archive whose members are stored, not compressed (vectors and JPEGs
do not shrink, and what cannot expand is no bomb):

``identities.jsonl``  one person a line: name, metadata, created_at
``templates.jsonl``   one template a line: person (line of identities.jsonl, from 0), source,
                      content_sha256, det_score, created_at; crop, its SHA-256 and landmarks
``vectors.npy``       (n, d) float32, row i belongs to line i of templates.jsonl
``crops/*.jpg``       the loose crops
``manifest.json``     format and version, contract, pack, thresholds, counts, and the SHA-256
                      of the first three

The same gallery gives the same bytes. What is read is checked. Imports the core and
this package's records, store and values.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from facerec.errors import FacerecError, GalleryError
from facerec.types import EmbeddingContract, FloatArray, Template, ThresholdTable
from gallery.records import READ_BATCH, ReadTransaction
from gallery.store import thresholds_from_json
from gallery.values import NewTemplate, metadata_json, name_key

FORMAT = "facerec-gallery"
VERSION = 1

_MANIFEST, _PEOPLE, _TEMPLATES = "manifest.json", "identities.jsonl", "templates.jsonl"
_VECTORS = "vectors.npy"
_HASHED = (_PEOPLE, _TEMPLATES, _VECTORS)
_CROP = re.compile(r"crops/[0-9]{1,19}\.jpg")
_MAX_LINE = 1 << 20
_UNREADABLE = (
    OSError, EOFError, ValueError, KeyError, TypeError, IndexError, OverflowError,
    RecursionError, NotImplementedError, RuntimeError, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True)
class ExportManifest:
    """What an exported file says of itself."""

    contract: EmbeddingContract
    pack_name: str
    thresholds: ThresholdTable | None
    people: int
    templates: int
    crops: int


# Writing


def write_export(
    stream: IO[bytes],
    view: ReadTransaction,
    contract: EmbeddingContract,
    pack_name: str,
    thresholds: ThresholdTable | None,
) -> None:
    """Write what ``view`` sees as one file. Raises OSError, and what the store raises."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        about = {
            "contract": json.loads(contract.to_json()),
            "contract_id": contract.contract_id,
            "pack_name": pack_name,
            "thresholds": thresholds and asdict(thresholds),
        }
        _write_members(archive, view, about)


def _write_members(
    archive: zipfile.ZipFile, view: ReadTransaction, about: Mapping[str, Any]
) -> None:
    crops: dict[int, str] = {}
    for template_id, jpeg in view.all_crops():
        crops[template_id] = _write_member(archive, _crop_name(template_id), [jpeg])
    people = sorted(view.identities(None, 0, None), key=lambda person: person.id)
    lines = {person.id: line for line, person in enumerate(people)}
    count = view.count_vectors(named=True)
    hashes = {
        _PEOPLE: _write_member(
            archive,
            _PEOPLE,
            (
                _line(
                    {
                        "name": person.name,
                        "metadata": person.metadata,
                        "created_at": person.created_at.isoformat(),
                    }
                )
                for person in people
            ),
        ),
        _TEMPLATES: _write_member(
            archive,
            _TEMPLATES,
            (_template_line(t, lines[t.identity_id], crops) for t in view.all_templates()),
        ),
        _VECTORS: _write_member(archive, _VECTORS, _npy(view, count)),
    }
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **about,
        "people": len(people),
        "templates": count,
        "crops": len(crops),
        "sha256": hashes,
    }
    text = json.dumps(manifest, indent=1, sort_keys=True)
    _write_member(archive, _MANIFEST, [text.encode()])


def _write_member(archive: zipfile.ZipFile, name: str, parts: Iterable[bytes]) -> str:
    """Stream ``parts`` into a member that carries no date; returns its SHA-256."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system = 3
    info.external_attr = 0o644 << 16
    digest = hashlib.sha256()
    with archive.open(info, "w", force_zip64=name == _VECTORS) as member:
        for part in parts:
            digest.update(part)
            member.write(part)
    return digest.hexdigest()


def _template_line(template: Template, person: int, crops: Mapping[int, str]) -> bytes:
    value: dict[str, Any] = {
        "person": person,
        "source": template.source,
        "content_sha256": template.content_sha256,
        "face": template.face,
        "det_score": template.det_score,
        "created_at": template.created_at.isoformat(),
    }
    if template.box_xyxy is not None:
        value["box_xyxy"] = template.box_xyxy.tolist()
    if template.landmarks is not None:
        value["crop"] = _crop_name(template.id)
        value["crop_sha256"] = crops[template.id]
        value["landmarks"] = template.landmarks.tolist()
    return _line(value)


def _npy(view: ReadTransaction, count: int) -> Iterator[bytes]:
    yield _npy_header(count, view.dim)
    for batch in view.vectors_since(0):
        yield np.ascontiguousarray(batch.vectors, "<f4").tobytes()


def _npy_header(count: int, dim: int) -> bytes:
    """Of a .npy file, version 1.0, with (count, dim) little-endian float32 in C order."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count}, {dim}), }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode() + b"\n"


def _crop_name(template_id: int) -> str:
    return f"crops/{template_id}.jpg"


# Reading


@dataclass(frozen=True)
class ExportedPerson:
    """A person as the file has them. details: metadata, as checked JSON."""

    name: str
    details: str
    created_at: datetime


@contextmanager
def open_export(path: Path) -> Iterator[Export]:
    """The file, with its manifest read. What cannot be read or parsed raises GalleryError."""
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            yield Export(path, archive, os.fstat(stream.fileno()).st_size)
    except FacerecError:
        raise
    except FileNotFoundError as exc:
        raise GalleryError(f"{path}: no such file") from exc
    except _UNREADABLE as exc:
        raise GalleryError(
            f"{path}: not a whole gallery export ({exc or type(exc).__name__}). "
            "The gallery is unchanged."
        ) from exc


class Export:
    """An exported file; its parts are read as streams, and checked where they are parsed."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, size: int) -> None:
        self.path = path
        self._archive = archive
        self._crops_used: set[str] = set()
        self._members = self._check_members(size)
        with self._open(_MANIFEST) as member:
            raw = json.loads(member.read(_MAX_LINE))
        self._hashes: dict[str, str] = raw["sha256"]
        self.manifest = self._parse_manifest(raw)

    def verify(self) -> None:
        """Read everything once, and hold it against the checksums and the rules."""
        try:
            self._verify()
        except GalleryError as exc:
            if str(exc).startswith(f"{self.path}: "):
                raise
            raise self._damaged(str(exc)) from exc  # a name or vector that no gallery takes

    def _verify(self) -> None:
        for name in _HASHED:
            digest = hashlib.sha256()
            with self._open(name) as member:
                while block := member.read(_MAX_LINE):
                    digest.update(block)
            if digest.hexdigest() != self._hashes[name]:
                raise self._damaged(f"{name} does not match its checksum")
        keys = [name_key(person.name) for person in self.people()]
        if len(keys) != self.manifest.people or len(set(keys)) != len(keys):
            raise self._damaged("the people are not as many as it says, or not distinct")
        count = crops = 0
        for some in self.templates():
            if any(not 0 <= person < len(keys) for person, _ in some):
                raise self._damaged(f"{_TEMPLATES} names a person that is not in the file")
            count += len(some)
            crops += sum(new.crop_jpeg is not None for _, new in some)
        if (count, crops) != (self.manifest.templates, self.manifest.crops):
            raise self._damaged("the templates or crops are not as many as it says")
        if set(self._members) != {_MANIFEST, *_HASHED, *self._crops_used}:
            raise self._damaged("there are files in it that do not belong there")

    def people(self) -> Iterator[ExportedPerson]:
        for raw in self._lines(_PEOPLE):
            yield ExportedPerson(
                name=str(raw["name"]),
                details=metadata_json(raw["metadata"]),
                created_at=_moment(raw["created_at"]),
            )

    def templates(self) -> Iterator[list[tuple[int, NewTemplate]]]:
        """(line of the person, template), some at a time."""
        dim, count = self.manifest.contract.dim, self.manifest.templates
        header = _npy_header(count, dim)
        if self._members[_VECTORS].file_size != len(header) + 4 * dim * count:
            raise self._damaged(f"{_VECTORS} is not of {count} times {dim} numbers")
        lines = self._lines(_TEMPLATES)
        with self._open(_VECTORS) as member:
            if member.read(len(header)) != header:
                raise self._damaged(f"{_VECTORS} is not of {count} times {dim} numbers")
            while some := list(islice(lines, READ_BATCH)):
                data = member.read(4 * dim * len(some))
                vectors = np.frombuffer(data, "<f4").reshape(len(some), dim)
                yield [self._template(*pair) for pair in zip(some, vectors, strict=True)]

    def _template(self, raw: dict[str, Any], vector: FloatArray) -> tuple[int, NewTemplate]:
        crop = self._crop(raw["crop"], raw["crop_sha256"]) if "crop" in raw else None
        box = raw.get("box_xyxy")  # exports of old have neither this nor "face"
        return int(raw["person"]), NewTemplate(
            embedding=vector,
            source=str(raw["source"]),
            content_sha256=str(raw["content_sha256"]),
            det_score=float(raw["det_score"]),
            crop_jpeg=crop,
            landmarks=np.asarray(raw["landmarks"], np.float32) if crop is not None else None,
            created_at=_moment(raw["created_at"]),
            face=int(raw.get("face", 0)),
            box_xyxy=None if box is None else np.asarray(box, np.float32),
        )

    def _crop(self, name: str, sha256: str) -> bytes:
        if not _CROP.fullmatch(name) or name not in self._members:
            raise self._damaged(f"there is no crop {name!r} in it")
        self._crops_used.add(name)
        data = self._archive.read(name)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise self._damaged(f"{name} does not match its checksum")
        return data

    def _lines(self, name: str) -> Iterator[dict[str, Any]]:
        with self._open(name) as member:
            while line := member.readline(_MAX_LINE):
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise self._damaged(f"a line of {name} is not an object")
                yield value

    def _open(self, name: str) -> IO[bytes]:
        if name not in self._members:
            raise GalleryError(f"{self.path}: not a gallery export: it has no {name}")
        return self._archive.open(name)

    def _check_members(self, size: int) -> dict[str, zipfile.ZipInfo]:
        members = {info.filename: info for info in self._archive.infolist()}
        if len(members) != len(self._archive.infolist()):
            raise self._damaged("two files in it have the same name")
        for name, info in members.items():
            if name not in (_MANIFEST, *_HASHED) and not _CROP.fullmatch(name):
                raise self._damaged(f"{name!r} does not belong there")
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise self._damaged(f"{name!r} is compressed, which an export never is")
        if sum(info.file_size for info in members.values()) > size:
            raise self._damaged("it claims to hold more than the file is long")
        return members

    def _parse_manifest(self, raw: dict[str, Any]) -> ExportManifest:
        if raw["format"] != FORMAT:
            raise GalleryError(f"{self.path}: not a gallery export")
        if raw["version"] != VERSION:
            raise GalleryError(
                f"{self.path}: an export of version {raw['version']}; this facerec reads "
                f"version {VERSION}. Update facerec."
            )
        contract = EmbeddingContract.from_json(json.dumps(raw["contract"]))
        if contract.contract_id != raw["contract_id"]:
            raise self._damaged("its contract does not match its contract's id")
        table = raw["thresholds"]
        return ExportManifest(
            contract=contract,
            pack_name=str(raw["pack_name"]),
            thresholds=thresholds_from_json(json.dumps(table)) if table else None,
            people=int(raw["people"]),
            templates=int(raw["templates"]),
            crops=int(raw["crops"]),
        )

    def _damaged(self, what: str) -> GalleryError:
        return GalleryError(
            f"{self.path}: the export is damaged: {what}. The gallery is unchanged."
        )


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return moment
