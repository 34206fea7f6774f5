"""What callers hand to a gallery and get back, checked at the border.

Also the rules for names and metadata. Imports the core and numpy only.
"""

from __future__ import annotations

import json
import operator
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facerec.errors import ContractMismatch, GalleryError
from facerec.types import EmbeddingContract, FloatArray, Identity

MAX_NAME_LENGTH = 200
MAX_SOURCE_LENGTH = 4096
MAX_METADATA_BYTES = 64 * 1024
MAX_CROP_BYTES = 4 * 1024 * 1024
UNIT_LENGTH_TOLERANCE = 1e-3

NameOrId = str | int
"""A person, by name (str) or by id (int); "12" is a name."""

LARGEST = (1 << 63) - 1
"""What a database takes for a number."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Zero-width (non-)joiner: invisible, but Persian and several Indic scripts are spelt with them.
_SPELLING = "\u200c\u200d"


@dataclass(frozen=True, eq=False)
class NewTemplate:
    """A face to enrol.

    embedding: (d,) float32, unit length. source: what the photo is called; free text.
    content_sha256: of the photo's bytes, 64 hexadecimal digits. det_score: [0, 1].
    crop_jpeg, landmarks: the loose crop and (5, 2) float32 in its pixels; both or neither.
    created_at: aware; None stands for the moment of enrolment. face: which of the photo's faces,
    as they were detected; 0 for an enrolment. box_xyxy: (4,) float32, pixels of the photo.
    photo_id: of an indexed photo.

    Raises GalleryError for a value that is not so.
    """

    embedding: FloatArray
    source: str
    content_sha256: str
    det_score: float
    crop_jpeg: bytes | None = None
    landmarks: FloatArray | None = None
    created_at: datetime | None = None
    face: int = 0
    box_xyxy: FloatArray | None = None
    photo_id: int | None = None

    def __post_init__(self) -> None:
        source = self.source[:MAX_SOURCE_LENGTH].replace("\0", "\ufffd")
        # A path of undecodable bytes comes as lone surrogates, which no database takes.
        source = source.encode("utf-8", "backslashreplace").decode("utf-8")
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "embedding", unit_rows(self.embedding, f"{source}: embedding", 1))
        if not _SHA256.fullmatch(self.content_sha256):
            raise GalleryError(f"{source}: content_sha256 is not 64 hexadecimal digits")
        if not 0 <= self.det_score <= 1:
            raise GalleryError(f"{source}: det_score lies in [0, 1], got {self.det_score}")
        if (self.crop_jpeg is None) != (self.landmarks is None):
            raise GalleryError(f"{source}: a crop comes with its landmarks, or neither is given")
        if self.crop_jpeg is not None and self.landmarks is not None:
            object.__setattr__(
                self, "landmarks", _pixels(self.landmarks, (5, 2), f"{source}: landmarks")
            )
            _check_jpeg(self.crop_jpeg, source)
        if self.created_at is not None and self.created_at.tzinfo is None:
            raise GalleryError(f"{source}: created_at has no time zone")
        if self.face < 0:
            raise GalleryError(f"{source}: faces are counted from 0, got {self.face}")
        if self.box_xyxy is not None:
            object.__setattr__(self, "box_xyxy", _pixels(self.box_xyxy, (4,), f"{source}: box"))


@dataclass(frozen=True)
class Removal:
    """What a removal took out; it is committed, and nothing answers with it any more.

    identity: as it was before. templates: how many went. vacuumed: the database file
    was compacted, so that not a byte of them is left in it. problem: where vacuumed is
    False, a sentence on why; compaction is tried again at the next removal or opening, but of
    a large database (more than gallery.database.COMPACT_BYTES), which waits for
    :meth:`gallery.Gallery.compact` with ``now``.
    """

    identity: Identity
    templates: int
    vacuumed: bool
    problem: str | None = None


def clean_name(name: str) -> str:
    """The name as it is stored: Unicode NFC, trimmed, runs of white space made one space.

    Raises GalleryError for a name that is empty, longer than MAX_NAME_LENGTH, or holds
    control characters, invisible ones, or lone surrogates.
    """
    bad = [c for c in name if _is_refused(c)]
    if bad:
        listed = ", ".join(f"U+{ord(c):04X}" for c in sorted(set(bad))[:5])
        raise GalleryError(f"the name {name!r} holds control or invisible characters: {listed}")
    cleaned = " ".join(unicodedata.normalize("NFC", name).split())
    if not cleaned.strip(_SPELLING):
        raise GalleryError("the name is empty; give every person a name")
    if len(cleaned) > MAX_NAME_LENGTH:
        raise GalleryError(
            f"the name {cleaned[:40] + '…'!r} has {len(cleaned)} characters; "
            f"at most {MAX_NAME_LENGTH} are allowed"
        )
    return cleaned


def name_key(name: str) -> str:
    """What two names are compared by: the cleaned name without regard to case.

    "Zoë", "ZOË" and "Zoë" written with a combining diaeresis are one name.
    """
    return unicodedata.normalize("NFC", clean_name(name).casefold())


def search_key(text: str) -> str:
    """Part of a name, as typed, in the form of :func:`name_key`; never raises.

    Bytes that are no UTF-8 are in no name.
    """
    text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def identity_id(value: SupportsIndex) -> int:
    """An id, given as any integer. Raises GalleryError for what is no integer."""
    try:
        return operator.index(value)
    except TypeError as exc:
        raise GalleryError(f"a person is named by str or int, got {value!r}") from exc


def metadata_json(metadata: Mapping[str, Any]) -> str:
    """Metadata as a JSON object. Raises GalleryError for what JSON cannot hold, or too much."""
    if not isinstance(metadata, Mapping) or any(not isinstance(k, str) for k in metadata):
        raise GalleryError("metadata is a mapping with text keys")
    try:
        text = json.dumps(dict(metadata), sort_keys=True, ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise GalleryError(f"metadata cannot be written as JSON: {exc}") from exc
    if len(text) > MAX_METADATA_BYTES:
        raise GalleryError(
            f"metadata takes {len(text)} bytes as JSON; at most {MAX_METADATA_BYTES} are allowed"
        )
    return text


def unit_rows(values: ArrayLike, what: str, ndim: int) -> FloatArray:
    """``values`` as a read-only, C-contiguous float32 array of unit-length rows.

    ndim: 1 for one vector (d,), 2 for (N, d). ``what`` opens the message of the
    GalleryError for another shape, NaN or infinity, or a length off 1 by more than 1e-3.
    """
    try:
        array = np.array(values, dtype=np.float32, order="C")
    except (TypeError, ValueError) as exc:
        raise GalleryError(f"{what}: not an array of numbers ({exc})") from exc
    if array.ndim != ndim:
        shape = "(d,)" if ndim == 1 else "(N, d)"
        raise GalleryError(f"{what}: expected shape {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise GalleryError(f"{what}: holds NaN or infinity")
    lengths = np.atleast_1d(np.linalg.norm(array, axis=-1))
    off = np.abs(lengths - 1) > UNIT_LENGTH_TOLERANCE
    if off.any():
        row = int(np.argmax(off))
        where = f" (row {row})" if ndim == 2 else ""
        raise GalleryError(f"{what}: expected unit length, got |e| = {lengths[row]:.4f}{where}")
    array.flags.writeable = False
    return array


def check_contract(
    ours: EmbeddingContract, theirs: EmbeddingContract, where: str, our_pack: str, their_pack: str
) -> None:
    """Raises ContractMismatch unless embeddings of ``theirs`` may meet the gallery's, ``ours``."""
    if ours.contract_id != theirs.contract_id:
        raise ContractMismatch(
            f"{where}: this gallery holds embeddings of pack {our_pack!r} (contract "
            f"{ours.contract_id}), but pack {their_pack!r} makes others (contract "
            f"{theirs.contract_id}). Use the gallery's own pack, or move the gallery with "
            f"'facerec reembed --pack {their_pack}'."
        )


def check_dim(dim: int, contract: EmbeddingContract, pack_name: str, what: str) -> None:
    """Raises ContractMismatch unless vectors of ``dim`` numbers can be of ``contract``."""
    if dim != contract.dim:
        raise ContractMismatch(
            f"{what} has {dim} dimensions, but this gallery holds embeddings of pack "
            f"{pack_name!r} (contract {contract.contract_id}) with {contract.dim}. "
            f"Embed with that pack, or move the gallery with 'facerec reembed --pack NEW'."
        )


def _pixels(values: ArrayLike, shape: tuple[int, ...], what: str) -> FloatArray:
    points: NDArray[np.float32] = np.array(values, dtype=np.float32, order="C")
    if points.shape != shape or not np.isfinite(points).all():
        raise GalleryError(f"{what}: expected {shape} finite pixels, got {points.shape}")
    points.flags.writeable = False
    return points


def _check_jpeg(data: bytes, source: str) -> None:
    if not data.startswith(b"\xff\xd8\xff"):
        raise GalleryError(f"{source}: the crop is not a JPEG")
    if len(data) > MAX_CROP_BYTES:
        raise GalleryError(f"{source}: the crop takes {len(data)} bytes; at most {MAX_CROP_BYTES}")


def _is_refused(char: str) -> bool:
    category = unicodedata.category(char)
    if category == "Cc":
        return char not in "\t\n\r"  # white space, which becomes a space
    return category in ("Cf", "Cs", "Zl", "Zp") and char not in _SPELLING
