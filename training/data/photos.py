"""Raw photos in ROOT/IDENTITY/*: aligned on first use, kept, and read back after that.

Imports the core and NumPy. In the cache folder::

    aligned-<key>/              one per detector, template, size and this module's version
      photos.jsonl              per photo (by the SHA-256 of its content): what came of it
      ab/abcdef... .jpg         the chip
    files.jsonl                 path, size and time of change of each photo -> SHA-256

A chip is written whole or not at all, before the line that announces it; a line that was cut
off, or whose chip is gone, is as if it were not there. So an interrupted run loses the photos
in flight and nothing else, and two runs may share a cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from facerec.alignment import align, find_template
from facerec.errors import ConfigError, ImageError
from facerec.files import write_atomically
from facerec.folders import Listing, list_identities
from facerec.image import load_image, read_bytes
from facerec.packs.manifest import Pack, sha256_file
from facerec.pipeline import Pipeline
from facerec.types import Detections, Failure, FloatArray, RGBImage
from training.data.sources import FaceSource, PackedStrings

_VERSION = 1
_QUALITY = 95
_CHUNK = 8
"""Photos decoded and detected together."""
_RIVAL_AREA = 0.5

Progress = Callable[[int, int], None]
"""Told (photos done, photos to do); may raise to stop the run, which loses nothing."""


@dataclass(frozen=True, eq=False)
class AlignedPhotos:
    """What became of a folder of photos.

    source: the chips, one per photo that shows a face. failures: photos that could not be
    read, or show no face. ambiguous: photos in which another face is at least half as large
    as the one taken, so that it may be the wrong person. new: photos that were not in the cache.
    """

    source: FaceSource
    failures: tuple[Failure, ...]
    ambiguous: tuple[str, ...]
    new: int


class CachedChips(FaceSource):
    """Chips in the cache, named after their photos."""

    def __init__(
        self,
        origin: Path,
        names: list[str],
        rows: list[tuple[int, str, Path]],
        template: str,
        size: int,
    ) -> None:
        """rows: (index into ``names``, photo, chip) of each image."""
        kept, labels = np.unique([row[0] for row in rows], return_inverse=True)
        self.origin = str(origin)
        self.labels = labels.astype(np.int64)
        self.identities = [names[i] for i in kept]
        self.template = template
        self.size = size
        self._photos = PackedStrings(row[1] for row in rows)
        self._chips = PackedStrings(str(row[2]) for row in rows)

    def encoded(self, index: int) -> bytes:
        return read_bytes(self._chips[index])

    def name(self, index: int) -> str:
        return self._photos[index]


def align_photos(
    root: Path,
    pack: Pack,
    cache: Path,
    *,
    template: str | None = None,
    size: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    pipeline: Pipeline | None = None,
    progress: Progress | None = None,
) -> AlignedPhotos:
    """The chips of the photos under ``root``, one folder per person.

    The detector is ``pack``'s; template and size are its embedder's, unless given. Of several
    faces the most central large one is taken (:func:`choose_face`). Photos whose chip the cache
    has are not decoded again; the detector is loaded when the first one is needed, unless
    ``pipeline`` brings it. Equal photos share a chip.

    Raises ConfigError for a folder without photos or in which no photo shows a face, and for
    a cache that cannot be written.
    """
    template = pack.contract.template if template is None else find_template(template).name
    size = pack.contract.input_size if size is None else size
    listing = list_identities(Path(root))
    try:
        folder = Path(cache) / f"aligned-{_cache_key(pack, template, size)}"
        folder.mkdir(parents=True, exist_ok=True)
        hashes, unreadable = _content_hashes(listing, Path(cache) / "files.jsonl")
        store = _ChipStore(folder)
        missing = [p for p, h in hashes.items() if not store.has(h)]
        missing = list({hashes[p]: p for p in reversed(missing)}.values())[::-1]
        if missing:
            pipeline = pipeline or Pipeline.load(pack, device=device, threads=threads)
            _align_missing(
                listing.root, missing, hashes, store, pipeline, (template, size), progress
            )
    except OSError as exc:
        raise ConfigError(f"{exc.filename or cache}: cannot be written: {exc.strerror}") from exc
    return _collect(listing, hashes, unreadable, store, (template, size), len(missing))


def choose_face(found: Detections, width: int, height: int) -> int:
    """Index of the face that a photo of one person is about; ``found`` is not empty.

    The largest box area minus twice the squared distance of its middle from the photo's: a
    passer-by at the border gives way to a smaller face in the middle.
    """
    boxes = found.boxes_xyxy.astype(np.float64)
    offset = (boxes[:, :2] + boxes[:, 2:]) / 2 - (width / 2, height / 2)
    return int(np.argmax(_areas(found.boxes_xyxy) - 2 * (offset**2).sum(1)))


def _cache_key(pack: Pack, template: str, size: int) -> str:
    detector = pack.manifest.detector
    what = {
        "version": _VERSION,
        "template": template,
        "size": size,
        "detector": detector.sha256 or sha256_file(pack.detector_path),
        "settings": [detector.kind, detector.max_side, detector.score_threshold, detector.nms_iou],
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


class _Ledger:
    """Lines of JSON, appended one write each; lines that do not parse are passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Iterator[dict[str, Any]]:
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry

    def append(self, entries: Iterable[dict[str, Any]]) -> None:
        """Starts with a line break: the line before may have been cut off."""
        text = "".join("\n" + json.dumps(entry) for entry in entries)
        if text:
            with self.path.open("ab") as stream:
                stream.write(text.encode() + b"\n")


class _ChipStore:
    """Chips by the SHA-256 of their photo, and why a photo has none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ledger = _Ledger(folder / "photos.jsonl")
        self.entries = {e["photo"]: e for e in self._ledger.read() if "photo" in e}

    def path(self, photo: str) -> Path:
        return self.folder / photo[:2] / f"{photo}.jpg"

    def has(self, photo: str) -> bool:
        entry = self.entries.get(photo)
        return entry is not None and ("reason" in entry or self.path(photo).is_file())

    def put(self, photo: str, chip: RGBImage | None, entry: dict[str, Any]) -> None:
        """Keep a chip, or with None the reason that ``entry`` gives."""
        if chip is not None:
            path = self.path(photo)
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, _encode(chip))
        entry = {"photo": photo, **entry}
        self._ledger.append([entry])
        self.entries[photo] = entry


def _encode(chip: RGBImage) -> bytes:
    """JPEG with full colour resolution: 4:2:0 would halve it once more."""
    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    ok, data = cv2.imencode(".jpg", np.ascontiguousarray(chip[..., ::-1]), options)
    assert ok
    return bytes(data)


def _content_hashes(listing: Listing, known: Path) -> tuple[dict[str, str], list[Failure]]:
    """SHA-256 by photo, relative to the root, and the photos that cannot be read.

    A photo of the same path, size and time of change is not read again.
    """
    ledger = _Ledger(known)
    seen = {e["path"]: e for e in ledger.read() if {"path", "size", "time", "sha256"} <= e.keys()}
    hashes: dict[str, str] = {}
    failures: list[Failure] = []
    fresh = []
    for relative in listing.paths:
        path = listing.root / relative
        name = os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links
        try:
            status = path.stat()
            stamp = {"size": status.st_size, "time": status.st_mtime_ns}
            entry = seen.get(name)
            if entry is None or any(entry[k] != v for k, v in stamp.items()):
                digest = hashlib.sha256(read_bytes(path)).hexdigest()
                entry = {"path": name, **stamp, "sha256": digest}
                fresh.append(entry)
        except (OSError, ImageError) as exc:
            failures.append(Failure(str(path), "unreadable", f"{path}: cannot be read: {exc}"))
            continue
        hashes[relative] = entry["sha256"]
    ledger.append(fresh)
    return hashes, failures


def _align_missing(
    root: Path,
    missing: list[str],
    hashes: dict[str, str],
    store: _ChipStore,
    pipeline: Pipeline,
    target: tuple[str, int],
    progress: Progress | None,
) -> None:
    """Detect and align in small groups; each photo is kept as soon as it is done."""
    done = 0
    queue = iter(missing)
    with ThreadPoolExecutor(2) as pool:
        while group := list(islice(queue, _CHUNK)):
            images: list[RGBImage] = []
            shown = []
            for path, image in zip(
                group, pool.map(lambda p: _decode(root / p), group), strict=True
            ):
                if isinstance(image, str):
                    store.put(hashes[path], None, {"code": "unreadable", "reason": image})
                else:
                    images.append(image)
                    shown.append(path)
            detections = pipeline.detector.detect(images) if images else []
            for path, image, found in zip(shown, images, detections, strict=True):
                store.put(hashes[path], *_chip_and_entry(image, found, target))
            done += len(group)
            if progress:
                progress(done, len(missing))


def _decode(path: Path) -> RGBImage | str:
    """The photo, or why there is none, without its name: equal photos have many."""
    try:
        return load_image(path)
    except ImageError as exc:
        return str(exc).removeprefix(f"{path}: ")


def _chip_and_entry(
    image: RGBImage, found: Detections, target: tuple[str, int]
) -> tuple[RGBImage | None, dict[str, Any]]:
    if not len(found):
        return None, {"code": "no_face", "reason": "no face found"}
    height, width = image.shape[:2]
    chosen = choose_face(found, width, height)
    try:
        [chip] = align(image, found.landmarks[[chosen]], *target)
    except ValueError as exc:
        return None, {"code": "no_face", "reason": f"the face cannot be aligned: {exc}"}
    area = _areas(found.boxes_xyxy)
    rivals = np.delete(area, chosen) >= _RIVAL_AREA * area[chosen]
    return chip, {
        "faces": len(found),
        "score": round(float(found.scores[chosen]), 4),
        "ambiguous": bool(rivals.any()),
    }


def _areas(boxes_xyxy: FloatArray) -> NDArray[np.float64]:
    sides = boxes_xyxy[:, 2:].astype(np.float64) - boxes_xyxy[:, :2]
    return sides[:, 0] * sides[:, 1]


def _collect(
    listing: Listing,
    hashes: dict[str, str],
    unreadable: list[Failure],
    store: _ChipStore,
    target: tuple[str, int],
    new: int,
) -> AlignedPhotos:
    rows = []
    failures = list(unreadable)
    ambiguous = []
    for relative, identity in zip(listing.paths, listing.identity, strict=True):
        if relative not in hashes:
            continue
        photo = str(listing.root / relative)
        entry = store.entries[hashes[relative]]
        if "reason" in entry:
            failures.append(Failure(photo, entry["code"], f"{photo}: {entry['reason']}"))
            continue
        rows.append((identity, photo, store.path(hashes[relative])))
        if entry["ambiguous"]:
            ambiguous.append(photo)
    if not rows:
        raise ConfigError(
            f"{listing.root}: none of {len(listing.paths)} photos shows a face that could be "
            f"found; the first: {failures[0].reason}"
        )
    source = CachedChips(listing.root, listing.names, rows, *target)
    source.failures = tuple(failures)
    return AlignedPhotos(source, tuple(failures), tuple(ambiguous), new)
