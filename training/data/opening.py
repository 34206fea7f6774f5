"""Opening a set by what lies at a path; holding one in memory. Imports torch and the core."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from facerec.errors import ConfigError, ImageError
from facerec.folders import list_identities
from facerec.packs.manifest import Pack
from facerec.types import Failure
from training.backbones.base import Preprocessing
from training.data.augment import ChipTransform
from training.data.folder import ImageFolder, image_side, template_of_size
from training.data.loader import FailureLog
from training.data.photos import align_photos
from training.data.recordio import RecordSource
from training.data.samplers import Draw
from training.data.shards import ShardSource, expand_shards
from training.data.sources import FaceSource, MemorySource

DEFAULT_TEMPLATE = ("arcface-112", 112)
"""Of RecordIO files and tar shards, which do not say."""


def open_source(
    path: str | Path,
    *,
    aligned: bool | None = None,
    template: str | None = None,
    size: int | None = None,
    pack: Pack | None = None,
    cache: Path | None = None,
    preprocessing: Preprocessing | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FaceSource:
    """The set at ``path``: a ``.rec`` file or a folder with ``train.rec``, tar shards (see
    :func:`expand_shards`), or a folder per person.

    aligned: whether a folder holds chips; None to see from its images: square, all equal, and of
    a template's own size (112, 150). template, size: of stored chips, where they are not the
    usual. Photos are aligned by ``pack``'s detector to the template of ``preprocessing`` (that
    of the backbone to be trained; else of the pack) and kept in ``cache``.

    Raises ConfigError for a path that holds none of these, and for photos where pack or cache is
    missing.
    """
    place = Path(path)
    stored = (template or DEFAULT_TEMPLATE[0], size or DEFAULT_TEMPLATE[1])
    if place.suffix == ".rec":
        return RecordSource(place, *stored)
    if (place / "train.rec").is_file():
        return RecordSource(place / "train.rec", *stored)
    if ".tar" in place.name or (place.is_dir() and next(place.glob("*.tar"), None)):
        return ShardSource(expand_shards(str(path)), *stored)
    if aligned is None:
        aligned = template is not None or size is not None or holds_chips(place)
    if aligned:
        return ImageFolder(place, template, size)
    if pack is None or cache is None:
        raise ConfigError(
            f"{place}: photos that have to be aligned first, which needs a pack (its detector) and "
            "a cache folder; if they are aligned chips, name their template and size"
        )
    wanted = (preprocessing.template, preprocessing.input_size) if preprocessing else (None, None)
    return align_photos(
        place, pack, cache, template=wanted[0], size=wanted[1], progress=progress
    ).source


def holds_chips(root: Path) -> bool:
    """Whether the images of a folder are all square and of a template's own size."""
    listing = list_identities(root)
    try:
        template_of_size(image_side(listing), root)
    except ConfigError:
        return False
    return True


def in_memory(
    source: FaceSource,
    preprocessing: Preprocessing,
    *,
    max_failures: int | None = None,
    threads: int = 2,
) -> MemorySource:
    """The chips of ``source`` decoded and warped once, as ``preprocessing`` takes them.

    n * S * S * 3 bytes: 1.4 GB for 38,089 images at 112 pixels, 0.5 GB at 64. Images that cannot
    be read are left out and listed in ``failures``; ImageError where they are more than
    ``max_failures`` (None: 1 % of the set, at least 10).
    """
    target = (preprocessing.template, preprocessing.input_size)
    transform = ChipTransform((source.template, source.size), target, None)
    chips = np.empty((len(source), target[1], target[1], 3), dtype=np.uint8)

    def load(index: int) -> Failure | None:
        try:
            chips[index] = transform(source.chip(index), Draw(index, 0))
        except ImageError as exc:
            return Failure(source.name(index), "unreadable", str(exc))
        return None

    log = FailureLog(max(10, len(source) // 100) if max_failures is None else max_failures)
    readable = np.ones(len(source), dtype=bool)
    with ThreadPoolExecutor(threads) as pool:
        for index, failure in enumerate(pool.map(load, range(len(source)))):
            if failure:
                readable[index] = False
                log.add((failure,))
    kept = np.flatnonzero(readable)
    if not len(kept):
        raise ImageError(f"{source.origin}: none of its images can be read; the first: {log}")
    held = MemorySource(source, kept, chips if readable.all() else chips[kept], target[0])
    held.failures = (*source.failures, *log.found.values())
    return held
