"""A guard set: faces of everybody else, on whom a retrained network must not get worse.

Imports torch, NumPy and the core.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facerec.errors import ConfigError
from facerec.lfw import PAIRS_FILE, find_photos, read_protocol
from facerec.metrics import MIN_IMPOSTORS, allowed_count, kfold_accuracy, tar_at_far
from facerec.packs.manifest import Pack
from facerec.pairs import pair_scores
from facerec.types import FloatArray
from training.backbones import Preprocessing
from training.data import FaceSource, VerificationSet, open_source, read_verification_bin
from training.data.splits import split_fraction

ACCURACY_TOLERANCE = 0.003
TAR_TOLERANCE = 0.01
MAX_PHOTOS = 4000
"""Of a folder of people: eight million pairs, 8,000 of which decide TAR at FAR 1e-3."""
_FARS = (1e-3, 1e-2, 1e-1)
_BIN_FOLDS = 10

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Pairs:
    """left, right: (p,) images of the source, -1 for a photo without a face. same: (p,) bool.
    fold: (p,) int."""

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    same: NDArray[np.bool_]
    fold: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class GuardSet:
    """What is embedded, and which figure of it may fall by how much.

    pairs: whose accuracy over folds is the figure; None: it is TAR at ``far`` over every pair of
    photos. tolerance: the largest fall that is allowed, as a share: 0.003 is 0.3 points.
    """

    origin: str
    source: FaceSource
    pairs: Pairs | None
    far: float
    tolerance: float

    @property
    def measure(self) -> str:
        """The figure's name."""
        if self.pairs is not None:
            return f"accuracy on {len(self.pairs.same):,} pairs"
        return f"TAR at FAR {self.far:g}, every pair of {len(self.source):,} photos"

    def figure(self, embeddings: FloatArray, rows: NDArray[np.int64]) -> float:
        """In [0, 1], larger is better, of unit embeddings (n, d) of the images ``rows`` (n,)."""
        if self.pairs is None:
            genuine, impostor = pair_scores(embeddings, self.source.labels[rows])
            return tar_at_far(genuine, impostor, self.far)
        every = np.zeros((len(self.source) + 1, embeddings.shape[1]), np.float32)
        every[rows] = embeddings  # the last row stands for -1
        found = np.zeros(len(every), bool)
        found[rows] = True
        left, right = self.pairs.left, self.pairs.right
        scores = np.einsum("ij,ij->i", every[left], every[right]).clip(-1, 1)
        scores[~(found[left] & found[right])] = -1  # no face: matches nobody
        return kfold_accuracy(scores, self.pairs.same, self.pairs.fold).mean


def measurable_far(labels: NDArray[np.int64]) -> float | None:
    """The smallest of 1e-3, 1e-2, 1e-1 that every pair of photos (n,) of these people shows.

    Of a rate that fewer than ``MIN_IMPOSTORS`` pairs decide little is known. None where not
    even 0.1 can be measured, or nobody has two photos.
    """
    counts = np.bincount(labels) if len(labels) else np.zeros(1, np.int64)
    impostors = (int(counts.sum()) ** 2 - int((counts**2).sum())) // 2
    if not impostors or int(counts.max()) < 2:
        return None
    return next((f for f in _FARS if allowed_count(impostors, f) >= MIN_IMPOSTORS), None)


def open_guard(
    path: Path,
    *,
    preprocessing: Preprocessing,
    pack: Pack,
    cache: Path,
    tolerance: float | None = None,
    progress: Progress | None = None,
) -> GuardSet:
    """The guard set at ``path``: a ``.bin`` of pairs, a folder in LFW's layout, or of people.

    A folder with pairs.txt counts as LFW's layout; accuracy over its folds is the figure. Of a
    folder of people (or RecordIO, or shards) it is TAR at the smallest FAR that can be measured,
    and of more than ``MAX_PHOTOS`` photos some people are taken, always the same. Photos that
    are not aligned are, by ``pack``'s detector, and kept in ``cache``.
    tolerance: a share; None: 0.003 of accuracy, 0.01 of TAR.

    Raises ConfigError for a path that holds none of these, and for a set too small to measure.
    """
    if not path.exists():
        raise ConfigError(
            f"{path}: no such guard set; give a .bin of pairs, a folder in LFW's layout (with "
            f"{PAIRS_FILE}), or a folder of people who are not in the training data"
        )
    if path.suffix == ".bin":
        return _of_bin(read_verification_bin(path), tolerance)
    source = open_source(
        path, pack=pack, cache=cache, preprocessing=preprocessing, progress=progress
    )
    if (path / PAIRS_FILE).is_file():
        return _of_lfw(path, source, tolerance)
    return _of_people(path, source, tolerance)


def _of_bin(content: VerificationSet, tolerance: float | None) -> GuardSet:
    n = len(content)
    if not 0 < int(content.same.sum()) < n or n < 2 * _BIN_FOLDS:
        raise ConfigError(
            f"{content.origin}: {n} pairs, {int(content.same.sum())} of one person; a guard set "
            f"needs both kinds, and {2 * _BIN_FOLDS} pairs"
        )
    at = np.arange(n, dtype=np.int64)
    pairs = Pairs(2 * at, 2 * at + 1, content.same, at * _BIN_FOLDS // n)
    return GuardSet(
        content.origin, _PairImages(content), pairs, 0.0, _given(tolerance, ACCURACY_TOLERANCE)
    )


def _of_lfw(folder: Path, source: FaceSource, tolerance: float | None) -> GuardSet:
    protocol = read_protocol(folder / PAIRS_FILE)
    at = {source.name(i): i for i in range(len(source))}
    index = np.array([at.get(str(p), -1) for p in find_photos(protocol, folder)], dtype=np.int64)
    shown = index >= 0
    if not shown.any():
        raise ConfigError(f"{folder}: no face was found in any photo of {PAIRS_FILE}")
    position = np.where(shown, np.cumsum(shown) - 1, -1)
    pairs = Pairs(position[protocol.left], position[protocol.right], protocol.same, protocol.fold)
    return GuardSet(
        str(folder), source.subset(index[shown]), pairs, 0.0, _given(tolerance, ACCURACY_TOLERANCE)
    )


def _of_people(path: Path, source: FaceSource, tolerance: float | None) -> GuardSet:
    if len(source) > MAX_PHOTOS:
        order = np.argsort([split_fraction(name, 0) for name in source.identities])
        counts = np.bincount(source.labels, minlength=source.num_classes)[order]
        taken = order[: max(2, int(np.searchsorted(np.cumsum(counts), MAX_PHOTOS, "right")))]
        source = source.subset(np.flatnonzero(np.isin(source.labels, taken)))
    far = measurable_far(source.labels)
    if far is None:
        raise ConfigError(
            f"{path}: {len(source)} photos of {source.num_classes} people are too few for a guard "
            f"set: it needs {MIN_IMPOSTORS * 10} pairs of two people, and somebody with two photos"
        )
    return GuardSet(str(path), source, None, far, _given(tolerance, TAR_TOLERANCE))


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


class _PairImages(FaceSource):
    """The images of a ``.bin`` file, each as an identity of its own."""

    def __init__(self, content: VerificationSet) -> None:
        self.content = content
        self.labels = np.arange(len(content.images), dtype=np.int64)
        self.identities = [str(i) for i in range(len(content.images))]
        self.template = "arcface-112"
        self.size = content.image(0).shape[0]
        self.origin = content.origin

    def encoded(self, index: int) -> bytes:
        return bytes(self.content.images[index])

    def name(self, index: int) -> str:
        return f"{self.origin}, image {index}"
