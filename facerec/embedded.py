"""Central faces of many photos, embedded once and kept in a file. Imports the core and numpy."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facerec import __version__
from facerec.errors import ConfigError
from facerec.files import write_atomically
from facerec.lfw import Progress, embed_central_faces
from facerec.packs.manifest import Pack, sha256_file
from facerec.pipeline import Pipeline
from facerec.types import FloatArray


@dataclass(frozen=True, eq=False)
class Embedded:
    """rows: (n, d) float32 unit embeddings, zeros where ``found`` (n,) is False.

    seconds: what it took to find and embed the faces, when that was done.
    """

    rows: FloatArray
    found: NDArray[np.bool_]
    seconds: float


def embed_photos(
    pipeline: Pipeline,
    paths: Sequence[Path],
    listing_sha256: str,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
    kept_in: Path | None = None,
) -> Embedded:
    """The face nearest the centre of each photo: see :func:`facerec.lfw.embed_central_faces`.

    listing_sha256: of the photos' names, whatever folder they are in. kept_in: an .npz to keep
    the result in; where it exists and was made by the same pack, version of facerec and list of
    photos, it is read instead. Raises ConfigError for a file that was not, or no folder for it;
    ImageError for a photo that cannot be read.
    """
    if kept_in is not None and not kept_in.absolute().parent.is_dir():
        raise ConfigError(f"{kept_in}: no such folder; make it first")
    key = _key(pipeline.pack, listing_sha256)
    if kept_in is not None and kept_in.exists():
        return _load(kept_in, key)
    began = time.perf_counter()
    rows, found = embed_central_faces(pipeline, paths, batch_size=batch_size, progress=progress)
    embedded = Embedded(rows, found, time.perf_counter() - began)
    if kept_in is not None:
        _save(kept_in, key, embedded)
    return embedded


def _key(pack: Pack, listing_sha256: str) -> str:
    """What the embeddings of a run depend on, as one comparable text."""
    detector = pack.manifest.detector
    return json.dumps(
        {
            "facerec": __version__,
            "contract": pack.contract.contract_id,
            "detector": detector.sha256 or sha256_file(pack.detector_path),
            "settings": [
                detector.kind,
                detector.max_side,
                detector.score_threshold,
                detector.nms_iou,
            ],
            "photos": listing_sha256,
        }
    )


def _save(path: Path, key: str, embedded: Embedded) -> None:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        key=np.array(key),
        embeddings=embedded.rows,
        found=embedded.found,
        seconds=embedded.seconds,
    )
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as exc:
        raise ConfigError(f"{path}: the embeddings cannot be written: {exc}") from exc


def _load(path: Path, key: str) -> Embedded:
    try:
        with np.load(path, allow_pickle=False) as data:
            stored = str(data["key"])
            embedded = Embedded(data["embeddings"], data["found"], float(data["seconds"]))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as exc:
        raise ConfigError(f"{path}: not a file of embeddings: {exc}; remove it") from exc
    if stored != key:
        raise ConfigError(
            f"{path}: made by another pack, version of facerec or list of photos; remove it or "
            f"name another file (it says {stored}, this run is {key})"
        )
    return embedded
