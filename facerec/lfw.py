"""Photos and pairs in the layout of Labeled Faces in the Wild. Imports the core and numpy only.

The protocol file is LFW's pairs.txt; any data in its layout can be evaluated:

    folds<TAB>n                       then, per fold,
    NAME<TAB>i<TAB>j                  n genuine pairs: photos i and j of NAME
    NAME<TAB>i<TAB>OTHER<TAB>j        n impostor pairs

with the photos at DIR/NAME/NAME_0001.jpg and so on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facerec.detection import Detector
from facerec.errors import ConfigError
from facerec.image import load_image
from facerec.pipeline import Pipeline
from facerec.types import Detections, FloatArray, RGBImage

PAIRS_FILE = "pairs.txt"
_DECODERS = 2

Photo = tuple[str, int]
"""A person's name and the number of the photo, from 1."""
Progress = Callable[[int, int], None]
"""Told (photos done, photos in all); may raise to stop the run."""


@dataclass(frozen=True, eq=False)
class Protocol:
    """The pairs of a protocol file, column-wise.

    photos: every photo that a pair names, once, sorted. left, right: (p,) indices into
    ``photos``. same: (p,) bool. fold: (p,) from 0. folds x pairs_per_kind x 2 = p.
    """

    photos: tuple[Photo, ...]
    left: NDArray[np.intp]
    right: NDArray[np.intp]
    same: NDArray[np.bool_]
    fold: NDArray[np.intp]
    folds: int
    pairs_per_kind: int

    @property
    def labels(self) -> NDArray[np.int64]:
        """Whom each photo shows: (photos,) int64, names numbered in sorted order."""
        names = np.array([name for name, _ in self.photos])
        return np.unique(names, return_inverse=True)[1].astype(np.int64)

    @property
    def is_lfw_view_2(self) -> bool:
        """Whether this has the size of LFW's own View 2; no other protocol in use has."""
        people = len({name for name, _ in self.photos})
        size = (self.folds, self.pairs_per_kind, len(self.photos), people)
        return size == (10, 300, 7701, 4281)

    @property
    def sha256(self) -> str:
        """Of the list of photos, 64 hexadecimal digits."""
        listing = "\n".join(f"{name}\t{number}" for name, number in self.photos)
        return hashlib.sha256(listing.encode()).hexdigest()


def read_protocol(path: Path) -> Protocol:
    """The pairs in ``path``. Raises ConfigError naming the file and the line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").rstrip().split("\n")
    except FileNotFoundError as exc:
        raise ConfigError(
            f"{path}: no such file; the protocol ({PAIRS_FILE}) lies in the folder of the "
            "photos, or is named on its own"
        ) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}") from exc
    folds, count = _read_header(lines[0], path)
    want = 1 + 2 * folds * count
    if len(lines) != want:
        raise ConfigError(
            f"{path}: line 1 announces {folds} folds of {count} genuine and {count} impostor "
            f"pairs, {want} lines in all, but the file has {len(lines)}"
        )
    pairs = []
    for at, line in enumerate(lines[1:]):
        genuine = at % (2 * count) < count
        pairs.append(_read_pair(line.rstrip("\r"), genuine, f"{path}, line {at + 2}"))
    photos = tuple(sorted({photo for pair in pairs for photo in pair}))
    index = {photo: at for at, photo in enumerate(photos)}
    fold, within = np.divmod(np.arange(len(pairs)), 2 * count)
    return Protocol(
        photos=photos,
        left=np.array([index[a] for a, _ in pairs]),
        right=np.array([index[b] for _, b in pairs]),
        same=within < count,
        fold=fold,
        folds=folds,
        pairs_per_kind=count,
    )


def _read_header(line: str, path: Path) -> tuple[int, int]:
    fields = line.split()
    if len(fields) != 2 or not all(field.isdecimal() for field in fields):
        raise ConfigError(
            f"{path}, line 1: expected the number of folds and of pairs per fold and kind, "
            f"as '10<TAB>300', got {line[:80]!r}"
        )
    folds, count = int(fields[0]), int(fields[1])
    if folds < 2 or count < 1:
        raise ConfigError(f"{path}, line 1: at least 2 folds of 1 pair each, got {folds}, {count}")
    return folds, count


def _read_pair(line: str, genuine: bool, where: str) -> tuple[Photo, Photo]:
    fields = line.split("\t")
    if genuine:
        if len(fields) != 3:
            raise ConfigError(f"{where}: expected a genuine pair, NAME i j by tabs, got {line!r}")
        name, other, numbers = fields[0], fields[0], (fields[1], fields[2])
    else:
        if len(fields) != 4:
            raise ConfigError(
                f"{where}: expected an impostor pair, NAME i NAME j by tabs, got {line!r}"
            )
        name, other, numbers = fields[0], fields[2], (fields[1], fields[3])
        if name == other:
            raise ConfigError(f"{where}: an impostor pair of one person, {name!r}")
    for who in (name, other):
        if not who or who in (".", "..") or "/" in who or "\\" in who:
            raise ConfigError(f"{where}: {who!r} is no name of a folder")
    for number in numbers:
        if not number.isdecimal() or int(number) < 1:
            raise ConfigError(f"{where}: photos are numbered from 1, got {number!r}")
    left, right = (name, int(numbers[0])), (other, int(numbers[1]))
    if left == right:
        raise ConfigError(f"{where}: a pair of one photo with itself")
    return left, right


def find_photos(protocol: Protocol, folder: Path) -> list[Path]:
    """Where each of ``protocol.photos`` lies; ConfigError with the first missing and the count."""
    paths = [folder / name / f"{name}_{number:04d}.jpg" for name, number in protocol.photos]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ConfigError(
            f"{len(missing):,} of the {len(paths):,} photos that the protocol names are missing, "
            f"first {missing[0]}; expected under {folder}: NAME/NAME_0001.jpg"
        )
    return paths


def embed_central_faces(
    pipeline: Pipeline,
    paths: Sequence[Path],
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """The face nearest the centre of each photo: embeddings (n, d), and found (n,) bool.

    LFW centres its subject; others may stand beside. Nearest: smallest distance from
    the centre of the box to the centre of the photo; of equally near faces the one with the
    better detector score. A photo without a face has a row of zeros and found False.
    While one batch is embedded the next is decoded. Raises ImageError for a photo that cannot
    be read: a measurement on fewer photos would not be the protocol's.
    """
    embeddings = np.zeros((len(paths), pipeline.contract.dim), np.float32)
    found = np.zeros(len(paths), dtype=np.bool_)
    at = 0
    for images, faces in central_faces(pipeline.detector, paths, batch_size=batch_size):
        for row in pipeline.embed_detected(images, faces):
            if row:
                embeddings[at], found[at] = row[0].embedding, True
            at += 1
        if progress is not None:
            progress(at, len(paths))
    return embeddings, found


def central_faces(
    detector: Detector, paths: Sequence[Path], *, batch_size: int = 32
) -> Iterator[tuple[list[RGBImage], list[Detections]]]:
    """The photos, a batch at a time and in order, each with the face nearest its centre, or none.

    See :func:`embed_central_faces`. Raises ImageError for a photo that cannot be read.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size: at least 1, got {batch_size}")
    decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")

    def decode(start: int) -> list[Future[RGBImage]]:
        return [decoders.submit(load_image, path) for path in paths[start : start + batch_size]]

    try:
        ahead = decode(0)
        for start in range(0, len(paths), batch_size):
            images = [future.result() for future in ahead]
            ahead = decode(start + batch_size)
            central = [
                _most_central(detections, image.shape[1], image.shape[0])
                for detections, image in zip(detector.detect(images), images, strict=True)
            ]
            yield images, central
    finally:
        decoders.shutdown(cancel_futures=True)


def _most_central(detections: Detections, width: int, height: int) -> Detections:
    """The detection nearest the centre of the photo, or none. Detections come best score first."""
    if len(detections) < 2:
        return detections
    boxes = detections.boxes_xyxy
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    distances = ((centres - (width / 2, height / 2)) ** 2).sum(axis=1)
    return detections.take([int(np.argmin(distances))])  # of equals argmin takes the first
